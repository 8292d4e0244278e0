"""Networks that stay in their files, and what becomes of these while they are measured: one clear error, or nothing."""

import os

import pytest
import torch

import isthmus as im
from isthmus.cli import check as module
from isthmus.cli import common, run_app
from tests.problems import perceptron, random_params


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGE", 0)
    params = random_params(perceptron([64, 6, 10]), 1, torch.float32)
    for name in "ab":
        im.save_params(params, tmp_path / f"{name}.safetensors")
    im.save_params({k: v + 1 for k, v in params.items()}, tmp_path / "other.safetensors")
    return tmp_path


def written_over(folder):
    data = (folder / "other.safetensors").read_bytes()
    with open(folder / "b.safetensors", "r+b") as file:
        file.write(data)
    os.utime(folder / "b.safetensors", ns=(1, 1))  # clocks of file systems can be coarse


def cut(folder):
    os.truncate(folder / "b.safetensors", 300)


def removed(folder):
    (folder / "b.safetensors").unlink()


def replaced(folder):
    (folder / "other.safetensors").replace(folder / "b.safetensors")


def checked(folder):
    files = [str(folder / f"{name}.safetensors") for name in "ab"]
    spec = ["--model", "mlp:64-6-10", "--examples", "60", "-q", "--out", str(folder / "out")]
    return run_app(["check", *files, *spec])


@pytest.mark.parametrize(
    ("how", "says"), [(written_over, "was changed"), (cut, "not a whole"), (removed, None), (replaced, None)]
)
def test_while_it_is_measured(pair, monkeypatch, capsys, how, says):
    inner = module.checked

    def late(*args, **kwargs):
        how(pair)
        return inner(*args, **kwargs)

    monkeypatch.setattr(module, "checked", late)
    assert checked(pair) == (0 if says is None else 2)
    shown = " ".join(capsys.readouterr().err.split())
    assert ("b.safetensors" in shown and says in shown) if says else not shown


@pytest.mark.parametrize(("how", "says"), [(cut, "not a whole"), (removed, "there is no such file")])
def test_before_it_is_open(pair, monkeypatch, capsys, how, says):
    inner, asked = common.on_demand, []

    def late(*args):
        asked.append(args)
        if len(asked) == 2:
            how(pair)
        return inner(*args)

    monkeypatch.setattr(common, "on_demand", late)
    assert checked(pair) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "b.safetensors" in shown
    assert says in shown
