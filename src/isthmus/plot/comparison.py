"""A comparison of methods: what each path rises by, over what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isthmus.comparison import Comparison, ComparisonRow
from isthmus.plot.figures import GREY, PALETTE
from isthmus.plot.labels import FreeLabels, LabelSpot
from isthmus.plot.runs import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_comparison(comparison: Comparison, ax: Axes) -> None:
    """The excess over the passes; what no other method beats in both is joined by a line."""
    finite = [row for row in comparison.rows if np.isfinite(row.excess) and row.passes is not None]
    front, others = _split(finite, comparison)
    ax.plot(*_points(front).T, color=PALETTE[0], lw=1.6, zorder=2)
    _dots(ax, others, GREY)
    _dots(ax, front, PALETTE[0])
    _scales(ax, max((row.excess for row in finite), default=1.0))
    labels = FreeLabels(ax)
    labels.keep_clear(_points(finite), 7.0, joined=False)
    labels.keep_clear(_points(front))
    for rows, colour in ((front, "black"), (others, GREY)):
        for row, (x, y) in zip(rows, _points(rows), strict=True):
            labels.put(row.method, _around((float(x), float(y))), color=colour)
    lost = [row.method for row in comparison.rows if row not in finite]
    if lost:
        ax.set_title(f"not finite, or passes not known: {', '.join(lost)}", fontsize=9)


def _dots(ax: Axes, rows: list[ComparisonRow], colour: str) -> None:
    """Filled where the path has a proved bound."""
    for row, where in zip(rows, _points(rows), strict=True):
        inside = "white" if row.bound is None else colour
        ax.plot(*where, "o", ms=6, color=colour, mfc=inside, clip_on=False, zorder=3)


def _split(rows: list[ComparisonRow], comparison: Comparison) -> tuple[list[ComparisonRow], list[ComparisonRow]]:
    """The front in its order, and the other rows."""
    front = [row for row in comparison.front if row in rows]
    return front, [row for row in rows if row not in front]


def _points(rows: list[ComparisonRow]) -> Floats:
    """(passes, excess) of each, [rows, 2]."""
    return np.array([(max(row.price, 1.0), row.excess) for row in rows], float).reshape(-1, 2)


def _scales(ax: Axes, top: float) -> None:
    from matplotlib.ticker import FuncFormatter

    ax.set_xscale("log")
    linear = 1e-3 * top if top > 0 else 1.0
    ax.set_yscale("symlog", linthresh=linear)
    ax.set_xlabel("passes over the data")
    ax.set_ylabel("excess over the larger end (filled: proved)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.margins(x=0.2)
    # an excess is 0 or more, but for rounding: no half of the axis for what does not occur
    lowest, highest = ax.dataLim.intervaly
    ax.set_ylim(0.0 if lowest >= 0 else ax.get_ylim()[0], 1.6 * max(highest, linear))


def _around(point: tuple[float, float]) -> list[LabelSpot]:
    """Beside the point, and further and further from it."""
    beside = [LabelSpot(point, (dx, dy), "left" if dx > 0 else "right", "center") for dy in (4, -4) for dx in (6, -6)]
    grid = [(dx, dy) for dx in (6, -6, 20, -20, 40, -40) for dy in range(-90, 91, 6)]
    further = sorted(grid, key=lambda offset: (abs(offset[0]) + abs(offset[1]), offset))
    return beside + [LabelSpot(point, (dx, dy), "left" if dx > 0 else "right", "center") for dx, dy in further]
