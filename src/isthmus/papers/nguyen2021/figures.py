"""The figures of the page on Nguyen, Brechet, Mondelli 2021, from its rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from isthmus.experiments.page import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {"reference": ("#129a72", "", ":"), "A": ("#0b78c2", "o", "-"), "B": ("#d9541e", "s", "-")}
NAMES = {"reference": "the network itself", "A": "(A) trained subnetworks", "B": "(B) dropout"}
FLOOR = 1e-6
"""Losses below it are drawn there on logarithmic axes."""


def layers_linear(table: list[Row]) -> Figure:
    """Figure 3 (a)-(c): the training loss of A and B against the layer, one panel per task."""
    return _by_task(_at_half(table), "layer", "layer l", "training loss")


def layers_log(table: list[Row]) -> Figure:
    """Figure 5: the same on a logarithmic axis."""
    return _by_task(_at_half(table), "layer", "layer l", "training loss", log=True)


def layers_test_error(table: list[Row]) -> Figure:
    """Figure 6: the test error of the same subnetworks."""
    return _by_task(_at_half(table), "layer", "layer l", "test error, %", suffix=" test error", scale=100)


def widths_linear(table: list[Row]) -> Figure:
    """Figure 4: the largest loss over the layers against the width."""
    return _by_task([r for r in table if "width" in r], "width", "width", "largest training loss")


def widths_log(table: list[Row]) -> Figure:
    """Figure 9: the same on a logarithmic axis."""
    return _by_task([r for r in table if "width" in r], "width", "width", "largest training loss", log=True)


def third(table: list[Row]) -> Figure:
    """Figure 7: dropout ratio 1/3, training loss above, test error below."""
    return _two_rows([r for r in table if r["figure"] == "7"])


def quarter(table: list[Row]) -> Figure:
    """Figure 8: dropout ratio 1/4."""
    return _two_rows([r for r in table if r["figure"] == "8"])


def paths(table: list[Row]) -> Figure:
    """Figure 3 (d): the training loss along the paths between one pair, one panel per task."""
    table = [r for r in table if ".loss" in r]
    tasks = list(dict.fromkeys(r["task"] for r in table))
    looks = {
        "Linear": ("straight line", "#7f868d"),
        "Dropout": ("(B) dropout", STYLES["B"][0]),
        "Dropout, searched": ("(B) with searched subsets", "#9a6fb0"),
        "Subnetwork": ("(A) trained subnetworks", STYLES["A"][0]),
    }
    drawn, panels = _panels(1, len(tasks))
    for axes, task in zip(panels[0], tasks, strict=False):
        for row in (r for r in table if r["task"] == task):
            name, colour = looks[row["method"]]
            axes.plot(row[".t"], row[".loss"], color=colour, linewidth=1.4, label=name)
        axes.set(title=task, xlabel="t, every segment equally long")
        axes.set_yscale("symlog", linthresh=1e-2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=0)
    _finish(drawn, panels, "training loss along the path")
    return drawn


def _at_half(table: list[Row]) -> list[Row]:
    return [r for r in table if "layer" in r and r["p"] == 0.5]


def _two_rows(table: list[Row]) -> Figure:
    tasks = list(dict.fromkeys(r["task"] for r in table))
    drawn, panels = _panels(2, len(tasks))
    for column, task in enumerate(tasks):
        own = [r for r in table if r["task"] == task]
        _lines(panels[0][column], own, "layer")
        _lines(panels[1][column], own, "layer", " test error", 100)
        panels[0][column].set(title=task)
        panels[1][column].set(xlabel="layer l")
    panels[1][0].set_ylabel("test error, %")
    _finish(drawn, panels, "training loss")
    return drawn


def _by_task(
    table: list[Row], x: str, label: str, y: str, *, suffix: str = "", scale: float = 1, log: bool = False
) -> Figure:
    tasks = list(dict.fromkeys(r["task"] for r in table))
    drawn, panels = _panels(1, len(tasks))
    for axes, task in zip(panels[0], tasks, strict=False):
        _lines(axes, [r for r in table if r["task"] == task], x, suffix, scale, floor=FLOOR if log else None)
        axes.set(title=task, xlabel=label)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(0, 1.25 * max((max(line.get_ydata()) for line in axes.lines), default=1))
    _finish(drawn, panels, y)
    return drawn


def _lines(
    axes: Axes, table: list[Row], x: str, suffix: str = "", scale: float = 1, floor: float | None = None
) -> None:
    """The three curves with their 95 % intervals."""
    for kind, (colour, marker, line) in STYLES.items():
        name = kind + suffix
        own = sorted((r for r in table if r.get(name) is not None), key=lambda r: r[x])
        if not own:
            continue
        at, mean = [r[x] for r in own], [scale * r[name] for r in own]
        spread = [scale * (r.get(f"{name} ±") or 0.0) for r in own]
        bottom = [max(m - s, floor or 0.0) for m, s in zip(mean, spread, strict=True)]
        top = [m + s for m, s in zip(mean, spread, strict=True)]
        if floor is not None:
            mean = [max(m, floor) for m in mean]
        axes.plot(at, mean, color=colour, marker=marker, linestyle=line, markersize=4, label=NAMES[kind])
        axes.fill_between(at, bottom, top, color=colour, alpha=0.18, linewidth=0)
    if x == "width" and table:
        axes.set_xscale("log")
        widths = sorted({r["width"] for r in table})
        axes.set_xticks(widths, [str(w) for w in widths])
        axes.minorticks_off()
    elif table:
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _panels(count: int, columns: int) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    from isthmus.plot.figures import ground, settings

    with settings():
        columns = max(1, columns)
        drawn = Figure(figsize=(1.2 + 3.4 * columns, 0.6 + 2.8 * count), layout="constrained")
        panels = drawn.subplots(count, columns, squeeze=False)
        for axes in panels.flat:
            ground(axes)
    return drawn, panels


def _finish(drawn: Figure, panels: Any, label: str) -> None:
    """The label on the left, one legend; a note where nothing was measured."""
    panels[0][0].set_ylabel(label)
    handles, names = _legend(panels)
    if names:
        wide = drawn.get_figwidth() > 6
        drawn.legend(handles, names, loc="outside lower center", ncols=len(names) if wide else 1, frameon=False)
    else:
        panels[0][0].text(0.5, 0.5, "not measured", ha="center", transform=panels[0][0].transAxes)


def _legend(panels: Any) -> tuple[Sequence[Any], Sequence[str]]:
    found: dict[str, Any] = {}
    for axes in panels.flat:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    return list(found.values()), list(found)
