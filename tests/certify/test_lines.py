"""Lines of weights over narrow intervals: exact points are within the form, which is hardly wider than it must be."""

import random
from fractions import Fraction

import pytest
import torch

import isthmus as im
from isthmus.certify.affine import NARROW_LINE, Interval, Motion, _lost_in_product, _lost_in_sum
from isthmus.certify.bounds import Bounds
from isthmus.certify.forms import UNIT

COUNT = 400


def _drawn(kind: str, r: random.Random) -> tuple[list[float], list[float]]:
    """Two ends; many of the lines between them pass near 0."""
    first = [r.uniform(-1, 1) * 2.0 ** r.choice((0, 0, -3, -30, 40)) for _ in range(COUNT)]
    second = [r.choice((-p, -p * r.uniform(0.2, 5), r.uniform(-1, 1), p)) for p in first]
    if kind == "float32":
        first, second = (torch.tensor(v).double().tolist() for v in (first, second))
    return first, second


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("half", [2.0**-10, 2.0**-14, 2.0**-21])
def test_every_point_of_the_line_is_in_its_form(kind, half):
    r = random.Random(f"{kind} {half}")
    first, second = _drawn(kind, r)
    middle = r.choice((r.random(), round(r.random() * 2**12) / 2**12))
    line = Motion([torch.tensor(v, dtype=torch.float64) for v in (first, second)])
    x = line.over(Interval(middle, half))
    slope = x.slope
    assert slope is not None
    m = x.size() if x.radius is None else x.size() + x.radius
    radius = m * x.ulps * UNIT if x.radius is None else m * x.ulps * UNIT + x.radius
    for s in (Fraction(-1), Fraction(0), Fraction(3, 7), Fraction(1)):
        t = Fraction(middle) + s * Fraction(half)
        for k in range(COUNT):
            exact = (1 - t) * Fraction(first[k]) + t * Fraction(second[k])
            seen = Fraction(float(x.centre[k])) + s * Fraction(float(slope[k]))
            assert abs(exact - seen) <= Fraction(float(radius[k])), (kind, half, k)


def test_what_a_sum_and_a_product_lose_is_exact():
    r = random.Random(0)
    p = torch.tensor([r.uniform(-1, 1) * 2.0 ** r.randint(-40, 40) for _ in range(COUNT)], dtype=torch.float64)
    q = torch.tensor([r.choice((-1, 1)) * r.uniform(0, 2) * abs(float(v)) for v in p], dtype=torch.float64)
    t = r.random()
    for k, (total, product) in enumerate(zip(_lost_in_sum(p, q, p + q), _lost_in_product(p, t, p * t), strict=True)):
        a, b = Fraction(float(p[k])), Fraction(float(q[k]))
        assert Fraction(float(total)) == a + b - Fraction(float(p[k] + q[k]))
        assert Fraction(float(product)) == a * Fraction(t) - Fraction(float(p[k] * t))


def test_weights_of_float32_at_a_dyadic_t_are_exact_and_huge_ones_have_a_form():
    torch.manual_seed(0)
    ends = [torch.randn(200).double() for _ in range(2)]
    narrow = Motion(ends).over(Interval(3 / 8, NARROW_LINE / 4))
    assert (narrow.radius, narrow.ulps) == (None, 16)
    huge = Motion([1e300 * v for v in ends]).over(Interval(3 / 8, NARROW_LINE / 4))
    assert huge.radius is None
    assert huge.ulps > 1000
    assert bool(huge.centre.isfinite().all())


def test_bounds_of_normalised_networks_do_not_grow_when_intervals_shrink():
    torch.manual_seed(1)
    layers = [m for _ in range(5) for m in (torch.nn.Linear(12, 12), torch.nn.LayerNorm(12), torch.nn.GELU())]
    module = torch.nn.Sequential(*layers, torch.nn.Linear(12, 3))
    x, y = torch.randn(8, 12), torch.arange(8) % 3
    objective = im.Objective(module, "cross_entropy", (x, y)).cast(torch.float64)
    ends = []
    for _ in range(2):
        for p in module.parameters():
            torch.nn.init.normal_(p, std=0.7)
        ends.append({k: v.detach().double().clone() for k, v in module.state_dict().items()})
    bounds = Bounds(objective, objective.program, ends)
    found = [bounds.over(0.3, 0.3 + 2.0**-k) for k in range(10, 23, 2)]
    above = [b.loss - b.estimate for b in found]
    assert above == sorted(above, reverse=True)
    assert above[-1] < 1e-6
