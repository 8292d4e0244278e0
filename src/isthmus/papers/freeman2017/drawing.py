"""The figures of Freeman & Bruna 2017, from plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from isthmus.plot.figures import GREY, PALETTE, ground, new_axes, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Points = Mapping[str, Sequence[float]]
"""Equally long columns."""


def geometry(ours: _Points, kept: _Points, paper: _Points, law: Mapping[float, float] | None, label: str) -> Figure:
    """Figures 2 to 6: normalised length on the left, beads with both ends on the right, against the level.

    `ours`: columns "L0", "length", "beads" and their standard deviations; `kept`, `paper`: the first three, of strings
    that keep a straight line below the limit, and of the paper; `law`: the fitted power law at the ends of its range.
    """
    from matplotlib.figure import Figure

    with settings():
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        for axes, name, words in zip(
            figure.subplots(1, 2), ("length", "beads"), ("normalised length", "beads, with both ends"), strict=True
        ):
            ground(axes)
            if len(paper["L0"]):
                axes.plot(paper["L0"], paper[name], "s--", color=GREY, ms=4, linewidth=1.1, label="paper")
            if not np.array_equal(kept[name], ours[name]):
                axes.plot(kept["L0"], kept[name], ":", color=PALETTE[2], linewidth=1.6, label="line kept where below")
            axes.errorbar(
                ours["L0"], ours[name], yerr=ours[f"{name} sd"], fmt="o-", color=PALETTE[0], ms=4, capsize=3,
                linewidth=1.6, label="here, mean and standard deviation",
            )  # fmt: skip
            if name == "beads" and law is not None:
                slope = np.diff(np.log(list(law.values()))) / np.diff(np.log(list(law)))
                words_of = f"here, power law, exponent {slope[0]:.2f}"
                axes.plot(list(law), list(law.values()), color=PALETTE[1], linewidth=1.1, label=words_of)
            axes.set(xscale="log", xlabel=label, ylabel=words)
            _ticks(axes, ours["L0"], ours["beads"] if name == "beads" else ())
        handles = {name: h for a in figure.axes for h, name in zip(*a.get_legend_handles_labels(), strict=True)}
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _ticks(axes: Axes, levels: Sequence[float], beads: Sequence[float]) -> None:
    """Plain numbers; on a logarithmic axis of about a decade at the levels themselves, of few beads at each number."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    if len(beads):
        few = max(beads) < 10
        axes.set_yscale("log")
        shown = FuncFormatter(lambda value, _: f"{value:g}" if few or f"{value:.0e}"[0] in "235" else "")
        axes.yaxis.set_minor_formatter(shown)
        axes.tick_params(axis="y", which="minor", labelsize=7)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain)
    if len(levels) and max(levels) < 12 * min(levels):
        chosen: list[float] = []
        for level in sorted(levels):
            if not chosen or level > chosen[-1] * (max(levels) / min(levels)) ** (1 / 14):
                chosen.append(level)
        axes.set_xticks(chosen)
        axes.tick_params(axis="x", labelsize=8)
    axes.xaxis.set_minor_formatter(NullFormatter())


def gaps(points: _Points) -> Figure:
    """Corollary 2.5: the gap of the bound and the excess on the path against the number of hidden units m."""
    with settings():
        figure, axes = new_axes(5.4, 3.4)
        for k, (name, words) in enumerate(
            (("largest gap", "bound, largest"), ("gap", "bound, mean"), ("largest excess", "measured, largest"))
        ):
            values = np.maximum(np.array(points[name], float), 0.0)
            style = {"marker": "osD"[k], "ms": (10, 4, 5)[k], "markerfacecolor": "none" if k == 0 else PALETTE[k]}
            axes.plot(points["m"], values, color=PALETTE[k], label=words, **style)
        axes.set(xscale="log", xlabel="hidden units m", ylabel="loss above the larger end")
        axes.set_xticks(points["m"], [f"{m:g}" for m in points["m"]])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.legend()
    return figure


def nothing(words: str) -> Figure:
    """An empty figure that says so."""
    with settings():
        figure, axes = new_axes(4.0, 1.6)
        axes.set_axis_off()
        axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes)
    return figure
