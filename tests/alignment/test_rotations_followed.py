"""What stands in the way of a rotation is named with its line; what does not is turned."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus as im
from isthmus.params import Params
from tests.alignment.test_rotations import drawn, places, turns_of


class Stream(nn.Module):
    """A function between the layer that makes the units and the one that reads them."""

    gain: nn.Parameter
    shift: nn.Parameter
    norm: nn.LayerNorm

    def __init__(self, f: Callable[[Stream, Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.e, self.h = f, nn.Linear(5, 12), nn.Linear(12, 2)
        parts = {"norm": nn.LayerNorm(12), "gain": nn.Parameter(torch.ones(12)), "shift": nn.Parameter(torch.ones(12))}
        for name in set(parts).intersection(f.__code__.co_names):  # a parameter that nothing reads is refused
            setattr(self, name, parts[name])

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        return self.h(self.f(self, x))


@cache
def objective_of(f: Callable[[Stream, Tensor], Tensor]) -> im.Objective:
    module = Stream(f).double().eval()
    return im.Objective(module, lambda out, y: out.flatten(1).square().mean(1), (places(), torch.zeros(4)))


def aligned(f: Callable[[Stream, Tensor], Tensor], same: Params | None = None) -> im.Alignment:
    objective = objective_of(f)
    a, b = (drawn(objective.skeleton, seed) | (same or {}) for seed in range(2))
    return im.align(objective, a, b, im.RotationMatching(3))


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5)


HINDERED: dict[str, tuple[Callable[[Stream, Tensor], Tensor], str]] = {
    "squares beside units": (lambda m, x: x.square() + x, "squares of units are added to something else"),
    "a number over units": (lambda m, x: torch.tensor(2.0).double() / x, "aten.div.Tensor ("),
    "units by units": (lambda m, x: x * (2 * x), "aten.mul.Tensor ("),
    "the square of a normed one": (lambda m, x: m.norm(x).square(), "aten.square.default ("),
    "a cube": (lambda m, x: x**3, "aten.pow.Tensor_Scalar ("),
    "a norm over places too": (lambda m, x: F.layer_norm(x, (5, 12)), "aten.layer_norm.default ("),
    "1 + a gain": (
        lambda m, x: F.layer_norm(x, (12,), 1 + m.gain), "a function of weights multiplies the units"
    ),
    "the mean of all": (lambda m, x: x - x.flatten(1).mean(1)[:, None, None], "aten.mean.dim ("),
    "the mean of a normed one": (lambda m, x: x - m.norm(x).mean(-1, keepdim=True), "aten.mean.dim ("),
    "the largest of the places": (lambda m, x: x + x.amax(1, keepdim=True), "aten.amax.default ("),
    "the spread over places": (lambda m, x: x + x.var(1, keepdim=True), "aten.var.dim ("),
    "a layer of squares": (
        lambda m, x: x + F.linear(x.square(), m.h.weight).sum(-1, keepdim=True), "aten.linear.default ("
    ),
    "a product with a gain": (lambda m, x: torch.einsum("bti,i->bti", x, m.gain), "aten.einsum.default ("),
    "a type of itself": (lambda m, x: x.type_as(2 * x), "aten.type_as.default ("),
}  # fmt: skip
KEPT: dict[str, Callable[[Stream, Tensor], Tensor]] = {
    "a norm by hand": lambda m, x: rms(x),
    "a norm by hand with a gain and a shift": lambda m, x: rms(x) * m.gain + m.shift,
    "the mean of a gain": lambda m, x: x * m.gain.mean(),
}
UNEQUAL: dict[str, Callable[[Stream, Tensor], Tensor]] = {
    "twice a norm": lambda m, x: m.norm(x) + m.norm(x),
    "one norm twice": lambda m, x: (lambda n: n + n)(m.norm(x)),
    "one norm and that of the place before": lambda m, x: (lambda n: n - n.roll(1, 1) / 2)(m.norm(x)),
    "a multiple of a norm": lambda m, x: 2 * m.norm(x),
    "the sum over places": lambda m, x: x + m.norm(x).sum(1, keepdim=True),
}
"""The shift of the norm counts another number of times than once, so that it cannot be moved into what reads it."""


@pytest.mark.parametrize("name", HINDERED)
def test_what_hinders_a_rotation_is_named(name: str) -> None:
    f, why = HINDERED[name]
    found = aligned(f)
    assert not turns_of(found)
    assert len(found.notes) == 1
    assert found.notes[0].startswith("e is renumbered, not rotated: ")
    assert why in found.notes[0]
    assert found.function_error <= 1e-12


@pytest.mark.parametrize("name", KEPT)
def test_what_commutes_with_rotations_is_rotated(name: str) -> None:
    found = aligned(KEPT[name])
    assert [t.kind for t in turns_of(found)] == ["rotation"]
    assert not found.notes
    assert found.function_error <= 1e-12
    assert found.distance[1] < found.distance[0]


@pytest.mark.parametrize("name", UNEQUAL)
def test_gains_that_no_weight_can_take_must_be_equal(name: str) -> None:
    """Where they are, the units are rotated."""
    found = aligned(UNEQUAL[name])
    assert not turns_of(found)
    assert "the gains 'norm.weight' are not equal, and what reads them is no weight of their own" in found.notes[0]
    equal = aligned(UNEQUAL[name], {"norm.weight": torch.ones(12).double(), "norm.bias": torch.zeros(12).double()})
    assert [t.kind for t in turns_of(equal)] == ["rotation"]
    assert equal.function_error <= 1e-12
