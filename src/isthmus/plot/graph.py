"""Graphs of minima: the tree of saddles with the floors under it, and the matrix of saddles."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.cluster.hierarchy import dendrogram

from isthmus.graph import MinimaGraph
from isthmus.graph.tree import merges
from isthmus.plot.figures import GREY, PALETTE, grid_of_axes, ground, legend_text, settings
from isthmus.plot.labels import FreeLabels, LabelSpot
from isthmus.plot.runs import Floats
from isthmus.plot.stability import loss_axis
from isthmus.shown import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DECADES = 20.0
"""The axis is logarithmic where the largest value is so many times the smallest."""


def graph_figure(graph: MinimaGraph) -> Figure:
    """The tree and the matrix side by side."""
    with settings():
        figure, axes = grid_of_axes(1, 2, *graph_size(graph))
        draw_graph(graph, axes[0])
    return figure


def graph_size(graph: MinimaGraph) -> tuple[float, float]:
    """Inches for the tree and the matrix of so many networks."""
    n = min(len(graph), 24)
    return 7.5 + 0.75 * n, 3.6 + 0.3 * n


def draw_graph(graph: MinimaGraph, axes: Any) -> None:
    """The tree on one pair of axes, or on the first of two, and the matrix on the second."""
    several = np.ravel(axes)
    draw_tree(graph, several[0])
    if len(several) > 1:
        draw_saddles(graph, several[1])


def draw_tree(graph: MinimaGraph, ax: Axes) -> None:
    """Each network starts at its own loss and meets the others at the height of the lowest known way between them.

    A short line under each meeting is its floor: no way between the two sides is lower.
    """
    ground(ax)
    (links, roof), losses = _links(graph), np.array(graph.losses)
    order = _order(links)
    x = {node: float(place) for place, node in enumerate(order)}
    low, top = dict(enumerate(losses.tolist())), dict(enumerate(losses.tolist()))
    bars: list[tuple[float, float, float]] = []
    for row, (left, right, height, _) in enumerate(links):
        sides, new = (int(left), int(right)), len(graph) + row
        for side in sides:
            ax.plot([x[side], x[side]], [top[side], height], color=PALETTE[0], lw=1.8, solid_capstyle="round")
        span = [x[side] for side in sides]
        ax.plot(span, [height, height], color=PALETTE[0], lw=1.8, solid_capstyle="round")
        floor = max(low[side] for side in sides)
        said: dict[str, Any] = {"label": "floor: no way between the two sides is lower"} if row == 0 else {}
        ax.plot(span, [floor, floor], color=GREY, lw=1.2, linestyle=(0, (4, 3)), zorder=1, **said)
        bars.append((min(span), max(span), float(height)))
        x[new], low[new], top[new] = sum(span) / 2, min(low[side] for side in sides), float(height)
    ax.plot([x[i] for i in order], losses[order], "o", ms=6, color=PALETTE[1], label="a network, at its loss", zorder=4)
    _names(ax, graph, order)
    ax.set_ylabel("loss")
    loss_axis(ax, np.concatenate([losses, links[:, 2]]))
    ax.margins(x=0.08)
    _heights(ax, bars, roof)
    ax.set_title(f"how high one must climb ({plural(len(graph.edges), 'path')} tried)")
    ax.legend(fontsize=8, loc="best")
    ax.grid(False, axis="x")


def _links(graph: MinimaGraph) -> tuple[Floats, float]:
    """The rows of ``graph.dendrogram()``; where no known way is finite, parts meet at a height above all others."""
    saddles = graph.saddles
    known = saddles[np.isfinite(saddles)]
    if len(known) == saddles.size:
        return graph.dendrogram(), inf
    roof = min(float(known.max() + max(np.ptp(known), abs(known.max()))) or 1.0, np.finfo(float).max)
    return merges(np.where(np.isfinite(saddles), saddles, roof)), roof


def _order(links: Floats) -> list[int]:
    """The networks from left to right; scipy takes no heights below 0, which losses may have."""
    lifted = links - np.array([0, 0, min(0.0, float(links[:, 2].min())), 0])
    return [int(i) for i in dendrogram(lifted, no_plot=True)["leaves"]]


def _heights(ax: Axes, bars: list[tuple[float, float, float]], roof: float) -> None:
    """The height of each bar (left, right, height) in digits beside it, clear of all lines; at the roof "inf"."""
    labels = FreeLabels(ax)
    for line in ax.get_lines():
        points = np.asarray(line.get_xydata(), float)
        labels.keep_clear(points, 7.0 if line.get_linestyle() == "None" else 2.0, joined=line.get_linestyle() != "None")
    for left, right, height in bars:
        places = [
            LabelSpot((left + share * (right - left), height), (dx, sign * distance), ha, "center")
            for distance in range(8, 60, 6)
            for sign in (1, -1)
            for share, dx, ha in ((0.0, 3.0, "left"), (0.5, -3.0, "right"), (0.5, 3.0, "left"), (1.0, -3.0, "right"))
        ]
        outside = [
            LabelSpot((left, height), (-4.0, 0.0), "right", "center"),
            LabelSpot((right, height), (4.0, 0.0), "left", "center"),
        ]
        labels.put("inf" if height == roof else f"{height:.3g}", [*places[:8], *outside, *places[8:]])


def draw_saddles(graph: MinimaGraph, ax: Axes) -> None:
    """The largest loss on the lowest known way between each two networks, in the order of the tree.

    On the diagonal the losses of the networks; pairs whose own path was tried are framed.
    """
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.patches import Rectangle

    order = _order(_links(graph)[0])
    values = graph.saddles[np.ix_(order, order)]
    known = values[np.isfinite(values)]
    norm = LogNorm if _wide(known) else Normalize
    picture = ax.imshow(values, cmap="YlGnBu", norm=norm(float(known.min()), float(known.max()) or 1.0))
    ax.grid(False)
    size = float(np.clip(54 / len(graph), 4, 9))
    bright = picture.to_rgba(values)[..., :3] @ np.array([0.3, 0.59, 0.11])
    for (i, j), value in np.ndenumerate(values):
        ink = "black" if bright[i, j] > 0.5 or not np.isfinite(value) else "white"
        ax.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=size, color=ink)
        if tuple(sorted((order[i], order[j]))) in graph.weights:
            ax.add_patch(Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, lw=1.4, ec=PALETTE[1]))
    _names(ax, graph, order)
    ax.set_yticks(range(len(graph)), [legend_text(graph.minima[i].name, 20) for i in order], fontsize=8)
    ax.set_title("largest loss on the way (framed: path tried)")


def _names(ax: Axes, graph: MinimaGraph, order: list[int]) -> None:
    turned: dict[str, Any] = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if _longest(graph) > 4 else {}
    ax.set_xticks(range(len(graph)), [legend_text(graph.minima[i].name, 20) for i in order], fontsize=8, **turned)


def _longest(graph: MinimaGraph) -> int:
    return min(20, max(len(m.name) for m in graph.minima))


def _wide(values: Floats) -> bool:
    return bool(values.min() > 0 and values.max() > _DECADES * values.min())
