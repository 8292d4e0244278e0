"""How alike the units of several networks are, each pair of networks, over the same examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from isthmus.alignment.activations import ActivationMatching, SeenUnits
from isthmus.alignment.overlap import Orders
from isthmus.alignment.seen import first, seen
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.structure.taps import Tap, taps


@dataclass(frozen=True, eq=False)
class Likeness:
    """`scores`: for each group, and each pair i < j of networks, how alike each unit of i is to each of j.

    Groups that share their axis with others are left out: how alike their units are depends on how those are numbered.
    """

    scores: Mapping[str, Mapping[tuple[int, int], Tensor]]

    @classmethod
    def of(cls, objective: Objective, models: Sequence[Params], matching: ActivationMatching) -> Likeness:
        """One pass of each network over the examples of the matching."""
        alone = _alone(taps(objective.program, objective.structure, matching.tap))
        found = [_Pair(i, j, alone) for i, j in combinations(range(len(models)), 2)]
        names = {tap.value for several in alone.values() for tap in several}
        for values in seen(first(objective, matching.examples), models, names):
            for pair in found:
                pair.add(values)
        return cls({name: {(p.i, p.j): p.alike(name, matching.measure) for p in found} for name in alone})

    def _between(self, name: str, i: int, j: int, orders: Sequence[Orders]) -> Tensor:
        """Of the units of i to those of j, in the numberings of the `orders`."""
        pair = self.scores[name][min(i, j), max(i, j)]
        return (pair if i < j else pair.T)[orders[i][name]][:, orders[j][name]]

    def to_others(self, name: str, k: int, orders: Sequence[Orders]) -> Tensor:
        """For each unit of the common numbering, how alike it is in all other networks to each unit of k."""
        several = [self._between(name, i, k, orders) for i in range(len(orders)) if i != k]
        return torch.stack(several).sum(0)

    def total(self, orders: Sequence[Orders]) -> float:
        """The sum over all groups, pairs and units."""
        pairs = combinations(range(len(orders)), 2)
        each = ((name, i, j) for i, j in pairs for name in self.scores)
        return sum(float(self._between(name, i, j, orders).diagonal().sum()) for name, i, j in each)


def _alone(places: Mapping[str, Sequence[Tap]]) -> dict[str, Sequence[Tap]]:
    """The groups that have an axis to themselves wherever they are seen."""
    return {name: several for name, several in places.items() if not any(tap.others for tap in several)}


class _Pair:
    """What is seen of two of the networks, summed up, for each group."""

    def __init__(self, i: int, j: int, places: Mapping[str, Sequence[Tap]]) -> None:
        self.i, self.j = i, j
        self.seen = {name: [SeenUnits(tap) for tap in several] for name, several in places.items()}

    def add(self, values: Sequence[Mapping[str, Any]]) -> None:
        """Take over a batch of the values of all networks."""
        for several in self.seen.values():
            for one in several:
                one.add(values[self.i][one.tap.value], values[self.j][one.tap.value])

    def alike(self, name: str, measure: str) -> Tensor:
        """The sum over the places where the units of a group are seen."""
        return torch.stack([one.alike(measure) for one in self.seen[name]]).sum(0)
