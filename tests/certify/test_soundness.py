"""Bounds against exact arithmetic: underflow, overflow, cancellation, padding; nothing that is proved is false."""

from __future__ import annotations

from fractions import Fraction
from math import inf, isfinite

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus as im
from isthmus.certify.bounds import Bounds
from isthmus.certify.kernel import Kernel
from tests.certify.cases import CASES
from tests.certify.rational import F64, ONE, chain, drawn, exact_mse, numbers, of, weights

RELU = chain([1, 1, 1])
FLAT = chain([1, 1, 1, 1, 1], None)
FLAT_RELU = chain([1, 1, 1, 1, 1])
WIDE = chain([1, 3, 1])
SMALL = (1e-170, 1e-170, 1e170, 1e170)


FALSE = {
    "a slope that is too small": (RELU, [of(RELU, -1e-305, 1e305), of(RELU, 1e-305, 1e305)]),
    "the smallest numbers": (RELU, [of(RELU, -5e-324, 1e308), of(RELU, 5e-324, 1e308)]),
    "the least slope": (RELU, [of(RELU, -1e-301, 1e301), of(RELU, 1e-301, 1e301)]),
    "products that vanish": (FLAT, [of(FLAT, *SMALL), of(FLAT, *(1.5 * v for v in SMALL))]),
    "ReLUs that vanish": (FLAT_RELU, [of(FLAT_RELU, *SMALL), of(FLAT_RELU, *(1.5 * v for v in SMALL))]),
    "a convex claim that vanishes": (FLAT, [of(FLAT, *SMALL), of(FLAT, 2e-170, *SMALL[1:])]),
    "a curve that vanishes": (
        FLAT,
        [of(FLAT, *SMALL), of(FLAT, *(3 * v for v in SMALL)), of(FLAT, *(0.5 * v for v in SMALL))],
    ),
    "a sum that loses a one": (WIDE, [weights(WIDE, [[1e16], [1.0], [1e16]], [[1.0, 1.0, -1.0]])] * 2),
    "a last layer that loses a one": (
        WIDE,
        [
            weights(WIDE, [[1e16], [1.0], [1e16]], [[1.0, 1.0, -1.0]]),
            weights(WIDE, [[1e16], [1.0], [1e16]], [[1.0, 0.5, -1.0]]),
        ],
    ),
    "equal units whose sum loses a one": (
        WIDE,
        [
            weights(WIDE, [[1.0], [1.0], [1.0]], [[1e16, 1.0, -1e16]]),
            weights(WIDE, [[1.0], [1.0], [1.0]], [[1e16, 0.0, -1e16]]),
        ],
    ),
}


@pytest.mark.parametrize("name", FALSE)
def test_no_bound_is_below_exact_arithmetic(name):
    module, points = FALSE[name]
    objective = im.Objective(module, "mse", ONE)
    path = im.Path((im.Curve(tuple(points)),))
    c = im.certify(objective, path)
    relu = any(isinstance(m, nn.ReLU) for m in module)
    true = max(exact_mse(points, Fraction(k, 16), *ONE, relu) for k in range(17))
    assert true > 1e-31
    assert not c.proved or Fraction(c.bound) >= true
    assert im.verify_certificate(objective, path, c.to_dict()) == []


def test_a_slope_that_is_too_small_is_bounded_closely_now():
    module, points = FALSE["a slope that is too small"]
    c = im.certify(im.Objective(module, "mse", ONE), im.Path.through(points))
    assert c.proved
    assert 1 <= c.bound <= 1.01


@pytest.mark.parametrize("k", [-1000, -970, -300, -20, 3, 400, 960, 1000])
@pytest.mark.parametrize("bent", [False, True])
def test_rescaled_layers_have_no_lower_bound(k, bent):
    """A factor of 2^k between two layers changes no function: the bound is the same, larger, or refused."""
    module = chain([3, 6, 2])
    g = torch.Generator().manual_seed(0)
    points = [drawn(module, g) for _ in range(2 + bent)]
    x, y = torch.randn(5, 3, generator=g, dtype=F64), torch.randn(5, 2, generator=g, dtype=F64)
    objective = im.Objective(module, "mse", (x, y))
    first, last = module.state_dict()
    moved = [{first: p[first] * 2.0**k, last: p[last] * 2.0**-k} for p in points]
    for start, end in ((0.0, 0.125), (0.5, 0.5 + 2.0**-12)):
        plain = Bounds(objective, objective.program, points).over(start, end).loss
        found = Bounds(objective, objective.program, moved).over(start, end).loss
        assert found >= plain * (1 - 1e-12)
        if k > -970 and not bent:
            assert found <= plain * (1 + 1e-6)
        places = [Fraction(start) + Fraction(end - start) * Fraction(j, 4) for j in range(5)]
        true = max(exact_mse(points, t, x, y, True) for t in places)
        assert not isfinite(found) or Fraction(found) >= true


@pytest.mark.parametrize("seed", range(24))
def test_no_bound_is_below_exact_arithmetic_where_values_almost_vanish(seed):
    """Layers scaled so that what is between them has sizes from 2^-1072 to 2^900, and the outputs are those of 1."""
    g = torch.Generator().manual_seed(seed)
    module = chain([3, 3, 3, 2], nn.ReLU)
    sizes = [(-1072, -1060, -1040, -1020, -700, 0, 900)[int(k)] for k in torch.randint(0, 7, (2,), generator=g)]
    points = [drawn(module, g) for _ in range(2 + seed % 3)]
    for p in points:
        for name, before, after in zip(p, [0, *sizes], [*sizes, 0], strict=True):
            k = after - before
            p[name] = p[name] * 2.0 ** (k // 2) * 2.0 ** (k - k // 2)  # 2^1072 is no number
    curve = im.Curve(tuple(points))
    x, y = torch.randn(2, 3, generator=g, dtype=F64), torch.zeros(2, 2, dtype=F64)
    objective = im.Objective(module, "mse", (x, y))
    bounds = Bounds(objective, objective.program, curve.control)
    for start, end in ((0.0, 1.0), (0.5, 0.5 + 2.0**-12), (0.25, 0.25 + 2.0**-22)):
        found = bounds.over(start, end).loss
        places = [Fraction(start) + Fraction(end - start) * Fraction(j, 4) for j in range(5)]
        assert not isfinite(found) or Fraction(found) >= max(
            exact_mse(list(curve.control), t, x, y, True) for t in places
        )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["unchanged", "convex", "bounded", "curve"])
def test_every_claim_at_a_point_is_above_the_exact_loss_of_a_net_that_cancels(kind, seed):
    """Two halves that compute the same and are subtracted, but for a part in 1e9."""
    g = torch.Generator().manual_seed(seed)
    half, v = torch.randn(6, 4, generator=g, dtype=F64) * 1e3, torch.randn(1, 6, generator=g, dtype=F64) * 1e3
    module = chain([4, 12, 1, 1], nn.ReLU)
    head = torch.cat([v, -v * (1 + 1e-9)], 1)
    a = weights(module, torch.cat([half, half]), head, [[1.0]])
    ends = {
        "unchanged": [a, a],
        "convex": [a, {**a, "4.weight": a["4.weight"] * (1 - 1e-7)}],
        "bounded": [a, {k: p * (1 + 1e-9) for k, p in a.items()}],
        "curve": [a, {k: p * (1 + 1e-9) for k, p in a.items()}, a],
    }[kind]
    x, y = torch.randn(3, 4, generator=g, dtype=F64), torch.zeros(3, 1, dtype=F64)
    objective = im.Objective(module, "mse", (x, y))
    c = im.certify(objective, im.Path((im.Curve(tuple(ends)),)), budget=16)
    assert c.segments[0].claim == {"curve": "bounded"}.get(kind, kind)
    true = max(exact_mse(ends, Fraction(k, 4), x, y, True) for k in range(5))
    assert true <= Fraction(c.bound)


def test_equal_units_are_equal_in_exact_arithmetic_alone():
    """Two units whose merged rows are equal only after rounding are not the same: handing weight over changes it."""
    module = chain([1, 2, 2, 2, 1])
    first, rows = [[1.0], [1.0]], [[1e16, 1.0], [1e16, 0.0]]
    a = weights(module, first, rows, [[0.0, 0.0], [1e-16, 0.0]], [[1.0, 1.0]])
    b = {**a, "4.weight": numbers(1.0, -1.0, 1e-16, 0.0).view(2, 2)}
    objective = im.Objective(module, "mse", ONE)
    path = im.Path.through([a, b])
    c = im.certify(objective, path)
    assert c.segments[0].claim != "unchanged"
    true = max(exact_mse([a, b], Fraction(k, 8), *ONE, True) for k in range(9))
    assert true > exact_mse([a, b], Fraction(0), *ONE, True)
    assert Fraction(c.bound) >= true


@pytest.mark.parametrize(("claim", "factor", "least"), [("unchanged", 1, 0.25), ("convex", 10_000, 6e6)])
def test_a_rounded_sum_of_weights_is_in_the_bound_of_what_does_not_change(claim, factor, least):
    """A hat on top makes the loss rise between the ends of what rounding hides: 1e16 + 1 is 1e16."""
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    a = {
        "0.weight": numbers(1, 1).view(2, 1), "0.bias": numbers(0, 0),
        "2.weight": numbers(1e16, 1, 1e16, 1).view(2, 2), "2.bias": numbers(-1e16, -1e16 - 0.5),
        "4.weight": numbers(1, -2).view(1, 2), "4.bias": numbers(0),
    }  # fmt: skip
    b = {**a, "2.weight": numbers(1e16, 0, 1e16, 0).view(2, 2), "4.weight": factor * a["4.weight"]}
    c = im.certify(im.Objective(module, "mse", ONE), im.Path.through([a, b]))
    assert c.segments[0].claim == claim
    assert c.bound >= least


def test_an_exact_claim_whose_rounding_has_no_bound_is_only_measured():
    """The root of 0 is 0, and of what rounding may leave below 0 no number."""

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), Root(), nn.Linear(1, 1)).double()
    a = {
        "0.weight": numbers(1).view(1, 1),
        "0.bias": numbers(-2),
        "3.weight": numbers(1).view(1, 1),
        "3.bias": numbers(0),
    }
    c = im.certify(im.Objective(module, "mse", ONE), im.Path.through([a, {**a, "3.bias": numbers(1)}]))
    assert c.segments[0].claim == "measured"
    assert "the rounding of the loss at a control point has no finite bound" in c.segments[0].why


# -- every rule with padding, ties and entries below -1e150


class Pooled(nn.Module):
    """A convolution, f, a head and a tanh, so that losses stay small."""

    def __init__(self, f, read: int, two: bool = False) -> None:
        super().__init__()
        self.f, self.head = f, nn.Linear(read, 1, bias=False)
        self.conv = nn.Conv2d(1, 1, 1, bias=False) if two else nn.Conv1d(1, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.head(self.f(self.conv(x)).flatten(1)))


POOLED = {
    "max, padded": (lambda h: F.max_pool1d(h, 3, 2, 1), 3, False),
    "max, padded, dilated": (lambda h: F.max_pool1d(h, 2, 1, 1, 2), 5, False),
    "max of images, padded": (lambda h: F.max_pool2d(h, 3, 2, 1), 9, True),
    "max, adaptive": (lambda h: F.adaptive_max_pool1d(h, 1), 1, False),
    "average, padded": (lambda h: F.avg_pool1d(h, 3, 2, 1), 3, False),
    "average of images, padded": (lambda h: F.avg_pool2d(h, 3, 2, 1, count_include_pad=False), 9, True),
    "average, divided by a negative number": (lambda h: F.avg_pool2d(h, 3, 2, 1, divisor_override=-7), 9, True),
    "average, adaptive": (lambda h: F.adaptive_avg_pool2d(h, (2, 3)), 6, True),
    "zero padding, then max": (lambda h: F.max_pool1d(F.pad(h, (1, 1)), 3, 2), 3, False),
    "padding below, then max": (lambda h: F.max_pool1d(F.pad(h, (1, 1), value=-1e200), 3, 2), 3, False),
    "windows as columns": (lambda h: F.unfold(h, 3, padding=1, stride=2), 81, True),
    "maximum of two": (lambda h: torch.maximum(h, h.flip(2)), 5, False),
    "minimum of two": (lambda h: torch.minimum(h, h.roll(1, 2)), 5, False),
    "clamp": (lambda h: h.clamp(min=-1e151), 5, False),
    "leaky": (lambda h: F.leaky_relu(h, 0.3), 5, False),
    "absolute": (torch.abs, 5, False),
    "masked": (lambda h: h.masked_fill(torch.tensor([True, False, True, False, False]), -2e153), 5, False),
}


@pytest.mark.parametrize("name", POOLED)
def test_padding_ties_and_entries_far_below(name):
    f, read, two = POOLED[name]
    module = Pooled(f, read, two).double()
    g = torch.Generator().manual_seed(1)
    x = -torch.randint(1, 4, (4, 1, 5, 5) if two else (4, 1, 5), generator=g).double()  # ties, and all below zero
    objective = im.Objective(module, "mse", (x, torch.zeros(4, 1, dtype=F64)))
    head = torch.randn(1, read, generator=g, dtype=F64) / read
    for size in (1e152,) if name == "masked" else (1e-160, 1.0, 1e152):
        a = {"conv.weight": torch.full_like(module.conv.weight, size).detach(), "head.weight": head / size}
        b = {"conv.weight": a["conv.weight"] * 1.01, "head.weight": a["head.weight"] * 0.97}
        path = im.Path.through([a, b])
        c = im.certify(objective, path, budget=16)
        assert c.segments[0].claim == "bounded", (size, c.segments[0].why)
        values = [objective.loss(path.at(k / 25)) for k in range(26)]
        assert max(values) <= c.bound, size
        if size >= 1:
            assert c.bound <= 1.05 * max(values) + 1e-9, size
        assert im.verify_certificate(objective, path, c.to_dict()) == [], size


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_no_sample_exceeds_a_bound_whatever_the_size_of_the_weights(case):
    objective = case.objective()
    for scale in (1e-320, 1e-200, 1e-30, 1e30, 1e120):
        points = [{k: v * scale if v.is_floating_point() else v for k, v in p.items()} for p in case.control(1)]
        curve = im.Curve(tuple(points))
        bounds = Bounds(objective, objective.program, curve.control)
        for start, end in ((0.0, 1.0), (0.5, 0.5625), (0.25, 0.25 + 2.0**-20)):
            found = bounds.over(start, end).loss
            for t in (start, (start + end) / 2, end):
                value = objective.loss(curve.at(t))
                assert found == float("inf") or value <= found, (scale, start)  # and no NaN


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_no_sample_exceeds_a_bound_by_the_gradient(case):
    objective = case.objective()
    for degree, seed in ((1, 0), (3, 1)):
        g, curve = torch.Generator().manual_seed(degree + seed), im.Curve(tuple(case.control(degree, seed)))
        bounds = Bounds(objective, objective.program, curve.control)
        for width in (0.1, 0.004):
            start = float(torch.rand((), generator=g)) * (1 - width)
            bound = bounds.over(start, start + width, followed=True)
            plain = bounds.over(start, start + width)
            for t in torch.linspace(start, start + width, 5).double().clamp(start, start + width).tolist():
                assert objective.loss(curve.at(t)) <= bound.loss
            assert bound.loss <= plain.loss * (1 + 1e-9) + 1e-9 or bound.loss < inf


def test_points_that_segments_share_are_bounded_once():
    module = chain([2, 5, 3])
    g = torch.Generator().manual_seed(0)
    a = drawn(module, g)
    knots = [{**a, "2.weight": torch.randn(3, 5, generator=g, dtype=F64)} for _ in range(6)]
    x, y = torch.randn(6, 2, generator=g, dtype=F64), torch.arange(6) % 3
    kernel = Kernel(im.Objective(module, data=(x, y)), im.Path.through(knots))
    for i, segment in enumerate(kernel.path.segments):
        found = kernel.claim(segment)
        assert found.kind == "convex"
        kernel.exact(i, found)
    assert len(kernel._points) == 6
