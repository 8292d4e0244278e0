"""The rules alone, losses and penalties, on numbers that underflow, overflow or cancel."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import isthmus as im
from isthmus.certify.affine import Interval, Motion
from isthmus.certify.arithmetic import add, average, contract, divided, multiply, scaled
from isthmus.certify.bounds import Bounds
from isthmus.certify.forms import Form
from isthmus.certify.kinks import maximum, piecewise, rectified
from tests.certify.rational import ONE, at, chain, fractions, numbers, of, weights

# -- the rules alone, on numbers that underflow


def inside(form: Form, exact: list[Fraction]) -> bool:
    form = form.settled()
    assert form.radius is not None
    pairs = zip(form.centre.flatten().tolist(), form.radius.flatten().tolist(), exact, strict=True)
    return all(abs(Fraction(c) - e) <= Fraction(r) for c, r, e in pairs)


TINY = [5e-324, -5e-324, 3e-310, -1e-200, 1e-170, 2.0, -1e300]


def test_rules_that_multiply_allow_for_underflow():
    values = [Fraction(v) for v in TINY]
    pairs = [(a, b) for a in TINY for b in TINY if abs(a * b) < 1e308]
    x, y = numbers(*(a for a, _ in pairs)), numbers(*(b for _, b in pairs))
    exact = [Fraction(a) * Fraction(b) for a, b in pairs]
    assert inside(multiply(Form(x), Form(y)), exact)
    assert inside(contract(lambda p, q, b: p * q, 1, Form(x), Form(y)), exact)
    for factor in (1e-200, 5e-324, 0.3, 1e5):
        assert inside(scaled(Form(numbers(*TINY)), factor), [v * Fraction(factor) for v in values])
    for divisor in (1e200, 3.0, -7.0):
        assert inside(divided(Form(numbers(*TINY)), divisor), [v / Fraction(divisor) for v in values])
    for leak in (0.0, 0.01, 5e-324):
        want = [max(v, Fraction(0)) + Fraction(leak) * min(v, Fraction(0)) for v in values]
        assert inside(rectified(Form(numbers(*TINY)), leak), want)
        assert inside(piecewise(lambda v, leak=leak: F.leaky_relu(v, leak), (0.0,), Form(numbers(*TINY))), want)
    few = numbers(5e-324, 5e-324, 1e-323)
    assert inside(average(lambda v: v.mean(1), 3, Form(few[None])), [Fraction(2.0**-1074) * 4 / 3])


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-305, 1e-295, 1.0, 1e300])
def test_chords_of_narrow_ranges(size):
    """max(v, 0) and max(v, w) at the ends and the kink of a range around zero, in rational numbers."""
    centres, slopes = torch.meshgrid(numbers(-1, -0.5, 0, 0.25, 1) * size, numbers(0.5, 1, 1.5) * size, indexing="ij")
    x = Form(centres.flatten().clone(), slopes.flatten().clone())
    relu, top = rectified(x).settled(), maximum(x, Form(torch.zeros_like(x.centre))).settled()
    for form in (relu, top):
        parts = [p.tolist() for p in (x.centre, x.slope, form.centre, form.slope, form.radius)]  # type: ignore[union-attr]
        for c, k, c0, c1, r in zip(*parts, strict=True):
            for s in (
                Fraction(-1),
                Fraction(0),
                Fraction(1),
                *([-Fraction(c) / Fraction(k)] if abs(c) <= abs(k) != 0 else []),
            ):
                v = Fraction(c) + s * Fraction(k)
                assert abs(max(v, Fraction(0)) - Fraction(c0) - s * Fraction(c1)) <= Fraction(r)


def test_many_small_sums_do_not_use_up_the_headroom():
    """1e16 + 1 + ... + 1 - 1e16: each sum loses its one."""
    x, one = Form(numbers(1e16)), Form(numbers(1.0))
    for _ in range(100):
        x = add(x, one)
    assert inside(add(x, Form(numbers(-1e16))), [Fraction(100)])


def test_weights_on_curves_allow_for_underflow():
    for degree in (1, 2, 3, 5):
        control = [numbers(5e-324 * (k % 3), 1e-310 * k, -5e-324 * k) for k in range(degree + 1)]
        motion, interval = Motion(control), Interval.between(0.25, 0.5)
        form = motion.over(interval)
        w = contract(lambda x, w, b: x * w, 1, Form(numbers(1e308, 1e308, 1e308)), form).settled()
        assert w.radius is not None
        for s in (-1, 0, 1):
            t = Fraction(interval.middle) + s * Fraction(interval.half)
            level = [[Fraction(float(v)) for v in p] for p in control]
            while len(level) > 1:
                level = [[a + t * (b - a) for a, b in zip(p, q, strict=True)] for p, q in pairwise(level)]
            slope = torch.zeros_like(w.centre) if w.slope is None else w.slope
            for v, c0, c1, r in zip(level[0], w.centre.tolist(), slope.tolist(), w.radius.tolist(), strict=True):
                assert abs(v * Fraction(1e308) - Fraction(c0) - s * Fraction(c1)) <= Fraction(r)


@pytest.mark.parametrize("degree", [2, 3, 5])
def test_a_curve_of_the_smallest_numbers_is_in_its_form_before_any_rule_allows_for_more(degree):
    control = [numbers(5e-324 * (k % 3), 1.5e-323 * k, -5e-324 * k) for k in range(degree + 1)]
    interval = Interval.between(0.25, 0.5)
    form = Motion(control).over(interval)
    assert form.radius is not None
    parts = [[Fraction(v) for v in p.tolist()] for p in (form.centre, form.slope, form.bend, form.radius)]  # type: ignore[union-attr]
    for s in (Fraction(-1), Fraction(0), Fraction(1)):
        (values,) = at(
            [[[Fraction(float(v)) for v in p]] for p in control],
            Fraction(interval.middle) + s * Fraction(interval.half),
        )
        for v, c0, c1, c2, r in zip(values, *parts, strict=True):
            assert abs(v - c0 - s * c1 - (s * s - Fraction(1, 2)) * c2) <= r


# -- losses and penalties


def swallowing(z: Tensor, y: Tensor) -> Tensor:
    """Convex, and says nothing of overflow."""
    return torch.nan_to_num(z, 0, 0, 0).abs().sum(1)


def test_outputs_that_are_not_finite_have_no_bound_whatever_the_loss_makes_of_them():
    module = chain([1, 1, 1])
    a, b = of(module, 1e160, 1e160), of(module, 1e150, 1e160)
    for loss in (swallowing, "mse"):
        objective = im.Objective(module, loss, ONE, convex=True)
        assert Bounds(objective, objective.program, (a, b)).over(0.0, 1.0).loss == float("inf")
    c = im.certify(im.Objective(module, swallowing, ONE, convex=True), im.Path.through([a, b]), budget=4)
    assert not c.proved


@pytest.mark.parametrize("penalty", [im.Ridge(1e300), im.L1(3.0), im.Ridge(1e-300)], ids=str)
def test_penalties_that_underflow_or_cancel(penalty):
    module = chain([1, 2, 1])
    a = weights(module, [[1e-170], [0.1]], [[1e-165, 0.3]])
    a = {k: v if isinstance(penalty, im.L1) else v * 1e-20 for k, v in a.items()}
    b = {k: -v for k, v in a.items()}
    objective = im.Objective(module, "mse", ONE, penalty=penalty)
    bounds = Bounds(objective, objective.program, (a, b))
    power = 1 if isinstance(penalty, im.L1) else 2
    for start, end in ((0.0, 1.0), (0.5, 0.5 + 2.0**-24), (0.3, 0.3)):
        low, high = bounds.penalty(start, end)
        for t, bound in ((Fraction(start), low), (Fraction(end), high)):
            entries = [(1 - 2 * t) * e for v in a.values() for row in fractions(v) for e in row]
            assert Fraction(penalty.kappa) * sum((abs(e) ** power for e in entries), Fraction(0)) <= Fraction(bound)
