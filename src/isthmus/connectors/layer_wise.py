"""Paths on which one layer after another moves, and the layers above it are trained along (Tian et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from isthmus.checks import check_whole
from isthmus.connectors.base import Connection, Connector, Task
from isthmus.connectors.curves.highest import Highest
from isthmus.connectors.curves.method import Bezier
from isthmus.connectors.curves.setting import CurveSetting, TrainedCurve, check_trained, own_rates
from isthmus.connectors.curves.shape import Polygon
from isthmus.params import Params, in_dtype, lerp, on_circle
from isthmus.shown import largest
from isthmus.structure.blocks import blocks_of, checked_blocks
from isthmus.training.fit import Ended, Recipe, fit
from isthmus.training.memory import Beside, State

_INSIDE = (0.25, 0.5, 0.75)
"""Where the loss is looked at between two points, on some examples."""


@dataclass(frozen=True)
class LayerWise(Connector):
    """Straight segments on which one block of layers after another moves to the other network's weights.

    In the order of the network each block moves from a's weights to b's in `moves` steps, along an arc on which its
    tensors keep their norms. After every step the blocks above it, which have not moved yet, are trained to go with it;
    those below it are b's already. A step that raises the loss above the target on the way is halved, up to `halvings`
    times. Tian et al. 2025 move and retrain in this manner, on spheres of constant variance; here the path goes
    straight from one retrained point to the next, and only blocks above the one that moves are retrained: the last
    block moves alone, below it all is b's. Where that is one layer and the loss is convex in the outputs, the loss on
    the last segments is at most that at their ends.

    `blocks`: names of tensors, by the name of the block, in the order in which they move; default: what the names tell.
    `recipe`: of the training after one step; ``lr=None`` is .024 times the root mean square distance of the ends,
    tensor by tensor, falling anew in each training. `target` and `bn` are those of ``Bezier``.

    When to use: to see whether two networks are connected layer by layer, and where that fails; or where every segment
    shall be straight with few layers moving, as for proofs. ``Bezier`` is mostly cheaper. Cost: `moves` times the
    number of blocks trainings after a step, more where steps are halved.
    """

    moves: int = 4
    halvings: int = 2
    blocks: Mapping[str, Sequence[str]] | None = None
    recipe: Recipe = Recipe(lr=None, epochs=1, batch=128, precision="auto", beta2=0.95)  # noqa: RUF009 - frozen
    target: float | None = None
    bn: Literal["recompute", "interpolate", "keep"] = "recompute"

    about = replace(
        Bezier.about,
        makes="straight segments on each of which one block moves and those above it follow",
        reference="Tian et al. 2025",
        cost="moves times the number of blocks trainings of one epoch",
    )

    def __post_init__(self) -> None:
        check_trained(self)
        check_whole(self, "moves")
        check_whole(self, "halvings", least=0)

    @property
    def statistics(self) -> str | None:
        """As they were in training."""
        return None if self.bn == "recompute" else self.bn

    def find(self, task: Task) -> Connection:
        """Move block after block, then state how high the loss is."""
        setting = CurveSetting.of(task, self.recipe, self.target, self.bn, own_rates(self.recipe))
        walk = _Walk.start(self, setting)
        return setting.connection(walk.run(), walk.labels)


@dataclass(frozen=True)
class _Block:
    """A block that moves, and the trained tensors above it that follow; `share`: of the path that lies before it."""

    name: str
    names: Sequence[str]
    later: Sequence[str]
    share: float


@dataclass(eq=False)
class _Walk:
    """A path in the making: the trained tensors of its `points` behind a, and the block that moves on each segment."""

    method: LayerWise
    setting: CurveSetting
    blocks: list[_Block]
    points: list[Params] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    gradient_steps: int = 0
    trainings: int = 0

    @classmethod
    def start(cls, method: LayerWise, setting: CurveSetting) -> _Walk:
        """The blocks with the tensors that are trained."""
        trained = list(setting.coordinates.names)
        blocks = _moving(method, trained, setting.task.objective.parameter_names)
        moved: set[str] = set()
        found = []
        for number, (name, block) in enumerate(blocks.items()):
            moved |= {*block}
            found.append(_Block(name, block, [k for k in trained if k not in moved], number / len(blocks)))
        return cls(method, setting, found)

    def run(self) -> TrainedCurve:
        """From a to b; the straight line where that is low enough, or not higher than what was found."""
        setting = self.setting
        line = setting.untrained(Polygon(2))
        on_line = line.highest if line else setting.highest(Polygon(2), {})
        if line or on_line.loss <= setting.target:
            return self._straight(on_line, line)
        now = {k: setting.task.a[k].detach() for k in setting.coordinates.names}
        for block in self.blocks:
            now = self._moved(now, block)
        inner = {str(i): setting.coordinates.flat(p) for i, p in enumerate(self.points[:-1])}
        shape = Polygon(len(self.points) + 1)
        found = setting.highest(shape, inner)
        if not found.loss < on_line.loss:
            return self._straight(on_line)
        return self._found(shape, found)

    def _moved(self, now: Params, block: _Block) -> Params:
        """All of a block's steps; what the others are then."""
        start = {k: now[k] for k in block.names}
        size, done = 2**self.method.halvings, 0
        total = self.method.moves * size
        while done < total:
            at = (done + size) / total
            moved = now | {k: on_arc(v, self.setting.task.b[k].detach(), at) for k, v in start.items()}
            trial = self._followed(moved, block)
            highest = self._between(now, trial, block.share)
            if not highest <= self.setting.target and size > 1:
                size //= 2
                continue
            done += size
            now = trial
            self.points.append(now)
            self.labels.append(f"{block.name} moves")
            self.history.append({"block": block.name, "at": done / total, "max": highest})
            self.setting.task.progress(f"moving {block.name}, loss up to {highest:.3g}", len(self.points), self._most)
        return now

    @property
    def _most(self) -> int:
        """The number of points if no step is halved any more."""
        return max(len(self.points), self.method.moves * len(self.blocks))

    def _followed(self, moved: Params, block: _Block) -> Params:
        """The point with the blocks above trained, from where they are."""
        if not block.later:
            return moved
        setting, task = self.setting, self.setting.task
        distances = {k: v for k, v in setting.coordinates.distances.items() if k in block.later}
        units = distances if own_rates(self.method.recipe) else {k: torch.ones_like(v) for k, v in distances.items()}
        free = {k: moved[k] / unit for k, unit in units.items()}
        still = self._whole(moved, block.share)

        def point(now: Mapping[str, Tensor], dtype: torch.dtype) -> Params:
            trained = {k: now[k] * unit for k, unit in units.items()}
            found = {k: in_dtype(v, dtype) for k, v in {**still, **trained}.items()}
            return found | {k: found[own] for k, own in setting.coordinates.tied.items()}

        self.trainings += 1
        part = task.memory.part(f"step{self.trainings}")
        fitted = fit(
            lambda now, index: setting.losses.batch(point(now, setting.losses.dtype), index),
            lambda now: setting.losses.few(point(now, task.objective.dtype)),
            free, task.objective.num_examples, setting.recipe, generator=task.generator, target=-inf,
            memory=Beside(part, self._give, self._take), what=f"following {block.name}",
        )  # fmt: skip
        self.gradient_steps += fitted.steps
        return moved | {k: fitted.params[k] * unit for k, unit in units.items()}

    def _give(self) -> State:
        return {}, {"passes": self.setting.losses.passes}

    def _take(self, _: Params, values: dict[str, Any]) -> None:
        self.setting.losses.passes = values["passes"]

    def _between(self, now: Params, then: Params, share: float) -> float:
        """The largest loss on the segment, and at its end, on some examples."""
        p, q = self._whole(now, share), self._whole(then, share)
        found = [self.setting.losses.few(lerp(p, q, t)) for t in (*_INSIDE, 1.0)]
        return largest(found)

    def _whole(self, trained: Params, share: float) -> Params:
        """All tensors of a point; those that are not trained move along the whole path."""
        ties = self.setting.coordinates.tied
        return {**self.setting.coordinates.rest(share), **trained, **{k: trained[own] for k, own in ties.items()}}

    def _straight(self, highest: Highest, known: TrainedCurve | None = None) -> TrainedCurve:
        self.labels = ["straight"]
        self.points = []
        return known or self._found(Polygon(2), highest)

    def _found(self, shape: Polygon, highest: Highest) -> TrainedCurve:
        setting, last = self.setting, shape.bends - 1
        inner = [self._whole(p, i / last) for i, p in enumerate(self.points[:-1], start=1)]
        names, task = list(setting.task.a), setting.task
        control = [task.a, *({k: p[k] for k in names} for p in inner), task.b]
        missed = Ended.BUDGET if isfinite(highest.loss) else Ended.NOT_FINITE
        ended = Ended.TARGET if highest.loss <= setting.target else missed
        more = {"history": [], "blocks": self.history, "gradient_steps": self.gradient_steps}
        return setting.trained(shape, control, highest, ended, more)


def _moving(method: LayerWise, trained: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """All trained tensors by block; those that no block of the user's names move last. `names`: of all parameters."""
    if method.blocks is None:
        return blocks_of(trained)
    given = checked_blocks(method.blocks, names)
    named = {k for block in given.values() for k in block}
    blocks = {**given, "the rest": [k for k in trained if k not in named]}
    return {name: own for name, block in blocks.items() if (own := [k for k in block if k in trained])}


def on_arc(p: Tensor, q: Tensor, t: float) -> Tensor:
    """The tensor at t on the arc from p to q, whose norm moves evenly from that of p to that of q; on the line
    where there is no arc.

    >>> on_arc(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), 0.5)
    tensor([1.4142, 1.4142])
    """
    first, last = p.double(), q.double()
    shares = on_circle(first, last, t)
    if t == 1 or shares is None:
        return torch.lerp(p, q, t)
    sizes = float(first.norm()), float(last.norm())
    direction = first * (shares[0] / sizes[0]) + last * (shares[1] / sizes[1])
    return (direction * ((1 - t) * sizes[0] + t * sizes[1])).to(p.dtype)
