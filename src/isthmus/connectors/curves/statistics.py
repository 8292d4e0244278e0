"""Curves through networks with BatchNorm, as plain paths: statistics are recomputed at knots, and move between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from isthmus.evaluate.batchnorm import refresh, statistics
from isthmus.objective import Objective
from isthmus.params import Params, lerp
from isthmus.paths import Curve, Path, Segment

_MOST = 6
"""How often a piece is halved, at most."""
_FEW = 2000
"""Examples up to which a point costs little."""
_PLACES = ((0.5, 0.25, 0.75), (0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875))
"""Where in a piece its loss is compared with that of recomputed statistics: of many examples, and of few."""


@dataclass(frozen=True, eq=False)
class Settled:
    """A path on which statistics move like weights, close to those that are computed again at every point.

    `deviation`: the largest difference of the two losses at so many equidistant `points` inside each piece; between
    them it may be larger. `labels`: of the segments. `passes` over the data that this took. `knots`: the t of the curve
    at those of the path, but for its ends.
    """

    path: Path
    deviation: float
    points: int
    labels: list[str]
    passes: int
    knots: list[float]

    def place(self, t: float) -> float:
        """Where on the path the point of the curve at t is; at its ends where the curve's are."""
        if t in (0.0, 1.0):
            return t
        return float(np.interp(t, self.knots, np.arange(1, len(self.path)) / len(self.path)))


def settle(objective: Objective, path: Path, tol: float, what: Sequence[str]) -> Settled:
    """The curve in pieces, with statistics computed again at the knots; one that is off by more than `tol` is halved.

    The ends keep their own statistics: on the first segment only those of the start move, to the recomputed ones, and
    on the last only those of the end. `what`: the labels of the path's segments.
    """
    places = _PLACES[objective.num_examples <= _FEW]
    found = [_Pieces(objective, segment, tol, places) for segment in path.segments]
    cut = [pieces.of(pieces.segment, 0.0, 1.0, _MOST) for pieces in found]
    parts, knots = [part for pieces in cut for part, _ in pieces], _knots(cut)
    first, last = Curve((path.start, parts[0].start)), Curve((parts[-1].end, path.end))
    inside = [label for label, pieces in zip(what, cut, strict=True) for _ in pieces]
    labels = ["the statistics of the start settle", *inside, "the statistics of the end settle"]
    deviation, passes = max(p.deviation for p in found), sum(p.passes for p in found)
    return Settled(Path((first, *parts, last)), deviation, len(places), labels, passes, knots)


def _knots(cut: Sequence[Sequence[tuple[Curve, float]]]) -> list[float]:
    """The t of the whole path at the start of the first piece and at the end of each."""
    return [0.0, *((i + end) / len(cut) for i, pieces in enumerate(cut) for _, end in pieces)]


@dataclass(eq=False)
class _Pieces:
    """A segment in pieces; `known`: the recomputed statistics and the loss with them at each t."""

    objective: Objective
    segment: Segment
    tol: float
    places: Sequence[float]
    known: dict[float, tuple[Params, float]] = field(default_factory=dict)
    deviation: float = 0.0
    passes: int = 0

    def of(self, piece: Segment, start: float, end: float, halvings: int) -> list[tuple[Curve, float]]:
        """Those of the piece from t = `start` to `end`, each with the t where it ends."""
        part = _with(piece, self._at(start)[0], self._at(end)[0])
        off = 0.0
        for s in self.places:
            self.passes += 1
            off = max(off, abs(self.objective.loss(part.at(s)) - self._at(start + s * (end - start))[1]))
            if off > self.tol and halvings:
                middle, (left, right) = (start + end) / 2, piece.split(0.5)
                return self.of(left, start, middle, halvings - 1) + self.of(right, middle, end, halvings - 1)
        self.deviation = max(self.deviation, off)
        return [(part, end)]

    def _at(self, t: float) -> tuple[Params, float]:
        if t not in self.known:
            self.passes += 2
            point = self.segment.at(t)
            own = _statistics(self.objective, point)
            self.known[t] = own, self.objective.loss({**point, **own})
        return self.known[t]


def _statistics(objective: Objective, point: Params) -> Params:
    """Those that are computed again, without the counters, which no output depends on."""
    fresh = refresh(objective, point)
    return {k: fresh[k] for k in statistics(objective) if fresh[k].is_floating_point()}


def _with(piece: Segment, a: Params, b: Params) -> Curve:
    """The piece with statistics that move from `a` to `b` at constant speed; variances stay positive."""
    control = piece.control if isinstance(piece, Curve) else (piece.start, piece.end)
    last = len(control) - 1
    return Curve(
        tuple({**p, **(a if i == 0 else b if i == last else lerp(a, b, i / last))} for i, p in enumerate(control))
    )
