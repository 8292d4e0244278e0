"""Users' own sweeps: what a file may say, how its networks are paired, and the rows of its table."""

from __future__ import annotations

import json
from itertools import combinations

import pytest

import isthmus as im
from isthmus.cli import run_app
from isthmus.experiments import read_sweep
from tests.sweep.cells import results

SWEEP = """\
name: mine
networks:
  - {model: "mlp:6-5x1-2", data: "gaussians:N=60,d=6,seed=1", seeds: [0, 1, 2], steps: 40, lr: 2e-2, batch: 20}
methods: [Linear, {name: Dropout, masks: 2}]
num_points: 5
gap: 0.1
"""


def test_a_sweep_gives_one_row_per_pair_and_method(tmp_path, capsys):
    file = tmp_path / "my.yaml"
    file.write_text(SWEEP)
    at = ["--runs", str(tmp_path / "runs")]
    assert run_app(["sweep", str(file), *at, "--quiet", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["pair"], r["method"]) for r in rows[:3]] == [
        ("seed 0 - seed 1", "Linear"), ("seed 0 - seed 1", "Dropout"), ("seed 0 - seed 2", "Linear"),
    ]  # fmt: skip
    assert len(rows) == 6
    assert "masks=2" in rows[1]["options"]
    for row in rows:
        for what in ("loss", "error", "test loss", "test error"):
            assert all(row[f"{what} {b}"] is not None for b in ("max", "excess", "linear", "mean"))
        assert row["bound"] >= row["loss max"] * (1 - 1e-9)
        assert row["length"] > 0
        assert row["seconds"] > 0
    assert json.loads((tmp_path / "runs/mine/tables/my.json").read_text()) == rows
    before = results(tmp_path / "runs/mine")
    more = ["--set", "networks.0.seeds=[0, 1, 2, 3]", "--set", "methods=[Linear]"]
    assert run_app(["sweep", str(file), *at, *more]) == 0
    assert "10 cells: 6 were there, 4 computed" in capsys.readouterr().err
    kept = {k: v for k, v in results(tmp_path / "runs/mine").items() if "tables" not in k}
    assert {k: v for k, v in before.items() if "tables" not in k}.items() <= kept.items()
    assert run_app(["sweep", str(file), *at, "--status"]) == 0
    assert "6 of 6 rows" in capsys.readouterr().out
    once = ["--set", "networks.0.seeds=[0, 1]", "--set", "methods=[{name: Bezier, epochs: 1}]"]
    assert run_app(["sweep", str(file), *at, *once, "--quiet", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert "target=None" in row["options"]
    assert "nan" not in row["options"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["networks.0.stepz=5"], ["networks.0", "stepz"]),
        (["networks.0.steps=many"], ["steps", "'many'"]),
        (["networks.0.steps=0"], ["steps", ">= 1"]),
        (["networks.0.seeds=[1]"], ["at least two networks"]),
        (["networks=3"], ["networks", "a list"]),
        (["networks.7.steps=1"], ["--set", "networks.7.steps=1"]),
        (["pairs=some"], ["pairs", "'some'"]),
        (["methods=[Magic]"], ["methods", "'Magic'"]),
        (["methods=[{name: Dropout, mask: 2}]"], ["Dropout", "mask"]),
        (["methods=[{name: Dropout, masks: -1}]"], ["masks"]),
        (["extra=1"], ["extra"]),
        (["networks.0.seeds=[0, 0, 1]"], ["seed 0 twice"]),
        (["networks.0.seeds=[0, 1180591620717411303424]"], ["seed", "64 bits"]),
        (["networks.0.seeds=[true, 2]"], ["seeds", "True"]),
        (["networks.0.examples=true"], ["examples", "True"]),
        (["networks.0.examples=0"], ["examples", ">= 1"]),
        (["networks=[]"], ["networks", "at least one"]),
        (["methods=[]"], ["methods", "at least one"]),
        (["methods=[Linear, linear]"], ["methods", "Linear() twice"]),
        (["methods=[{name: Linear, xi: [1]}]"], ["xi"]),
        (["methods.²=Linear"], ["--set", "below 2"]),
        (["networks.-1.steps=9"], ["--set", "networks.-1.steps=9"]),
        (["seeds=[]"], ["seeds", "at least one"]),
        (["methods={name: Linear, name: Dropout}"], ["'name' twice"]),
        (["oops"], ["KEY=VALUE"]),
        (["name=../up"], ["plain folder name"]),
        (["networks.0.data=imagenet"], ["'imagenet'"]),
    ],
)
def test_mistakes_in_a_sweep_are_named(tmp_path, capsys, changes, words):
    file = tmp_path / "my.yaml"
    file.write_text(SWEEP)
    options = [part for c in changes for part in ("--set", c)]
    assert run_app(["sweep", str(file), *options, "--runs", str(tmp_path / "runs"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert all(w in said for w in words), said


@pytest.mark.parametrize(
    "text",
    ["", SWEEP + "methods: [Linear]\n", "- 1", "name: !!python/object/apply:os.system [ls]", "{", "a: [", "\x00"],
)
def test_files_that_are_no_sweep_are_refused(tmp_path, capsys, text):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    assert run_app(["sweep", str(file), "--runs", str(tmp_path / "runs")]) == 2
    assert str(file) in capsys.readouterr().err
    assert run_app(["sweep", str(tmp_path / "none.yaml")]) == 2


@pytest.mark.parametrize(("how", "pairs"), [("all", 6), ("chain", 3), ("neighbours", 2)])
def test_which_networks_are_paired(tmp_path, how, pairs):
    (tmp_path / "my.yaml").write_text(SWEEP.replace("[0, 1, 2]", "[0, 1, 2, 3]") + f"pairs: {how}\n")
    found = {cell.ends for cell in read_sweep(tmp_path / "my.yaml").cells()}
    assert len(found) == pairs
    assert {"seed 0 - seed 1", "seed 2 - seed 3"} <= found
    assert ("seed 1 - seed 2" in found) == (how != "neighbours")


def test_a_gap_that_no_proof_can_have_is_refused_before_the_work(tmp_path):
    (tmp_path / "my.yaml").write_text(SWEEP.replace("gap: 0.1", "gap: 0"))
    with pytest.raises(im.InputError, match="gap: expected a number > 0"):
        read_sweep(tmp_path / "my.yaml")


def test_neighbours_are_pairs_of_an_even_number(tmp_path):
    (tmp_path / "my.yaml").write_text(SWEEP + "pairs: neighbours\n")
    with pytest.raises(im.InputError, match="an even number, to pair neighbours, got 3"):
        read_sweep(tmp_path / "my.yaml").cells()


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path):
    for folder in "xyz":
        (tmp_path / folder).mkdir()
    files = [str(tmp_path / folder / "m.pt") for folder in "xyz"]
    network = {"model": "mlp:6-5x1-2", "checkpoints": files}
    (tmp_path / "my.yaml").write_text(json.dumps({"name": "m", "networks": [network], "methods": ["Linear"]}))
    assert {cell.ends for cell in read_sweep(tmp_path / "my.yaml").cells()} == {
        f"{a} - {b}" for a, b in combinations(files, 2)
    }


def test_a_change_may_be_of_one_entry_of_a_list(tmp_path):
    (tmp_path / "my.yaml").write_text(SWEEP)
    found = read_sweep(tmp_path / "my.yaml", ["methods.0=DeepLinear", "networks.0.seeds.2=7"])
    assert found.methods[0] == "DeepLinear"
    assert {cell.ends for cell in found.cells()} == {"seed 0 - seed 1", "seed 0 - seed 7", "seed 1 - seed 7"}
    for change, words in (
        ("methods.2=Linear", "a number below 2 in 'methods.2=Linear'"),
        ("methods.first=Linear", "a number below 2"),
        ("name.first=Linear", "a key of the file"),
        ("networks.3.seeds=[0]", "a key of the file"),
    ):
        with pytest.raises(im.InputError, match=f"--set: expected {words}"):
            read_sweep(tmp_path / "my.yaml", [change])
