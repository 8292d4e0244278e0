"""Corollary 2.5 of Freeman & Bruna 2017: the bound of Theorem 2.4 against the number of hidden units."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from isthmus.connectors.connect import connect
from isthmus.connectors.two_layer_relu.method import TwoLayerReLU
from isthmus.errors import InputError
from isthmus.evaluate import profile
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.shown import one_line
from isthmus.training.progress import Progress, no_progress

_Make = Callable[[int], tuple[Objective, Params, Params]]
"""For a number of hidden units, an objective and two ends."""


@one_line
@dataclass(frozen=True)
class WidthGap:
    """One width m: the parts of equation 10 for the chosen n, the ends, and the largest loss measured on the path.

    `epsilon` is the largest vertex and, for alpha > 0 and squared loss, what both layers moving can add on this path;
    None for other losses.
    """

    m: int
    n: int
    alpha: float
    oracle: float
    compressed: tuple[float, float]
    epsilon: float | None
    ends: tuple[float, float]
    measured: float

    @property
    def gap(self) -> float:
        """How far the bound is above the ends; 0 where it is below them, NaN where there is none."""
        return float("nan") if self.epsilon is None else max(0.0, self.epsilon - max(self.ends))

    @property
    def excess(self) -> float:
        """The largest loss measured, less the larger end's."""
        return self.measured - max(self.ends)


def gap_by_width(
    make: _Make,
    widths: Iterable[int],
    method: TwoLayerReLU | None = None,
    *,
    dim: int | None = None,
    seed: int = 0,
    num_points: int = 21,
    progress: Progress = no_progress,
) -> list[WidthGap]:
    """Theorem 2.4 at each width m of `widths`: its bound, and the loss on its path, for the two ends of ``make(m)``.

    With `dim`, the dimension of the inputs (with the bias, if there is one), n and alpha follow the corollary's
    schedule; else the method's `units` and `alpha` are used. Cost: one ``connect`` and one profile per width.

    `make`: gives, for a number of hidden units, an objective and two ends. `method`: with its fields, default
    ``TwoLayerReLU()``. `num_points`: of each profile. Errors: as ``TwoLayerReLU``. Source: Freeman and Bruna 2017,
    Theorem 2.4 and Corollary 2.5.
    """
    check_kinds(gap_by_width, locals())
    method = method or TwoLayerReLU()
    out = []
    for m in widths:
        objective, a, b = make(m)
        if dim is not None:
            n, alpha = schedule(m, dim)
            method = replace(method, units=n, alpha=alpha)
        connection = connect(objective, a, b, method, seed=seed, progress=progress)
        found = connection.stats["theorem"]
        measured = profile(objective, connection.path, num_points).max
        compressed = (found["a"]["delta(m - n, alpha)"], found["b"]["delta(m - n, alpha)"])
        ends, epsilon = (found["ends"][0], found["ends"][1]), found["epsilon_of_this_path"]
        out.append(WidthGap(m, found["n"], method.alpha, found["e(n)"], compressed, epsilon, ends, measured))
    return out


def schedule(m: int, dim: int, eta: float | None = None) -> tuple[int, float]:
    """n = m^eta and alpha = m^((eta - 1) / dim) of the corollary, rounded down to at least 1 unit.

    0 < eta < 1 / (dim + 1) (default: half of that). The exponents are small: n reaches 2 at m = 2^(1 / eta) only.

    >>> schedule(256, 1)
    (4, 0.015625)
    """
    eta = 1 / (2 * (dim + 1)) if eta is None else eta
    if dim < 1 or m < 2:
        raise InputError("m, dim", expected="at least 2 units and 1 dimension", got=(m, dim))
    if not 0 < eta < 1 / (dim + 1):
        raise InputError("eta", expected=f"a number in (0, 1 / {dim + 1})", got=eta)
    return max(1, int(m**eta + 1e-9)), m ** ((eta - 1) / dim)
