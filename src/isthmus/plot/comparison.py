"""A comparison of methods: what each path rises by, over what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isthmus.comparison import Comparison
from isthmus.plot.figures import GREY, PALETTE
from isthmus.plot.labels import Labels, Place

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_comparison(comparison: Comparison, ax: Axes) -> None:
    """The excess over the passes; what no other method beats in both is joined by a line."""
    front = [(max(row.passes, 1.0), row.excess) for row in comparison.front]
    ax.plot(*np.array(front).reshape(-1, 2).T, color=PALETTE[0], lw=1.6, zorder=2)
    finite = [row for row in comparison.rows if np.isfinite(row.excess)]
    places = [(max(row.passes, 1.0), row.excess) for row in finite]
    for row, where in zip(finite, places, strict=True):
        colour = PALETTE[0] if row in comparison.front else GREY
        inside = "white" if row.bound is None else colour
        ax.plot(*where, "o", ms=6, color=colour, mfc=inside, clip_on=False, zorder=3)
    _scales(ax, max((y for _, y in places), default=1.0))
    labels = Labels(ax)
    labels.keep_clear(places, 7.0, joined=False)
    labels.keep_clear(front)
    for row, where in zip(finite, places, strict=True):
        labels.put(row.method, _around(where), color="black" if row in comparison.front else GREY)
    lost = [row.method for row in comparison.rows if row not in finite]
    if lost:
        ax.set_title(f"not finite: {', '.join(lost)}", fontsize=9)


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


def _around(point: tuple[float, float]) -> list[Place]:
    """Beside the point, and further and further from it."""
    beside = [Place(point, (dx, dy), "left" if dx > 0 else "right", "center") for dy in (4, -4) for dx in (6, -6)]
    grid = [(dx, dy) for dx in (6, -6, 20, -20, 40, -40) for dy in range(-90, 91, 6)]
    further = sorted(grid, key=lambda offset: (abs(offset[0]) + abs(offset[1]), offset))
    return beside + [Place(point, (dx, dy), "left" if dx > 0 else "right", "center") for dx, dy in further]
