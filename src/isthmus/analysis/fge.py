"""Fast geometric ensembling: networks along one training whose learning rate goes up and down."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any

import torch

from isthmus.checks import refuse_unless_whole
from isthmus.connectors.curves.losses import CurveLosses
from isthmus.errors import InputError
from isthmus.evaluate.batchnorm import refresh
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.described import bound
from isthmus.objective.given import ParamsLike
from isthmus.objective.skeleton import ties_of
from isthmus.params import Params
from isthmus.training.fit import Ended, fit
from isthmus.training.memory import Beside, Memory, State, forget, memory_of, named, taken
from isthmus.training.progress import Progress, no_progress
from isthmus.training.recipe import Recipe

_BATCH, _MOMENTUM = 128, 0.9
"""Of the published recipe."""


def fast_geometric_ensemble(
    objective: Objective,
    a: ParamsLike,
    cycles: int = 5,
    epochs: int = 2,
    lr_max: float = 0.02,
    lr_min: float = 2e-4,
    seed: int = 0,
    memory: Memory | os.PathLike[str] | str = forget,
    progress: Progress = no_progress,
) -> list[Params]:
    """`cycles` networks near the trained network `a`, for ``ensemble(objective, networks)``.

    Training goes on from `a` by stochastic gradient descent (batches of 128, Nesterov momentum .9), at a learning rate
    that falls from `lr_max` to `lr_min` in the first half of each cycle of `epochs` passes over the data, and rises
    again in the second. The network at each minimum is kept; training ends at the last one. BatchNorm's statistics are
    those of the batches, and computed again for the networks that are kept. The penalty is part of the loss.

    Each half has a whole number of steps, at least one, and so may be half a step off.

    `memory`: a folder (or a ``Memory`` of this call alone), from which the same call goes on after it was killed, to
    the same networks. ``progress(what, done, total)`` is told whenever one is kept. Cost: (cycles - 1/2) * epochs
    passes of training.

    `lr_max` decides: one that is too low gives networks that agree, one that is too high networks that are worse than
    `a` (that of the published code, for networks with BatchNorm, is 0.05).

    Errors: ``InputError`` for rates that do not fit, and for a loss that is not finite.

    Source: Garipov, Izmailov, Podoprikhin, Vetrov, Wilson 2018, section 4.

    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> found = fast_geometric_ensemble(objective, {"weight": torch.eye(2)}, cycles=3)
    >>> [round(objective.loss(p), 3) for p in found]
    [0.311, 0.306, 0.299]
    """
    check_kinds(fast_geometric_ensemble, locals())
    _check(cycles, epochs, lr_max, lr_min)
    objective.source.few()  # there must be examples
    start = {k: v.clone() for k, v in objective.check(a, "a").items()}
    losses = CurveLosses.of(objective, "recompute", "own")
    size = min(_BATCH, objective.num_examples)
    half = max(1, round(epochs * (objective.num_examples // size) / 2))
    recipe = Recipe("sgd", lr_max, (2 * cycles - 1) * half, size, _MOMENTUM, schedule="constant")
    work = _Cycles(losses, start, half, (lr_max, lr_min))

    def known() -> dict[str, Any]:
        rates = {"cycles": cycles, "half": half, "rates": [lr_max, lr_min]}
        return {"a": start, "seed": seed, **bound(objective), **rates}

    fitted = fit(
        work.batch_loss, work.full_loss, work.trained, objective.num_examples, recipe,
        generator=torch.Generator().manual_seed(seed), target=-inf, due=work.due, rate=work.rate,
        memory=Beside(memory_of(memory, known), work.give, work.take), progress=progress, what="cycles of training",
    )  # fmt: skip
    if fitted.ended is Ended.NOT_FINITE:
        what, why = ("lr_max", "a rate at which training goes on") if work.step else ("a", "a network to go on from")
        raise InputError(what, expected=why, got="a loss that is not finite")
    return work.members


def _check(cycles: int, epochs: int, lr_max: float, lr_min: float) -> None:
    refuse_unless_whole("cycles", cycles)
    refuse_unless_whole("epochs", epochs)
    if not 0 < lr_min <= lr_max < inf:
        raise InputError("lr_max, lr_min", expected="0 < lr_min <= lr_max", got=(lr_max, lr_min))


@dataclass(eq=False)
class _Cycles:
    """The training, and the networks that it has kept so far; `half` a cycle has so many steps."""

    losses: CurveLosses
    start: Params
    half: int
    rates: tuple[float, float]
    members: list[Params] = field(default_factory=list)
    step: int = 0

    @cached_property
    def trained(self) -> Params:
        """The tensors that are trained, tied ones once."""
        objective = self.losses.objective
        ties = ties_of(objective.skeleton)
        return {k: self.start[k] for k in objective.parameter_names if k not in ties}

    def rate(self, step: int) -> float:
        """The learning rate: a triangle with its minima at half a cycle, and again after each further one."""
        there = abs((step % (2 * self.half)) / self.half - 1)
        high, low = self.rates
        return low + (high - low) * there

    def due(self, step: int) -> bool:
        """Whether the rate is at a minimum."""
        self.step = step
        return step % (2 * self.half) == self.half

    def batch_loss(self, params: Params, index: torch.Tensor) -> torch.Tensor:
        """Of some examples."""
        return self.losses.batch(self._whole(params), index)

    def full_loss(self, params: Mapping[str, torch.Tensor]) -> float:
        """Keeps the network: after the beginning it is asked for at each minimum of the rate."""
        point = self.losses.objective.check(self._whole({k: v.clone() for k, v in params.items()}))
        if self.losses.bn == "recompute":
            point = refresh(self.losses.objective, point)
        self.members = [*self.members, point] if self.step else []
        return self.losses.objective.loss(point)

    def _whole(self, params: Mapping[str, torch.Tensor]) -> Params:
        ties = ties_of(self.losses.objective.skeleton)
        return {**{k: v for k, v in self.start.items() if k not in ties}, **params}

    def give(self) -> State:
        """The networks that are kept."""
        groups = [named(str(k), p) for k, p in enumerate(self.members)]
        return {k: v for group in groups for k, v in group.items()}, {"members": len(self.members)}

    def take(self, tensors: Params, values: dict[str, Any]) -> None:
        """Put them back."""
        self.members = [taken(tensors, str(k)) for k in range(values["members"])]
