"""Every command with weights, data and options that are not finite: one line or an outcome, no NaN as a number."""

import json
import re

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.cli import run_app

ASKED = ["--model", "mlp:3-4-2", "--data", "d.npz"]
BAD = {"nan": float("nan"), "inf": float("inf"), "minus": float("-inf"), "1e30": 1e30}
SMALL = {
    "connect": ["--method", "Linear", "--num-points", "3", "--out", "out"],
    "graph": ["--method", "Linear", "--num-points", "3", "--out", "out"],
    "check": ["--out", "out"],
    "merge": ["--anyway", "--out", "out.safetensors"],
    "compare": ["--budget", "3", "--out", "out"],
    "align": ["--num-points", "3", "--out", "out.safetensors"],
    "theory": ["--masks", "2", "--draws", "1", "--steps", "2"],
    "plane": ["--points", "2", "--out", "out"],
    "stability": ["--masks", "2", "--out", "out"],
    "profile": ["--num-points", "3", "--out", "out", "--loss", "cross_entropy", "--examples", "8"],
    "certify": ["--out", "out", "--loss", "cross_entropy", "--examples", "8"],
    "ensemble": ["--points", "3", "--out", "out", "--loss", "cross_entropy", "--examples", "8"],
}


def weights(seed: int, **changes: float) -> dict[str, torch.Tensor]:
    r = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)}
    made = {k: torch.randn(shape, generator=r) for k, shape in shapes.items()}
    for name, value in changes.items():
        made[name][0] = value
    return made


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Data, two networks, and one of each kind that is not finite: all its losses are NaN or infinite in float32."""
    monkeypatch.chdir(tmp_path)
    r = np.random.default_rng(0)
    x, y = r.normal(size=(12, 3)).astype("f"), r.integers(0, 2, 12)
    np.savez("d.npz", x_train=x[:8], y_train=y[:8], x_test=x[8:], y_test=y[8:])
    torch.save(weights(0), "a.pt")
    torch.save(weights(1), "b.pt")
    torch.save(weights(3), "c.pt")
    for name, value in BAD.items():
        torch.save(weights(2, **{"0.bias": value, "2.weight": value}), f"{name}.pt")
    return tmp_path


def run(capsys, command: str, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run_app([command, *arguments, *ASKED, *SMALL[command], "-q"])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "command", ["connect", "theory", "stability", "align", "graph", "plane", "check", "merge", "compare"]
)
def test_networks(place, capsys, command, bad):
    ends = [f"{bad}.pt"] if command == "stability" else ["a.pt", f"{bad}.pt"]
    ends += ["b.pt"] if command in ("graph", "plane") else []
    code, out, err = run(capsys, command, *ends)
    if bad == "1e30" and command in ("align", "plane"):  # which measure what there is
        assert code == 0
        assert not re.search(r"\b(nan|inf)\b", out)
        return
    if bad == "1e30" and command in ("check", "merge"):
        assert code == 1
        assert "the loss of" in out
        assert not re.search(r"\b(nan|inf)\b", out)
        return
    assert (code, len(err.splitlines())) == (2, 1), err
    assert "finite" in err
    assert not (place / "out" / "result.json").exists()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("command", ["profile", "certify", "ensemble"])
@pytest.mark.parametrize("as_json", [False, True])
def test_paths(place, capsys, command, bad, as_json):
    im.save(im.Path.through([im.load_params(f) for f in ("a.pt", f"{bad}.pt", "b.pt")]), "p.safetensors")
    code, out, err = run(capsys, command, "p.safetensors", *["--json"] * as_json)
    if (command, bad) == ("certify", "1e30"):  # a proof is about real arithmetic, where this loss is a number
        assert code == 0
        assert not re.search(r"\b(nan|inf|NaN|Infinity)\b", out)
        return
    if command != "profile":
        assert code == 2
        assert "finite" in err or "numbers" in err
        return
    assert code == 1
    assert "the training loss is not finite at" in err
    assert "the test loss" in err
    assert not re.search(r"\b(nan|inf|NaN|Infinity)\b", out)
    if as_json:
        found = json.loads(out)
        assert found["loss max"] is found["error max"] is found["test error max"] is None
    held = json.loads((place / "out/profile.json").read_text())
    assert held["error"][0] is not None
    assert held["error"][2] is None


LOSS = """
import torch
x, y = torch.eye(4)[:, :3], torch.tensor([0, 1, 1, 0])
def loss(outputs, labels):
    each = torch.nn.functional.cross_entropy(outputs, labels, reduction="none")
    return torch.cat([torch.full_like(each[:1], float("{value}")), each[1:]])
def make():
    return {{"data": (x, y), "loss": loss}}
"""


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("command", [name for name in SMALL if name not in ("align", "ensemble")])
def test_losses(place, capsys, command, value):
    (place / "loss.py").write_text(LOSS.format(value=value))
    if command in ("profile", "certify"):
        im.save(im.Path.through([im.load_params(f) for f in ("a.pt", "b.pt")]), "p.safetensors")
        ends = ["p.safetensors"]
    else:
        ends = {"stability": ["a.pt"], "plane": ["a.pt", "b.pt", "c.pt"]}.get(command, ["a.pt", "b.pt"])
    words = SMALL[command][: SMALL[command].index("--loss")] if "--loss" in SMALL[command] else SMALL[command]
    code = run_app([command, *ends, "--model", "mlp:3-4-2", "--data", "loss.py:make", *words, "-q"])
    out, err = capsys.readouterr()
    assert code == (1 if command in ("profile", "plane", "check", "merge") else 2), err
    said = " ".join(out.split()) if command in ("check", "merge") else err
    assert "the loss of a is not finite" in said or "finite" in err or "the loss of network 0 is not finite" in said
    assert len(err.splitlines()) == (command != "check")
    assert not re.search(r"\b(nan|inf|NaN|Infinity|proved)\b", out)


def test_a_loss_that_is_not_finite_between_finite_ends_is_no_success(place, capsys):
    """Each end has one large factor, and the middle both."""
    torch.save(weights(0, **{"0.bias": 1e25, "0.weight": 0.0}) | {"2.weight": torch.zeros(2, 4)}, "a.pt")
    torch.save(weights(1, **{"0.bias": 0.0, "0.weight": 0.0, "2.weight": 1e20}), "b.pt")
    (place / "out").mkdir()
    (place / "out/certificate.json").write_text("{}")  # of an earlier run
    code, out, err = run(capsys, "connect", "a.pt", "b.pt")
    assert code == 1
    assert "the training loss is not finite at 1 of 3 points" in err
    assert "not proved" in out
    assert not re.search(r"\b(nan|inf)\b", out)
    held = json.loads((place / "out/result.json").read_text())
    assert held["outcome"]["name"] == "NOT_FINITE"
    assert not held["outcome"]["ok"]
    assert held["max_loss"] is None
    assert "no, rises to a loss that is not finite (at t = 0.5)" in held["verdict"]["text"]
    assert im.load_connection("out/path.safetensors").outcome is im.Outcome.NOT_FINITE
    assert not (place / "out/certificate.json").exists()
    assert run_app(["report", "out"]) == 0


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "line",
    [
        ["train", "--out", "c.safetensors", "--until"],
        ["train", "--out", "c.safetensors", "--weight-decay"],
        ["train", "--out", "c.safetensors", "--lr"],
        ["connect", "a.pt", "b.pt", "--out", "out", "--gap"],
        ["connect", "a.pt", "b.pt", "--out", "out", "--level"],
        ["certify", "p.safetensors", "--out", "out", "--gap"],
        ["certify", "p.safetensors", "--out", "out", "--budget"],
        ["profile", "p.safetensors", "--out", "out", "--tol"],
        ["plane", "a.pt", "b.pt", "a.pt", "--out", "out", "--margin"],
        ["stability", "a.pt", "--out", "out", "--keep"],
        ["graph", "a.pt", "b.pt", "--out", "out", "--tol"],
    ],
    ids=lambda line: f"{line[0]}{line[-1]}",
)
def test_options(place, capsys, line, value):
    capsys.readouterr()
    assert run_app([*line[:-1], f"{line[-1]}={value}", *ASKED, "-q"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert line[-1].strip("-").split("-")[0] in err
    assert not (place / "out").exists()
