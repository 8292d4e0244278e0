"""``isthmus stability``: the table, the files and the figures, and misuse."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import isthmus as im
from isthmus.cli import run_app
from isthmus.data import load
from isthmus.models import by_name

MODEL = "mlp:64-12x2-10"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("stability") / "a.safetensors"
    assert run_app(["train", "--model", MODEL, "--out", str(file), "--epochs", "10", "--quiet"]) == 0
    return file


def run(checkpoint: Path, out: Path, *options: str) -> int:
    return run_app(["stability", str(checkpoint), "--out", str(out), "--quiet", *options])


def test_files_agree_with_the_function(checkpoint, tmp_path, capsys):
    capsys.readouterr()
    assert run(checkpoint, tmp_path, "--masks", "12", "--search", "gates", "--seed", "3", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "stability.json").read_text())
    data = load("digits").flat()
    module = by_name(MODEL)
    objective = im.Objective(module, data=(data.x_train.float(), data.y_train))
    assert data.x_test is not None
    assert data.y_test is not None
    test = objective.on((data.x_test.float(), data.y_test))
    params = im.load_params(checkpoint)
    s = im.dropout_stability(objective, params, masks=12, search="gates", seed=3, test=test)
    assert printed["dropout"]["epsilon"] == pytest.approx(s.epsilon, rel=1e-5)
    assert [v["kept"] for v in printed["dropout"]["layers"]] == [v.to_dict()["kept"] for v in s.layers]
    assert printed["dropout"]["search"] == "gates"
    assert printed["model"] == MODEL
    rows = list(csv.DictReader((tmp_path / "dropout.csv").open()))
    assert [row["entry layer"] for row in rows] == ["1", "2", "none"]
    assert float(rows[0]["loss"]) == pytest.approx(s.layers[0].loss, rel=1e-5)
    assert float(rows[1]["test error"]) == pytest.approx(s.layers[1].test_error)
    assert [row["kept"] for row in rows] == ["12", "6", ""]
    assert (tmp_path / "dropout.md").read_text().count("\n") == 5
    assert (tmp_path / "dropout.svg").read_text().startswith("<?xml")
    assert (tmp_path / "dropout.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "noise.csv").exists()


def test_noise_is_added_with_its_histograms(checkpoint, tmp_path, capsys):
    assert run(checkpoint, tmp_path, "--masks", "2", "--noise", "--noise-examples", "20") == 0
    table = capsys.readouterr().out
    assert "entry layer" in table
    assert "dropout stable, as far as found" in table
    assert "epsilon of Definition 4" in table
    noise = json.loads((tmp_path / "stability.json").read_text())["noise"]
    assert noise["examples"] == 20
    rows = list(csv.DictReader((tmp_path / "noise.csv").open()))
    assert len(rows) == 20
    low = min(float(row["layer_cushion 2"]) for row in rows)
    assert low == pytest.approx(noise["layer_cushion"]["2"][0])
    for name in ("layer-cushion", "interlayer-cushion", "activation-contraction", "interlayer-smoothness"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        assert str(tmp_path / f"{name}.svg") in table


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--search", "magic"], ["'gates'", "'magic'"]),
        (["--scale", "big"], ["'output'", "'big'"]),
        (["--keep", "0"], ["keep", "(0, 1]"]),
        (["--masks", "0"], ["masks"]),
        (["--model", "mlp:64-13x2-10"], ["expected", "got"]),
        (["--model", "mlp:64-13-10"], ["4.bias", "the module that was trained"]),
        (["--noise", "--p", "1"], ["(0, 1)"]),
    ],
)
def test_misuse_is_one_line_and_writes_nothing(checkpoint, tmp_path, capsys, options, words):
    capsys.readouterr()
    assert run(checkpoint, tmp_path / "x", "--masks", "1", *options) == 2
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in words)
    assert not (tmp_path / "x").exists()
