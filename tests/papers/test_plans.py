"""Every paper at every scale can be planned: each kind of its jobs has a short form that is made without an error."""

import pytest

from isthmus.experiments import SCALES
from isthmus.experiments.plan import _draws, _kind, _longest, _passes, shortened
from isthmus.papers import EXPERIMENTS
from isthmus.sweep import with_needs


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("page", EXPERIMENTS, ids=lambda page: page.name)
def test_every_kind_of_job_has_a_short_form(page, scale):
    kinds = {_kind(cell): cell for cell in reversed(with_needs(page.cells(scale)))}
    assert kinds
    for cell in kinds.values():
        recipe = _longest(cell)
        brief = shortened(cell, 4, None if recipe else 1)
        assert type(brief) is type(cell)
        assert all(_longest(need) is None or _longest(need).steps <= 4 for need in with_needs([brief]))
        if recipe is None:
            assert _draws(brief) == 1
        else:
            passes = _passes(cell, recipe)
            assert passes is None or passes > 0


def test_a_processor_that_waits_for_a_device_is_not_the_clock(monkeypatch):
    from isthmus.experiments import plan

    assert len(plan._clocks("cpu")) == 2
    monkeypatch.setattr(plan, "device_of", lambda name: type("Device", (), {"type": "cuda"}))
    assert plan._clocks("cuda") == (plan.time.perf_counter,)
