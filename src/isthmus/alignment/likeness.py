"""How alike the units of several networks are, each pair of networks, over the same examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from isthmus.alignment.activations import ActivationMatching, SeenUnits
from isthmus.alignment.overlap import Orders
from isthmus.alignment.seen import first, seen
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.structure.taps import taps


@dataclass(frozen=True, eq=False)
class Likeness:
    """`scores`: for each group, and each pair i < j of networks, how alike each unit of i is to each of j.

    Groups that share their axis with others are left out: how alike their units are depends on how those are numbered.
    """

    scores: Mapping[str, Mapping[tuple[int, int], Tensor]]

    @classmethod
    def of(cls, objective: Objective, models: Sequence[Params], matching: ActivationMatching) -> Likeness:
        """One pass of each network over the examples of the matching."""
        places = taps(objective.program, objective.structure, matching.tap)
        alone = {name: several for name, several in places.items() if not any(tap.others for tap in several)}
        pairs = list(combinations(range(len(models)), 2))
        found = {(name, pair): [SeenUnits(tap) for tap in several] for name, several in alone.items() for pair in pairs}
        names = {tap.value for several in alone.values() for tap in several}
        for values in seen(first(objective, matching.examples), models, names):
            for (_, (i, j)), several in found.items():
                for one in several:
                    one.add(values[i][one.tap.value], values[j][one.tap.value])
        return cls(
            {
                name: {
                    pair: torch.stack([one.alike(matching.measure) for one in found[name, pair]]).sum(0)
                    for pair in pairs
                }
                for name in alone
            }
        )

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
