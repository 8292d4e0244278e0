"""Pairs of networks whose units stand in another order, over architectures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.params import Params
from tests.architectures import HAND_WRITTEN, HUGGING_FACE, Architecture
from tests.problems import perceptron

ALL = {one.name: one for one in (*HAND_WRITTEN, *HUGGING_FACE)}
ALL["perceptron"] = Architecture("perceptron", lambda: perceptron([6, 9, 7, 8, 3]), lambda: (torch.randn(2, 6),))
EXAMPLES = 64


@dataclass(frozen=True, eq=False)
class Planted:
    """`a`; `near`, which is a with a little noise; `order`, and `b`, which is `near` in that order."""

    objective: im.Objective
    a: Params
    near: Params
    b: Params
    order: dict[str, Tensor]


@cache
def objective(name: str) -> im.Objective:
    """An architecture on random inputs, in float64."""
    module = ALL[name].module().double()
    x = tuple(_more(v) for v in ALL[name].args())
    with torch.no_grad():
        y = module(*x)
    g = torch.Generator().manual_seed(0)
    return im.Objective(module, "mse", (x[0] if len(x) == 1 else x, torch.randn(y.shape, generator=g).double()))


def _more(x: Tensor) -> Tensor:
    """As many examples, of the same kind."""
    g = torch.Generator().manual_seed(1)
    values = set(x.unique().tolist())
    if values <= {0, 1}:  # a mask, or a graph
        return x.repeat(EXAMPLES // 2, *[1] * (x.dim() - 1)).to(torch.float64 if x.is_floating_point() else x.dtype)
    if x.is_floating_point():
        return torch.randn(EXAMPLES, *x.shape[1:], generator=g, dtype=torch.float64)
    return torch.randint(0, int(x.max()) + 1, (EXAMPLES, *x.shape[1:]), generator=g)


def drawn(objective: im.Objective, module: nn.Module, seed: int) -> Params:
    """Weights as large as those of the module, with vectors that are not all alike."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, v in module.state_dict().items():
        out[name] = v.clone()
        if v.is_floating_point() and not name.endswith("running_var"):
            size = 0.3 if v.dim() < 2 or v.numel() < 2 else float(v.std())
            shift = v if v.dim() < 2 else 0.0
            out[name] = shift + size * torch.randn(v.shape, generator=g, dtype=torch.float64)
    return tied(objective, out)


def tied(objective: im.Objective, params: Params) -> Params:
    """The parameters with those under several names being one."""
    return params | {alias: params[name] for alias, name in objective.program.tied.items()}


def planted(name: str, seed: int, noise: float = 0.05) -> Planted:
    """A network of an architecture, and one that is near it in another order."""
    found = objective(name)
    g = torch.Generator().manual_seed(1000 + seed)  # nothing of the noise is in a
    a = drawn(found, ALL[name].module().double(), seed)
    moved = {k: v + noise * _spread(v) * torch.randn(v.shape, generator=g, dtype=v.dtype) for k, v in _weights(a)}
    near = tied(found, a | moved)
    order = {group.name: torch.randperm(group.size, generator=g) for group in found.structure.groups}
    return Planted(found, a, near, found.structure.permute(near, order), order)


def _weights(params: Params) -> list[tuple[str, Tensor]]:
    return [(k, v) for k, v in params.items() if v.is_floating_point() and v.numel() > 1 and "running" not in k]


def _spread(v: Tensor) -> float:
    return float(v.std())
