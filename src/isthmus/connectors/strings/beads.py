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
from isthmus.errors import UnsupportedError
from isthmus.objective import Objective
from isthmus.objective.skeleton import ties_of
from isthmus.params import Params, stack
from isthmus.training.fit import Checkpoint, Ended, Recipe, fit, fit_together
from isthmus.training.progress import Progress

PAYS = 1 << 23
"""Bytes of weights and activations per bead and step up to which one stacked problem was measured to be faster."""

Extra = Callable[[Params, list[int]], Tensor]
"""``extra(weights, rows)``: what is added to the sum of the losses of the beads with those numbers."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A bead after training: its best point at a check, the value of the judged quantity there, and the steps."""

    params: Params
    value: float
    steps: int
    ended: Ended


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
        checkpoint: Checkpoint | None,
        progress: Progress,
        what: str,
        extra: Extra | None = None,
    ) -> list[Trained]:
        """Train all points until each is at the target or `steps` steps were made.

        With `extra` they move at the same time whatever `together` says. A start whose value is not finite fails.
        """
        if extra is None and (not self.together or len(starts) == 1):
            return self._in_turn(starts, target, steps, seed, checkpoint, progress, what)
        if extra is not None:
            return self._at_once(list(starts), target, steps, seed, checkpoint, progress, what, extra)
        room = max(1, self.objective.memory // (3 * self.bytes_each))
        groups = [list(starts[i : i + room]) for i in range(0, len(starts), room)]
        done, kept = self._resumed(checkpoint)
        for i in range(len(done), len(starts), room):
            inner = None if checkpoint is None else Part(checkpoint, "group", lambda d=done: pack(d), kept)
            done += self._at_once(groups[i // room], target, steps, seed, inner, progress, what, None)
        return done

    def _resumed(self, checkpoint: Checkpoint | None) -> tuple[list[Trained], tuple[Params, dict[str, Any]] | None]:
        kept = None if checkpoint is None else checkpoint.load()
        return ([] if kept is None else unpack(*kept)), kept

    def _in_turn(
        self,
        starts: Sequence[Params],
        target: float,
        steps: int,
        seed: int,
        checkpoint: Checkpoint | None,
        progress: Progress,
        what: str,
    ) -> list[Trained]:
        done, kept = self._resumed(checkpoint)
        for i in range(len(done), len(starts)):
            weights, fixed = self._split(starts[i])
            fitted = fit(
                lambda p, index, fixed=fixed: self.objective.batch_loss(self._whole(p, fixed), index),
                lambda p, fixed=fixed: self.limit.of(self._whole(p, fixed)),
                weights, self.objective.num_examples, replace(self.recipe, steps=steps),
                generator=torch.Generator().manual_seed(seed), target=target, progress=progress,
                checkpoint=None if checkpoint is None else Part(checkpoint, "bead", lambda d=done: pack(d), kept),
                what=f"{what}, bead {i + 1} of {len(starts)}",
            )  # fmt: skip
            done.append(Trained(self._whole(fitted.params, fixed), fitted.loss, fitted.steps, fitted.ended))
        return done

    def _at_once(
        self,
        starts: list[Params],
        target: float,
        steps: int,
        seed: int,
        checkpoint: Checkpoint | None,
        progress: Progress,
        what: str,
        extra: Extra | None,
    ) -> list[Trained]:
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
            checkpoint=None if checkpoint is None else _Watched(checkpoint, watch),
        )[:count]  # fmt: skip
        out = []
        for i, found in enumerate(fitted):
            own = {k: v.clone() for k, v in found.params.items()}
            arrived = watch.reached[i]
            made = found.steps if arrived is None else min(arrived, found.steps)
            out.append(
                Trained(self._whole(own, {k: v[i].clone() for k, v in fixed.items()}), found.loss, made, found.ended)
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


def _nulls(values: Sequence[float]) -> list[float | None]:
    return [v if isfinite(v) else None for v in values]  # JSON has no infinity


def _infinite(values: Sequence[float | None]) -> list[float]:
    return [float("inf") if v is None else v for v in values]


@dataclass(eq=False)
class _Watched:
    """A checkpoint that also keeps a watch."""

    inner: Checkpoint
    watch: _Watch

    def due(self, step: int) -> bool:
        return self.inner.due(step)

    def save(self, tensors: Params, values: Mapping[str, Any]) -> None:
        watch = self.watch
        own = {"values": _nulls(watch.values), "reached": watch.reached, "looks": watch.looks}
        self.inner.save(tensors, {**values, "best_losses": _nulls(values["best_losses"]), "watch": own})

    def load(self) -> tuple[Params, dict[str, Any]] | None:
        kept = self.inner.load()
        if kept is None:
            return None
        own = kept[1]["watch"]
        self.watch.values, self.watch.reached, self.watch.looks = _infinite(own["values"]), own["reached"], own["looks"]
        return kept[0], {**kept[1], "best_losses": _infinite(kept[1]["best_losses"])}


@dataclass(eq=False)
class Part:
    """A checkpoint inside another: the state of some work, saved with all that stands `around` it.

    `kept` is what the outer one held; the part of it is handed out once, to the first that asks.
    """

    outer: Checkpoint
    name: str
    around: Callable[[], tuple[Params, dict[str, Any]]]
    kept: tuple[Params, dict[str, Any]] | None

    def due(self, step: int) -> bool:
        """As the outer one says."""
        return self.outer.due(step)

    def save(self, tensors: Params, values: Any) -> None:
        """Replace the whole state."""
        outside, more = self.around()
        self.outer.save({**outside, **{f"{self.name}/{k}": v for k, v in tensors.items()}}, {**more, self.name: values})

    def load(self) -> tuple[Params, dict[str, Any]] | None:
        """The part that was kept last, or None."""
        kept = self.kept
        if kept is None or self.name not in kept[1]:
            return None
        values = kept[1].pop(self.name)
        prefix = f"{self.name}/"
        return {k.removeprefix(prefix): v for k, v in kept[0].items() if k.startswith(prefix)}, values


def pack(done: Sequence[Trained]) -> tuple[Params, dict[str, Any]]:
    """Trained beads as tensors and plain values."""
    tensors = {f"done/{i}/{k}": v for i, bead in enumerate(done) for k, v in bead.params.items()}
    return tensors, {"done": [[*_nulls([b.value]), b.steps, b.ended.name] for b in done]}


def unpack(tensors: Params, values: dict[str, Any]) -> list[Trained]:
    """What was packed, bit for bit."""
    out = []
    for i, (value, steps, how) in enumerate(values["done"]):
        prefix = f"done/{i}/"
        # copied into torch's own memory: kernels may add in another order elsewhere
        params = {k.removeprefix(prefix): v.clone() for k, v in tensors.items() if k.startswith(prefix)}
        out.append(Trained(params, float("inf") if value is None else value, steps, Ended[how]))
    return out
