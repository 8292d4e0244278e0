"""Units matched by their weights: no data are needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from isthmus.alignment.activations import ActivationMatching
from isthmus.alignment.descent import STEPS, UnitSearch
from isthmus.alignment.matching import Matched, Matching, MatchingRun, MatchingTask
from isthmus.alignment.overlap import Overlap
from isthmus.checks import check_choices, check_whole
from isthmus.evaluate.batchnorm import applied, no_weights, refresh
from isthmus.kinds import check_fields
from isthmus.params import lerp


@dataclass(frozen=True)
class WeightMatching(Matching):
    """The permutations with the largest inner product of the two networks' weights, as far as they are found.

    `start`: "forward" builds them group by group from the input on (Ainsworth et al. 2022 begin at the "identity");
    "barycentre" begins at the mean of all permutations and goes by Frank-Wolfe steps in all groups at once;
    "activations" begins at those of ``ActivationMatching``. Then, whatever the start, ascent group by group, at most
    `sweeps` times. A recurrent group stands on both axes of a tensor, where group by group is the wrong problem: with
    one "forward" begins at the barycentre, and a step that would lower the inner product is not taken.

    `restarts`: further starts at random permutations. `choose`: of all starts the one with the largest inner product
    ("similarity"), or with the lowest loss half-way ("loss"), which needs one pass over the data for each. By
    similarity none is taken that is further from the first network than the second is as it stands.

    When to use: where data are dear; else ``ActivationMatching`` mostly leaves a lower barrier.
    """

    start: Literal["forward", "barycentre", "identity", "activations"] = "forward"
    restarts: int = 0
    choose: Literal["similarity", "loss"] = "similarity"
    sweeps: int = 100

    def __post_init__(self) -> None:
        check_fields(self)
        check_choices(self)
        check_whole(self, "restarts", least=0)
        check_whole(self, "sweeps")

    def find(self, task: MatchingTask) -> Matched:
        """The best of all starts."""
        structure = task.objective.structure
        overlap = Overlap.between(structure, task.a, task.b, no_weights(task.objective))
        found = [self._run(task, overlap, start) for start in [self._start(overlap), *["random"] * self.restarts]]
        if self.choose == "similarity" and max(run.similarity for run, _ in found) < UnitSearch(overlap).similarity:
            found.append(self._run(task, overlap, "identity"))
        _, search = max(found, key=lambda one: one[0].similarity if one[0].midpoint is None else -one[0].midpoint)
        return Matched(search.orders, tuple(r for r, _ in found))

    def _run(self, task: MatchingTask, overlap: Overlap, start: str) -> tuple[MatchingRun, UnitSearch]:
        search = self._searched(task, overlap, start)
        run = MatchingRun(
            start, search.similarity, search.sweeps, search.assignments, search.converged, trace=tuple(search.trace)
        )
        return replace(run, midpoint=_midpoint(task, search)) if self.choose == "loss" else run, search

    def _start(self, overlap: Overlap) -> str:
        recurrent = any(overlap.twice(g) for g in overlap.structure.groups)
        return "barycentre" if recurrent and self.start == "forward" else self.start

    def _searched(self, task: MatchingTask, overlap: Overlap, start: str) -> UnitSearch:
        search = UnitSearch(overlap)
        if start == "forward":
            search.forward()
        elif start == "barycentre":
            search.barycentre(lambda step: task.progress("matching units, Frank-Wolfe", step, STEPS))
        elif start == "activations":
            search.begin(ActivationMatching().find(task).permutations)
        elif start == "random":
            draw = task.generator
            search.begin({k: torch.randperm(len(v), generator=draw) for k, v in search.orders.items()})
        search.climb(self.sweeps, lambda sweep: task.progress("matching units", sweep, self.sweeps))
        return search


def _midpoint(task: MatchingTask, search: UnitSearch) -> float:
    """The loss half-way, with statistics computed again."""
    objective = task.objective
    middle = lerp(task.a, objective.structure.permute(task.b, search.orders), 0.5)
    return objective.loss(refresh(objective, middle) if applied(objective, "recompute") == "recompute" else middle)
