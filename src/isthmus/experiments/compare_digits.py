"""Pairs of digit networks of several widths and depths, connected by three methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from isthmus.certify.certify import BUDGET
from isthmus.connectors import Connector, Dropout, Linear, Subnetwork, Trained
from isthmus.experiments.jobs import Network, Pair, Problem
from isthmus.experiments.page import Done, Experiment, Row
from isthmus.sweep import Cell
from isthmus.training.fit import Recipe

if TYPE_CHECKING:
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
    budget: int = BUDGET


_ALL = (Linear(), Dropout(), Subnetwork())
_SMOKE = (Linear(), Dropout(masks=4), Subnetwork(inner=Trained(recipe=Recipe(steps=400), attempts=1)))
_SCALES = {
    "smoke": _Scale((8, 16), (1, 2), 1, Recipe(lr=1e-2, steps=120, batch=64), 5e-3, _SMOKE, 200, 5, 40),
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


def rows(done: Done) -> list[Row]:
    """One row per depth, width and method: means over the pairs, and the largest excess and bound."""
    groups: dict[tuple[int, int, str], list[tuple[Any, float]]] = {}
    for cell, stored in done:
        if isinstance(cell, Pair):
            width, depth = (int(n) for n in cell.a.problem.model.split("-")[1].split("x"))
            key = (depth, width, type(cell.method).__name__)
            groups.setdefault(key, []).append((stored.result, stored.record.get("seconds", float("nan"))))
    return [_row(key, group) for key, group in groups.items()]


def _row(key: tuple[int, int, str], group: list[tuple[Any, float]]) -> Row:
    results = [r for r, _ in group]
    bounds = [r["bound"] for r in results if r["bound"] is not None]
    errors = [r["test_error_max"] for r in results if r.get("test_error_max") is not None]
    return {
        "layers": key[0],
        "width": key[1],
        "method": key[2],
        "pairs": len(group),
        "segments": results[0]["segments"],
        "length/distance": fmean(r["normalized_length"] for r in results),
        "max training loss": fmean(r["max_loss"] for r in results),
        "excess": fmean(r["excess"] for r in results),
        "largest excess": max(r["excess"] for r in results),
        "proved": f"{len(bounds)} of {len(group)}",
        "largest bound": max(bounds) if len(bounds) == len(group) else None,
        "max test error": fmean(errors) if errors else None,
        "seconds": fmean(s for _, s in group),
    }


def figure(table: list[Row]) -> Figure:
    """The mean excess against the width: one panel per depth, one line per method."""
    from isthmus.plot.figures import GREY, MARKERS, PALETTE, settings

    depths = sorted({row["layers"] for row in table})
    methods = list(dict.fromkeys(row["method"] for row in table))
    colours = {m: GREY if m == "Linear" else PALETTE[i % len(PALETTE)] for i, m in enumerate(methods)}
    with settings():
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(1.2 + 3.2 * len(depths), 3.4), layout="constrained")
        panels = drawn.subplots(1, len(depths), sharey=True, squeeze=False)[0]
        for axes, depth in zip(panels, depths, strict=True):
            for i, method in enumerate(methods):
                points = sorted(
                    (r["width"], r["excess"], r["largest excess"])
                    for r in table
                    if (r["layers"], r["method"]) == (depth, method)
                )
                if points:
                    width, mean, top = zip(*points, strict=True)
                    axes.plot(width, mean, color=colours[method], marker=MARKERS[i % len(MARKERS)], label=method)
                    axes.plot(width, top, color=colours[method], marker="_", linestyle="none")
            axes.set(xscale="log", title=f"{depth} hidden layer{'s' * (depth > 1)}", xlabel="width")
            axes.set_yscale("symlog", linthresh=1e-3)
            axes.yaxis.set_major_formatter("{x:g}")
            widths = sorted({r["width"] for r in table})
            axes.set_xticks(widths, [str(w) for w in widths])
            axes.minorticks_off()
            axes.grid(True, color="#e3e6e9", linewidth=0.8)
        panels[0].set_ylabel("excess of the training loss\n(mean of the pairs; bar: largest)")
        panels[0].legend(loc="lower left")
    return drawn


EXPERIMENT = Experiment(
    name="compare-digits",
    title="Digit networks of several widths and depths by three methods",
    reference="no paper: the library's own comparison",
    cells=cells,
    rows=rows,
    figures={"excess": figure},
)
