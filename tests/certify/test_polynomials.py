"""Outputs that are polynomials in t: as near as one likes, for a few evaluations of the network, and never below."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.certify.kernel import Kernel
from isthmus.certify.polynomials import HIGHEST, Polynomials, coefficients
from tests.problems import random_params

F64 = torch.float64


class Factors(nn.Module):
    """Two factors of one matrix behind units that stay, and a norm with fixed statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.low, self.up = nn.Parameter(torch.ones(6, 2)), nn.Parameter(torch.ones(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.head(self.norm(h + h @ self.low @ self.up))


def linear(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(n, m) for n, m in zip(widths, widths[1:], strict=False))).double()


def through(module: nn.Module, points: int, moving: tuple[str, ...] = ()) -> im.Path:
    first, *more = (random_params(module, s) for s in range(1, points + 1))
    held = [{k: v if not moving or k in moving else first[k] for k, v in p.items()} for p in more]
    return im.Path((im.Curve((first, *held)),))


CASES = {
    "a line, ridge": (linear(4, 5, 5, 3), 2, "mse", im.Ridge(0.1), (), 3),
    "a curve": (linear(4, 6, 3), 3, "cross_entropy", None, (), 4),
    "ten layers": (linear(4, *[4] * 9, 3), 2, "cross_entropy", None, (), 10),
    "another loss": (linear(4, 5, 3), 2, "l1", None, (), 2),
    "two factors, a norm": (Factors().double().eval(), 2, "cross_entropy", None, ("low", "up", "norm.weight"), 3),
}


@pytest.mark.parametrize("name", CASES)
def test_bounds_are_above_all_samples_and_near(name):
    module, points, loss, penalty, moving, degree = CASES[name]
    g = torch.Generator().manual_seed(0)
    x, real = torch.randn(9, 4, generator=g, dtype=F64), torch.randn(9, 3, generator=g, dtype=F64)
    y = torch.arange(9) % 3 if loss == "cross_entropy" else real
    objective = im.Objective(module, loss, (x, y), penalty=penalty)
    path = through(module, points, moving)
    kernel = Kernel(objective, path)
    bounds = kernel.bounds(0)
    assert isinstance(bounds, Polynomials)
    assert bounds.degree == degree
    for start, end in ((0.0, 1.0), (0.25, 0.5), (0.625, 0.6875), (0.5, 0.5 + 2**-12), (1 - 2**-20, 1.0)):
        found = bounds.over(start, end)
        seen = [kernel.wide.measure(kernel.point(0, start + (end - start) * k / 16)) for k in range(17)]
        assert max(v for v, _ in seen) <= found.loss
        assert max(e for _, e in seen) <= found.error or loss != "cross_entropy"
        if end - start < 0.1:
            assert found.loss <= max(v for v, _ in seen) + 40 * degree**2 * (end - start) ** 2 + 1e-9
    c = im.certify(objective, path, 1e-6)
    assert (c.close, c.segments[0].claim) == (True, "bounded")
    assert f"polynomials in t of degree {degree}, on " in c.segments[0].why
    assert c.bound <= im.profile(objective, path, 701, bn="interpolate").max * (1 + 1e-5) + 1e-9
    assert im.verify_certificate(objective, path, c) == []


@pytest.mark.parametrize("share", [1.0, 3.0])
def test_roundings_are_part_of_the_bound(share):
    """Against exact fractions, where weights nearly vanish at t = 1 / (1 + share): what is left was rounded before."""
    module, x = linear(2, 3, 3, 1), torch.tensor([[0.3, -0.7]], dtype=F64)
    objective = im.Objective(module, "mse", (x, torch.zeros(1, 1, dtype=F64)))
    for seed in range(4):
        first = {k: 1e5 * v for k, v in random_params(module, seed).items()}
        last = {k: -share * v * (1 + 1e-9 * torch.rand_like(v)) for k, v in first.items()}
        bounds = Kernel(objective, im.Path.through([first, last])).bounds(0)
        assert isinstance(bounds, Polynomials)
        bounds.points[1] = 1 / (1 + share)
        ((centre, radius), _) = bounds._values[0]
        for j, t in enumerate(bounds.points):
            z = _exactly([first, last], x[0].tolist(), Fraction(t))
            assert abs(Fraction(float(centre[j])) - z) <= Fraction(float(radius[j]))
            for start in (max(t - 2.0**-24, 0.0), min(t, 1 - 2.0**-24)):
                assert Fraction(bounds.over(start, start + 2.0**-24).loss) >= z**2


def _exactly(control: list[dict[str, Tensor]], h: list[float], t: Fraction) -> Fraction:
    """The output of layers without activations, in exact fractions."""
    values = [Fraction(v) for v in h]

    def at(name: str, *index: int) -> Fraction:
        level = [Fraction(float(p[name][index])) for p in control]
        while len(level) > 1:
            level = [(1 - t) * p + t * q for p, q in zip(level, level[1:], strict=False)]
        return level[0]

    for l in range(3):
        rows, columns = control[0][f"{l}.weight"].shape
        values = [
            at(f"{l}.bias", i) + sum(at(f"{l}.weight", i, j) * values[j] for j in range(columns)) for i in range(rows)
        ]
    return values[0]


def test_coefficients_are_those_of_the_polynomial():
    """x^3 on [1/4, 1/2] has the coefficients s^(3 - k) e^k, from its values at any four points."""
    points = [0.0, 0.25, 0.875, 1.0]
    matrix = torch.tensor(coefficients(points, 0.25, 0.5), dtype=F64)
    values = torch.tensor(points, dtype=F64) ** 3
    assert (matrix @ values).tolist() == pytest.approx([0.25 ** (3 - k) * 0.5**k for k in range(4)], abs=1e-15)


@pytest.mark.parametrize("layers", [HIGHEST + 1, 3])
def test_other_networks_have_forms(layers):
    """Of too high a degree, and with an activation between weights that move."""
    module = linear(4, *[4] * (layers - 1), 3)
    if layers == 3:
        module.insert(1, nn.ReLU())
    objective = im.Objective(module, data=(torch.ones(3, 4, dtype=F64), torch.arange(3)))
    assert not isinstance(Kernel(objective, through(module, 2)).bounds(0), Polynomials)
