"""Is the loss on a path at most a level? Answered in as few passes over the data as a "no" needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, log2
from typing import Any

from isthmus.evaluate.batchnorm import refresh, segments_under, statistics
from isthmus.evaluate.refine import Samples
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.paths import Path, Segment

GRID = 32
"""Parts of equal length in t whose ends are measured before a path is accepted, at least."""
_LEAST = 2
"""How often each segment is halved for that, at least."""
_MORE = 64
"""Points between those of the grid, where the loss is estimated to rise above the level, at most."""


@dataclass(frozen=True)
class LevelReading:
    """What was seen of a path: the largest loss, its t, and in how many passes over the data.

    `reached`: whether it is at most the level at all points of a grid, and estimated to be so between them. `points`:
    that were measured between the ends; `middle`: the first of them. `rise`: what the loss is estimated to reach, if
    that is why the level was not reached.
    """

    max: float
    t: float
    reached: bool
    points: int
    passes: float
    middle: float
    rise: float | None = None

    def values(self) -> dict[str, Any]:
        """Plain values, from which ``LevelReading(**values)`` makes it again."""
        return {k: getattr(self, k) for k in self.__dataclass_fields__}


@dataclass(frozen=True)
class EndLosses:
    """The losses of both ends under each policy of BatchNorm that was asked for, and what asking cost."""

    objective: Objective
    a: Params
    b: Params
    known: dict[str, tuple[float, float]] = field(default_factory=dict)

    def under(self, policy: str) -> tuple[float, float]:
        """L(a) and L(b): of the networks as they are or, for "recompute", with statistics computed again."""
        kind = "recompute" if policy == "recompute" else "none"
        if kind not in self.known:
            several = (refresh(self.objective, p) if kind == "recompute" else p for p in (self.a, self.b))
            first, last = map(self.objective.loss, several)
            self.known[kind] = first, last
        return self.known[kind]

    @property
    def passes(self) -> float:
        """Over the data."""
        return sum(2 * price(policy) for policy in self.known)


def usual(objective: Objective) -> str:
    """What becomes of statistics on lines and curves: computed again, where there are data to do so."""
    if not statistics(objective):
        return "none"
    return "recompute" if objective.num_examples > 1 else "interpolate"


def price(policy: str) -> int:
    """Passes over the data for a loss."""
    return 2 if policy == "recompute" else 1


def check(objective: Objective, path: Path, ends: tuple[float, float], level: float, left: float = inf) -> LevelReading:
    """The middle first, then points in the order of bisection, as long as none is above `level`.

    What a full grid leaves open is halved where the loss is estimated to rise above the level (``Samples``). `left`:
    passes that may be spent; where they do not do, the level is not reached.
    """
    segments, policy = segments_under(objective, path, path.bn)
    found = _Points(objective, segments, level, price(policy), left, {(0, 0.0): ends[0], (len(path) - 1, 1.0): ends[1]})
    for i, s in _grid(len(segments)):
        if not found.measure(i, s):
            return found.reading(False)
    return found.settled()


def _grid(segments: int) -> Iterator[tuple[int, float]]:
    """The inner points: where two segments meet first, the middle one before the others."""
    knots = range(1, segments)
    yield from ((i, 0.0) for i in sorted(knots, key=lambda i: abs(i - segments / 2)))
    for k in range(1, max(_LEAST, ceil(log2(GRID / segments))) + 1):
        for j in range(1, 2**k, 2):
            yield from ((i, j / 2**k) for i in range(segments))


@dataclass(eq=False)
class _Points:
    """Losses at (segment, t), of which none was above the level until the last."""

    objective: Objective
    segments: Sequence[Segment]
    level: float
    price: int
    left: float
    known: dict[tuple[int, float], float]
    order: list[float] = field(default_factory=list)

    def measure(self, i: int, s: float) -> bool:
        """Whether the loss there is at most the level; False too where the passes do not do."""
        if (len(self.order) + 1) * self.price > self.left:
            return False
        loss = self.objective.loss(self.segments[i].at(s))
        self.order.append(loss)
        self.known[i, s] = loss
        if s == 0.0:
            self.known[i - 1, 1.0] = loss
        return loss <= self.level

    def settled(self) -> LevelReading:
        """After the grid: more points where the loss may be above the level."""
        most = len(self.order) + _MORE
        for i in range(len(self.segments)):
            own = sorted(s for k, s in self.known if k == i)
            samples = Samples(own, [self.known[i, s] for s in own])
            while (found := samples.highest())[1] > self.level:
                k, rise = found
                s = (samples.t[k] + samples.t[k + 1]) / 2
                if len(self.order) >= most or not self.measure(i, s):
                    return self.reading(False, rise)
                samples.add(k, self.known[i, s])
        return self.reading(True)

    def reading(self, reached: bool, rise: float | None = None) -> LevelReading:
        """What was seen until now."""
        (i, s), top = max(self.known.items(), key=lambda kv: (kv[1] != kv[1], kv[1]))
        passes = float(len(self.order) * self.price)
        rise = None if reached or not top <= self.level else rise
        middle = self.order[0] if self.order else top
        return LevelReading(top, (i + s) / len(self.segments), reached, len(self.order), passes, middle, rise)
