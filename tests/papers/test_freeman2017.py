"""The page on Freeman & Bruna 2017: its smoke run, its numbers by another route, its findings, its settings."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.cli import run_app
from isthmus.experiments.page import Finding, as_json
from isthmus.papers import by_name
from isthmus.papers.freeman2017.claims import power_law
from isthmus.papers.freeman2017.jobs import (
    Crossings,
    Ends,
    Judge,
    Proof,
    String,
)
from isthmus.papers.freeman2017.page import LEVELS_2, LEVELS_3, SCALES, sequential
from isthmus.papers.freeman2017.problems import Polynomial, start_of
from isthmus.papers.freeman2017.tables import PAPER, rows
from isthmus.papers.freeman2017.theory import Disconnected, Gap
from isthmus.params import distance, equal, lerp
from isthmus.sweep import Local, Store, run_cells, with_needs
from isthmus.training.fit import Recipe, fit
from isthmus.training.memory import Beside, forget
from tests.connectors.strings.strings import Killed, Mortal
from tests.papers.partly import check_without_each_number

PAGE = by_name("freeman2017")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The page at smoke scale, run once by the command."""
    folder = tmp_path_factory.mktemp("freeman")
    assert run_app(["experiment", "run", "freeman2017", "--runs", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def table(smoke):
    return PAGE.table(Store(smoke), PAGE.cells("smoke"))


def cells_of(kind: type) -> list[Any]:
    return [c for c in PAGE.cells("smoke") if isinstance(c, kind)]


def value_of(judge, objective, params) -> float:
    """The judged quantity from the outputs alone."""
    outputs, y = objective.outputs(params), objective.data[1]
    if judge.quantity == "error":
        return float((outputs.argmax(1) != y).double().mean())
    return float(objective.example_losses(outputs, y).double().mean())


def test_the_smoke_run_has_every_part_and_goes_on_where_it_was(smoke, table, capsys):
    assert {r["figure"] for r in table} == {
        "2",
        "2, at the maximum",
        "3",
        "4",
        "squared error",
        "8, D.1",
        "2.3.1",
        "Corollary 2.5",
    }
    stored = json.loads((smoke / "freeman2017/tables/smoke-findings.json").read_text())
    assert [Finding(**f) for f in stored] == PAGE.findings(table)
    drawn = {f.name for f in (smoke / "freeman2017/figures").glob("*.png")}
    assert drawn == {f"smoke-{name}.png" for name in PAGE.figures}
    assert run_app(["experiment", "table", "freeman2017", "--runs", str(smoke), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(as_json(table))
    assert ".frames" not in as_json(table)


def test_numbers_that_are_not_finite_leave_the_page_and_make_nothing_hold(smoke):
    check_without_each_number(PAGE, Store(smoke), but=(Disconnected,))


def test_networks_are_the_first_at_or_below_each_level(smoke):
    store = Store(smoke)
    for cell in {e for c in cells_of(String) for e in c.needs()}:
        reached = store.load(cell).result["reached"]
        train, test = cell.problem.objectives()
        objective = test if cell.judge.on == "test" else train
        steps = [reached[str(i)]["step"] for i in range(len(cell.levels))]
        assert steps == sorted(steps)
        for i, level in enumerate(cell.levels):
            params = im.load_params(store.load(cell).folder / f"level-{i}.safetensors")
            value = value_of(cell.judge, objective, params)
            assert value == pytest.approx(reached[str(i)]["value"], rel=1e-6)
            assert value <= level
            # the check before it was above the level: the same training, stopped there
            if steps[i] and i == cell.seed % 2:
                start = {k: v.detach() for k, v in _start(cell).items()}
                recipe = Recipe(**{**vars(cell.recipe), "steps": max(1, steps[i] - cell.recipe.check)})
                seen = []
                fit(
                    train.batch_loss, lambda p, o=objective, j=cell.judge, s=seen: s.append(value_of(j, o, p)) or s[-1],
                    start, train.num_examples, recipe, generator=torch.Generator().manual_seed(cell.seed), target=-1.0,
                )  # fmt: skip
                assert min(seen[:-1] if steps[i] == cell.recipe.check else seen) > level


def _start(cell):
    return start_of(cell.problem, cell.seed)


def test_stored_strings_are_what_the_rows_say(smoke, table):
    store = Store(smoke)
    for cell in cells_of(String):
        result, folder = store.load(cell).result, store.load(cell).folder
        path = im.load_connection(folder / "string.safetensors").path
        train, test = cell.a.problem.objectives()
        objective = test if cell.a.judge.on == "test" else train
        ends = [im.load_params(store.load(e).folder / f"level-{e.levels.index(cell.level)}.safetensors")
                for e in (cell.a, cell.b)]  # fmt: skip
        assert equal(path.start, ends[0])
        assert equal(path.end, ends[1])
        length = sum(distance(p, q) for p, q in pairwise(path.knots)) / distance(*ends)
        assert result["length"] == pytest.approx(length, rel=1e-9)
        assert result["beads"] == len(path.knots) - 2
        if cell.figure in "234":
            assert result["beads"] >= 1  # as in the authors' program
        line = max(value_of(cell.a.judge, objective, lerp(ends[0], ends[1], k / 40)) for k in range(41))
        assert result["line"] == pytest.approx(line, rel=0.05, abs=0.021)
        if result["outcome"] != "CONSTRUCTED":
            continue
        dense = [value_of(cell.a.judge, objective, s.at(k / 60)) for s in path.segments for k in range(61)]
        assert max(dense) <= cell.reach * cell.level * (1 + 1e-9)
        inner = [value_of(cell.a.judge, objective, p) for p in path.knots[1:-1]]
        assert all(v <= cell.method.alpha * cell.reach * cell.level * (1 + 1e-9) for v in inner)
        if "straightened" in result:
            assert 1 <= result["straightened"] <= result["length"]
        if cell.a.problem.label.endswith("squared error"):
            bound = store.load(Proof(cell)).result["bound"]
            assert max(dense) <= bound <= 1.02 * max(dense)
            row = next(r for r in table if r["task"] == cell.task and r["L0"] == cell.level)
            assert (row["proved"], row["largest bound"]) == (1, bound)
    row = next(r for r in table if r["figure"] == "2" and r["L0"] == 0.125)
    both = [store.load(c).result for c in cells_of(String) if c.figure == "2" and c.level == 0.125]
    assert row["beads"] == np.mean([r["beads"] + 2 for r in both])
    assert row["length sd"] == pytest.approx(np.std([r["length"] for r in both], ddof=1))
    assert (row["paper length"], row["paper beads"], row["source"]) == (1.27, 3.98, "Figure 2")


def test_a_line_that_is_below_counts_as_it_is_without_the_first_bead(smoke, table):
    row = next(r for r in table if r["figure"] == "3" and r["L0"] == 0.32)
    assert row["lines below"] == row["pairs"] == 1
    assert (row["length, line kept"], row["beads, line kept"]) == (1.0, 2.0)
    assert row["beads"] == 3.0
    (cell,) = [c for c in cells_of(String) if c.figure == "3" and c.level == 0.32]
    result = Store(smoke).load(cell).result
    assert result["line"] <= result["limit"]


def test_a_training_that_is_killed_keeps_what_it_crossed():
    problem, levels = Polynomial("quadratic", closed=True, examples=32), (0.2, 0.12, 0.08, 0.05)
    objective, limit = Judge().threshold(problem, min(levels))
    recipe = Recipe(lr=0.02, steps=400, batch=16, check=5, schedule="constant")

    def train(memory) -> Crossings:
        watch = Crossings(limit, levels, 5)
        fit(
            objective.batch_loss, watch.value, problem.start(1), 32, recipe,
            generator=torch.Generator().manual_seed(1), target=min(levels),
            memory=Beside(memory, watch.give, watch.take),
        )  # fmt: skip
        return watch

    alone, mortal = train(forget), Mortal(seed=3, lives=(3, 40))
    while True:
        try:
            again = train(mortal)
            break
        except Killed:
            continue
    assert mortal.deaths > 2
    assert again.rows == alone.rows
    assert len(alone.rows) == 4
    assert all(equal(again.found[i], alone.found[i]) for i in alone.found)


def test_a_network_that_does_not_get_there_leaves_its_string_out(tmp_path):
    recipe = Recipe(lr=0.01, steps=10, batch=32, check=5, schedule="constant")
    a, b = (Ends(Polynomial("cubic", examples=32), Judge(), (1.0, 1e-6), recipe, seed) for seed in (0, 1))
    cell = String("3", "cubic", a, b, 1e-6, 1.1, im.StringSampling(recipe=im.Recipe(steps=5)))
    store = Store(tmp_path)
    assert run_cells([cell], store, Local()).ok
    assert store.load(cell).result == {"outcome": "END_NOT_TRAINED"}
    assert list(store.load(a).result["reached"]) == ["0"]
    (row,) = rows([(cell, store.load(cell))])
    assert (row["pairs"], row["connected"]) == (0, 0)
    assert row["length"] is None


def test_no_path_of_the_counterexamples_stays_below_their_bounds(smoke):
    """On every stored string the side changes, so it has a point at least as high as the bound."""
    for cell in cells_of(Disconnected):
        stored = Store(smoke).load(cell)
        example = (
            im.counterexamples.permutation() if cell.example == "permutation" else im.counterexamples.gaussian_mixture()
        )
        path = im.load_connection(stored.folder / "string.safetensors").path
        dense = [path.at(k / 400) for k in range(401)]
        sides = [example.side(p) for p in dense]
        assert min(sides) < 0 < max(sides)
        assert max(example.objective.loss(p) for p in dense) >= example.lower_bound * (1 - 1e-3)
        assert (stored.result["outcome"] == "CONSTRUCTED") <= (cell.level >= example.lower_bound)
        assert stored.result["threshold"] == example.threshold


def test_results_with_the_older_name_of_success_give_the_same_rows(smoke):
    store = Store(smoke)
    done = [(c, store.load(c)) for kind in (String, Disconnected) for c in cells_of(kind)]
    names = {"CONSTRUCTED": "CONNECTED"}
    older = [
        (c, replace(s, result=dict(s.result) | {"outcome": names.get(s.result["outcome"], s.result["outcome"])}))
        for c, s in done
    ]
    assert any(s.result["outcome"] == "CONNECTED" for _, s in older)
    for row, old in zip(rows(done), rows(older), strict=True):
        assert {k: v for k, v in row.items() if k[0] != "."} == {k: v for k, v in old.items() if k[0] != "."}
        assert old.get("outcome") != "connected"


def test_the_gap_is_that_of_the_path(smoke, table):
    for cell in cells_of(Gap):
        result = Store(smoke).load(cell).result
        objective, a, b = cell.ends(cell.m)
        assert result["ends"] == pytest.approx([objective.loss(a), objective.loss(b)], rel=1e-9)
    cell = cells_of(Gap)[0]
    objective, a, b = cell.ends(cell.m)
    connection = im.connect(objective, a, b, cell.method, seed=cell.seed)
    dense = max(objective.loss(connection.path.at(k / 300)) for k in range(301))
    result = Store(smoke).load(cell).result
    assert dense <= max(*result["ends"], result["epsilon"]) + 1e-9
    assert im.certify(objective, connection.path).proved
    narrow, wide = (next(r for r in table if r.get("m") == m) for m in (4, 16))
    assert wide["gap"] < narrow["gap"]


def curve(figure, task, pairs, **more):
    return [
        {"figure": figure, "task": task, "L0": level, "length": n, "length, line kept": n, "beads": beads, "pairs": 2,
         "connected": 2, "others": None, "largest": level, "limit": 1.1 * level, ".dense": True} | more
        for level, n, beads in pairs
    ]  # fmt: skip


POWERS = [(0.125, 1.0, 4.0), (0.01, 1.5, 15.0), (0.001, 1.9, 45.0)]
CUBIC = [(0.32, 1.0, 3.0), (0.2, 1.0, 3.0), (0.155, 2.5, 3.2), (0.12, 1.1, 4.5), (0.05, 1.4, 11.0), (0.01, 1.9, 46.0)]
IMAGES = [(4.0, 1.0, 3.2), (2.0, 1.02, 4.0), (1.4, 1.03, 5.1), (0.7, 1.05, 7.5)]
WORDS = [(700.0, 1.0, 2.828), (350.0, 1.1, 4.0), (135.0, 1.2, 6.44)]
GOOD: list[dict[str, Any]] = [
    *curve("2", "quadratic", POWERS),
    *curve("3", "cubic", CUBIC),
    *curve("4", "MNIST", IMAGES),
    *curve("6", "Penn Treebank", WORDS),
    *({"figure": "8, D.1", "task": "permutation", "method": "StringSampling", "L0": level, "connected": good,
       "outcome": "constructed" if good else "bead failed", "no path below": 1 / 12}
      for level, good in ((0.3, 1), (0.03, 0))),
    *curve("squared error", "squared", [(0.1, 1.0, 3.0)], proved=2, **{"largest bound": 0.1101}),
    *({"figure": "Corollary 2.5", "task": "gap", "m": m, "gap": gap, "pairs": 3, ".above": 0.0}
      for m, gap in ((4, 0.05), (64, 0.0))),
]  # fmt: skip


def changed(figure, level, **values):
    hit = [r for r in GOOD if r["figure"] == figure and r.get("L0", r.get("m")) == level]
    assert len(hit) == 1
    return [{**r, **values} if r is hit[0] else r for r in GOOD]


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("quadratic: at 0.125, the highest level", changed("2", 0.125, length=1.2)),
        ("quadratic, from 0.125 to 0.001: the length grows", changed("2", 0.001, length=0.9)),
        ("quadratic, from 0.125 to 0.001: the beads grow", changed("2", 0.01, beads=50.0)),
        ("around 0.15 the length has a spike", changed("3", 0.155, length=1.2)),
        ("the spike is there too", changed("3", 0.155, **{"length, line kept": 1.0})),
        ("stays near 1 at every level", changed("4", 0.7, length=1.2)),
        ("one bead is not enough", changed("6", 135.0, beads=3.0)),
        ("every pair", changed("2", 0.01, connected=1, others="bead_failed")),
        ("above its limit", changed("4", 2.0, largest=2.3)),
        ("is proved below", changed("squared error", 0.1, **{"largest bound": 0.112})),
        ("is proved below", changed("squared error", 0.1, proved=1)),
        ("never connected below", changed("8, D.1", 0.03, connected=1)),
        ("connected at some level", changed("8, D.1", 0.3, connected=0)),
        ("the gap falls", changed("Corollary 2.5", 64, gap=0.002)),
        ("Theorem 2.4", changed("Corollary 2.5", 4, **{".above": 1e-6})),
    ],
)
def test_every_finding_can_fail(words, changes):
    assert not [f for f in PAGE.findings(GOOD) if f.holds is False]
    failed = [f.statement for f in PAGE.findings(changes) if f.holds is False]
    assert any(words in statement for statement in failed)
    assert len(failed) <= 2  # a number of beads is in two statements


def test_findings_say_nothing_where_rows_are_missing():
    assert {f.holds for f in PAGE.findings([])} <= {None}
    pairs = [f for f in PAGE.findings(GOOD) if f.statement.startswith("every pair")]
    assert [(f.holds, f.measured.endswith("; without figure 5")) for f in pairs] == [(None, True)]
    whole = [*GOOD, *curve("5", "CIFAR-10", [(80.0, 1.0, 3.0)])]
    assert [f.holds for f in PAGE.findings(whole) if f.statement.startswith("every pair")] == [True]
    found = PAGE.findings([r for r in GOOD if r["figure"] == "Corollary 2.5"])
    assert [f.holds for f in found if f.holds is not None] == [True, True]


def test_the_power_law_is_least_squares():
    generator = np.random.default_rng(0)
    levels = np.geomspace(1e-3, 1e-1, 9)
    beads = 2.5 * levels**-0.6 * np.exp(0.05 * generator.normal(size=9))
    found = power_law(levels.tolist(), beads.tolist())
    assert found is not None
    slope, shift = np.polyfit(np.log(levels), np.log(beads), 1)
    assert (found.exponent, log(found.factor)) == (pytest.approx(slope), pytest.approx(shift))
    assert abs(found.exponent + 0.6) < found.half < 0.1
    assert found.explained == pytest.approx(np.corrcoef(np.log(levels), np.log(beads))[0, 1] ** 2)
    assert power_law([1, 2], [1, 2]) is None
    assert power_law([1, 2, 3], [4, 4, 4]) is None


def test_the_paper_scale_has_the_papers_settings():
    cells = with_needs(PAGE.cells("paper"))
    strings = [c for c in cells if isinstance(c, String)]
    assert {c.level for c in strings if c.figure == "2"} == set(LEVELS_2)
    assert {c.level for c in strings if c.figure == "3"} == set(LEVELS_3)
    problems: dict[str, Any] = {c.figure: c.a.problem for c in strings}
    models = {f: getattr(p, "problem", p).model for f, p in problems.items() if f in ("4", "5", "6")}
    assert models == {"4": "conv5:32-64-1024", "5": "conv5:64-64-384-192:lrn", "6": "lstm:200x2"}
    settings = {c.figure: (round(c.method.alpha * c.reach, 9), c.reach) for c in strings}
    assert {f: settings[f] for f in "23456"} == {
        "2": (0.95, 1.1), "3": (0.95, 1.1), "4": (0.98, 1.02), "5": (0.98, 1.1), "6": (0.98, 1.1),
    }  # fmt: skip
    assert all(c.method.always for c in strings if c.figure in "23456")
    assert (problems["6"].data, problems["2"].closed, problems["3"].closed) == ("ptb:V=10000,T=20", True, False)
    assert problems["2"].examples == 10_000
    assert {(c.a.judge.quantity, c.a.judge.on) for c in strings if c.figure in "45"} == {("error", "test")}
    laptop = {c.figure: c for c in PAGE.cells("laptop") if isinstance(c, String)}
    maximum = {"2, at the maximum", "3, at the maximum"}
    assert set(laptop) == {"2", "3", "4", "5", "6", "show", "squared error"} | maximum
    assert {laptop[f].method.position for f in maximum} == {"maximum"}
    assert {p.source for p in PAPER} >= {"Figure 2", "Figure 3", "Figure 4", "Figure 5"}
    assert all(SCALES[s].cells() for s in SCALES)


def test_the_sequential_search_is_the_printed_one():
    method = sequential(im.StringSampling(always=True))
    assert (method.order, method.batched, method.position, method.alpha, method.always) == (
        "depth",
        False,
        "half",
        1.0,
        False,
    )
