"""The loss and the error rate along a path, on a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.objective import Objective
from isthmus.paths import Path


@dataclass(frozen=True)
class Barriers:
    """One quantity q(t) along a path, summed up by every definition in use.

    `max`: max_t q(t). `excess`: max_t q(t) - max(q(0), q(1)), the epsilon of the theorems. `linear`: max_t of
    q(t) - ((1-t) q(0) + t q(1)). `mean`: max_t q(t) - (q(0) + q(1)) / 2.

    >>> Barriers.of(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 4.0, 2.0]))
    Barriers(max=4.0, excess=2.0, linear=2.5, mean=2.5)
    """

    max: float
    excess: float
    linear: float
    mean: float

    @classmethod
    def of(cls, t: Tensor, q: Tensor) -> Barriers:
        """From samples q at t, of which the first and the last are the ends. Any NaN makes all of them NaN."""
        a, b, top = float(q[0]), float(q[-1]), float(q.max())
        if bool(q.isnan().any()):
            return cls(*(float("nan"),) * 4)
        return cls(top, top - max(a, b), float((q - ((1 - t) * a + t * b)).max()), top - (a + b) / 2)


@dataclass(frozen=True, eq=False)
class Profile:
    """Samples of the loss and the error rate at `t`, float64; `segment` says to which segment each belongs.

    The maximum is over the samples: a measured value, not a bound (see ``certify``). `test` is the profile of the
    same path on a second data set.
    """

    t: Tensor
    segment: Tensor
    loss: Tensor
    error: Tensor
    num_points: int
    test: Profile | None = None

    @cached_property
    def barriers(self) -> dict[str, Barriers]:
        """Every barrier definition, for "loss" and "error"."""
        return {"loss": Barriers.of(self.t, self.loss), "error": Barriers.of(self.t, self.error)}

    @property
    def max(self) -> float:
        """The largest sampled loss."""
        return self.barriers["loss"].max

    @property
    def excess(self) -> float:
        """max_t L(t) - max(L(0), L(1))."""
        return self.barriers["loss"].excess

    @property
    def barrier(self) -> float:
        """The excess: the default meaning of "barrier" here. `barriers` has the other definitions."""
        return self.excess

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in profile.json."""
        return {
            "format": 1,
            "num_points": self.num_points,
            "t": self.t.tolist(),
            "segment": self.segment.tolist(),
            "loss": self.loss.tolist(),
            "error": self.error.tolist(),
            "barriers": {k: asdict(v) for k, v in self.barriers.items()},
            "test": None if self.test is None else {k: self.test.to_dict()[k] for k in ("loss", "error", "barriers")},
        }


def profile(
    objective: Objective,
    path: Path,
    num_points: int = 61,
    *,
    test: Objective | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Profile:
    """Measure the loss and the error at `num_points` equidistant points of every segment, both ends included.

    Segment i of n covers t in [i/n, (i+1)/n]; points shared by two segments are evaluated once. Cost: about
    n * (num_points - 1) passes over the data, twice that with `test`.

    >>> from isthmus.paths import Path
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> path = Path.through([{"weight": torch.eye(2)}, {"weight": -torch.eye(2)}])
    >>> p = profile(objective, path, num_points=3)
    >>> p.t.tolist(), p.error.tolist(), p.excess
    ([0.0, 0.5, 1.0], [0.0, 0.5, 1.0], 0.0)
    """
    if num_points < 2:
        raise InputError("num_points", expected="at least 2 points per segment", got=num_points)
    n = len(path)
    local = torch.linspace(0, 1, num_points, dtype=torch.float64)
    places = [(0, 0.0)] + [(i, float(s)) for i in range(n) for s in local[1:]]
    t = torch.tensor([(i + s) / n for i, s in places], dtype=torch.float64)
    segment = torch.tensor([i for i, _ in places])
    sets = [objective] + ([test] if test is not None else [])
    values = torch.empty(len(sets), 2, len(places), dtype=torch.float64)
    for k, (i, s) in enumerate(places):
        point = path.segments[i].at(s)
        for j, data in enumerate(sets):
            values[j, :, k] = torch.tensor(data.measure(point), dtype=torch.float64)
        progress("measuring", k + 1, len(places))
    profiles = [Profile(t, segment, v[0], v[1], num_points) for v in values]
    return profiles[0] if test is None else Profile(t, segment, values[0][0], values[0][1], num_points, profiles[1])
