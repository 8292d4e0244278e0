"""The figures of Nguyen 2019, from plain arrays: sketches, paths inside sublevel sets, rounding against N, descents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.errors import InputError
from isthmus.plot.figures import GREY, MARKERS, PALETTE, grid_of_axes, ground, settings
from isthmus.plot.stability import loss_axis
from isthmus.shown import largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Mapping[str, Sequence[float]]
"""Equally long columns "t" and "loss"."""


def _some(values: Mapping[str, Any], what: str) -> None:
    if not values:
        raise InputError(what, expected="at least one", got="none")


def sketches(surveys: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Above, every function: a graph, or contours at its levels with runs of gradient descent in red; below, how many
    components its sublevel sets have at each level, and how many of them are bad valleys.

    `surveys`: by title, "levels", "components", "bad", "axes", "values" and "runs" as the page's survey has them.
    """
    _some(surveys, "surveys")
    columns = min(4, len(surveys))
    blocks = ceil(len(surveys) / columns)
    with settings():
        figure, panels = grid_of_axes(2 * blocks, columns, 2.6 * columns, 4.0 * blocks, height_ratios=(1.7, 1) * blocks)
        above_all, below_all = panels[::2].flatten(), panels[1::2].flatten()
        for a in (*above_all[len(surveys) :], *below_all[len(surveys) :]):
            a.set_visible(False)
        for (title, survey), above, below in zip(surveys.items(), above_all, below_all, strict=False):
            if len(survey["axes"]) == 1:
                above.plot(survey["axes"][0], survey["values"], color=PALETTE[0], linewidth=1.5)
                above.set_ylim(bottom=min(0.0, min(survey["values"])))
                ground(above)
            else:
                _contours(above, survey)
            above.set_title(title, fontsize=10)
            above.tick_params(labelsize=7)
            for name, colour, marker in (("components", PALETTE[0], "o"), ("bad", PALETTE[1], "x")):
                below.plot(survey["levels"], survey[name], marker, color=colour, markersize=5, label=name)
            below.set_ylim(-0.3, max(3, *survey["components"]) + 0.4)
            below.set_yticks(range(max(3, *survey["components"]) + 1))
            below.set_xlabel("level", fontsize=9)
            below.tick_params(labelsize=7)
            ground(below)
        for above, below in zip(panels[::2, 0], panels[1::2, 0], strict=True):
            above.set_ylabel("function")
            below.set_ylabel("components of\nthe sublevel set", fontsize=9)
        handles = panels[1][0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _contours(axes: Axes, survey: Mapping[str, Any]) -> None:
    x, y = (np.array(axis) for axis in survey["axes"])
    values = np.array(survey["values"]).T
    axes.contourf(x, y, np.sqrt(values - values.min()), levels=24, cmap="Blues_r")
    axes.contour(x, y, values, levels=survey["levels"], colors="#3b4046", linewidths=0.6)
    for run in survey["runs"]:
        axes.plot(run["x"], run["y"], color=PALETTE[8], linewidth=1.3)
        axes.plot(run["x"][:1], run["y"][:1], "o", color=PALETTE[8], markersize=3)
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(y[0], y[-1])


def paths(panels: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """One panel per title: the losses along paths by name, "straight line" in grey, the higher end's level dashed."""
    _some(panels, "panels")
    columns = min(2, len(panels))
    rows = ceil(len(panels) / columns)
    with settings():
        figure, axes = grid_of_axes(rows, columns, 4.5 * columns, 2.5 * rows + 0.4)
        for a, (title, curves) in zip(axes.flat, panels.items(), strict=False):
            turn = iter(PALETTE)
            for name, curve in curves.items():
                line = name == "straight line"
                style = {"color": GREY, "linestyle": (0, (7, 2))} if line else {"color": next(turn)}
                a.plot(curve["t"], curve["loss"], label=name, linewidth=1.6, **style)
            last = list(curves.values())[-1]["loss"]
            a.axhline(largest((last[0], last[-1])), color="#3b4046", linewidth=0.8, linestyle=":", label="higher end")
            a.set_title(title, fontsize=10)
            a.set_xlim(0, 1)
            ground(a)
            loss_axis(a, np.concatenate([np.array(curve["loss"], float) for curve in curves.values()]))
        for a in axes.flat[len(panels) :]:
            a.set_visible(False)
        for a in axes[:, 0]:
            a.set_ylabel("loss")
        for a in axes[-1]:
            a.set_xlabel("t")
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def against_samples(table: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> Figure:
    """One panel per quantity: its values against the number of samples N, all axes logarithmic.

    ``table[quantity][name]`` are pairs (N, value).
    """
    _some(table, "table")
    with settings():
        figure, axes = grid_of_axes(1, len(table), 2.7 * len(table), 3.0)
        for a, (quantity, several) in zip(axes[0], table.items(), strict=True):
            for k, (name, points) in enumerate(several.items()):
                x, y = np.array(points, float).T
                style = {"color": PALETTE[k], "markerfacecolor": "none", "markersize": 5}
                # side by side: at one N the theorems would cover each other
                a.loglog(x * 1.06 ** (k - 1), y, MARKERS[k], label=name, **style)
            a.set_title(quantity, fontsize=10)
            a.set_xlabel("samples N")
            ticks = sorted({n for points in several.values() for n, _ in points})
            shown = [n for n in ticks if n == ticks[0] or n in (100, 400, 2000)]
            a.set_xticks(shown, [str(n) for n in shown])
            a.minorticks_off()
            a.tick_params(labelsize=8)
            _plain_powers(a)
            ground(a)
        names = axes[0][0].get_legend_handles_labels()
        figure.legend(*names, loc="outside lower center", ncols=len(names[0]), fontsize=9)
    return figure


def _plain_powers(axes: Axes) -> None:
    """Powers of ten as 1e-12: mathematical text is off."""
    from matplotlib.ticker import FuncFormatter

    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def descents(panels: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """One panel per title: losses on the way down against t, on a logarithmic axis; below 1e-32 drawn there."""
    _some(panels, "panels")
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    with settings():
        figure, axes = grid_of_axes(1, len(panels), 3.2 * len(panels), 3.4, sharey=True)
        for a, (title, curves) in zip(axes[0], panels.items(), strict=True):
            for name, curve in curves.items():
                colour = PALETTE[names.index(name) % len(PALETTE)]
                a.semilogy(curve["t"], np.maximum(curve["loss"], 1e-32), color=colour, label=name, linewidth=1.5)
            a.set(xlim=(0, 1), xlabel="t", title=title)
            a.title.set_fontsize(9)
            ground(a)
        axes[0][0].set_ylabel("loss")
        _plain_powers(axes[0][0])
        lines = {}
        for a in axes[0]:
            lines |= dict(zip(*reversed(a.get_legend_handles_labels()), strict=True))
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, fontsize=8)
    return figure
