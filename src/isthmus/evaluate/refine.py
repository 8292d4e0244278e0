"""Placing points where the maximum may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

START = 17
"""Equidistant points that a segment starts from: a rise narrower than their distance is not seen."""

_SHORTEST = 1e-7


@dataclass
class Samples:
    """The values of one function at some t in [0, 1], and an estimate of how high it can be between them.

    Between neighbours a and b with values p and q the function is taken to stay below the chord plus K/2 (t-a) (b-t),
    where K is `safety` times the largest second divided difference within two nodes of the interval, or a quarter of
    the largest one on the starting grid if that is more. The estimate is checked: a new value that strays further from
    the chord than K allows doubles `safety` (and counts as a surprise).

    >>> s = Samples([0.0, 0.5, 1.0], [0.0, 0.25, 0.0])
    >>> s.height(0)
    0.28125
    """

    t: list[float]
    value: list[float]
    safety: float = 2.0
    surprises: int = 0
    _bends: list[float] = field(default_factory=list)

    _least: float = 0.0

    def __post_init__(self) -> None:
        self._update()
        self._least = max(self._bends, default=0.0) / 4

    def _update(self) -> None:
        t, v = self.t, self.value
        slopes = [(v[i + 1] - v[i]) / (t[i + 1] - t[i]) for i in range(len(t) - 1)]
        self._bends = [2 * abs(slopes[i + 1] - slopes[i]) / (t[i + 2] - t[i]) for i in range(len(slopes) - 1)]

    def bend(self, i: int) -> float:
        """K on the interval from t[i] to t[i + 1]."""
        if not self._bends:
            return float("inf")
        # bends[j] belongs to node j + 1
        near = self._bends[max(0, i - 2) : i + 2]
        return self.safety * max(*near, self._least)

    def height(self, i: int) -> float:
        """The estimated upper bound on the interval from t[i] to t[i + 1]."""
        h, p, q = self.t[i + 1] - self.t[i], self.value[i], self.value[i + 1]
        room = self.bend(i) * h * h / 2
        if abs(q - p) >= room:
            return max(p, q)
        return (p + q) / 2 + room / 4 + (q - p) * ((q - p) / (4 * room))

    def add(self, i: int, value: float) -> None:
        """Put the value at the middle of interval i."""
        a, b = self.t[i], self.t[i + 1]
        stray = abs(value - (self.value[i] + self.value[i + 1]) / 2)
        allowed = self.bend(i) * (b - a) ** 2 / 8
        if stray > allowed * (1 + 1e-9) + 1e-12 * abs(value):
            self.surprises += 1
            self.safety *= 2
        self.t.insert(i + 1, (a + b) / 2)
        self.value.insert(i + 1, value)
        self._update()

    def highest(self) -> tuple[int, float]:
        """The interval whose estimated bound is largest, and that bound, among those that can still be halved."""
        heights = [(self.height(i), i) for i in range(len(self.t) - 1) if self.t[i + 1] - self.t[i] > _SHORTEST]
        bound, i = max(heights, default=(float("-inf"), 0))
        return i, bound


def refine(samples: Samples, best: float, tol: float, measure: Callable[[float], float]) -> float:
    """Halve intervals of `samples` until none is estimated to rise more than `tol` above the best value; returns that.

    `best` is the largest value seen so far, here or elsewhere; ``measure(t)`` evaluates the function.
    """
    best = max([best, *samples.value])
    while True:
        i, bound = samples.highest()
        if not bound > best + tol:
            return best
        value = measure((samples.t[i] + samples.t[i + 1]) / 2)
        samples.add(i, value)
        best = max(best, value)
