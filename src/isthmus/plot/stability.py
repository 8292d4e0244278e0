"""Figures of dropout stability and noise stability, from plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import ceil, inf
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.errors import InputError
from isthmus.plot.curves import DASHED, log_floor, wants_log
from isthmus.plot.figures import GREY, PALETTE, ground, settings
from isthmus.plot.runs import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Values = Mapping[str, Mapping[int, Sequence[float] | Floats]]
"""For each quantity of noise stability and each layer, one number per example."""

QUANTITIES = {
    "layer_cushion": "layer cushion",
    "interlayer_cushion": "interlayer cushion",
    "activation_contraction": "activation contraction",
    "interlayer_smoothness": "interlayer smoothness",
}
"""The four distributions of Figure 3 and appendix D.3 of Kuditipudi et al. 2019, in the order of its panels."""


def dropout_figure(stability: Mapping[str, Any]) -> Figure:
    """Left, the loss of theta_i for each entry layer i above the network's own; right, how it fell with the search.

    `stability`: what ``DropoutStability.to_dict()`` gives, or the same entries read from a file: "loss",
    "test_loss" and "layers", each with "entry", "loss", "test_loss", "trace" and "expected". Dashed on the right:
    the expected best of t random subsets. Errors: no layers.
    """
    layers = list(stability.get("layers", ()))
    if not layers:
        raise InputError("stability", expected="at least one entry layer", got="none")
    with settings():
        figure, (left, right) = _panels(2, 2, (10.6, 4.2))
        draw_entry_layers(left, stability)
        _search_curves(right, layers, _number(stability["loss"]))
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=9)
    return figure


def draw_entry_layers(axes: Axes, stability: Mapping[str, Any]) -> None:
    """The loss of theta_i for each entry layer i above the network's own: the left part of ``dropout_figure``."""
    layers = list(stability["layers"])
    entries = [int(row["entry"]) for row in layers]
    losses, tests = (np.array([_number(row.get(k)) for row in layers]) for k in ("loss", "test_loss"))
    own, own_test = _number(stability["loss"]), _number(stability.get("test_loss"))
    axes.plot(entries, losses, "o-", color=PALETTE[0], label="after dropping, training set", clip_on=False, zorder=3)
    axes.axhline(own, color=GREY, lw=1.6, label="whole network, training set")
    if np.isfinite(tests).any():
        axes.plot(entries, tests, "s", ls=DASHED, color=PALETTE[1], mfc="white", label="after dropping, test set")
    if np.isfinite(own_test):
        axes.axhline(own_test, color=GREY, lw=1.2, ls=DASHED, label="whole network, test set")
    axes.set_xticks(entries)
    axes.set_xlim(entries[0] - 0.4, entries[-1] + 0.4)
    axes.set_xlabel("entry layer (units are dropped from here on)")
    axes.set_ylabel("loss")
    loss_axis(axes, np.concatenate([losses, tests, [own, own_test]]))
    axes.legend(fontsize=9, loc="best")


def _search_curves(axes: Axes, layers: Sequence[Mapping[str, Any]], own: float) -> None:
    """The best loss after t evaluations, one colour per entry layer."""
    seen = [np.array([own])]
    for k, row in enumerate(layers):
        trace = [v if v is not None else inf for v in row["trace"]]
        curve = np.array(list(accumulate(trace, min)))
        curve = np.where(np.isfinite(curve), curve, np.nan)
        colour, t = PALETTE[k % len(PALETTE)], np.arange(1, len(curve) + 1)
        axes.step(t, curve, where="post", color=colour, lw=1.8, label=f"entry layer {row['entry']}")
        seen.append(curve)
        if row.get("expected"):
            expected = np.array([_number(v) for v in row["expected"]])
            axes.plot(t, np.where(np.isfinite(expected), expected, np.nan), ls=DASHED, color=colour, lw=1.2)
            seen.append(expected)
    axes.axhline(own, color=GREY, lw=1.6, label="whole network")
    if any(row.get("expected") for row in layers):
        axes.plot([], [], ls=DASHED, color="#3b4046", lw=1.2, label="expected best of t")
    axes.set_xlabel("t, evaluations spent")
    axes.set_ylabel("lowest loss found")
    longest = max((len(row["trace"]) for row in layers), default=1)
    axes.set_xlim(1, max(2, longest))
    loss_axis(axes, np.concatenate(seen))


def loss_axis(axes: Axes, values: Floats) -> None:
    """Logarithmic where the values differ widely; zeros, where they occur, stand on the bottom line.

    What is drawn already, here or on axes that share this one, counts too: limits that were set only grow.
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter

    values = np.concatenate([values, *_drawn(axes)])
    values = values[np.isfinite(values)]
    before = [] if axes.get_autoscaley_on() else list(axes.get_ylim())
    if not _is_logarithmic(axes, values):
        if axes.get_yscale() != "linear":
            axes.set_yscale("linear")
        low, top = 1.08 * float(values.min(initial=0.0)), float(values.max(initial=1e-12)) * 1.08
        axes.set_ylim(min([low, *before]), max([top, *before]))
        return
    before = [limit for limit in before if limit > 0]
    floor, top = log_floor(values), float(values.max()) * 1.6
    # what lies far below everything that matters, such as a loss of 1e-12, stands with the zeros
    floor = max(floor, float(10.0 ** np.ceil(np.log10(1e-6 * float(values.max())))))
    if values.min() < floor:
        axes.set_yscale("symlog", linthresh=floor * 10, linscale=0.5)
        axes.set_ylim(0, max([top, *before]))
    else:
        axes.set_yscale("log")
        axes.set_ylim(min([max(floor, float(values.min()) / 1.6), *before]), max([top, *before]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _drawn(axes: Axes) -> list[Floats]:
    """The heights of the lines on these axes and on those that share their vertical one."""
    several = axes.get_shared_y_axes().get_siblings(axes)
    lines = [(line, one) for one in several for line in one.get_lines()]
    # a vertical line across all of the axes has no heights in the data
    of_data = [line for line, one in lines if line.get_transform().contains_branch_seperately(one.transData)[1]]
    return [np.ma.filled(np.ma.asarray(line.get_ydata(orig=False), float), np.nan) for line in of_data]


def _is_logarithmic(axes: Axes, values: Floats) -> bool:
    """Where the values want it, and where the axis is so already and they allow it."""
    allowed = axes.get_yscale() != "linear" and values.min(initial=0.0) >= 0 and values.max(initial=0.0) > 0
    return wants_log(values, "loss") or allowed


def noise_histograms(values: _Values, quantity: str) -> Figure:
    """One histogram over the examples per layer, as in appendix D.3 of Kuditipudi et al. 2019.

    `values[quantity][i]`: the numbers of layer i; ``noise_values`` makes them of a ``NoiseStability``. Infinite
    numbers (an inequality 0 <= 0) are left out and counted in the panel's title. Errors: an unknown quantity.
    """
    if quantity not in QUANTITIES or not values.get(quantity):
        known = [q for q in QUANTITIES if values.get(q)]
        raise InputError("quantity", expected=f"one of {', '.join(known)}", got=repr(quantity))
    table = values[quantity]
    with settings():
        columns = min(4, len(table)) if len(table) != 5 else 5
        rows = ceil(len(table) / columns)
        figure, axes = _panels(len(table), columns, (2.7 * columns + 0.5, 2.3 * rows + 0.4))
        for k, (layer, numbers) in enumerate(table.items()):
            _histogram(axes[k], np.asarray(numbers, np.float64), f"layer {layer}", PALETTE[k % len(PALETTE)])
        figure.supxlabel(QUANTITIES[quantity], fontsize=11)
        figure.supylabel("examples", fontsize=11)
    return figure


def noise_values(noise: Any) -> dict[str, dict[int, Floats]]:
    """What the histograms show, of a ``NoiseStability``: for each layer i the worst over the layers j after it.

    The interlayer cushion is the minimum over j > i (j = i would only cut the histogram at 1), the interlayer
    smoothness the minimum over j > i of what half of the draws reach.
    """
    out: dict[str, dict[int, Floats]] = {
        "layer_cushion": {i: _array(v) for i, v in noise.layer_cushion.items()},
        "interlayer_cushion": _worst(noise.interlayer_cushion),
        "activation_contraction": {i: _array(v) for i, v in noise.activation_contraction.items()},
        "interlayer_smoothness": _worst(noise.interlayer_smoothness),
    }
    return {quantity: table for quantity, table in out.items() if table}


def _worst(table: Mapping[tuple[int, int], Any]) -> dict[int, Floats]:
    layers = sorted({i for i, j in table if j > i})
    return {i: np.min([_array(v) for (k, j), v in table.items() if k == i < j], axis=0) for i in layers}


def _array(v: Any) -> Floats:
    return v.detach().cpu().double().numpy()


def _number(v: float | None) -> float:
    return float("nan") if v is None else float(v)


def _histogram(axes: Axes, numbers: Floats, title: str, colour: str) -> None:
    finite = numbers[np.isfinite(numbers)]
    left_out = len(numbers) - len(finite)
    axes.set_title(title + (f" ({left_out} infinite)" if left_out else ""), fontsize=10)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=4)
    if len(finite) == 0:
        return
    low, high = float(finite.min()), float(finite.max())
    # numbers that are all equal still get a bar of some width
    spread = high - low if high - low > 1e-9 * max(abs(low), abs(high), 1e-300) else max(abs(low), 1.0) * 0.1
    middle = (low + high) / 2
    bounds = (low, high) if high - low >= spread else (middle - spread / 2, middle + spread / 2)
    axes.hist(finite, bins=40, range=bounds, color=colour)


def _panels(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = []
    for k in range(count):
        panel = figure.add_subplot(ceil(count / columns), columns, k + 1)
        ground(panel)
        axes.append(panel)
    return figure, axes
