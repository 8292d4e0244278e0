"""What a proof may cost by default, and what a certificate says of a proof that is far from what was measured."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.certify.bounds import Bound
from isthmus.certify.branch import Piece
from isthmus.certify.certificate import Certificate, SegmentCertificate
from isthmus.certify.certify import _sources
from isthmus.certify.cost import PROFILES, Count
from isthmus.certify.model import _trial
from isthmus.sweep import certify_in_parallel
from tests.problems import PROBLEMS, Atan, odd_widths, random_params, two_layers


def straight(problem):
    return im.Path.through([problem.a, problem.b])


def deep(layers=9, scale=1.0):
    """A network whose bounds are useless on wide intervals."""
    hidden = [p for _ in range(layers) for p in (nn.Linear(12, 12), nn.ReLU())]
    module = nn.Sequential(*hidden, nn.Linear(12, 3)).double()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 12, generator=g, dtype=torch.float64)
    a, b = ({k: scale * v for k, v in random_params(module, s).items()} for s in (1, 2))
    return im.Objective(module, data=(x, torch.arange(40) % 3)), im.Path.through([a, b])


# -- the default budget


@pytest.mark.parametrize("make", PROBLEMS)
def test_the_default_budget_costs_at_most_thirty_profiles_in_operations(make):
    p = make()
    path = straight(p)
    im.certify(p.objective, path, budget=0.1)  # reads the graph
    im.profile(p.objective, path, 21)
    with Count() as measuring:
        im.profile(p.objective, path, 21)
    found = im.certify(p.objective, path, 0.5, num_points=21)
    assert found.cost <= PROFILES == found.budget
    with Count() as one:
        im.certify(p.objective, path, 1e-12, budget=1e-3, num_points=21)
    with Count() as proving:
        short = im.certify(p.objective, path, 1e-12, budget=4, num_points=21)
    assert proving.cost - one.cost <= 1.05 * 4 * measuring.cost
    if short.spent:  # and does not stop far below
        assert proving.cost >= 0.3 * 4 * measuring.cost


def test_the_budget_follows_the_points_of_the_profile_and_the_segments():
    p = odd_widths()
    path = straight(p)
    few, many = (
        im.certify(p.objective, path, 1e-12, model="box", budget=8, num_points=n).evaluations for n in (11, 61)
    )
    assert many / few == pytest.approx(61 / 11, rel=0.2)
    twice = im.certify(p.objective, path + path.reversed(), 1e-12, model="box", budget=8).evaluations
    assert twice / many == pytest.approx(2, rel=0.1)


def test_free_segments_give_no_budget_and_need_none():
    p = odd_widths()
    last = [k for k in p.a if p.a[k].shape[0] == 4]
    moved = {k: v + 1 if k in last else v for k, v in p.a.items()}
    found = im.certify(p.objective, im.Path.through([p.a, moved]))
    assert (found.counts, found.budget, found.evaluations, found.close) == ({"convex": 1}, 0, 0, True)


def test_a_segment_that_moves_little_gets_what_its_own_measuring_costs():
    """The layers below the two that move are run once by the profile: 30 profiles are less than 30 passes a point."""
    objective, path = deep(30)
    last = {k: path.end[k] if int(k.split(".")[0]) >= 58 else v for k, v in path.start.items()}
    upper = im.Path.through([path.start, last])
    im.certify(objective, upper, budget=0.1)
    with Count() as measuring:
        im.profile(objective, upper, 21)
    with Count() as one:
        im.certify(objective, upper, 1e-12, budget=1e-3, num_points=21)
    with Count() as proving:
        im.certify(objective, upper, 1e-12, budget=10, num_points=21)
    assert proving.cost - one.cost <= 1.05 * 10 * measuring.cost


def test_a_given_budget_keeps_its_meaning():
    p = odd_widths()
    for budget in (1, 2.5):
        found = im.certify(p.objective, straight(p), 1e-12, model="box", budget=budget)
        assert found.budget == budget
        assert 0.5 * budget < found.cost <= budget
        assert found.spent
    least = im.certify(p.objective, straight(p), 1e-12, budget=1e-9)  # one bound of the whole segment in any case
    assert (least.evaluations, least.proved) == (1, True)


def test_what_has_no_rule_has_no_budget_to_spend():
    p = two_layers()
    module = nn.Sequential(nn.Linear(5, 9), Atan(), nn.Linear(9, 4)).double()
    found = im.certify(im.Objective(module, data=p.objective.data), straight(p))
    assert (found.proved, found.close, found.spent) == (False, False, False)
    assert found.summary.startswith("not proved: 1 of 1 segments is only measured: atan (")
    assert found.summary.endswith("return x.atan()): it has no rule for affine forms")


def test_operations_are_counted_the_same_every_time():
    p = odd_widths()
    p.objective.loss(p.a)  # checks the weights, the first time
    costs = []
    for _ in range(2):
        with Count() as work:
            p.objective.loss(p.a)
        costs.append(work.cost)
    assert costs[0] == costs[1] > 0


# -- what a certificate says of itself


def test_a_useless_bound_is_no_success():
    objective, path = deep()
    found = im.certify(objective, path, budget=0.5)
    assert found.proved
    assert not found.close
    assert found.spent
    ratio = found.bound / found.witness[1]
    assert ratio > 2
    assert found.summary.startswith(f"proved, but {float(f'{ratio:.2g}'):.0f} times the measured maximum (")
    assert "the budget of 0.5 profiles was spent; about " in found.summary
    stored = found.to_dict()
    assert (stored["close"], stored["spent"], stored["summary"]) == (False, True, found.summary)


def test_a_bound_within_the_gap_is_close():
    found = im.certify(two_layers().objective, straight(two_layers()), 0.05, budget=20)
    assert found.close
    assert not found.spent
    assert found.expected is None
    assert found.summary.startswith("proved: at most ")
    assert found.gap <= 0.05


@pytest.mark.parametrize("make", [two_layers, odd_widths])
@pytest.mark.parametrize("gap", [0.01, 1e-4])
def test_the_budget_that_is_expected_to_do_does(make, gap):
    p = make()
    path = straight(p)
    short = im.certify(p.objective, path, gap, budget=0.2)
    assert short.spent
    assert short.expected is not None
    enough = im.certify(p.objective, path, gap, budget=short.expected)
    assert enough.close
    assert enough.cost > short.expected / 600  # and says not anything


@pytest.mark.parametrize(("power", "near"), [(2, 1 / 10), (8, 1 / 25), (8, 1 / 60), (8, 1 / 400), (3, 1 / 2000)])
def test_a_trial_expects_what_bounds_that_fall_with_that_power_need(power, near):
    """The excess is the gap asked for on sub-intervals of width `near`, also where that is wider than the first one."""
    trial = _trial(lambda i, start, end: Bound(1 + 0.01 * ((end - start) / near) ** power, 0.0, 1.0), [0], 0.01, 1.0)
    assert trial.expected == pytest.approx(max(8, 1 / near), rel=0.01)


def test_no_budget_is_promised_where_none_would_do():
    exact = SegmentCertificate(0, "convex", 2.0, "why", 0.0, value=1.0)
    far = Certificate((exact,), (1.0, 1.0), "float64", 0.0, 0.01)
    assert (far.close, far.expected) == (False, None)
    assert far.summary == "proved, but 2 times the measured maximum (1): a larger budget would not lower it"
    pieces = SegmentCertificate(1, "bounded", 1.5, "why", 0.0, value=1.0, intervals=((0.0, 1.0, 1.5),))
    both = Certificate((exact, pieces), (1.0, 1.0), "float64", 0.0, 0.01, 1, 1.0, True, 1.0)
    assert both.expected is None
    assert "none is expected to bring it within reach" in both.summary
    only = replace(both, segments=(replace(pieces, index=0),))
    assert only.expected == pytest.approx(1 + 32 / 3)  # quarters of quarters: 8 sub-intervals, and those above them
    hopeless = replace(pieces, bound=1e30, intervals=((0.0, 1.0, 1e30),))
    assert replace(both, segments=(hopeless,)).expected is None


def test_a_maximum_of_zero_has_a_distance_and_not_a_ratio():
    piece = SegmentCertificate(0, "bounded", 0.5, "why", 0.0, value=0.0, intervals=((0.0, 1.0, 0.5),))
    found = Certificate((piece,), (0.0, 0.0), "float64", 0.0, 0.01, 1, 1, True)
    assert found.summary.startswith("proved, but 0.5 above the measured maximum (0): ")


# -- in parallel


def test_a_certificate_in_parts_knows_the_largest_loss_of_all_data():
    """Each part is close to its own samples, which are at other t; the whole is judged by samples of the whole."""
    p = two_layers()
    path = im.Path((im.Curve((p.a, {k: -9 * v for k, v in p.b.items()}, p.b)),))
    found = certify_in_parallel(p.objective, path, 0.01, chunk=7)
    t, value = found.witness
    assert value > 1.1 * max(found.ends)
    assert value == pytest.approx(p.objective.loss(path.at(t)))
    assert value == pytest.approx(im.profile(p.objective, path).max)
    assert found.close is (found.bound <= 1.01 * value)
    assert all(a[1] == b[0] for a, b in pairwise(found.segments[0].intervals))
    short = certify_in_parallel(p.objective, path, 1e-6, chunk=7, budget=0.5)
    assert (short.spent, short.budget, short.close) == (True, 0.5, False)
    assert not im.verify_certificate(p.objective, path, found.to_dict())


def test_what_makes_a_bound_dear_is_looked_for_in_the_middle_of_the_worst_piece():
    """At the ends of a line the loss is small, and what is followed back may never be nearer there."""
    asked = []

    def bound(segment, start, end, model):
        asked.append((segment, start, end))
        near = end - start < 1e-4 and start <= 0.75 <= end
        return Bound(1.0, 0.0, 1.0, shares={"one": 3.0, "two": 1.0} if near else {})

    pieces = {2: [Piece(2, 0.5, 1.0, 9.0, 0.0), Piece(2, 0.0, 0.5, 3.0, 0.0)]}
    found = _sources(SimpleNamespace(bound=bound), SimpleNamespace(pieces=pieces))  # type: ignore[arg-type]
    assert found == {"one": 0.75, "two": 0.25}
    assert asked[0] == (2, 0.5, 1.0)
    assert len(asked) < 7
