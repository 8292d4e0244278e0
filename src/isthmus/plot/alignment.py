"""An alignment: the loss on the lines it straightens, the units it moved, and how its search went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.errors import FileError
from isthmus.plot.curves import DASHED
from isthmus.plot.figures import GREY, PALETTE, grid_of_axes, ground, legend_text, settings
from isthmus.plot.runs import Floats
from isthmus.plot.stability import loss_axis
from isthmus.storage.files import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 24
"""Layers that are named under the bars."""


@dataclass(frozen=True, eq=False)
class LossCurve:
    """The loss along one line, on one data set."""

    t: Floats
    loss: Floats


@dataclass(frozen=True, eq=False)
class StoredAlignment:
    """What alignment.json holds, to be drawn. `moved`: for each alignment the share of each group of units that moved;
    `traces`: the similarity after each sweep, by the start of the search; `before`, `after`: curves by data set, empty
    where no lines were measured; `document`: all of it.
    """

    names: Sequence[str]
    moved: Sequence[Mapping[str, float]]
    traces: Sequence[tuple[str, Floats]]
    before: Mapping[str, Sequence[LossCurve]]
    after: Mapping[str, Sequence[LossCurve]]
    document: Mapping[str, Any]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> StoredAlignment:
        """From what ``AlignedLines.to_dict()`` gives. Errors: those of Python for anything else."""
        several = document["alignments"]
        names = [str(v) for v in document.get("names") or range(len(several) + 1)]
        _check(document, len(names))
        moved = [{str(k): float(v) for k, v in one["moved"].items()} for one in several]
        before, after = (_curves(document.get(k)) for k in ("before", "after"))
        return cls(names, moved, _traces(several, names), before, after, document)

    @classmethod
    def read(cls, file: Path) -> StoredAlignment:
        """From a file. Errors: ``FileError``."""
        try:
            return cls.of(read_json(file))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(file, "does not hold an alignment of this version", "align again") from error


def _check(document: Mapping[str, Any], count: int) -> None:
    """That it has what pages tell of so many networks. Errors: those of Python."""
    if document["format"] != 1 or len(document["alignments"]) != count - 1:
        raise ValueError("expected one alignment for each network but the first")
    first = document["alignments"][0]["units"]
    for one in document["alignments"]:
        if {*one["units"], *one["moved"]} != {*first} or {len(one["distance"]), len(one["similarity"])} != {2}:
            raise ValueError("expected alignments of one network")
        float(one["function_error"]), [str(v) for v in one["notes"]], [(a, b) for a, b in one["dead"].values()]
    _check_lines([v for v in (document.get("before"), document.get("after")) if v is not None])


def _check_lines(both: Sequence[Mapping[str, Any]]) -> None:
    """None, or the same lines before and after."""
    if len({(len(v["lines"]), v["lines"][0]["test"] is None) for v in both}) != len(both) / 2:
        raise ValueError("expected the same lines before and after")
    for lines in both:
        dict(lines["average"]), lines["max"]
        for row in lines["lines"]:
            for part in filter(None, (row, row["test"])):
                part["barriers"]["loss"]["max"], part["barriers"]["loss"]["excess"], row["a"], row["b"]


def _traces(several: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[str, Floats]]:
    """Those of all searches, by where each began; a search for all networks at once is told once."""
    found = [(name, run) for name, one in zip(names[1:], several, strict=True) for run in one["runs"]]
    if all(run["start"].startswith("together") for _, run in found):
        found = found[:1]
    return [(_label(run["start"], name, len(several)), np.array(run["trace"], float)) for name, run in found]


def _label(start: str, name: str, count: int) -> str:
    return start if count == 1 or start.startswith("together") else f"{start}, {name}"


def _curves(lines: Mapping[str, Any] | None) -> dict[str, list[LossCurve]]:
    """By data set; None, which stands for NaN in a file, is a gap."""
    if lines is None:
        return {}
    found: dict[str, list[LossCurve]] = {}
    for row in lines["lines"]:
        for part, values in (("training set", row), ("test set", row["test"])):
            if values is not None:
                curve = LossCurve(np.array(row["t"], float), np.array(values["loss"], float))
                found.setdefault(part, []).append(curve)
    return found


def alignment_figure(found: StoredAlignment) -> Figure:
    """The lines, where they were measured, the units, and the search, side by side."""
    with settings():
        panels = 3 if found.before else 2
        figure, axes = grid_of_axes(1, panels, 5.0 * panels, 3.9)
        for one in axes.flat:
            ground(one)
        draw_alignment(found, axes)
    return figure


def draw_alignment(found: StoredAlignment, axes: Any) -> None:
    """On one pair of axes the lines (the units, where none were measured); on several all of it."""
    drawings = [draw_lines] if found.before else []
    for ax, drawing in zip(np.ravel(axes), [*drawings, draw_moved, draw_traces], strict=False):
        drawing(found, ax)


def draw_lines(found: StoredAlignment, ax: Axes) -> None:
    """The loss on the straight lines between each two networks: dashed as they were given, solid aligned."""
    seen = []
    for colour, part in zip(PALETTE, found.before, strict=False):
        for when, curves, style in (("naive", found.before, DASHED), ("aligned", found.after, "-")):
            top = max(float(np.nanmax(c.loss, initial=-np.inf)) for c in curves[part])
            label = f"{when}, {part}: max {top:.3g}"
            for curve in curves[part]:
                ax.plot(curve.t, curve.loss, color=colour, lw=1.7, linestyle=style, label=label)
                seen.append(curve.loss)
                label = "_"
    ends = ("A", "B") if len(found.names) == 2 else ("one", "other")
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], [ends[0], "0.25", "0.5", "0.75", ends[1]])
    ax.set_xlabel("t, from network to network" if len(found.names) > 2 else "t, from network A to network B")
    ax.set_ylabel("loss")
    loss_axis(ax, np.concatenate(seen))
    _head_room(ax)
    ax.set_title("the straight line" if len(found.names) == 2 else f"{len(found.after['training set'])} straight lines")
    ax.legend(fontsize=8, loc="upper center", ncols=2, columnspacing=1.2, handlelength=1.8)


def _head_room(ax: Axes) -> None:
    """Above the curves, for the legend."""
    low, top = ax.get_ylim()
    ax.set_ylim(low, top * 1.25 if ax.get_yscale() == "linear" else top * 3)


def draw_moved(found: StoredAlignment, ax: Axes) -> None:
    """For each group of units, in the order of the network, the share that has another number; a bar per network."""
    groups, several = list(found.moved[0]), found.moved
    width = 0.8 / len(several)
    for k, (colour, name, moved) in enumerate(zip(_colours(several), found.names[1:], several, strict=True)):
        places = np.arange(len(groups)) + (k + 0.5) * width - 0.4
        heights = [100 * moved[group] for group in groups]
        ax.bar(places, heights, width=width, color=colour, label=legend_text(name, 20))
    shown = range(0, len(groups), max(1, -(-len(groups) // _MOST)))
    turned: dict[str, Any] = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    style = turned if max((len(g) for g in groups), default=0) > 4 else {}
    ax.set_xticks(list(shown), [legend_text(groups[i], 20) for i in shown], fontsize=8, **style)
    ax.set_xlabel("group of units")
    ax.set_ylim(0, 105)
    ax.set_ylabel("units with another number, %")
    ax.set_title("what moved, by layer")
    ax.grid(False, axis="x")
    if len(several) > 1:
        ax.legend(fontsize=8, loc="lower right", frameon=True, framealpha=1)


def draw_traces(found: StoredAlignment, ax: Axes) -> None:
    """The inner product of the weights after each sweep of each search; in words where none had sweeps."""
    from matplotlib.ticker import MaxNLocator

    ax.set_title("the search")
    if all(len(values) < 2 for _, values in found.traces):
        _say_the_end(found, ax)
        return
    for colour, (name, values) in zip(_colours(found.traces), found.traces, strict=True):
        ax.plot(range(len(values)), values, "o-", ms=3.5, lw=1.6, color=colour, label=legend_text(name))
    ax.set_xlabel("sweep over the layers")
    ax.set_ylabel("inner product of the weights")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=8, loc="lower right")


def _say_the_end(found: StoredAlignment, ax: Axes) -> None:
    """In words, where there is no course to draw."""
    ends = [f"{legend_text(name)}: inner product of the weights {values[-1]:.4g}" for name, values in found.traces]
    words = "\n".join(["there was no search by sweeps", *ends])
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", fontsize=9)
    ax.set(xticks=[], yticks=[])


def _colours(several: Sequence[object]) -> list[str]:
    return [PALETTE[i] if i < len(PALETTE) else GREY for i in range(len(several))]
