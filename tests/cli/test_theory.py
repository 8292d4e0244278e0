"""``isthmus theory A B``."""

import csv
import json

import pytest

import isthmus as im
from isthmus.cli import run_app

QUICK = ["--masks", "2", "--draws", "1", "--steps", "5", "--sample", "5", "--examples", "60", "--quiet"]


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theory")
    out = []
    for seed in ("0", "1"):
        out.append(str(folder / f"{seed}.safetensors"))
        command = ["train", "--model", "mlp:64-12x2-10", "--out", out[-1], "--seed", seed, "--epochs", "2", "--quiet"]
        assert run_app(command) == 0
    return out


def test_the_table_is_printed_and_written(ends, tmp_path, capsys):
    capsys.readouterr()
    chosen = ["--theorem", "2019, Theorem 1", "--theorem", "4.4"]
    assert run_app(["theory", *ends, *QUICK, *chosen[:2], "--details"]) == 0
    assert "dropout stability epsilon" in capsys.readouterr().out
    assert run_app(["theory", *ends, *QUICK, "--out", str(tmp_path), *chosen]) == 0
    printed = capsys.readouterr().out
    assert "Kuditipudi et al. 2019, Theorem 1" in printed
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("Kuditipudi et al. 2019, Theorem 1: applies, loss on a path <= ")
    assert "dropout stability epsilon" not in printed
    stored = json.loads((tmp_path / "theory.json").read_text())["rows"]
    assert {row["theorem"][-3:] for row in stored} == {"m 1", "4.4"}
    with open(tmp_path / "theory.csv", newline="") as f:
        assert [row["premise"] for row in csv.DictReader(f)] == [row["premise"] for row in stored]
    assert len((tmp_path / "theory.md").read_text().splitlines()) == len(stored) + 2


def test_json_is_what_the_library_gives(ends, capsys):
    capsys.readouterr()
    assert run_app(["theory", *ends, *QUICK, "--json", "--theorem", "Theorem 1"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    d = im.data.load("digits").subset(60, None).flat()
    objective = im.Objective(im.models.by_name("mlp:64-12x2-10", inputs=(64,), outputs=10), data=(d.x_train, d.y_train))
    a, b = (im.load_params(p) for p in ends)
    assert rows == im.theory(objective, a, b, theorems=["Theorem 1"], masks=2).to_dict()["rows"]


def test_misuse_is_one_line(ends, capsys):
    capsys.readouterr()
    assert run_app(["theory", *ends, *QUICK, "--theorem", "Theorem 9"]) == 2
    assert capsys.readouterr().err.startswith("error: theorems: expected part of a name")
