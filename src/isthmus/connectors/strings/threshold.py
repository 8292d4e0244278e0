"""Threshold sets {theta : q(theta) <= L0}, and whether a segment stays in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from math import exp, inf, isnan, log
from typing import Any

from isthmus.errors import InputError, UnsupportedError
from isthmus.evaluate.engine import Engine
from isthmus.evaluate.refine import Samples
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.paths import Segment

_RANGES = {"loss": "a number > 0", "error": "a number >= 0", "perplexity": "a number > 1"}
"""What a threshold may be on, and which numbers it may have; the perplexity is exp(loss)."""

_DEFAULT = 1.1
"""Without a threshold or an excess: so many times the larger end."""

_GIVEN = "as given"
"""The origin of a threshold that was asked for."""

_DEFAULT_ERROR = 0.01
"""The default excess between two ends without errors; one example where there are fewer than 100."""


_Measure = Callable[[Sequence[float]], list[float]]
"""The quantity at some places of a segment."""


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

    `origin` says in words where the value comes from.

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
    origin: str = _GIVEN

    def of(self, params: Params) -> float:
        """The quantity at a point; NaN counts as infinite."""
        return self._read(*self.objective.measure(params))

    def contains(self, params: Params) -> bool:
        """Whether the point is in the set."""
        return self.of(params) <= self.value

    def at(self, value: float) -> Threshold:
        """The same at another level."""
        return replace(self, value=value)

    @property
    def loss(self) -> float:
        """The threshold as a loss. Not for error rates."""
        return log(self.value) if self.quantity == "perplexity" else self.value

    def notes(self, values: Sequence[float], top: float) -> list[str]:
        """What a reader of a string must know: where a threshold that was not given comes from, and whether a straight
        line was below it, so that it asked for nothing. `values` of its beads, `top` the largest on it.
        """
        out = [] if self.origin == _GIVEN else [f"threshold: {self.quantity} at most {self.value:.4g}, {self.origin}"]
        larger = max(values)
        if len(values) > 2 or not top <= self.value:
            return out
        said = f"the straight line was already below the threshold, {self.value:.4g}: it"
        if not top > larger:
            return [*out, f"{said} never rises above the larger end, so no threshold for these ends asks for more"]
        harder = f"excess={float(f'{(top - larger) / 2:.2g}'):g}"
        return [*out, f"{said} rises from {larger:.4g} at the larger end to {top:.4g}; a harder task: {harder}"]

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

        seen = self._on_grid(measure)
        if self.quantity == "error" or max(seen.value) > self.value:
            _closer(seen, measure)
        while self.quantity != "error" and max(seen.value) <= self.value:
            i, bound = seen.highest()
            if not bound > self.value:
                break
            seen.add(i, measure([(seen.t[i] + seen.t[i + 1]) / 2])[0])
        top = max(range(len(seen.t)), key=seen.value.__getitem__)
        return Scan(seen.value[top], seen.t[top], len(seen.t), max(q - p for p, q in pairwise(seen.t)))

    def _on_grid(self, measure: _Measure) -> Samples:
        grid = [k / (self.points - 1) for k in range(self.points)]
        coarse = sorted({*grid[::4], grid[-1]})
        known = dict(zip(coarse, measure(coarse), strict=True))
        if max(known.values()) <= self.value:
            rest = [t for t in grid if t not in known]
            known |= dict(zip(rest, measure(rest), strict=True))
        return Samples(sorted(known), [known[t] for t in sorted(known)])


def _closer(seen: Samples, measure: _Measure) -> None:
    """Halve the intervals beside the largest sample, twice."""
    for _ in range(2):
        top = max(range(len(seen.t)), key=seen.value.__getitem__)
        beside = [i for i in (top, top - 1) if 0 <= i < len(seen.t) - 1]
        values = measure([(seen.t[i] + seen.t[i + 1]) / 2 for i in beside])
        for i, value in zip(beside, values, strict=True):
            seen.add(i, value)


@dataclass(frozen=True)
class ThresholdAsked:
    """What a method says of its threshold, in fields of these names; refuses what no threshold can be."""

    quantity: str
    threshold: float | None
    excess: float | None = None
    on: str = "train"
    points: int = 21

    def __post_init__(self) -> None:
        value, excess = self.threshold, self.excess
        if self.quantity not in tuple(_RANGES):
            raise InputError("quantity", expected=f"one of {tuple(_RANGES)}", got=repr(self.quantity))
        if value is not None and excess is not None:
            raise InputError("threshold, excess", expected="one of them, or none", got=f"{value} and {excess}")
        if value is not None and not _possible(self.quantity, value):
            raise InputError("threshold", expected=_RANGES[self.quantity], got=value)
        if excess is not None and not 0 <= excess < inf:
            raise InputError("excess", expected="a finite number >= 0, above the larger end", got=excess)
        if self.on not in ("train", "test"):
            raise InputError("on", expected="'train' or 'test'", got=repr(self.on))
        if self.points < 3:
            raise InputError("points", expected="at least 3 samples of each segment", got=self.points)

    @classmethod
    def of(cls, method: Any) -> ThresholdAsked:
        """The fields of a method."""
        return cls(**{f.name: getattr(method, f.name) for f in fields(cls)})

    def judge(self, objective: Objective, test: Objective | None) -> Objective:
        """The objective whose quantity it is. Errors: a test set or an error rate that there is not."""
        if self.on == "train" and test is not None:
            raise InputError("test", expected="on='test' of the method, to be judged by it", got="on='train'")
        judge = test if self.on == "test" else objective
        if judge is None:
            raise InputError(
                "on", expected="'train', or a test set", got="'test'", instead="connect(..., test=objective)"
            )
        if self.quantity == "error" and not judge.has_error:
            raise UnsupportedError(
                "quantity='error'", "this objective has no error rate", "give Objective(..., error=)"
            )
        return judge

    def limit(self, judge: Objective, ends: Sequence[Params]) -> Threshold:
        """The threshold set: at the value, at the larger end + the excess, or at the default.

        The default is 1.1 times the larger end; between ends without errors 0.01. Errors: ends that are outside the
        set or whose quantity is not a number >= 0.
        """
        first = Threshold(judge, self.quantity, inf, self.points)
        larger = max(first.of(p) for p in ends)
        if not 0 <= larger < inf:
            raise InputError("ends", expected=f"a {self.quantity} that is finite and not negative", got=f"{larger:g}")
        limit = self._chosen(first, larger)
        if not _possible(self.quantity, limit.value):
            expected, instead = f"a number (the larger end has {larger:g})", "excess=0.01, or another number"
            raise InputError("threshold", expected=expected, got=f"{limit.value:g}, {limit.origin}", instead=instead)
        if larger > limit.value:
            expected = f"at least {larger:.6g}, the {self.quantity} of the larger end"
            raise InputError("threshold", expected=expected, got=self.threshold)
        return limit

    def _chosen(self, first: Threshold, larger: float) -> Threshold:
        if self.threshold is not None:
            return first.at(self.threshold)
        if self.excess is not None:
            origin = f"{self.excess:g} above the larger end, {larger:.4g}"
            return replace(first, value=larger + self.excess, origin=origin)
        if self.quantity == "error" and larger == 0:
            few = max(_DEFAULT_ERROR, 1 / first.objective.num_examples)
            return replace(first, value=few, origin=f"the default, {few:g} above two ends without errors")
        origin = f"the default, {_DEFAULT} times the larger end, {larger:.4g}"
        return replace(first, value=_DEFAULT * larger, origin=origin)


def _possible(quantity: str, value: float) -> bool:
    """Whether beads can be trained below `value`: no loss gets down to 0, an error rate does."""
    return 0 <= value < inf if quantity == "error" else float(quantity == "perplexity") < value < inf
