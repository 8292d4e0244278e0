"""A proof that networks are not connected below a level: it must hold where there is a wall, and only there."""

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.analysis.separated import _Space


def hyperbolic(penalty=0.01, loss="mse"):
    """w tanh(v x): two parameters, and minima (v, w) and (-v, -w) behind the wall of the zero network."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)).double()
    x = torch.linspace(-2, 2, 8, dtype=torch.float64)[:, None]
    y = 2 * torch.tanh(1.5 * x)
    return im.Objective(net, loss, (x, y), penalty=im.Ridge(penalty) if penalty else None)


def point(v, w) -> im.Params:
    tensors = (torch.tensor([[u]], dtype=torch.float64) for u in (v, w))
    return dict(zip(("0.weight", "2.weight"), tensors, strict=True))


A, B = point(1.4, 2.0), point(-1.4, -2.0)


def test_a_wall_is_proved_and_never_above_a_path_that_exists():
    objective = hyperbolic(penalty=0.1)
    wall = objective.loss(point(0.0, 0.0))
    path = im.profile(objective, im.Path.through([A, point(0.0, 0.0), B])).max
    assert path == pytest.approx(wall)
    assert im.separated(objective, A, B, 0.5 * wall).proved
    assert im.separated(objective, A, B, 2.5 * wall).connected
    spent = im.separated(objective, A, B, 1.1 * wall, budget=100)
    assert not spent.proved
    assert not spent.connected
    assert spent.boxes <= 100


def test_without_a_penalty_a_component_must_keep_away_from_the_border():
    """The minima are the ends of no valley here; with sums of two linear factors they are hyperbolas, which leave."""
    objective = hyperbolic(penalty=0.0)
    assert im.separated(objective, A, B, 0.05, radius=4.0).proved
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    one = torch.ones(1, 1, dtype=torch.float64)
    linear = im.Objective(net, "mse", (one, one))
    ends: list[im.Params] = [{"0.weight": s * one, "1.weight": s * one} for s in (1, -1)]
    found = im.separated(linear, ends[0], ends[1], 0.5, radius=3.0, budget=150)
    assert not found.proved  # v w = 1 has two branches, but both reach every border
    assert "budget" in found.why
    with pytest.raises(im.InputError, match="radius: expected a number > 0, as nothing bounds"):
        im.separated(linear, ends[0], ends[1], 0.5)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_bounds_over_a_box_hold_at_its_points(loss):
    g = torch.Generator().manual_seed(0)
    if loss == "mse":
        objective, d = hyperbolic(), 2
    else:
        x = torch.randn(6, 1, generator=g, dtype=torch.float64)
        net = nn.Linear(1, 2).double()
        objective, d = im.Objective(net, data=(x, torch.arange(6) % 2), penalty=im.L1(0.1)), 4
    base = {k: torch.zeros_like(v) for k, v in objective.skeleton.to_empty(device="cpu").state_dict().items()}
    space = _Space.of(objective, base, 1.0, None)
    for width in (1e-9, 0.1, 2.0):
        for _ in range(10):
            lo = torch.randn(d, generator=g, dtype=torch.float64)
            hi = lo + width * torch.rand(d, generator=g, dtype=torch.float64)
            low, high = space.bounds(lo, hi)
            inner = [lo + (hi - lo) * u for u in (*torch.rand(10, d, generator=g, dtype=torch.float64), 0.0, 1.0)]
            losses = [objective.loss(space.params(w)) for w in inner]
            assert low <= min(losses) * (1 + 1e-12)
            assert max(losses) <= high * (1 + 1e-12)
            assert width > 1e-8 or high - low < 1e-6


def test_what_has_no_proof_is_refused():
    objective = hyperbolic()
    with pytest.raises(im.InputError, match="a: expected a loss of at most the level"):
        im.separated(objective, A, B, 0.01)
    net = nn.Linear(5, 1).double()
    x = torch.zeros(2, 5, dtype=torch.float64)
    five = im.Objective(net, "mse", (x, x[:, :1]))
    with pytest.raises(im.InputError, match="at most 4 parameters, got 6"):
        im.separated(five, net, net, 1.0)
    with pytest.raises(im.UnsupportedError, match="no lower bound over a box"):
        im.separated(hyperbolic(loss="l1"), A, B, 1.0)
    with pytest.raises(im.InputError, match="radius: expected at least 2, a weight of an end"):
        im.separated(hyperbolic(penalty=0.0), A, B, 1.0, radius=1.5)


def test_tied_weights_are_one_weight():
    """f(x) = w tanh(w x): its sign does not change, and at w = 0 it is 0."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)).double()
    net[2].weight = net[0].weight
    x, y = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[0.5], [0.7]]).double()
    objective = im.Objective(net, "mse", (x, y))
    a, b = ({k: torch.full((1, 1), v).double() for k in net.state_dict()} for v in (1.0, -1.0))
    wall = float(y.square().mean())
    assert im.separated(objective, a, b, 0.9 * wall, radius=3.0).proved
    assert im.separated(objective, a, b, 1.1 * wall, radius=3.0).connected
