"""A path is a chain of segments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol, runtime_checkable

from torch import Tensor

from isthmus.errors import InputError
from isthmus.kinds import check_kind
from isthmus.params import Params, distance, equal, lerp, share
from isthmus.paths.level_curve import LevelCurve
from isthmus.paths.on_demand import Between, OnDemand, loaded
from isthmus.paths.segment import Curve, Segment, check_t
from isthmus.shown import count, line, plural


@runtime_checkable
class HasPath(Protocol):
    """A result that holds a path: a ``Connection``, what ``straighten`` returns."""

    @property
    def path(self) -> Path:
        """The path."""
        ...


def path_of(given: Path | HasPath) -> Path:
    """The path itself, of a path or of a result that has one. Errors: ``InputError`` for anything else."""
    path = given.path if isinstance(given, HasPath) else given
    check_kind(path, Path | HasPath, "path")
    return path


@dataclass(frozen=True, eq=False)
class Path:
    """Consecutive segments, a continuous function of t in [0, 1]; segment i of n covers [i/n, (i+1)/n].

    Each segment must start where the one before ends, bit for bit; a gap is refused and named. `bn`: what becomes of
    BatchNorm's statistics when the path is measured, unless ``profile`` is told; None is the default there.

    `segments`: one or more, in order.

    >>> import torch
    >>> p = Path.through([{"w": torch.tensor([v])} for v in (0.0, 1.0, 3.0)])
    >>> p.at(0.75)["w"], p.length, p.normalized_length
    (tensor([2.]), 3.0, 1.0)
    """

    segments: tuple[Segment, ...]
    bn: str | None = None

    def __post_init__(self) -> None:
        check_kind(self.segments, Sequence[Segment], "segments")
        object.__setattr__(self, "segments", tuple(self.segments))
        if not self.segments:
            raise InputError("segments", expected="at least one segment", got="none")
        for i, (left, right) in enumerate(pairwise(self.segments)):
            if left.end is not right.start and not equal(left.end, right.start):
                gap = distance(left.end, right.start) if left.end.keys() == right.start.keys() else float("nan")
                raise InputError(
                    "segments",
                    expected=f"segment {i + 1} to start where segment {i} ends",
                    got=f"a gap of length {gap:.3g}",
                )

    @classmethod
    def through(cls, points: Sequence[Mapping[str, Tensor]]) -> Path:
        """The piecewise-linear path through the given points, with their equal tensors shared.

        Between two of which one is read ``OnDemand``, each stays where it is.
        """
        check_kind(points, Sequence[Mapping], "points")
        if len(points) < 2:
            raise InputError("points", expected="at least 2 points", got=len(points))
        if len(points) == 2 and any(isinstance(point, OnDemand) for point in points):
            return cls((Between((points[0], points[1])),))
        shared = [loaded(points[0])]
        for point in points[1:]:
            shared.append(share(point, shared[-1]))
        return cls(tuple(Curve((p, q)) for p, q in pairwise(shared)))

    def __repr__(self) -> str:
        return line(self, plural(len(self), "segment"), plural(count(self.start), "parameter"))

    def __len__(self) -> int:
        return len(self.segments)

    def locate(self, t: float) -> tuple[int, float]:
        """The segment that holds t, and the local parameter in [0, 1] on it."""
        check_t(t)
        n = len(self.segments)
        i = min(int(t * n), n - 1)
        return i, min(max(t * n - i, 0.0), 1.0)

    def at(self, t: float) -> Params:
        """The point at t in [0, 1]."""
        i, local = self.locate(t)
        return self.segments[i].at(local)

    @property
    def start(self) -> Params:
        """The point at t = 0."""
        return self.segments[0].start

    @property
    def end(self) -> Params:
        """The point at t = 1."""
        return self.segments[-1].end

    @property
    def knots(self) -> tuple[Params, ...]:
        """The n + 1 points at which the n segments start and end."""
        return (*(s.start for s in self.segments), self.end)

    def __add__(self, other: Path) -> Path:
        return Path(self.segments + other.segments, self.bn or other.bn)

    def reversed(self) -> Path:
        """The same points walked from the end to the start."""
        return Path(tuple(s.reversed() for s in reversed(self.segments)), self.bn)

    def polygonal(self, tol: float, loss: Callable[[Params], float] | None = None, most: int = 1 << 14) -> Path:
        """Straight segments through points of this path, fine enough that they stay within `tol` of it.

        A curved segment is halved until its chords, at 1/4, 1/2 and 3/4, stray by at most `tol`: a ``LevelCurve`` in
        the features of its last layer on its data (the outputs, as a rule; the largest entry), others in weight space.
        With `loss` (such as ``objective.loss``) the chords are judged by it instead: one on which it is more than
        tol / 4 above the larger end of the path, or above the segment, is halved. Then ``certify`` proves an excess
        below `tol`, given a gap below tol / 2 in the units of the loss and a budget of several times the segments. The
        error of a chord falls with the square of its length. Costs 4 points of the curve per new segment.

        Errors: more than `most` segments (a tolerance below the rounding); a path that rises above `tol` / 4 by itself.

        >>> import torch
        >>> arc = Curve(tuple({"w": torch.tensor(p)} for p in ([0.0, 0.0], [1.0, 2.0], [2.0, 0.0])))
        >>> len(Path((arc,)).polygonal(0.1)), len(Path((arc,)).polygonal(0.02))
        (4, 8)
        """
        if not 0 < tol < float("inf"):
            raise InputError("tol", expected="a number > 0", got=tol)
        top = 0.0 if loss is None else max(loss(self.start), loss(self.end))
        out: list[Segment] = []
        todo = list(reversed(self.segments))
        while todo:
            segment = todo.pop()
            chord = Curve((segment.start, segment.end))
            straight = isinstance(segment, Curve) and segment.is_straight
            if straight or _follows(segment, chord, tol, loss, top):
                out.append(segment if straight else chord)
            elif len(out) + len(todo) + 2 > most:
                raise InputError("tol", expected=f"a tolerance that {most} segments reach", got=tol)
            else:
                todo += reversed(segment.split(0.5))
        return Path(tuple(out), self.bn)

    def map(self, change: Callable[[Params], Params]) -> Path:
        """The path whose control points are changed one by one (a cast, a permutation: an affine map)."""
        done: dict[int, Params] = {}
        out = []
        for segment in self.segments:
            if not isinstance(segment, Curve):
                raise InputError("map", expected="Bezier segments", got=type(segment).__name__)
            for p in segment.control:
                if id(p) not in done:
                    done[id(p)] = change(p)
            out.append(Curve(tuple(done[id(p)] for p in segment.control)))
        return Path(tuple(out), self.bn)

    @cached_property
    def length(self) -> float:
        """The sum of the Euclidean lengths of the segments, over all tensors: running statistics, and a tied tensor by
        each of its names."""
        return sum(s.length for s in self.segments)

    @cached_property
    def normalized_length(self) -> float:
        """length / distance of the ends, as `length` has it: 1 for a straight line; NaN when the ends coincide."""
        straight = distance(self.start, self.end)
        return self.length / straight if straight > 0 else float("nan")


def _follows(segment: Segment, chord: Curve, tol: float, loss: Callable[[Params], float] | None, top: float) -> bool:
    """Whether the chord is close enough to the segment at 1/4, 1/2 and 3/4."""
    for t in (0.25, 0.5, 0.75):
        point = lerp(chord.start, chord.end, t)
        if loss is not None:
            low, high = loss(segment.at(t)), loss(point)
            if low > top + tol / 4:
                raise InputError("tol", expected=f"more than 4 times the rise of the path, {low - top:.3g}", got=tol)
            close = high <= top + tol / 4 and high - low <= tol / 4
        elif isinstance(segment, LevelCurve):
            close = float((segment.outputs(point) - segment.affine(t)).abs().max()) <= tol
        else:
            close = distance(point, segment.at(t)) <= tol
        if not close:
            return False
    return True
