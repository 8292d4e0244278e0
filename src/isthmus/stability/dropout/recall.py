"""A search for half-width networks that is not done twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.stability.dropout.dropped import Dropped
from isthmus.stability.dropout.search import Sought, search
from isthmus.structure.chain import Chain
from isthmus.training.memory import Memory, State, named, recalled, taken
from isthmus.training.progress import Progress, no_progress


def search_recalled(
    memory: Memory,
    objective: Objective,
    chain: Chain,
    params: Params,
    sought: Sought,
    generator: torch.Generator,
    progress: Progress = no_progress,
) -> dict[int, Dropped]:
    """What ``search`` gives, or gave before this work was killed."""

    def compute() -> State:
        return _packed(search(objective, chain, params, sought, generator, progress))

    tensors, values = recalled(memory, compute, generator)
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
