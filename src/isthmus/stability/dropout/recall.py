"""A search for half-width networks that is not done twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from isthmus.params import Params
from isthmus.stability.dropout.search import Dropped
from isthmus.training.memory import Memory, State, named, recalled, taken


def search_recalled(
    memory: Memory, generator: torch.Generator, search: Callable[[], dict[int, Dropped]]
) -> dict[int, Dropped]:
    """What a `search` that draws from `generator` gives, or gave before this work was killed."""
    tensors, values = recalled(memory, lambda: _packed(search()), generator)
    return {int(i): _unpacked(int(i), taken(tensors, i), row) for i, row in values.items()}


def _packed(found: dict[int, Dropped]) -> State:
    tensors, values = {}, {}
    for i, d in found.items():
        tensors |= named(str(i), {str(j): units for j, units in d.kept.items()})
        factors = [[j, float(factor)] for j, factor in d.factors.items()]
        numbers = {"scale": float(d.scale), "loss": float(d.loss), "trace": list(map(float, d.trace))}
        values[str(i)] = {"factors": factors, "separates": bool(d.separates), **numbers}
    return tensors, values


def _unpacked(entry: int, tensors: Params, row: Mapping[str, Any]) -> Dropped:
    kept = {int(j): units for j, units in tensors.items()}
    factors = dict(row["factors"])
    return Dropped(entry, kept, factors, row["scale"], row["loss"], row["separates"], tuple(row["trace"]))
