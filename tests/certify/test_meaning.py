"""What an operation or a loss means decides its bound, not the form that it was written in."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus as im
from isthmus.certify.kernel import Kernel
from isthmus.params import Params

F64 = torch.float64


def kernel(module: nn.Module, loss: Any, x: Tensor, y: Tensor, *points: Params) -> Kernel:
    return Kernel(im.Objective(module.double(), loss, (x, y)), im.Path((im.Curve(points),)))


def drawn(module: nn.Module, seed: int) -> Params:
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=g, dtype=F64) for k, v in module.state_dict().items()}


SAME = {
    "mse": ("mse", nn.MSELoss()),
    "mse, one by one": ("mse", nn.MSELoss(reduction="none")),
    "huber": ("huber", nn.HuberLoss()),
    "logits": ("bce_with_logits", nn.BCEWithLogitsLoss()),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_losses_that_are_met_at_both_ends_are_not_met_between(name, target):
    """The gradient is 0 at both ends: what the outputs do in between is seen by the curvature of the loss alone."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1))
    one = torch.ones(2, 1, dtype=F64)
    points = [
        {k: torch.full(v.shape, w, dtype=F64) for (k, v), w in zip(module.state_dict().items(), several, strict=True)}
        for several in ((0.0, 1.0, target), (1.0, 0.0, target))
    ]
    by_name, by_object = (kernel(module, loss, one, one * target, *points) for loss in SAME[name])
    for start, end in ((0.0, 1.0), (0.0, 0.5), (0.25, 0.75)):
        seen = max(by_object.loss(0, start + (end - start) * k / 32) for k in range(33))
        for model in ("box", "chord"):
            assert by_object.bound(0, start, end, model).loss >= seen
    if by_object.wide.named_loss:
        assert by_object.bound(0, 0.0, 1.0, "chord").loss == by_name.bound(0, 0.0, 1.0, "chord").loss


class Scaled(nn.Module):
    """Weights by their directions and lengths."""

    def __init__(self, dim: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.dim, self.v, self.g = dim, nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch._weight_norm(self.v, self.g, self.dim)).tanh()


@pytest.mark.parametrize(("dim", "shape"), [(0, (2, 1)), (1, (1, 3)), (-1, ()), (-1, (1, 3)), (-2, (2, 1))])
def test_lengths_of_weights_are_over_all_axes_but_one_and_over_all_for_the_axis_minus_1(dim, shape):
    module, g = Scaled(dim, shape), torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 3, generator=g, dtype=F64), torch.zeros(4, 2, dtype=F64)
    found = kernel(module, "mse", x, y, drawn(module, 1), drawn(module, 2))
    for start in (0.0, 0.4, 0.9):
        exact, bound = found.loss(0, start), found.bound(0, start, start + 1e-6)
        assert exact <= bound.loss <= exact * (1 + 1e-3)


class Shut(nn.Module):
    """Units that a constant of -infinity shuts."""

    def __init__(self, f: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.f, self.w = f, nn.Parameter(torch.zeros(shape))
        self.register_buffer("shift", torch.tensor([-torch.inf, 0.0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, self.w, self.shift).flatten(1).sigmoid()


def _convolved(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv1d(x[..., None], w, b)


@pytest.mark.parametrize(("f", "shape"), [(F.linear, (2, 3)), (_convolved, (2, 3, 1))])
def test_a_bias_of_minus_infinity_is_not_taken_for_zero(f, shape):
    module = Shut(f, shape)
    x, y = torch.ones(2, 3, dtype=F64), torch.ones(2, 2, dtype=F64)
    ends = drawn(module, 1), drawn(module, 2)
    c = im.certify(im.Objective(module.double(), "mse", (x, y)), im.Path.through(ends))
    assert not c.proved
    assert "entries of -infinity" in c.segments[0].why


class Bent(nn.Module):
    """Two equal units, of which a function of the outgoing weights is read."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.w, self.f = nn.Linear(1, 2, bias=False), nn.Parameter(torch.zeros(1, 2)), f

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.first(x).relu(), self.f(self.w))


BENT = {
    "squares": (torch.square, (2.0, 0.0)),
    "products": (lambda w: w * w, (2.0, 0.0)),
    "moduli": (torch.abs, (1.0, -1.0)),
    "roots": (lambda w: w * w.abs(), (2.0, 0.0)),
}


@pytest.mark.parametrize("name", BENT)
def test_outgoing_weights_that_are_bent_do_not_add_up(name):
    """Equal units hand weight to each other: that changes nothing only where the weights enter as they are."""
    f, (p, q) = BENT[name]
    module = Bent(f).double()
    ends = [{"first.weight": torch.ones(2, 1, dtype=F64), "w": torch.tensor([w], dtype=F64)} for w in ((p, q), (q, p))]
    one = torch.ones(2, 1, dtype=F64)
    y = module.f(ends[0]["w"]).sum() * one
    objective, path = im.Objective(module, "mse", (one, y)), im.Path.through(ends)
    middle = objective.loss(path.at(0.5))
    assert middle >= 1
    assert im.profile(objective, path, 3).loss[1] == pytest.approx(middle)
    c = im.certify(objective, path, 0.1)
    assert c.segments[0].claim == "bounded"
    assert c.bound >= middle
    straight = im.Objective(Bent(lambda w: 2 * w).double(), "mse", (one, y))
    assert im.certify(straight, path).segments[0].claim == "unchanged"


class Gated(nn.Module):
    """Two equal units, read through a function of two tensors, or of one whose shape depends on the data."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.f = nn.Linear(1, 2, bias=False), f
        self.w, self.g = nn.Parameter(torch.zeros(1, 2)), nn.Parameter(torch.zeros(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.f(self.w, self.g, x), self.first(x).relu()[..., None])[..., 0]


GATED = {
    "a product": (lambda w, g, x: w * g, (2.0, 0.0), (1.0, 0.0), 1.0),
    "a sum over nothing": (lambda w, g, x: torch.einsum("oi,oi->oi", w, g), (2.0, 0.0), (1.0, 0.0), 1.0),
    "one after another": (lambda w, g, x: torch.einsum("oi,i->oi", w, g[0]), (2.0, 0.0), (1.0, 0.0), 1.0),
    "moduli, one for each": (lambda w, g, x: w.expand(x.shape[0], 1, 2).abs() + 0 * g, (1.0, -1.0), (0.0, 0.0), 1.0),
    "moduli of multiples": (lambda w, g, x: (torch.ones_like(x)[..., None] * w).abs() + g, (1.0, -1.0), (0, 0), 1.0),
}


@pytest.mark.parametrize("name", GATED)
def test_products_of_outgoing_weights_and_functions_of_them_of_any_shape_do_not_add_up(name):
    f, w, gate, wall = GATED[name]
    module = Gated(f).double()
    ends = [
        {"first.weight": torch.ones(2, 1, dtype=F64)}
        | {k: torch.tensor([v], dtype=F64) for k, v in (("w", p), ("g", q))}
        for p, q in ((w, gate), (w[::-1], gate[::-1]))
    ]
    one = torch.ones(2, 1, dtype=F64)
    y = torch.func.functional_call(module, ends[0], one)
    objective, path = im.Objective(module, "mse", (one, y)), im.Path.through(ends)
    middle = objective.loss(path.at(0.5))
    assert middle >= wall
    assert im.profile(objective, path, 3).loss[1] == pytest.approx(middle)
    c = im.certify(objective, path, 0.1)
    assert c.segments[0].claim == "bounded"
    assert c.bound >= middle


def test_outgoing_weights_made_of_two_factors_add_up():
    factors = Gated(lambda w, g, x: g[:, :1] @ w).double()
    ends = [{"first.weight": torch.ones(2, 1, dtype=F64), "g": torch.ones(1, 2, dtype=F64)} for _ in range(2)]
    ends = [p | {"w": torch.tensor([w], dtype=F64)} for p, w in zip(ends, ((2.0, 0.0), (0.0, 2.0)), strict=True)]
    one = torch.ones(2, 1, dtype=F64)
    c = im.certify(im.Objective(factors, "mse", (one, 2 * one)), im.Path.through(ends))
    assert c.segments[0].claim == "unchanged"


class Read(nn.Module):
    """Two units behind a function of their own, the second of which nothing reads."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.f = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False), f

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.f(self.first(x)))


UNDEFINED = {
    "overflows": (torch.relu, 1e10, (0.0, 1e308, 0.0)),
    "has no value": (torch.reciprocal, 1.0, (1.0, 0.0, -1.0)),
    "lies on a line that overflows": (torch.relu, 1e-10, (1e308, -1e308)),
}


@pytest.mark.parametrize("last", [1.0, 2.0])
@pytest.mark.parametrize("name", UNDEFINED)
def test_a_unit_that_nothing_reads_and_has_no_value_is_not_left_out(name, last):
    f, x, several = UNDEFINED[name]
    ends = [
        {"first.weight": torch.tensor([[1 / x], [w]], dtype=F64), "last.weight": torch.tensor([[v, 0.0]], dtype=F64)}
        for w, v in zip(several, (1.0, *(last for _ in several[1:])), strict=True)
    ]
    one = torch.ones(2, 1, dtype=F64)
    found = kernel(Read(f), "mse", one * x, one, *ends)
    assert found.loss(0, 0.5) != found.loss(0, 0.5)
    claim = found.claim(found.path.segments[0])
    assert claim.kind == "measured"
    assert not found.bound(0, 0.25, 0.75).loss < torch.inf
    tame = kernel(Read(torch.relu), "mse", one, one, *(p | {"first.weight": torch.ones(2, 1).double()} for p in ends))
    assert tame.claim(tame.path.segments[0]).kind == ("unchanged" if last == 1 else "convex")
