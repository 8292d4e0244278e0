"""What rounding does to an exact path: measured rise of the loss, drift of the outputs, growth of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, log10
from typing import Any

import torch
from torch import Tensor

from isthmus.certify import certify
from isthmus.connectors.base import Outcome
from isthmus.evaluate.chain import loss_of_outputs
from isthmus.objective import Objective
from isthmus.params import Params, cast, norm
from isthmus.paths import LevelCurve, Path, Segment
from isthmus.shown import largest

__all__ = ["default_tolerance", "measure", "prove"]

_INSIDE = 3
"""Points inside a straight segment, on which nothing curved happens."""
_ALONG = 15
"""Points inside a level curve."""
_BUDGET = 400
"""Sub-intervals that a certificate may bound, as ``certify`` has it."""
_FACTOR = 8.0
"""Between the points the loss may stray from the construction by so many times what it does at them."""


@dataclass(frozen=True)
class _Measured:
    """Of a path as rounded: the `losses` at its points in order, what they and the outputs stray by, the largest norm.

    `drift`: the largest difference of an output from what the construction keeps there, over the largest output of the
    ends; `deviation`: that of a loss, not divided. `growth`: the largest norm of a point over that of the ends.
    """

    losses: tuple[float, ...]
    deviation: float
    drift: float
    growth: float

    @property
    def excess(self) -> float:
        """The largest loss less that of the higher end."""
        return largest(self.losses) - max(self.losses[0], self.losses[-1])

    @property
    def provable(self) -> float:
        """An excess to be vouched for: the one that was seen, or what the loss may stray by between the points."""
        return largest([self.excess, _FACTOR * self.deviation])

    @property
    def rise(self) -> float:
        """The largest loss less any earlier one."""
        return largest(value - low for value, low in zip(self.losses, accumulate(self.losses, min), strict=True))

    @property
    def digits_lost(self) -> float:
        """log10 of the drift in units of the rounding of float64."""
        return largest([0.0, log10(max(self.drift, 1e-300) / torch.finfo(torch.float64).eps)])


def default_tolerance(tolerance: float | None, dtype: torch.dtype) -> float:
    """1e-8 in float64; in narrower types what their rounding leaves room for, 1e4 units."""
    if tolerance is not None:
        return tolerance
    return 1e-8 if dtype == torch.float64 else 1e4 * torch.finfo(dtype).eps


def measure(objective: Objective, segments: Sequence[Segment], kept: Callable[[int, float], Tensor]) -> _Measured:
    """Evaluate the path in float64 on `objective`; ``kept(i, t)`` gives the outputs that segment i must have at t."""
    losses, sizes, strays, deviations, scale = [], [], [], [], 1e-300
    for i, segment in enumerate(segments):
        n = (_ALONG if isinstance(segment, LevelCurve) else _INSIDE) + 1
        for k in range(0 if i == 0 else 1, n + 1):
            point: Params = cast(segment.at(k / n), torch.float64)
            Z, want = objective.outputs(point), kept(i, k / n)
            losses.append(loss_of_outputs(objective, Z))
            sizes.append(norm(point))
            scale = max(scale, float(want.abs().max()))
            strays.append(float((Z - want).abs().max()))
            deviations.append(abs(losses[-1] - loss_of_outputs(objective, want)))
    growth = largest(sizes) / max(sizes[0], sizes[-1], 1e-300)
    return _Measured(tuple(losses), largest(deviations), largest(strays) / scale, growth)


@dataclass(frozen=True)
class _Shown:
    """What ``certify`` made of a path: `excess` over the top that it proves (infinite where none), `facts` for stats.

    `ruled`: whether it failed for want of a rule alone, so that what was measured says nothing against the path.
    """

    excess: float
    facts: dict[str, Any]
    ruled: bool = True

    def outcome(self, allowed: float) -> Outcome:
        """Of a path whose measured excess is allowed."""
        if self.excess <= allowed:
            return Outcome.CONSTRUCTED
        return Outcome.IMPRECISE if self.ruled else Outcome.UNPROVED


def prove(objective: Objective, path: Path, top: float) -> _Shown:
    """The excess over `top` that is proved on the path."""
    found = certify(objective, path, 0.01, budget=_BUDGET)
    facts: dict[str, Any] = {"proved": found.proved, "bound": found.bound}
    if found.proved:
        return _Shown(found.bound - top, facts)
    open_ = found.unproved()
    facts["why"] = found.segments[open_[0]].why
    # a level curve has its own proof, which needs no rule for what moves: it fails where premises do
    return _Shown(inf, facts, any(isinstance(path.segments[i], LevelCurve) for i in open_))
