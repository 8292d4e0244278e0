"""The page on Nguyen, Brechet, Mondelli 2021: its rows are what the library measures, its findings can fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.experiments.jobs import Pair
from isthmus.papers.nguyen2021 import page
from isthmus.papers.nguyen2021.jobs import ExperimentA, ExperimentB, PathA
from isthmus.sweep import Local, Store, run_cells
from tests.papers.partly import check_without_each_number


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("nguyen2021"))
    cells = page.EXPERIMENT.chosen("smoke")
    assert not run_cells(cells, store, Local()).failed
    return store, cells, page.EXPERIMENT.table(store, cells)


def test_every_figure_of_the_paper_has_rows(smoke):
    _, cells, table = smoke
    assert {r["figure"] for r in table} == {"3(a)", "3(b)", "3(c)", "3(d)", "4", "7", "8"}
    layers = [r["layer"] for r in table if r["figure"] == "3(a)"]
    assert layers == [0, 1, 2, 3]
    assert all(r["B"] is None and r["A"] is not None for r in table if r.get("layer") == 0)
    assert len([c for c in cells if isinstance(c, Pair)]) == len([r for r in table if "method" in r]) - 1 == 5


def test_numbers_that_are_not_finite_leave_the_page_and_make_nothing_hold(smoke):
    check_without_each_number(page.EXPERIMENT, smoke[0])


def test_rows_are_means_of_what_the_library_measures(smoke):
    store, cells, table = smoke
    results: dict[str, list[Any]] = {"A": [], "B": []}
    for cell in cells:
        if isinstance(cell, ExperimentA | ExperimentB) and cell.p == 0.5 and "x3" in cell.network.problem.model:
            results[type(cell).__name__[-1]].append((cell, store.load(cell).result))
    row = next(r for r in table if r["figure"] == "3(a)" and r["layer"] == 2)
    for kind, l in (("A", 2), ("B", 1)):
        values = [result["layers"][l]["loss"] for _, result in results[kind]]
        assert row[kind] == pytest.approx(sum(values) / 2)
        assert row[f"{kind} ±"] == pytest.approx(12.7062 * abs(values[0] - values[1]) / 2, rel=1e-4)
    cell, result = results["B"][0]
    objective, test = cell.network.problem.objectives()
    job = type("Job", (), {"load": staticmethod(store.load), "put": staticmethod(dict)})
    params = cell.network.params(job)
    found = im.dropout_bounds(objective, params, 0.5, cell.draws, cell.seed, test=test)
    assert [r.loss for r in found.layers] == [r["loss"] for r in result["layers"]]
    assert result["reference"] == objective.loss(params)


def test_the_optimised_subnetworks_win_at_smoke_scale_already(smoke):
    _, _, table = smoke
    found = {
        f.statement: f.holds for f in page.EXPERIMENT.findings([r for r in table if r["task"] == "digits, 3 x 40"])
    }
    assert len(found) == 5
    assert all(found.values())
    names = [r["method"] for r in table if r.get("figure") == "3(d)" and r["task"] == "digits, 3 x 40"]
    assert names == ["Linear", "Dropout", "Dropout, searched", "Subnetwork"]


def table_of(a: float, b: float, path_a: float = 0.001, width: int = 500) -> list[dict[str, Any]]:
    common = {"p": 0.5, "reference": 0.001, "networks": 2}
    layers = [{"figure": "3(b)", "task": "CIFAR-10, 5 x 500", "layer": l, "A": a, "B": b, **common} for l in (1, 2)]
    paths = [
        {"figure": "3(d)", "task": "CIFAR-10, 5 x 500", "method": m, "excess": e}
        for m, e in (("Dropout", 1.0), ("Subnetwork", path_a))
    ]
    wide = {"figure": "4", "task": "CIFAR-10, two hidden layers", "width": width, "A": a, "B": b, **common}
    return [*layers, wide, *paths]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (table_of(0.002, 1.0), [True, True, None, None, True]),
        (table_of(0.2, 1.0), [False, False, False, None, True]),
        (table_of(0.002, 0.003), [True, False, None, False, True]),
        (table_of(0.002, 1.0, path_a=0.06), [True, True, None, None, False]),
        (table_of(0.002, 1.0, width=100), [True, True, None, None, True]),
        (table_of(0.002, 1.0, width=3000), [True, True, None, None, True]),
        (table_of(0.002, 1.0) + table_of(0.002, 1.0, width=3000), [True, True, True, True, True]),
        (table_of(0.2, 0.01, width=600), [False, False, False, False, True]),
    ],
)
def test_findings_hold_and_fail_as_the_numbers_say(table, expected):
    assert [f.holds for f in page.EXPERIMENT.findings(table)] == expected


@pytest.mark.parametrize(("a", "optimizer", "holds"), [
    (0.2, "sgd", False), (0.2, "adam", None), (0.002, "adam", True),
])  # fmt: skip
def test_a_large_a_of_networks_that_were_trained_otherwise_is_no_finding(a, optimizer, holds):
    rows = [r | {".optimizer": optimizer} for w in (500, 3000) for r in table_of(a, 1.0, width=w) if "width" in r]
    near_zero, _ = page.EXPERIMENT.findings(rows)
    assert near_zero.holds is holds


def test_nothing_is_said_of_every_layer_where_some_are_missing():
    rows = [r | {".layers": (0, 1, 2, 4)} for r in table_of(0.002, 1.0) if "layer" in r]
    close, far = page.EXPERIMENT.findings(rows)
    assert (close.holds, far.holds) == (None, True)
    assert close.measured.endswith("; without layer 0, 4")
    assert [f.holds for f in page.EXPERIMENT.findings(rows[1:])] == [None, None]
    above = [r | {"A": 0.2} for r in rows]
    assert page.EXPERIMENT.findings(above)[0].holds is False  # one layer is enough
    whole = [rows[0] | {"layer": l} for l in (0, 1, 2, 4)]
    assert page.EXPERIMENT.findings(whole)[0].holds is True
    others = [r | {"p": 0.25, "figure": "8"} for r in whole]
    assert [f.holds for f in page.EXPERIMENT.findings(others)] == [True]
    assert [f.holds for f in page.EXPERIMENT.findings(others[:-1])] == [None]
    assert page._TASKS[next(t for t in page.SCALES["paper"]() if t.figure == "3(c)").problem].layers == tuple(range(11))


@pytest.mark.parametrize(("a", "b", "holds"), [(0.4, 0.8, True), (0.8, 0.4, False), (0.0005, 0.0008, True)])
def test_other_ratios_are_compared_layer_by_layer(a, b, holds):
    row = {"figure": "8", "task": "CIFAR-10, 5 x 500", "p": 0.25, "reference": 0.001}
    table = [
        {**row, "layer": 0, "A": 5.0},
        {**row, "layer": 1, "A": a, "B": b},
        {**row, "layer": 2, "A": 0.0, "B": 0.0},
    ]
    (found,) = page.EXPERIMENT.findings(table)
    assert found.holds is holds
    assert "0.25" in found.statement
    assert "layer 0" not in found.measured


@pytest.mark.parametrize("draw", page.EXPERIMENT.figures.values(), ids=page.EXPERIMENT.figures)
def test_figures_show_the_rows_and_say_so_where_there_are_none(smoke, draw):
    drawn = draw(smoke[2])
    assert sum(len(axes.lines) for axes in drawn.axes) >= 3
    assert drawn.legends
    empty = draw([])
    assert [t.get_text() for axes in empty.axes for t in axes.texts] == ["not measured"]


def test_figure_3_shows_the_mean_of_every_layer(smoke):
    axes = page.EXPERIMENT.figures["fig3"](smoke[2]).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    rows = [r for r in smoke[2] if r["figure"] == "3(a)"]
    assert np.asarray(lines["(A) trained subnetworks"].get_ydata()).tolist() == [r["A"] for r in rows]
    assert np.asarray(lines["(B) dropout"].get_xdata()).tolist() == [1, 2, 3]


def test_experiments_keep_the_fraction_1_minus_p(smoke):
    store, cells, _ = smoke
    found = [c for c in cells if isinstance(c, ExperimentA | ExperimentB)]
    assert {round(c.p, 3) for c in found} == {0.5, 0.333, 0.25}
    for cell in found:
        assert store.load(cell).result["fraction"] == pytest.approx(1 - cell.p)


def test_the_printed_form_ends_at_no_error_and_its_subnetworks_make_the_path(smoke):
    store, cells, table = smoke
    (path,) = [c for c in cells if isinstance(c, PathA)]
    objective, _ = path.problem.objectives()
    ends = [store.load(e).result for e in (path.a, path.b)]
    for end in (path.a, path.b):
        network = store.load(end.network)
        error = objective.error(im.load_params(network.folder / "params.safetensors"))
        assert (network.result["outcome"] == "TARGET") == (error == 0)
        assert (end.init, end.looks_from, end.keeps) == ("random", 100, True)
    bound = max(max(r["bound"], r["reference"]) for r in ends)
    result = store.load(path).result
    assert result["max_loss"] <= bound * (1 + 1e-6)
    (row,) = [r for r in table if r["task"].endswith("as printed") and r.get("method") == "Subnetwork"]
    assert row["max training loss"] == result["max_loss"]


def test_b_as_printed_scales_the_outputs_alone():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.ReLU(),
                              torch.nn.Linear(4, 2)).double()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 3, generator=generator, dtype=torch.float64), torch.arange(30) % 2
    objective = im.Objective(net, "cross_entropy", (x, y))
    params = {k: torch.randn(v.shape, generator=generator).double() for k, v in net.state_dict().items()}
    row = im.dropout_bounds(objective, params, 0.5, 1, 3, rescale=False).at(1)
    A = {l: v.flatten(1) for l, v in row.weights.A.items()}
    kept = (params["0.weight"][:, None] == A[1][None]).all(2).any(1).nonzero().flatten()
    h = (x @ params["0.weight"][kept].T + params["0.bias"][kept]).relu()
    rows = [int(((params["2.weight"][:, kept] - r).abs().sum(1)).argmin()) for r in A[2]]
    assert torch.equal(A[2], params["2.weight"][rows][:, kept])  # no factor n / kept
    g = (h @ A[2].T + params["2.bias"][rows]).relu()
    outputs = [s * g @ params["4.weight"][:, rows].T + params["4.bias"] for s in np.linspace(-5, 5, 2001)]
    best = min(float(torch.nn.functional.cross_entropy(z, y)) for z in outputs)
    assert row.loss == pytest.approx(best, rel=1e-4)


def test_subnetworks_are_not_looked_at_too_early_and_stop_without_errors():
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).double()
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    objective = im.Objective(net, "cross_entropy", (x, (x[:, 0] > 0).long()))
    recipe = im.Recipe(lr=0.05, steps=400, batch=20, schedule="constant", check=5)
    params = {k: v.detach() for k, v in net.state_dict().items()}
    seen: list[int] = []
    for draws in (1, 3):
        bounds = im.subnetwork_bounds(
            objective, params, draws=draws, recipe=recipe, looks_from=100, init="random", hub_steps=400,
            progress=lambda what, step, total: seen.append(step),
        )  # fmt: skip
        assert bounds.at(0).error == 0.0
        assert all(row.loss > 0 and len(row.losses) in (1, draws) for row in bounds.layers)
    assert min(seen) >= 100
    assert seen.count(400) >= 4  # the end of each
