"""Training the control points of a curve."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor

from isthmus.connectors.base import Task
from isthmus.connectors.curves.focus import Focus
from isthmus.connectors.curves.highest import Highest
from isthmus.connectors.curves.setting import CurveSetting, TrainedCurve, hoped, own_rates
from isthmus.connectors.curves.shape import Shape
from isthmus.params import Params
from isthmus.training.fit import Fitted, Recipe, fit
from isthmus.training.memory import Beside, State

_PAUSE = 10
"""Early checks are at least a tenth of the steps apart."""
_TELL = 20
"""Steps between two words of progress."""


@dataclass(eq=False)
class CurveTraining:
    """A curve in training; `history`, `last` and the focus are what changes beside a fit."""

    setting: CurveSetting
    shape: Shape
    draws: int
    focus: Focus
    history: list[dict[str, Any]] = field(default_factory=list)
    last: int = 0
    step: int = 0

    @classmethod
    def start(
        cls, task: Task, shape: Shape, recipe: Recipe, *, focus: float, draws: int, target: float | None, bn: str
    ) -> CurveTraining:
        """Measures the ends; `target` None: a little above the larger one."""
        return cls(CurveSetting.of(task, recipe, target, bn, own_rates(recipe)), shape, draws, Focus(focus))

    def run(self) -> TrainedCurve:
        """From the straight line; the curve is never above it."""
        setting, task = self.setting, self.setting.task
        if line := setting.untrained(self.shape):
            return line
        fitted = fit(
            self._batch_loss, self._check, setting.start(self.shape), task.objective.num_examples,
            setting.recipe, generator=task.generator, target=setting.target, due=self._due,
            memory=Beside(task.memory.part("curve"), self._give, self._take), what="training the curve",
        )  # fmt: skip
        return self._best(fitted)

    def _batch_loss(self, bends: Params, index: Tensor) -> Tensor:
        setting = self.setting
        total = torch.zeros((), dtype=setting.task.objective.dtype, device=index.device)
        for _ in range(self.draws):
            t = self.focus.draw(setting.task.generator)
            vector = setting.combined(self.shape, bends, t, setting.losses.dtype)
            loss = setting.batch_loss(vector, t, index)
            self.focus.note(t, float(loss.detach()))
            total = total + loss / self.draws
        return total

    def _due(self, step: int) -> bool:
        """When the running means have reached the target, and when a loss was not finite."""
        self.step, steps = step, self.setting.recipe.steps
        if step % _TELL == 0:
            self.setting.task.progress(f"curve, loss up to {self.focus.highest:.3g}", step, steps)
        if not self.focus.finite:
            return True
        rested = step - self.last >= steps // _PAUSE
        return rested and self.focus.known and self.focus.highest <= self.setting.target

    def _check(self, bends: Params) -> float:
        """The largest loss on the curve, confirmed on all examples where it is not seen on a few to be no gain."""
        if not self.focus.finite:
            return inf
        begin, best = not self.history, min((row["max"] for row in self.history), default=self.setting.target)
        found = self.setting.highest(self.shape, bends, best if begin else hoped(best))
        self.last = 0 if begin else self.step
        seen = self.last * self.setting.recipe.batch * self.draws
        row = {"step": self.last, "gradient_samples": seen, "max": found.loss, "t": found.t}
        self.history.append({**row, "confirmed": found.confirmed, "profile": self.focus.profile})
        return found.loss

    def _best(self, fitted: Fitted[Params]) -> TrainedCurve:
        """The trained curve, or the straight line where that is not higher."""
        setting = self.setting
        line = self.shape.straight(setting.task.a, setting.task.b)
        first = self.history[0]
        control, highest = line, Highest(inf, first["t"], True)
        if accepted := [row for row in self.history[1:] if row["max"] == fitted.loss]:
            highest = Highest(fitted.loss, accepted[0]["t"], True)
            control = setting.control(list(fitted.params.values()))
        if first["max"] <= hoped(highest.loss):
            on_line = setting.highest(self.shape, setting.straight(self.shape, "bend"))
            if not accepted or on_line.loss <= highest.loss:
                control, highest = line, on_line
        more = {"history": self.history, "gradient_steps": fitted.steps * self.draws}
        return setting.trained(self.shape, control, highest, fitted.ended, more)

    def _give(self) -> State:
        changes = {
            "focus": self.focus.values(),
            "history": self.history,
            "last": self.last,
            "passes": self.setting.losses.passes,
        }
        return {}, changes

    def _take(self, _: Params, values: dict[str, Any]) -> None:
        self.focus.restore(values["focus"])
        self.history, self.last, self.setting.losses.passes = values["history"], values["last"], values["passes"]
