"""What networks compute on the first examples of an objective, streamed ones too."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from isthmus.objective import Objective
from isthmus.params import Params


def first(objective: Objective, examples: int) -> Objective:
    """The objective on so many of the first examples, or on all where there are fewer."""
    return objective.subset(min(examples, objective.num_examples))


def inputs(objective: Objective) -> list[Tensor]:
    """What the program is given, all examples at once."""
    return [v for x, _ in objective.source.chunks(objective.num_examples) for v in tree_leaves(x)]


def seen(objective: Objective, networks: Sequence[Params], names: Collection[str]) -> Iterator[list[dict[str, Any]]]:
    """The values of these names, of each network, batch by batch."""
    for x, _ in objective.source.chunks(objective.chunk):
        with torch.no_grad():
            values = [objective.program.seen(p, tree_leaves(x), names) for p in networks]
        yield values
