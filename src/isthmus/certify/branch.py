"""Branch and bound on t: split the sub-interval with the largest bound until bound and best sample are close."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf, isfinite

from isthmus.certify.affine import NARROWEST
from isthmus.certify.bounds import Bound
from isthmus.errors import UnsupportedError

FLOOR = 1e-9
"""Bounds are not refined below this distance from the best sample, in the units of the loss."""
FIRST = 8
"""Sub-intervals of a segment to begin with, at least."""


@dataclass(frozen=True)
class Piece:
    """For t in [start, end] of segment `segment` the loss is at most `bound`, the error rate at most `error`."""

    segment: int
    start: float
    end: float
    bound: float
    error: float


@dataclass(frozen=True)
class Sample:
    """The loss at a point: t in [0, 1] on segment `segment`."""

    segment: int
    t: float
    value: float


@dataclass(frozen=True)
class Search:
    """What was found: the sub-intervals that cover each segment, its best sample, and how many bounds were computed.

    `refused`: the segments that have no finite bound, and why; they have no pieces. `spent`: whether the search ended
    because its budget did; `interrupted`: because it was stopped.
    """

    pieces: dict[int, list[Piece]]
    samples: dict[int, Sample]
    refused: dict[int, str]
    best: float
    evaluations: int
    spent: bool
    interrupted: bool


Interval = tuple[int, float, float]
"""A part of a segment: its number, and where the part starts and ends."""


@dataclass(frozen=True)
class SearchTask:
    """What a search asks for: `bound(i, start, end)` bounds segment i over [start, end], `loss(i, t)` evaluates it,
    `ends(i)` are its losses at 0 and 1; `confront(i, t, value, bound)` raises where that loss is above that bound for
    other reasons than rounding: ``UnsupportedError`` gives the segment up. `ahead(needed, later)` hears which parts
    will be bounded next, and which may be behind them; what it computes changes nothing but the time.
    """

    bound: Callable[[int, float, float], Bound]
    loss: Callable[[int, float], float]
    ends: Callable[[int], tuple[float, float]]
    confront: Callable[[int, float, float, float], None]
    ahead: Callable[[Sequence[Interval], Iterator[Interval]], None] | None = None


def close(bound: float, best: float, gap: float) -> bool:
    """Whether the bound is within the gap of the best sample, or within the floor."""
    return bound <= best + max(gap * abs(best), FLOOR)


def search(
    segments: Sequence[int],
    asked: SearchTask,
    *,
    best: float,
    gap: float,
    budget: int,
    first: int = FIRST,
    progress: Callable[[str, int, int], None],
) -> Search:
    """Bound the loss over the numbered segments together.

    `best` is the largest loss known anywhere on the path. Each segment is first cut into `first` parts; then the
    sub-interval with the largest bound is split, whichever segment it is on, until it is close to the best sample, or
    `budget` bounds were computed (one per segment is computed in any case).
    The loss is evaluated at a middle only where the centres of the forms promise more than the best sample. A
    ``KeyboardInterrupt`` ends the search, with the sub-intervals that were finished.
    """
    state = _State(asked, best, budget, progress)
    for i in segments:
        values = asked.ends(i)
        k = int(values[1] > values[0])
        state.samples[i] = Sample(i, float(k), values[k])
    first = max(1, min(first, budget // max(1, len(segments))))
    first = 1 << (first.bit_length() - 1)  # the ends of sub-intervals are multiples of powers of 1/2, and exact
    whole = [Piece(i, 0.0, 1.0, inf, inf) for i in segments]
    state.prepare([part for piece in whole for part in _parts(piece, first)], iter(()))
    for piece in whole:
        state.cut(piece, first)
    while state.heap and not state.stopped:
        piece = heappop(state.heap)[2]
        if piece.segment not in state.refused:
            _narrow(state, piece, gap)
    return state.result()


def _narrow(state: _State, piece: Piece, gap: float) -> None:
    """Cut the worst sub-interval, unless the search ends there."""
    parts = 4 if _far(piece.bound, state.best, gap) and state.evaluations + 4 <= state.budget else 2
    near, narrow = close(piece.bound, state.best, gap), piece.end - piece.start <= 2 * NARROWEST
    spent = state.evaluations + parts > state.budget
    if not (near or narrow or spent):
        state.prepare(_parts(piece, parts), _behind(state, gap))
        state.cut(piece, parts)
        return
    state.done.append(piece)
    state.spent = spent and not near and not narrow
    state.stopped = near or state.spent


def _parts(piece: Piece, parts: int) -> list[Interval]:
    """The equal parts of a sub-interval."""
    width = (piece.end - piece.start) / parts
    return [(piece.segment, piece.start + k * width, piece.start + (k + 1) * width) for k in range(parts)]


def _behind(state: _State, gap: float) -> Iterator[Interval]:
    """Parts of the sub-intervals that will be cut next unless a larger loss is seen, the worst first."""
    for _, _, piece in sorted(state.heap):
        if close(piece.bound, state.best, gap):
            return
        yield from _parts(piece, 4 if _far(piece.bound, state.best, gap) else 2)


def _far(bound: float, best: float, gap: float) -> bool:
    """Whether halves cannot be enough: the excess of a bound falls about fourfold when its interval is halved."""
    return bound == inf or bound - best > 8 * max(gap * abs(best), FLOOR)


@dataclass
class _State:
    """The search so far: sub-intervals still on the heap, the worst first, and those that are done."""

    asked: SearchTask
    best: float
    budget: int
    progress: Callable[[str, int, int], None]
    heap: list[tuple[float, int, Piece]] = field(default_factory=list)
    done: list[Piece] = field(default_factory=list)
    samples: dict[int, Sample] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    open: dict[int, str] = field(default_factory=dict)
    evaluations: int = 0
    spent: bool = False
    stopped: bool = False
    interrupted: bool = False

    def cut(self, piece: Piece, parts: int) -> None:
        """Replace a sub-interval by `parts` equal ones; a segment that the bound refuses is given up."""
        made = []
        try:
            for part in [] if self.interrupted else _parts(piece, parts):
                made.append(self._visit(*part))
        except UnsupportedError as e:
            self.refused[piece.segment] = str(e)
        except KeyboardInterrupt:
            self.interrupted = self.stopped = True
        if self.interrupted:  # these parts may not be all
            self.done.append(piece)
            return
        for row in made:
            heappush(self.heap, row)

    def prepare(self, needed: Sequence[Interval], later: Iterator[Interval]) -> None:
        """Say which bounds come next, to whoever may compute them."""
        if self.asked.ahead is None:
            return
        try:
            self.asked.ahead(needed, later)
        except KeyboardInterrupt:
            self.interrupted = self.stopped = True

    def _visit(self, i: int, start: float, end: float) -> tuple[float, int, Piece]:
        found, middle = self.asked.bound(i, start, end), start + (end - start) / 2
        self.evaluations += 1
        if found.estimate > self.best and isfinite(found.loss):
            value = self.asked.loss(i, middle)
            self.asked.confront(i, middle, value, found.loss)
            if value > self.samples[i].value:
                self.samples[i] = Sample(i, middle, value)
            self.best = max(self.best, value)
        if found.why:
            self.open[i] = f": {found.why}"
        self.progress("bounding", self.evaluations, max(self.budget, self.evaluations))
        return -found.loss, self.evaluations, Piece(i, start, end, found.loss, found.error)

    @property
    def within(self) -> int:
        """How many bounds there could be."""
        return self.evaluations if self.interrupted else self.budget

    def result(self) -> Search:
        """The pieces by segment, in order."""
        pieces: dict[int, list[Piece]] = {i: [] for i in self.samples if i not in self.refused}
        for piece in sorted([*self.done, *(p for _, _, p in self.heap)], key=lambda p: p.start):
            if piece.segment in pieces:
                pieces[piece.segment].append(piece)
        unbounded = [i for i, parts in pieces.items() if not all(isfinite(p.bound) for p in parts)]
        for i in unbounded:
            why = f"its bound did not become finite within {self.within} sub-intervals"
            self.refused[i] = why + self.open.get(i, "")
            del pieces[i]
        return Search(pieces, self.samples, self.refused, self.best, self.evaluations, self.spent, self.interrupted)
