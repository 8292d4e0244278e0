"""How near what is proved is: what is wider than it need be, or refused without a reason, is lost to the user."""

from itertools import pairwise
from math import inf

import pytest
import torch

from isthmus.certify.affine import Interval, Motion
from isthmus.certify.bounds import Bound
from isthmus.certify.cost import PROBED
from isthmus.certify.forms import Form
from isthmus.certify.model import NARROWEST_TRIED, _trial
from tests.certify.functions import F64, ruled


@pytest.mark.parametrize("end", [1.0, -1.0])
def test_a_cubic_leaves_a_quarter_of_its_last_term(end):
    """s^3 is within a quarter of 3 s / 4: twice that would double what a cubic path adds to its bounds."""
    control = [torch.tensor([v], dtype=F64) for v in (0.0, 0.0, 0.0, end)]
    form = Motion(control).over(Interval.between(0.0, 1.0))
    assert form.radius is not None
    assert float(form.radius) == pytest.approx(0.25 / 8, rel=1e-12)  # end t^3 = end (1 + s)^3 / 8


@pytest.mark.parametrize("name", ["elu", "selu", "celu"])
@pytest.mark.parametrize(("centre", "kept"), [(-1.0, 5e-4), (2.0, 1e-11)])
def test_a_kink_costs_nothing_where_it_is_not_reached(name, centre, kept):
    """What is left beside the parabola falls with the third power of the width, or is rounding on a straight part."""
    x = Form(torch.tensor([centre], dtype=F64), torch.tensor([0.1], dtype=F64))
    rule = ruled(name, alpha=0.4) if name != "selu" else ruled(name)
    radius = rule(x=x).settled().radius if centre > 0 else rule(x=x).radius
    assert float(radius) <= kept


def bound_of_power(power: float, at_probed: float, tried: list[float]):
    """A bound whose distance from a loss of 1, in units of a gap of 0.01, falls with a power of the width."""

    def bound(_: int, start: float, end: float) -> Bound:
        tried.append(end - start)
        return Bound(1.0 + 0.01 * at_probed * ((end - start) / PROBED) ** power, 0.0, 1.0)

    return bound


@pytest.mark.parametrize(("power", "factor"), [(2.0, 100.0), (3.0, 100.0), (2.0, 0.3)])
def test_a_trial_finds_the_power_and_the_width_that_brings_a_bound_near(power, factor):
    tried = list[float]()
    trial = _trial(bound_of_power(power, factor, tried), [0], 0.01, 1.0)
    assert all(later < earlier for earlier, later in pairwise(tried)) or factor <= 1
    assert trial.power == pytest.approx(power, rel=1e-3)
    assert trial.expected == pytest.approx(max(factor ** (1 / power) / PROBED, 8), rel=1e-3)


def test_a_bound_that_is_never_finite_is_tried_on_narrower_intervals_as_far_as_that_makes_sense():
    tried = list[float]()
    trial = _trial(bound_of_power(0.0, inf, tried), [0], 0.01, 1.0)
    assert trial.expected == inf
    assert tried == sorted(tried, reverse=True)
    assert NARROWEST_TRIED <= tried[-1] < 4 * NARROWEST_TRIED
