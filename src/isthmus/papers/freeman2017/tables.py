"""The rows of the page on Freeman & Bruna 2017, from stored results, and the paper's values."""

from __future__ import annotations

from collections.abc import Iterable
from math import log
from statistics import fmean, stdev
from typing import Any

from isthmus.connectors import Connection, StringSampling
from isthmus.counterexamples import permutation
from isthmus.experiments.page import Done, PaperValue, Row, ended
from isthmus.papers.freeman2017.jobs import Proof, String
from isthmus.papers.freeman2017.theory import Disconnected, Gap
from isthmus.storage import load_connection
from isthmus.sweep import Stored

ENDS = 2
"""The paper counts the two ends among the beads."""

Found = list[tuple[Any, Stored]]

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
            yield PaperValue(row, "beads", beads + ENDS, "a plain first implementation, 4 pairs")


PAPER = tuple(_values())
"""Read from the vector graphics of the figures. Figure 6 is left out: its program never saw an interpolated loss."""


def rows(done: Done) -> list[Row]:
    """One row per task and level, one per counterexample and level, one per width of Theorem 2.4."""
    strings: dict[tuple[str, str, float], Found] = {}
    widths: dict[int, Found] = {}
    bounds: dict[tuple[str, str, float], list[float | None]] = {}
    apart: list[Row] = []
    for cell, stored in done:
        if isinstance(cell, String):
            strings.setdefault((cell.figure, cell.task, cell.level), []).append((cell, stored))
        elif isinstance(cell, Proof) and "claims" in stored.result:
            key = (cell.string.figure, cell.string.task, cell.string.level)
            bounds.setdefault(key, []).append(stored.result["bound"])
        elif isinstance(cell, Gap):
            widths.setdefault(cell.m, []).append((cell, stored))
        elif isinstance(cell, Disconnected):
            apart.append(_apart(cell, stored))
    out = [_strings(*key, found) | _proved(bounds.get(key, [])) for key, found in strings.items()]
    return [*_with_frames(out, strings), *apart, *(_width(m, found) for m, found in widths.items())]


def spread(values: list[float]) -> float | None:
    """The standard deviation over the pairs; None for one."""
    return stdev(values) if len(values) > 1 else None


def _strings(figure: str, task: str, level: float, found: Found) -> Row:
    """Means over the connected pairs; `without the first bead`: a straight line below the limit counts as it is."""
    cell = found[0][0]
    percent = 100 if cell.a.judge.quantity == "error" else 1
    trained = [s for _, s in found if s.result["outcome"] != "END_NOT_TRAINED"]
    good = [s.result for s in trained if ended(s.result["outcome"]) == "CONSTRUCTED"]
    row: Row = {
        "figure": figure,
        "task": task,
        "quantity": f"{cell.a.judge.on} {cell.a.judge.quantity}" + (", %" if percent == 100 else ""),
        "L0": round(percent * level, 9),
        "pairs": len(trained),
        "connected": len(good),
        "others": ", ".join(sorted({ended(s.result["outcome"]).lower() for s in trained} - {"constructed"})) or None,
    }
    if not good:
        return row
    lengths, beads = [r["length"] for r in good], [float(r["beads"] + ENDS) for r in good]
    straight = [r["line"] <= r["limit"] for r in good]
    row |= {
        "length": fmean(lengths),
        "length sd": spread(lengths),
        "length of the weights": fmean(r["weights_length"] for r in good),
        "beads": fmean(beads),
        "beads sd": spread(beads),
        "lines below": sum(straight),
        "length, line kept": fmean(1.0 if s else n for s, n in zip(straight, lengths, strict=True)),
        "beads, line kept": fmean(float(ENDS) if s else n for s, n in zip(straight, beads, strict=True)),
        "gradient steps": fmean(r["gradient_steps"] for r in good),
        "limit": percent * good[0]["limit"],
        "largest": percent * max(r.get("dense", r["maximum"]) for r in good),
        "processor seconds": fmean(s.record.get("processor_seconds", float("nan")) for s in trained),
        ".beads": beads,
        ".dense": all("dense" in r for r in good),
    }
    if short := [r["straightened"] for r in good if r.get("straightened") is not None]:
        both = [r["length"] for r in good if r.get("straightened") is not None]
        row |= {"length of these": fmean(both), "straightened": fmean(short), "straightened pairs": len(short)}
    return row


def _proved(bounds: list[float | None]) -> Row:
    """How many of the connected strings are proved, and the largest bound; nothing where none was tried."""
    known = [b for b in bounds if b is not None]
    return {"proved": len(known), "largest bound": max(known, default=None)} if bounds else {}


FRAMES = 0.01
"""The level of the quadratic string that stands for Figure 7."""


def _with_frames(out: list[Row], strings: dict[tuple[str, str, float], Found]) -> list[Row]:
    """Figure 7: the string of the first pair of networks of the quadratic task, at the level nearest to ``FRAMES``."""
    levels = [key for key in strings if key[0] == "2"]
    if levels:
        key = min(levels, key=lambda k: abs(log(k[2] / FRAMES)))
        cell, stored = strings[key][0]
        if ended(stored.result["outcome"]) == "CONSTRUCTED":
            (row,) = [r for r in out if (r["figure"], r["task"], r["L0"]) == key]
            row[".frames"] = (cell.a.problem.objectives()[0], _connection(stored))
    return out


def _connection(stored: Stored) -> Connection:
    return load_connection(stored.folder / "string.safetensors")


def _apart(cell: Disconnected, stored: Stored) -> Row:
    r, method = stored.result, type(cell.method).__name__
    row: Row = {
        "figure": "8, D.1" if cell.example == "permutation" else "2.3.1",
        "task": cell.example,
        "method": method,
        "L0": cell.level,
        "outcome": ended(r["outcome"]).lower().replace("_", " "),
        "connected": int(ended(r["outcome"]) == "CONSTRUCTED"),
        "beads": float(r["beads"] + ENDS),
        "length": r["length"],
        "largest": r["dense"],
        "gradient steps": r["gradient_steps"],
        "no path below": r["threshold"],
        "proved": r["proved"],
        "level reached": r["reached"],
    }
    if isinstance(cell.method, StringSampling) and cell.example == "permutation" and not row["connected"]:
        row[".frames"] = (permutation().objective, _connection(stored))
    return row


def _width(m: int, found: Found) -> Row:
    results = [s.result for _, s in found]
    bounds = [r["epsilon"] for r in results]
    return {
        "figure": "Corollary 2.5",
        "task": "gap of Theorem 2.4",
        "m": m,
        "pairs": len(results),
        "ends": fmean(max(r["ends"]) for r in results),
        "e(n)": fmean(r["oracle"] for r in results),
        "largest epsilon, bound": max(bounds),
        "gap": fmean(r["gap"] for r in results),
        "gap sd": spread([r["gap"] for r in results]),
        "largest gap": max(r["gap"] for r in results),
        "largest excess": max(r["excess"] for r in results),
        ".above": max(r["measured"] - max(*r["ends"], r["epsilon"]) for r in results),
    }
