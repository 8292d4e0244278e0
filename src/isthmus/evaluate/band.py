"""From the losses of the examples of a test set to the mean loss of all examples there could be.

The examples are taken for independent draws from one population. The mean loss at the K points of a path is then near
that of the population, at all points at once: the largest of the K standardised distances is distributed, as n grows,
as that of a Gaussian vector with the correlations of the losses, which is drawn by giving every example a Gaussian
multiplier (Chernozhukov, Chetverikov, Kato 2013). Errors that are 0 or 1 are counts, whose exact intervals (Clopper,
Pearson 1934) hold for every n; at K points together each has the share 1 / K of what may fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf, log
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from scipy.special import betaincinv
from torch import Tensor

from isthmus.errors import InputError, UnsupportedError
from isthmus.evaluate.columns import Columns
from isthmus.objective import Objective
from isthmus.objective.labels import Labels
from isthmus.shown import brief, downward, draw, line, plural, table, upward

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isthmus.evaluate.everywhere import UpperBand

LEVEL = 0.95
"""The probability with which a band holds everywhere, unless another one is asked for."""
DRAWS = 1000
"""Draws of the multipliers."""
_ALIKE = 1e-9
"""Weights that differ by less are equal."""
_ROUNDING = 1e-10
"""Two points whose losses differ by less than that share of their size, on every example, are one to a barrier."""


class Range(NamedTuple):
    """From `lo` to `hi`; as text rounded outwards."""

    lo: float
    hi: float

    def __str__(self) -> str:
        return f"[{downward(self.lo):.4g}, {upward(self.hi):.4g}]"


def interval_in(population: Mapping[str, Any] | None, key: str) -> str:
    """An interval of a stored row about a band, "[0.1, 0.2]"; empty where there is none, or an end is not finite.

    >>> interval_in({"error": [0.1, 0.25]}, "error"), interval_in(None, "error")
    ('[0.1, 0.25]', '')
    """
    found = (population or {}).get(key)
    return "" if not found or None in found else str(Range(*map(float, found)))


class ErrorBand(NamedTuple):
    """The error rate at every point and the band for that of the population; `asymptotic` is False: for every n.

    `method`: "Clopper-Pearson/K" for errors of 0 and 1, "Chernoff/K" for those in between.
    """

    rate: Tensor
    lo: Tensor
    hi: Tensor
    method: str
    asymptotic: bool = False

    @property
    def highest(self) -> Range:
        """For the largest error rate of the population at these points."""
        return Range(float(self.lo.max()), float(self.hi.max()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        held = {k: getattr(self, k).tolist() for k in ("rate", "lo", "hi")}
        return held | {"highest": list(self.highest), "method": self.method, "asymptotic": self.asymptotic}


@final
@dataclass(frozen=True, eq=False)
class Band:
    """What a test set of `examples` says about the population it was drawn from, at the points `t` of a path.

    With probability `level` the mean loss of the population is within [lo, hi] at all points at once; likewise, each
    alone, its barrier max_t L(t) - max(L(0), L(1)) over these points within `barrier`, and its error rates within
    `error` (None where no error is defined, or labels are ignored). `asymptotic`: of the loss and of the barrier, the
    probability is `level` in the limit of many examples; of the error it is at least `level` for any number.

    Statistics go from the sample to the population, at the points `t`; between them a band says nothing. What holds for
    all t, on the examples at hand, is a certificate (``certify``). `everywhere`: both, where it was asked for.

    `loss`: the mean loss of the sample, [points]; `lo`, `hi`: the band around it. `method`: how it was made.
    """

    t: Tensor
    loss: Tensor
    lo: Tensor
    hi: Tensor
    barrier: Range
    error: ErrorBand | None
    level: float
    examples: int
    method: str = "multiplier bootstrap"
    asymptotic: bool = True
    everywhere: UpperBand | None = None

    def __repr__(self) -> str:
        parts = [plural(len(self.t), "point"), plural(self.examples, "example"), f"level {brief(self.level)}"]
        return line(self, *parts, f"max in {self.highest}", *["asymptotic"] * self.asymptotic)

    @property
    def highest(self) -> Range:
        """For the largest loss of the population at these points."""
        return Range(float(self.lo.max()), float(self.hi.max()))

    @property
    def words(self) -> str:
        """One sentence: the intervals, and which of them are asymptotic."""
        said = f"largest loss in {self.highest}, barrier in {self.barrier} (asymptotic)"
        if self.error is not None:
            said += f"; largest error in {self.error.highest} ({self.error.method}, for every sample size)"
        what = f"{self.level:.4g} intervals from {plural(self.examples, 'test example')}"
        points = f"population, {what}, at {plural(len(self.t), 'point')}: {said}"
        return points if self.everywhere is None else f"{points}. {self.everywhere.words.capitalize()}"

    def plot(self, ax: Axes | None = None, label: str | None = None) -> Axes:
        """The band along the path, drawn on `ax` (default: new axes), beside what is there. Needs ``isthmus[plot]``.

        `label`: its name in the legend, to tell several on the same axes apart.
        """
        return draw(self, ax, label=label)

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = [
            ("largest loss", *self.highest, self.method, self.asymptotic),
            ("barrier", *self.barrier, self.method, self.asymptotic),
        ]
        if self.error is not None:
            rows.append(("largest error", *self.error.highest, self.error.method, self.error.asymptotic))
        if self.everywhere is not None:
            rows.append(("largest loss, every t", "", self.everywhere.highest, "certified, then bootstrap", True))
        return table(("quantity", "from", "to", "method", "asymptotic"), rows, repr(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "level": self.level,
            "examples": self.examples,
            **{k: getattr(self, k).tolist() for k in ("t", "loss", "lo", "hi")},
            "highest": list(self.highest),
            "barrier": list(self.barrier),
            "method": self.method,
            "asymptotic": self.asymptotic,
            "error": None if self.error is None else self.error.to_dict(),
            **({} if self.everywhere is None else {"everywhere": self.everywhere.to_dict()}),
            "text": self.words,
        }


def band_for(
    objective: Objective, columns: Columns, t: Tensor, loss: Tensor, level: float = LEVEL, seed: int = 0
) -> Band:
    """``band_of`` the examples of an objective, with what it says of them."""
    weights, each = weights_of(objective), _weighed(objective, objective.criterion.labels)
    # where examples do not weigh the same, errors are a ratio, and their number is not that of the examples
    counted = each is None or bool(((each - 1).abs() < _ALIKE).all())
    return band_of(columns, t, loss, level, seed, weights, counted=counted)


def band_of(
    columns: Columns,
    t: Tensor,
    loss: Tensor,
    level: float = LEVEL,
    seed: int = 0,
    weights: Tensor | None = None,
    *,
    counted: bool = True,
) -> Band:
    """The band around the mean losses `loss` [K], penalty included.

    `weights` [n]: of the examples, with mean 1, where these differ; they are drawn with the examples. `counted`:
    whether the error rate is the mean of errors that each example has by itself. Errors: see ``population``.
    """
    _check(columns, loss)
    n, mean = len(columns.losses[0]), torch.stack([c.double().mean() for c in columns.losses])
    drawn, spread, apart = _moments(columns, mean, weights, seed)
    width = _quantile((drawn.abs() / spread.clamp(min=1e-300)).amax(1), level) * spread / n**0.5
    barrier = _barrier(drawn, apart, torch.hypot(spread, mean), loss, n, level)
    error = _error_band(columns, n, level) if counted and columns.errors and columns.shares else None
    return Band(t, loss, loss - width, loss + width, barrier, error, level, n)


def _check(columns: Columns, loss: Tensor) -> None:
    if columns.full:
        few = "grid=fewer points, or Objective(..., memory=more bytes)"
        room = f"{columns.room:,} bytes for the losses of all examples at all points"
        raise InputError("grid", expected=room, got=f"{len(loss):,} points", instead=few)
    if not columns.losses:
        why = "evaluate= shows no losses of single examples"
        raise UnsupportedError("the objective", why, "give loss= and data= in place of evaluate=")
    if len(columns.losses[0]) < 2:
        raise InputError("data", expected="at least two examples", got=1)
    if not bool(loss.isfinite().all()):
        raise InputError("path", expected="a finite loss at every point", got="a loss that is not finite")


def weights_of(objective: Objective) -> Tensor | None:
    """How much every example weighs, with mean 1, where labels are ignored; None where all weigh the same.

    Errors: `UnsupportedError` for weights of classes and sums, whose scale is that of the sample.
    """
    if objective.criterion.scaled:
        why = "weights of classes, and sums, are scaled by the sample"
        raise UnsupportedError("the loss", why, "measure the loss without weight=, with reduction='mean'")
    return _weighed(objective, objective.criterion.positions)


def _weighed(objective: Objective, labels: Labels | None) -> Tensor | None:
    """How much every example weighs by these labels."""
    if labels is None or labels.scale is None:
        return None
    y = objective.source.targets()
    return labels.average(labels.counts(y).double(), y).cpu()


def _moments(columns: Columns, mean: Tensor, weights: Tensor | None, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """sum_i xi_i (X_i - m) / sqrt(n) [draws, K], the standard deviations of X [K] and of X - X(end) [2, K]."""
    generator = torch.Generator().manual_seed(seed)
    n, K = len(columns.losses[0]), len(mean)
    drawn = torch.zeros(DRAWS, K, dtype=torch.float64)
    squares = torch.zeros(3, K, dtype=torch.float64)
    for index, X in columns.blocks():
        # of a ratio of sums, what one example contributes to first order
        X = X - (mean if weights is None else weights[index, None] * mean)
        drawn += torch.randn(DRAWS, len(X), dtype=torch.float64, generator=generator) @ X
        squares += torch.stack([(X - e).square().sum(0) for e in (0.0, X[:, :1], X[:, -1:])])
    spread = (squares / (n - 1)).sqrt()
    return drawn / n**0.5, spread[0], spread[1:]


def _quantile(values: Tensor, level: float) -> float:
    """The smallest drawn value that at least the share `level` of all draws does not exceed."""
    return float(values.sort().values[min(ceil(level * len(values)), len(values)) - 1])


def _barrier(drawn: Tensor, apart: Tensor, size: Tensor, loss: Tensor, n: int, level: float) -> Range:
    """max_t min_e of what L(t) - L(e) is at least and at most, for both ends e and all t at once; never below 0.

    `size` [K]: of the losses. Where a network computes what an end does, all that is drawn of the difference is
    rounding, which says nothing of how far the others may stray.
    """
    ends = [0, -1]
    paired = torch.stack([drawn - drawn[:, [e]] for e in ends], 1)
    least = (_ROUNDING * size).clamp(min=1e-300)
    c = _quantile((paired.abs() / torch.maximum(apart, least)).flatten(1).amax(1), level)
    middle = torch.stack([loss - loss[e] for e in ends])
    width = c * apart / n**0.5
    lo, hi = (float(v.amin(0).max()) for v in (middle - width, middle + width))
    return Range(max(0.0, lo), max(0.0, hi))


def _error_band(columns: Columns, n: int, level: float) -> ErrorBand:
    """An interval for the rate at every point, each with the share 1 / K of 1 - level."""
    share = (1 - level) / len(columns.errors)
    found = [(clopper_pearson if columns.whole else chernoff)(k, n, share) for k in columns.errors]
    lo, hi = torch.tensor(found, dtype=torch.float64).T.contiguous()
    rate = torch.tensor(columns.errors, dtype=torch.float64) / n
    return ErrorBand(rate, lo, hi, "Clopper-Pearson/K" if columns.whole else "Chernoff/K")


def clopper_pearson(k: float, n: int, alpha: float) -> Range:
    """The exact interval for a probability after k of n: each side fails with probability at most alpha / 2.

    >>> print(clopper_pearson(0, 10, 0.05))
    [0, 0.3085]
    """
    lo = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, alpha / 2))
    return Range(lo, 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - alpha / 2)))


def chernoff(k: float, n: int, alpha: float) -> Range:
    """The interval for a mean of n values in [0, 1] with sum k: where n KL(k / n, p) <= log(2 / alpha).

    >>> print(chernoff(0, 10, 0.05))
    [0, 0.3085]
    """
    q, most = min(k / n, 1.0), log(2 / alpha) / n
    return Range(_furthest(q, 0.0, most), _furthest(q, 1.0, most))


def _furthest(q: float, end: float, most: float) -> float:
    """The p from q towards `end` where KL(q, p) reaches `most`, by bisection."""
    near, far = q, end
    for _ in range(60):
        p = (near + far) / 2
        apart = sum(u * log(u / v) if v else inf for u, v in ((q, p), (1 - q, 1 - p)) if u)
        near, far = (p, far) if apart <= most else (near, p)
    return far
