"""``barrier``: how high the loss rises between two networks, as one number that says by which definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from isthmus.alignment.many import checked_models
from isthmus.connectors.base import Connection, Connector, describe
from isthmus.connectors.connect import connect
from isthmus.connectors.linear import Linear
from isthmus.errors import InputError
from isthmus.evaluate.band import Range
from isthmus.evaluate.profile import Profile, heights, profile
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.shown import brief, draw, largest, line, plural, table
from isthmus.training.progress import Progress, no_progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Definition = Literal["excess", "linear", "mean", "max"]
DEFINITIONS: dict[str, str] = {
    "excess": "max_t L(t) - max(L(0), L(1))",
    "linear": "max_t [L(t) - (1-t) L(0) - t L(1)]",
    "mean": "max_t L(t) - (L(0) + L(1)) / 2",
    "max": "max_t L(t)",
}
"""What people call the barrier of a path with losses L(t)."""


@dataclass(frozen=True, eq=False)
class Barrier:
    """How high the loss rises on a path, by one `definition`; ``float(b)`` is its `value`.

    `t`: where it is reached. `ends`: the losses at both ends. `error`: the same definition of the error rate (NaN where
    none is defined). `test`: the same of held-out data. `interval`: with the probability `level` what the definition
    "excess" gives for the population that held-out data were drawn from; None for other definitions and other data.

    `method`: the one that made the path, with its fields. `connection`: the path; `profile`: what was measured on it.
    """

    value: float
    definition: str
    t: float
    ends: tuple[float, float]
    error: float
    method: dict[str, Any]
    connection: Connection = field(repr=False)
    profile: Profile = field(repr=False)
    test: Barrier | None = None
    interval: Range | None = None
    level: float | None = None

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        held_out = [] if self.test is None else [f"held out {brief(self.test.value)}"]
        ends = f"ends {brief(self.ends[0])} and {brief(self.ends[1])}"
        return line(self, f"{self.definition} {brief(self.value)}", f"t {brief(self.t)}", ends, *held_out)

    def __str__(self) -> str:
        said = f"{self.definition} barrier {self.value:.4g} at t = {self.t:.4g} ({DEFINITIONS[self.definition]})"
        if self.test is None:
            return said
        between = "" if self.test.interval is None else f", population {self.test.interval}"
        return f"{said}; held out {self.test.value:.4g}{between}"

    def plot(self, ax: Axes | None = None, label: str | None = None) -> Axes:
        """The loss along the path, drawn on `ax` (default: new axes), beside what is there. Needs ``isthmus[plot]``.

        `label`: its name in the legend, to tell several on the same axes apart.
        """
        return draw(self.profile, ax, label=label)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the samples."""
        own = {k: getattr(self, k) for k in ("value", "definition", "t", "error", "method", "level")}
        return own | {
            "ends": list(self.ends),
            "interval": None if self.interval is None else list(self.interval),
            "test": None if self.test is None else self.test.to_dict(),
        }


def barrier(
    objective: Objective,
    a: ParamsLike,
    b: ParamsLike,
    definition: Definition = "excess",
    method: Connector | None = None,
    *,
    num_points: int = 25,
    tol: float | None = None,
    test: Objective | None = None,
    bn: str | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Barrier:
    """How high the loss rises between `a` and `b` on the path of `method`, by default the straight line.

    `definition`: "excess" over the larger end, the epsilon of the theorems; "linear", over the line between the losses
    of the ends; "mean", over their mean; "max", the largest loss itself. They differ wherever the ends do: say which.
    `num_points`, `tol`, `bn`, `test`: as for ``profile``, whose samples the number is of; a bound for all t is
    ``certify``'s. With `test` the same number of held-out data stands beside it, and for "excess" an interval for the
    population.

    Cost: the method, and at most `num_points` passes over the data for each segment. Errors: as ``connect`` and
    ``profile``; another definition.

    >>> import torch
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> a, b = {"weight": torch.eye(2)}, {"weight": torch.zeros(2, 2)}
    >>> print(barrier(objective, a, b, "mean", num_points=3))
    mean barrier 0.1899 at t = 1 (max_t L(t) - (L(0) + L(1)) / 2)
    """
    check_kinds(barrier, locals(), but=["definition", "method"])
    if definition not in get_args(Definition):
        raise InputError("definition", expected=f"one of {', '.join(DEFINITIONS)}", got=repr(definition))
    connection = connect(objective, a, b, method, seed=seed, progress=progress)
    found = profile(objective, connection, num_points, tol=tol, test=test, bn=bn, progress=progress)
    return barrier_of(found, connection, definition)


def barrier_of(found: Profile, connection: Connection, definition: Definition = "excess") -> Barrier:
    """The number, from a profile of the path."""
    held_out = None if found.test is None else barrier_of(found.test, connection, definition)
    band = found.population if definition == "excess" else None
    above = heights(found.t, found.loss, definition)
    where = int(above.argmax())
    error = float(heights(found.t, found.error, definition).max())
    return Barrier(
        value=float(above[where]), definition=definition, t=float(found.t[where]),
        ends=(float(found.loss[0]), float(found.loss[-1])), error=error,
        method=describe_of(connection), connection=connection, profile=found, test=held_out,
        interval=None if band is None else band.barrier, level=None if band is None else band.level,
    )  # fmt: skip


def describe_of(connection: Connection) -> dict[str, Any]:
    """The method of a connection, with its fields."""
    return dict(connection.stats.get("method") or describe(Linear()))


@dataclass(frozen=True, eq=False)
class BarrierMatrix:
    """The barriers between each two of several networks: `values` [n, n], symmetric, with zeros on the diagonal (for
    "max" the losses). ``m[0, 2]`` is a ``Barrier``; `test`: the same of held-out data.

    `barriers`: by the numbers of two networks, the smaller first. `definition`: of all of them. `names`: of the
    networks.
    """

    barriers: dict[tuple[int, int], Barrier]
    definition: str
    values: Tensor
    test: Tensor | None
    names: tuple[str, ...]

    def __repr__(self) -> str:
        return line(self, plural(len(self.names), "network"), f"{self.definition}, largest {brief(self.max)}")

    def __getitem__(self, pair: tuple[int, int]) -> Barrier:
        found = self.barriers.get((min(pair), max(pair)))
        if found is None:
            raise InputError("pair", expected=f"two different numbers from 0 to {len(self.names) - 1}", got=pair)
        return found

    @property
    def max(self) -> float:
        """The largest barrier of any pair; NaN if one is."""
        return largest(one.value for one in self.barriers.values())

    def _repr_html_(self) -> str:
        rows = [[name, *map(float, row)] for name, row in zip(self.names, self.values, strict=True)]
        return table(["", *self.names], rows, f"{self!r}: {DEFINITIONS[self.definition]}")

    def plot(self, ax: Axes | None = None) -> Axes:
        """The matrix, with its numbers, drawn on `ax` (default: new axes). Needs ``isthmus[plot]``."""
        return draw(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        rows = [{"a": i, "b": j} | one.to_dict() for (i, j), one in self.barriers.items()]
        return {"definition": self.definition, "names": list(self.names), "barriers": rows}


def barrier_matrix(
    objective: Objective,
    models: Sequence[ParamsLike],
    definition: Definition = "excess",
    method: Connector | None = None,
    *,
    num_points: int = 25,
    names: Sequence[str] | None = None,
    test: Objective | None = None,
    bn: str | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> BarrierMatrix:
    """``barrier`` between each two of `models`, on paths from the one with the smaller number.

    `definition`, `method`, `num_points`, `test`, `bn`: as for ``barrier``. `names`: of the networks.

    Cost: n (n - 1) / 2 times that of ``barrier``. Errors: as there; fewer than two networks.

    >>> import torch
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> models = [{"weight": s * torch.eye(2)} for s in (1.0, 2.0, 3.0)]
    >>> barrier_matrix(objective, models, num_points=3).max
    0.0
    """
    check_kinds(barrier_matrix, locals(), but=["definition", "method", "models"])
    networks = checked_models(objective, models)
    called = names_of(names, len(networks))
    found, pairs = {}, list(combinations(range(len(networks)), 2))
    for done, (i, j) in enumerate(pairs):
        progress("measuring barriers", done, len(pairs))
        found[i, j] = barrier(
            objective, networks[i], networks[j], definition, method, num_points=num_points, test=test, bn=bn, seed=seed
        )
    progress("measuring barriers", len(pairs), len(pairs))
    held_out = None if test is None else _square(found, len(networks), "test")
    return BarrierMatrix(found, definition, _square(found, len(networks)), held_out, called)


def names_of(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names of so many networks, by default their numbers. Errors: `InputError` for too few or too many."""
    found = tuple(map(str, range(count))) if names is None else tuple(map(str, names))
    if len(found) != count:
        raise InputError("names", expected=f"{count} names", got=len(found))
    return found


def _square(found: dict[tuple[int, int], Barrier], size: int, part: str | None = None) -> Tensor:
    values = torch.zeros(size, size, dtype=torch.float64)
    for (i, j), one in found.items():
        own = one if part is None else getattr(one, part)
        values[i, j] = values[j, i] = own.value
        if own.definition == "max":
            values[i, i], values[j, j] = own.ends
    return values
