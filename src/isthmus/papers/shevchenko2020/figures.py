"""The figures of the page on Shevchenko and Mondelli 2020, from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from isthmus.errors import InputError
from isthmus.experiments.tables import Row, number
from isthmus.papers.shevchenko2020 import drawing as draw
from isthmus.shown import deviation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = {"loss": "loss", "half loss": "dropped_loss", "error": "error", "half error": "dropped_error"}
"""What Figure 1 calls them, and their names in a ``PatternStability``."""


def _figure_1(rows: Sequence[Row]) -> Figure:
    """A column for every width that was judged on a grid of times."""
    panels = {f"{row['task']}\nN = {row['N']}": _training(row[".grid"]) for row in rows if row.get(".grid")}
    return draw.during_training(panels)


def _training(grid: Mapping[float, Sequence[Mapping[str, float]]]) -> draw.Training:
    out: dict[str, list[float]] = {"t": sorted(grid)}
    for name, field in _COLUMNS.items():
        values = [[trial[field] for trial in grid[t]] for t in out["t"]]
        out[name] = [fmean(v) for v in values]
        out[f"{name} sd"] = [deviation(v) for v in values]
    return out


def _figure_2(rows: Sequence[Row]) -> Figure:
    """A panel per task, a curve per time."""
    panels: dict[str, dict[str, draw.Points]] = {}
    for row in rows:
        if row["what"] == "change against N":
            panels.setdefault(row["task"], {})[f"{row['time']} of training"] = row[".curve"]
    return draw.falling(panels, "N", "change in loss")


def _figure_3(rows: Sequence[Row]) -> Figure:
    """The widest network of the first task that has paths between different starts and is no Gaussian one."""
    found = [row for row in rows if row["what"] == "paths" and row["starts"] == "bimodal to unimodal"]
    images = [row for row in found if not row["task"].startswith("gaussians")] or found
    if not images:
        raise InputError("rows", expected="a path from a bimodal to a unimodal start", got="none")
    row = max((r for r in images if r["task"] == images[0]["task"]), key=lambda r: r["N"])
    return _one_path(row)


def _one_path(row: Row) -> Figure:
    allowed = row[".judged"][0]["allowed error"]
    title = f"{row['task']}, N = {row['N']}"
    return draw.path_and_weights(row[".curve"], row[".line"], allowed, row[".weights"], title)


def _figure_3_deep(rows: Sequence[Row]) -> Figure:
    """The same for the last task, which has the most layers."""
    found = [row for row in rows if row["what"] == "paths" and row["starts"] == "bimodal to unimodal"]
    if not found:
        raise InputError("rows", expected="a path from a bimodal to a unimodal start", got="none")
    return _one_path(max(found, key=lambda r: (len(r[".weights"]), r["N"])))


def figure_4(rows: Sequence[Row]) -> Figure:
    """All tasks of classification of images."""
    curves: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["what"] == "widths" and not row["task"].startswith("gaussians"):
            points = curves.setdefault(row["task"], {"x": [], "mean": [], "deviation": []})
            points["x"].append(row["N"])
            points["mean"].append(row["error change %"])
            points["deviation"].append(number(row["error change sd"]))
    return draw.changes_of_error(curves)


def _gaussians(rows: Sequence[Row]) -> Figure:
    """Appendix D: the change against N beside that against M of the widest network, and the excess of the paths."""
    panels: dict[str, dict[str, draw.Points]] = {}
    for row in rows:
        if not row["task"].startswith("gaussians") or ".curve" not in row:
            continue
        if row["what"] == "change against N":
            panels.setdefault("half of N units left", {})[f"{row['time']} of training"] = row[".curve"]
        elif row["what"] == "change against M":
            panels.setdefault(f"M units left of {row['N']}", {})[f"{row['time']} of training"] = row[".curve"]
        elif row["what"] == "excess against N":
            panels.setdefault("excess of the path", {})["excess, pairs of trials"] = row[".curve"]
    return draw.falling(panels, "N, or M", "change in loss, or excess")


FIGURES = {
    "figure-1": _figure_1,
    "figure-2": _figure_2,
    "figure-3": _figure_3,
    "figure-3-deep": _figure_3_deep,
    "figure-4": figure_4,
    "gaussians": _gaussians,
}
"""By name."""
