"""The figures of Kuditipudi et al. 2019, from plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.errors import InputError
from isthmus.plot.figures import GREY, MARKERS, PALETTE, grid_of_axes, ground, settings
from isthmus.plot.stability import loss_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Curve = Mapping[str, Sequence[float]]
"""Equally long columns "t", "loss" and "error"."""
Points = Mapping[str, Sequence[float]]
"""Equally long columns "x", "loss", "loss sd", "accuracy" and "accuracy sd", in percent."""
_BINS = 30


def subnetworks(left: Points, centre: Sequence[_Curve], right: Points, p: float) -> Figure:
    """Figure 2: loss above, accuracy below; subnetworks against p, straight segments, narrow networks.

    `left`, `right`: means and standard deviations over the trials, against p and against the number of filters;
    `centre`: one curve per trial, from a network to its subnetwork of dropout probability `p`.
    """
    with settings():
        figure, axes = grid_of_axes(2, 3, 9.0, 4.6, sharex="col")
        for column, points, colour in ((0, left, PALETTE[0]), (2, right, PALETTE[2])):
            for row, name in enumerate(("loss", "accuracy")):
                mean, sd = np.array(points[name], float), np.array(points[f"{name} sd"], float)
                marks = {"marker": MARKERS[column], "color": colour, "capsize": 3, "linewidth": 1.6}
                axes[row][column].errorbar(points["x"], mean, yerr=np.nan_to_num(sd), **marks)
        for curve in centre:
            axes[0][1].plot(curve["t"], curve["loss"], color=PALETTE[1], linewidth=1.3)
            axes[1][1].plot(curve["t"], 100 * (1 - np.array(curve["error"])), color=PALETTE[1], linewidth=1.3)
        for a in axes.flat:
            ground(a)
        for a in axes[0]:
            a.set_ylim(bottom=0)
        axes[0][0].set(ylabel="loss", title="best subnetwork")
        axes[0][1].set(title=f"straight to the subnetwork, p = {p:g}")
        axes[0][2].set(title="narrow networks")
        axes[1][0].set(ylabel="accuracy, %", xlabel="dropout probability p")
        axes[1][1].set(xlabel="t")
        axes[1][2].set(xlabel="filters in each layer")
    return figure


def distributions(tables: Mapping[str, Mapping[int, Mapping[str, Sequence[float]]]]) -> Figure:
    """D.3: histograms over the examples; a row per quantity, a column per layer. Figure 3, left: one layer in one row.

    ``tables[quantity][layer][network]`` are the numbers of the examples. Infinite ones are left out, and their share
    is written into the panel. Errors: nothing to draw.
    """
    layers = sorted({layer for table in tables.values() for layer in table})
    rows = [row for table in tables.values() for row in table.values()]
    if not layers:
        raise InputError("tables", expected="at least one quantity of one layer", got="none")
    colours = dict(zip(dict.fromkeys(chain.from_iterable(rows)), PALETTE, strict=False))
    with settings():
        figure, axes = (_row if len(layers) == 1 else _rows)(list(tables), layers)
        for panels, table in zip(axes, tables.values(), strict=True):
            for panel, layer in zip(panels, layers, strict=True):
                _histogram(panel, table.get(layer, {}), colours)
                panel.set_yticks([])
                panel.tick_params(labelsize=7)
        handles = [_patch(colour, name) for name, colour in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    return figure


def _row(quantities: Sequence[str], layers: Sequence[int]) -> tuple[Figure, Any]:
    """A panel per quantity, of one layer."""
    figure, axes = grid_of_axes(1, len(quantities), 2.4 * len(quantities) + 0.6, 2.6)
    for panel, quantity in zip(axes[0], quantities, strict=True):
        panel.set_title(f"{quantity}, layer {layers[0]}", fontsize=9)
    return figure, axes.T


def _rows(quantities: Sequence[str], layers: Sequence[int]) -> tuple[Figure, Any]:
    """A row per quantity, a column per layer."""
    height = 1.55 * len(quantities) + 0.6
    figure, axes = grid_of_axes(len(quantities), len(layers), 1.45 * len(layers) + 1, height)
    for panels, quantity in zip(axes, quantities, strict=True):
        panels[0].set_ylabel(quantity.replace(" ", "\n"), fontsize=9)
    for panel, layer in zip(axes[0], layers, strict=True):
        panel.set_title(f"layer {layer}", fontsize=9)
    return figure, axes


def _patch(colour: str, name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, alpha=0.55, label=name)


def _histogram(panel: Axes, networks: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> None:
    """The finite values of each network, on common bins that leave out the highest percent."""
    finite = {n: (v := np.array(values, float))[np.isfinite(v)] for n, values in networks.items()}
    together = np.concatenate([*finite.values(), np.zeros(0)])
    if not len(together):
        if networks:
            panel.text(0.5, 0.5, "infinite", ha="center", va="center", transform=panel.transAxes, fontsize=8)
        panel.spines[:].set_visible(bool(networks))
        panel.set_xticks([])
        return
    low, high = float(together.min()), float(np.quantile(together, 0.99))
    edges = np.linspace(low, high if high > low else low + max(abs(low), 1e-6), _BINS + 1)
    for name, values in finite.items():
        panel.hist(
            np.clip(values, edges[0], edges[-1]), bins=edges.tolist(), density=True, color=colours[name], alpha=0.55
        )
        missing = 1 - len(values) / len(networks[name])
        if missing:
            panel.text(0.97, 0.9, f"{100 * missing:.0f} % inf", ha="right", transform=panel.transAxes, fontsize=6)


def paths(curves: Mapping[str, _Curve], title: str = "") -> Figure:
    """Figures 3, right, and 5: loss and accuracy along paths by name; the straight line ("Linear") is grey.

    Losses that differ by more than a factor of 50 stand on a logarithmic axis, those below a millionth of the
    largest on its bottom line.
    """
    if not curves:
        raise InputError("curves", expected="at least one path", got="none")
    with settings():
        figure, axes = grid_of_axes(1, 2, 9.0, 3.4, sharex=True)
        turn = iter(PALETTE)
        for name, curve in curves.items():
            line = name == "Linear"
            style = {"color": GREY if line else next(turn), "linestyle": (0, (7, 2)) if line else "-", "linewidth": 1.7}
            axes[0][0].plot(curve["t"], curve["loss"], label=name, **style)
            axes[0][1].plot(curve["t"], 100 * (1 - np.array(curve["error"])), **style)
        for a in axes[0]:
            ground(a)
            a.set_xlim(0, 1)
            a.set_xticks([0, 0.25, 0.5, 0.75, 1], ["A", "0.25", "0.5", "0.75", "B"])
            a.set_xlabel("t, from network A to network B")
        axes[0][0].set_ylabel("loss")
        loss_axis(axes[0][0], np.concatenate([np.array(curve["loss"], float) for curve in curves.values()]))
        axes[0][1].set(ylabel="accuracy, %")
        figure.legend(loc="outside right upper", fontsize=9)
        if title:
            figure.suptitle(title, fontsize=11)
    return figure
