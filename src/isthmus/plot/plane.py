"""Drawings of paths on the two directions in weight space along which they spread most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.analysis.projection import Projection, project, shapes_of
from isthmus.errors import InputError
from isthmus.plot.figures import MARKERS, colours, legend_text, new_axes, settings
from isthmus.plot.runs import Floats, StoredRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
        if path is not None and (not several or shapes_of(path) == shapes_of(several[0])):
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
