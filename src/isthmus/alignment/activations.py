"""Units matched by what they compute on examples."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import torch
from torch import Tensor

from isthmus.alignment.assignment import inner_sums
from isthmus.alignment.descent import UnitSearch
from isthmus.alignment.matching import Matched, Matching, MatchingRun, MatchingTask
from isthmus.alignment.overlap import Orders, Overlap
from isthmus.alignment.seen import first, seen
from isthmus.checks import check_at_least_zero, check_choices, check_whole
from isthmus.evaluate.batchnorm import no_weights
from isthmus.kinds import check_fields
from isthmus.params import widened
from isthmus.structure.taps import Tap, taps

_STILL = 1e-12
"""A unit whose variance is at most so many times the largest one does not vary."""
_SWEEPS = 100
"""Sweeps over the groups that are matched by weights, at most."""


@dataclass(frozen=True)
class ActivationMatching(Matching):
    """The permutations under which units of both networks vary alike over examples (Li et al. 2015).

    Both networks see the first `examples` examples. `tap`: units are seen in what the weights read that read them
    ("after" nonlinearities and normalisations), or in what the weights make that make them ("before"). `measure`: the
    "correlation" of two units over examples, positions and places where they are seen, or their "inner" product. Each
    group is matched once, by the assignment with the largest sum; heads by the best match of what is inside them.
    `ties`: the weight of the inner product of the weights beside that, which decides for units that do not vary. Groups
    that no value shows, such as the inner layers of a recurrent network, are matched by weights.

    When to use: first; it mostly leaves the lowest barrier. Cost: one pass of each network over the examples.
    """

    examples: int = 1000
    tap: Literal["after", "before"] = "after"
    measure: Literal["correlation", "inner"] = "correlation"
    ties: float = 1e-3

    def __post_init__(self) -> None:
        check_fields(self)
        check_choices(self)
        check_whole(self, "examples")
        check_at_least_zero(self, "ties")

    def find(self, task: MatchingTask) -> Matched:
        """One pass of both networks, then one assignment for each group."""
        objective, structure = task.objective, task.objective.structure
        places = taps(objective.program, structure, self.tap)
        found = self._seen(task, places)
        search = UnitSearch(Overlap.between(structure, task.a, task.b, no_weights(objective)))
        dead: dict[str, tuple[int, int]] = {}
        for k, (name, several) in enumerate(found.items()):
            scores = torch.stack([one.scores(self.measure, search.orders, list(found)[:k]) for one in several]).sum(0)
            search.match(name, scores, self.ties)
            still = [sum(int(v) for v in torch.stack([one.still(end) for one in several]).all(0)) for end in (0, 1)]
            dead |= {name: (still[0], still[1])} if any(still) else {}
        rest = [g.name for g in structure.groups if g.name not in found]
        search.climb(_SWEEPS, lambda sweep: task.progress("matching units", sweep, _SWEEPS), rest)
        run = MatchingRun(
            "activations", search.similarity, search.sweeps, search.assignments, search.converged,
            trace=tuple(search.trace),
        )  # fmt: skip
        return Matched(search.orders, (run,), dead)

    def _seen(self, task: MatchingTask, places: Mapping[str, Sequence[Tap]]) -> dict[str, list[SeenUnits]]:
        """What both networks compute where the groups can be seen, batch by batch."""
        out = {name: [SeenUnits(tap) for tap in several] for name, several in places.items()}
        several = [one for all_ in out.values() for one in all_]
        few, done = first(task.objective, self.examples), 0
        for a, b in seen(few, (task.a, task.b), {one.tap.value for one in several}):
            for one in several:
                one.add(a[one.tap.value], b[one.tap.value])
            done = min(done + few.chunk, few.num_examples)
            task.progress("looking at the units of both networks", done, few.num_examples)
        return out


@dataclass(eq=False)
class SeenUnits:
    """Sums over samples of what is seen of the units of both networks at one place, in float64.

    Alone on its axis, a unit is a row, and its positions count as samples. Where other groups stand on the axis too,
    as heads and the dimensions inside them, every position is a row. What is summed is what a row has beyond its first
    sample, its origin: else a large value that hardly varies, or never, would leave nothing but rounding.
    """

    tap: Tap
    number: int = 0
    origins: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    cross: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take over a batch of values."""
        both = [self._rows(v) for v in (a, b)]
        self.origins = self.origins or [rows[:, :1].clone() for rows in both]
        x, y = (rows - origin for rows, origin in zip(both, self.origins, strict=True))
        new = [x.sum(1), y.sum(1), x.square().sum(1), y.square().sum(1)]
        self.sums = [s + v for s, v in zip(self.sums, new, strict=True)] if self.sums else new
        self.cross = self.cross + x @ y.T
        self.number += x.shape[1]

    def _rows(self, v: Tensor) -> Tensor:
        """[rows, samples]."""
        v, index = widened(v.detach().movedim(self.tap.dim, 0).cpu()), self.tap.index
        if not self.tap.others:
            v = v.index_select(0, index.reshape(-1)).reshape(len(index), index.shape[1], *v.shape[1:])
        return v.reshape(len(v), prod(v.shape[1:]))

    def still(self, end: int) -> Tensor:
        """For each unit of a (0) or b (1) whether it never varies."""
        variance = self._variance(end)
        still = variance <= _STILL * variance.max()
        return still[self.tap.index].all(1) if self.tap.others else still

    def _variance(self, end: int) -> Tensor:
        return (self.sums[2 + end] / self.number - (self.sums[end] / self.number).square()).clamp(min=0)

    def alike(self, measure: str) -> Tensor:
        """How alike each row of a is to each of b."""
        means = self.cross / self.number
        if measure == "inner":
            x, y = (s[:, None] / self.number + p for s, p in zip(self.sums[:2], self.origins, strict=True))
            p, q = self.origins
            means = means + x @ q.T + p @ (y - q).T
            return means / float(means.abs().max() or 1.0)
        covariance = means - torch.outer(self.sums[0], self.sums[1]) / self.number**2
        deviations = []
        for end in (0, 1):
            variance = self._variance(end)
            deviations.append(torch.where(variance <= _STILL * variance.max(), torch.inf, variance.sqrt()))
        return covariance / torch.outer(*deviations)

    def scores(self, measure: str, orders: Orders, matched: Collection[str]) -> Tensor:
        """How alike each unit of a is to each of b: where others are on the axis, by what is inside the units.

        What is inside is paired as those that are `matched` already say, else by the best assignment for each pair.
        """
        alike, index = self.alike(measure), self.tap.index
        if not self.tap.others:
            return alike
        for name in self.tap.others.keys() & set(matched):
            other = self.tap.others[name]
            source = torch.arange(alike.shape[1])
            source[other.reshape(-1)] = other[orders[name]].reshape(-1)
            alike = alike[:, source]
        blocks = alike[index.T[:, None, :, None], index.T[None, :, None, :]]  # [block, block, units, units]
        if self.tap.others.keys() <= set(matched):
            return blocks.diagonal(dim1=0, dim2=1).sum(-1)
        return inner_sums(blocks.permute(2, 3, 0, 1))
