"""Propositions 2.1 and 2.3 of Freeman & Bruna 2017: what they say, and what they do not."""

from math import acos, cos, pi, sin

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.deep_linear.method import DeepLinear
from isthmus.stability.rectified import rectified_product
from tests.connectors.deep_linear.networks import linear, trained

F64 = torch.float64


def gaussian(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# -- Proposition 2.3


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_product_of_two_rectified_units_is_between_its_bounds(n):
    for seed in range(60):
        x = gaussian(40, n, seed=seed) * torch.logspace(-1, 1, n, dtype=F64) + gaussian(n, seed=seed + 1000)
        w1 = gaussian(n, seed=seed + 2000)
        w2 = w1 + gaussian(n, seed=seed + 3000) * 10.0 ** (seed % 5 - 3)
        p = rectified_product(x, w1, w2)
        assert p.lower - 1e-12 <= p.value <= p.upper + 1e-12
        # by hand: equation 7, term by term
        u1, u2 = w1 / w1.norm(), w2 / w2.norm()
        assert p.alpha == pytest.approx(acos(float((u1 @ u2).clamp(-1, 1))), abs=1e-7)
        assert p.value == pytest.approx(float((torch.relu(x @ u1) * torch.relu(x @ u2)).mean()), rel=1e-12)
        wm = (u1 + u2) / (u1 + u2).norm()
        energy = float(torch.relu(x @ wm).square().mean())
        sigma = float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1])
        assert p.upper == pytest.approx((1 + cos(p.alpha)) / 2 * energy, rel=1e-7)
        slack = 2 * sigma * ((1 - cos(p.alpha)) / 2 + sin(p.alpha) ** 2)
        assert p.upper - p.lower == pytest.approx(slack, rel=1e-6, abs=1e-12)


def test_the_bounds_close_as_the_angle_does_and_are_met():
    x, w = gaussian(200, 4, seed=1), gaussian(4, seed=2)
    side = gaussian(4, seed=3)
    widths = [(p := rectified_product(x, w, w + t * side)).upper - p.lower for t in (1e-1, 1e-2, 1e-3)]
    assert widths[0] / widths[1] == pytest.approx(100, rel=0.2)  # quadratic in the angle
    assert widths[1] / widths[2] == pytest.approx(100, rel=0.05)
    same = rectified_product(x, w, 3 * w)
    assert same.lower == pytest.approx(same.value, rel=1e-6)
    assert same.upper == pytest.approx(same.value, rel=1e-12)
    opposite = rectified_product(x, w, -w)
    assert (opposite.value, opposite.alpha) == (0.0, pi)
    assert opposite.upper == pytest.approx(0.0, abs=1e-15)


def test_what_is_no_direction_is_refused():
    x = gaussian(5, 3, seed=0)
    for w1, w2 in ((torch.zeros(3), torch.ones(3)), (torch.ones(3), torch.full((3,), float("nan")))):
        with pytest.raises(im.InputError, match="a length above 0"):
            rectified_product(x, w1, w2)
    with pytest.raises(im.InputError, match="shapes"):
        rectified_product(x, torch.ones(2), torch.ones(3))


# -- Proposition 2.1


def test_a_strict_local_minimum_that_is_not_global_disconnects_a_level_set():
    """(w1 w2 w3 - 1)^2 + 0.05 |w|^2: its origin is one, so that DeepLinear has to refuse ridge on three layers."""
    module = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(3)]).double()
    ones = torch.ones(1, 1, dtype=F64)
    objective = im.Objective(module, "mse", (ones, ones), penalty=im.Ridge(0.05))

    def at(*w):
        return {f"{i}.weight": torch.full((1, 1), float(v), dtype=F64) for i, v in enumerate(w)}

    origin = objective.loss(at(0, 0, 0))
    sphere = torch.nn.functional.normalize(gaussian(500, 3, seed=1), dim=1)
    for radius in (0.02, 0.1):
        assert min(objective.loss(at(*(radius * w).tolist())) for w in sphere) > origin
    assert objective.loss(at(0.95, 0.95, 0.95)) < origin
    with pytest.raises(im.UnsupportedError, match="strict local minimum"):
        im.connect(objective, at(0, 0, 0), at(0.95, 0.95, 0.95), DeepLinear())


def test_connected_level_sets_leave_no_poor_strict_minimum():
    """A unit to spare connects all level sets, and every descent ends at one loss."""
    problem = linear([3, 4, 3], penalty=im.Ridge(0.05), bias=False)
    starts = [{k: gaussian(*v.shape, seed=seed) for k, v in problem.a.items()} for seed in range(6)]
    losses = [problem.objective.loss(trained(problem, start)) for start in starts]
    assert max(losses) == pytest.approx(min(losses), rel=1e-6)


def test_plateaus_are_why_it_speaks_of_strict_minima_only():
    """(max(0, w) - 1)^2: all level sets are intervals, and every w < 0 is a local minimum of value 1."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()).double()
    ones = torch.ones(1, 1, dtype=F64)
    objective = im.Objective(module, "mse", (ones, ones))
    grid = torch.linspace(-3, 3, 601, dtype=F64)
    values = torch.tensor([objective.loss({"0.weight": w.view(1, 1)}) for w in grid])
    for level in (0.0, 0.3, 0.999, 1.0, 2.0):
        inside = (values <= level + 1e-12).int()
        assert int((inside[1:] != inside[:-1]).sum()) + int(inside[0]) <= 2  # one interval
    flat = values[grid < 0]
    assert bool((flat == 1).all())
    assert float(values.min()) == pytest.approx(0.0, abs=1e-12)
