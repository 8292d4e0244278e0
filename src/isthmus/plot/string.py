"""Strings of networks in their first three principal directions, coloured by the loss, and how they grew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus import paths
from isthmus.analysis.projection import gram_of, principal
from isthmus.connectors import Connection
from isthmus.errors import InputError
from isthmus.evaluate import profile
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.paths import Curve
from isthmus.plot.figures import settings
from isthmus.plot.runs import Floats
from isthmus.training.progress import Progress, no_progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0b4f9e", "#2f8fd0", "#8fb8a0", "#f0b43c", "#e2661f", "#a3123a")
"""From the lowest loss to the highest."""

_SHADOW = "#9aa1a8"


@dataclass(frozen=True, eq=False)
class _Frame:
    """One string: `points` [n, 3] along it with the `loss` there; `knots` marks its beads; `title` says what it is."""

    points: Floats
    loss: Floats
    knots: np.ndarray[Any, np.dtype[np.bool_]]
    title: str


@dataclass(frozen=True, eq=False)
class Strings:
    """Strings on the same three directions, those of the last one; `variance`: the fraction each direction carries."""

    frames: tuple[_Frame, ...]
    variance: tuple[float, ...]
    threshold: float | None

    @property
    def box(self) -> tuple[Floats, Floats]:
        """The middle of all strings [3], and half the sides [3] of a box around them, none too flat to see."""
        everything = np.concatenate([f.points for f in self.frames])
        low, high = everything.min(0), everything.max(0)
        half = (high - low) / 2
        return (low + high) / 2, np.maximum(1.12 * half, max(0.5 * float(half.max()), 1e-12))

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest loss to tell apart: half the threshold (else the smallest loss), the largest."""
        losses = np.concatenate([f.loss for f in self.frames])
        positive = losses[np.isfinite(losses) & (losses > 0)]
        top = float(positive.max()) if len(positive) else 1.0
        low = self.threshold / 2 if self.threshold else float(positive.min()) if len(positive) else 0.1
        low = max(low, top * 1e-6)
        return low, max(top, 2 * low)


def strings(
    objective: Objective,
    connection: Connection,
    *,
    num_points: int = 41,
    history: bool = True,
    progress: Progress = no_progress,
) -> Strings:
    """The string of a connection, and with `history` the strings it had at every depth on the way.

    A bead of ``StringSampling`` stays where it was put, so the string of depth d is the one through the beads born up
    to d; for other methods there is only the last one. The directions are the principal components of the beads
    of the last string (Freeman and Bruna 2017, appendix C). Cost: a profile of each string at `num_points` points a
    segment. Errors: a path with curved segments.

    >>> import torch
    >>> objective = Objective(torch.nn.Linear(2, 1, bias=False), "mse", (torch.eye(2), torch.zeros(2, 1)))
    >>> path = paths.Path.through([{"weight": torch.tensor([v])} for v in ([1.0, 0.0], [0.0, 0.0], [0.0, 1.0])])
    >>> from isthmus.connectors import Outcome
    >>> found = strings(objective, Connection(path, path.end, Outcome.CONSTRUCTED), num_points=3)
    >>> found.frames[0].points.shape, [round(v, 3) for v in found.variance], found.frames[0].loss.tolist()
    ((5, 3), [0.75, 0.25, 0.0], [0.5, 0.125, 0.0, 0.125, 0.5])
    """
    path = connection.path
    _check_straight(path)
    knots = list(path.knots)
    where, variance = principal(gram_of(knots), 3)
    born: list[int] = connection.stats.get("born") or []
    threshold = connection.stats.get("threshold", {})
    level = threshold["value"] if threshold.get("quantity") == "loss" else None
    depths: list[int | None] = [*sorted(set(born))] if history and born else [None]
    frames = []
    for i, depth in enumerate(depths):
        chosen = [k for k in range(len(knots)) if depth is None or born[k] <= depth]
        frames.append(_frame(objective, [knots[k] for k in chosen], where[chosen], num_points, depth))
        progress("measuring strings", i + 1, len(depths))
    return Strings(tuple(frames), variance, level)


def _check_straight(path: paths.Path) -> None:
    for i, segment in enumerate(path.segments):
        if not isinstance(segment, Curve) or not segment.is_straight:
            raise InputError("path", expected="straight segments", got=f"segment {i}, which is curved")


def _frame(objective: Objective, knots: Sequence[Params], where: Floats, num_points: int, depth: int | None) -> _Frame:
    measured = profile(objective, paths.Path.through(knots), num_points)
    t = measured.t.numpy() * (len(knots) - 1)
    i = np.minimum(t.astype(int), len(knots) - 2)
    part = (t - i)[:, None]
    points = (1 - part) * where[i] + part * where[i + 1]
    beads = f"{len(knots) - 2} bead{'' if len(knots) == 3 else 's'}"
    at = np.arange(len(t)) % (num_points - 1) == 0
    loss = measured.loss.numpy()
    name = beads if depth is None else "the straight line" if depth == 0 else f"depth {depth}, {beads}"
    return _Frame(points, loss, at, f"{name}: largest loss {loss.max():.3g}")


def draw_string(found: Strings, frame: int = -1) -> Figure:
    """One string in three dimensions, its shadows on the walls, and the scale of the loss."""
    from matplotlib.figure import Figure

    with settings():
        figure = Figure(figsize=(7.4, 5.6), layout="constrained")
        axes = figure.add_subplot(projection="3d")
        _draw(axes, found, found.frames[frame])
        axes.set_title(found.frames[frame].title, y=0.92)
        _colour_scale(figure, [axes], found)
    return figure


def draw_frames(found: Strings, count: int = 4) -> Figure:
    """`count` strings from the first to the last on one page, as Figure 7 of Freeman and Bruna 2017."""
    from matplotlib.figure import Figure

    if count < 2:
        raise InputError("count", expected="at least 2 frames", got=count)
    chosen = sorted({round(i * (len(found.frames) - 1) / (count - 1)) for i in range(count)})
    columns = 2 if len(chosen) > 1 else 1
    rows = -(-len(chosen) // columns)
    with settings():
        figure = Figure(figsize=(5.0 * columns + 1.2, 4.3 * rows), layout="constrained")
        every = []
        for place, i in enumerate(chosen, start=1):
            axes = figure.add_subplot(rows, columns, place, projection="3d")
            _draw(axes, found, found.frames[i])
            axes.set_title(found.frames[i].title, y=0.92)
            every.append(axes)
        _colour_scale(figure, every, found)
    return figure


def _draw(axes: Any, found: Strings, frame: _Frame) -> None:
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    axes.set_facecolor("none")
    scale = _scale(found)
    middle, half = found.box
    box = [(float(m - h), float(m + h)) for m, h in zip(middle, half, strict=True)]
    for k, side in ((0, box[0][0]), (1, box[1][1]), (2, box[2][0])):
        wall = frame.points.copy()
        wall[:, k] = side
        axes.plot(*wall.T, color=_SHADOW, linewidth=0.9)
    pieces = np.stack([frame.points[:-1], frame.points[1:]], 1)
    highest = np.maximum(frame.loss[:-1], frame.loss[1:])
    axes.add_collection3d(Line3DCollection(list(pieces), colors=scale.to_rgba(highest), linewidths=2.6))
    beads = frame.points[frame.knots]
    axes.scatter(*beads[1:-1].T, s=13, color="white", edgecolors="#1f2328", linewidths=0.8, depthshade=False)
    axes.scatter(*beads[[0, -1]].T, s=46, color="#1f2328", depthshade=False)
    for name, point in zip("AB", beads[[0, -1]], strict=True):
        axes.text(point[0], point[1], point[2] + 0.08 * half.max(), name, weight="bold", size=12, ha="center")
    for letter, bounds, fraction in zip("xyz", box, found.variance, strict=True):
        getattr(axes, f"set_{letter}lim")(bounds)
        getattr(axes, f"set_{letter}label")(
            f"direction {'xyz'.index(letter) + 1} ({100 * fraction:.2g} %)", labelpad=-10
        )
        axis = getattr(axes, f"{letter}axis")
        axis.set_ticklabels([])
        axis.set_pane_color((0.97, 0.975, 0.98, 1.0))
        axis.line.set_color("#aab0b6")
        axis._axinfo["grid"].update(color="#e3e6e9", linewidth=0.7)
    axes.set_box_aspect(tuple(half), zoom=0.98)
    axes.view_init(elev=22, azim=-56)


def _scale(found: Strings) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    low, high = found.limits
    return ScalarMappable(LogNorm(low, high, clip=True), LinearSegmentedColormap.from_list("loss", list(COLOURS)))


def _colour_scale(figure: Figure, axes: list[Any], found: Strings) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    bar = figure.colorbar(_scale(found), ax=axes, shrink=0.6, pad=0.12, extend="min")
    bar.set_label("loss")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    if found.threshold is not None:
        bar.ax.axhline(found.threshold, color="white", linewidth=2.4)
        bar.ax.axhline(found.threshold, color="#1f2328", linewidth=1.2)
        words = {"xytext": (-4, 0), "textcoords": "offset points", "ha": "right", "va": "center", "size": 8}
        bar.ax.annotate("threshold", (0, found.threshold), xycoords=("axes fraction", "data"), rotation=0, **words)
