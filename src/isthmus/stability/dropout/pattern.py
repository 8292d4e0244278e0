"""Dropout stability for a pattern that was fixed beforehand (Shevchenko and Mondelli 2020, Definition 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, nan, sqrt
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from isthmus.errors import InputError
from isthmus.evaluate.chain import losses_of, require_hidden_chain
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.params import Params
from isthmus.shown import brief, deviation, draw, line, one_line, table
from isthmus.stability.dropout.dropped import Dropped
from isthmus.stability.dropout.subsets import rescaling
from isthmus.structure.chain import Chain
from isthmus.structure.network_units import Units

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pattern = int | Mapping[int, Sequence[int] | Tensor]
"""M: the first M units of every hidden layer; or for each hidden layer (from 1) the numbers of the units that stay."""


@dataclass(frozen=True, eq=False)
class PatternStability:
    """L_N(theta) and L_|A|(theta_S) of one network and one pattern, without penalty; error rates may be NaN.

    `kept`: how many units stay in each hidden layer. theta is `change`-dropout stable for this pattern.

    `loss`, `error`: of the network itself; `dropped_loss`, `dropped_error`: with the kept units alone.
    """

    kept: dict[int, int]
    loss: float
    error: float
    dropped_loss: float
    dropped_error: float

    def __repr__(self) -> str:
        return line(self, f"change {brief(self.change)}", f"kept {brief(self.kept)}")

    def plot(self, ax: Axes | None = None) -> Axes:
        """The loss before and after dropping, drawn on `ax` (default: new axes). Needs ``isthmus[plot]``."""
        return draw(self, ax)

    def _repr_html_(self) -> str:
        rows = [("whole network", self.loss, self.error), ("kept units only", self.dropped_loss, self.dropped_error)]
        return table(("network", "loss", "error"), rows, repr(self))

    @property
    def change(self) -> float:
        """|L_N(theta) - L_|A|(theta_S)|, the epsilon_D of Definition 3.1."""
        return abs(self.dropped_loss - self.loss)

    @property
    def error_change(self) -> float:
        """How much the error rate grows."""
        return self.dropped_error - self.error


def pattern_stability(objective: Objective, params: ParamsLike, keep: Pattern) -> PatternStability:
    """The change in loss and error when each hidden layer keeps only the units of a pattern.

    Units that are not kept output 0; outgoing weights of the others are multiplied by n / |kept| of their layer,
    which in a mean-field network makes every average one over the kept units (the paper's text prints |kept| / n, its
    formula (3.4) is this one). A pattern without units leaves the layers after it constant. Unlike `dropout_stability`,
    nothing is searched and no scale is fitted: the theorem is about any pattern that does not depend on the training.
    Works for any chain of layers (perceptrons, plain convolutional networks). Cost: one pass, and one of the smaller
    network.

    `keep`: how many units of every layer stay (the first ones), or which, by layer. Errors: ``UnsupportedError`` for a
    network that is no chain of layers. Source: Shevchenko and Mondelli 2020, Definition 3.1.

    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> objective = Objective(net, "mse", (torch.ones(1, 1), torch.ones(1, 1)))
    >>> p = {"0.weight": torch.ones(4, 1), "0.bias": torch.zeros(4), "2.bias": torch.zeros(1)}
    >>> found = pattern_stability(objective, p | {"2.weight": torch.tensor([[1.0, 0, 0, 0]])}, 2)
    >>> found.loss, found.dropped_loss, found.change
    (0.0, 1.0, 1.0)
    """
    check_kinds(pattern_stability, locals())
    theta = objective.check(params)
    chain = require_hidden_chain(objective)
    kept = _kept_units(chain, keep)
    full = losses_of(objective, chain, theta)
    small = losses_of(objective, chain, without(chain, theta, kept))
    return PatternStability({l: len(units) for l, units in kept.items()}, *full, *small)


def _kept_units(chain: Chain, keep: Pattern) -> Units:
    """The units that stay, ascending, by hidden layer; refuses what is no pattern of this network."""
    hidden = range(1, chain.L)
    if isinstance(keep, int):
        if not 0 <= keep <= min(chain.widths[1:-1]):
            raise InputError("keep", expected=f"0 to {min(chain.widths[1:-1])} units of every hidden layer", got=keep)
        return {l: torch.arange(keep) for l in hidden}
    if set(keep) != set(hidden):
        expected = f"a pattern for each of the hidden layers {list(hidden)}"
        raise InputError("keep", expected=expected, got=sorted(keep))
    return {l: _units(keep[l], l, chain.widths[l]) for l in hidden}


def _units(given: Sequence[int] | Tensor, l: int, n: int) -> Tensor:
    units = torch.as_tensor(given)
    units = units if units.numel() else units.long()
    whole = units.dtype in (torch.int64, torch.int32) and units.dim() == 1
    if not whole or (len(units) and not 0 <= int(units.min()) <= int(units.max()) < n):
        raise InputError(f"keep[{l}]", expected=f"unit numbers from 0 to {n - 1}", got=given)
    once = units.long().unique()
    if len(once) < len(units):
        raise InputError(f"keep[{l}]", expected="every unit once", got=given)
    return once


def without(chain: Chain, params: Params, kept: Units, entry: int = 1) -> Params:
    """theta_S in compact form: the weights of the network whose layers `entry` .. L-1 have only the kept units."""
    factors = {l: rescaling(chain.widths[l], len(units)) for l, units in kept.items()}
    dropped = Dropped(entry, {l: kept[l] for l in range(entry, chain.L)}, factors, 1.0, nan, False)
    return chain.write(dropped.layers(chain.read(params), chain.L), params)


# -- curves over trials


@one_line
@dataclass(frozen=True)
class Slope:
    """y is about exp(`intercept`) * x^`value`; the interval [`low`, `high`] has this `confidence`."""

    value: float
    low: float
    high: float
    confidence: float
    intercept: float


def log_slope(x: Sequence[float], y: Sequence[float], confidence: float = 0.95) -> Slope:
    """The slope of log y against log x by least squares, with Student's interval from the residuals.

    Errors: fewer than 3 points (the residuals then say nothing), numbers that are not positive, all x equal.

    >>> found = log_slope([1, 10, 100], [5.0, 0.5, 0.05])
    >>> round(found.value, 6), round(found.high - found.low, 6)
    (-1.0, 0.0)
    """
    if len(x) != len(y) or len(x) < 3:
        raise InputError("x, y", expected="as many x as y, at least 3", got=f"{len(x)} and {len(y)}")
    for name, values in (("x", x), ("y", y)):
        if not all(0 < v < float("inf") for v in values):
            raise InputError(name, expected="positive finite numbers, as logarithms are taken", got=list(values))
    if len(set(x)) < 2:
        raise InputError("x", expected="at least two different numbers", got=list(x))
    if not 0 < confidence < 1:
        raise InputError("confidence", expected="a number in (0, 1)", got=confidence)
    u, v = np.log(x), np.log(y)
    spread = float(((u - u.mean()) ** 2).sum())
    slope = float(((u - u.mean()) * v).sum() / spread)
    intercept = float(v.mean() - slope * u.mean())
    error = sqrt(float(((v - intercept - slope * u) ** 2).sum()) / (len(x) - 2) / spread)
    half = float(stdtrit(len(x) - 2, (1 + confidence) / 2)) * error
    return Slope(slope, slope - half, slope + half, confidence, intercept)


@dataclass(frozen=True)
class StabilityCurve:
    """Changes in loss and in error against N, M or the time of training: for each x one value per trial."""

    along: str
    x: tuple[float, ...]
    changes: tuple[tuple[float, ...], ...]
    error_changes: tuple[tuple[float, ...], ...]

    @classmethod
    def of(
        cls, along: str, points: Mapping[int, Sequence[PatternStability]] | Mapping[float, Sequence[PatternStability]]
    ) -> StabilityCurve:
        """From what `pattern_stability` found: for each x (N, M or a time) its trials."""
        if not points or not all(points.values()):
            raise InputError("points", expected="at least one x, each with at least one trial", got=dict(points))
        rows = sorted(points.items())
        changes = tuple(tuple(trial.change for trial in trials) for _, trials in rows)
        errors = tuple(tuple(trial.error_change for trial in trials) for _, trials in rows)
        return cls(along, tuple(float(x) for x, _ in rows), changes, errors)

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean over the trials of the absolute change in loss, for each x."""
        return tuple(fmean(values) for values in self.changes)

    @property
    def deviation(self) -> tuple[float, ...]:
        """The error bars: one standard deviation over the trials; NaN for a single trial."""
        return tuple(deviation(values) for values in self.changes)

    @property
    def error_mean(self) -> tuple[float, ...]:
        """The mean over the trials of the change in error, for each x."""
        return tuple(fmean(values) for values in self.error_changes)

    @property
    def error_deviation(self) -> tuple[float, ...]:
        """One standard deviation over the trials of the change in error."""
        return tuple(deviation(values) for values in self.error_changes)

    def slope(self, confidence: float = 0.95) -> Slope:
        """The slope of log mean against log x (see `log_slope`); for curves against N or M."""
        return log_slope(self.x, self.mean, confidence)

    @property
    def predicted(self) -> tuple[float, ...]:
        """c sqrt(log x / x), the rate of Theorem 1 (A) in |A|, with the c that fits the means best on a log scale."""
        shape = [rate(v) for v in self.x]
        c = exp(fmean(log(m / s) for m, s in zip(self.mean, shape, strict=True)))
        return tuple(c * s for s in shape)

    @property
    def predicted_slope(self) -> float:
        """The slope of sqrt(log x / x) over the same x: it is nearer to 0 than -1/2 because of the logarithm."""
        return log_slope(self.x, [rate(v) for v in self.x]).value


def rate(M: float) -> float:
    """sqrt(log M / M), how the bound (3.7) falls with the number M of units that stay.

    >>> round(rate(100), 4)
    0.2146
    """
    if not M > 1:
        raise InputError("M", expected="more than one unit", got=M)
    return sqrt(log(M) / M)
