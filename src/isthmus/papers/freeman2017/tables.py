"""The rows of the page on Freeman & Bruna 2017, from stored results, and the paper's values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import log
from typing import Any

from isthmus.connectors import Connection, StringSampling
from isthmus.counterexamples import permutation
from isthmus.experiments.page import PaperValue, ended
from isthmus.experiments.tables import Column, Done, Entry, Row, Table, count, first, largest, mean
from isthmus.objective import Objective
from isthmus.papers.freeman2017.jobs import Proof, String
from isthmus.papers.freeman2017.theory import Disconnected, Gap, PrintedMixture
from isthmus.shown import largest as top
from isthmus.storage import load_connection

_ENDS = 2
"""The paper counts the two ends among the beads."""

_FIGURE_2 = {
    0.001: (1.863, 62.4), 0.0025: (1.753, 38.3), 0.005: (1.661, 23.5), 0.0075: (1.650, 18.8), 0.01: (1.476, 13.8),
    0.025: (1.329, 8.17), 0.05: (1.366, 6.81), 0.075: (1.291, 5.40), 0.1: (1.346, 5.04), 0.125: (1.270, 3.98),
}  # fmt: skip
_FIGURE_3 = {
    0.01: (1.872, 46.3), 0.02: (1.688, 27.3), 0.03: (1.508, 18.7), 0.04: (1.447, 15.9), 0.05: (1.428, 14.0),
    0.06: (1.435, 12.4), 0.07: (1.418, 10.9), 0.08: (1.394, 9.50), 0.10: (1.382, 7.61), 0.12: (1.375, 5.96),
    0.14: (1.422, 4.52), 0.15: (1.657, 3.74), 0.152: (1.783, 3.79), 0.154: (1.989, 3.60), 0.156: (2.415, 3.60),
    0.158: (2.538, 3.43), 0.16: (2.278, 3.28), 0.162: (1.870, 3.23), 0.164: (1.523, 3.08), 0.168: (1.006, 3.16),
    0.17: (1.004, 3.15), 0.18: (1.005, 3.16), 0.20: (1.004, 3.20), 0.24: (1.004, 3.26), 0.32: (1.003, 3.11),
}  # fmt: skip
_FIGURE_4 = {
    0.7: (1.071, 7.12), 0.75: (1.047, 6.63), 0.775: (1.030, 5.68), 0.8: (1.026, 6.00), 0.85: (1.026, 5.94),
    0.9: (1.022, 5.92), 1.0: (1.016, 5.48), 1.5: (1.008, 5.11), 2.0: (1.005, 4.79), 4.0: (1.003, 4.09),
}  # fmt: skip
_FIGURE_5 = {
    20.0: (1.845, 5.9), 30.0: (1.159, 3.9), 40.0: (1.012, 3.0), 50.0: (1.005, 3.08), 60.0: (1.003, 3.0),
    70.0: (1.000, 3.0), 80.0: (1.001, 3.0),
}  # fmt: skip
_SQUARED = {
    "quadratic, squared": {
        3e-2: (1.02, 2.5), 1e-2: (1.05, 3.0), 3e-3: (1.06, 4.8), 1e-3: (1.10, 7.5), 3e-4: (1.12, 11.8),
        1e-4: (1.14, 17), 3e-5: (1.15, 23.8),
    },
    "cubic, squared": {
        8e-2: (1.00, 1.0), 6e-2: (1.00, 1.5), 4e-2: (1.19, 2.8), 2e-2: (1.27, 6.3), 1e-2: (1.27, 8.3),
        5e-3: (1.33, 10.8), 2e-3: (1.53, 16),
    },
}  # fmt: skip


def _values() -> Iterable[PaperValue]:
    tables = {"2": _FIGURE_2, "3": _FIGURE_3, "4": _FIGURE_4, "5": _FIGURE_5}
    for figure, table in tables.items():
        for level, both in table.items():
            for column, value in zip(("length", "beads"), both, strict=True):
                yield PaperValue({"figure": figure, "L0": level}, column, value, f"Figure {figure}")
    for task, table in _SQUARED.items():
        for level, (length, beads) in table.items():
            row = {"task": task, "L0": level}
            yield PaperValue(row, "length", length, "a plain first implementation, 4 pairs")
            yield PaperValue(row, "beads", beads + _ENDS, "a plain first implementation, 4 pairs")


PAPER = tuple(_values())
"""Read from the vector graphics of the figures. Figure 6 is left out: its program never saw an interpolated loss."""


def rows(done: Done) -> list[Row]:
    """One row per task and level, one per counterexample and level, one per width of Theorem 2.4."""
    return [*_with_frames(_STRINGS.rows(done)), *_APART.rows(done), *_PRINTED.rows(done), *_WIDTHS.rows(done)]


def _string(entry: Entry) -> String:
    """That was searched, or proved."""
    return entry.cell.string if isinstance(entry.cell, Proof) else entry.cell


def _trained(entries: Sequence[Entry]) -> list[Entry]:
    """The searches whose ends reached the level."""
    return [e for e in entries if isinstance(e.cell, String) and e["outcome"] != "END_NOT_TRAINED"]


def _connected(entry: Entry) -> bool:
    return ended(entry["outcome"]) == "CONSTRUCTED"


def _good(column: Column) -> Column:
    """A column of the connected pairs alone; nothing without any."""

    def of_good(entries: Sequence[Entry]) -> Any:
        good = [e for e in _trained(entries) if _connected(e)]
        return column(good) if good else None

    return of_good


def _short(column: Column) -> Column:
    """A column of the straightened ones; nothing without any."""

    def of_short(entries: Sequence[Entry]) -> Any:
        short = [e for e in entries if e["straightened?"] is not None]
        return column(short) if short else None

    return _good(of_short)


def _others(entries: Sequence[Entry]) -> str | None:
    return ", ".join(sorted({ended(e["outcome"]).lower() for e in _trained(entries)} - {"constructed"})) or None


def _percent(entry: Entry) -> int:
    """What levels are multiplied by."""
    return 100 if _string(entry).a.judge.quantity == "error" else 1


def _quantity(entry: Entry) -> str:
    judge = _string(entry).a.judge
    return f"{judge.on} {judge.quantity}" + (", %" if judge.quantity == "error" else "")


def _beads(entry: Entry) -> float:
    return float(entry["beads"] + _ENDS)


def _line_kept(entry: Entry) -> bool:
    """Whether the straight line is below the limit as it is."""
    return entry["line"] <= entry["limit"]


def _largest(entry: Entry) -> float:
    """On the string, by the samples of another grid where there are some."""
    dense = entry["dense?"]
    return _percent(entry) * (entry["maximum"] if dense is None else dense)


def _proofs(column: Callable[[list[float]], Any]) -> Column:
    """Of the bounds of the connected strings; nothing where none was tried."""

    def bounds(entries: Sequence[Entry]) -> Any:
        tried = [e for e in entries if isinstance(e.cell, Proof) and e["claims?"] is not None]
        return column([e["bound"] for e in tried if e["bound?"] is not None]) if tried else None

    return bounds


_STRINGS = Table(
    of=(String, Proof),
    by={
        "figure": lambda e: _string(e).figure,
        "task": lambda e: _string(e).task,
        "quantity": _quantity,
        "L0": lambda e: round(_percent(e) * _string(e).level, 9),
    },
    columns={
        "pairs": lambda entries: len(_trained(entries)),
        "connected": lambda entries: sum(map(_connected, _trained(entries))),
        "others": _others,
        "length": _good(mean("length", "sd")),
        "length of the weights": _good(mean("weights_length")),
        "beads": _good(mean(_beads, "sd")),
        "lines below": _good(count(_line_kept)),
        "length, line kept": _good(mean(lambda e: 1.0 if _line_kept(e) else e["length"])),
        "beads, line kept": _good(mean(lambda e: float(_ENDS) if _line_kept(e) else _beads(e))),
        "gradient steps": _good(mean("gradient_steps")),
        "limit": _good(first(lambda e: _percent(e) * e["limit"])),
        "largest": _good(largest(_largest)),
        "processor seconds": lambda entries: mean("record.processor_seconds?")(_trained(entries)),
        ".dense": _good(lambda entries: all(e["dense?"] is not None for e in entries)),
        "length of these": _short(mean("length")),
        "straightened": _short(mean("straightened")),
        "straightened pairs": _short(len),
        "proved": _proofs(len),
        "largest bound": _proofs(lambda bounds: max(bounds, default=None)),
        ".first": lambda entries: next((e for e in entries if isinstance(e.cell, String)), None),
    },
)
"""Means over the connected pairs; `line kept`: a straight line below the limit counts as it is."""

_FRAMES = 0.01
"""The level of the quadratic string that stands for Figure 7."""


def _with_frames(table: list[Row]) -> list[Row]:
    """Figure 7: the string of the first pair of networks of the quadratic task, at the level nearest to ``_FRAMES``."""
    quadratic = [r for r in table if r["figure"] == "2" and r[".first"] is not None]
    if quadratic:
        row = min(quadratic, key=lambda r: abs(log(r["L0"] / _FRAMES)))
        shown = row[".first"]
        if _connected(shown):
            row[".frames"] = (shown.cell.a.problem.objectives()[0], _connection(shown))
    return table


def _connection(entry: Entry) -> Connection:
    return load_connection(entry.stored.folder / "string.safetensors")


def _frames(entry: Entry) -> tuple[Objective, Connection] | None:
    """Figure 8: a string that found no way between the permuted solutions."""
    cell = entry.cell
    if _connected(entry) or cell.example != "permutation" or not isinstance(cell.method, StringSampling):
        return None
    return permutation().objective, _connection(entry)


_APART = Table(
    of=Disconnected,
    by={
        "figure": lambda e: "8, D.1" if e.cell.example == "permutation" else "2.3.1",
        "task": "cell.example",
        "method": lambda e: type(e.cell.method).__name__,
        "L0": "cell.level",
    },
    columns={
        "outcome": first(lambda e: ended(e["outcome"]).lower().replace("_", " ")),
        "connected": count(_connected),
        "beads": first(_beads),
        "length": first("length"),
        "largest": first("dense"),
        "gradient steps": first("gradient_steps"),
        "no path below": first("threshold"),
        "proved": first("proved"),
        "level reached": first("reached"),
        ".frames": first(_frames),
    },
)
_PRINTED = Table(
    of=PrintedMixture,
    by={"figure": lambda e: "2.3.1", "task": lambda e: "mixture, as printed", "L0": lambda e: None},
    columns={
        "method": lambda entries: "through zero outputs",
        "ends": first(lambda e: top(e["ends"])),
        "largest": first("largest"),
        "line": first("line"),
        "no path below, as printed": first("claimed"),
    },
)
_WIDTHS = Table(
    of=Gap,
    by={"figure": lambda e: "Corollary 2.5", "task": lambda e: "gap of Theorem 2.4", "m": "cell.m"},
    columns={
        "pairs": len,
        "ends": mean(lambda e: top(e["ends"])),
        "e(n)": mean("oracle"),
        "largest epsilon, bound": largest("epsilon"),
        "gap": mean("gap", "sd"),
        "largest gap": largest("gap"),
        "largest excess": largest("excess"),
        ".above": largest(lambda e: e["measured"] - top((*e["ends"], e["epsilon"]))),
    },
)
