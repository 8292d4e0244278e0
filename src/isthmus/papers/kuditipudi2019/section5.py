"""Section 5 of Kuditipudi et al. 2019: two minima that no path of low loss joins, and the paths that were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from isthmus.connectors import Connector, connect
from isthmus.counterexamples import disconnected
from isthmus.evaluate import profile
from isthmus.experiments.claims import Claim
from isthmus.experiments.jobs import named
from isthmus.experiments.lines import finish, new_panels
from isthmus.experiments.tables import Row, Table, first
from isthmus.papers.kuditipudi2019.jobs import PAGE
from isthmus.sweep import Cell, Job

if TYPE_CHECKING:
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
        "ends": first(lambda e: max(e["ends"])),
        "largest on it": first(lambda e: max(e["loss"])),
        "proved below every path": first("proved"),
        "B_h": first("estimate"),
        ".t": first("t"),
        ".loss": first("loss"),
    },
)
"""B_h is below every path too: for h = 2 it is proved, for more units the best of many minimisations."""


def figure(rows: Sequence[Row]) -> Figure:
    """Figure 4: the losses on the paths that were found, and the level that every path reaches."""
    rows = [row for row in rows if row["figure"] == "section 5"]
    kinds = list(dict.fromkeys(row["what"] for row in rows))
    drawn, panels = new_panels(1, len(kinds))
    for axes, kind in zip(panels[0], kinds, strict=False):
        own = [row for row in rows if row["what"] == kind]
        for row in own:
            axes.plot(row[".t"], row[".loss"], color=_COLOURS[row["path"]], linewidth=1.4, label=row["path"])
        axes.axhline(
            own[0]["B_h"], color="#129a72", linestyle=":", linewidth=1.4, label="B_h, which every path reaches"
        )
        axes.set(title=kind, xlabel="t")
        axes.set_yscale("symlog", linthresh=1e-2)
        axes.set_ylim(bottom=0)
    finish(drawn, panels, "squared loss along the path")
    return drawn


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
