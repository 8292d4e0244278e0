"""Any module as one that takes the tensors of examples and returns one tensor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from isthmus.objective.data import Inputs
from isthmus.objective.losses import LossFunction
from isthmus.objective.probe import REFUSALS, generators, restore, with_same_weights
from isthmus.objective.writes import Writes, call
from isthmus.program.adapted import Adapted, Manner, adapted, choose
from isthmus.program.copied import name_of
from isthmus.program.leaves import filled


def nameless(module: nn.Module, x: Any) -> str | None:
    """The name of the only part of `x`, where the module's forward has no argument of that name."""
    if not isinstance(x, Mapping) or len(x) != 1:
        return None
    known = inspect.signature((module.own if isinstance(module, Adapted) else module).forward).parameters
    (name,) = x
    named = name in known or any(p.kind is p.VAR_KEYWORD for p in known.values())
    return None if named else name


@dataclass(frozen=True, eq=False)
class _OfBatch:
    """A function of outputs and the user's batch as one of outputs and the tensors in that."""

    function: LossFunction
    batch: Any

    def __call__(self, outputs: Tensor, y: Any) -> Tensor:
        return self.function(outputs, filled(self.batch, y))


def of_targets(function: Any, y: Any, batch: Any) -> Any:
    """A loss or an error as a function of outputs and `y`, which is all tensors of a `batch` where it is several."""
    return function if function is None or isinstance(y, Tensor) else _OfBatch(function, batch)


@torch.no_grad()
def fitted(module: nn.Module, manner: Manner, tensors: Mapping[str, Tensor], x: Inputs) -> nn.Module:
    """The module itself where it returns one tensor already, else one that gives the chosen entry.

    Numbers that forward makes without a type get that of `tensors` where it does not run otherwise. What else keeps
    forward from running is for others to say. Errors: as ``choose``.
    """
    dtypes = {v.dtype for v in tensors.values() if v.is_floating_point()} - {torch.get_default_dtype()}
    for constants in (None, *dtypes):
        whole = replace(manner, output=None, constants=constants)
        try:
            found = _result(adapted(module, whole), tensors, x)
        except REFUSALS:
            continue
        return adapted(module, replace(whole, output=choose(found, manner.output, name_of(module))))
    return adapted(module, replace(manner, output=None))


def _result(module: nn.Module, tensors: Mapping[str, Tensor], x: Inputs) -> Any:
    """What a copy of the module gives; neither it nor a generator is left changed."""
    states = generators()
    try:
        copies = {k: v.clone() for k, v in tensors.items()}
        return call(with_same_weights(module), copies, tree_map(torch.clone, x), Writes())
    finally:
        restore(states)
