"""Figures as data: columns of a table against another one, a panel for each value of a third."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from isthmus.experiments.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Look:
    """How a column is drawn, and what the legend calls it."""

    label: str
    colour: str
    marker: str = ""
    line: str = "-"


@dataclass(frozen=True)
class Lines:
    """A figure: the columns `y` against the column `x`, with the band of a column "NAME ±" where there is one.

    A panel for each value of the column `panel`, of the rows that `rows` takes; in a second row of panels what `below`
    draws. `log`: the logarithmic axes, "", "x", "y" or "xy"; on y, values below `floor` are drawn there. Values are
    multiplied by `scale`. Without rows the figure says "not measured".
    """

    x: str
    y: Mapping[str, Look]
    panel: str = "task"
    rows: Callable[[Row], bool] = lambda row: True
    log: str = ""
    xlabel: str = ""
    ylabel: str = ""
    scale: float = 1
    floor: float = 1e-6
    below: Lines | None = None

    def __call__(self, table: Sequence[Row]) -> Figure:
        """The figure of a table."""
        rows = [row for row in table if self.rows(row)]
        titles = list(dict.fromkeys(row[self.panel] for row in rows))
        figure, panels = new_panels(2 if self.below else 1, len(titles))
        for column, title in zip(panels.T, titles, strict=False):
            own = [row for row in rows if row[self.panel] == title]
            column[0].set_title(str(title))
            self.draw(column[0], own)
            if self.below is not None:
                self.below.draw(column[1], own)
            column[-1].set_xlabel(self.xlabel)
        if self.below is not None:
            panels[1][0].set_ylabel(self.below.ylabel)
        finish(figure, panels, self.ylabel)
        return figure

    def draw(self, axes: Axes, rows: Sequence[Row]) -> None:
        """One panel."""
        for name, look in self.y.items():
            own = sorted((row for row in rows if row.get(name) is not None), key=lambda row: row[self.x])
            if own:
                self._line(axes, own, name, look)
        self._x_axis(axes, rows)
        self._y_axis(axes)

    def _x_axis(self, axes: Axes, rows: Sequence[Row]) -> None:
        """Whole numbers, or a logarithmic axis with ticks at the values."""
        from matplotlib.ticker import MaxNLocator

        if "x" not in self.log:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            return
        values = sorted({row[self.x] for row in rows})
        axes.set_xscale("log")
        axes.set_xticks(values, [str(v) for v in values])
        axes.minorticks_off()

    def _y_axis(self, axes: Axes) -> None:
        """A logarithmic axis, or one from 0 that leaves room above the highest line."""
        if "y" in self.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            return
        tops = [float(y) for line in axes.lines for y in line.get_ydata() if isfinite(y)]  # type: ignore[union-attr]
        lowest = min([0.0, *tops])
        axes.set_ylim(1.25 * lowest, 1.25 * max([0.0, *tops]) or (1.0 if lowest == 0 else 0.0))

    def _line(self, axes: Axes, rows: Sequence[Row], name: str, look: Look) -> None:
        """One column, with its band."""
        floor = self.floor if "y" in self.log else -inf
        at = [row[self.x] for row in rows]
        mean = [self.scale * row[name] for row in rows]
        spread = [self.scale * (row.get(f"{name} ±") or 0.0) for row in rows]
        bottom = [max(m - s, floor) for m, s in zip(mean, spread, strict=True)]
        top = [m + s for m, s in zip(mean, spread, strict=True)]
        shown = [max(m, floor) for m in mean]
        axes.plot(at, shown, color=look.colour, marker=look.marker, linestyle=look.line, markersize=4, label=look.label)
        axes.fill_between(at, bottom, top, color=look.colour, alpha=0.18, linewidth=0)


def new_panels(count: int, columns: int) -> tuple[Figure, Any]:
    """A figure with rows of panels; one panel where there is nothing to show."""
    from isthmus.plot.figures import grid_of_axes, ground, settings

    columns = max(1, columns)
    with settings():
        figure, panels = grid_of_axes(count, columns, 1.2 + 3.4 * columns, 0.6 + 2.8 * count)
        for axes in panels.flat:
            ground(axes)
    return figure, panels


def finish(figure: Figure, panels: Any, ylabel: str) -> None:
    """The label on the left, one legend for all panels; a note where nothing was measured."""
    panels[0][0].set_ylabel(ylabel)
    found: dict[str, Any] = {}
    for axes in panels.flat:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    if found:
        columns = len(found) if figure.get_figwidth() > 6 else 1
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, frameon=False)
    else:
        panels[0][0].text(0.5, 0.5, "not measured", ha="center", transform=panels[0][0].transAxes)
