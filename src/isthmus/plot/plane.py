"""Paths seen from the two directions in weight space along which they spread most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from isthmus import paths
from isthmus.errors import InputError
from isthmus.params import Params, moves, widened
from isthmus.paths import Curve
from isthmus.plot.figures import MARKERS, colours, legend_text, new_axes, settings
from isthmus.plot.runs import Floats, StoredRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SAMPLES = 24
"""Points drawn on each curved segment, besides its start."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Paths on their first two principal directions.

    `points[i]` is [number of points, 2]: path i in the units of weight space, its knots and the samples of its curved
    segments; `knots[i]` marks the knots among them. `variance` holds the fraction of the squared spread of all
    points about their mean that each of the two directions carries.
    """

    points: tuple[Floats, ...]
    knots: tuple[np.ndarray[Any, np.dtype[np.bool_]], ...]
    variance: tuple[float, float]


def project(several: Sequence[paths.Path]) -> Projection:
    """The principal components of the knots, and samples of curved segments, of all the paths together.

    Computed from inner products: a Bezier curve's points are combinations of its control points, tensors that
    several points share are multiplied once, and one tensor at a time is looked at. Cost: (distinct points)^2 x
    parameters multiplications, memory (distinct values of the largest tensor) in float64.
    Errors: no path; paths of networks with different parameters.

    >>> flat = paths.Path.through([{"w": torch.tensor([float(v), 0.0])} for v in (0, 1, 3)])
    >>> p = project([flat])
    >>> p.variance, (p.points[0][-1] - p.points[0][0]).round(6).tolist()
    ((1.0, 0.0), [3.0, 0.0])
    """
    if not several:
        raise InputError("paths", expected="at least one path", got="none")
    shapes = _shapes(several[0])
    for path in several[1:]:
        if _shapes(path) != shapes:
            raise InputError("paths", expected="networks with the same parameters", got="different names or shapes")
    basis: list[Params] = []
    place: dict[int, int] = {}
    rows: list[dict[int, float]] = []
    knots = []
    for path in several:
        rows += _rows(path, basis, place)
        knots.append(_knots(path))
    weights = np.zeros((len(rows), len(basis)))
    for i, row in enumerate(rows):
        for j, w in row.items():
            weights[i, j] = w
    gram = weights @ _gram(basis) @ weights.T
    coordinates, variance = _principal(gram)
    ends = np.cumsum([len(k) for k in knots])
    return Projection(tuple(np.split(coordinates, ends[:-1])), tuple(knots), variance)


def _shapes(path: paths.Path) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in path.start.items()}


def _samples(segment: paths.Segment) -> int:
    return 1 if isinstance(segment, Curve) and segment.is_straight else _SAMPLES


def _knots(path: paths.Path) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.concatenate([*(np.arange(_samples(s)) == 0 for s in path.segments), np.array([True])])


def _rows(path: paths.Path, basis: list[Params], place: dict[int, int]) -> list[dict[int, float]]:
    """Each point of the path as a combination of dictionaries in `basis`, which grows as needed."""

    def index(point: Params) -> int:
        key = id(point)
        if key not in place:
            place[key] = len(basis)
            basis.append(point)
        return place[key]

    rows = []
    for segment in path.segments:
        count = _samples(segment)
        for t in np.arange(count) / count:
            if isinstance(segment, Curve):
                n = len(segment.control) - 1
                row: dict[int, float] = {}
                for i, control in enumerate(segment.control):
                    j = index(control)
                    row[j] = row.get(j, 0.0) + comb(n, i) * float(t**i * (1 - t) ** (n - i))
                rows.append(row)
            else:
                rows.append({index(segment.at(float(t))): 1.0})
    rows.append({index(path.end): 1.0})
    return rows


def _gram(basis: Sequence[Params]) -> Floats:
    """Inner products of the differences from the first point, summed over the tensors."""
    gram = np.zeros((len(basis), len(basis)))
    for name, first in basis[0].items():
        if not moves(first):
            continue
        place: dict[int, int] = {}
        distinct: list[Tensor] = []
        for point in basis:
            if id(point[name]) not in place:
                place[id(point[name])] = len(distinct)
                distinct.append(point[name])
        if len(distinct) == 1:
            continue
        # relative to the first point: the common part would cost the small differences their digits
        matrix = torch.stack([widened(v.detach().cpu()).flatten() for v in distinct])
        matrix -= matrix[0].clone()
        products = (matrix @ matrix.T).numpy()
        where = np.array([place[id(point[name])] for point in basis])
        gram += products[np.ix_(where, where)]
    return gram


def _principal(gram: Floats) -> tuple[Floats, tuple[float, float]]:
    """Coordinates [n, 2] of n points with these inner products, and the fractions of the total variance."""
    centred = gram - gram.mean(0)
    centred = centred - centred.mean(1, keepdims=True)
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    order = np.argsort(values)[::-1][:2]
    values = np.maximum(values[order], 0)
    total = float(np.trace(centred))
    vectors = vectors[:, order]
    if total <= 0 or len(values) < 2:
        return np.zeros((len(gram), 2)), (1.0, 0.0)
    values = np.where(values > 1e-14 * total, values, 0)
    coordinates = vectors * np.sqrt(values)
    # a principal direction has no sign: the first path runs to the right, and the largest height is upward
    if coordinates[-1, 0] < coordinates[0, 0]:
        coordinates[:, 0] *= -1
    column = coordinates[:, 1]
    if column.size and column[np.argmax(np.abs(column).round(12))] < 0:
        coordinates[:, 1] *= -1
    fractions = np.clip(values / total, 0, 1)
    return coordinates, (float(fractions[0]), float(fractions[1]))


def plane(runs: Sequence[StoredRun]) -> Figure:
    """The paths of all runs on their first two principal directions, with the ends A and B marked.

    Runs without a stored path are left out, and so are networks whose parameters have other names or shapes than
    those of the first. Errors: no run has a path.
    """
    return draw_plane(runs, *project_runs(runs))


def draw_plane(runs: Sequence[StoredRun], drawn: Sequence[StoredRun], projection: Projection) -> Figure:
    """The figure of `plane` for a projection that is known: `drawn` are the runs in it, with the colours of `runs`."""
    palette = dict(zip((r.label for r in runs), colours(runs), strict=True))
    with settings():
        figure, axes = new_axes(8.6, 5.2)
        for i, (run, points, knots) in enumerate(zip(drawn, projection.points, projection.knots, strict=True)):
            _draw_path(axes, run, points, knots, palette[run.label], i)
        draw_ends(axes, projection)
        name_directions(axes, projection)
        axes.margins(0.09)
        handles = [line for line in axes.get_lines() if line.get_gid() == "path"]
        figure.legend(handles, [legend_text(r.label) for r in drawn], loc="outside right upper", fontsize=9)
    return figure


def draw_ends(axes: Axes, projection: Projection) -> None:
    """The ends of all paths, with their names."""
    above = {"xytext": (0, 11), "textcoords": "offset points", "ha": "center", "weight": "bold", "size": 12}
    for name, place in named_ends(projection).items():
        axes.annotate(name, place, zorder=7, **above)
        axes.plot(*place, "o", ms=9, color="#1f2328", zorder=6)


def name_directions(axes: Axes, projection: Projection) -> None:
    """The labels of both axes."""
    first, second = (f"{100 * v:.3g} % of the variance" for v in projection.variance)
    axes.set_xlabel(f"first principal direction ({first})")
    axes.set_ylabel(f"second principal direction ({second})")


def project_runs(runs: Sequence[StoredRun]) -> tuple[list[StoredRun], Projection]:
    """The runs whose paths can be drawn together, and their projection."""
    drawn, several = [], []
    for run in runs:
        path = run.path()
        if path is not None and (not several or _shapes(path) == _shapes(several[0])):
            drawn.append(run)
            several.append(path)
    if not drawn:
        raise InputError("runs", expected="at least one run with a path.safetensors", got=f"{len(runs)} without")
    return drawn, project(several)


def named_ends(projection: Projection) -> dict[str, tuple[float, float]]:
    """Where A and B are; B', B'' for paths that end elsewhere (at a permutation of B), A' likewise."""
    spread = max(float(np.abs(p).max()) for p in projection.points) or 1.0
    out: dict[str, tuple[float, float]] = {}
    for name, row in (("A", 0), ("B", -1)):
        seen: list[Floats] = []
        for points in projection.points:
            if all(np.abs(points[row] - other).max() > 1e-6 * spread for other in seen):
                out[name + "'" * len(seen)] = (float(points[row][0]), float(points[row][1]))
                seen.append(points[row])
    return out


def _draw_path(axes: Axes, run: StoredRun, points: Floats, knots: Any, colour: str, turn: int) -> None:
    (line,) = axes.plot(
        points[:, 0],
        points[:, 1],
        color=colour,
        linewidth=1.8,
        linestyle=(0, (6, 3)) if run.is_baseline else "-",
        marker="" if run.is_baseline else MARKERS[turn % len(MARKERS)],
        markevery=np.flatnonzero(knots).tolist(),
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=3,
    )
    line.set_gid("path")
