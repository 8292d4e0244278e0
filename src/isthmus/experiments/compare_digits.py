"""Pairs of digit networks of several widths and depths, connected by three methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isthmus.certify.certify import BUDGET
from isthmus.connectors import Connector, Dropout, Linear, Subnetwork, Trained
from isthmus.experiments.jobs import Network, Pair, Problem
from isthmus.experiments.page import Experiment
from isthmus.experiments.tables import Entry, Row, Table, first, largest, mean, so_many
from isthmus.sweep import Cell
from isthmus.training.fit import Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Scale:
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    pairs: int
    recipe: Recipe
    target: float
    methods: tuple[Connector, ...]
    examples: int | None
    num_points: int
    budget: float = BUDGET


_ALL = (Linear(), Dropout(), Subnetwork())
_SMOKE = (Linear(), Dropout(masks=4), Subnetwork(inner=Trained(recipe=Recipe(steps=400), attempts=1)))
_SCALES = {
    "smoke": _Scale((8, 16), (1, 2), 1, Recipe(lr=1e-2, steps=120, batch=64), 5e-3, _SMOKE, 100, 5, 4),
    "laptop": _Scale((20, 60), (2, 4), 3, Recipe(steps=4000, batch=128), 5e-4, _ALL, None, 61),
    "paper": _Scale((20, 60, 200), (1, 2, 4), 10, Recipe(steps=4000, batch=128), 5e-4, _ALL, None, 61),
}


def cells(scale: str) -> Sequence[Cell]:
    """Every pair by every method; networks 2k and 2k + 1 are a pair."""
    s = _SCALES[scale]
    out = []
    for depth in s.depths:
        for width in s.widths:
            problem = Problem(f"mlp:64-{width}x{depth}-10", "digits", s.examples)
            for k in range(s.pairs):
                a, b = (Network(problem, seed, s.recipe, s.target) for seed in (2 * k, 2 * k + 1))
                out += [
                    Pair("compare-digits", a, b, m, seed=k, num_points=s.num_points, budget=s.budget) for m in s.methods
                ]
    return out


def _sizes(entry: Entry) -> list[int]:
    """The width and the number of hidden layers."""
    return [int(n) for n in entry.cell.a.problem.model.split("-")[1].split("x")]


TABLE = Table(
    of=Pair,
    by={
        "layers": lambda e: _sizes(e)[1],
        "width": lambda e: _sizes(e)[0],
        "method": lambda e: type(e.cell.method).__name__,
    },
    columns={
        "pairs": len,
        "segments": first("segments"),
        "length/distance": mean("normalized_length"),
        "max training loss": mean("max_loss"),
        "excess": mean("excess"),
        "largest excess": largest("excess"),
        "proved": so_many("bound"),
        "largest bound": largest("bound", of_all=True),
        "max test error": mean("test_error_max?"),
        "seconds": mean("record.seconds?"),
    },
)
"""One row per depth, width and method: means over the pairs, and the largest excess and bound."""


def figure(table: list[Row]) -> Figure:
    """The mean excess against the width: one panel per depth, one line per method."""
    from isthmus.plot.figures import GREY, MARKERS, PALETTE, grid_of_axes, ground, settings

    depths = sorted({row["layers"] for row in table})
    widths = sorted({row["width"] for row in table})
    with settings():
        drawn, panels = grid_of_axes(1, len(depths), 1.2 + 3.2 * len(depths), 3.4, sharey=True)
        for axes, depth in zip(panels[0], depths, strict=True):
            for i, method in enumerate(dict.fromkeys(row["method"] for row in table)):
                colour = GREY if method == "Linear" else PALETTE[i % len(PALETTE)]
                own = [r for r in table if (r["layers"], r["method"]) == (depth, method)]
                _line(axes, own, method, colour, MARKERS[i % len(MARKERS)])
            axes.set(xscale="log", title=f"{depth} hidden layer{'s' * (depth > 1)}", xlabel="width")
            axes.set_yscale("symlog", linthresh=1e-3)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_xticks(widths, [str(w) for w in widths])
            axes.minorticks_off()
            ground(axes)
        panels[0][0].set_ylabel("excess of the training loss\n(mean of the pairs; bar: largest)")
        panels[0][0].legend(loc="lower left")
    return drawn


def _line(axes: Axes, rows: list[Row], name: str, colour: str, marker: str) -> None:
    """The means of one method, and a bar at the largest."""
    rows = sorted(rows, key=lambda row: row["width"])
    at = [row["width"] for row in rows]
    axes.plot(at, [row["excess"] for row in rows], color=colour, marker=marker, label=name)
    axes.plot(at, [row["largest excess"] for row in rows], color=colour, marker="_", linestyle="none")


EXPERIMENT = Experiment(
    name="compare-digits",
    title="Digit networks of several widths and depths by three methods",
    reference="no paper: the library's own comparison",
    cells=cells,
    tables=(TABLE,),
    figures={"excess": figure},
)
