"""A path is a chain of segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from isthmus.errors import InputError
from isthmus.params import Params, distance, equal, share
from isthmus.paths.segment import Curve, Segment, check_t


@dataclass(frozen=True, eq=False)
class Path:
    """Consecutive segments, a continuous function of t in [0, 1]; segment i of n covers [i/n, (i+1)/n].

    Each segment must start where the one before ends, bit for bit; a gap is refused and named.

    >>> import torch
    >>> p = Path.through([{"w": torch.tensor([v])} for v in (0.0, 1.0, 3.0)])
    >>> p.at(0.75)["w"], p.length, p.normalized_length
    (tensor([2.]), 3.0, 1.0)
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
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
    def through(cls, points: Sequence[Params]) -> Path:
        """The piecewise-linear path through the given points, with their equal tensors shared."""
        if len(points) < 2:
            raise InputError("points", expected="at least 2 points", got=len(points))
        shared = [points[0]]
        for point in points[1:]:
            shared.append(share(point, shared[-1]))
        return cls(tuple(Curve((p, q)) for p, q in pairwise(shared)))

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
        return Path(self.segments + other.segments)

    def reversed(self) -> Path:
        """The same points walked from the end to the start."""
        return Path(tuple(s.reversed() for s in reversed(self.segments)))

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
        return Path(tuple(out))

    @cached_property
    def length(self) -> float:
        """The sum of the Euclidean lengths of the segments."""
        return sum(s.length for s in self.segments)

    @cached_property
    def normalized_length(self) -> float:
        """length / distance of the ends: 1 for a straight line; NaN when the ends coincide."""
        straight = distance(self.start, self.end)
        return self.length / straight if straight > 0 else float("nan")
