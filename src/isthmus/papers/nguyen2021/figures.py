"""The figures of the page on Nguyen, Brechet, Mondelli 2021, from its rows alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from isthmus.experiments.lines import Lines, Look, finish, new_panels
from isthmus.experiments.tables import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOKS = {
    "reference": Look("the network itself", "#129a72", "", ":"),
    "A": Look("(A) trained subnetworks", "#0b78c2", "o"),
    "B": Look("(B) dropout", "#d9541e", "s"),
}
_ERRORS = {f"{name} test error": look for name, look in _LOOKS.items()}
_PATHS = {
    "Linear": Look("straight line", "#7f868d"),
    "Dropout": _LOOKS["B"],
    "Dropout, searched": Look("(B) with searched subsets", "#9a6fb0"),
    "Subnetwork": _LOOKS["A"],
}


def _paths(table: list[Row]) -> Figure:
    """Figure 3 (d): the training loss along the paths between one pair, one panel per task."""
    table = [r for r in table if ".loss" in r]
    tasks = list(dict.fromkeys(r["task"] for r in table))
    drawn, panels = new_panels(1, len(tasks))
    for axes, task in zip(panels[0], tasks, strict=False):
        for row in (r for r in table if r["task"] == task):
            look = _PATHS[row["method"]]
            axes.plot(row[".t"], row[".loss"], color=look.colour, linewidth=1.4, label=look.label)
        axes.set(title=task, xlabel="t, every segment equally long")
        axes.set_yscale("symlog", linthresh=1e-2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=0)
    finish(drawn, panels, "training loss along the path")
    return drawn


_LAYERS = Lines(
    "layer", _LOOKS, rows=lambda r: "layer" in r and r["p"] == 0.5, xlabel="layer l", ylabel="training loss"
)
_WIDTHS = Lines("width", _LOOKS, rows=lambda r: "width" in r, log="x", xlabel="width", ylabel="largest training loss")
_TESTS = replace(_LAYERS, y=_ERRORS, scale=100, ylabel="test error, %")
_BOTH = replace(_LAYERS, below=_TESTS)

FIGURES = {
    "fig3": _LAYERS,
    "fig3d": _paths,
    "fig4": _WIDTHS,
    "fig5": replace(_LAYERS, log="y"),
    "fig6": _TESTS,
    "fig7": replace(_BOTH, rows=lambda r: r["figure"] == "7"),
    "fig8": replace(_BOTH, rows=lambda r: r["figure"] == "8"),
    "fig9": replace(_WIDTHS, log="xy"),
}
"""By name: 3 to 6 dropout ratio 1/2, 7 and 8 the others, 4 and 9 against the width."""
