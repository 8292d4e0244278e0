"""The units of a chain's hidden layers as sets of numbers: random ones, the others, and places for new units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor

import torch
from torch import Tensor

__all__ = ["Units", "common_places", "complement", "kept_count", "places", "random_units"]

Units = dict[int, Tensor]
"""For each hidden layer, unit numbers (int64, no repetitions)."""


def kept_count(n: int, keep: float) -> int:
    """How many of n units stay: at most keep * n, which of one unit leaves none.

    >>> kept_count(7, 0.5), kept_count(100, 0.29), kept_count(60, 1 - 0.3), kept_count(2, 1 - 0.9)
    (3, 29, 42, 0)
    """
    return floor(keep * n + 1e-9)  # 0.29 * 100 is 28.999...


def random_units(
    widths: Mapping[int, int] | Sequence[int], sizes: Mapping[int, int], generator: torch.Generator
) -> Units:
    """Uniformly random units, ascending: ``sizes[l]`` of the ``widths[l]`` of each layer in `sizes`."""
    return {l: torch.randperm(widths[l], generator=generator)[:k].sort().values for l, k in sizes.items()}


def complement(n: int, units: Tensor) -> Tensor:
    """The units of 0..n-1 that are not in `units`, ascending.

    >>> complement(5, torch.tensor([1, 4]))
    tensor([0, 2, 3])
    """
    keep = torch.ones(n, dtype=torch.bool)
    keep[units.cpu()] = False
    return keep.nonzero().flatten().to(units.device)


def places(own: Tensor, dead: Tensor) -> Tensor:
    """A dead unit for each of the units `own`: itself if it is dead, else a spare one, which is nobody's own.

    >>> places(torch.tensor([0, 1]), torch.tensor([1, 2, 3]))
    tensor([2, 1])
    """
    taken = ~torch.isin(own, dead)
    spare = dead[~torch.isin(dead, own)]
    place = own.clone()
    place[taken] = spare[: int(taken.sum())]
    return place


def common_places(count: int, dead_a: Tensor, dead_b: Tensor) -> tuple[Tensor, Tensor]:
    """Dead units for `count` units at two ends: the same ones as far as they go, then disjoint ones.

    >>> common_places(2, torch.tensor([0, 1]), torch.tensor([1, 2]))
    (tensor([1, 0]), tensor([1, 2]))
    """
    both = dead_a[torch.isin(dead_a, dead_b)][:count]
    rest = count - len(both)
    only_a, only_b = dead_a[~torch.isin(dead_a, dead_b)], dead_b[~torch.isin(dead_b, dead_a)]
    return torch.cat([both, only_a[:rest]]), torch.cat([both, only_b[:rest]])
