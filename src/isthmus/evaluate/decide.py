"""Points on a straight line until it is decided whether the loss stays below a level, on several data sets at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from isthmus.errors import InputError, IsthmusError
from isthmus.evaluate.band import Band, band_for
from isthmus.evaluate.batchnorm import segments_under
from isthmus.evaluate.columns import Columns
from isthmus.evaluate.engine import Engine, Prepared
from isthmus.evaluate.profile import Profile
from isthmus.evaluate.refine import Samples
from isthmus.objective import Objective
from isthmus.paths import Path

FEWEST, MOST = 9, 33
"""Points that a line starts with, and those after which it stays undecided."""


@dataclass(frozen=True, eq=False)
class Decision:
    """One data set on a line: the samples, the `level`, and the largest loss `rise` that is estimated between them.

    `below`: whether samples and estimate stay below the level. `change` [n]: of each example's loss from the larger end
    to where the mean is largest (None where losses of single examples are not there, or take too much memory).
    """

    profile: Profile
    level: float
    rise: float
    change: Tensor | None = field(repr=False)

    @property
    def below(self) -> bool:
        """False where any loss is NaN, too."""
        return self.profile.max < self.level and self.rise < self.level

    @property
    def rises(self) -> bool:
        """Whether a sample is at the level or above it, or not a number."""
        return not self.profile.max < self.level

    @property
    def at(self) -> float:
        """Where the largest sample is."""
        return float(self.profile.t[int(self.profile.loss.argmax())])


@dataclass(eq=False)
class _Line:
    """A data set on the line, with all that was measured so far."""

    prepared: Prepared
    columns: Columns
    values: dict[float, tuple[float, float]] = field(default_factory=dict)
    order: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, objective: Objective, path: Path, segment: object) -> _Line:
        columns = Columns.of(objective.memory)
        engine = Engine(objective, columns=columns)
        return cls(engine.prepare(segment, FEWEST), columns)  # type: ignore[arg-type]

    def measure(self, ts: list[float]) -> None:
        losses, errors = self.prepared.measure(ts)
        self.columns.close(ts)
        self.order += ts
        self.values |= dict(zip(ts, zip(losses, errors, strict=True), strict=True))

    @property
    def samples(self) -> Samples:
        ts = sorted(self.values)
        return Samples(ts, [self.values[t][0] for t in ts])

    def sorted(self) -> Columns:
        """The columns in the order of t."""
        places = sorted(range(len(self.order)), key=self.order.__getitem__)
        held = self.columns
        held.losses[:] = [held.losses[i] for i in places] if held.losses else []
        held.errors[:] = [held.errors[i] for i in places] if held.errors else []
        return held


def decide(
    sets: Sequence[Objective],
    path: Path,
    level: Callable[[tuple[float, float]], float],
    *,
    bn: str | None = None,
    held_out: Sequence[bool] = (),
    first: Sequence[float] = (),
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Decision]:
    """Measure the losses on the one segment of `path` at ``FEWEST`` points, then where they may reach the level.

    `level`: from the losses of the ends. `bn`: as for ``profile``; statistics that are computed again are those of the
    first set. `held_out`: for each set whether it gets a ``population``. `first`: what is measured before all other
    points; a sample at the level among them is the end of it. The estimate between the points is that of
    ``refine.Samples``: no rise that fits between two of the first points is seen.

    Cost: ``FEWEST`` passes over each set, or at most ``MOST``; as many more for statistics that are computed again.
    """
    if len(path) != 1:
        raise InputError("path", expected="one segment", got=len(path))
    segments, policy = segments_under(sets[0], path, bn)
    lines = [_Line.of(one, path, segments[0]) for one in sets]
    grid = [i / (FEWEST - 1) for i in range(FEWEST)]
    if first:
        _measure(lines, sorted({0.0, 1.0, *first}), progress)
    if not first or not _is_over(lines, level):
        _measure(lines, grid, progress)
    while (t := _next(lines, level)) is not None:
        _measure(lines, [t], progress)
    flags = [*held_out, *[False] * (len(sets) - len(held_out))]
    return [_decision(*each, policy, level) for each in zip(sets, lines, flags, strict=True)]


def _measure(lines: Sequence[_Line], ts: Sequence[float], progress: Callable[[str, int, int], None]) -> None:
    """The points that are not known yet, on all data sets."""
    fresh = [t for t in ts if t not in lines[0].values]
    for line in lines:
        line.measure(fresh)
    progress("measuring the line", len(lines[0].values), max(FEWEST, len(lines[0].values)))


def _is_over(lines: Sequence[_Line], level: Callable[[tuple[float, float]], float]) -> bool:
    """Whether a sample is at its level or above it."""
    return any(_top(line) >= level(_ends(line)) for line in lines)


def _ends(line: _Line) -> tuple[float, float]:
    return line.values[0.0][0], line.values[1.0][0]


def _top(line: _Line) -> float:
    """The largest sample; NaN counts as infinite."""
    return max(loss if loss == loss else float("inf") for loss, _ in line.values.values())


def _next(lines: Sequence[_Line], level: Callable[[tuple[float, float]], float]) -> float | None:
    """The middle of the interval whose estimate is farthest above its level; None when all is decided."""
    if len(lines[0].values) >= MOST or _is_over(lines, level):
        return None
    open_ones = []
    for line in lines:
        samples, most = line.samples, level(_ends(line))
        i, bound = samples.highest()
        if bound >= most:
            open_ones.append(((bound - most) / (abs(most) or 1.0), (samples.t[i] + samples.t[i + 1]) / 2))
    return max(open_ones)[1] if open_ones else None


def _decision(
    objective: Objective, line: _Line, held_out: bool, policy: str, level: Callable[[tuple[float, float]], float]
) -> Decision:
    t = torch.tensor(sorted(line.values), dtype=torch.float64)
    pairs = torch.tensor([line.values[float(p)] for p in t], dtype=torch.float64)
    loss, error = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
    top, columns = _top(line), line.sorted()
    rise = top if not top < float("inf") else max(top, line.samples.highest()[1])
    within = rise - top if top < float("inf") else None
    found = Profile(t, torch.zeros(len(t), dtype=torch.int64), loss, error, FEWEST, bn=policy, within=within)
    change = None
    if columns.losses and top < float("inf"):
        high, end = int(loss.argmax()), 0 if loss[0] >= loss[-1] else -1
        change = columns.losses[high].double() - columns.losses[end].double()
    band = _band(objective, columns, found) if held_out else None
    return Decision(replace(found, population=band), level(_ends(line)), rise, change)


def _band(objective: Objective, columns: Columns, found: Profile) -> Band | None:
    """What the set says of its population, where it says anything."""
    try:
        return band_for(objective, columns, found.t, found.loss)
    except IsthmusError:
        return None
