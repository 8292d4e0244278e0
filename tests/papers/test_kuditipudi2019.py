"""The page on Kuditipudi et al. 2019: its smoke run, its numbers by another route, its findings, its settings."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import isthmus as im
from isthmus.cli import run_app
from isthmus.errors import InputError
from isthmus.experiments import Network, On, Pair, Problem
from isthmus.experiments.page import Experiment, Finding, as_json, as_markdown, columns_of, write_tables
from isthmus.papers import by_name
from isthmus.papers.kuditipudi2019.jobs import TABLES, Losses, Noise, Subnetworks
from isthmus.papers.kuditipudi2019.page import SCALES, fewer
from isthmus.papers.kuditipudi2019.tables import differences
from isthmus.storage.tensors import read_tensors
from isthmus.sweep import Local, Store, run_cells, with_needs
from isthmus.training.fit import Recipe
from tests.papers.partly import check_without_each_number, rows_of_each_kind

PAGE = by_name("kuditipudi2019")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The page at smoke scale, run once by the command."""
    folder = tmp_path_factory.mktemp("kuditipudi")
    assert run_app(["experiment", "run", "kuditipudi2019", "--runs", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def rows(smoke):
    return PAGE.table(Store(smoke), PAGE.cells("smoke"))


def cells_of(kind: type) -> list[Any]:
    return [c for c in PAGE.cells("smoke") if isinstance(c, kind)]


def test_the_smoke_run_has_every_figure_and_goes_on_where_it_was(smoke, rows, capsys):
    assert {r["figure"] for r in rows} == {
        *("2 left", "2 centre", "2 right", "text", "D.3", "3 right", "5", "paths, filters", "paths, perceptrons"),
        "section 5",
        "Lemma 3",
    }
    stored = json.loads((smoke / "kuditipudi2019/tables/smoke-findings.json").read_text())
    assert [Finding(**f) for f in stored] == PAGE.findings(rows)
    drawn = {f.name for f in (smoke / "kuditipudi2019/figures").glob("*.png")}
    assert drawn == {f"smoke-{name}.png" for name in PAGE.figures}
    again = run_cells(PAGE.cells("smoke"), Store(smoke), Local())
    assert (again.found, again.computed) == (35, 0)
    assert run_app(["experiment", "table", "kuditipudi2019", "--runs", str(smoke), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(as_json(rows))
    assert run_app(["experiment", "table", "kuditipudi2019", "--runs", str(smoke)]) == 0
    assert all(str(f) in capsys.readouterr().out for f in PAGE.findings(rows)[:1])


def test_tables_and_figures_of_some_of_the_results(smoke):
    rows = rows_of_each_kind(PAGE, Store(smoke))
    with pytest.raises(InputError, match="subnetworks of Figure 2"):
        PAGE.figures["figure-2"](rows[Losses])


def test_numbers_that_are_not_finite_leave_the_page_and_make_nothing_hold(smoke):
    check_without_each_number(PAGE, Store(smoke))


def test_the_papers_values_and_what_differs_stand_in_the_rows(rows):
    (line,) = [r for r in rows if r["figure"] == "5"]
    assert (line["paper loss"], line["paper accuracy %"], line["source"]) == (2.34, 10, "section 6 and Figure 5")
    assert line["differs from the paper"].startswith("digits for cifar10, convnet:8:dropout=0.1x2-0.25 for vgg11:64")
    assert "optimizer adam for sgd" in line["differs from the paper"]
    plain = {r["differs from the paper"] for r in rows if r.get("network") == "convnet:8"}
    assert all("convnet:8 for vgg11:64:he, " in text for text in plain)
    assert len(plain) == 1
    assert not [r for r in rows if r.get("network", "").startswith("mlp") and r["differs from the paper"]]
    paper = {r["what"]: r["paper accuracy %"] for r in rows if r["figure"] == "text" and "paper accuracy %" in r}
    assert paper == {
        "training set, dropout off": 99, "training set, dropout active": 95,
        "test set, dropout off": 92, "test set, dropout active": 91,
    }  # fmt: skip


def test_subnetworks_are_the_network_with_dropped_columns(smoke):
    """Loss and error again from the whole network, its columns cleared and multiplied tensor by tensor."""
    for cell in cells_of(Subnetworks):
        theta = im.load_params(Store(smoke).load(cell.needs()[0]).folder / "params.safetensors")
        objective, test = cell.end.problem.objectives()
        result = Store(smoke).load(cell).result
        assert test is None
        assert objective.num_examples == 200
        names = list(theta)
        for p in cell.ps:
            found = result["p"][str(p)]
            changed = {k: v.clone() for k, v in theta.items()}
            for l, units in found["units"].items():
                assert len(units) == len(set(units)) == int(8 * (1 - p))
                after = changed[names[int(l)]]
                columns = after.view(len(after), 8, -1)
                keep = torch.zeros(8).index_fill(0, torch.tensor(units), 1 / (1 - p))
                columns *= keep[:, None]
            loss, error = objective.measure(changed)
            assert found["best"]["loss"] == pytest.approx(loss, rel=1e-5)
            assert found["best"]["error"] == pytest.approx(error, abs=1.5 / 200)
            assert found["best"]["loss"] == min(found["losses"])
            assert len(found["losses"]) == len(found["errors"]) == cell.draws
        line = result["p"]["0.2"]["line"]
        assert line["loss"][0] == pytest.approx(objective.loss(theta), rel=1e-6)
        assert line["loss"][-1] == pytest.approx(result["p"]["0.2"]["best"]["loss"], rel=1e-5)
        assert "line" not in result["p"]["0.5"]


def test_active_dropout_costs_and_repeats_and_leaves_the_global_generator_alone(smoke, tmp_path):
    cell = next(c for c in cells_of(Losses) if c.passes)
    before = torch.get_rng_state()
    found = Store(smoke).load(cell).result
    other = replace(cell, passes=2)
    for folder in ("one", "two"):
        run_cells([other], Store(tmp_path / folder), Local())
    again = [Store(tmp_path / folder).load(other).result for folder in ("one", "two")]
    assert again[0] == again[1]
    assert again[0]["train"]["loss"] == found["train"]["loss"]
    assert again[0]["train"]["active"] != found["train"]["active"]
    assert found["train"]["active"]["loss"] > found["train"]["loss"]
    assert torch.equal(before, torch.get_rng_state())
    plain = next(c for c in cells_of(Losses) if c.figure == "text" and not c.passes)
    assert "active" not in Store(smoke).load(plain).result["train"]


def test_noise_is_what_the_library_says_of_the_network_without_its_dropout(smoke, rows):
    cell = cells_of(Noise)[0]
    assert "dropout" in cell.needs()[0].problem.model
    assert "dropout" not in cell.end.problem.model
    stored = Store(smoke).load(cell)
    tensors, _ = read_tensors(stored.folder / "noise.safetensors")
    objective, _ = cell.end.problem.objectives()
    theta = im.load_params(Store(smoke).load(cell.needs()[0]).folder / "params.safetensors")
    direct = im.noise_stability(objective, theta, 0.5, draws=3, seed=0)
    assert torch.equal(tensors["layer_cushion/2"], direct.layer_cushion[2])
    assert torch.equal(tensors["activation_contraction/3"], direct.activation_contraction[3])
    smallest = torch.minimum(direct.interlayer_smoothness[2, 3], direct.interlayer_smoothness[2, 4])
    assert torch.equal(tensors["interlayer_smoothness/2"], smallest)
    row = next(r for r in rows if r.get("layer") == 2 and "dropout" in r["network"])
    assert set(row[".values"]) == set(TABLES)
    assert row["median layer cushion"] == pytest.approx(float(direct.layer_cushion[2].quantile(0.5)), rel=1e-6)


def test_proved_bounds_hold_on_dense_samples_in_float64(smoke, rows):
    cells = [c for c in cells_of(Pair) if c.a.problem.model.startswith("mlp")]
    assert {type(c.method).__name__ for c in cells} == {"Linear", "NoiseDropout", "Narrow"}
    for cell in cells:
        stored = Store(smoke).load(cell)
        objective, _ = cell.a.problem.objectives()
        path = im.load_connection(stored.folder / "run/path.safetensors").path
        dense = [objective.loss(path.at(k / 400)) for k in range(401)]
        row = next(r for r in rows if r["figure"] == "paths, perceptrons" and r["method"] == type(cell.method).__name__)
        assert max(dense) <= row["largest bound"]
        assert row["loss"] <= max(dense) * 1.05
        assert objective.dtype is torch.float64


CUSHION = "median layer cushion"
GOOD = [
    {"figure": "2 left", ".p": 0.2, "accuracy %": 98.0, "loss": 0.1, "units kept": 25},
    {"figure": "2 left", ".p": 0.5, "accuracy %": 95.0, "loss": 0.2, "units kept": 16},
    {"figure": "2 centre", "what": "straight segment, p = 0.2", "largest excess": 0.001, "trials": 5},
    {"figure": "2 right", ".width": 10, "accuracy %": 96.0, "loss": 0.1},
    *(
        {"figure": part, "method": method, "loss": loss, "accuracy %": 100 - 40 * loss, "segments": segments,
         "exact segments": segments - straight, "their loss": loss, "their largest bound": loss}
        for part in ("paths, filters", "paths, channels", "paths, perceptrons")
        for method, loss, segments, straight in (
            ("Linear", 2.3, 1, 1), ("NoiseDropout", 0.2, 10, 2), ("Narrow", 0.1, 13, 2), ("Dropout", 0.3, 28, 0),
        )
    ),
    *(
        {"figure": "D.3", "layer": layer, "network": name, CUSHION: cushion,
         "median activation contraction": 1.5, "median interlayer smoothness": None}
        for name, cushions in (("n:dropout=0.1", (0.3, 0.3, 0.3, 0.3)), ("n", (0.1, 0.3, 0.3, 0.29)))
        for layer, cushion in enumerate(cushions, start=1)
    ),
]  # fmt: skip


def changed(where, **values):
    return [{**row, **values} if where(row) else row for row in GOOD]


def path_of(part, method):
    return lambda row: row["figure"] == f"paths, {part}" and row.get("method") == method


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("half of the filters", changed(lambda r: r.get(".p") == 0.5, **{"accuracy %": 80.0})),
        ("four fifths", changed(lambda r: r.get(".p") == 0.2, loss=0.3)),
        ("above its ends", changed(lambda r: r["figure"] == "2 centre", **{"largest excess": 0.02})),
        ("a few filters", changed(lambda r: r["figure"] == "2 right", **{"accuracy %": 94.0})),
        ("filters: the path", changed(path_of("filters", "Narrow"), loss=2.4)),
        ("channels: the path", changed(path_of("channels", "Narrow"), **{"accuracy %": 1.0})),
        ("falls to chance", changed(path_of("channels", "Linear"), **{"accuracy %": 30.0})),
        ("Theorem 3 stays below", changed(path_of("perceptrons", "NoiseDropout"), loss=0.05)),
        ("is proved", changed(path_of("filters", "Dropout"), **{"exact segments": 27})),
        ("is proved", changed(path_of("channels", "Narrow"), **{"their loss": 0.11})),
        ("as noise stable", changed(lambda r: r.get("layer") == 4 and r["network"] == "n", **{CUSHION: 0.14})),
        ("less noise stable", changed(lambda r: r.get("layer") == 1 and r["network"] == "n", **{CUSHION: 0.3})),
    ],
)
def test_every_finding_can_fail(words, rows):
    good = PAGE.findings(GOOD)
    assert all(f.holds for f in good)
    found = {f.statement for f in PAGE.findings(rows) if f.holds is False}
    assert len(found) == 1
    assert words in found.pop()


def test_findings_say_nothing_where_rows_are_missing():
    assert {f.holds for f in PAGE.findings([])} == {None}
    left = PAGE.findings([r for r in GOOD if r["figure"] == "2 left"])
    assert len([f for f in left if f.holds is not None]) == 2
    wide = [r | {".width": 11} if r["figure"] == "2 right" else r for r in GOOD]
    alone = [r for r in GOOD if r.get("method") != "Narrow"]
    narrow = [r | {".width": 2, "accuracy %": 80.0} if r["figure"] == "2 right" else r for r in GOOD]
    for rows, words in ((wide, "a few filters"), (narrow, "a few filters"), (alone, "is proved")):
        assert [f.holds for f in PAGE.findings(rows) if words in f.statement] == [None]
    assert "holds: " in str(PAGE.findings(GOOD)[0])
    assert str(Finding("x", None, "y")) == "not measured: x (y)"


def test_findings_are_stored_and_hidden_entries_stay_out_of_tables(tmp_path):
    rows = [{"a": 1, ".curve": [1, 2]}, {"b": 2}]
    assert columns_of(rows) == ["a", "b"]
    assert ".curve" not in as_markdown(rows) + as_json(rows)
    said = [Finding("x", False, "y")]
    files = write_tables(rows, tmp_path, "t", said)
    assert json.loads((tmp_path / "t-findings.json").read_text()) == [said[0]._asdict()]
    assert all(".curve" not in f.read_text() for f in files)
    assert len(write_tables(rows, tmp_path / "none", "t")) == 3
    assert Experiment("n", "t", "r", lambda scale: [], ()).findings(rows) == []


def test_the_paper_scale_has_the_papers_settings():
    filters, channels, _ = SCALES["paper"]
    assert filters.recipe == Recipe("sgd", 0.1, 5000, 64, 0.0, 0.0, "constant", 5000)
    assert (filters.trials, filters.draws, filters.examples, filters.channels) == (5, 20, 4096, 32)
    assert (channels.model, channels.rates) == ("vgg11:64:he", "0.25x3-0.5x7")
    recipe = channels.recipe
    assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.batch) == (0.05, 0.9, 5e-4, 128)
    assert (recipe.schedule, recipe.steps // (50_000 // 128)) == ("halving", 300)
    laptop, vgg, perceptrons = SCALES["laptop"]
    assert (laptop.data, laptop.trials, laptop.draws, vgg.data) == ("mnist", 5, 20, "cifar10")
    assert perceptrons.model == "mlp:64-60x4-10:dropout=0.25"
    for scale in SCALES:
        cells = with_needs(PAGE.cells(scale))
        assert all("dropout" not in c.a.problem.model for c in cells if isinstance(c, Pair))


def test_fewer_examples_are_the_first_ones_and_have_no_dropout():
    network = Network(Problem("mlp:64-4-10:dropout=0.5", "digits"), 3)
    end = fewer(network, 50)
    assert isinstance(end, On)
    assert (end.problem.model, end.problem.examples, end.problem.tests, end.seed) == ("mlp:64-4-10", 50, 0, 3)
    assert fewer(network, None).problem == replace(network.problem, model="mlp:64-4-10")
    objective, test = end.problem.objectives()
    x: Any = objective.data[0]
    whole, tests = Problem("mlp:64-4-10", "digits", tests=7).objectives()
    assert test is None
    assert tests is not None
    assert (objective.num_examples, tests.num_examples) == (50, 7)
    first: Any = whole.data[0]
    assert torch.equal(x, first[:50])


def test_the_same_training_differs_in_nothing():
    filters, channels, _ = SCALES["paper"]
    network = filters.networks(32, filters.recipe)[0]
    assert differences(network, network) == ""
    narrow = filters.networks(4, filters.recipe)[0]
    assert differences(narrow, network) == ""
    other = channels.network("vgg11:16", 0)
    like = channels.network("vgg11:64", 0)
    assert differences(other, like) == "vgg11:16 for vgg11:64"
    changed = replace(narrow, recipe=replace(narrow.recipe, steps=7))
    assert differences(changed, network) == "steps 7 for 5000"


def test_a_network_that_does_not_fit_the_problem_is_named(tmp_path):
    short = Recipe(steps=2)
    cell = Subnetworks(fewer(Network(Problem("mlp:64-4-10", "digits"), 0, short), 20), (0.5,))
    report = run_cells([replace(cell, end=replace(cell.end, problem=Problem("mlp:64-5-10", "digits", 20)))],
                       Store(tmp_path), Local())  # fmt: skip
    assert len(report.failed) == 1
    assert "0.weight" in next(iter(report.failed.values())).message
