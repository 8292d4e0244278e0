"""The figures of the page on Kuditipudi et al. 2019, from its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from isthmus.errors import InputError
from isthmus.experiments.tables import Row, number
from isthmus.papers.kuditipudi2019 import drawing as draw
from isthmus.papers.kuditipudi2019.claims import where
from isthmus.papers.kuditipudi2019.jobs import TABLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _figure_2(rows: Sequence[Row]) -> Figure:
    """Left, centre and right."""
    found = [row for row in rows if row["figure"] == "2 centre"]
    if not found:
        raise InputError("rows", expected="subnetworks of Figure 2", got="none")
    centre = found[0]
    p = float(centre["what"].rpartition("= ")[2])
    return draw.subnetworks(_points(rows, "2 left", ".p"), centre[".lines"], _points(rows, "2 right", ".width"), p)


def _points(rows: Sequence[Row], figure: str, x: str) -> draw.Points:
    found = [row for row in rows if row["figure"] == figure]
    columns = {"loss": "loss", "loss sd": "loss sd", "accuracy": "accuracy %", "accuracy sd": "accuracy sd"}
    points = {name: [number(row[c]) for row in found] for name, c in columns.items()}
    return {"x": [row[x] for row in found], **points}


def _noise(rows: Sequence[Row], layer: int | None = None) -> Figure:
    """D.3: all layers; Figure 3, left: the sixth, or the middle one of a network with fewer."""
    found = [row for row in rows if "layer" in row]
    if not found:
        raise InputError("rows", expected="the noise of a network", got="none")
    if layer is not None:
        deepest = max(row["layer"] for row in found)
        shown = layer if layer <= deepest else (deepest + 1) // 2
        found = [row for row in found if row["layer"] == shown]
    return draw.distributions({name.replace("_", " "): _by_layer(found, name) for name in TABLES})


def _by_layer(rows: Sequence[Row], name: str) -> dict[int, dict[str, list[float]]]:
    """The numbers of one quantity, by layer and network."""
    table: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        if name in row[".values"]:
            trained = "with" if "dropout" in row["network"] else "without"
            table.setdefault(row["layer"], {})[f"trained {trained} dropout"] = row[".values"][name]
    return table


def _paths(part: str, title: str) -> Callable[[list[Row]], Figure]:
    """Loss and accuracy along the paths of the first pair of one part of the page."""

    def figure(rows: list[Row]) -> Figure:
        return draw.paths({r["method"]: r[".curve"] for r in rows if r.get("method") and where(r) == part}, title)

    return figure


FIGURES = {
    "figure-2": _figure_2,
    "figure-3-left": lambda rows: _noise(rows, 6),
    "figure-d3": _noise,
    "figure-3-right-5": _paths("channels", "two networks trained with channel-wise dropout"),
    "paths-filters": _paths("filters", "two networks of three convolutions, trained without dropout"),
    "paths-perceptrons": _paths("perceptrons", "two perceptrons trained with dropout"),
}
"""By name."""
