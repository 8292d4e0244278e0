"""A check: the loss on the lines, what each block adds, and which examples carry the rise; and matrices of barriers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.analysis.barrier import BarrierMatrix
from isthmus.analysis.contributions import Contributions
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
"""Blocks that are named under the bars."""


@dataclass(frozen=True, eq=False)
class StoredCheck:
    """What check.json holds: the whole `document`, and its lines of the pair that rises most, by data set: t, the loss,
    the error and the level as the networks are, and t and the loss aligned."""

    document: Mapping[str, Any]
    lines: Mapping[str, tuple[Floats, Floats, Floats, float]]
    aligned: Mapping[str, tuple[Floats, Floats]]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> StoredCheck:
        """From what ``Check.to_dict()`` gives. Errors: those of Python for anything else."""
        lines = {
            str(row["data"]): (
                _array(row["t"]),
                _array(row["loss"]),
                _array(row["error"]),
                float(_array([row["level"]])[0]),
            )
            for row in _of_worst(document, "lines")
        }
        aligned = {str(row["data"]): (_array(row["t"]), _array(row["loss"])) for row in _of_worst(document, "aligned")}
        _check(document)
        return cls(document, lines, aligned)

    @classmethod
    def read(cls, file: Path) -> StoredCheck:
        """From a file. Errors: ``FileError``."""
        try:
            return cls.of(read_json(file))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(file, "does not hold a check of this version", "check again") from error

    @property
    def pair(self) -> tuple[str, str]:
        """The names of the pair that rises most."""
        a, b = (str(self.document["names"][i]) for i in self.document["worst"])
        return a, b


def _of_worst(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The rows of the pair that rises most."""
    worst = tuple(document["worst"])
    return [row for row in document[key] if (row["a"], row["b"]) == worst]


def _check(document: Mapping[str, Any]) -> None:
    """That it has what pages tell. Errors: those of Python."""
    names, blocks = [str(name) for name in document["names"]], document["blocks"]
    missing = {"why", "go", "mean", "carriers", "curve", "best", "sets"} - document.keys()
    if document["format"] != 1 or missing or not _of_worst(document, "lines"):
        raise ValueError("expected format 1, with the lines of the worst pair")
    names[max(document["worst"])]
    for row in [] if blocks is None else blocks["blocks"]:
        str(row["name"]), _array([row["alone"], row["through"]])


def _array(values: Sequence[float | None]) -> Floats:
    return np.array(values, float)


def check_figure(found: StoredCheck) -> Figure:
    """The lines, and the blocks where they were measured."""
    with settings():
        panels = 1 + (found.document["blocks"] is not None)
        figure, axes = grid_of_axes(1, panels, 5.6 * panels, 4.0)
        for one in axes.flat:
            ground(one)
        draw_check(found, axes)
    return figure


def draw_check(found: StoredCheck, axes: Any) -> None:
    """On one pair of axes the lines; on a second one the blocks."""
    several = np.ravel(axes)
    draw_lines(found, several[0])
    if len(several) > 1:
        draw_blocks(found.document["blocks"]["blocks"], several[1])


def draw_lines(found: StoredCheck, ax: Axes) -> None:
    """The loss on the straight line, on each data set, with its level; aligned dashed; a trained curve dotted."""
    seen = []
    for colour, (name, (t, loss, _, level)) in zip(PALETTE, found.lines.items(), strict=False):
        top = float(np.nanmax(loss, initial=-np.inf))
        ax.plot(t, loss, "o-", ms=3, color=colour, lw=1.7, label=legend_text(f"{name}: {top:.4g}"))
        ax.axhline(level, color=colour, lw=0.9, linestyle=":")
        seen += [loss, _array([level])]
        if name in found.aligned:
            t, loss = found.aligned[name]
            ax.plot(t, loss, "s", ms=3.5, color=colour, lw=1.3, linestyle=DASHED, label="_")
            seen.append(loss)
    if found.aligned:
        ax.plot([], [], "s", ms=3.5, color=GREY, linestyle=DASHED, label="units renumbered")
    if (curve := found.document.get("curve")) is not None:
        loss = _array(curve["loss"])
        ax.plot(_array(curve["t"]), loss, color=GREY, lw=1.5, linestyle="-.", label="trained curve")
        seen.append(loss)
    ax.plot([], [], color=GREY, lw=0.9, linestyle=":", label="level")
    a, b = (legend_text(name, 14) for name in found.pair)
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], [a, "0.25", "0.5", "0.75", b])
    ax.set_xlabel("t, on the straight line")
    ax.set_ylabel("loss")
    loss_axis(ax, np.concatenate(seen))
    ax.set_title("the loss on the way")
    ax.legend(fontsize=8, loc="best")


def draw_blocks(rows: Sequence[Mapping[str, Any]], ax: Axes) -> None:
    """Two bars for each block: it alone moved, and all blocks up to it."""
    places = np.arange(len(rows))
    for k, (key, label) in enumerate((("alone", "this block alone"), ("through", "all blocks up to it"))):
        heights = _array([row[key] for row in rows])
        ax.bar(places + 0.4 * k - 0.2, heights, width=0.4, color=PALETTE[k], label=label)
    shown = range(0, len(rows), max(1, -(-len(rows) // _MOST)))
    turned: dict[str, Any] = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    style = turned if max(len(str(row["name"])) for row in rows) > 4 else {}
    ax.set_xticks(list(shown), [legend_text(str(rows[i]["name"]), 24) for i in shown], fontsize=8, **style)
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set_ylabel("loss above the larger end")
    ax.set_title("where the barrier sits")
    ax.grid(False, axis="x")
    ax.legend(fontsize=8, loc="best")


def draw_contributions(found: Contributions, ax: Axes) -> None:
    """The sum of what the examples add, from the one that adds most on, over their share."""
    summed = found.each.sort(descending=True).values.cumsum(0).numpy()
    share = np.arange(1, len(summed) + 1) / len(summed)
    ax.plot(100 * share, summed, color=PALETTE[0], lw=1.8)
    ax.axhline(found.value - found.penalty, color=GREY, lw=0.9, linestyle=":", label="all examples")
    ax.set_xlabel("examples, from the one that adds most, %")
    ax.set_ylabel(f"what they add to the loss at t = {found.t:.3g}")
    ax.legend(fontsize=8, loc="best")


def draw_matrix(found: BarrierMatrix, ax: Axes) -> None:
    """The numbers between each two networks, as colours and in digits."""
    values = found.values.numpy()
    picture = ax.imshow(values, cmap="YlGnBu")
    ax.grid(False)
    bright = picture.to_rgba(values)[..., :3] @ np.array([0.3, 0.59, 0.11])
    size = float(np.clip(54 / len(values), 4, 9))
    for (i, j), value in np.ndenumerate(values):
        ink = "black" if bright[i, j] > 0.5 else "white"
        ax.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=size, color=ink)
    names = [legend_text(name, 20) for name in found.names]
    ax.set_xticks(range(len(names)), names, fontsize=8, rotation=60 if max(map(len, names)) > 4 else 0)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_title(f"barrier ({found.definition})")


def draw_block_barriers(found: Any, ax: Axes) -> None:
    """What ``block_barriers`` found."""
    draw_blocks(found.to_dict()["blocks"], ax)
