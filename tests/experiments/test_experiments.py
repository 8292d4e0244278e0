"""Declared experiments: cells of every scale, rows, paper values, tables, figures; and the smoke run of each."""

import csv
import json
import os
import signal
import sys
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.certify.certify import certify
from isthmus.cli import run_app
from isthmus.cli.experiments import engine_of
from isthmus.experiments import SCALES, Experiment, Network, Pair, PaperValue, Problem, Weights
from isthmus.experiments.page import as_markdown, write_tables
from isthmus.experiments.plan import plan, shortened
from isthmus.papers import EXPERIMENTS, by_name
from isthmus.papers.nguyen2021.jobs import ExperimentA
from isthmus.params import equal
from isthmus.sweep import Local, Ray, Store, canonical, identity, key_of, run_cells, with_needs
from isthmus.training.fit import Recipe
from tests.experiments.test_sweep_files import SWEEP
from tests.papers.partly import check_without_each_number
from tests.sweep.cells import ended, forked, temporaries

PROBLEM = Problem("mlp:6-5x1-2", "gaussians:N=60,d=6,seed=1")
RECIPE = Recipe(lr=0.02, steps=40, batch=20)


def network(seed: int, problem: Problem = PROBLEM) -> Network:
    return Network(problem, seed, RECIPE, 1e-3)


def pair(**changes: Any) -> Pair:
    return replace(Pair("toy", network(0), network(1), im.Linear(), num_points=5, gap=0.1), **changes)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
@pytest.mark.parametrize("scale", SCALES)
def test_cells_are_distinct_and_have_labels_and_keys(experiment, scale):
    cells = with_needs(experiment.cells(scale))
    assert len({(c.group, c.label) for c in cells}) == len(cells)
    assert experiment.chosen(scale) == list(experiment.cells(scale))
    with pytest.raises(im.InputError, match="parts of one label"):
        experiment.chosen(scale, ["no such text"])
    with pytest.raises(im.InputError, match="scale"):
        experiment.chosen("huge")
    try:
        keys = {key_of(identity(c)) for c in cells}
    except im.FileError as e:
        pytest.skip(f"keys need the data: {e}")
    assert len(keys) == len(cells)


def test_a_pair_is_what_the_library_says_of_it(tmp_path):
    cell, store = pair(), Store(tmp_path)
    assert run_cells([cell], store, Local()).computed == 3
    found = store.load(cell)
    ends = [im.load_params(store.load(n).folder / "params.safetensors") for n in cell.needs()]
    objective, test = PROBLEM.objectives()
    assert test is not None
    path = im.connect(objective, ends[0], ends[1], im.Linear()).path
    measured = im.profile(objective, path, 5, test=test)
    proved = certify(objective, path, 0.1)
    assert found.result["barriers"]["loss"]["excess"] == measured.excess
    assert found.result["barriers"]["test_error"]["max"] == measured.test.barriers["error"].max  # type: ignore[union-attr]
    assert found.result["bound"] == proved.bound
    assert found.result["normalized_length"] == 1.0
    assert objective.loss(ends[0]) == store.load(cell.needs()[0]).result["loss"]
    assert im.load_connection(found.folder / "run/path.safetensors").path.length == path.length
    assert "seconds" not in json.dumps(found.result)
    assert found.record["seconds"] > 0
    assert run_app(["report", str(found.folder / "run")]) == 0


def test_networks_are_shared_and_the_key_follows_what_matters(tmp_path):
    cells = [pair(), pair(method=im.Dropout(masks=1)), pair(experiment="other")]
    assert len(with_needs(cells)) == 5
    keys = {key_of(identity(c)) for c in (*cells, pair(seed=1), pair(num_points=7), pair(a=network(2)))}
    assert len(keys) == 6
    data = tmp_path / "d.npz"
    problem = Problem("mlp:3-4-2", str(data))
    before = set()
    for k in range(2):
        np.savez(data, x=np.eye(3, dtype=np.float32) + k, y=np.array([0, 1, 0]))
        os.utime(data, (k, k))
        before.add(key_of(identity(Network(problem))))
    assert len(before) == 2


def test_checkpoints_as_ends(tmp_path):
    files = []
    for seed in (0, 1):
        params = PROBLEM.module(PROBLEM.dataset(), seed).float().state_dict()
        files.append(str(tmp_path / f"{seed}.safetensors"))
        im.save_params(params, files[-1])
    a, b = (Weights(PROBLEM, f) for f in files)
    cell = Pair("toy", a, b, im.Linear(), num_points=3, budget=0)
    key = key_of(identity(cell))
    assert run_cells([cell], Store(tmp_path / "runs"), Local()).computed == 1
    im.save_params({k: v + 1 for k, v in im.load_params(files[0]).items()}, files[0])
    assert key_of(identity(cell)) != key
    with pytest.raises(im.InputError, match="a network of"):
        Pair("toy", cell.a, network(1, replace(PROBLEM, dtype="float32")), im.Linear())


def test_checkpoints_of_other_programs_as_ends(tmp_path):
    params = PROBLEM.module(PROBLEM.dataset(), 0).float().state_dict()
    wrapped = {f"model._orig_mod.{k}": v for k, v in params.items()}
    torch.save({"state_dict": params, "ema": wrapped}, tmp_path / "w.pt")
    plain = Weights(PROBLEM, str(tmp_path / "w.pt"))
    with pytest.warns(im.IsthmusWarning, match=r"left unused: 'ema.model' \(key='ema.model' takes it\)"):
        assert equal(plain.read(), dict(params))
    assert equal(replace(plain, key="ema.model").read(), dict(params))
    assert canonical(plain) == {"is": "Weights", "problem": canonical(PROBLEM), "path": plain.path}
    assert canonical(replace(plain, key="ema"))["key"] == "ema"


def test_the_papers_values_stand_beside_ours(tmp_path):
    rows = [{"method": "Linear", "excess": 1.5}, {"method": "Dropout", "excess": 0.1}]
    values = (
        PaperValue({"method": "Linear"}, "excess", 1.4, "Table 2, page 7"),
        PaperValue({"method": "Linear"}, "error", 0.2, "Figure 1, page 5"),
    )
    made = Experiment(
        "toy", "A toy", "Doe 2031", lambda scale: [pair()], [lambda d: [dict(r) for r in rows]], {}, values
    )
    table = made.table(Store(tmp_path), made.cells("smoke"))
    assert table[0]["paper excess"] == 1.4
    assert table[0]["source"] == "Table 2, page 7; Figure 1, page 5"
    assert table[1] == rows[1]
    files = write_tables(table, tmp_path / "out", "smoke")
    assert [f.suffix for f in files] == [".csv", ".md", ".json"]
    read = list(csv.DictReader(files[0].read_text().splitlines()))
    assert [r["excess"] for r in read] == ["1.5", "0.1"]
    assert read[1]["paper excess"] == ""
    assert files[1].read_text() == as_markdown(table)
    assert json.loads(files[2].read_text()) == table


def test_markdown_cells_cannot_break_the_table():
    text = as_markdown(
        [{"a": "x|y\nz", "b": None, "c": float("nan"), "d": True}, {"a": "", "b": 1, "c": 2, "d": False}]
    )
    assert text.splitlines()[2] == "| x\\|y z |  |  | yes |"


# -- the command line


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """compare-digits at smoke scale, run once by the command."""
    folder = tmp_path_factory.mktemp("smoke")
    assert run_app(["experiment", "run", "compare-digits", "--runs", str(folder), "--quiet"]) == 0
    return folder


def test_numbers_that_are_not_finite_leave_the_page(smoke):
    check_without_each_number(by_name("compare-digits"), Store(smoke))


def test_compare_digits_runs_at_smoke_scale(smoke, capsys):
    rows = json.loads((smoke / "compare-digits/tables/smoke.json").read_text())
    assert {r["method"] for r in rows} == {"Linear", "Dropout", "Subnetwork"}
    assert {(r["layers"], r["width"]) for r in rows} == {(1, 8), (1, 16), (2, 8), (2, 16)}
    assert all(r["proved"] == "1 of 1" and r["largest bound"] >= r["max training loss"] * (1 - 1e-9) for r in rows)
    svg = (smoke / "compare-digits/figures/smoke-excess.svg").read_text()
    assert "<svg" in svg
    assert (smoke / "compare-digits/figures/smoke-excess.png").read_bytes().startswith(b"\x89PNG")
    assert run_app(["experiment", "run", "compare-digits", "--runs", str(smoke), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == rows
    assert "20 cells: 20 were there, 0 computed" in printed.err
    assert not temporaries(smoke)


def test_status_table_figures_and_list(smoke, tmp_path, capsys):
    at = ["--runs", str(smoke)]
    assert run_app(["experiment", "status", "compare-digits", "--scale", "smoke", *at, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "compare-digits", "scale": "smoke", "cells": 20, "done": 20, "begun": 0, "missing": 0}
    ]
    assert run_app(["experiment", "table", "compare-digits", *at, "--markdown", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "smoke.md").read_text()
    assert run_app(["experiment", "figures", "compare-digits", *at, "--out", str(tmp_path)]) == 0
    drawn = (tmp_path / "smoke-excess.svg").read_bytes()
    assert drawn == (smoke / "compare-digits/figures/smoke-excess.svg").read_bytes()
    assert run_app(["experiment", "list", "--json"]) == 0
    capsys.readouterr()
    assert run_app(["experiment", "table", "compare-digits", "--runs", str(tmp_path / "none")]) == 1


def test_status_of_all_says_which_data_are_missing(tmp_path, monkeypatch, capsys):
    def none(name: str) -> None:
        raise im.FileError(name, "no copy of this data set on this machine")

    monkeypatch.setattr("isthmus.experiments.jobs._data_digest", lambda name, stamp: none(name))
    assert run_app(["experiment", "status", "--scale", "smoke", "--runs", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in rows] == [e.name for e in EXPERIMENTS]
    assert all("no copy" in r["note"] for r in rows)
    assert run_app(["experiment", "status", "compare-digits", "--runs", str(tmp_path)]) == 2


def test_only_computes_what_is_asked_for(tmp_path, capsys):
    only = ["--only", "linear", "--only", "64-8x1"]
    assert run_app(["experiment", "run", "compare-digits", *only, "--runs", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)) == 1
    assert "3 cells: 0 were there, 3 computed" in printed.err


def test_options_that_do_not_fit_are_refused(tmp_path, capsys):
    file = tmp_path / "my.yaml"
    file.write_text(SWEEP)
    none_here = [] if torch.cuda.is_available() else [["--gpus", "1"], ["--device", "cuda"]]
    wrong = [["--gpus", "0.5"], ["--device", "cpu", "--gpus", "1"], ["--device", "toaster"], ["--cpus", "2"]]
    for options in (*none_here, *wrong, ["--workers", "2", "--address", "auto"], ["--shard", "3/2"]):
        assert run_app(["sweep", str(file), "--runs", str(tmp_path / "runs"), *options]) == 2
        assert options[0].removeprefix("--") in capsys.readouterr().err
    assert run_app(["sweep", str(file), "--workers", "2", "--resource", "big"]) == 2
    assert run_app(["experiment", "run", "no-such"]) == 2
    assert "compare-digits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "engine"),
    [
        ("auto", None, None, Local()),
        ("cuda", None, 2, Ray(2, gpus=1)),
        ("auto", 8, 2, Ray(8, gpus=0.25)),
        ("auto", 3, None, Ray(3, gpus=1)),
        ("auto", 6, None, Ray(6, gpus=0.6666)),
        ("cpu", 6, None, Ray(6, gpus=0)),
    ],
)
def test_workers_share_the_gpus(monkeypatch, device, workers, gpus, engine):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr("isthmus.cli.experiments.device_of", lambda name: None)
    assert engine_of(workers, None, 1, gpus, None, 3, device) == engine


def test_an_interrupted_sweep_says_how_to_go_on(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(SWEEP.replace("steps: 40", "steps: 4000").replace("lr: 2e-2", "lr: 1e-5"))
    said = tmp_path / "stderr"

    def work():
        with said.open("w", buffering=1) as out:
            sys.stderr = out
            os._exit(run_app(["sweep", str(file), "--runs", str(tmp_path / "runs"), "--quiet"]))

    child = forked(work)
    end = time.monotonic() + 60
    while time.monotonic() < end and not list((tmp_path / "runs").glob("*/*/result.json")):
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    assert ended(child) == 130
    assert "of 9 cells are done and stay; to go on, run this again:" in said.read_text()
    assert not temporaries(tmp_path / "runs")
    assert not [f for f in (tmp_path / "runs").rglob("record.json") if not (f.parent / "result.json").exists()]


def test_the_register_knows_its_names():
    assert by_name("compare-digits") in EXPERIMENTS
    with pytest.raises(im.InputError, match="compare-digits"):
        by_name("nothing")
    assert torch.get_num_threads() == 1


def test_a_plan_counts_what_is_missing_and_leaves_nothing(tmp_path):
    recipe = Recipe(lr=1e-2, steps=40, batch=50, check=20)
    problem = Problem("mlp:64-8-10", "digits", 200)
    networks = [Network(problem, seed, recipe, 0.0) for seed in range(4)]
    cells = [Pair("plan", *pair, im.Linear(), num_points=3, budget=0) for pair in pairwise(networks)]
    store = Store(tmp_path)
    assert run_cells(cells[:1], store, Local(), device="cpu").ok
    done = set(tmp_path.glob("*/*/result.json"))
    trained, paired, total = plan(cells, store, "cpu")
    assert (trained["missing"], trained["passes"], paired["missing"], total["missing"]) == (2, 10.0, 2, 4)
    assert total["hours"] == pytest.approx(trained["hours"] + paired["hours"])
    assert trained["hours"] == pytest.approx(2 * trained["seconds each"] / 3600)
    assert trained["hours"] > 0
    assert set(tmp_path.glob("*/*/result.json")) == done


def test_a_short_run_is_the_same_cell_with_fewer_steps():
    recipe = Recipe("sgd", steps=4000, check=500, schedule="steps", every=1000)
    cell = ExperimentA(Network(Problem("mlp:64-8-10"), 0, recipe), recipe=recipe, hub_steps=900, looks_from=100)
    short = shortened(cell, 5)
    assert (short.recipe.steps, short.recipe.every, short.network.recipe.check) == (5, 5, 2)
    assert (short.hub_steps, short.looks_from, short.draws, short.recipe.batch) == (5, 5, 20, 256)
    assert shortened(cell, 5, 2).draws == 2


def test_a_budget_stops_a_run_that_goes_on_where_it_was(tmp_path, capsys):
    words = ["experiment", "run", "compare-digits", "--only", "Linear mlp:64-8x1"]
    words += ["--runs", str(tmp_path), "--device", "cpu", "--quiet"]
    assert run_app([*words, "--budget", "1e-12"]) == 1
    assert "the budget is used: " in capsys.readouterr().err
    assert run_app([*words, "--budget", "1"]) == 0
    assert run_app([*words, "--budget", "0"]) == 2
