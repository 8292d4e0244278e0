"""Appendix A of Freeman and Bruna: springs, the hyperplane, and a string that goes down as a whole."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch

import isthmus as im
from isthmus.connectors.strings.constrained import SOFT, pull
from isthmus.params import distance, equal
from isthmus.storage.methods import connector_from
from tests.connectors.strings.strings import LEVEL, Mortal, highest, quadratic, with_deaths


def quick(**options: Any) -> im.ConstrainedStringSampling:
    known = {"threshold": LEVEL, "lr": 0.01, "batch": 64, "check": 10, "steps": 3000, "schedule": "constant"}
    return connector_from({"name": "ConstrainedStringSampling"} | known | options)  # type: ignore[return-value]


@cache
def found(**options: Any) -> tuple[im.Objective, im.Connection]:
    objective, a, b = quadratic()
    return objective, im.connect(objective, a, b, quick(**options))


def points(*rows: list[float]) -> list[im.Params]:
    return [
        {"v": torch.tensor(row[:2], dtype=torch.float64), "w": torch.tensor([row[2:]], dtype=torch.float64)}
        for row in rows
    ]


def stacked(beads: list[im.Params]) -> im.Params:
    return {k: torch.stack([p[k] for p in beads]).requires_grad_() for k in beads[0]}


A, FIRST, SECOND, B = points([0, 0, 0], [1, 2, 2], [3, 1, -1], [6, 0, 0])


def test_the_springs_are_the_distances_of_the_neighbours():
    value = pull(stacked([FIRST, SECOND]), [0, 1], A, B, zeta=0.5, kappa=0.0).detach()
    lengths = [distance(A, FIRST), distance(FIRST, SECOND), distance(SECOND, B)]
    assert float(value) == pytest.approx(0.5 * (lengths[0] + 2 * lengths[1] + lengths[2]), rel=1e-12)
    only = pull(stacked([FIRST, SECOND]), [1], A, B, zeta=0.5, kappa=0.0).detach()
    assert float(only) == pytest.approx(0.5 * (lengths[1] + lengths[2]), rel=1e-12)


def test_the_hyperplane_is_equidistant_from_the_neighbours_wherever_the_origin_is():
    on = points([3.0, 2.0, -1.0])  # as far from A as from B
    off = points([4.0, 2.0, -1.0])
    for shift in (0.0, 100.0):
        a, b, p, q = ({k: v + shift for k, v in x.items()} for x in (A, B, on[0], off[0]))
        assert pull(stacked([p]), [0], a, b, zeta=0.0, kappa=1.0).item() == pytest.approx(0.0, abs=1e-12)
        # n = (1, 0, 0), d = (1, 2, -1), softened at a hundredth of the neighbours' distance
        expected = 1 / (6 + (SOFT * 6) ** 2) ** 0.5
        assert pull(stacked([q]), [0], a, b, zeta=0.0, kappa=1.0).item() == pytest.approx(expected, rel=1e-9)


def test_neighbours_are_held_still_and_each_bead_feels_its_own_terms():
    beads = stacked([FIRST, SECOND])
    pull(beads, [0], A, B, zeta=1.0, kappa=0.5).backward()
    assert all(bool((v.grad[1] == 0).all()) for v in beads.values() if v.grad is not None)
    flat = torch.cat([beads["v"].grad[0], beads["w"].grad[0].flatten()])  # type: ignore[index]
    h, slope = 1e-6, []
    for k in range(3):
        moved = []
        for step in (h, -h):
            row = [1.0, 2.0, 2.0]
            row[k] += step
            moved.append(pull(stacked([*points(row), SECOND]), [0], A, B, zeta=1.0, kappa=0.5).item())
        slope.append((moved[0] - moved[1]) / (2 * h))
    torch.testing.assert_close(flat, torch.tensor(slope).double(), rtol=1e-6, atol=1e-8)
    middle = stacked(points([3, 0, 0]))  # on the line, in the middle: no NaN
    pull(middle, [0], A, B, zeta=1.0, kappa=1.0).backward()
    assert all(bool(v.grad.isfinite().all()) for v in middle.values() if v.grad is not None)


def test_the_string_goes_down_level_by_level():
    objective, connection = found()
    stats = connection.stats
    assert connection.outcome.ok
    assert highest(objective, connection.path) <= LEVEL
    levels = [row["level"] for row in stats["levels"]]
    assert all(p > q for p, q in pairwise(levels))
    assert levels[-1] == stats["level"] == LEVEL
    assert all(row["maximum"] <= row["level"] for row in stats["levels"])
    assert stats["beads"] == len(connection.path) - 1 == stats["levels"][-1]["beads"] >= 3


@pytest.mark.parametrize("options", [{}, {"batched": False}, {"position": "half", "kappa": 0.0}])
def test_a_search_killed_at_random_moments_ends_with_the_same_string_bit_for_bit(options):
    objective, a, b = quadratic()
    alone = found(**options)[1]
    checkpoint = Mortal(seed=2)
    again = with_deaths(checkpoint, objective, a, b, quick(**options))
    assert checkpoint.deaths > 2
    assert all(equal(p, q) for p, q in zip(alone.path.knots, again.path.knots, strict=True))
    assert again.stats["levels"] == alone.stats["levels"]
    with pytest.raises(im.InputError, match="the state of the same search"):
        im.connect(objective, a, b, quick(zeta=0.5), memory=checkpoint)


def test_batching_changes_the_speed_only():
    one, other = found()[1], found(batched=False)[1]
    assert one.stats["batched"] is True
    assert len(one.path) == len(other.path)
    for p, q in zip(one.path.knots, other.path.knots, strict=True):
        for name in p:
            torch.testing.assert_close(p[name], q[name], rtol=1e-7, atol=1e-9)


def test_springs_shorten_the_string():
    loose, tight = (found(zeta=zeta, kappa=0.0)[1] for zeta in (0.0, 3e-3))
    assert loose.outcome.ok
    assert tight.outcome.ok
    assert tight.stats["normalized_length"] < loose.stats["normalized_length"]


def test_below_one_twelfth_the_exchanged_networks_are_not_connected_and_the_level_reached_says_so():
    example = im.counterexamples.permutation()
    method = quick(threshold=0.03, batch=3, steps=300, patience=3)
    connection = im.connect(example.objective, *example.minima, method)
    assert connection.outcome in (im.Outcome.BEAD_FAILED, im.Outcome.SUSPECTED_DISCONNECTION)
    assert connection.stats["level"] > example.threshold
    assert example.threshold < highest(example.objective, connection.path) <= connection.stats["level"]
    assert connection.stats["evidence"]["level_tried"] < connection.stats["level"]


def test_no_room_for_more_beads_is_a_budget():
    objective, a, b = quadratic()
    connection = im.connect(objective, a, b, quick(beads=1))
    assert connection.outcome is im.Outcome.BUDGET_EXHAUSTED
    assert connection.stats["level"] > LEVEL
    assert highest(objective, connection.path) <= connection.stats["level"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"zeta": -1.0}, "zeta"),
        ({"kappa": float("inf")}, "kappa"),
        ({"fall": 1.0}, "fall"),
        ({"alpha": 2.0}, "alpha"),
        ({"beads": 0}, "beads"),
        ({"position": "end"}, "position"),
        ({"optimizer": "lbfgs"}, "optimizer"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(im.InputError, match=match):
        connector_from({"name": "ConstrainedStringSampling"} | options)
