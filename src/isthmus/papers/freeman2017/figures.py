"""The figures of the page on Freeman & Bruna 2017, from its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from isthmus.experiments.tables import Row
from isthmus.papers.freeman2017 import drawing as draw
from isthmus.papers.freeman2017.claims import power_law, where_beads_grow
from isthmus.plot import draw_frames, strings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _curves(figure: str, task: str = "") -> Callable[[list[Row]], Figure]:
    """Length and beads against the level, of one figure of the paper; of one task where it has several."""

    def drawn(rows: list[Row]) -> Figure:
        table = [r for r in rows if r["figure"] == figure and task in r["task"] and r.get("length") is not None]
        if not table:
            return draw.nothing(f"no connected pair for Figure {figure}")
        table.sort(key=lambda r: r["L0"])
        levels = [r["L0"] for r in table]
        growing = where_beads_grow(table)
        found = power_law([r["L0"] for r in growing], [r["beads"] for r in growing])
        ours = {name: [_number(r.get(name)) for r in table] for name in ("length", "length sd", "beads", "beads sd")}
        kept = {"L0": levels, "length": [r["length, line kept"] for r in table],
                "beads": [r["beads, line kept"] for r in table]}  # fmt: skip
        known = [r for r in table if "paper beads" in r]
        paper = {"L0": [r["L0"] for r in known], "length": [r["paper length"] for r in known],
                 "beads": [r["paper beads"] for r in known]}  # fmt: skip
        label = f"{table[0]['task']}: {table[0]['quantity']}"
        ends = (growing[0]["L0"], growing[-1]["L0"]) if growing else (0.0, 0.0)
        law = None if found is None else {x: found.factor * x**found.exponent for x in ends}
        return draw.geometry({"L0": levels, **ours}, kept, paper, law, label)

    return drawn


def _number(value: float | None) -> float:
    return 0.0 if value is None else value


def _frames(figure: str) -> Callable[[list[Row]], Figure]:
    """The algorithm at work on the string that stands for this figure: the lowest level that has one."""

    def drawn(rows: list[Row]) -> Figure:
        kept = [r for r in rows if r["figure"] == figure and r.get(".frames")]
        if not kept:
            return draw.nothing("no string to show")
        objective, connection = min(kept, key=lambda r: r["L0"])[".frames"]
        return draw_frames(strings(objective, connection, num_points=21))

    return drawn


def _gaps(rows: Sequence[Row]) -> Figure:
    """Corollary 2.5."""
    table = sorted((r for r in rows if r["figure"] == "Corollary 2.5"), key=lambda r: r["m"])
    columns = ("m", "gap", "largest gap", "largest excess")
    return draw.gaps({name: [r[name] for r in table] for name in columns})


FIGURES: dict[str, Callable[[list[Row]], Figure]] = {
    "figure-2": _curves("2"),
    "figure-3": _curves("3"),
    "figure-4": _curves("4"),
    "figure-5": _curves("5"),
    "figure-6": _curves("6"),
    "figure-7": _frames("2"),
    "figure-8": _frames("8, D.1"),
    "squared-quadratic": _curves("squared error", "quadratic"),
    "squared-cubic": _curves("squared error", "cubic"),
    "corollary": _gaps,
}
"""By name."""
