"""CurveTraining the control points of a curve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor

from isthmus.connectors.base import Task
from isthmus.connectors.curves.coordinates import Coordinates, combine
from isthmus.connectors.curves.focus import Focus
from isthmus.connectors.curves.highest import Highest, confirm, of_screened, screen
from isthmus.connectors.curves.losses import CurveLosses
from isthmus.connectors.curves.shape import Shape
from isthmus.errors import InputError
from isthmus.evaluate.batchnorm import statistics
from isthmus.params import Params, in_dtype
from isthmus.training.fit import Ended, Fitted, Recipe, fit
from isthmus.training.memory import Beside, State

_RATE = 0.024
"""The learning rate, in units of the root mean square distance of the ends' entries."""
_ABOVE = 1.05
"""The target, in units of the larger end's loss."""
_HOPE = 1.25
"""A screened maximum is measured on all examples where it is at most so many times the best one."""
_PAUSE = 10
"""Early checks are at least a tenth of the steps apart."""
_TELL = 20
"""Steps between two words of progress."""


@dataclass(frozen=True, eq=False)
class TrainedCurve:
    """The control points of the best curve, the largest loss on it, and how training went."""

    control: list[Params]
    highest: Highest
    ended: Ended
    stats: dict[str, Any]


@dataclass(eq=False)
class CurveTraining:
    """What stays the same while a curve is trained; `history`, `last` and the focus are what changes beside a fit."""

    task: Task
    shape: Shape
    recipe: Recipe
    draws: int
    coordinates: Coordinates
    losses: CurveLosses
    focus: Focus
    ends: tuple[float, float]
    target: float
    vectors: tuple[Tensor, Tensor]
    history: list[dict[str, Any]] = field(default_factory=list)
    last: int = 0
    step: int = 0

    @classmethod
    def start(
        cls, task: Task, shape: Shape, recipe: Recipe, *, focus: float, draws: int, target: float | None, bn: str
    ) -> CurveTraining:
        """Measures the ends; `target` None: a little above the larger one."""
        losses = CurveLosses.of(task.objective, bn, recipe.precision)
        kept = {k: task.a[k] for k in statistics(task.objective)} if bn == "keep" else {}
        coordinates = Coordinates.between(task.objective, task.a, {**task.b, **kept})
        ends = losses.all(coordinates.a), losses.all(coordinates.b)
        goal = target if target is not None else max(ends) + (_ABOVE - 1) * abs(max(ends))
        if goal < max(ends):
            raise InputError("target", expected=f"at least the larger end's loss, {max(ends):.6g}", got=target)
        a, b = coordinates.flat(task.a), coordinates.flat(task.b)
        rate = _RATE * float((b - a).double().square().mean().sqrt()) if len(a) else 1.0
        resolved = recipe.for_curve(task.objective.num_examples, rate)
        return cls(task, shape, resolved, draws, coordinates, losses, Focus(focus), ends, goal, (a, b))

    def run(self) -> TrainedCurve:
        """From the straight line; the curve is never above it."""
        if not self.coordinates.names:
            at = float(self.ends[1] > self.ends[0])
            line = self.shape.straight(self.task.a, self.task.b)
            return self._trained(line, Highest(max(self.ends), at, True), Ended.TARGET, 0)
        fitted = fit(
            self._batch_loss, self._check, self._straight(), self.task.objective.num_examples, self.recipe,
            generator=self.task.generator, target=self.target, due=self._due,
            memory=Beside(self.task.memory.part("curve"), self._give, self._take), what="training the curve",
        )  # fmt: skip
        return self._best(fitted)

    def _straight(self) -> Params:
        """The bends of the straight line."""
        last = self.shape.bends - 1
        return {f"bend {i}": torch.lerp(*self.vectors, i / last) for i in range(1, last)}

    def _combined(self, bends: Mapping[str, Tensor], t: float, dtype: torch.dtype) -> Tensor:
        """The vector of the point at t."""
        a, b = self.vectors
        return combine(self.shape.weights(t), [a, *bends.values(), b], dtype)

    def _batch_loss(self, bends: Params, index: Tensor) -> Tensor:
        total = torch.zeros((), dtype=self.task.objective.dtype, device=index.device)
        for _ in range(self.draws):
            t = self.focus.draw(self.task.generator)
            vector = self._combined(bends, t, self.losses.dtype)
            rest = {k: in_dtype(v, self.losses.dtype) for k, v in self.coordinates.rest(t).items()}
            loss = self.losses.batch({**rest, **self.coordinates.views(vector)}, index)
            self.focus.note(t, float(loss.detach()))
            total = total + loss / self.draws
        return total

    def _due(self, step: int) -> bool:
        """Half-way, when the running means have reached the target, and when a loss was not finite."""
        self.step = step
        if step % _TELL == 0:
            self.task.progress(f"curve, loss up to {self.focus.highest:.3g}", step, self.recipe.steps)
        if step == self.recipe.steps // 2 or not self.focus.finite:
            return True
        rested = step - self.last >= self.recipe.steps // _PAUSE
        return rested and self.focus.known and self.focus.highest <= self.target

    def _check(self, bends: Params) -> float:
        """The largest loss on the curve, confirmed on all examples where it is not seen on a few to be no gain."""
        if not self.focus.finite:
            return inf
        begin, best = not self.history, min((row["max"] for row in self.history), default=self.target)
        screened = self._screen(bends)
        found = of_screened(screened)
        if found.loss <= (best if begin else _HOPE * best):
            found = confirm(screened, lambda t: self.losses.all(self._at(bends, t)))
        self.last = 0 if begin else self.step
        seen = self.last * self.recipe.batch * self.draws
        row = {"step": self.last, "gradient_samples": seen, "max": found.loss, "t": found.t}
        self.history.append({**row, "confirmed": found.confirmed, "profile": self.focus.profile})
        return found.loss

    def _screen(self, bends: Mapping[str, Tensor]) -> dict[float, float]:
        knots = [i / (self.shape.bends - 1) for i in range(self.shape.bends)]
        return screen(lambda t: self.losses.few(self._at(bends, t)), self.ends, knots)

    def _at(self, bends: Mapping[str, Tensor], t: float) -> Params:
        return self.coordinates.point(self._combined(bends, t, self.task.objective.dtype), t)

    def _best(self, fitted: Fitted[Params]) -> TrainedCurve:
        """The trained curve, or the straight line where that is not higher."""
        line, last = self.shape.straight(self.task.a, self.task.b), self.shape.bends - 1
        control, highest = line, Highest(inf, 0.0, True)
        if accepted := [row for row in self.history[1:] if row["max"] == fitted.loss]:
            highest = Highest(fitted.loss, accepted[0]["t"], True)
            inner = [self.coordinates.point(v, i / last) for i, v in enumerate(fitted.params.values(), start=1)]
            control = [self.task.a, *inner, self.task.b]
        if self.history[0]["max"] <= _HOPE * highest.loss:
            straight = self._straight()
            on_line = confirm(self._screen(straight), lambda t: self.losses.all(self._at(straight, t)))
            if not accepted or on_line.loss <= highest.loss:
                control, highest = line, on_line
        return self._trained(control, highest, fitted.ended, fitted.steps)

    def _trained(self, control: list[Params], highest: Highest, ended: Ended, steps: int) -> TrainedCurve:
        stats = {
            "max": highest.loss, "t": highest.t, "target": self.target, "ends": list(self.ends), "lr": self.recipe.lr,
            "precision": str(self.losses.dtype).removeprefix("torch."), "history": self.history,
            "gradient_steps": steps * self.draws, "evaluations": round(self.losses.passes),
        }  # fmt: skip
        return TrainedCurve(control, highest, ended, stats)

    def _give(self) -> State:
        changes = {
            "focus": self.focus.values(),
            "history": self.history,
            "last": self.last,
            "passes": self.losses.passes,
        }
        return {}, changes

    def _take(self, _: Params, values: dict[str, Any]) -> None:
        self.focus.restore(values["focus"])
        self.history, self.last, self.losses.passes = values["history"], values["last"], values["passes"]
