"""Curves through networks with BatchNorm, as plain paths: statistics are recomputed at knots, and move between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from isthmus.evaluate.batchnorm import refresh, statistics
from isthmus.objective import Objective
from isthmus.params import Params, lerp
from isthmus.paths import Curve, Path, Segment

_MOST = 64
"""Pieces of a segment, at most."""


@dataclass(frozen=True, eq=False)
class Settled:
    """A path on which statistics move like weights, close to those that are computed again at every point.

    `deviation`: the largest difference of the two losses, in the middle of the pieces. `labels`: of the segments.
    """

    path: Path
    deviation: float
    labels: list[str]


def settle(objective: Objective, path: Path, tol: float, what: str) -> Settled:
    """The curve in pieces, with statistics computed again at the knots, until no middle is off by more than `tol`.

    The ends keep their own statistics: on the first segment only those of the start move, to the recomputed ones, and
    on the last only those of the end.
    """
    pieces: list[Segment] = list(path.segments)
    while True:
        parts, deviation = _refreshed(objective, pieces)
        if deviation <= tol or len(pieces) >= _MOST * len(path):
            break
        pieces = [half for piece in pieces for half in piece.split(0.5)]
    first, last = Curve((path.start, parts[0].start)), Curve((parts[-1].end, path.end))
    labels = ["the statistics of the start settle", *(what for _ in parts), "the statistics of the end settle"]
    return Settled(Path((first, *parts, last)), deviation, labels)


def _refreshed(objective: Objective, pieces: Sequence[Segment]) -> tuple[list[Curve], float]:
    knots = [pieces[0].start, *(piece.end for piece in pieces)]
    fresh = [_statistics(objective, knot) for knot in knots]
    parts = [_with(piece, a, b) for piece, (a, b) in zip(pieces, pairwise(fresh), strict=True)]
    off = 0.0
    for part in parts:
        middle = part.at(0.5)
        off = max(off, abs(objective.loss(middle) - objective.loss({**middle, **_statistics(objective, middle)})))
    return parts, off


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
