"""Some examples in place of all, to see roughly how high a loss is."""

from __future__ import annotations

import torch

from isthmus.objective import criterion
from isthmus.objective.objective import Objective
from isthmus.objective.source import Held, Source


def drawn(source: Source, n: int) -> Held:
    """Up to `n` of the examples, drawn from all of them, always the same: the first ones may all be of one class.

    Errors: ``UnsupportedError`` for streamed examples without numbers.
    """
    index = torch.randperm(source.number, generator=torch.Generator().manual_seed(0))[:n]
    return Held(*source.at(index.to(source.device)), source.batch)


def on_some(objective: Objective, n: int) -> Objective:
    """The objective on up to `n` examples, as they are ``drawn``; a sum is still that of all."""
    few = objective.on(drawn(objective.source, n))
    if objective.criterion.sums:
        few.criterion = criterion.of_the_whole(objective.criterion, few.criterion, error=True)
    return few
