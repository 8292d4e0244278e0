"""Threshold sets {theta : q(theta) <= L0}, and whether a segment stays in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, isnan, log

from isthmus.errors import InputError, UnsupportedError
from isthmus.evaluate.engine import Engine
from isthmus.evaluate.refine import Samples
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.paths import Segment

QUANTITIES = ("loss", "error", "perplexity")
"""What a threshold may be on; the perplexity is exp(loss)."""


@dataclass(frozen=True)
class Scan:
    """What was seen on a segment: the largest value, where it is, and how densely it was looked for.

    `spacing` is the largest distance in t between two neighbouring samples.
    """

    max: float
    t: float
    samples: int
    spacing: float


@dataclass(frozen=True, eq=False)
class Threshold:
    """The set where `quantity` on the data of `objective` is at most `value`; segments start from `points` samples.

    >>> import torch
    >>> objective = Objective(torch.nn.Linear(1, 1, bias=False), "mse", (torch.ones(1, 1), torch.zeros(1, 1)))
    >>> at = [{"weight": torch.tensor([[v]])} for v in (-1.0, 2.0)]
    >>> below = Threshold(objective, "loss", 4.0, 4)
    >>> below.of(at[1]), below.contains(at[1])
    (4.0, True)
    """

    objective: Objective
    quantity: str
    value: float
    points: int

    def of(self, params: Params) -> float:
        """The quantity at a point; NaN counts as infinite."""
        return self._read(*self.objective.measure(params))

    def contains(self, params: Params) -> bool:
        """Whether the point is in the set."""
        return self.of(params) <= self.value

    def at(self, value: float) -> Threshold:
        """The same at another level."""
        return Threshold(self.objective, self.quantity, value, self.points)

    @property
    def loss(self) -> float:
        """The threshold as a loss. Not for error rates."""
        return log(self.value) if self.quantity == "perplexity" else self.value

    def _read(self, loss: float, error: float) -> float:
        if self.quantity == "perplexity":
            value = exp(loss) if loss < 700 else inf
        else:
            value = error if self.quantity == "error" else loss
        return inf if isnan(value) or isnan(loss) else value

    def scan(self, segment: Segment) -> Scan:
        """The largest value on the segment, as far as samples show it.

        `points` equidistant samples, every fourth of them first: if one of those is out of the set, the rest are left
        out and the intervals beside the largest are halved twice. If all samples are in the set, intervals are halved
        until none is estimated to rise out of it (``refine.Samples``), or one does. Error rates are steps, for which
        there is no such estimate: there too the intervals beside the largest are halved twice.
        """
        ready = Engine(self.objective).prepare(segment, self.points)

        def measure(ts: Sequence[float]) -> list[float]:
            losses, errors = ready.measure(list(ts))
            return [self._read(loss, error) for loss, error in zip(losses, errors, strict=True)]

        grid = [k / (self.points - 1) for k in range(self.points)]
        coarse = sorted({*grid[::4], grid[-1]})
        known = dict(zip(coarse, measure(coarse), strict=True))
        if max(known.values()) <= self.value:
            rest = [t for t in grid if t not in known]
            known |= dict(zip(rest, measure(rest), strict=True))
        seen = Samples(sorted(known), [known[t] for t in sorted(known)])
        if self.quantity == "error" or max(seen.value) > self.value:
            _closer(seen, measure)
        while self.quantity != "error" and max(seen.value) <= self.value:
            i, bound = seen.highest()
            if not bound > self.value:
                break
            seen.add(i, measure([(seen.t[i] + seen.t[i + 1]) / 2])[0])
        top = max(range(len(seen.t)), key=seen.value.__getitem__)
        return Scan(seen.value[top], seen.t[top], len(seen.t), max(q - p for p, q in pairwise(seen.t)))


def _closer(seen: Samples, measure: Callable[[Sequence[float]], list[float]]) -> None:
    """Halve the intervals beside the largest sample, twice."""
    for _ in range(2):
        top = max(range(len(seen.t)), key=seen.value.__getitem__)
        beside = [i for i in (top, top - 1) if 0 <= i < len(seen.t) - 1]
        values = measure([(seen.t[i] + seen.t[i + 1]) / 2 for i in beside])
        for i, value in zip(beside, values, strict=True):
            seen.add(i, value)


def check_fields(quantity: str, value: float | None, on: str, points: int) -> None:
    """Refuse what no threshold can be."""
    if quantity not in QUANTITIES:
        raise InputError("quantity", expected=f"one of {QUANTITIES}", got=repr(quantity))
    least = 1.0 if quantity == "perplexity" else 0.0
    if value is not None and not least < value < inf:
        raise InputError("threshold", expected=f"a number > {least:g}", got=value)
    if on not in ("train", "test"):
        raise InputError("on", expected="'train' or 'test'", got=repr(on))
    if points < 3:
        raise InputError("points", expected="at least 3 samples of each segment", got=points)


def threshold_for(
    objective: Objective,
    test: Objective | None,
    ends: Sequence[Params],
    *,
    quantity: str,
    value: float | None,
    on: str,
    points: int,
) -> Threshold:
    """The threshold set of a search; without a `value`, one tenth above the larger end.

    Errors: ends outside the set; a test set or an error rate that there is not.
    """
    if on == "test" and test is None:
        raise InputError("on", expected="'train', or a test set", got="'test'", instead="connect(..., test=objective)")
    if on == "train" and test is not None:
        raise InputError("test", expected="on='test' of the method, to be judged by it", got="on='train'")
    judge = objective if on == "train" or test is None else test
    if quantity == "error" and not judge.has_error:
        raise UnsupportedError("quantity='error'", "this objective has no error rate", "give Objective(..., error=)")
    first = Threshold(judge, quantity, inf, points)
    larger = max(first.of(p) for p in ends)
    if value is None:
        value = 1.1 * larger
        if not 0 < value < inf:
            raise InputError("threshold", expected=f"a number (the larger end has {larger:g})", got=None)
    if larger > value:
        raise InputError("threshold", expected=f"at least {larger:.6g}, the {quantity} of the larger end", got=value)
    return first.at(value)
