"""State that a forward pass keeps outside its module, and examples that only a large batch ties together."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import isthmus as im
from isthmus.errors import UnsupportedError
from isthmus.objective.outside import outside
from tests.problems import blobs

N = 100
X, Y = blobs(N, (6,), 3)
NUMPYS, PYTHONS = np.random.default_rng(0), random.Random(0)
CALLS, MADE = [0], {}


class Drawing(nn.Module):
    """A linear layer and what the test's choice makes of its outputs."""

    calls = 0

    def __init__(self, then: Callable, prepare: Callable = lambda self: None) -> None:
        super().__init__()
        self.layer, self.then = nn.Linear(6, 3), then
        prepare(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.layer(x))


def rarely(z: Tensor, draw: Callable[[], float]) -> Tensor:
    return z * 2 if draw() < 1e-3 else z


def holding(make: Callable) -> Callable:
    return lambda self: setattr(self, "draws", make(0))


GENERATORS = {
    "numpy's, own": (lambda self, z: rarely(z, self.draws.random), holding(np.random.default_rng)),
    "numpy's old one, own": (lambda self, z: rarely(z, self.draws.rand), holding(np.random.RandomState)),
    "Python's, own": (lambda self, z: rarely(z, self.draws.random), holding(random.Random)),
    "numpy's, global": (lambda self, z: rarely(z, NUMPYS.random),),
    "Python's, global": (lambda self, z: rarely(z, PYTHONS.random),),
    "only for many": (lambda self, z: rarely(z, random.random) if len(z) > 50 else z,),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_that_are_nobodys_default_are_found(name):
    with pytest.raises(UnsupportedError, match=r"forward draws random numbers .* register them as a buffer"):
        im.Objective(Drawing(*GENERATORS[name]), data=(X, Y))


def counted(self: Drawing, z: Tensor) -> Tensor:
    CALLS[0] += 1
    return z * (1 + CALLS[0] // 10)


def counted_by_class(self: Drawing, z: Tensor) -> Tensor:
    type(self).calls += 1
    return z * (1 + type(self).calls // 10)


def closed(self: Drawing) -> None:
    calls = [0]

    def then(self: Drawing, z: Tensor) -> Tensor:
        calls.append(1)
        return z * (1 + len(calls) // 10)

    self.then = then


@pytest.mark.parametrize(
    ("then", "prepare", "what"),
    [
        (counted, lambda self: None, "CALLS"),
        (counted_by_class, lambda self: None, "Drawing.calls"),
        (None, closed, "calls"),
    ],
)
def test_counters_outside_the_module_are_refused_by_name(then, prepare, what):
    with pytest.raises(UnsupportedError, match=f"every forward pass changes {what}, which is no part of the module"):
        im.Objective(Drawing(then, prepare), data=(X, Y))


class Slotted:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


def pushed(self: Any, z: Tensor) -> Tensor:
    self.held.append(1)
    return z * len(self.held)


@pytest.mark.parametrize(
    ("then", "held"), [(pushed, lambda: deque(maxlen=5)), (lambda self, z: z * self.held(), Slotted)]
)
def test_every_kind_of_attribute_is_what_it_was_before_every_call(then, held):
    module = Drawing(then, lambda self: setattr(self, "held", held())).eval()
    objective = im.Objective(module, data=(X, Y))
    first = nn.functional.cross_entropy(module.layer.double()(X), Y).item()
    assert [objective.loss(dict(module.state_dict())) for _ in range(3)] == pytest.approx([first] * 3)


def test_what_is_kept_for_later_outside_is_no_state():
    def kept(self: Drawing, z: Tensor) -> Tensor:
        return z * MADE.setdefault(len(z), torch.ones(len(z), 1))

    before = outside(Drawing(kept))
    assert before.keys() >= {"MADE"}
    im.Objective(Drawing(kept), data=(X, Y))


TOGETHER = {
    "a branch": lambda self, z: z * 2 if len(z) > 50 else z,
    "places": lambda self, z: z + (torch.arange(len(z))[:, None] >= 8),
    "the largest of all": lambda self, z: z / z.abs().max().clamp(min=float(z[:6].abs().max()) if len(z) < 7 else 0),
    "classes left out": lambda self, z: (z - z.mean(0)).masked_fill(torch.tensor([False, False, True]), -torch.inf),
    "one example far above": lambda self, z: z * torch.where(torch.arange(len(z)) == 0, 1e12, 1)[:, None] + z[-1] / 9,
}


@pytest.mark.parametrize("name", TOGETHER)
def test_dependence_that_few_or_large_outputs_hide_is_found(name):
    with pytest.raises(UnsupportedError, match="an example's output depends on the rest of its batch"):
        im.Objective(Drawing(TOGETHER[name]), data=(X, Y))


def test_outputs_of_minus_infinity_are_no_dependence():
    module = Drawing(lambda self, z: z.masked_fill(torch.tensor([False, False, True]), -torch.inf))
    objective = im.Objective(module, data=(X, Y.clamp(max=1)))
    assert objective.loss(dict(module.state_dict())) < 10


def test_spectral_norm_that_iterates_is_refused_where_it_has_converged_too():
    module = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8), n_power_iterations=50), nn.Linear(8, 3))
    with pytest.raises(UnsupportedError, match=r"call module\.eval"):
        im.Objective(module, data=(X, Y))
