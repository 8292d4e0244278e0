"""What stays the same while a curve is trained: its ends, its losses, and what is said of the best one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf, isfinite, isnan
from typing import Any

import torch
from torch import Tensor

from isthmus.checks import check_choices
from isthmus.connectors.base import Connection, Connector, Outcome, Task
from isthmus.connectors.curves.coordinates import Coordinates, combine
from isthmus.connectors.curves.highest import Highest, confirm, of_screened, screen, secured, sharpened
from isthmus.connectors.curves.losses import CurveLosses
from isthmus.connectors.curves.shape import Shape
from isthmus.connectors.curves.statistics import settle
from isthmus.errors import InputError
from isthmus.evaluate.batchnorm import statistics
from isthmus.kinds import check_fields
from isthmus.params import Params, in_dtype
from isthmus.training.fit import Ended, Recipe

HOPE = 1.25
"""A screened maximum is measured on all examples where it is at most so many times the best one."""
_RATE = 0.024
"""The learning rate, in units of the root mean square distance of the ends' entries."""
_ABOVE = 1.05
"""The target, in units of the larger end's loss."""
_DEVIATION = 0.02
"""How far statistics between knots may take the loss from recomputed ones, as a share of the largest loss."""
_NO_START = (
    "the loss is not finite at t = {:g} on the straight line, from which training starts; the path is that line (align "
    "the networks, im.Aligned(...), or go through a third one)"
)
_OUTCOMES = {
    Ended.TARGET: Outcome.CONSTRUCTED,
    Ended.STALLED: Outcome.CONSTRUCTED,
    Ended.BUDGET: Outcome.BUDGET_EXHAUSTED,
    Ended.NOT_FINITE: Outcome.NOT_FINITE,
}


def check_trained(method: Connector) -> None:
    """Refuse wrong values of the fields that all trained curves have: choices, the `recipe` and the `target`."""
    check_fields(method)
    check_choices(method)
    recipe: Recipe = method.recipe  # type: ignore[attr-defined]
    if recipe.optimizer == "lbfgs":
        raise InputError("recipe", expected="adam or sgd: every step is on another batch", got="lbfgs")


def own_rates(recipe: Recipe) -> bool:
    """Whether each tensor moves at a rate of its own: by Adam, with no rate given."""
    return recipe.lr is None and recipe.optimizer == "adam"


def hoped(best: float) -> float:
    """Up to what a screened maximum is measured on all examples, beside the best one; of negative losses too."""
    return best + (HOPE - 1) * abs(best)


@dataclass(frozen=True, eq=False)
class TrainedCurve:
    """The control points of the best curve, the largest loss on it, and how training went."""

    shape: Shape
    control: list[Params]
    highest: Highest
    ended: Ended
    stats: dict[str, Any]


@dataclass(frozen=True, eq=False)
class CurveSetting:
    """The task of training a curve; `inner` vectors, in its methods, are those between the ends, by name.

    `ends`: their losses; `vectors`: their trained tensors.
    """

    task: Task
    recipe: Recipe
    coordinates: Coordinates
    losses: CurveLosses
    ends: tuple[float, float]
    target: float
    vectors: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, task: Task, recipe: Recipe, target: float | None, bn: str, own: bool = False) -> CurveSetting:
        """Measures the ends; `target` None: a little above the larger one. `own`: a rate for each tensor by itself."""
        task.objective.source.few()  # there must be examples
        losses = CurveLosses.of(task.objective, bn, recipe.precision)
        kept = {k: task.a[k] for k in statistics(task.objective)} if bn == "keep" else {}
        coordinates = Coordinates.between(task.objective, task.a, {**task.b, **kept})
        ends = losses.all(coordinates.a), losses.all(coordinates.b)
        goal = target if target is not None else max(ends) + (_ABOVE - 1) * abs(max(ends))
        if goal < max(ends) or (target is not None and isnan(target)):
            raise InputError("target", expected=f"at least the larger end's loss, {max(ends):.6g}", got=target)
        coordinates = coordinates.in_distances() if own else coordinates
        a, b = coordinates.flat(task.a), coordinates.flat(task.b)
        rate = _RATE * float((b - a).double().square().mean().sqrt()) if len(a) else 1.0
        resolved = recipe.for_curve(task.objective.num_examples, rate)
        return cls(task, resolved, coordinates, losses, ends, goal, (a, b))

    def straight(self, shape: Shape, name: str) -> Params:
        """The inner vectors of the straight line, called `name` 1, 2, ..."""
        last = shape.bends - 1
        return {f"{name} {i}": torch.lerp(*self.vectors, i / last) for i in range(1, last)}

    def start(self, shape: Shape) -> Params:
        """The straight line; another name where a step is in units of each tensor, as old states are in others."""
        return self.straight(shape, "bend" if self.coordinates.units is None else "bend in units")

    def combined(self, shape: Shape, inner: Mapping[str, Tensor], t: float, dtype: torch.dtype) -> Tensor:
        """The vector of the point at t."""
        a, b = self.vectors
        return combine(shape.weights(t), [a, *inner.values(), b], dtype)

    def batch_loss(self, vector: Tensor, t: float, index: Tensor) -> Tensor:
        """The loss of a batch at the point at t, whose `vector` is in the precision of the passes."""
        low = self.losses.dtype
        rest = {k: in_dtype(v, low) for k, v in self.coordinates.rest(t).items()}
        return self.losses.batch({**rest, **self.coordinates.views(vector)}, index)

    def screened(self, shape: Shape, inner: Mapping[str, Tensor], between: int = 1) -> dict[float, float]:
        """Losses on some examples along the curve; of each part between control points at so many equal steps."""
        knots = [i / (between * (shape.bends - 1)) for i in range(between * (shape.bends - 1))]
        return screen(lambda t: self.losses.few(self._at(shape, inner, t)), self.ends, knots)

    def highest(
        self, shape: Shape, inner: Mapping[str, Tensor], limit: float = inf, screened: dict[float, float] | None = None
    ) -> Highest:
        """The largest loss on the curve, confirmed on all examples unless a few show it to be above `limit`."""
        screened = screened or self.screened(shape, inner)
        if not of_screened(screened).loss <= limit:
            return of_screened(screened)
        screened = sharpened(screened, lambda t: self.losses.few(self._at(shape, inner, t)))
        if not of_screened(screened).loss <= limit:
            return of_screened(screened)
        everything = cache(lambda t: self.losses.all(self._at(shape, inner, t)))
        found = confirm(screened, everything)
        return secured(found, lambda t: self.losses.whole(self._at(shape, inner, t)), everything, self.target)

    def _at(self, shape: Shape, inner: Mapping[str, Tensor], t: float) -> Params:
        return self.coordinates.point(self.combined(shape, inner, t, self.task.objective.dtype), t)

    def control(self, inner: Sequence[Tensor]) -> list[Params]:
        """The control points of a curve."""
        last = len(inner) + 1
        points = [self.coordinates.point(v, i / last) for i, v in enumerate(inner, start=1)]
        return [self.task.a, *points, self.task.b]

    def untrained(self, shape: Shape) -> TrainedCurve | None:
        """The straight line where the ends have no tensor to train between them."""
        if self.coordinates.names:
            return None
        at = float(self.ends[1] > self.ends[0])
        control = shape.straight(self.task.a, self.task.b)
        return self.trained(shape, control, Highest(max(self.ends), at, True), Ended.TARGET, {"history": []})

    def trained(
        self, shape: Shape, control: list[Params], highest: Highest, ended: Ended, more: Mapping[str, Any]
    ) -> TrainedCurve:
        """What is known of a trained curve; `more`: the history, the gradient steps, and what the method adds."""
        first = more["history"][0] if more["history"] else None
        if first is not None and not isfinite(first["max"]):
            more = {"why": _NO_START.format(first["t"]), **more}
        stats = {
            "max": highest.loss, "t": highest.t, "target": self.target, "ends": list(self.ends), "lr": self.recipe.lr,
            "precision": str(self.losses.dtype).removeprefix("torch."), "gradient_steps": 0,
            "evaluations": round(self.losses.passes), **more,
        }  # fmt: skip
        return TrainedCurve(shape, control, highest, ended, stats)

    def connection(self, found: TrainedCurve, what: str | Sequence[str]) -> Connection:
        """The curve as the path of a method; with BatchNorm in pieces between knots of recomputed statistics.

        `what`: the label of all its segments, or of each.
        """
        path = found.shape.path(found.control)
        labels = [what] * len(path) if isinstance(what, str) else list(what)
        stats: dict[str, Any] = {"segments": labels, **found.stats}
        if self.losses.bn == "recompute":
            settled = settle(self.task.objective, path, _DEVIATION * abs(found.highest.loss), labels)
            path, stats["segments"], stats["t"] = settled.path, settled.labels, settled.place(stats["t"])
            stats["evaluations"] += settled.passes
            stats["statistics"] = {"pieces": len(path) - 2, "deviation": settled.deviation, "points": settled.points}
        return Connection(path, self.task.b, _OUTCOMES[found.ended], stats)
