"""What networks compute on the first examples of an objective, streamed ones too."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from isthmus.objective import Objective
from isthmus.params import Params, in_dtype


def first(objective: Objective, examples: int) -> Objective:
    """The objective on so many of the first examples, in memory, or on all where there are fewer."""
    whole = objective.in_memory and examples >= objective.num_examples
    return objective if whole else objective.subset(min(examples, objective.num_examples))


def inputs(objective: Objective, dtype: torch.dtype | None = None) -> list[Tensor]:
    """What the program is given, all examples at once, in their own or this precision."""
    return [v for x, _ in objective.source.chunks(objective.num_examples) for v in _leaves(x, dtype)]


def seen(
    objective: Objective, networks: Sequence[Params], names: Collection[str], dtype: torch.dtype | None = None
) -> Iterator[list[dict[str, Any]]]:
    """The values of these names, of each network, batch by batch, from inputs in their own or this precision."""
    for x, _ in objective.source.chunks(objective.chunk):
        with torch.no_grad():
            values = [objective.program.seen(p, _leaves(x, dtype), names) for p in networks]
        yield values


def _leaves(x: Any, dtype: torch.dtype | None) -> list[Tensor]:
    # inputs alone are cast: the module need not run in the precision in which its program does
    return [v if dtype is None else in_dtype(v, dtype) for v in tree_leaves(x)]
