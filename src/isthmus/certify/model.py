"""Which of the two ways to bound a sub-interval is used: the one that is expected to cost less in all.

"box" puts all remainders through the moduli of the weights. "chord" follows them back from the loss (``gradient.py``);
one such bound costs about 1.5 to 2 times as much and is nearer on networks with several layers, by far on deep ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf, isfinite, log2, sqrt

from isthmus.certify.bounds import Bound
from isthmus.certify.branch import FIRST, FLOOR
from isthmus.certify.cost import PROBED, Rate, rate
from isthmus.certify.kernel import READINGS, Kernel
from isthmus.errors import UnsupportedError

MODELS = ("box", "chord")


@dataclass(frozen=True)
class BoundPlan:
    """The `model` whose `bound` is used, what it costs, and how many bounds a segment is `expected` to need."""

    model: str
    bound: Callable[[int, float, float], Bound]
    rate: Rate
    expected: float

    @property
    def predicted(self) -> float:
        """What that costs, in profiles."""
        return self.rate.profiles(self.expected)

    def foreseen(self, profiles: float, gap: float) -> str:
        """What is to be said before a budget is spent that will not do."""
        near = "no budget" if self.predicted == inf else f"about {self.predicted:.2g} profiles"
        return f"{near} expected to bring the bound within {100 * gap:g} %, the budget is {profiles:g}"

    @property
    def first(self) -> int:
        """Sub-intervals of a segment to begin with, a power of two: wide ones are hopeless where many are expected.

        A quarter of those, as most of a path is lower than its maximum.
        """
        if not isfinite(self.expected):
            return FIRST
        parts = max(self.expected / 4, min(self.expected, 2 * FIRST), FIRST)
        return 1 << round(log2(min(parts, 1024)))


def plan(kernel: Kernel, segments: Sequence[int], model: str, gap: float, best: float, num_points: int) -> BoundPlan:
    """Try the models on one sub-interval; the number of bounds goes with the root of their distance from the loss."""
    found = []
    for name in MODELS if model == "auto" else (model,):
        bound = _bound(kernel, name)
        costs = rate(kernel, segments, bound, num_points, READINGS)  # before anything is remembered
        found.append(BoundPlan(name, bound, costs, _expected(bound, segments, gap, best)))
    # where no bound is finite yet, the nearer one becomes it first
    return min(found, key=lambda p: (p.expected * p.rate.each, p.model != "chord"))


def _bound(kernel: Kernel, model: str) -> Callable[[int, float, float], Bound]:
    return cache(lambda i, start, end: kernel.bound(i, start, end, model))


def _expected(bound: Callable[[int, float, float], Bound], segments: Sequence[int], gap: float, best: float) -> float:
    for i in segments:
        try:
            found = bound(i, 0.5, 0.5 + PROBED)
        except UnsupportedError:
            continue
        goal = max(gap * max(best, found.estimate), FLOOR)
        return max(FIRST, sqrt(max(found.loss - found.estimate, 0.0) / goal) / PROBED)
    return inf


def _no_bound(i: int, start: float, end: float) -> Bound:
    raise UnsupportedError("the path", "nothing is bounded by sub-intervals here")


NOTHING = BoundPlan("", _no_bound, Rate(0, 0, 1), 0.0)
"""Where no segment is bounded by sub-intervals."""
