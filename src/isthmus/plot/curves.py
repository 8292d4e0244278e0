"""The loss, or the error rate, along paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.errors import InputError
from isthmus.plot.figures import colours, legend_text, new_axes, settings
from isthmus.plot.runs import Floats, StoredProfile, StoredRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_QUANTITIES = {"loss": "loss", "error": "error rate"}
DASHED, LONG_DASHED, DOTTED = (0, (3, 2)), (0, (7, 2)), (0, (1, 1.5))
_LOG_RATIO = 50.0
"""Values that differ by more than this factor are drawn on a logarithmic axis."""


def loss_along_paths(runs: Sequence[StoredRun], *, quantity: str = "loss", log: bool | None = None) -> Figure:
    """All paths on one pair of axes: the training set solid, the test set dashed, each training maximum marked.

    The horizontal axis is t from A to B; segment i of n covers [i/n, (i+1)/n], so equal steps in t are not equal
    lengths. The straight line, the baseline, is grey: dashed, and dotted on the test set. `log=None` takes a
    logarithmic axis for losses that differ by more than a factor of 50; values of exactly 0 then stand on its
    bottom line. Errors: an unknown quantity, no run with a profile, ``log=True`` with negative values.
    """
    if quantity not in _QUANTITIES:
        raise InputError("quantity", expected=" or ".join(map(repr, _QUANTITIES)), got=repr(quantity))
    drawn = [(r, r.profile, c) for r, c in zip(runs, colours(runs), strict=True) if r.profile is not None]
    if not drawn:
        raise InputError("runs", expected="at least one run with a profile.json", got=f"{len(runs)} without")
    values = all_values(runs, quantity)
    use_log = wants_log(values, quantity) if log is None else log
    if use_log and (values < 0).any():
        raise InputError("log", expected="False, as some values are negative", got=True)
    with settings():
        figure, axes = new_axes(8.6, 4.4)
        handles, labels = [], []
        for run, profile, colour in drawn:
            handles.append(_draw(axes, profile, quantity, colour, run.is_baseline))
            _, top = highest(profile.t, profile.train[quantity])
            labels.append(f"{legend_text(run.label)}: max {top:.4g}")
        _finish(axes, values, quantity, use_log)
        _legend(figure, handles, labels, any(profile.test is not None for _, profile, _ in drawn))
    return figure


def all_values(runs: Sequence[StoredRun], quantity: str) -> Floats:
    """Every finite value of `quantity` on every run's training and test set."""
    curves = [c[quantity] for run in runs if run.profile is not None for _, c in run.profile.sets()]
    values = np.concatenate(curves) if curves else np.zeros(0)
    return values[np.isfinite(values)]


def wants_log(values: Floats, quantity: str) -> bool:
    """Whether a logarithmic axis serves: losses only, none negative, and a wide range above 0.

    >>> wants_log(np.array([0.0, 0.01, 1.0]), "loss"), wants_log(np.array([0.5, 1.0]), "loss")
    (True, False)
    """
    positive = values[values > 0]
    if quantity != "loss" or (values < 0).any() or len(positive) == 0:
        return False
    return bool(positive.max() > _LOG_RATIO * positive.min())


def log_floor(values: Floats) -> float:
    """Where a logarithmic axis ends below: zeros are drawn there, under every positive value.

    >>> log_floor(np.array([0.0, 0.02, 3.0]))
    0.001
    """
    positive = values[values > 0]
    low = float(positive.min()) if len(positive) else 1.0
    return float(10.0 ** (np.floor(np.log10(low)) - (1 if (values == 0).any() else 0)))


def highest(t: Floats, q: Floats) -> tuple[float, float]:
    """The place and the value of the largest finite sample; NaN when there is none."""
    if not np.isfinite(q).any():
        return float("nan"), float("nan")
    i = int(np.nanargmax(np.where(np.isfinite(q), q, -np.inf)))
    return float(t[i]), float(q[i])


def _draw(axes: Axes, profile: StoredProfile, quantity: str, colour: str, baseline: bool) -> Any:
    """The curves of one run and the mark at its training maximum; returns the handle for the legend."""
    t = profile.t
    train, test = (LONG_DASHED, DOTTED) if baseline else ("-", DASHED)
    styles = {"train": {"linestyle": train, "linewidth": 1.9}, "test": {"linestyle": test, "linewidth": 1.2}}
    lines = []
    for part, curves in profile.sets():
        q = np.where(np.isfinite(curves[quantity]), curves[quantity], np.nan)
        lines += axes.plot(t, q, color=colour, zorder=2 if baseline else 3, clip_on=False, **styles[part])
    where, top = highest(t, profile.train[quantity])
    if np.isfinite(top):
        axes.plot([where], [top], "o", ms=6, mfc="white", mec=colour, mew=1.8, zorder=5, clip_on=False)
    return lines[0]


def _finish(axes: Axes, values: Floats, quantity: str, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["A", "0.25", "0.5", "0.75", "B"])
    axes.set_xlabel("t, from network A to network B")
    axes.set_ylabel(_QUANTITIES[quantity])
    if not log:
        low, high = (min(0.0, float(values.min())), float(values.max())) if len(values) else (0.0, 1.0)
        axes.set_ylim(low, high + 0.06 * (high - low) if high > low else low + 1)
        return
    floor = log_floor(values)
    positive = values[values > 0]
    top = float(positive.max()) if len(positive) else 1.0
    zeros = bool((values == 0).any())
    if zeros:
        # linear below the smallest decade that occurs: 0 has a place of its own
        axes.set_yscale("symlog", linthresh=floor * 10, linscale=0.5)
        axes.set_ylim(0, top * 1.6)
    else:
        axes.set_yscale("log")
        axes.set_ylim(max(floor, float(positive.min()) / 1.6), top * 1.6)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, handles: list[Any], labels: list[str], tested: bool) -> None:
    """Beside the axes: the runs, then what the marks mean."""
    from matplotlib.lines import Line2D

    ink = "#3b4046"
    keys = [Line2D([], [], linestyle="none", marker="o", mfc="white", mec=ink, mew=1.5)]
    words = ["largest training value"]
    if tested:
        keys += [Line2D([], [], lw=1.9, color=ink), Line2D([], [], lw=1.2, linestyle=DASHED, color=ink)]
        words += ["training set", "test set"]
    figure.legend([*handles, *keys], [*labels, *words], loc="outside right upper", fontsize=9)
