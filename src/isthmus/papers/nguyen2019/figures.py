"""The figures of the page on Nguyen 2019, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from isthmus.experiments.tables import Row
from isthmus.papers.nguyen2019 import drawing as draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _sketches(rows: Sequence[Row]) -> Figure:
    """Figures 1 to 5: the functions above, the components of their sublevel sets below."""
    found = [r for r in rows if r["part"].startswith("Figure")]
    return draw.sketches({r["part"]: r[".survey"] for r in found})


def _paths(rows: Sequence[Row]) -> Figure:
    """The losses along one path per theorem and start, with the straight line; at the largest N that all have."""
    found = [r for r in _by_theorem(rows) if r["from"] in ("random", "trained")]
    panels: dict[str, dict[str, draw.Curve]] = {}
    for theorem in dict.fromkeys(r["part"] for r in found):
        own = [r for r in found if r["part"] == theorem]
        largest = _common(own)
        for row in (r for r in own if r["N"] == largest):
            name = f"{theorem}, N = {row['N']}, {row['from']} ends"
            panels.setdefault(name, {"straight line": row[".line"], "path": row[".curve"]})
    return draw.paths(panels)


def _by_theorem(rows: Sequence[Row]) -> list[Row]:
    """The paths that were made, with the cross-entropy."""
    return [r for r in rows if r["part"].startswith("Theorem") and r["loss"] == "cross-entropy" and r[".curve"]]


def _common(rows: Sequence[Row]) -> int:
    """The largest N that has ends of as many kinds as any has."""
    kinds: dict[int, set[str]] = {}
    for row in rows:
        kinds.setdefault(row["N"], set()).add(row["from"])
    most = max(map(len, kinds.values()))
    return max(n for n, found in kinds.items() if len(found) == most)


def _digits(rows: Sequence[Row]) -> Figure:
    """Against N: proved excess, invariance, condition numbers, growth, by theorem."""
    found = [r for r in _by_theorem(rows) if r["proved"]]
    table: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for column in ("proved excess", "invariance", "condition", "growth"):
        for row in found:
            if not row[column]:  # no segment on which the outputs stay
                continue
            points = table.setdefault(column, {}).setdefault(row["part"], [])
            points.append((row["N"], row[column]))
    return draw.against_samples(table)


def _descents(rows: Sequence[Row]) -> Figure:
    """The losses on the way down, by network."""
    panels: dict[str, dict[str, draw.Curve]] = {}
    for row in rows:
        if row["part"] == "descend" and row[".curve"]:
            panels.setdefault(row["network"], {})[f"{row['loss']}, from {row['from']}"] = row[".curve"]
    return draw.descents(panels)


FIGURES = {"figures-1-to-5": _sketches, "paths": _paths, "digits": _digits, "descents": _descents}
"""By name."""
