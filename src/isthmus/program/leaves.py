"""What holds tensors, taken apart into them and put together again from others."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["Place", "filled", "opened"]


@dataclass(frozen=True)
class Place:
    """Stands where the i-th tensor stood."""

    i: int


def opened(whole: Any) -> tuple[list[Any], Any]:
    """The tensors and arrays in dictionaries, sequences and attributes, and the whole with a `Place` for each.

    >>> import torch
    >>> opened({"x": torch.ones(2), "task": "a"})
    ([tensor([1., 1.])], {'x': Place(i=0), 'task': 'a'})
    """
    leaves: list[Any] = []

    def place(leaf: Any) -> Place:
        leaves.append(leaf)
        return Place(len(leaves) - 1)

    return leaves, _mapped(whole, Tensor | np.ndarray, place)


def filled(template: Any, leaves: Sequence[Tensor]) -> Any:
    """What ``opened`` took apart, with these tensors.

    >>> import torch
    >>> filled(opened([torch.zeros(1), "a"])[1], [torch.ones(1)])
    [tensor([1.]), 'a']
    """
    return _mapped(template, Place, lambda place: leaves[place.i])


def _mapped(v: Any, kind: Any, function: Any) -> Any:
    if isinstance(v, kind):
        return function(v)
    if isinstance(v, Mapping):
        return {k: _mapped(part, kind, function) for k, part in v.items()}
    if isinstance(v, tuple | list):
        parts = [_mapped(part, kind, function) for part in v]
        return type(v)(*parts) if hasattr(v, "_fields") else type(v)(parts)
    return _object(v, kind, function)


def _object(v: Any, kind: Any, function: Any) -> Any:
    """A copy of what is no container, with its attributes mapped; what has none as it is."""
    if not hasattr(v, "__dict__") or isinstance(v, type) or callable(v):
        return v
    new = copy.copy(v)
    vars(new).update({k: _mapped(part, kind, function) for k, part in vars(v).items()})
    return new
