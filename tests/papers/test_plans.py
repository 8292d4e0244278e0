"""Every paper at every scale can be planned: each kind of its jobs has a short form that is made without an error."""

from dataclasses import replace

import pytest

import isthmus as im
from isthmus.experiments import SCALES, Network, On, Pair, Problem
from isthmus.experiments import plan as module
from isthmus.experiments.plan import _draws, _kind, _longest, _passes, plan, shortened
from isthmus.papers import EXPERIMENTS, by_name
from isthmus.papers.freeman2017.jobs import Ends, Proof, String
from isthmus.papers.kuditipudi2019.lemma3 import LowDraws
from isthmus.papers.shevchenko2020.jobs import Trials
from isthmus.sweep import Local, Store, run_cells, with_needs
from isthmus.training.fit import Recipe


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("page", EXPERIMENTS, ids=lambda page: page.name)
def test_every_kind_of_job_has_a_short_form(page, scale):
    kinds = {_kind(cell): cell for cell in reversed(with_needs(page.cells(scale)))}
    assert kinds
    for cell in kinds.values():
        recipe = _longest(cell)
        brief = shortened(cell, 4, None if recipe else 1)
        assert type(brief) is type(cell)
        assert all(found.steps <= 4 for found in map(_longest, with_needs([brief])) if found is not None)
        if recipe is None:
            assert _draws(brief) == 1
        else:
            passes = _passes(cell, recipe)
            assert passes is None or passes > 0


def test_what_other_cells_train_is_not_counted_again_and_seeds_make_no_kinds():
    networks = [Network(Problem("mlp:64-8-10"), seed, Recipe(steps=70)) for seed in range(3)]
    ends = [On(n, Problem("mlp:64-8-10", examples=100, tests=0)) for n in networks]
    cells = [LowDraws(end, draws=5) for end in ends]
    assert {_longest(c) for c in cells} == {None}
    assert len({_kind(c) for c in cells}) == 1
    assert _longest(networks[0]) == Recipe(steps=70)
    assert len({_kind(c) for c in (*cells, LowDraws(ends[0], draws=6), networks[0], networks[1])}) == 3


def test_a_kind_that_cannot_be_run_says_why_and_the_others_are_timed(tmp_path):
    good = Network(Problem("mlp:64-8-10"), 0, Recipe(steps=20, batch=50, check=10))
    missing = Network(Problem("mlp:64-8-10", "nowhere.npz"), 0, Recipe(steps=20, batch=50, check=10))
    timed, refused, total = plan([good, missing], Store(tmp_path), "cpu")
    assert timed["hours"] == total["hours"] > 0
    assert (refused["hours"], total["missing"]) == (None, 2)
    assert "nowhere.npz" in refused["cannot be timed"]


def test_schedules_of_all_kinds_are_shortened():
    trials = [c for c in by_name("shevchenko2020").cells("paper") if isinstance(c, Trials)]
    for cell in trials:
        brief = shortened(cell, 4)
        assert brief.schedule.steps == 4 < cell.schedule.steps
        assert brief.schedule.at(brief.N)[1] <= 16
        assert _longest(cell) == cell.schedule


def test_a_processor_that_waits_for_a_device_is_not_the_clock(monkeypatch):
    assert len(module._clocks("cpu")) == 2
    monkeypatch.setattr(module, "device_of", lambda name: type("Device", (), {"type": "cuda"}))
    assert module._clocks("cuda") == (module.time.perf_counter,)


class Costs:
    """In place of a cell that is timed: a start, steps, checks on examples."""

    def __init__(self, step, check, example):
        self.step, self.check, self.example = step, check, example
        self.asked = []

    def seconds(self, length, *, check=None, size=None):
        self.asked.append(length)
        examples = 60_000 if size is None else size.examples
        checks = 1 + -(-length // (check or length))
        return 2.0 + self.step * length + (self.example + self.check * checks) * examples / 60_000


@pytest.mark.parametrize(("step", "check", "example"), [(1e-3, 0.5, 3.0), (0.4, 90.0, 0.0), (1e-5, 0.0, 1.0)])
def test_hours_are_those_of_steps_checks_and_examples(monkeypatch, step, check, example):
    costs = Costs(step, check, example)
    monkeypatch.setattr(module, "_Timed", lambda *args: costs)
    monkeypatch.setattr(module, "_size", lambda cell: module._Size(60_000, 10_000))
    cell = Network(Problem("mlp:784-8-10", "mnist"), 0, Recipe(steps=100_000, batch=100, check=500))
    whole = 2.0 + step * 100_000 + example + check * 202
    assert module._whole(cell, "cpu") == pytest.approx(whole, rel=0.01)
    assert max(costs.asked) * step < 10


def test_steps_that_cannot_matter_are_not_looked_for(monkeypatch):
    costs = Costs(1e-7, 0.0, 600.0)
    monkeypatch.setattr(module, "_Timed", lambda *args: costs)
    monkeypatch.setattr(module, "_size", lambda cell: None)
    cell = Network(Problem("mlp:784-8-10", "mnist"), 0, Recipe(steps=1000, check=2000))
    assert module._whole(cell, "cpu") == pytest.approx(602, rel=0.01)
    assert len(costs.asked) < 6


def test_a_draw_is_judged_on_all_examples(monkeypatch):
    costs = Costs(0.03, 0.0, 3.0)
    monkeypatch.setattr(module, "_Timed", lambda *args: costs)
    monkeypatch.setattr(module, "_size", lambda cell: module._Size(60_000, 10_000))
    problem = Problem("mlp:784-8-10", "mnist")
    cell = LowDraws(On(Network(problem), problem), draws=500)
    assert module._whole(cell, "cpu") == pytest.approx(2.03 + 3.0 + 499 * 0.03 * 60_000 / 256, rel=0.01)


def test_passes_are_those_over_the_examples_that_there_are():
    network = Network(Problem("mlp:64-8-10", examples=50), 0)
    assert _passes(network, Recipe(steps=6, batch=128)) == 6
    assert _passes(network, Recipe(steps=6, batch=10)) == pytest.approx(1.2)
    assert _passes(network, Recipe("lbfgs", steps=6, batch=10)) == 6


def test_the_cells_of_a_kind_are_all_and_those_that_are_missing(tmp_path):
    cells = [Network(Problem("mlp:64-8-10", examples=50), seed, Recipe(steps=3), 0.0) for seed in range(3)]
    run_cells(cells[:2], Store(tmp_path), Local())
    kind, total = plan(cells, Store(tmp_path), "cpu")
    assert [(row["cells"], row["missing"]) for row in (kind, total)] == [(3, 1), (3, 1)]


def test_without_a_number_there_is_a_check_after_each_pass():
    assert module._checks(Recipe(steps=4000, batch=100), module._Size(2000, 0)) == 200
    assert module._checks(Recipe(steps=4000, batch=100, check=50), None) == 80
    assert module._checks(Recipe(steps=4000, batch=100), None) == 0


def test_few_examples_are_taken_of_both_kinds_and_what_a_cell_needs_is_shorter_still():
    short = module._Short(64, None, 16, module._Size(1024, 170))
    end = Network(Problem("mlp:784-8-10", "mnist"), 0, Recipe(steps=5000))
    found = short.of(Pair("toy", end, end, im.Bezier(recipe=Recipe(steps=2000))))
    assert (found.a.problem.examples, found.a.problem.tests, found.a.recipe.steps) == (1024, 170, 2)
    assert (found.method.recipe.steps, found.method.recipe.check) == (64, 16)
    assert short.of(replace(end, problem=replace(end.problem, tests=0))).problem.tests == 0


def test_a_training_that_stops_soon_is_timed_without_its_target(tmp_path):
    soon = Network(Problem("mlp:64-8-10"), 0, Recipe(steps=30_000, batch=50, check=100), target=2.0)
    row, _ = plan([soon], Store(tmp_path), "cpu")
    assert row["seconds each"] > 3  # 30,000 steps of a tenth of a millisecond at least


def test_what_is_timed_in_place_of_a_cell():
    cells = by_name("freeman2017").cells("laptop")
    string = next(c for c in cells if isinstance(c, String))
    proof = next(c for c in cells if isinstance(c, Proof))
    assert isinstance(string.like, Ends)
    assert string.like.recipe == string.method.recipe
    assert proof.like is None
    narrow = next(c for c in by_name("shevchenko2020").cells("paper") if isinstance(c, Trials) and c.schedule.reference)
    assert narrow.like.schedule.steps == narrow.schedule.at(narrow.N)[1] < narrow.schedule.steps
