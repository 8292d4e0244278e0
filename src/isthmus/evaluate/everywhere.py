"""From bounds of the losses of single examples over intervals of t to the mean loss of the population for every t."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any, final

import torch
from torch import Tensor

from isthmus.evaluate.band import DRAWS, chernoff, clopper_pearson
from isthmus.shown import brief, line, plural, upward

__all__ = ["UpperBand", "upper_band"]


@final
@dataclass(frozen=True, eq=False)
class UpperBand:
    """What a test set of `examples` says of the population at *every* t of a path, between the measured points too.

    Two statements, one on the other. Certified: on [start, end] no example's loss is above a line between two numbers,
    which depend on that example and the path alone; in real arithmetic, for every t. Statistical: with probability
    `level`, in the limit of many examples (`asymptotic`), the means of these numbers over the population are at most
    `left` and `right`, on all intervals at once. Together: with that probability the mean loss of the population is at
    most the line from `left` to `right` on each interval. It is no lower bound, and says nothing of what is further
    below. `error`: no more than this fraction of the population is wrong anywhere on the interval, with probability
    `level` or more for any number of examples; None where no error is defined.

    `start`, `end`: in t of the whole path, [intervals]. `sample`: the largest of the means of the certified numbers
    over the examples at hand.
    """

    start: Tensor
    end: Tensor
    left: Tensor
    right: Tensor
    error: Tensor | None
    sample: float
    level: float
    examples: int
    asymptotic: bool = True

    def __repr__(self) -> str:
        parts = [plural(len(self.start), "interval"), plural(self.examples, "example"), f"level {brief(self.level)}"]
        return line(self, *parts, f"every t at most {upward(self.highest):.4g}", "asymptotic")

    @property
    def highest(self) -> float:
        """For the largest loss of the population at any t."""
        return float(torch.maximum(self.left, self.right).max())

    def at(self, t: float) -> float:
        """The upper end for the loss of the population at t in [0, 1]."""
        inside = (self.start <= t) & (t <= self.end)
        share = ((t - self.start) / (self.end - self.start))[inside]
        # where two intervals meet, both hold
        return float((self.left[inside] + share * (self.right - self.left)[inside]).min())

    @property
    def words(self) -> str:
        """One sentence: what is certified, and what is statistical."""
        said = f"largest loss at most {upward(self.highest):.4g} (asymptotic)"
        if self.error is not None:
            said += f", largest error at most {upward(float(self.error.max())):.4g} (for every sample size)"
        proved = f"certified between the points, for each of {plural(self.examples, 'example')}"
        return f"population, every t: {said}; {proved}, and {self.level:.4g} confident from them to all"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        held = {k: getattr(self, k).tolist() for k in ("start", "end", "left", "right")}
        return held | {
            "error": None if self.error is None else self.error.tolist(),
            "highest": self.highest,
            "sample": self.sample,
            "level": self.level,
            "examples": self.examples,
            "asymptotic": self.asymptotic,
            "text": self.words,
        }


def upper_band(
    columns: Tensor, unsure: Tensor | None, extra: Tensor, ends: Tensor, level: float, seed: int
) -> UpperBand:
    """The upper ends for the means of `columns` [examples, intervals, 2], all at once, by a one-sided bootstrap.

    `unsure` [examples, intervals]: whether, or at what fraction of its positions, an example may be wrong there.
    `extra` [intervals, 2]: what is added for the penalty. `ends` [intervals, 2]: of the intervals.
    """
    n, intervals, _ = columns.shape
    flat = columns.reshape(n, -1)
    mean = flat.mean(0)
    away = flat - mean
    spread = (away.square().sum(0) / (n - 1)).sqrt()
    # where all examples have the same number nothing is spread
    standard = torch.where(spread > 0, away / spread, 0.0)
    noise = torch.randn(DRAWS, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    drawn = ((noise @ standard) / n**0.5).amax(1).sort().values
    c = max(0.0, float(drawn[min(ceil(level * DRAWS), DRAWS) - 1]))
    # losses have a long upper tail, of which few examples show too little: Johnson's term for one-sided ends (1978)
    skew = standard.pow(3).mean(0).clamp(min=0)
    wide = c + skew * (2 * c * c + 1) / (6 * n**0.5)
    above = (mean + wide * spread / n**0.5).view(intervals, 2) + extra
    sample = float((mean.view(intervals, 2) + extra).max())
    left, right = above.unbind(1)
    return UpperBand(ends[:, 0], ends[:, 1], left, right, _error(unsure, n, level), sample, level, n)


def _error(unsure: Tensor | None, n: int, level: float) -> Tensor | None:
    """One-sided intervals, each with the share 1 / K of what may fail."""
    if unsure is None or bool(unsure.isnan().any()):
        return None
    whole = bool(((unsure == 0) | (unsure == 1)).all())
    share = 2 * (1 - level) / unsure.shape[1]  # both give half of it to either side
    counts = unsure.sum(0).tolist()
    found = [(clopper_pearson(round(k), n, share) if whole else chernoff(k, n, share)).hi for k in counts]
    return torch.tensor(found, dtype=torch.float64)
