"""The network of an objective as a chain, and the loss of chains whose layers may be narrower."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.objective import Objective
from isthmus.objective.data import single
from isthmus.params import Params
from isthmus.structure.chain import Chain, chain_of

__all__ = ["loss_of_outputs", "losses_of", "require_hidden_chain"]


def require_hidden_chain(objective: Objective, instead: str = "") -> Chain:
    """The objective's network as a chain with at least one hidden layer.

    `instead`: what the error recommends. Errors: ``UnsupportedError`` where the network is no chain, ``InputError``
    where it has a single layer.
    """
    chain = chain_of(objective.program, objective.structure)
    if chain.L < 2:
        raise InputError("network", expected="at least one hidden layer", got="none", instead=instead)
    return chain


def losses_of(
    objective: Objective,
    chain: Chain,
    params: Params,
    h: Tensor | None = None,
    first: int = 1,
    enter: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, float]:
    """(loss without penalty, error) on all examples of the layers `first` .. L of a chain, from the features `h`.

    `h`: what enters layer `first` (default: the data); `enter` makes that of each chunk of `h` where it is something
    else. The widths are those of the tensors in `params`.
    """
    h, y = single(objective.data[0]) if h is None else h, objective.data[1]
    parts = zip(h.split(objective.chunk), y.split(objective.chunk), strict=True)
    with torch.no_grad():
        return objective.of_outputs((chain.forward(params, enter(p) if enter else p, first), q) for p, q in parts)


def loss_of_outputs(objective: Objective, outputs: Tensor) -> float:
    """The mean loss without penalty of given outputs for all examples."""
    return objective.of_outputs([(outputs, objective.data[1])])[0]
