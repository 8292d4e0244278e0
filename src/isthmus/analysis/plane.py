"""The loss and the error on the plane through three networks, with a path seen on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isthmus.analysis.frame import Frame, from_line
from isthmus.checks import refuse_unless_whole
from isthmus.connectors.curves.losses import CurveLosses
from isthmus.errors import InputError
from isthmus.evaluate.batchnorm import POLICIES, applied, refresh, statistics
from isthmus.evaluate.profile import opened
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.described import bound
from isthmus.objective.drawn import on_some
from isthmus.objective.given import ParamsLike
from isthmus.objective.skeleton import ties_of
from isthmus.params import Params, check_ends, in_dtype, moves, nonfinite
from isthmus.paths import Curve, HasPath, Path
from isthmus.shown import brief, draw, line, one_line, table
from isthmus.training.memory import Memory, forget, memory_of
from isthmus.training.progress import Progress, no_progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ALONG = 61
"""Points of a path that are placed on the plane, at equal t, besides its knots."""


@one_line
@dataclass(frozen=True, eq=False)
class PlaneValues:
    """On one data set: loss (penalty included) and error, float64, of the grid [points, points], row i at y[i], and of
    the three corners [3]. The error is NaN where none is defined.

    `loss`, `error`: of the grid. `corner_loss`, `corner_error`: of the corners.
    """

    loss: Tensor
    error: Tensor
    corner_loss: Tensor
    corner_error: Tensor


@dataclass(frozen=True, eq=False)
class Plane:
    """What ``plane`` found, in units of weight space.

    `x`, `y`: of the columns and the rows of the grid. `train`, `test`: the values. `exact`: the cells that were
    measured on all examples, [points, points]; the others on `screen` drawn ones. `corners`: (x, y) of a, b and c. `t`,
    `path` [n, 2], `off` [n]: points of the path, their nearest ones on the plane, and their distances from it. `bn`:
    what became of BatchNorm's statistics. ``frame.at(x, y)`` is the network there, ``frame.axes`` are the two
    directions.
    """

    frame: Frame
    x: Tensor
    y: Tensor
    train: PlaneValues
    test: PlaneValues | None
    exact: Tensor
    corners: Tensor
    t: Tensor
    path: Tensor
    off: Tensor
    bn: str
    screen: int | None

    def __repr__(self) -> str:
        away = [f"path up to {brief(float(self.off.max()))} off"] if len(self.off) else []
        grid = f"{len(self.x)} x {len(self.y)} points"
        return line(self, grid, self._range, *away)

    @property
    def _range(self) -> str:
        """Of the losses, in words."""
        known = self.loss[self.loss.isfinite()]
        if len(known) == 0:
            return "no loss is finite"
        more = self.loss.numel() - len(known)
        said = f"loss {brief(float(known.min()))} to {brief(float(known.max()))}"
        return said + (f", {more} not finite" if more else "")

    @property
    def loss(self) -> Tensor:
        """The training loss on the grid."""
        return self.train.loss

    @property
    def error(self) -> Tensor:
        """The training error on the grid."""
        return self.train.error

    def _repr_html_(self) -> str:
        rows = [
            (name, *place, loss, None if self.test is None else test)
            for name, place, loss, test in zip(
                "abc", self.corners.tolist(), self.train.corner_loss.tolist(),
                (self.test or self.train).corner_loss.tolist(), strict=True,
            )
        ]  # fmt: skip
        return table(("corner", "x", "y", "loss", "test loss"), rows, repr(self))

    def plot(self, ax: Axes | None = None) -> Axes:
        """The loss as contours, with the corners and the path, on `ax` (default: new axes). Needs ``isthmus[plot]``."""
        return draw(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in plane.json."""
        sets = {"train": self.train, "test": self.test}
        tensors = {k: getattr(self, k).tolist() for k in ("x", "y", "exact", "corners", "t", "path", "off")}
        values = {
            name: None if held is None else {k: v.tolist() for k, v in vars(held).items()}
            for name, held in sets.items()
        }
        return {"format": 1, **tensors, **values, "bn": self.bn, "screen": self.screen}


def plane(
    objective: Objective,
    a: ParamsLike | Path | HasPath,
    b: ParamsLike | None = None,
    c: ParamsLike | None = None,
    path: Path | HasPath | str | os.PathLike[str] | None = None,
    points: int = 21,
    margin: float = 0.2,
    test: Objective | None = None,
    bn: str | None = None,
    screen: int | None = None,
    folder: Memory | os.PathLike[str] | str = forget,
    progress: Progress = no_progress,
) -> Plane:
    """Loss and error on a grid of `points` x `points` networks of the plane through `a`, `b` and `c`.

    ``plane(objective, curve)``: a path, or a result that has one, in place of all three and of `path`. a and b are its
    ends, c is the control point or knot that lies farthest from their line.

    The first axis runs from a to b, the second from their line to c, both in units of weight space. The grid covers
    the corners and the `path` (a path, a result that has one, or a file), and `margin` times their extent beyond. A
    path is seen from above: `off` says how far from the plane it is, 0 for a curve with three control points of
    which c is the middle one. With BatchNorm (`bn`, as in ``profile``: None is what the path says, else "recompute")
    statistics are computed again at every point ("recompute"), are those of a ("keep"), or coordinates like weights
    ("interpolate").

    `screen`: measure the grid on so many examples first, drawn from all of each data set (in bfloat16 where that
    pays), then on all of them the cells around the path, the corners and the lowest point. `folder`: keeps every row
    that is done, so that the same call goes on after it was killed, to the same values. Cost: points^2 passes over the
    data, the same for `test`, twice that with recomputed statistics.

    Errors: ``InputError`` where a, b and c span no plane, and for options that do not fit; ``UnsupportedError`` for
    `screen` where examples are streamed without numbers.

    Source: Garipov, Izmailov, Podoprikhin, Vetrov, Wilson 2018, Figure 1.

    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> a, b, c = ({"weight": torch.tensor(w)} for w in ([[1.0, 0], [0, 1]], [[3.0, 0], [0, 3]], [[2.0, 0], [0, 1]]))
    >>> found = plane(objective, a, b, c, points=5, margin=0.0)
    >>> found.x[-1] == found.frame.width, found.train.corner_loss.tolist() == [objective.loss(p) for p in (a, b, c)]
    (tensor(True), True)
    """
    check_kinds(plane, locals())
    _check(points, margin, screen, objective)
    alone = _alone(a, b, c, path)
    walked = alone if path is None else opened(path, objective)
    policy = _policy(objective, bn or (walked.bn if walked else None))
    named = _three(a, b, c) if alone is None else _corners(objective, alone, policy)
    frame = _frame(objective, named, policy)
    corners = torch.tensor([[0.0, 0.0], [frame.width, 0.0], [frame.shift, frame.height]], dtype=torch.float64)
    t, places = _along(objective, frame, walked)
    x, y = (_axis(torch.cat([corners, places[:, :2]])[:, k], points, margin) for k in range(2))
    sets = [objective] if test is None else [objective, test]
    screen = _screened(sets, screen)
    near = _near(x, y, torch.cat([corners, places[:, :2]]))
    work = _Grid(frame, x, y, near, [_Measured(s, objective, policy) for s in sets], _rough(sets, policy, screen))

    def known() -> dict[str, Any]:
        told = {"x": x.tolist(), "y": y.tolist(), "near": near.tolist(), "bn": policy, "drawn": screen}
        return {"corners": [frame.a, frame.b, frame.c], **told, **bound(*sets)}

    work.run(memory_of(folder, known, steps=1), progress)
    values = [PlaneValues(v[0], v[1], *work.corners(k)) for k, v in enumerate(work.values)]
    train, held_out = values[0], values[1] if test is not None else None
    return Plane(frame, x, y, train, held_out, work.exact, corners, t, places[:, :2], places[:, 2], policy, screen)


def _screened(sets: Sequence[Objective], screen: int | None) -> int | None:
    """So many examples; None where these are all that any data set has."""
    return screen if screen is not None and any(s.num_examples > screen for s in sets) else None


def _check(points: int, margin: float, screen: int | None, objective: Objective) -> None:
    refuse_unless_whole("points", points, 2)
    refuse_unless_whole("screen", screen, 2)
    if not 0 <= margin < float("inf"):
        raise InputError("margin", expected="a number >= 0", got=margin)
    if screen is not None:
        objective.source.few()  # there must be examples


def _alone(given: Any, *others: Any) -> Path | None:
    """The path that is `given` in place of all `others`, itself or by a result; None for a network."""
    path = given.path if isinstance(given, HasPath) else given
    if not isinstance(path, Path):  # a module may have a `path` of another kind
        return None
    if any(v is not None for v in others):
        raise InputError("a", expected="a network where b, c or path are given", got="a path, which stands for them")
    return path


def _three(*given: Any) -> tuple[ParamsLike, ...]:
    """a, b and c, none of which is missing."""
    for name, one in zip("abc", given, strict=True):
        if one is None:
            raise InputError(name, expected="a network, or a path in place of a, b and c", got="None")
    return given


def _policy(objective: Objective, bn: str | None) -> str:
    policy = applied(objective, bn or POLICIES[0])
    if policy == "error":
        raise InputError(
            "bn", expected="'recompute', 'interpolate' or 'keep' for networks with BatchNorm", got="'error'"
        )
    return policy


def _frame(objective: Objective, named: Sequence[ParamsLike], policy: str) -> Frame:
    corners = [objective.check(p, name) for p, name in zip(named, "abc", strict=True)]
    still = _still(objective, policy)
    check_ends(*({k: v for k, v in p.items() if k not in still} for p in corners))
    objective.check_path(corners, "c")
    a, b, c = (_copy_of(objective, p) for p in corners)
    return Frame(a, b, c, _moving(objective, a, policy))


def _still(objective: Objective, policy: str) -> Sequence[str]:
    """What is not a coordinate of the plane: statistics that are not interpolated."""
    return () if policy == "interpolate" else statistics(objective)


def _moving(objective: Objective, point: Params, policy: str) -> tuple[str, ...]:
    """The coordinates of the plane; tensors with infinities (masks) are the same everywhere."""
    still = _still(objective, policy)
    return tuple(k for k, v in point.items() if moves(v) and k not in still and nonfinite({k: v}) is None)


def _corners(objective: Objective, path: Path, policy: str) -> tuple[Params, Params, Params]:
    """The ends of the path, and the control point or knot that is farthest from the line through them."""
    names = _moving(objective, path.start, policy)
    points = [p for s in path.segments for p in (s.control if isinstance(s, Curve) else (s.start, s.at(0.5), s.end))]
    return path.start, path.end, max(points, key=lambda p: from_line(p, path.start, path.end, names))


def farthest(objective: Objective, path: Path, bn: str | None = None) -> Params:
    """The third network of ``plane(objective, path)``: the control point or knot farthest from the path's line."""
    return _corners(objective, path, _policy(objective, bn or path.bn))[2]


def _copy_of(objective: Objective, point: Params) -> Params:
    """Tied tensors once; copies, as a state_dict shares memory with its module."""
    ties = ties_of(objective.skeleton)
    return {k: v.clone() for k, v in point.items() if k not in ties}


def _along(objective: Objective, frame: Frame, path: Path | None) -> tuple[Tensor, Tensor]:
    """The t of points of the path, and (x, y, distance from the plane) of each."""
    if path is None:
        return torch.zeros(0, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64)
    ts = sorted({i / (_ALONG - 1) for i in range(_ALONG)} | {i / len(path) for i in range(len(path) + 1)})
    places = [frame.place(objective.check(path.at(t), "path")) for t in ts]
    return torch.tensor(ts, dtype=torch.float64), torch.tensor(places, dtype=torch.float64)


def _axis(seen: Tensor, points: int, margin: float) -> Tensor:
    low, high = float(seen.min()), float(seen.max())
    beyond = margin * (high - low)
    return torch.linspace(low - beyond, high + beyond, points, dtype=torch.float64)


def _near(x: Tensor, y: Tensor, places: Tensor) -> Tensor:
    """The cells [points, points] that are at most one step from one of the places."""
    columns, rows = ((places[:, k, None] - v).abs() <= v[1] - v[0] for k, v in enumerate((x, y)))
    return (rows[:, :, None] & columns[:, None, :]).any(0)


def _rough(sets: Sequence[Objective], policy: str, screen: int | None) -> list[_Measured]:
    """The data sets with some of their examples alone; empty where nothing is screened."""
    if screen is None:
        return []
    few = [on_some(s, screen) for s in sets]
    low = policy == "none" and CurveLosses.of(sets[0], POLICIES[0], "auto").low
    few = [s.cast(torch.bfloat16) if low else s for s in few]
    return [_Measured(s, few[0], policy) for s in few]


@dataclass(frozen=True)
class _Measured:
    """One data set, measured with the statistics of `training` data."""

    objective: Objective
    training: Objective
    policy: str

    def at(self, point: Params) -> tuple[float, float]:
        """(loss, error)."""
        point = self.training.check({k: in_dtype(v, self.training.dtype) for k, v in point.items()})
        if self.policy == "recompute":
            point = refresh(self.training, point)
        return self.objective.measure(point)


@dataclass(eq=False)
class _Grid:
    """The grid row by row: all cells, roughly where that is asked for, and then those that are wanted exactly.

    `near`: cells [points, points] that are. `values`: [sets, 2, points, points], `exact` [points, points], `done`,
    the number of rows that were computed, and `lowest`, the number of the cell that was lowest at first, are the
    state.
    """

    frame: Frame
    x: Tensor
    y: Tensor
    near: Tensor
    exactly: list[_Measured]
    roughly: list[_Measured]
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    exact: Tensor = field(default_factory=lambda: torch.zeros(0))
    done: int = 0
    lowest: int = 0

    def run(self, memory: Memory, progress: Progress) -> None:
        """Compute what a memory does not hold yet."""
        n = len(self.y)
        self.values = torch.full((len(self.exactly), 2, n, n), float("nan"), dtype=torch.float64)
        self.exact = torch.zeros(n, n, dtype=torch.bool)
        if (kept := memory.load()) is not None:
            self.values, self.exact = kept[0]["values"], kept[0]["exact"]
            self.done, self.lowest = kept[1]["done"], kept[1]["lowest"]
        total = n * (2 if self.roughly else 1)
        for k in range(self.done, total):
            self._row(k % n, k >= n)
            self.done = k + 1
            if self.done == n:
                self.lowest = int(self.values[0, 0].nan_to_num(nan=float("inf")).argmin())
            if memory.due(self.done):
                memory.save({"values": self.values, "exact": self.exact}, {"done": self.done, "lowest": self.lowest})
            progress("measuring the plane", self.done, total)

    def _row(self, i: int, again: bool) -> None:
        """Row i; `again`: those of its cells that are wanted exactly."""
        sets = self.roughly if self.roughly and not again else self.exactly
        wanted = self._wanted()[i] if again else torch.ones(len(self.x), dtype=torch.bool)
        for j in wanted.nonzero().flatten().tolist():
            point = self.frame.at(float(self.x[j]), float(self.y[i]))
            self.values[:, :, i, j] = torch.tensor([s.at(point) for s in sets], dtype=torch.float64)
            self.exact[i, j] = sets is self.exactly

    def _wanted(self) -> Tensor:
        """The cells near the path and the corners, and those around the lowest one that was screened."""
        i, j = divmod(self.lowest, len(self.x))
        around = torch.zeros_like(self.near)
        around[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2] = True
        return self.near | around

    def corners(self, k: int) -> tuple[Tensor, Tensor]:
        """(losses, errors) of a, b and c on data set k, on all its examples."""
        frame = self.frame
        places = ((0.0, 0.0), (frame.width, 0.0), (frame.shift, frame.height))
        loss, error = torch.tensor([self.exactly[k].at(frame.at(*p)) for p in places], dtype=torch.float64).T
        return loss, error
