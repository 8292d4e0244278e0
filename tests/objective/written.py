"""Small modules with a forward pass of the test's choice, and data for them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.problems import blobs

N = 23
X, Y = blobs(N, (6,), 3)
TOKENS = torch.randint(20, (N, 5), generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """A linear layer with a forward pass, and attributes, of the test's choice."""

    def __init__(self, forward: Callable, prepare: Callable = lambda self: None) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.gain = nn.Parameter(torch.zeros(1))
        self.how = forward
        prepare(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def by_hand(module: nn.Module, params: dict, x: Tensor, y: Tensor) -> float:
    """Load the parameters, forward, mean: on copies."""
    module = copy.deepcopy(module)
    module.load_state_dict(params)
    with torch.no_grad():
        return float(F.cross_entropy(module(x.clone()), y))


def moved(module: nn.Module, seed: int = 0) -> dict:
    g = torch.Generator().manual_seed(seed)
    state = module.state_dict(keep_vars=True)
    noise = {id(v): torch.randn(v.shape, generator=g).to(v) / 2 for v in module.parameters()}
    return {k: v.detach() + noise[id(v)] if id(v) in noise else v.detach().clone() for k, v in state.items()}


def buffer(name: str, value: Tensor, persistent: bool = True) -> Callable:
    return lambda self: self.register_buffer(name, value.clone(), persistent=persistent)


def attribute(name: str, value: Callable) -> Callable:
    return lambda self: setattr(self, name, value())


# -- writing


class Bounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 6, max_norm=1.0), nn.Linear(6, 3)

    def forward(self, t: Tensor) -> Tensor:
        return self.out(self.embed(t).mean(1))


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def run_once(module: nn.Module) -> nn.Module:
    module(torch.ones(2, 6))
    return module
