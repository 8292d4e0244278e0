"""The loss and the error rate along a path."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isthmus.errors import InputError, IsthmusError, UnsupportedError
from isthmus.evaluate.band import LEVEL, Band, band_for
from isthmus.evaluate.batchnorm import others, segments_under
from isthmus.evaluate.columns import Columns
from isthmus.evaluate.sample import Sampled, adaptively, on_grid, screened
from isthmus.evaluate.screen import SCREENS, bf16_pays
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.matching import check_own
from isthmus.paths import HasPath, Path, Segment, path_of
from isthmus.shown import brief, draw, line, one_line, plural, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@one_line
@dataclass(frozen=True)
class Barriers:
    """One quantity q(t) along a path, summed up by every definition in use.

    `max`: max_t q(t). `excess`: max_t q(t) - max(q(0), q(1)), the epsilon of the theorems. `linear`: max_t of
    q(t) - ((1-t) q(0) + t q(1)). `mean`: max_t q(t) - (q(0) + q(1)) / 2.

    >>> Barriers.of(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 4.0, 2.0]))
    Barriers(max=4.0, excess=2.0, linear=2.5, mean=2.5)
    """

    max: float
    excess: float
    linear: float
    mean: float

    @classmethod
    def of(cls, t: Tensor, q: Tensor) -> Barriers:
        """From samples q at t, of which the first and the last are the ends. Any NaN makes all of them NaN."""
        return cls(**{f.name: float(heights(t, q, f.name).max()) for f in fields(cls)})


MEASURED = ("quantity", "at A", "at B", "max", "at t", "excess", "linear", "mean", "population")
"""The headings of a ``measured_row``."""


def measured_row(name: str, t: Tensor, q: Tensor, population: object = None) -> list[object]:
    """One quantity along a path, for people: at the ends, its largest sample, ``Barriers``, that of the population.

    >>> measured_row("loss", torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 4.0, 2.0]))
    ['loss', 1.0, 2.0, 4.0, 0.5, 2.0, 2.5, 2.5, None]
    """
    top, *others = asdict(Barriers.of(t, q)).values()
    at = float(t[int(q.nan_to_num(nan=torch.inf).argmax())])
    return [name, float(q[0]), float(q[-1]), top, at, *others, None if population is None else str(population)]


def heights(t: Tensor, q: Tensor, definition: str) -> Tensor:
    """How far each sample is above what that definition of ``Barriers`` compares it with; any NaN makes all NaN.

    >>> heights(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 4.0, 2.0]), "linear")
    tensor([0.0000, 2.5000, 0.0000])
    """
    a, b = q[0], q[-1]
    floors = {
        "max": torch.zeros_like(a), "excess": torch.maximum(a, b), "linear": (1 - t) * a + t * b, "mean": (a + b) / 2
    }  # fmt: skip
    above = q - floors[definition]
    return above * torch.nan if bool(q.isnan().any()) else above


@dataclass(frozen=True, eq=False)
class Profile:
    """Samples of the loss and the error rate at `t`, float64; `segment` says to which segment each belongs.

    The maximum is over the samples: a measured value, not a bound (see ``certify``). `test` is the profile of the
    same path on a second data set, and its `population` is what these examples say about all there could be, at level
    0.95 (see ``population``; None where they say nothing, with `screen`, and of training data).
    `bn`: what became of BatchNorm's running statistics ("none" where there are none); `beside`: the same points under
    the other policies, where they were asked for.
    `confirmed`: the points measured in the working precision; the others keep values of the precision `screen`, and
    none of them, taken with the `margin` of its quantity ("loss", "error"), reaches a maximum that is reported.
    `tol`, `within`: the tolerance asked for, and how far above `max` the loss was estimated to rise between the points.
    `reading`: the seconds of this call that went into reading the network's graph, which later calls do not need; not
    stored.

    `loss`, `error`: [points]; NaN where no error is defined. `num_points`: those that were asked for on each segment.
    """

    t: Tensor
    segment: Tensor
    loss: Tensor
    error: Tensor
    num_points: int
    test: Profile | None = None
    bn: str = "none"
    beside: Mapping[str, Profile] = field(default_factory=dict)
    confirmed: Tensor = field(default_factory=lambda: torch.ones(0, dtype=torch.bool))
    screen: str | None = None
    margin: dict[str, float] = field(default_factory=dict)
    tol: float | None = None
    within: float | None = None
    reading: float = 0.0
    population: Band | None = None

    def __post_init__(self) -> None:
        if not len(self.confirmed):
            object.__setattr__(self, "confirmed", torch.ones(len(self.t), dtype=torch.bool))

    def __repr__(self) -> str:
        found = [f"{name} {brief(value)}" for name, value in (("max", self.max), ("excess", self.excess))]
        return line(self, plural(len(self.t), "point"), *found, *(["test"] if self.test is not None else []))

    def plot(self, ax: Axes | None = None, label: str | None = None) -> Axes:
        """The loss along the path, drawn on `ax` (default: new axes), beside what is there. Needs ``isthmus[plot]``.

        `label`: its name in the legend, to tell several on the same axes apart.
        """
        return draw(self, ax, label=label)

    def _repr_html_(self) -> str:
        rows = self._rows("") + ([] if self.test is None else self.test._rows("test "))
        return table(MEASURED, rows, repr(self))

    def _rows(self, data: str) -> list[list[object]]:
        band = self.population
        known = {} if band is None else {"loss": band.highest, "error": band.error and band.error.highest}
        both = (("loss", self.loss), ("error", self.error))
        return [measured_row(f"{data}{name}", self.t, q, known.get(name)) for name, q in both]

    @cached_property
    def barriers(self) -> dict[str, Barriers]:
        """Every barrier definition, for "loss" and "error"."""
        return {"loss": Barriers.of(self.t, self.loss), "error": Barriers.of(self.t, self.error)}

    @property
    def max(self) -> float:
        """The largest sampled loss."""
        return self.barriers["loss"].max

    @property
    def excess(self) -> float:
        """max_t L(t) - max(L(0), L(1))."""
        return self.barriers["loss"].excess

    @property
    def barrier(self) -> float:
        """The excess: the default meaning of "barrier" here. `barriers` has the other definitions."""
        return self.excess

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in profile.json."""
        return {
            "format": 1,
            "num_points": self.num_points,
            "t": self.t.tolist(),
            "segment": self.segment.tolist(),
            **self._values(),
            "bn": self.bn,
            "beside": {policy: found._values() for policy, found in self.beside.items()},
            "confirmed": self.confirmed.tolist(),
            "screen": self.screen,
            "margin": self.margin,
            "tol": self.tol,
            "within": self.within,
        }

    def _values(self) -> dict[str, Any]:
        return {
            "loss": self.loss.tolist(),
            "error": self.error.tolist(),
            "barriers": {k: asdict(v) for k, v in self.barriers.items()},
            "test": None if self.test is None else {k: v for k, v in self.test._values().items() if k != "test"},
            "population": None if self.population is None else self.population.to_dict(),
        }


def profile(
    objective: Objective,
    path: Path | HasPath | str | os.PathLike[str],
    num_points: int = 61,
    *,
    test: Objective | None = None,
    bn: str | None = None,
    screen: str | None = None,
    tol: float | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Profile:
    """Measure the loss and the error at `num_points` equidistant points of every segment, both ends included.

    `path`: a path, a result that has one, or a file of ``save``, of which one point at a time is in memory. Segment i
    of n covers t in [i/n, (i+1)/n]; points shared by two segments are measured once. Cost: what changes, computed once
    (see ``Engine``): nothing beyond its ends for a segment that moves dead or equal units, one or two passes over the
    data for one that moves the last layer, at most num_points - 1 for any other; the same for `test`. One pass for
    every point where the data are streamed, or the path stays in its file.

    `bn`: BatchNorm's running statistics are computed again at every point from fixed batches of the objective's data
    ("recompute": one more pass per point, the same statistics for `test`), are moved along the segments like weights
    ("interpolate"; what ``path.at`` holds and what ``certify`` speaks about), or stay those of the start ("keep");
    "error" refuses networks that have them. None is what the path says: "interpolate" where the statistics are part of
    a construction, as for ``Subnetwork``, else "recompute".

    `screen`: "bf16" measures segments on which nothing can be saved in bfloat16 first, and again in the working
    precision where a maximum may be; "auto" does so only if bfloat16 is measured to be faster here. `tol`: instead of a
    grid, start each segment with ``min(num_points, START)`` points and halve intervals until none is estimated to rise
    more than `tol` above the largest loss found. The estimate (``refine.Samples``) sees no rise that fits between two
    starting points.

    Errors: ``InputError`` for options that do not fit and for a path along which integer tensors change that the
    outputs depend on, ``UnsupportedError`` for bn="error" with BatchNorm and for a network that bfloat16 cannot run.

    >>> from isthmus.paths import Path
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> path = Path.through([{"weight": torch.eye(2)}, {"weight": -torch.eye(2)}])
    >>> p = profile(objective, path, num_points=3)
    >>> p.t.tolist(), p.error.tolist(), p.excess
    ([0.0, 0.5, 1.0], [0.0, 0.5, 1.0], 0.0)
    """
    check_kinds(profile, locals())
    path = opened(path, objective)
    _check(num_points, screen, tol)
    start = path.start
    check_own(start, objective.check(start, "path"))
    del start  # which may be the only copy
    segments, policy = segments_under(objective, path, bn)
    sets = [objective] if test is None else [objective, test]
    columns = Columns.of((test or objective).memory)
    read = _seconds_of_reading(sets)
    screen = _screen(screen, sets, path)
    if tol is not None:
        sampled = adaptively(sets, segments, num_points, tol, progress, columns)
    elif screen is not None:
        sampled = _screened(sets, segments, num_points, progress)
    else:
        sampled = on_grid(sets, segments, num_points, progress, None if test is None else columns)
    found = _profile(sampled, len(path), num_points, policy, screen, tol)
    found = _with_population(found, test, columns)
    return replace(found, reading=_seconds_of_reading(sets) - read)


def _screen(asked: str | None, sets: list[Objective], path: Path) -> str | None:
    """The precision that screens, if one does."""
    if asked is not None and not all(s.in_memory for s in sets):
        raise UnsupportedError(f"screen={asked!r}", "it needs the data in memory", "leave screen out")
    if asked == "auto" and not bf16_pays(sets[0], sets[0].check(path.start, "path")):
        return None
    return None if asked is None else "bf16"


def _screened(
    sets: list[Objective], segments: Sequence[Segment], num_points: int, progress: Callable[[str, int, int], None]
) -> Sampled:
    try:
        return screened(sets, segments, num_points, progress)
    except RuntimeError as e:
        why = f"the network does not run in bfloat16: {next(iter(str(e).splitlines()), '')}"
        raise UnsupportedError("screen='bf16'", why, "leave screen out") from e


def _with_population(found: Profile, test: Objective | None, columns: Columns) -> Profile:
    """The same with what the test set says of its population, where it says anything."""
    if test is not None and found.test is not None:
        with suppress(IsthmusError):
            return replace(found, test=replace(found.test, population=_band(test, columns, found.test)))
    return found


def band_along(
    test: Objective, path: Path, level: float, *, num_points: int, bn: str | None, train: Objective, seed: int
) -> Band:
    """The band of ``population``; recomputed statistics come from the data of `train`."""
    _check(num_points, None, None)
    check_own(path.start, test.check(path.start, "path"))
    segments, policy = segments_under(train, path, bn)
    columns = Columns.of(test.memory)
    sampled = on_grid([test], segments, num_points, lambda what, done, total: None, columns)
    return _band(test, columns, _profile(sampled, len(path), num_points, policy, None, None), level, seed)


def _band(test: Objective, columns: Columns, found: Profile, level: float = LEVEL, seed: int = 0) -> Band:
    return band_for(test, columns, found.t, found.loss, level, seed)


def _seconds_of_reading(sets: list[Objective]) -> float:
    """What reading the graphs of these objectives, which may share them, took until now."""
    return sum({id(s.graphs): s.graphs.seconds for s in sets}.values())


def opened(path: Path | HasPath | str | os.PathLike[str], objective: Objective) -> Path:
    """The path itself, of a result that has one, or of a file, in which it stays; read to the objective's device."""
    if not isinstance(path, str | os.PathLike):
        return path_of(path)
    # upwards, and only for a file, as for the checkpoints of an objective
    from isthmus.storage.on_file import open_path

    return open_path(os.fspath(path), objective.device)


def beside_others(
    found: Profile,
    objective: Objective,
    path: Path,
    *,
    test: Objective | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Profile:
    """`found`, measured on a grid, with the same points under the other policies of BatchNorm `beside` it."""
    if found.tol is not None:
        raise InputError("found", expected="a profile on a grid", got=f"points chosen with tol={found.tol}")
    more = {
        policy: profile(objective, path, found.num_points, test=test, bn=policy, progress=progress)
        for policy in others(found.bn)
    }
    return replace(found, beside=more)


def check_points(num_points: int) -> None:
    """Refuse fewer points per segment than its ends."""
    if num_points < 2:
        raise InputError("num_points", expected="at least 2 points per segment", got=num_points)


def _check(num_points: int, screen: str | None, tol: float | None) -> None:
    check_points(num_points)
    if screen is not None and screen not in SCREENS:
        raise InputError("screen", expected=f"None or one of {SCREENS}", got=repr(screen))
    if tol is not None and not 0 < tol < float("inf"):
        raise InputError("tol", expected="a number > 0", got=tol)
    if tol is not None and screen is not None:
        raise InputError("screen", expected="None with tol, which needs exact values", got=repr(screen))


def _profile(
    found: Sampled, segments: int, num_points: int, policy: str, screen: str | None, tol: float | None
) -> Profile:
    t = torch.tensor([(i + s) / segments for i, s in found.places], dtype=torch.float64)
    segment = torch.tensor([i for i, _ in found.places])
    test = None
    for values, margin in reversed(list(zip(found.values, found.margins, strict=True))):
        test = Profile(
            t, segment, values[0], values[1], num_points, test,
            bn=policy, confirmed=found.confirmed, screen=screen, margin=margin, tol=tol, within=found.within,
        )  # fmt: skip
    assert test is not None  # noqa: S101
    return test
