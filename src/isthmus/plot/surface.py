"""The loss on a plane through three networks: contours in logarithmic colours, with the corners and the path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import FileError
from isthmus.plot.figures import grid_of_axes, settings
from isthmus.plot.runs import Floats
from isthmus.storage.files import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = 14
DEEPEST = 1e-4
"""Values below this share of the largest one that is told apart have the colour of that share."""
_MOST = 1001  # points of a side that a file may have


@dataclass(frozen=True, eq=False)
class Surface:
    """What plane.json holds: `values` by "training loss", "test error", ..., each with those of the corners [3]."""

    x: Floats
    y: Floats
    values: Mapping[str, tuple[Floats, Floats]]
    exact: NDArray[np.bool_]
    corners: Floats
    path: Floats
    off: Floats
    bn: str
    screen: int | None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Surface:
        """From what ``Plane.to_dict()`` gives. Errors: those of Python for anything else."""
        x, y, off = (_array(document[k], (None,)) for k in ("x", "y", "off"))
        n = len(x)
        _check_axes(x, y)
        exact, corners = np.array(document["exact"], bool).reshape(n, n), _array(document["corners"], (3, 2))
        path = _array(document["path"] or np.zeros((0, 2)), (len(off), 2))
        screen = None if document["screen"] is None else int(document["screen"])
        return cls(x, y, _values(document, n), exact, corners, path, off, str(document["bn"]), screen)

    @classmethod
    def read(cls, file: Path) -> Surface:
        """From plane.json. Errors: ``FileError``."""
        try:
            return cls.of(read_json(file))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(file, "does not hold the values of a plane", "measure the plane again") from error

    def range(self, name: str) -> tuple[float, float]:
        """The values between which colours differ: up to the largest on the straight line from a to b."""
        grid, corners = self.values[name]
        seen = _finite(grid)
        top = float(_finite(np.array([*self._on_the_line(grid), *corners[:2], seen.min()])).max())
        low = max(float(seen.min()), DEEPEST * top)
        return (low, top) if top > low else (low, float(max(seen.max(), low)))

    def is_log(self, name: str) -> bool:
        """Whether colours are logarithmic: where no value that they tell apart is 0, and the range is wide."""
        low, top = self.range(name)
        return low > 0 and top > 2 * low

    def clipped(self, name: str) -> Floats:
        """The grid with what is lower or higher than the colours tell apart cut off; gaps and infinities are high."""
        low, top = self.range(name)
        grid = self.values[name][0]
        return np.clip(np.where(np.isfinite(grid), grid, top), low, top)

    def _on_the_line(self, grid: Floats) -> Floats:
        """The values on the straight line, between those of the cells around it."""
        i = int(np.clip(np.searchsorted(self.y, 0.0) - 1, 0, len(self.y) - 2))
        share = np.clip(-self.y[i] / (self.y[i + 1] - self.y[i]), 0, 1)
        with np.errstate(invalid="ignore"):  # infinite values
            row = (1 - share) * grid[i] + share * grid[i + 1]
        return np.interp(np.linspace(0, self.corners[1, 0], 101), self.x, row)


def _check_axes(x: Floats, y: Floats) -> None:
    increasing = all(np.all(np.diff(v) > 0) for v in (x, y))
    if not 2 <= len(x) <= _MOST or len(y) != len(x) or not increasing:
        raise ValueError("expected increasing coordinates, as many of rows as of columns")


def _values(document: Mapping[str, Any], n: int) -> dict[str, tuple[Floats, Floats]]:
    """The grids in which something is finite, with the values at the corners."""
    found = {}
    for part, name in (("train", "training"), ("test", "test")):
        for quantity in ("loss", "error") if document.get(part) else ():
            grid = _array(document[part][quantity], (n, n))
            if np.isfinite(grid).any():
                found[f"{name} {quantity}"] = grid, _array(document[part][f"corner_{quantity}"], (3,))
    return found


def _array(value: Any, shape: tuple[int | None, ...]) -> Floats:
    found = np.array(value, np.float64)  # None, which stands for NaN in a file, becomes NaN
    if found.ndim != len(shape) or any(m is not None and n != m for n, m in zip(found.shape, shape, strict=True)):
        raise ValueError(f"expected the shape {shape}")
    return found


def _finite(values: Floats) -> Floats:
    kept = values[np.isfinite(values)]
    return kept if len(kept) else np.zeros(1)


def draw_surface(axes: Axes, surface: Surface, name: str) -> None:
    """One quantity: its contours, the path with its points, and the corners by their names; equal scales."""
    from matplotlib.ticker import FuncFormatter

    low, top = surface.range(name)
    log = surface.is_log(name)
    grid = surface.clipped(name)
    z, ends = (np.log10(grid), np.log10([low, top])) if log else (grid, np.array([low, top]))
    levels = np.linspace(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1e-12, LEVELS + 1)
    filled = axes.contourf(surface.x, surface.y, z, levels=levels, cmap="viridis", extend="max", zorder=0)
    axes.contour(
        surface.x,
        surface.y,
        z,
        levels=levels[1:-1],
        colors="white",
        linewidths=0.5,
        linestyles="solid",
        alpha=0.5,
        zorder=1,
    )
    bar = axes.figure.colorbar(filled, ax=axes, ticks=levels[:: LEVELS // 7])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{10**v if log else v:.2g}"))
    bar.set_label(name)
    if not surface.exact.all():
        inside = surface.exact.astype(np.float64)
        axes.contour(surface.x, surface.y, inside, levels=[0.5], colors="#1f2328", linestyles="dotted", linewidths=0.9)
        axes.set_title(f"on all examples inside the dotted line, on {surface.screen:,} outside", fontsize=9)
    _draw_path(axes, surface)
    axes.set_aspect("equal")
    axes.grid(False)
    axes.set_xlabel("towards b, in distances of weight space")
    axes.set_ylabel("towards c")


def _draw_path(axes: Axes, surface: Surface) -> None:
    from matplotlib import patheffects

    edge = [patheffects.withStroke(linewidth=3.6, foreground="white")]
    if len(surface.path):
        axes.plot(*surface.path.T, color="#d9541e", lw=2.0, path_effects=edge, zorder=4, label="path")
    axes.plot(*surface.corners[:2].T, color="white", lw=1.2, linestyle=(0, (4, 3)), zorder=3)
    for name, place in zip("abc", surface.corners, strict=True):
        axes.plot(*place, "o", ms=8, color="#1f2328", mec="white", mew=1.4, zorder=5)
        above = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "weight": "bold", "size": 12}
        text = axes.annotate(name, place, zorder=6, **above)
        text.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="white")])


def surface_figure(surface: Surface) -> Figure:
    """The training loss and, where it was measured, the test error (else the first other quantity)."""
    names = [n for n in ("training loss", "test error", "test loss", "training error") if n in surface.values][:2]
    with settings():
        flat = float(np.ptp(surface.y) / np.ptp(surface.x))
        shape = (len(names), 1) if flat < 0.6 else (1, len(names))
        each = float(np.clip(5.0 * flat + 1.1, 2.4, 8))
        figure, panels = grid_of_axes(*shape, 6.6 * shape[1], each * shape[0])
        figure.set_layout_engine("compressed")  # which knows of equal scales
        for axes, name in zip(panels.flat, names, strict=True):
            draw_surface(axes, surface, name)
    return figure
