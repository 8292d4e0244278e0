"""What experiments and sweeps say while they run, at their end, and of what they are asked for."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.cli import experiments, run_app
from isthmus.cli.experiments import engine_of
from isthmus.experiments import Problem
from isthmus.experiments.page import rows_of
from isthmus.experiments.plan import plan
from isthmus.papers.kuditipudi2019 import claims
from isthmus.papers.shevchenko2020.tasks import Features, Task
from isthmus.sweep import Job, Local, Ray, Store, SweepReport
from isthmus.sweep.base import Failed
from tests.experiments.test_experiments import network, pair
from tests.experiments.test_sweep_files import SWEEP


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "my.yaml").write_text(SWEEP)
    return ["sweep", str(tmp_path / "my.yaml"), "--runs", str(tmp_path / "runs")]


def stop(*args, **options):
    raise KeyboardInterrupt


def test_an_interrupt_says_how_to_go_on_and_is_passed_on(sweep, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "run_cells", stop)
    assert run_app(sweep) == 130
    assert "stopped: 0 of 9 cells are done and stay; to go on, run this again:" in capsys.readouterr().err


def test_cells_that_failed_are_named_with_what_happened(sweep, monkeypatch, capsys):
    failed = {"one": Failed("the loss is not finite"), "two": Failed("no memory", "in line 3")}
    monkeypatch.setattr(experiments, "run_cells", lambda *_, **__: SweepReport(9, 5, 2, failed))
    assert run_app([*sweep, "--quiet"]) == 1
    said = "failed: one: the loss is not finite\nfailed: two: no memory\nin line 3\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_sweep_of_which_nothing_is_done_writes_no_table(sweep, tmp_path, capsys):
    assert run_app([*sweep, "--status"]) == 0
    assert "0 of 6 rows" in capsys.readouterr().out
    assert not list((tmp_path / "runs").rglob("*.csv"))
    assert run_app(["experiment", "figures", "compare-digits", "--runs", str(tmp_path)]) == 2
    assert "got none; write isthmus experiment run compare-digits" in capsys.readouterr().err


def test_a_plan_is_printed_and_nothing_is_kept(tmp_path, monkeypatch, capsys):
    rows = [{"cell": "all", "cells": 3, "missing": 2, "hours": 0.25}]
    monkeypatch.setattr(experiments, "plan_of", lambda *_: rows)
    words = ["experiment", "run", "compare-digits", "--plan", "--json", "--runs", str(tmp_path / "runs")]
    assert run_app(words) == 0
    assert json.loads(capsys.readouterr().out) == rows
    assert not list(tmp_path.rglob("*.json"))


def test_where_there_is_no_terminal_a_line_says_how_long_it_will_take(monkeypatch, capsys):
    clock = iter([0.0, 5.0, 30.0, 60.0])
    monkeypatch.setattr(experiments.time, "monotonic", lambda: next(clock))
    with experiments._cells_bar(False) as progress:
        for done in (1, 1, 3):
            progress("cells", done, 11)
    assert capsys.readouterr().err == "cells: 1 of 11\ncells: 3 of 11, about 4 min left\n"


def test_a_cluster_has_its_own_workers():
    assert engine_of(None, "auto", 2, None, ["big=1", "disk=0.5"], 3) == Ray(
        1, "auto", 2, 0, {"big": 1.0, "disk": 0.5}, 3
    )
    for wrong in ("=1", "big=-1", "big=x"):
        with pytest.raises(im.InputError, match="NAME=AMOUNT"):
            engine_of(None, "auto", 1, None, [wrong], 3)
    values: tuple[dict[str, Any], ...] = (
        {"workers": "2"},
        {"workers": 1.5},
        {"workers": True},
        {"retries": 1.5},
        {"cpus": "1"},
    )
    for value in values:
        with pytest.raises(im.InputError, match=next(iter(value))):
            Ray(**value)


def test_rows_of_networks_that_were_trained_otherwise_are_told_apart(sweep, capsys):
    entry = '{model: "mlp:6-5x1-2", data: "gaussians:N=60,d=6,seed=1", seeds: [0, 1], batch: 20, '
    networks = "[" + ", ".join(entry + more for more in ("steps: 2}", "steps: 4}", "steps: 2, examples: 9}")) + "]"
    changes = ["--set", f"networks={networks}", "--set", "methods=[Linear]", "--set", "budget=0", "--quiet"]
    assert run_app([*sweep, *changes, "--json"]) == 0
    said = [row["trained"] for row in json.loads(capsys.readouterr().out)]
    assert said[0] == "steps=2, batch=20"
    assert said[1:] == [said[0].replace("steps=2", "steps=4"), "examples=9, " + said[0]]
    assert run_app([*sweep, *changes]) == 0
    assert "trained" in capsys.readouterr().out
    # a table of another call does not stay where nothing of this one is done
    assert run_app([*sweep, *changes, "--set", "num_points=7", "--status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    (table,) = (Path(sweep[-1]) / "mine/tables").glob("*.json")
    assert json.loads(table.read_text()) == []


def test_failures_before_the_budget_is_used_are_told(tmp_path, monkeypatch):
    def over(cells, store, engine, report, **_):
        report.failed["one"] = Failed("boom")
        raise KeyboardInterrupt

    @contextmanager
    def at_once(budget, event):
        event.set()
        yield

    monkeypatch.setattr(experiments, "run_cells", over)
    monkeypatch.setattr(experiments, "_stopped_after", at_once)
    report = experiments._run([network(0)], Store(tmp_path), Local(), "cpu", None, True, 1.0)
    assert report.failed == {"one": Failed("boom")}


# -- cells


def test_examples_may_be_drawn():
    first, drawn, again = (Problem("mlp:64-4-10", "digits", 100, drawn=k).dataset() for k in (None, 1, 1))
    whole = Problem("mlp:64-4-10", "digits").dataset()
    assert torch.equal(drawn.x_train, again.x_train)
    assert not torch.equal(drawn.x_train, first.x_train)
    places = [int((whole.x_train == x).flatten(1).all(1).nonzero()[0]) for x in drawn.x_train]
    assert max(places) > 1000
    assert torch.equal(whole.y_train[places], drawn.y_train)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Problem("mlp", dtype="float16"), "dtype: expected float32 or float64, got 'float16'"),
        (lambda: Problem("mlp", loss="hinge"), "loss: expected cross_entropy or mse, got 'hinge'"),
        (lambda: im.experiments.Network(Problem("mlp"), target=-1.0), "target: expected a number >= 0, got -1.0"),
        (lambda: Features("mnist", "vgg", 8), "features: expected pixels or one of .*vgg16.*, got vgg$"),
        (lambda: Task("mnist", 1), "layers: expected at least 2, got 1"),
        (lambda: Task("gaussians", side=4), r"task: expected side \(dimensions\) and tests, for Gaussians"),
    ],
)
def test_cells_that_make_no_sense_are_refused(make, words):
    with pytest.raises(im.InputError, match=words):
        make()


def test_a_task_needs_test_examples(tmp_path):
    x, y = torch.randn(6, 4), torch.arange(6) % 2
    np.savez(tmp_path / "mine.npz", x_train=x.numpy(), y_train=y.numpy())
    with pytest.raises(im.InputError, match=r"data: expected test examples, got none in .*mine.npz"):
        Task(str(tmp_path / "mine.npz")).read(Job(Store(tmp_path), "", tmp_path))


def test_results_of_other_versions_are_named_and_other_errors_pass(tmp_path):
    def lacks(found):
        raise KeyError("loss")

    def refused(found):
        raise im.FileError(tmp_path, "is gone")

    with pytest.raises(
        im.FileError, match=r"results: holds a result that is not one of this version \(KeyError: 'loss'"
    ):
        rows_of(lacks, [])
    with pytest.raises(im.FileError, match="is gone"):
        rows_of(refused, [])


def test_a_kind_of_cell_that_cannot_be_timed_says_why(tmp_path):
    problem = Problem("mlp:6-5x1-2", str(tmp_path / "none.npz"))
    broken = pair(a=network(0, problem), b=network(1, problem))
    rows = plan([broken], Store(tmp_path / "runs"), "cpu")
    assert [row["hours"] for row in rows[:-1]].count(None) >= 1
    assert any("none.npz" in row.get("cannot be timed", "") for row in rows)


def test_claims_about_figures_that_are_not_there_are_not_judged():
    assert claims._four_fifths([{".p": 0.2, "loss": 1.0}]) == (None, "one of them is missing")
    row = {"network": "dropout", "layer": 1}
    for judge in (claims._late_layers, claims._early_layers):
        assert judge([row]) == (None, "not of both networks")
