"""What pages say of real runs: of the networks that were given, and as measured last."""

from __future__ import annotations

import json
from pathlib import Path as File
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import isthmus as im
from isthmus.cli import run_app
from isthmus.plot.runs import read_run
from isthmus.report import write_report
from tests.report.test_report import Page

NETWORKS = """
import torch
from torch import nn

def points(n, seed):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 0.3).long()

def plain():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

def normalised():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

def regression():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))

class Inverse(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))
    def forward(self, x):
        return x / self.w

class Product(Inverse):
    def forward(self, x):
        return x * self.w

def data():
    return {"data": points(37, 1), "test": points(23, 2)}

def numbers():
    (x, _), (x_test, _) = points(37, 1), points(23, 2)
    return {"data": (x, x[:, :2]), "test": (x_test, x_test[:, :2]), "loss": "mse"}

def below():
    return {"data": (torch.ones(3, 2), torch.zeros(3, 2)), "loss": lambda out, y: out.sum(1) - 5}

def ones():
    return {"data": (torch.ones(3, 2), torch.zeros(3, 2)), "loss": "mse"}
"""


def networks() -> dict[str, Any]:
    """What is defined there."""
    names: dict[str, Any] = {}
    exec(NETWORKS, names)
    return names


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder to work in, with nets.py and checkpoints a and b of every network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETWORKS)
    names = networks()
    for kind in ("plain", "normalised", "regression"):
        for seed, name in enumerate("ab"):
            torch.manual_seed(seed)
            net = names[kind]()
            if kind != "regression":
                fit(net, *names["points"](37, 1))
            save_file(net.state_dict(), f"{kind}-{name}.safetensors")
    for name, w in (("a", (1.0, 1.0)), ("b", (-1.0, 1.0))):
        save_file({"w": torch.tensor(w)}, f"Inverse-{name}.safetensors")
    return tmp_path


def fit(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """So far that the straight line is higher than both ends."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def run(kind: str, command: str, *options: str, data: str = "data") -> None:
    pair = [f"{kind}-a.safetensors", f"{kind}-b.safetensors"]
    what = ["--model", f"nets.py:{kind}", "--data", f"nets.py:{data}"]
    run_app([command, *pair, *what, *options])


def page(folder: File) -> str:
    return Page(write_report(folder).read_text(encoding="utf-8")).text


def test_what_is_read_of_a_run_is_what_it_stored(made):
    """The numbers of profile.json stand in the place of those of result.json: here they are the same."""
    for kind in ("plain", "normalised"):
        run(kind, "connect", "--method", "Linear", "--num-points", "5", "--out", kind)
        stored, found = json.loads((made / kind / "result.json").read_text()), read_run(made / kind).result
        band = stored.pop("population")
        assert {k: band[k] for k in ("loss", "error", "text")} == found["population"]
        assert {k: found[k] for k in stored} == stored


def test_a_path_measured_again_is_told_as_measured_last(made):
    run("plain", "connect", "--method", "Linear", "--num-points", "4", "--out", "out")
    before = read_run(made / "out").result
    what = ["--model", "nets.py:plain", "--data", "nets.py:data"]
    assert run_app(["profile", "out/path.safetensors", *what, "--num-points", "101", "--out", "out"]) == 0
    curve, after = json.loads((made / "out/profile.json").read_text()), read_run(made / "out").result
    assert after["max_loss"] == max(curve["loss"]) > before["max_loss"]
    assert after["excess"] == max(curve["loss"]) - max(curve["loss"][0], curve["loss"][-1])
    assert after["test_error_max"] == max(curve["test"]["error"])
    assert "at 101 points" in after["population"]["text"]
    assert f"at most {max(curve['loss']):.4g} at the 101 points measured" in page(made / "out")


def test_a_band_of_another_shape_is_refused_in_one_line(made):
    run("plain", "connect", "--method", "Linear", "--num-points", "4", "--out", "out")
    held = json.loads((made / "out/profile.json").read_text())
    for band in (3, {"highest": 1}, {"highest": [1.0]}, {"error": []}, {"highest": [1.0, "x"]}, {"text": 1}):
        held["test"]["population"] = band
        (made / "out/profile.json").write_text(json.dumps(held))
        with pytest.raises(im.FileError):
            read_run(made / "out")


def test_what_is_proved_of_interpolated_statistics_says_so_and_the_networks_losses_are_their_own(made):
    names = networks()
    objective = im.Objective(names["normalised"]().eval(), "cross_entropy", names["points"](37, 1))
    own = [objective.loss(im.load_params(f"normalised-{name}.safetensors")) for name in "ab"]
    for bn in ("keep", "recompute"):
        run("normalised", "connect", "--method", "Linear", "--bn", bn, "--num-points", "5", "--out", f"runs/{bn}")
        text = page(made / "runs" / bn)
        assert "With interpolated statistics the training loss is at most" in text
        assert f"are {own[0]:.4g} (A) and {own[1]:.4g} (B)" in text
    assert "about different networks" not in page(made / "runs")


def test_a_loss_that_is_not_finite_was_measured(made):
    run("Inverse", "connect", "--method", "Linear", "--num-points", "5", "--out", "out", data="ones")
    text = page(made / "out")
    assert "The training loss is not finite everywhere on the path" in text
    assert "was not measured" not in text


def test_a_plane_is_drawn_whose_line_is_infinite_somewhere(made):
    save_file({"w": torch.tensor([0.2, 3.0])}, "Inverse-c.safetensors")
    files = [f"Inverse-{name}.safetensors" for name in "abc"]
    what = ["--model", "nets.py:Inverse", "--data", "nets.py:ones", "--points", "5", "--margin", "0"]
    assert run_app(["plane", *files, *what, "--out", "out"]) == 0
    assert {"plane.json", "plane.html"} <= {f.name for f in (made / "out").iterdir()}


def test_a_graph_of_negative_losses_is_drawn(made):
    for name, w in (("c", (0.2, 3.0)), ("d", (2.0, -3.0))):
        save_file({"w": torch.tensor(w)}, f"Product-{name}.safetensors")
    files = ["Inverse-a.safetensors", "Product-c.safetensors", "Product-d.safetensors"]
    what = ["--model", "nets.py:Product", "--data", "nets.py:below", "--method", "Linear", "--num-points", "3"]
    assert run_app(["graph", *files, *what, "--out", "out"]) == 0
    assert im.load_graph(made / "out").bottleneck < 0
    assert (made / "out/report.html").is_file()


def test_no_error_is_told_where_none_is_defined(made, capsys):
    run("regression", "connect", "--method", "Linear", "--num-points", "5", "--out", "out", data="numbers")
    text = page(made / "out")
    assert "training loss" in text
    assert "training error" not in text
    capsys.readouterr()
    run("regression", "check", "--out", "checked", data="numbers")
    assert "not finite" not in capsys.readouterr().out
