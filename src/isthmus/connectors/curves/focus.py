"""Where on a curve to train: t is drawn where the loss is high."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, isnan, nan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.errors import InputError

_BINS = 32
_STRATA = 8
_UNIFORM = 0.2
"""The share of the draws that go anywhere, so that no part of the curve is forgotten."""
_KEPT = 0.8
"""How much of a bin's running mean stays when a loss is noted."""


@dataclass(eq=False)
class Focus:
    """Draws t so that plain gradients at t are those of J_p = (int L(theta(t))^p dt)^(1/p), up to a factor.

    grad J_p is proportional to E_q[grad L(theta(t))] with the density q ~ L^(p-1), which is estimated on the way from
    the losses of the batches: a running mean for each of 32 bins of t. `p` = 1 draws t uniformly.
    """

    p: float
    losses: list[float] = field(default_factory=lambda: [nan] * _BINS)
    strata: list[int] = field(default_factory=list)
    finite: bool = True

    def density(self) -> NDArray[np.float64]:
        """The probability of each bin; bins of which nothing is known are interpolated from their neighbours."""
        losses = np.array(self.losses)
        known = ~np.isnan(losses)
        top = float(np.nanmax(losses)) if known.any() else 0.0
        uniform = np.full(_BINS, 1 / _BINS)
        if self.p == 1 or top <= 0:
            return uniform
        places = np.arange(_BINS)
        weights = (np.interp(places, places[known], losses[known]) / top) ** (self.p - 1)
        return (1 - _UNIFORM) * weights / weights.sum() + _UNIFORM * uniform

    def draw(self, generator: torch.Generator) -> float:
        """The next t in [0, 1); eight draws in a row are spread over the eighths of the distribution."""
        if not self.strata:
            self.strata = torch.randperm(_STRATA, generator=generator).tolist()
        u = (self.strata.pop() + float(torch.rand((), generator=generator))) / _STRATA
        below = np.concatenate([[0.0], self.density().cumsum()])
        return float(np.interp(u, below / below[-1], np.linspace(0, 1, _BINS + 1)))

    def note(self, t: float, loss: float) -> None:
        """Take over the loss of a batch at t, if it is finite. Errors: a loss below 0, which has no powers."""
        if not isfinite(loss):
            self.finite = False
            return
        if loss < 0 and self.p != 1:
            raise InputError("focus", expected="1 for a loss that can be negative", got=self.p)
        i = int(t * _BINS)
        self.losses[i] = loss if isnan(self.losses[i]) else _KEPT * self.losses[i] + (1 - _KEPT) * loss

    @property
    def known(self) -> bool:
        """Whether there is a running mean for every bin."""
        return not any(map(isnan, self.losses))

    @property
    def profile(self) -> list[float | None]:
        """The running mean of each bin, from t = 0 to 1; None where nothing is known."""
        return [None if isnan(v) else v for v in self.losses]

    @property
    def highest(self) -> float:
        """The largest running mean: a free estimate of the maximum along the curve, from batches."""
        return max((v for v in self.losses if not isnan(v)), default=nan)

    def values(self) -> dict[str, Any]:
        """The state, in plain values."""
        return {"losses": list(self.losses), "strata": list(self.strata), "finite": self.finite}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.losses, self.strata, self.finite = list(values["losses"]), list(values["strata"]), values["finite"]
