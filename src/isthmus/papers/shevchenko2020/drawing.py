"""The figures of Shevchenko and Mondelli 2020, from plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.errors import InputError
from isthmus.plot.curves import DASHED
from isthmus.plot.figures import GREY, MARKERS, PALETTE, grid_of_axes, ground, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Mapping[str, Sequence[float]]
"""Equally long columns "x", "mean" and "deviation" (NaN where there is none)."""
Training = Mapping[str, Sequence[float]]
"""Equally long columns "t", "loss", "half loss", "error", "half error" and their standard deviations, "loss sd" etc."""
_Curve = Mapping[str, Sequence[float]]
"""Equally long columns "t", "loss" and "error"."""

_TAIL = 0.005
"""What histograms of weights leave out on each side."""
_WHOLE, _HALF = PALETTE[0], PALETTE[1]


def _grid(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    figure, axes = grid_of_axes(rows, columns, width, height, **options)
    for a in axes.flat:
        ground(a)
    return figure, axes


def _some(what: str, values: Mapping[Any, Any]) -> None:
    if not values:
        raise InputError(what, expected="at least one", got="none")


def during_training(panels: Mapping[str, Training]) -> Figure:
    """Figure 1: population risk above, classification error below, of whole networks and their halves, against t / T.

    One column per panel; bands are one standard deviation over the trials. Both on logarithmic axes, which show the end
    of training as the paper's zooms do.
    """
    _some("panels", panels)
    with settings():
        figure, axes = _grid(2, len(panels), 2.6 * len(panels) + 1.0, 5.0, sharex=True)
        for column, (title, found) in zip(axes.T, panels.items(), strict=True):
            for panel, name, factor in ((column[0], "loss", 1.0), (column[1], "error", 100.0)):
                _band(panel, found, name, factor, _WHOLE, "whole network", DASHED)
                _band(panel, found, f"half {name}", factor, _HALF, "first half of the units", "-")
                panel.set_yscale("log")
                _plain_ticks(panel.yaxis)
            column[0].set_title(_wrapped(title), fontsize=9)
            column[1].set_xlabel("t / T")
        axes[0][0].set_ylabel("population risk")
        axes[1][0].set_ylabel("classification error, %")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _wrapped(title: str) -> str:
    """A long title in lines of a narrow panel's width."""
    from textwrap import wrap

    return "\n".join(line for part in title.split("\n") for line in wrap(part, 34, break_on_hyphens=False))


def _band(axes: Axes, found: Training, name: str, factor: float, colour: str, label: str, style: Any) -> None:
    t, mean = np.array(found["t"], float), factor * np.array(found[name], float)
    sd = factor * np.nan_to_num(np.array(found[f"{name} sd"], float))
    axes.plot(t, mean, color=colour, linestyle=style, marker=".", label=label, linewidth=1.7)
    axes.fill_between(t, np.maximum(mean - sd, mean / 10), mean + sd, color=colour, alpha=0.2, linewidth=0)


_WIDE = 300.0
"""Logarithmic axes over more than this factor have numbers at powers of ten alone."""


def _plain_ticks(axis: Any) -> None:
    """Logarithmic axes with plain numbers, on short ones also between the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > _WIDE * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def falling(panels: Mapping[str, Mapping[str, Points]], x: str, y: str, predicted: bool = True) -> Figure:
    """Figure 2 and its kin: means with one standard deviation against N or M, on log-log axes; a panel per task.

    `predicted`: a grey dashed line c sqrt(log x / x), the rate of the bounds, through the middle of the first curve.
    """
    _some("panels", panels)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    with settings():
        figure, axes = _grid(rows, columns, 3.4 * columns + 0.4, 3.0 * rows + 0.5)
        for panel, (title, curves) in zip(axes.flat, panels.items(), strict=False):
            _log_log(panel, curves, labels, predicted)
            panel.set_xlabel(x)
            panel.set_title(_wrapped(title), fontsize=10)
            many = len(panel.get_xticks()) > 5
            panel.tick_params(axis="x", labelsize=8, labelrotation=45 if many else 0)
            panel.tick_params(axis="y", labelsize=8)
        for panel in list(axes.flat)[len(panels) :]:
            panel.set_visible(False)
        for row in axes:
            row[0].set_ylabel(y)
        found = {label: handle for a in axes.flat for handle, label in zip(*a.get_legend_handles_labels(), strict=True)}
        shown = {label: found[label] for label in (*labels, *found)}
        figure.legend([*shown.values()], [*shown], loc="outside lower center", ncols=len(shown), fontsize=9)
    return figure


def _log_log(panel: Axes, curves: Mapping[str, Points], labels: Sequence[str], predicted: bool = False) -> None:
    """Curves in the colours of their places among the `labels`, with a number at each of their x."""
    from matplotlib.ticker import NullLocator

    for label, points in curves.items():
        k = labels.index(label)
        _points(panel, points, PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)], label)
    if predicted and curves:
        _rate(panel, next(iter(curves.values())))
    panel.set(xscale="log", yscale="log")
    ticks = sorted({v for points in curves.values() for v in points["x"]})
    panel.set_xticks(ticks, [f"{v:g}" for v in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    _plain_ticks(panel.yaxis)


def _points(axes: Axes, points: Points, colour: str, marker: str, label: str) -> None:
    mean, sd = np.array(points["mean"], float), np.nan_to_num(np.array(points["deviation"], float))
    shown = mean > 0
    low = np.minimum(sd, 0.9 * mean)[shown]  # a logarithmic axis has no place below 0
    bars = {"yerr": np.array([low, sd[shown]]), "capsize": 3, "linewidth": 1.6, "markersize": 5}
    axes.errorbar(np.array(points["x"])[shown], mean[shown], color=colour, marker=marker, label=label, **bars)


def _rate(axes: Axes, points: Points) -> None:
    x, mean = np.array(points["x"], float), np.array(points["mean"], float)
    shape = np.sqrt(np.log(x) / x)
    shown = mean > 0
    if shown.any():
        c = np.exp(np.mean(np.log(mean[shown] / shape[shown])))
        axes.plot(x, c * shape, color=GREY, linestyle=DASHED, linewidth=1.4, label="c sqrt(log x / x)")


def path_and_weights(
    curve: _Curve, line: _Curve, allowed: float, weights: Sequence[Mapping[str, Any]], title: str = ""
) -> Figure:
    """Figure 3: the error along the path under what the paper allows, and the weights of both ends, layer by layer.

    `allowed`: the error of the ends plus what halving adds, drawn dashed. `weights`: for each layer "edges" and the
    counts "a" and "b". The straight line is grey.
    """
    _some("weights", {k: w for k, w in enumerate(weights)})
    with settings():
        figure, axes = _grid(1, 1 + len(weights), 3.7 + 2.5 * len(weights), 3.5)
        first = axes[0][0]
        first.plot(line["t"], 100 * np.array(line["error"]), color=GREY, linestyle=DASHED, label="straight line")
        first.plot(curve["t"], 100 * np.array(curve["error"]), color=PALETTE[0], linewidth=1.8, label="path")
        first.axhline(100 * allowed, color=PALETTE[8], linestyle=DASHED, label="ends + what halving adds")
        first.set(xlabel="t, from bimodal to unimodal", ylabel="classification error, %", xlim=(0, 1))
        top = max((v for v in (*curve["error"], *line["error"], allowed) if isfinite(v)), default=1.0)
        if top > 5 * max(allowed, 1e-9):
            first.set_yscale("log")
            _plain_ticks(first.yaxis)
        else:
            first.set_ylim(0, 115 * top)
        for l, (panel, layer) in enumerate(zip(axes[0][1:], weights, strict=True), start=1):
            edges = np.array(layer["edges"], float)
            for name, colour, label in (("a", PALETTE[3], "bimodal start"), ("b", PALETTE[2], "unimodal start")):
                counts = np.array(layer[name], float)
                density = counts / counts.sum() / np.diff(edges)
                panel.stairs(density, edges, fill=True, color=colour, alpha=0.5, label=label)
            panel.set_xlim(*_bulk(edges, np.array(layer["a"], float) + np.array(layer["b"], float)))
            panel.set_title(f"weights of layer {l}", fontsize=10)
            panel.set_yticks([])
            panel.locator_params(axis="x", nbins=4)
        found = [a.get_legend_handles_labels() for a in axes[0][:2]]
        handles, labels = ([*found[0][i], *found[1][i]] for i in (0, 1))
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
        if title:
            figure.suptitle(title, fontsize=11)
    return figure


def _bulk(edges: Any, counts: Any) -> tuple[float, float]:
    """The edges between which all but half a percent of the weights lie on each side."""
    below = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    return float(edges[below <= _TAIL][-1]), float(edges[below >= 1 - _TAIL][0])


def changes_of_error(curves: Mapping[str, Points]) -> Figure:
    """Figure 4: by how much the classification error grows, in percent, against N; one curve per task."""
    _some("curves", curves)
    with settings():
        figure, axes = _grid(1, 1, 7.4, 3.8)
        panel = axes[0][0]
        _log_log(panel, curves, list(curves))
        panel.set(xlabel="N", ylabel="growth of the error, %")
        figure.legend(loc="outside right upper", fontsize=8)
    return figure
