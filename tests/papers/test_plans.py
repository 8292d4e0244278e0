"""Every paper at every scale can be planned: each kind of its jobs has a short form that is made without an error."""

import pytest

from isthmus.experiments import SCALES, Network, On, Problem
from isthmus.experiments.plan import _draws, _kind, _longest, _passes, plan, shortened
from isthmus.papers import EXPERIMENTS, by_name
from isthmus.papers.kuditipudi2019.lemma3 import LowDraws
from isthmus.papers.shevchenko2020.jobs import Trials
from isthmus.sweep import Store, with_needs
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
    assert "nowhere.npz" in refused["cannot run"]


def test_schedules_of_all_kinds_are_shortened():
    trials = [c for c in by_name("shevchenko2020").cells("paper") if isinstance(c, Trials)]
    for cell in trials:
        brief = shortened(cell, 4)
        assert brief.schedule.steps == 4 < cell.schedule.steps
        assert brief.schedule.at(brief.N)[1] <= 16
        assert _longest(cell) == cell.schedule


def test_a_processor_that_waits_for_a_device_is_not_the_clock(monkeypatch):
    from isthmus.experiments import plan as module

    assert len(module._clocks("cpu")) == 2
    monkeypatch.setattr(module, "device_of", lambda name: type("Device", (), {"type": "cuda"}))
    assert module._clocks("cuda") == (module.time.perf_counter,)
