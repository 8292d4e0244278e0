"""Three ways to choose the points of a profile: a grid, a grid screened in bfloat16, and where the maximum may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from isthmus.evaluate.columns import Columns
from isthmus.evaluate.engine import Engine, Prepared
from isthmus.evaluate.refine import START, Samples, refine
from isthmus.evaluate.screen import confirm
from isthmus.objective import Objective
from isthmus.paths import Curve, Segment

Pairs = dict[float, tuple[float, float]]
"""t -> (loss, error)."""
Progress = Callable[[str, int, int], None]
Place = tuple[int, float]
"""The number of a segment, and t in [0, 1] on it."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """Values [2, points] (loss, error) per data set at `places`; see ``Profile`` for the rest."""

    places: list[Place]
    values: list[Tensor]
    confirmed: Tensor
    margins: list[dict[str, float]]
    within: float | None = None


def on_grid(
    sets: Sequence[Objective],
    segments: Sequence[Segment],
    num_points: int,
    progress: Progress,
    columns: Columns | None = None,
) -> Sampled:
    """Equidistant points of every segment, in the working precision; `columns` of the last data set."""
    grid = _grid(len(segments), num_points)
    tick = _Ticker(progress, sum(map(len, grid)) * len(sets), len(sets))
    values = [_measure(e, segments, grid, tick) for e in _engines(sets, columns)]
    places = _places(grid)
    return Sampled(places, values, torch.ones(len(places), dtype=torch.bool), [{} for _ in sets])


def screened(sets: Sequence[Objective], segments: Sequence[Segment], num_points: int, progress: Progress) -> Sampled:
    """The same points, most of them in bfloat16; those that may matter also in the working precision.

    Segments that cost next to nothing are measured in the working precision at once.
    """
    grid = _grid(len(segments), num_points)
    places = _places(grid)
    tick = _Ticker(progress, len(places) * len(sets), len(sets))
    engines, low = [Engine(s) for s in sets], []
    sure = torch.zeros(len(places), dtype=torch.bool)
    for engine in engines:
        values, sure = _roughly(engine, segments, grid, num_points, tick)
        low.append(values)
    exact = [v.clone() for v in low]
    measure = partial(_again, engines, segments, places, exact)
    t = torch.tensor(places, dtype=torch.float64).sum(1) / len(segments)
    rows = [(j, q) for j, s in enumerate(sets) for q in range(1 + s.has_error)]
    confirmed, margins = confirm([low[j][q] for j, q in rows], t, sure, measure, [exact[j][q] for j, q in rows])
    named: list[dict[str, float]] = [{} for _ in sets]
    for (j, q), m in zip(rows, margins, strict=True):
        named[j][("loss", "error")[q]] = m
    return Sampled(places, exact, confirmed, named)


def _roughly(
    engine: Engine, segments: Sequence[Segment], grid: list[list[float]], num_points: int, tick: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """[2, points] in bfloat16, but where the working precision costs next to nothing; and where that is."""
    rough, columns, cheap = Engine(engine.objective, torch.bfloat16), [], []
    for segment, ts in zip(segments, grid, strict=True):
        ready = engine.prepare(segment, num_points)
        cheap += [ready.kind in ("unchanged", "affine")] * len(ts)
        values = (ready if cheap[-1] else rough.prepare(segment, num_points)).measure(ts, tick)
        columns.append(torch.tensor(values, dtype=torch.float64))
    return torch.cat(columns, 1), torch.tensor(cheap)


def _again(
    engines: Sequence[Engine], segments: Sequence[Segment], places: list[Place], into: list[Tensor], indices: list[int]
) -> None:
    """Measure the places of these indices in the working precision, `into` the values of each engine."""
    for i in sorted({places[k][0] for k in indices}):
        mine = [k for k in indices if places[k][0] == i]
        for engine, values in zip(engines, into, strict=True):
            found = engine.prepare(segments[i], len(mine)).measure([places[k][1] for k in mine])
            values[:, mine] = torch.tensor(found, dtype=torch.float64)


def adaptively(
    sets: Sequence[Objective],
    segments: Sequence[Segment],
    num_points: int,
    tol: float,
    progress: Progress,
    columns: Columns | None = None,
) -> Sampled:
    """Points where the loss of the first data set may be largest; the others are measured at the same ones.

    `columns`: of the last of the others.
    """
    engine, tick = Engine(sets[0]), _Ticker(progress, 0, 1)
    found, open_ones = _coarse(engine, segments, min(num_points, START), tick)
    best = bound = max(map(_largest, found))
    if best < float("inf"):  # also false for NaN
        for i in sorted(open_ones, key=lambda i: -_largest(found[i])):
            best, bound = _refine(engine, segments[i], found[i], best, bound, tol, tick)
    grid = [sorted(points) if i == 0 else sorted(points)[1:] for i, points in enumerate(found)]
    places = _places(grid)
    values = [torch.tensor([found[i][t] for i, t in places], dtype=torch.float64).T.contiguous()]
    values += [_measure(e, segments, grid, tick) for e in _engines(sets[1:], columns)]
    within = max(0.0, bound - best) if best < float("inf") else None
    return Sampled(places, values, torch.ones(len(places), dtype=torch.bool), [{} for _ in sets], within)


def _coarse(
    engine: Engine, segments: Sequence[Segment], num_points: int, tick: Callable[[], None]
) -> tuple[list[Pairs], list[int]]:
    """(loss, error) at the ends of each segment, or on a grid of those whose maximum may be inside: they are named."""
    found: list[Pairs] = []
    inside = []
    for i, segment in enumerate(segments):
        ready = engine.prepare(segment)
        if not _highest_at_an_end(engine.objective, segment, ready.kind):
            inside.append(i)
        last = num_points - 1 if i in inside else 1
        known = {0.0: found[-1][1.0]} if found else {}
        found.append(known | _pairs(ready, [k / last for k in range(len(known), last + 1)], tick))
    return found, inside


def _largest(points: Pairs) -> float:
    return max(loss for loss, _ in points.values())


def _highest_at_an_end(objective: Objective, segment: Segment, kind: str) -> bool:
    """Whether the loss is constant, or convex in t (the penalty is convex in the weights)."""
    if kind == "unchanged" and objective.penalty is None:
        return True
    straight = isinstance(segment, Curve) and segment.is_straight
    return straight and (kind == "unchanged" or (kind == "affine" and objective.convex))


def _refine(
    engine: Engine,
    segment: Segment,
    points: dict[float, tuple[float, float]],
    best: float,
    bound: float,
    tol: float,
    tick: Callable[[], None],
) -> tuple[float, float]:
    """Refine one segment; returns the best value and the largest estimated bound so far. New points go to `points`."""
    samples = Samples(sorted(points), [points[t][0] for t in sorted(points)])
    ready: list[Prepared] = []

    def measure(t: float) -> float:
        if not ready:
            ready.append(engine.prepare(segment))
        points.update(_pairs(ready[0], [t], tick))
        return points[t][0]

    best = refine(samples, best, tol, measure)
    return best, max(bound, best, samples.highest()[1])


def _pairs(ready: Prepared, ts: list[float], tick: Callable[[], None]) -> dict[float, tuple[float, float]]:
    losses, errors = ready.measure(ts, tick)
    return dict(zip(ts, zip(losses, errors, strict=True), strict=True))


def _grid(segments: int, num_points: int) -> list[list[float]]:
    """The local t of every segment; a point shared by two belongs to the first."""
    local = [float(t) for t in torch.linspace(0, 1, num_points, dtype=torch.float64)]
    return [local if i == 0 else local[1:] for i in range(segments)]


def _places(grid: list[list[float]]) -> list[Place]:
    return [(i, t) for i, ts in enumerate(grid) for t in ts]


def _measure(engine: Engine, segments: Sequence[Segment], grid: list[list[float]], tick: Callable[[], None]) -> Tensor:
    """[2, points]: one engine along all segments, so that each starts from what is known at its start."""
    columns = []
    for segment, ts in zip(segments, grid, strict=True):
        values = engine.prepare(segment, len(ts)).measure(ts, tick)
        columns.append(torch.tensor(values, dtype=torch.float64))
        if engine.columns is not None:
            engine.columns.close(ts)
    return torch.cat(columns, 1)


def _engines(sets: Sequence[Objective], columns: Columns | None) -> Iterator[Engine]:
    """One per data set, made when its turn comes; the last one fills the columns."""
    for i, s in enumerate(sets):
        yield Engine(s, columns=columns if i == len(sets) - 1 else None)


@dataclass
class _Ticker:
    """Counts points that are done; a point counts when all data sets have it."""

    progress: Progress
    total: int
    sets: int
    done: int = field(default=0)

    def __call__(self) -> None:
        self.done += 1
        self.progress("measuring", -(-self.done // self.sets), max(self.total // self.sets, self.done // self.sets))
