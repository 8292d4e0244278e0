"""Theorem 4 of Kuditipudi et al.: the data set entry by entry, the minima, and the bound from both sides."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import isthmus as im
from isthmus.counterexamples.barrier import analytic_bound, multistart, one_unit
from isthmus.counterexamples.disconnected import integers
from isthmus.objective.data import single
from isthmus.params import equal

PAIRS = [(2, 3, 6, 9, 12), (2, 3, 6, 8, 10), (2, 5, 10, 13, 16), (2, 2, 5, 7, 9)]
ADMISSIBLE = [*PAIRS, (3, 4, 8, 11, 15), (4, 6, 12, 14, 19)]
cases = pytest.mark.parametrize("numbers", ADMISSIBLE, ids=str)
pairs = pytest.mark.parametrize("numbers", PAIRS, ids=str)


def test_the_data_set_for_two_units_by_hand():
    x, y = integers(2, 3, 6, 9, 12)
    assert x == [
        [1, 0, 1, -1], [2, 1, -1, 1], [3, 2, 1, -1],
        [4, 3, 0, 1], [5, 4, 1, 0], [6, 5, 0, 1],
        [-1, 0, 0, 0], [0, -1, 0, 0], [-1, 0, 0, 0],
        [0, 0, -1, 0], [0, 0, 0, -1], [0, 0, -1, 0],
    ]  # fmt: skip
    assert y == [1] * 6 + [0] * 6


@cases
def test_the_data_set_by_blocks(numbers):
    """The picture of Figure 4, built from identity matrices repeated downwards."""
    h, k, l, m, n = numbers
    x, y = (np.array(v) for v in integers(*numbers))
    first = np.arange(1, l + 1)

    def repeated(block, rows):
        return np.tile(block, (rows // len(block) + 1, 1))[:rows]

    one = np.eye(h, dtype=int)
    assert (x[:l, 0] == first).all()
    assert (x[:l, 1] == first - 1).all()
    assert (x[:k, 2:] == repeated(2 * one - 1, k)).all()
    assert (x[k:l, 2:] == repeated(one, l)[k:]).all()  # the cycle goes on over the border at k
    assert (x[l:m, :2] == repeated(-np.eye(2, dtype=int), m - l)).all()
    assert (x[l:m, 2:] == 0).all()
    assert (x[m:, :2] == 0).all()
    assert (x[m:, 2:] == repeated(-one, n - m)).all()
    assert (y == (np.arange(1, n + 1) <= l)).all()


@cases
def test_the_data_set_as_printed_has_zero_loss_too_so_only_the_entries_tell(numbers):
    """First match of the printed cases: -1 for all i <= l off the residue, so that rows (k, l] are wrong."""
    _, k, l, _, _ = numbers
    x, y = integers(*numbers)
    printed = [list(row) for row in x]
    for i in range(k + 1, l + 1):
        printed[i - 1][2:] = [v if v == 1 else -1 for v in printed[i - 1][2:]]
    assert printed != x
    example = im.counterexamples.disconnected(*numbers)
    wrong = example.objective.on((torch.tensor(printed).double(), torch.tensor(y).double()[:, None]))
    assert [wrong.loss(p) for p in example.minima] == [0.0, 0.0]


@cases
def test_both_minima_have_loss_exactly_zero(numbers):
    example = im.counterexamples.disconnected(*numbers)
    h = numbers[0]
    assert [example.objective.loss(p) for p in example.minima] == [0.0, 0.0]
    many, two = example.minima
    assert (many["2.weight"] == 1).all()
    assert torch.equal(many["0.weight"], torch.cat([torch.zeros(h, 2), torch.eye(h)], 1).double())
    assert two["2.weight"].tolist() == [[1.0, -1.0] + [0.0] * (h - 2)]
    assert int((two["0.weight"] != 0).sum()) == 2
    assert two["0.weight"][0, 0] == two["0.weight"][1, 1] == 1
    x, y = single(example.objective.data[0]), example.objective.data[1]
    assert x.shape == (numbers[-1], h + 2)
    assert y.shape == (numbers[-1], 1)
    assert (example.objective.named_loss, example.objective.convex, example.objective.penalty) == ("mse", True, None)
    assert set(example.objective.parameter_names) == {"0.weight", "2.weight"}  # no biases


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ((1,), "h: expected at least 2"),
        ((2, 1, 6, 9, 12), "k: expected at least 2 for h = 2, got 1"),
        ((2, 3, 5, 9, 12), "l - k: expected at least 3 for h = 2, got 2"),
        ((2, 3, 6, 7, 12), "m - l: expected at least 2 for h = 2, got 1"),
        ((2, 3, 6, 9, 10), "n - m: expected at least 2 for h = 2, got 1"),
        ((2.0,), "h: expected a whole number"),
        ((2, True), "k: expected a whole number"),
    ],
)
def test_numbers_that_the_proof_does_not_cover_are_refused(numbers, match):
    with pytest.raises(im.InputError, match=match):
        im.counterexamples.disconnected(*numbers)


# -- the bound


@pytest.mark.parametrize(
    ("numbers", "value"),
    [
        (ADMISSIBLE[0], Fraction(121, 2895)),
        (ADMISSIBLE[1], Fraction(1, 20)),
        (ADMISSIBLE[2], Fraction(315, 7628)),
    ],
)
def test_the_bound_for_two_units_is_a_rational_number(numbers, value):
    example = im.counterexamples.disconnected(*numbers)
    assert example.exact == value
    assert example.lower_bound == example.barrier.value == float(value)
    assert "exact" in example.barrier.how


def one_unit_loss(numbers):
    x, y = (np.array(v, dtype=float) for v in integers(*numbers))
    return lambda a: float(((np.maximum(x @ a, 0) - y) ** 2).mean())


@pairs
def test_the_exact_minimum_is_attained_and_no_start_gets_below(numbers):
    found = one_unit(*integers(*numbers))
    loss = one_unit_loss(numbers)
    assert loss(np.array(found.minimiser[0])) == pytest.approx(found.value, rel=1e-12)
    assert multistart(*integers(*numbers), units=1, starts=200, rounds=2).value == pytest.approx(found.value, rel=1e-6)
    rng = np.random.default_rng(0)
    for scale in (0.01, 0.1, 1.0):
        near = np.array(found.minimiser[0]) + scale * rng.normal(size=(2000, 4))
        assert min(map(loss, near)) >= found.value * (1 - 1e-12)


@pytest.mark.parametrize("numbers", [(2, 15, 30, 38, 40), (2, 6, 25, 34, 42), (2, 12, 23, 32, 35)], ids=str)
def test_long_blocks_have_an_exact_minimum_too(numbers):
    found = one_unit(*integers(*numbers))
    assert found.exact is not None
    assert one_unit_loss(numbers)(np.array(found.minimiser[0])) == pytest.approx(float(found.exact), rel=1e-12)
    assert multistart(*integers(*numbers), units=1, starts=100, rounds=1).value >= found.value * (1 - 1e-9)


@pairs
def test_the_exact_minimum_is_that_of_all_patterns_one_by_one(numbers):
    """Every on-off pattern of the points with y = 1 as a convex problem of its own, solved by another method."""
    x, y = (np.array(v, dtype=float) for v in integers(*numbers))
    ones, zeros = x[y == 1], x[y == 0]
    best = np.inf
    for pattern in product((False, True), repeat=len(ones)):
        on = ones[np.array(pattern)]

        def convex(a, on=on):
            r, z = on @ a - 1, np.maximum(zeros @ a, 0)
            return (r @ r + z @ z), 2 * (on.T @ r + zeros.T @ z)

        found = minimize(convex, np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-10})
        best = min(best, found.fun + pattern.count(False))
    assert one_unit(*integers(*numbers)).value == pytest.approx(best / len(y), rel=1e-9)


@cases
def test_every_step_of_the_proof_for_many_units_holds_on_random_networks(numbers):
    h, k, l, _, n = numbers
    x, y = (np.array(v, dtype=float) for v in integers(*numbers))
    rng = np.random.default_rng(0)
    bound = float(analytic_bound(*numbers))
    rho = k % h  # the residue class of row k + 1, counted from 0
    starts = [np.eye(h)[: h - 1] @ np.eye(h + 2)[2:]] + [rng.normal(size=(h - 1, h + 2)) for _ in range(200)]
    starts += [np.abs(A) * 0.5 for A in starts[1:100]]
    starts += [np.array(multistart(*integers(*numbers), h - 1, 50, 1).minimiser)]
    for A in starts:
        f = np.maximum(x @ A.T, 0).sum(1)
        r = np.abs(f - y)
        N = np.maximum(-A, 0).sum(0)
        P, Q = np.maximum(A[:, :2], 0).sum(0)
        for j in range(h + 2):  # (1)
            copies = [i for i in range(n) if x[i, j] == -1 and np.abs(x[i]).sum() == 1 and i >= l]
            assert copies
            assert all(abs(r[i] - N[j]) < 1e-12 for i in copies)
        slack = 1e-9 * (1 + np.abs(A).sum() * l)
        assert h * (P + Q) <= r[k] + r[k + h] + (h + k + 1) * N[0] + (h + k) * N[1] + N[2 + rho] + slack  # (2)
        positive = np.maximum(A[:, 2:], 0)
        nobody = [s for s in range(h) if (positive[:, s] <= positive.sum(1) - positive[:, s]).all()]
        assert nobody
        for s in nobody:  # (3)
            others = N[2:].sum() - N[2 + s]
            assert 1 - r[s] <= (s + 1) * P + s * Q + others + slack
        assert (r**2).mean() >= bound


def test_for_more_units_the_bound_is_proved_and_the_barrier_an_estimate():
    example = im.counterexamples.disconnected(3)
    assert example.exact is None
    assert "estimate" in example.barrier.how
    assert 0 < example.lower_bound < example.barrier.value
    assert example.barrier.value == pytest.approx(0.01951, abs=2e-5)
    A = torch.tensor(example.barrier.minimiser, dtype=torch.float64)
    inner = {"0.weight": torch.cat([A, torch.zeros(1, 5)]).double(), "2.weight": torch.ones(1, 3).double()}
    assert example.objective.loss(inner) == pytest.approx(example.barrier.value, rel=1e-12)
    for h in range(2, 9):
        small = im.counterexamples.disconnected(h)
        assert 0 < analytic_bound(h, small.k, small.l, small.m, small.n) < 1
    two = im.counterexamples.disconnected(2)
    assert float(analytic_bound(2, two.k, two.l, two.m, two.n)) < two.lower_bound


# -- from above


def test_a_trained_chain_comes_close_to_the_bound_and_not_below():
    example = im.counterexamples.disconnected()
    seen = []
    found = im.counterexamples.smallest_found(
        example, seeds=(0, 1), steps=300, progress=lambda what, done, total: seen.append(what)
    )
    assert example.lower_bound <= found.maximum < 1.05 * example.lower_bound
    assert found.maximum == min(found.all)
    assert len(found.all) == 2
    assert equal(found.path.start, example.minima[0])
    assert equal(found.path.end, example.minima[1])
    profile = im.profile(example.objective, found.path, 201)
    assert profile.max == pytest.approx(found.maximum, rel=1e-3)
    assert any("seed 1" in what for what in seen)
    line = im.connect(example.objective, *example.minima)
    assert im.profile(example.objective, line.path, 101).max > 10 * found.maximum
    assert im.certify(example.objective, line.path).bound > example.lower_bound


@cases
def test_no_chain_however_short_its_training_is_below_the_bound(numbers):
    example = im.counterexamples.disconnected(*numbers)
    for pivots, noise in ((1, 0.0), (4, 1.0)):
        found = im.counterexamples.smallest_found(
            example, pivots=pivots, noise=noise, seeds=(0,), steps=20, num_points=2
        )
        assert found.maximum >= example.lower_bound
        assert len(found.path) == pivots + 1


def test_misuse_of_the_search_is_refused():
    example = im.counterexamples.disconnected()
    for make in (
        lambda: im.counterexamples.smallest_found(example, pivots=0),
        lambda: im.counterexamples.smallest_found(example, seeds=()),
        lambda: im.counterexamples.smallest_found(example, steps=0),
        lambda: im.counterexamples.smallest_found(example, num_points=1),
    ):
        with pytest.raises(im.InputError, match="pivots, steps"):
            make()


class Slice(nn.Module):
    """The networks between the minima whose first output weight is 1: both first layers mixed, the second weight."""

    def __init__(self, many, two):
        super().__init__()
        self.many, self.two = nn.Buffer(many), nn.Buffer(two)
        self.mix = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        h = torch.relu(nn.functional.linear(x, self.mix[0] * self.many + self.mix[1] * self.two))
        return h[:, :1] + self.w * h[:, 1:]


def test_boxes_prove_what_the_theorem_says_on_a_slice_through_both_minima():
    """The theorem has B_2 for every path; covering the slice with boxes proves a wall without knowing it."""
    example = im.counterexamples.disconnected()
    module = Slice(*(p["0.weight"].clone() for p in example.minima))
    objective = im.Objective(module, "mse", example.objective.data)
    ends = [{"mix": torch.tensor(m), "w": torch.tensor([w])} for m, w in (([1.0, 0.0], 1.0), ([0.0, 1.0], -1.0))]
    ends = [{**module.state_dict(), **{k: v.double() for k, v in end.items()}} for end in ends]
    level = 0.002
    assert level < example.lower_bound
    assert im.separated(objective, ends[0], ends[1], level, radius=2.0).proved
