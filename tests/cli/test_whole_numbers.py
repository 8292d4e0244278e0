"""Whole numbers in an .npz file stay whole on the command line: networks that look their inputs up can be used."""

import json

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.cli import run_app

NETWORK = """
from torch import nn
def net():
    return nn.Sequential(nn.Embedding(12, 6), nn.Flatten(), nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 3))
"""
ASKED = ["--model", "net.py:net", "--data", "tok.npz"]


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    """Tokens, labels, and two networks on them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    r = np.random.default_rng(0)
    x, y = r.integers(0, 12, (30, 5)), r.integers(0, 3, 30)
    np.savez("tok.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        scope: dict = {}
        exec(NETWORK, scope)
        torch.save(scope["net"]().state_dict(), f"{name}.pt")
    return x, y


def ok(capsys, *arguments):
    capsys.readouterr()
    assert run_app(["--threads", "1", *arguments, "-q"]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys, *arguments):
    capsys.readouterr()
    assert run_app([*arguments, "-q"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    return err


def test_every_command_takes_them(numbers, capsys):
    x, y = numbers
    ok(capsys, "connect", "a.pt", "b.pt", *ASKED, "--method", "Linear", "--num-points", "3", "--out", "run")
    scope: dict = {}
    exec(NETWORK, scope)
    module, params = scope["net"](), im.load_params("a.pt")
    module.load_state_dict(params)
    with torch.no_grad():
        true = float(torch.nn.functional.cross_entropy(module(torch.from_numpy(x[:20])), torch.from_numpy(y[:20])))
    assert json.loads(open("run/profile.json").read())["loss"][0] == pytest.approx(true, rel=1e-5)
    ok(capsys, "profile", "run/path.safetensors", *ASKED, "--num-points", "3", "--out", "again")
    assert json.loads(open("again/profile.json").read())["loss"][0] == pytest.approx(true, rel=1e-5)
    ok(capsys, "certify", "run/path.safetensors", *ASKED, "--out", "again")
    assert json.loads(open("again/certificate.json").read())["proved"]
    ok(capsys, "theory", "a.pt", "b.pt", *ASKED, "--theorem", "Kuditipudi", "--masks", "1", "--draws", "1")
    err = refused(capsys, "stability", "a.pt", *ASKED, "--masks", "2", "--out", "stable")
    assert "it belongs to no layer of the chain" in err  # of the method, not of the data
    ok(capsys, "train", *ASKED, "--epochs", "2", "--out", "c.safetensors")


def test_networks_that_calculate_take_them_as_floating_point(numbers, capsys):
    ok(capsys, "train", "--model", "mlp:5-4-3", "--data", "tok.npz", "--epochs", "2", "--out", "c.safetensors")
    line = ["connect", "c.safetensors", "c.safetensors", "--method", "Linear", "--num-points", "2", "--out", "run"]
    ok(capsys, *line, "--data", "tok.npz")
    (open("linear.py", "w")).write("from torch import nn\ndef net(): return nn.Sequential(nn.Linear(5, 3))\n")
    err = refused(capsys, "train", "--model", "linear.py:net", "--data", "tok.npz", "--out", "d.safetensors")
    assert "examples that Sequential accepts" in err
    torch.save(torch.nn.Sequential(torch.nn.Linear(5, 3)).state_dict(), "d.pt")
    err = refused(capsys, "connect", "d.pt", "d.pt", "--model", "linear.py:net", "--data", "tok.npz", "--out", "x")
    assert "store x in floating point" in err


def test_numbers_outside_the_vocabulary_are_one_line(numbers, capsys):
    x, y = numbers
    np.savez("tok.npz", x_train=x + 1, y_train=y)
    assert "index out of range" in refused(
        capsys, "connect", "a.pt", "b.pt", *ASKED, "--out", "x", "--method", "Linear"
    )


@pytest.mark.parametrize("kind", [np.int32, np.uint8, bool])
def test_labels_of_every_kind(numbers, capsys, kind):
    x, y = numbers
    np.savez("tok.npz", x_train=x, y_train=y.astype(kind))
    ok(capsys, "connect", "a.pt", "b.pt", *ASKED, "--method", "Linear", "--num-points", "2", "--out", "run")


def test_a_column_of_labels_is_refused_in_one_line(numbers, capsys):
    x, y = numbers
    np.savez("tok.npz", x_train=x, y_train=y[:, None])
    err = refused(capsys, "connect", "a.pt", "b.pt", *ASKED, "--out", "x", "--method", "Linear")
    assert "expected integer labels of shape" in err
