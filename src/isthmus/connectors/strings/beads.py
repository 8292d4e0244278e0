"""Training the beads of a string: one after the other, or all as one problem with stacked weights."""

from __future__ import annotations

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
from isthmus.training.memory import Beside, Memory, State
from isthmus.training.progress import Progress

PAYS = 1 << 23
"""Bytes of weights and activations per bead and step up to which one stacked problem was measured to be faster."""

Extra = Callable[[Params, list[int]], Tensor]
"""``extra(weights, rows)``: what is added to the sum of the losses of the beads with those numbers."""


@dataclass(frozen=True, eq=False)
class TrainedBead:
    """A bead after training: its best point at a check, the value of the judged quantity there, and the steps."""

    params: Params
    value: float
    steps: int
    ended: Ended


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
        recipe = replace(recipe, check=recipe.check or max(10, objective.num_examples // recipe.batch))
        trainer = cls(objective, limit, recipe, True, tuple(like))
        if batched is False or (batched is None and trainer.bytes_each > PAYS):
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
            torch.autograd.grad(self._stacked(weights, fixed, index).sum(), list(weights.values()), allow_unused=True)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as e:  # no batching rule, data-dependent flow
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
            return self._stacked(
                {k: v[rows] for k, v in weights.items()}, {k: v[rows] for k, v in fixed.items()}, index
            ).sum()
        total = torch.zeros((), device=index.device, dtype=self.objective.dtype)
        for i in rows:  # bead by bead, so that the activations of one are in memory at a time
            leaves = {k: v[i].detach().requires_grad_() for k, v in weights.items()}
            loss = self.objective.batch_loss(self._whole(leaves, {k: v[i] for k, v in fixed.items()}), index)
            slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for (name, _), slope in zip(leaves.items(), slopes, strict=True):
                if slope is not None:
                    total = total + (weights[name][i] * slope.to_dense()).sum()
        return total

    # -- training

    def train(
        self,
        starts: Sequence[Params],
        target: float,
        *,
        steps: int,
        seed: int,
        memory: Memory,
        progress: Progress,
        what: str,
        extra: Extra | None = None,
    ) -> list[TrainedBead]:
        """Train all points until each is at the target or `steps` steps were made.

        With `extra` they move at the same time whatever `together` says. A start whose value is not finite fails.
        """
        if extra is None and (not self.together or len(starts) == 1):
            return self._in_turn(starts, target, steps, seed, memory, progress, what)
        if extra is not None:
            return self._at_once(list(starts), target, steps, seed, memory, progress, what, extra)
        room = max(1, self.objective.memory // (3 * self.bytes_each))
        done: list[TrainedBead] = []
        for i in range(0, len(starts), room):
            part = memory.part(f"beads{i}")
            done += self._at_once(list(starts[i : i + room]), target, steps, seed, part, progress, what, None)
        return done

    def _in_turn(
        self,
        starts: Sequence[Params],
        target: float,
        steps: int,
        seed: int,
        memory: Memory,
        progress: Progress,
        what: str,
    ) -> list[TrainedBead]:
        done = []
        for i, start in enumerate(starts):
            weights, fixed = self._split(start)
            fitted = fit(
                lambda p, index, fixed=fixed: self.objective.batch_loss(self._whole(p, fixed), index),
                lambda p, fixed=fixed: self.limit.of(self._whole(p, fixed)),
                weights, self.objective.num_examples, replace(self.recipe, steps=steps),
                generator=torch.Generator().manual_seed(seed), target=target, progress=progress,
                memory=memory.part(f"bead{i}"), what=f"{what}, bead {i + 1} of {len(starts)}",
            )  # fmt: skip
            done.append(TrainedBead(self._whole(fitted.params, fixed), fitted.loss, fitted.steps, fitted.ended))
        return done

    def _at_once(
        self,
        starts: list[Params],
        target: float,
        steps: int,
        seed: int,
        memory: Memory,
        progress: Progress,
        what: str,
        extra: Extra | None,
    ) -> list[TrainedBead]:
        weights, fixed = self._split(stack([*starts, starts[0]] if len(starts) == 1 else starts))
        count = len(starts)
        watch = _Watch(count, target, self.recipe.check or 1)

        def batch_loss(p: Params, index: Tensor) -> Tensor:
            rows = watch.moving
            total = self._sum(p, fixed, rows, index)
            return total if extra is None else total + extra({k: v[:count] for k, v in p.items()}, rows)

        def full_losses(p: Params) -> list[float]:
            def value(i: int) -> float:
                return self.limit.of(self._whole({k: v[i] for k, v in p.items()}, {k: v[i] for k, v in fixed.items()}))

            seen = watch.look([value(i) for i in watch.moving])
            return seen + seen[:1] * (count == 1)  # a single problem would have no axis of its own

        fitted = fit_together(
            batch_loss, full_losses, weights, self.objective.num_examples, replace(self.recipe, steps=steps),
            generator=torch.Generator().manual_seed(seed), target=target, progress=progress, what=what,
            memory=Beside(memory, watch.give, watch.take),
        )[:count]  # fmt: skip
        out = []
        for i, found in enumerate(fitted):
            own = {k: v.clone() for k, v in found.params.items()}
            arrived = watch.reached[i]
            made = found.steps if arrived is None else min(arrived, found.steps)
            out.append(
                TrainedBead(
                    self._whole(own, {k: v[i].clone() for k, v in fixed.items()}), found.loss, made, found.ended
                )
            )
        return out


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
