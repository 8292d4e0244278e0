"""What a way to match units is given, and what it finds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from isthmus.alignment.rotations.frame import Rotatable
from isthmus.objective import Objective
from isthmus.objective.functions import code_of
from isthmus.params import Params
from isthmus.shown import of_fields
from isthmus.training.progress import Progress, no_progress


@dataclass(frozen=True, eq=False)
class MatchingTask:
    """Two checked networks; units of `b` are to be matched with those of `a`. All randomness is from `generator`."""

    objective: Objective
    a: Params
    b: Params
    generator: torch.Generator
    progress: Progress = no_progress


@dataclass(frozen=True)
class MatchingRun:
    """One search: where it began, the `similarity` it reached (over the tensors it looked at), after each sweep in
    `trace`; `assignments` that were solved; whether it `converged`; the loss half-way to a, or at the mean of several
    networks, where that was computed: `midpoint`."""

    start: str
    similarity: float
    sweeps: int
    assignments: int
    converged: bool
    midpoint: float | None = None
    trace: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Matched:
    """For each group a permutation: unit u of a is matched with unit ``permutations[group][u]`` of b.

    `rotations`: then unit u of some groups with the sum over v of ``rotations[group][..., u, v]`` times unit v of b;
    `frame` knows where they are. `norms`: the gains and biases of norms that the result has; `before`: those of b.
    `notes`: what could not be done, in words.
    """

    permutations: Mapping[str, Tensor]
    runs: tuple[MatchingRun, ...] = ()
    dead: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    rotations: Mapping[str, Tensor] = field(default_factory=dict)
    norms: Mapping[str, Tensor] = field(default_factory=dict)
    before: Mapping[str, Tensor] = field(default_factory=dict)
    frame: Rotatable | None = None
    notes: tuple[str, ...] = ()


class Matching(ABC):
    """A way to match units: a frozen dataclass of settings with one verb, `find`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__repr__ = of_fields  # which ``dataclass`` then leaves as it is

    def digests(self) -> dict[str, str]:
        """What decides what it finds beside its fields: its code, if it is not this library's."""
        return code_of(self)

    @abstractmethod
    def find(self, task: MatchingTask) -> Matched:
        """The permutations."""
