"""Training the beads of a string: one after the other, or all as one problem with stacked weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from isthmus.connectors.strings.threshold import Threshold
from isthmus.errors import InputError, UnsupportedError
from isthmus.objective import Objective
from isthmus.objective.skeleton import ties_of
from isthmus.params import Params, stack
from isthmus.training.fit import Ended, Recipe, fit, fit_together
from isthmus.training.memory import Beside, Memory, State, forget
from isthmus.training.progress import Progress, no_progress

_PAYS = 1 << 23
"""Bytes of weights and activations per bead and step up to which one stacked problem was measured to be faster."""

_Extra = Callable[[Params, list[int]], Tensor]
"""``extra(weights, rows)``: what is added to the sum of the losses of the beads with those numbers."""


@dataclass(frozen=True, eq=False)
class Goal:
    """What a training of beads is to reach: the `target` of the judged quantity, in at most so many steps.

    The batches are those of `seed`. `what`: the work in words, for the progress.
    """

    target: float
    steps: int
    seed: int
    memory: Memory = forget
    progress: Progress = no_progress
    what: str = "training beads"

    def generator(self) -> torch.Generator:
        """What draws the batches."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True, eq=False)
class TrainedBead:
    """A bead after training: its best point at a check, the value of the judged quantity there, and the steps."""

    params: Params
    value: float
    steps: int
    ended: Ended


def checks(recipe: Recipe, examples: int) -> int:
    """The steps between two looks at the loss on all examples."""
    return recipe.check or max(10, examples // recipe.batch)


def check_recipe(recipe: Recipe) -> None:
    """Refuse an optimiser that cannot train beads."""
    if recipe.optimizer == "lbfgs":
        raise InputError("optimizer", expected="'adam' or 'sgd'", got="'lbfgs'")


@dataclass(frozen=True, eq=False)
class Trainer:
    """Trains points on the objective's loss until the threshold's quantity is at a target.

    The parameters of the module move; the other entries (running statistics) stay where the start has them. Every
    bead sees the batches that `seed` gives, so what becomes of it depends neither on the others nor on whether they
    are trained `together` (up to rounding).
    """

    objective: Objective
    limit: Threshold
    recipe: Recipe
    together: bool
    order: tuple[str, ...]

    @classmethod
    def of(cls, objective: Objective, limit: Threshold, recipe: Recipe, batched: bool | None, like: Params) -> Trainer:
        """`batched`: whether beads are trained as one problem; None where that works and is faster."""
        recipe = replace(recipe, check=checks(recipe, objective.num_examples))
        trainer = cls(objective, limit, recipe, True, tuple(like))
        if batched is False or (batched is None and trainer.bytes_each > _PAYS):
            return replace(trainer, together=False)
        refused = trainer.refusal(like)
        if refused and batched:
            raise UnsupportedError(
                type(objective.skeleton).__name__,
                f"its beads cannot be trained as one batched problem ({refused})",
                "write batched=None",
            )
        return replace(trainer, together=not refused)

    @property
    def bytes_each(self) -> int:
        """Bytes of weights and activations that one step of one bead touches."""
        weights = sum(p.numel() for p in self.objective.skeleton.parameters()) * self.objective.dtype.itemsize
        return weights + self.objective.bytes_each * min(self.recipe.batch, self.objective.num_examples)

    def refusal(self, like: Params) -> str:
        """Why torch cannot run this network with stacked weights; empty if it can."""
        weights, fixed = self._split(stack([like, like]))
        weights = {k: v.requires_grad_() for k, v in weights.items()}
        index = torch.zeros(2, dtype=torch.int64, device=self.objective.device)
        try:
            with warnings.catch_warnings():  # of an operation that torch would run bead by bead
                warnings.filterwarnings("error", "There is a performance drop", UserWarning)
                loss = self._stacked(weights, fixed, index).sum()
                torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        # no batching rule, data-dependent flow
        except (RuntimeError, ValueError, TypeError, NotImplementedError, UserWarning) as e:
            return (str(e).strip().splitlines() or [type(e).__name__])[0][:120]
        return ""

    # -- parameters: those that are trained, and the rest

    def _split(self, params: Params) -> tuple[Params, Params]:
        names = set(self.objective.parameter_names)
        return {k: v for k, v in params.items() if k in names}, {k: v for k, v in params.items() if k not in names}

    def _whole(self, weights: Params, fixed: Params) -> Params:
        ties, state = ties_of(self.objective.skeleton), {**fixed, **weights}
        return {k: state[ties.get(k, k)] for k in self.order}

    def _stacked(self, weights: Params, fixed: Params, index: Tensor) -> Tensor:
        """The loss of every stacked bead on the same examples, [K]."""
        return vmap(lambda p: self.objective.batch_loss(p, index))(self._whole(weights, fixed))

    def _sum(self, weights: Params, fixed: Params, rows: list[int], index: Tensor) -> Tensor:
        """A scalar whose gradient is that of the losses of the beads `rows`."""
        if self.together:
            return self._stacked(_of(weights, rows), _of(fixed, rows), index).sum()
        total = torch.zeros((), device=index.device, dtype=self.objective.dtype)
        for i in rows:  # bead by bead, so that the activations of one are in memory at a time
            leaves = {k: v.detach().requires_grad_() for k, v in _of(weights, i).items()}
            loss = self.objective.batch_loss(self._whole(leaves, _of(fixed, i)), index)
            slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for (name, _), slope in zip(leaves.items(), slopes, strict=True):
                if slope is not None:
                    total = total + (weights[name][i] * slope.to_dense()).sum()
        return total

    # -- training

    def train(self, starts: Sequence[Params], goal: Goal, extra: _Extra | None = None) -> list[TrainedBead]:
        """Train all points until each is at the target or the steps were made.

        With `extra` they move at the same time whatever `together` says. A start whose value is not finite fails.
        """
        if extra is not None:
            return self._at_once(starts, goal, extra)
        if not self.together or len(starts) == 1:
            return [self._alone(start, goal, i, len(starts)) for i, start in enumerate(starts)]
        room = max(1, self.objective.memory // (3 * self.bytes_each))
        done: list[TrainedBead] = []
        for i in range(0, len(starts), room):
            done += self._at_once(starts[i : i + room], replace(goal, memory=goal.memory.part(f"beads{i}")))
        return done

    def _alone(self, start: Params, goal: Goal, i: int, count: int) -> TrainedBead:
        weights, fixed = self._split(start)
        fitted = fit(
            lambda p, index: self.objective.batch_loss(self._whole(p, fixed), index),
            lambda p: self.limit.of(self._whole(p, fixed)),
            weights, self.objective.num_examples, replace(self.recipe, steps=goal.steps),
            generator=goal.generator(), target=goal.target, progress=goal.progress,
            memory=goal.memory.part(f"bead{i}"), what=f"{goal.what}, bead {i + 1} of {count}",
        )  # fmt: skip
        return TrainedBead(self._whole(fitted.params, fixed), fitted.loss, fitted.steps, fitted.ended)

    def _at_once(self, starts: Sequence[Params], goal: Goal, extra: _Extra | None = None) -> list[TrainedBead]:
        count = len(starts)
        # a single problem would have no axis of its own
        weights, fixed = self._split(stack([*starts, starts[0]] if count == 1 else starts))
        watch = _Watch(count, goal.target, self.recipe.check or 1)

        def batch_loss(p: Params, index: Tensor) -> Tensor:
            rows = watch.moving
            total = self._sum(p, fixed, rows, index)
            return total if extra is None else total + extra(_of(p, slice(count)), rows)

        def full_losses(p: Params) -> list[float]:
            seen = watch.look([self.limit.of(self._whole(_of(p, i), _of(fixed, i))) for i in watch.moving])
            return seen + seen[:1] * (count == 1)

        fitted = fit_together(
            batch_loss, full_losses, weights, self.objective.num_examples, replace(self.recipe, steps=goal.steps),
            generator=goal.generator(), target=goal.target, progress=goal.progress, what=goal.what,
            memory=Beside(goal.memory, watch.give, watch.take),
        )[:count]  # fmt: skip
        out = []
        for i, found in enumerate(fitted):
            arrived = watch.reached[i]
            made = found.steps if arrived is None else min(arrived, found.steps)
            own = {k: v.clone() for k, v in self._whole(found.params, _of(fixed, i)).items()}
            out.append(TrainedBead(own, found.loss, made, found.ended))
        return out


def _of(stacked: Params, rows: int | slice | list[int]) -> Params:
    """The parameters of one of the stacked beads, or of several."""
    return {k: v[rows] for k, v in stacked.items()}


class _Watch:
    """Which of the beads trained at once still move: one that has reached the target stands still."""

    def __init__(self, count: int, target: float, check: int) -> None:
        self.values = [float("inf")] * count
        self.reached: list[int | None] = [None] * count
        self.target, self.check, self.looks = target, check, 0

    @property
    def moving(self) -> list[int]:
        return [i for i, step in enumerate(self.reached) if step is None]

    def look(self, values: Sequence[float]) -> list[float]:
        """Take over the values of the moving beads at the next check; those that have arrived keep theirs."""
        for i, value in zip(self.moving, values, strict=True):
            self.values[i] = value
            if value <= self.target or not isfinite(value):
                self.reached[i] = self.looks * self.check
        self.looks += 1
        return list(self.values)

    def give(self) -> State:
        """The watch, for a memory."""
        return {}, {"values": self.values, "reached": self.reached, "looks": self.looks}

    def take(self, _: Params, values: Mapping[str, Any]) -> None:
        """What a memory kept."""
        self.values, self.reached, self.looks = values["values"], values["reached"], values["looks"]
