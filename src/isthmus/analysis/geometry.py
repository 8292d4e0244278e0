"""How long and how bent the way between two networks is, against the level it stays below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from isthmus.analysis.straighten import straighten
from isthmus.connectors.base import Connection
from isthmus.connectors.connect import connect
from isthmus.connectors.strings.constrained import ConstrainedStringSampling
from isthmus.connectors.strings.sampling import StringSampling
from isthmus.errors import InputError
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.shown import one_line
from isthmus.training.progress import Progress, no_progress


@one_line
@dataclass(frozen=True)
class Level:
    """One threshold: how the search ended, and what its string is like.

    `beads` are the trained ones, without the two ends; `normalized_length` is the length of the string over the
    distance of its ends, and `straightened` the same after ``straighten`` (None where the string is not connected);
    `maximum` is the largest value seen on the string.
    """

    threshold: float
    outcome: str
    connected: bool
    beads: int
    normalized_length: float
    straightened: float | None
    maximum: float
    gradient_steps: int


@one_line
@dataclass(frozen=True, eq=False)
class Geometry:
    """Rows from the highest threshold to the lowest, and the strings they describe.

    `quantity`, `on`: what the thresholds are on, and of which data. `levels`: a row for each threshold; `connections`:
    the string of each.
    """

    quantity: str
    on: str
    levels: tuple[Level, ...]
    connections: tuple[Connection, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"quantity": self.quantity, "on": self.on, "levels": [asdict(level) for level in self.levels]}

    def to_markdown(self) -> str:
        """The rows as a table."""
        rows = [f"| {self.quantity} at most | connected | beads | length | straightened | gradient steps |"]
        rows.append("|---|---|---|---|---|---|")
        for x in self.levels:
            short = "" if x.straightened is None else f"{x.straightened:.4f}"
            yes = "yes" if x.connected else x.outcome.lower().replace("_", " ")
            rows.append(
                f"| {x.threshold:.4g} | {yes} | {x.beads} | {x.normalized_length:.4f} | {short} | {x.gradient_steps} |"
            )
        return "\n".join(rows)


def geometry(
    objective: Objective,
    a: ParamsLike,
    b: ParamsLike,
    thresholds: Sequence[float],
    *,
    method: StringSampling | ConstrainedStringSampling | None = None,
    seed: int = 0,
    test: Objective | None = None,
    shorten: bool = True,
    progress: Progress = no_progress,
) -> Geometry:
    """The normalised length and the number of beads of a string from `a` to `b`, for each threshold.

    `method` holds everything but the threshold (default ``StringSampling()``); with ``on="test"`` it is judged by
    `test`. Each threshold is a search of its own from the straight line. With `shorten`, connected strings are also
    straightened. The paper's curves (Freeman and Bruna 2017, Figures 2 to 6) average over pairs whose ends were
    trained just to each threshold; here the ends are given. Cost: one string per threshold; the beads grow
    like a power of 1 / threshold.

    `thresholds`: of the quantity of `method`, in any order.

    Errors: no thresholds, one below the ends.

    >>> import torch
    >>> objective = Objective(torch.nn.Linear(1, 1, bias=False), "mse", (torch.ones(1, 1), torch.zeros(1, 1)))
    >>> ends = [{"weight": torch.tensor([[v]])} for v in (-1.0, 1.0)]
    >>> found = geometry(objective, *ends, [2.0, 1.0])
    >>> [(x.threshold, x.connected, x.beads, x.normalized_length) for x in found.levels]
    [(2.0, True, 0, 1.0), (1.0, True, 0, 1.0)]
    """
    check_kinds(geometry, locals(), but=["method"])
    method = StringSampling() if method is None else method
    if not isinstance(method, StringSampling | ConstrainedStringSampling):
        raise InputError("method", expected="a string sampling method", got=type(method).__name__)
    if not thresholds:
        raise InputError("thresholds", expected="at least one number", got="none")
    levels, connections = [], []
    judge = objective if test is None else test
    for k, value in enumerate(sorted(thresholds, reverse=True)):
        progress("thresholds", k, len(thresholds))
        below = replace(method, threshold=value, excess=None)
        found = connect(objective, a, b, below, seed=seed, test=test, progress=progress)
        stats = found.stats
        short = None
        if shorten and found.outcome.ok:
            short = straighten(
                judge, found.path, value, quantity=method.quantity, points=method.points, progress=progress
            ).after
        levels.append(
            Level(
                value, found.outcome.name, found.outcome.ok, stats["beads"], stats["normalized_length"], short,
                stats["maximum"], stats["gradient_steps"],
            )
        )  # fmt: skip
        connections.append(found)
    progress("thresholds", len(thresholds), len(thresholds))
    return Geometry(method.quantity, method.on, tuple(levels), tuple(connections))
