"""Which of the two ways to bound a sub-interval is used: the one that is expected to cost less in all.

"box" puts all remainders through the moduli of the weights. "chord" follows them back from the loss (``gradient.py``);
one such bound costs about 1.5 to 2 times as much and is nearer on networks with several layers, by far on deep ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import ceil, inf, log2

from isthmus.certify.bounds import Bound
from isthmus.certify.branch import FIRST, FLOOR
from isthmus.certify.cost import PROBED, Rate, kinds_of, profile_cost, rate
from isthmus.certify.kernel import READINGS
from isthmus.certify.remembered import Remembered
from isthmus.errors import UnsupportedError

MODELS = ("box", "chord")
NARROWEST_TRIED = 2.0**-14
"""Bounds are not tried on narrower sub-intervals."""
STEEP = 3.0
"""Above this power bounds on wide sub-intervals are useless wherever they are."""
STEEPEST = 8.0
"""The power taken where a bound was infinite and no longer is."""


@dataclass(frozen=True)
class BoundTrial:
    """How many bounds a segment is `expected` to need, whose distance from the loss falls as a `power` of the width."""

    expected: float
    power: float


@dataclass(frozen=True)
class BoundPlan:
    """The `model` whose `bound` is used, what it costs, and what a `trial` expects."""

    model: str
    bound: Callable[[int, float, float], Bound]
    rate: Rate
    trial: BoundTrial

    @property
    def predicted(self) -> float:
        """What that costs, in profiles."""
        return self.rate.profiles(self.trial.expected)

    def foreseen(self, profiles: float, gap: float) -> str:
        """What is to be said before a budget is spent that will not do."""
        near = "no budget" if self.predicted == inf else f"about {self.predicted:.2g} profiles"
        return f"{near} expected to bring the bound within {100 * gap:g} %, the budget is {profiles:g}"

    @property
    def first(self) -> int:
        """Sub-intervals of a segment to begin with, a power of two: wide ones are hopeless where many are expected.

        A quarter of those, as most of a path is lower than its maximum, unless wide ones are useless there too.
        """
        expected = self.trial.expected
        if not 0 < expected < inf:  # none at all where nothing is bounded by sub-intervals
            return FIRST
        if self.trial.power > STEEP:
            return 1 << ceil(log2(min(max(expected, FIRST), 1024)))
        return 1 << round(log2(min(max(expected / 4, min(expected, 2 * FIRST), 1.0), 1024)))


def plan(known: Remembered, segments: Sequence[int], model: str, gap: float, best: float, num_points: int) -> BoundPlan:
    """Try the models on one place; the number of bounds goes with the root of their distance from the loss."""
    kernel, names = known.kernel, MODELS if model == "auto" else (model,)
    measuring_of = cache(lambda i: profile_cost(kernel.objective, kernel.path.segments[i], num_points))

    def count() -> list[Rate]:
        # of bounds that are computed, not of those that are known from before
        every, kinds = [partial(kernel.bound, model=name) for name in names], kinds_of(kernel, segments)
        return [rate(kernel, kinds, bound, measuring_of, READINGS) for bound in every]

    found = []
    for name, costs in zip(names, known.rates(names, count), strict=True):
        bound = known.bound(name)
        found.append(BoundPlan(name, bound, costs, _trial(bound, segments, gap, best)))
    # where no bound is finite yet, the nearer one becomes it first
    return min(found, key=lambda p: (p.trial.expected * p.rate.each, p.model != "chord"))


def _trial(bound: Callable[[int, float, float], Bound], segments: Sequence[int], gap: float, best: float) -> BoundTrial:
    """From two widths, one on which the bound is near the loss and the next wider one: with what power it gets there.

    A wide one that is useless says nothing of narrow ones; nor does a near one of those that are wider.
    """

    def far(i: int, width: float) -> float:
        found = bound(i, 0.5, 0.5 + width)
        return max(found.loss - found.estimate, 0.0) / max(gap * max(best, found.estimate), FLOOR)

    for i in segments:
        try:
            seen = [(PROBED, far(i, PROBED))]
            if seen[0][1] <= 1:
                seen.insert(0, (4 * PROBED, far(i, 4 * PROBED)))
            while seen[-1][1] > 1 and seen[-1][0] >= 4 * NARROWEST_TRIED:
                seen.append((seen[-1][0] / 4, far(i, seen[-1][0] / 4)))
        except UnsupportedError:
            continue
        return _of_trials(seen)
    return BoundTrial(inf, 2.0)


def _of_trials(seen: Sequence[tuple[float, float]]) -> BoundTrial:
    """By the power of the width with which the distance in units of the goal fell last; 2 where that is not known."""
    if seen[0][1] <= 1:
        seen = seen[:1]
    width, far = seen[-1]
    power = 2.0
    if len(seen) > 1 and 0 < far < inf:
        wider = seen[-2][1]
        power = max(log2(wider / far) / 2, 1.0) if wider < inf else STEEPEST
    return BoundTrial(max(FIRST, far ** (1 / power) / width), power)


def _no_bound(i: int, start: float, end: float) -> Bound:
    raise UnsupportedError("the path", "nothing is bounded by sub-intervals here")


NOTHING = BoundPlan("", _no_bound, Rate(0, 0, 1), BoundTrial(0.0, 2.0))
"""Where no segment is bounded by sub-intervals."""
