"""Training a band of pivots across its own direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isthmus.connectors.curves.highest import Highest
from isthmus.connectors.curves.setting import CurveSetting, TrainedCurve, hoped
from isthmus.connectors.curves.shape import Polygon
from isthmus.connectors.neb.spacing import between, gaps, places, with_new
from isthmus.connectors.neb.tangent import across, tangent
from isthmus.params import Params
from isthmus.training.fit import Ended, Fitted, fit
from isthmus.training.memory import Beside, State

if TYPE_CHECKING:
    from isthmus.connectors.neb.method import AutoNEB

_KEPT = 0.9
"""How much of a pivot's running mean stays when a loss is noted."""
_SPREAD = 10
"""Steps between two times that the pivots are spread over the band again."""
_INSIDE = 4
"""Parts of a gap at whose ends the loss is looked at, to see where new pivots are needed."""
_TELL = 20
"""Steps between two words of progress."""
_CHANGES = ("means", "history", "step", "gradients", "begin")
"""What changes while a band is trained, beside its fit."""


@dataclass(eq=False)
class ElasticBand:
    """A band in training.

    `shares`: of the gaps, in the length of the band. `means`: running means of the losses of batches at the pivots;
    empty where nothing is known. `tangents`: of the step that is being made.
    """

    method: AutoNEB
    setting: CurveSetting
    shares: list[float] = field(default_factory=lambda: [1.0])
    means: list[float] = field(default_factory=list)
    tangents: list[Tensor] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    gradients: int = 0
    begin: bool = True

    def run(self) -> TrainedCurve:
        """Cycle by cycle: put pivots in, then train; the best band of all checks, which the line is among."""
        setting, left = self.setting, self.setting.recipe.steps
        if line := setting.untrained(Polygon(3)):
            return line
        pivots: list[Tensor] = []
        best = Fitted[Params]({}, inf, 0, Ended.BUDGET)
        for number, (steps, count) in enumerate(self.method.cycles):
            more = self._inserted(pivots, count)
            if len(more) < len(pivots) + min(count, 1) or not left:
                break
            found = self._cycle(more, min(steps, left), number, best.loss)
            left -= found.steps
            best = found if found.loss < best.loss or not best.params else replace(best, ended=found.ended)
            pivots = list(found.params.values())
            if found.ended is not Ended.BUDGET:
                break
        return self._trained(best)

    def _cycle(self, pivots: Sequence[Tensor], steps: int, number: int, known: float) -> Fitted[Params]:
        """Train a band; its first check is that of the band before, from which it differs by no more than spreading."""
        setting, task = self.setting, self.setting.task
        recipe = replace(setting.recipe, steps=steps, check=setting.recipe.check or steps)
        self.means, self.begin = [], True
        return fit(
            self._batch_loss, lambda p: self._check(p, known), {f"pivot {i}": v for i, v in enumerate(pivots, 1)},
            task.objective.num_examples, recipe, generator=task.generator, target=setting.target,
            due=lambda step: self._due(step, recipe.check or steps), after=self._moved,
            memory=Beside(task.memory.part(f"cycle{number}"), self._give, self._take), what=f"cycle {number + 1}",
        )  # fmt: skip

    def _inserted(self, pivots: list[Tensor], count: int) -> list[Tensor]:
        """The pivots with up to `count` more, spread over the band; the first ones, over the straight line."""
        a, b = self.setting.vectors
        if not pivots:
            self.shares = [1 / (count + 1)] * (count + 1)
            return [torch.lerp(a, b, i / (count + 1)) for i in range(1, count + 1)]
        new = self._gaps(pivots)[:count] if count else []
        points, self.shares = with_new([a, *pivots, b], self.shares, new)
        if self.method.spacing == "equal":
            self.shares = [1 / len(self.shares)] * len(self.shares)
        return between(points, places(points, self.shares))

    def _gaps(self, pivots: list[Tensor]) -> list[tuple[int, float]]:
        inner = {str(i): v for i, v in enumerate(pivots)}
        screened = self.setting.screened(Polygon(len(pivots) + 2), inner, _INSIDE)
        return gaps(screened, len(pivots) + 2, self.method.insertion, self.setting.target)

    def _batch_loss(self, pivots: Params, index: Tensor) -> Tensor:
        """A scalar whose gradient at each pivot is that of its loss on the batch, across the band."""
        setting, last = self.setting, len(pivots) + 1
        found = [self._slope(v, i / last, index) for i, v in enumerate(pivots.values(), 1)]
        losses = [loss for loss, _ in found]
        self.means = [_KEPT * m + (1 - _KEPT) * v for m, v in zip(self.means or losses, losses, strict=True)]
        self.gradients += len(losses)
        a, b = setting.vectors
        points, means = [a, *(v.detach() for v in pivots.values()), b], [setting.ends[0], *self.means, setting.ends[1]]
        self.tangents = [
            tangent(points[i : i + 3], means[i : i + 3], self.method.tangent) for i in range(len(pivots))
        ]  # fmt: skip
        total = torch.zeros((), dtype=a.dtype, device=a.device)
        for v, (_, slope), unit in zip(pivots.values(), found, self.tangents, strict=True):
            total = total + torch.dot(v, across(slope, unit))
        return total

    def _slope(self, vector: Tensor, t: float, index: Tensor) -> tuple[float, Tensor]:
        """The loss of a batch and its gradient: pivot by pivot, so that the activations of one are in memory."""
        leaf = vector.detach().to(self.setting.losses.dtype).requires_grad_()
        loss = self.setting.batch_loss(leaf, t, index)
        (slope,) = torch.autograd.grad(loss, leaf)
        return float(loss.detach()), slope.to(vector.dtype)

    def _moved(self, before: Params, now: Params, kept: list[Params]) -> None:
        """Take the part along the band out of the optimiser's step; from time to time, spread the pivots again.

        What the optimiser keeps of a pivot is of its place on the band, and is spread with it.
        """
        for name, unit in zip(now, self.tangents, strict=True):
            now[name].copy_(before[name] + across(now[name] - before[name], unit))
        self.step += 1
        if self.step % _SPREAD:
            return
        (a, b), ends = self.setting.vectors, self.setting.ends
        at = places([a, *now.values(), b], self.shares)
        means = [torch.tensor([v], dtype=torch.float64) for v in (ends[0], *self.means, ends[1])]
        self.means = [float(v) for v in between(means, at)]
        zero = torch.zeros_like(a)
        for several, first, last in ((now, a, b), *((row, zero, zero) for row in kept)):
            for old, new in zip(several.values(), between([first, *several.values(), last], at), strict=True):
                old.copy_(new)

    def _due(self, step: int, every: int) -> bool:
        if self.step % _TELL == 0:
            said = f"band of {len(self.means)} pivots, loss up to {max(self.means):.3g}"
            total = min(self.setting.recipe.steps, sum(steps for steps, _ in self.method.cycles))
            self.setting.task.progress(said, self.step, total)
        return step % every == 0 or not self._finite

    @property
    def _finite(self) -> bool:
        return all(map(isfinite, self.means))

    def _check(self, pivots: Params, known: float) -> float:
        """The largest loss on the band, confirmed on all examples where it is not seen on a few to be no gain."""
        if self.begin and known < inf:
            self.begin = False
            return known
        if not self._finite:
            return inf
        self.begin = False
        best = min((row["max"] for row in self.history), default=inf)
        found = self.setting.highest(Polygon(len(pivots) + 2), pivots, hoped(best))
        seen = self.gradients * min(self.setting.recipe.batch, self.setting.task.objective.num_examples)
        row = {"step": self.step, "pivots": len(pivots), "gradient_samples": seen, "max": found.loss, "t": found.t}
        self.history.append({**row, "confirmed": found.confirmed, "profile": list(self.means)})
        return found.loss

    def _trained(self, best: Fitted[Params]) -> TrainedCurve:
        row = next((row for row in self.history if row["max"] == best.loss), self.history[0])
        control = self.setting.control(list(best.params.values()))
        more = {"history": self.history, "pivots": len(best.params), "gradient_steps": self.gradients}
        highest = Highest(best.loss, row["t"], True)
        return self.setting.trained(Polygon(len(control)), control, highest, best.ended, more)

    def _give(self) -> State:
        return {}, {**{k: getattr(self, k) for k in _CHANGES}, "passes": self.setting.losses.passes}

    def _take(self, _: Params, values: dict[str, Any]) -> None:
        self.setting.losses.passes = values["passes"]
        for name in _CHANGES:
            setattr(self, name, values[name])
