"""Appendix D.1 of Freeman and Bruna, and the number 1/12."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

import isthmus as im
from isthmus.objective.data import single
from isthmus.params import equal, lerp

example = im.counterexamples.permutation()


def test_both_networks_solve_the_task_and_differ_by_an_exchange_of_units():
    x, y = single(example.objective.data[0]), example.objective.data[1]
    assert torch.equal(y, x[[1, 2, 0]])
    torch.testing.assert_close(x @ x.T, 1.5 * torch.eye(3).double() - 0.5)
    one, two = example.minima
    assert max(example.objective.loss(p) for p in example.minima) < 1e-30
    assert torch.equal(two["0.weight"], one["0.weight"][[1, 0, 2]])
    assert torch.equal(two["2.weight"], one["2.weight"][:, [1, 0, 2]])
    assert sum(v.numel() for v in one.values()) == 12
    line = max(example.objective.loss(lerp(one, two, k / 200)) for k in range(201))
    assert line == pytest.approx(0.2708, abs=1e-4)


@pytest.mark.parametrize("r", [2.0, 0.3, 0.01, 1e-4])
def test_networks_with_two_units_come_as_near_to_one_twelfth_as_one_likes(r):
    params = example.two_units(r)
    value = (1 - (2 - r) ** 2 / (3 * (2 + r * r))) / 4
    assert example.objective.loss(params) == pytest.approx(value, rel=1e-9)
    assert value > example.lower_bound
    assert bool((params["0.weight"][2] == 0).all())
    assert abs(example.side(params)) < 1e-12
    if r < 1e-3:
        assert value < example.threshold * 1.001


def test_no_network_whose_activations_are_dependent_is_below_one_twelfth():
    """The step of the proof, on random singular H with columns that are not negative, those of units among them."""
    generator = torch.Generator().manual_seed(0)
    x, y = single(example.objective.data[0]), example.objective.data[1]
    best = 1.0
    for k in range(3000):
        pair = torch.rand(3, 2, generator=generator, dtype=torch.float64) ** (1 + 8 * (k % 2))
        if k % 3 == 0:  # columns of real units: relu(X w)
            pair = (x @ torch.randn(2, 2, generator=generator, dtype=torch.float64)).relu()
        mixed = pair @ torch.rand(2, 1, generator=generator, dtype=torch.float64)
        H = torch.cat([pair, mixed], 1)
        V = torch.linalg.lstsq(H, y, driver="gelsd").solution
        best = min(best, float((H @ V - y).square().mean()))
    assert example.lower_bound * (1 - 1e-9) <= best < 0.1


def test_the_bound_is_one_twelfth():
    assert example.exact == Fraction(1, 12)
    assert example.lower_bound == example.threshold == 1 / 12
    with pytest.raises(im.InputError, match="r: expected a number > 0"):
        example.two_units(0.0)


@pytest.mark.parametrize("level", [0.08, 0.02])
def test_the_string_ends_as_not_connected_below_the_threshold(level):
    assert level < example.threshold
    method = im.StringSampling(level, recipe=im.Recipe(lr=0.01, steps=1500, batch=3, check=20))
    connection = im.connect(example.objective, *example.minima, method)
    assert connection.outcome is im.Outcome.SUSPECTED_DISCONNECTION
    evidence = connection.stats["evidence"]
    assert [row["depth"] for row in evidence] == list(range(6))
    assert all(row["maximum"] > example.threshold for row in evidence)
    assert evidence[-1]["maximum"] - level > 0.8 * (evidence[0]["maximum"] - level)
    assert evidence[-1]["length"] < evidence[0]["length"]
    signs = [example.side(p) > 0 for p in connection.path.knots]
    assert signs[0]
    assert not signs[-1]
    assert all(v <= level for v in connection.stats["values"])
    # the beads fall into two groups, and the maximum stands between them
    change = [i for i in range(len(signs) - 1) if signs[i] != signs[i + 1]]
    assert len(change) == 1
    assert im.profile(example.objective, im.Path((connection.path.segments[change[0]],)), 101).max > example.threshold
    soon = im.StringSampling(level, recipe=im.Recipe(lr=0.01, steps=1500, batch=3, check=20), patience=2)
    with pytest.raises(im.OutcomeError, match="persists"):
        im.connect(example.objective, *example.minima, soon, throw=True)


def test_above_it_the_string_may_connect_them():
    connection = im.connect(
        example.objective, *example.minima, im.StringSampling(0.2, recipe=im.Recipe(lr=0.01, steps=2000, batch=3))
    )
    assert connection.outcome.ok
    assert im.profile(example.objective, connection.path, 101).max <= 0.2
    assert not equal(connection.path.start, connection.path.end)
