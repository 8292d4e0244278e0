"""Networks with complex weights have units like others: found, matched, and checked."""

import pytest
import torch
from torch import nn

import isthmus as im
from tests.laws.test_methods import QUICK


class Complex(nn.Module):
    """Two hidden layers of complex units; the outputs are real."""

    def __init__(self, dtype):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8, dtype=dtype), nn.Linear(8, 8, dtype=dtype)
        self.c = nn.Linear(8, 3, dtype=dtype)

    def forward(self, x):
        h = self.a(x.to(self.a.weight.dtype))
        h = self.b(h * h.abs())
        return self.c(h * h.abs()).abs()


class ComplexOut(Complex):
    def forward(self, x):
        h = self.a(x.to(self.a.weight.dtype))
        return self.c(self.b(h * h.abs()))


TYPES = pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)


def problem(dtype, kind=Complex):
    torch.manual_seed(0)
    net = kind(dtype)
    x = torch.randn(20, 4, dtype=dtype.to_real())
    loss = "cross_entropy" if kind is Complex else lambda out, y: out.abs().mean(-1)
    return im.Objective(net, loss, (x, torch.arange(20) % 3)), {k: v.detach() for k, v in net.state_dict().items()}


def permuted(a):
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    return {**a, "a.weight": a["a.weight"][order], "a.bias": a["a.bias"][order], "b.weight": a["b.weight"][:, order]}


@TYPES
@pytest.mark.parametrize("matching", [im.WeightMatching(), im.ActivationMatching()], ids=lambda m: type(m).__name__)
@pytest.mark.filterwarnings("error")
def test_a_planted_order_of_complex_units_is_found(dtype, matching):
    objective, a = problem(dtype)
    found = im.align(objective, a, permuted(a), matching)
    assert found.moved == {"a": 1.0, "b": 0.0}
    assert found.distance[1] == 0
    assert found.function_error <= 1e-14


@TYPES
def test_activations_are_told_apart_by_their_imaginary_parts(dtype):
    """Units whose real parts are alike: i times a real number, so that all that tells them apart is imaginary."""
    objective, a = problem(dtype)
    turned = {**a, "a.weight": 1j * a["a.weight"].real, "a.bias": 1j * a["a.bias"].real}
    found = im.align(objective, turned, permuted(turned), im.ActivationMatching())
    assert found.distance[1] == 0


@TYPES
def test_a_change_of_complex_outputs_is_seen(dtype):
    from isthmus.alignment.change import change

    objective, a = problem(dtype, ComplexOut)
    assert change(objective, a, permuted(a), 20) <= 1e-14
    other = {**a, "c.bias": a["c.bias"] + 1j}
    assert change(objective, a, other, 20) > 0.1
    assert change(objective, a, {**a, "c.bias": a["c.bias"] * torch.nan}, 20) != change(objective, a, a, 20)


@TYPES
def test_every_method_makes_a_path_or_refuses(dtype):
    objective, a = problem(dtype)
    b = {k: v.flip(0) for k, v in a.items()} | {"a.weight": a["a.weight"] * 2}
    made = []
    for kind in im.METHODS:
        try:
            found = im.connect(objective, a, b, QUICK.get(kind) or kind())
        except im.IsthmusError:
            continue
        made.append(kind)
        assert im.profile(objective, found, 5).max >= 0
    assert {im.Linear, im.Aligned, im.StringSampling} <= set(made)


def test_complex_outputs_have_no_error_beside_a_loss_of_the_users():
    _, a = problem(torch.complex64, ComplexOut)
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    objective = im.Objective(
        ComplexOut(torch.complex64), lambda out, y: nn.functional.cross_entropy(out.abs(), y, reduction="none"), (x, y)
    )
    assert not objective.has_error
    measured = im.profile(objective, im.connect(objective, a, permuted(a)), 3)
    assert measured.error.isnan().all()
    assert measured.max > 0
