"""Section 5 of Kuditipudi et al. 2019: two minima that no path of low loss joins, and the paths that were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from isthmus.connectors import Connector, connect
from isthmus.counterexamples import disconnected
from isthmus.evaluate import profile
from isthmus.experiments.claims import Claim
from isthmus.experiments.jobs import named
from isthmus.experiments.lines import finish, new_panels
from isthmus.experiments.tables import Row, Table, first
from isthmus.papers.kuditipudi2019.jobs import PAGE
from isthmus.shown import largest
from isthmus.sweep import Cell, Job

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROUNDING = 1e-12
_COLOURS = {"Linear": "#7f868d", "Bezier": "#0b78c2", "PolyChain": "#d9541e"}


@dataclass(frozen=True)
class Apart(Cell):
    """A path that a method finds between the two minima of Theorem 4 with h hidden units."""

    page: ClassVar[str] = PAGE

    h: int
    method: Connector
    seed: int = 0
    num_points: int = 101

    @property
    def label(self) -> str:
        """For people."""
        return f"Theorem 4, h = {self.h}, {named(self.method)}"

    def run(self, job: Job) -> Mapping[str, Any]:
        """The losses along it, the proved bound of Lemma 6, and the estimate of B_h."""
        example = disconnected(self.h)
        a, b = example.minima
        path = connect(example.objective, a, b, self.method, seed=self.seed).path
        found = profile(example.objective, path, self.num_points)
        return {
            "ends": [example.objective.loss(p) for p in example.minima],
            "t": found.t.tolist(),
            "loss": found.loss.tolist(),
            "proved": example.lower_bound,
            "estimate": example.barrier.value,
        }


TABLE = Table(
    of=Apart,
    by={
        "figure": lambda e: "section 5",
        "what": lambda e: f"Theorem 4, h = {e.cell.h}",
        "path": lambda e: type(e.cell.method).__name__,
    },
    columns={
        "ends": first(lambda e: largest(e["ends"])),
        "largest on it": first(lambda e: largest(e["loss"])),
        "proved below every path": first("proved"),
        "B_h": first("estimate"),
        ".h": first("cell.h"),
        ".t": first("t"),
        ".loss": first("loss"),
    },
)
"""B_h is below every path too: for h = 2 it is proved, for more units the best of many minimisations."""


def figure(rows: Sequence[Row]) -> Figure:
    """Figure 4, the data set, and below it the losses on the paths that were found, with what is below every path."""
    rows = [row for row in rows if row["figure"] == "section 5"]
    kinds = list(dict.fromkeys(row["what"] for row in rows))
    drawn, panels = new_panels(2, len(kinds))
    for (above, below), kind in zip(panels.T, kinds, strict=False):
        own = [row for row in rows if row["what"] == kind]
        _data(above, own[0][".h"])
        above.set_title(kind)
        _losses(below, own)
    finish(drawn, panels, "example")
    panels[1][0].set_ylabel("squared loss along the path")
    return drawn


def _data(axes: Axes, h: int) -> None:
    """X and y of the data set, entry by entry; logarithmic beyond 1, so that the entries of -1, 0 and 1 are seen."""
    from matplotlib.colors import SymLogNorm

    x, y = (torch.as_tensor(part) for part in disconnected(h).objective.data)
    table = torch.cat([x, torch.full_like(y, nan), y], 1)
    highest = float(x.abs().max())
    axes.imshow(table, cmap="RdBu_r", norm=SymLogNorm(1.0, vmin=-highest, vmax=highest), aspect="auto")
    axes.set_xticks([0, h + 1, h + 3], ["f1", f"f{h + 2}", "y"])
    axes.set_yticks([0, len(x) - 1], ["1", str(len(x))])
    axes.grid(False)


def _losses(axes: Axes, rows: Sequence[Row]) -> None:
    for row in rows:
        axes.plot(row[".t"], row[".loss"], color=_COLOURS[row["path"]], linewidth=1.4, label=row["path"])
    estimate, proved = rows[0]["B_h"], rows[0]["proved below every path"]
    axes.axhline(estimate, color="#129a72", linestyle="--", linewidth=1.2, label="B_h (estimated for h > 2)")
    axes.axhline(proved, color="#20262c", linestyle=":", linewidth=1.2, label="proved below every path")
    axes.set(xlabel="t")
    axes.set_yscale("symlog", linthresh=1e-5)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)


CLAIMS = (
    Claim(
        "{what}: both ends have a loss of 0", lambda row: row["figure"] == "section 5", ("what",),
        value="ends", at_most=_ROUNDING, says="{value:.1g}",
    ),
    Claim(
        "{what}: no path that was found stays below the proved bound", lambda row: row["figure"] == "section 5",
        ("what",), value=lambda row: row["largest on it"] / row["proved below every path"], at_least=1,
        says="the lowest, {path}, reaches {largest on it:.4g}; bound {proved below every path:.3g}, B_h {B_h:.4g}",
    ),
)  # fmt: skip
"""Theorem 4 and Lemma 6."""
