"""The functions that Figures 1 to 5 of Nguyen 2019 sketch, as formulas, and what a grid tells of them.

The paper draws them without formulas. Each formula here has the property that its figure is about, for a reason that
its docstring gives; ``survey`` then finds it again on a grid: the connected components of sublevel sets by union-find,
those that stay above the infimum, local minima, and the points that gradient descent reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_Function = Callable[..., Any]
NEAR = 0.02
"""A component whose values go to within this of the infimum is a global valley."""
_SHOWN = 81
"""Points per axis of the values kept for the drawing of a function of two variables."""


@dataclass(frozen=True)
class _Sketch:
    """A function of one or two variables on a box; `infimum`: over all of the plane or line, not over the box alone."""

    function: _Function
    box: tuple[tuple[float, float], ...]
    levels: tuple[float, ...]
    infimum: float
    says: str
    flow: tuple[tuple[float, float], ...] = ()


def figure_1(x: Any, y: Any) -> Any:
    """(1 - x)^2 + (y - x^2)^2: u^2 + v^2 after the homeomorphism u = 1 - x, v = y - x^2, and discs are connected."""
    return (1 - x) ** 2 + (y - x**2) ** 2


def figure_2_left(x: Any) -> Any:
    """Two rippled wells: a sum of terms >= 0 that all vanish at x = -3 alone."""
    return ((x - 3) * (x + 3)) ** 2 / 40 + 0.02 * (x + 3) ** 2 + 0.3 * np.sin(4 * (x + 3)) ** 2


def figure_3_left(x: Any) -> Any:
    """sech x + (1 - tanh x) / 4: its only critical point is a maximum, at sinh x = -1/4; 1/2 at -inf, 0 at +inf."""
    return _sech(x) + (1 - np.tanh(x)) / 4


def figure_2_right(x: Any, y: Any) -> Any:
    """The left function of Figure 3 in x, with y^2 / 4: the bad valley goes to x = -inf and has no critical point."""
    return figure_3_left(x) + y**2 / 4


def figure_3_right(x: Any) -> Any:
    """1/2 + 2 s - 5/2 s^2 with s = sech x: 0 at its only minimum, up to 0.9 where s = 0.4, and to 1/2 at both ends."""
    s = _sech(x)
    return 0.5 + 2 * s - 2.5 * s**2


def figure_4(x: Any, y: Any) -> Any:
    """(x^2 - 1)^2 + y^2: two valleys below the level 1, both with a global minimum."""
    return (x**2 - 1) ** 2 + y**2


def figure_5(x: Any, y: Any) -> Any:
    """e^-x (1 + y^2 / 2) + s(y): s is 1 for y <= 1 and falls to 0 above.

    f <= c means s(y) < c, which holds for all y, or for all above some y, and x >= log((1 + y^2 / 2) / (c - s(y))),
    the epigraph of a continuous function: every sublevel set is connected. But for |y| < 1 the gradient points in
    the direction y = 0 and x = +inf, where f falls to 1.
    """
    return np.exp(-x) * (1 + y**2 / 2) + 1 / (1 + 2 * np.maximum(y - 1, 0) ** 3)


def _sech(x: Any) -> Any:
    return 1 / np.cosh(x)


def gradient_5(x: float, y: float) -> tuple[float, float]:
    """The gradient of ``figure_5``."""
    z, e = max(y - 1, 0.0), float(np.exp(-x))
    return -e * (1 + y * y / 2), e * y - 6 * z**2 / (1 + 2 * z**3) ** 2


SKETCHES = {
    "1": _Sketch(
        figure_1, ((-2.0, 2.0), (-1.0, 3.0)), (0.05, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0), 0.0,
        "not convex, with connected sublevel sets",
    ),
    "2 left": _Sketch(
        figure_2_left, ((-5.0, 5.0),), (0.1, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.2, 2.6, 3.5, 5.0), 0.0,
        "a bad local valley with several local minima",
    ),
    "2 right": _Sketch(
        figure_2_right, ((-6.0, 6.0), (-2.5, 2.5)), (0.1, 0.3, 0.55, 0.6, 0.8, 1.0, 1.2, 1.5), 0.0,
        "a bad local valley without a local minimum",
    ),
    "3 left": _Sketch(
        figure_3_left, ((-8.0, 8.0),), (0.1, 0.3, 0.55, 0.6, 0.8, 1.0, 1.2, 1.5), 0.0,
        "no local minimum, yet a bad local valley",
    ),
    "3 right": _Sketch(
        figure_3_right, ((-8.0, 8.0),), (0.1, 0.3, 0.45, 0.55, 0.6, 0.7, 0.8, 0.95, 1.1), 0.0,
        "every local minimum is global, yet bad local valleys",
    ),
    "4": _Sketch(
        figure_4, ((-2.0, 2.0), (-1.5, 1.5)), (0.05, 0.1, 0.3, 0.6, 0.9, 1.1, 1.5, 2.0), 0.0,
        "several valleys, all of them global",
    ),
    "5": _Sketch(
        figure_5, ((-1.0, 12.0), (-2.0, 8.0)), (0.05, 0.2, 0.5, 0.8, 0.95, 1.01, 1.1, 1.5, 2.0, 3.0), 0.0,
        "connected sublevel sets on which gradient descent is stuck",
        flow=((-0.5, 0.8), (0.0, -1.5), (1.0, 0.3), (0.0, 1.6)),
    ),
}  # fmt: skip
"""By figure and panel."""


@dataclass(frozen=True)
class Survey:
    """What the grid shows of a function.

    Per level, the number of `components` of the sublevel set, how many of them are `bad` (they stay more than ``NEAR``
    above the infimum), and the most local minima in one of these, `bad_minima`; `minima`: the values of all local
    minima inside the box; `convexity`: the largest excess of a midpoint over the mean of both ends, positive for a
    function that is not convex; `axes`, `values`: on a coarser grid, for drawing; `runs`: points and values of gradient
    descent from each start.
    """

    levels: list[float]
    components: list[int]
    bad: list[int]
    minima: list[float]
    bad_minima: list[int]
    convexity: float
    axes: list[list[float]]
    values: list[Any]
    runs: list[dict[str, Any]]


def survey(sketch: _Sketch, points: int) -> Survey:
    """Evaluate on `points` per axis (for one variable about 10 times as many), and count."""
    n = 10 * (points - 1) + 1 if len(sketch.box) == 1 else points
    axes = [np.linspace(low, high, n) for low, high in sketch.box]
    values = np.asarray(sketch.function(*np.meshgrid(*axes, indexing="ij")))
    at = local_minima(values)
    found = [_valleys(values, level, sketch.infimum + NEAR, at) for level in sketch.levels]
    components, bad, inside = (list(column) for column in zip(*found, strict=True))
    shown = [axis[:: max(1, (n - 1) // (_SHOWN - 1) if len(axes) > 1 else (n - 1) // 400)] for axis in axes]
    return Survey(
        list(sketch.levels), components, bad, [float(values[i]) for i in at], inside, curvature(values),
        [axis.tolist() for axis in shown], np.asarray(sketch.function(*np.meshgrid(*shown, indexing="ij"))).tolist(),
        [descend_from(start) for start in sketch.flow],
    )  # fmt: skip


def _valleys(values: _Floats, level: float, near: float, minima: Sequence[tuple[int, ...]]) -> tuple[int, int, int]:
    """The components below a level, those of them that stay above `near`, and the most local minima in one of these."""
    labels = label(values <= level)
    lowest = [float(values[labels == k].min()) for k in range(1, labels.max() + 1)]
    high = [k for k, v in enumerate(lowest, start=1) if v > near]
    where = [int(labels[i]) for i in minima]
    return len(lowest), len(high), max((where.count(k) for k in high), default=0)


def label(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """1, 2, ... for the connected components of a set of grid points, 0 outside; neighbours along the axes touch.

    By union-find over the pairs of neighbours that are both inside.

    >>> label(np.array([[True, False], [False, True]])).tolist()
    [[1, 0], [0, 2]]
    """
    parent = np.arange(inside.size)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    place = np.arange(inside.size).reshape(inside.shape)
    for axis in range(inside.ndim):
        first = [slice(None)] * inside.ndim
        last = list(first)
        first[axis], last[axis] = slice(None, -1), slice(1, None)
        both = inside[tuple(first)] & inside[tuple(last)]
        pairs = zip(place[tuple(first)][both].tolist(), place[tuple(last)][both].tolist(), strict=True)
        for i, j in pairs:
            p, q = root(i), root(j)
            parent[max(p, q)] = min(p, q)
    out = np.zeros(inside.size, np.int64)
    names: dict[int, int] = {}
    for i in np.flatnonzero(inside).tolist():
        out[i] = names.setdefault(root(i), len(names) + 1)
    return out.reshape(inside.shape)


def local_minima(values: _Floats) -> list[tuple[int, ...]]:
    """The grid points inside the box that are below all their neighbours, diagonal ones included.

    >>> local_minima(np.array([3.0, 1.0, 2.0, 0.0, 1.0]))
    [(1,), (3,)]
    """
    inner = values[(slice(1, -1),) * values.ndim]
    below = np.ones(inner.shape, bool)
    for step in product((-1, 0, 1), repeat=values.ndim):
        if any(step):
            moved = values[tuple(slice(1 + s, n - 1 + s) for s, n in zip(step, values.shape, strict=True))]
            below &= inner < moved
    return [tuple(int(i) + 1 for i in at) for at in np.argwhere(below)]


def curvature(values: _Floats) -> float:
    """The largest excess of a value over the mean of two values equally far on both sides of it, along the axes.

    >>> curvature(np.array([0.0, 3.0, 2.0]))
    2.0
    """
    worst = -np.inf
    for axis, n in enumerate(values.shape):
        along = np.moveaxis(values, axis, 0)
        for step in range(1, (n - 1) // 2 + 1, max(1, n // 40)):
            gap = along[step : n - step] - (along[: n - 2 * step] + along[2 * step :]) / 2
            worst = max(worst, float(gap.max()))
    return worst


def descend_from(start: Sequence[float], rate: float = 0.5, steps: int = 100_000, kept: int = 60) -> dict[str, Any]:
    """Gradient descent on ``figure_5``: about `kept` of its points, in geometric steps, and their values."""
    x, y = map(float, start)
    wanted = set(np.unique(np.geomspace(1, steps, kept).astype(int)).tolist())
    points = [(x, y)]
    for k in range(1, steps + 1):
        p, q = gradient_5(x, y)
        x, y = x - rate * p, y - rate * q
        if k in wanted:
            points.append((x, y))
    return {"x": [p[0] for p in points], "y": [p[1] for p in points], "f": [float(figure_5(*p)) for p in points]}
