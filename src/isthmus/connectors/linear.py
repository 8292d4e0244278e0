"""The straight line, the baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.connectors.base import About, Connection, Connector, Outcome, Task
from isthmus.paths import Curve, Path


@dataclass(frozen=True)
class Linear(Connector):
    """One straight segment from a to b. Works for any module; nothing bounds the loss on it."""

    about = About(
        makes="one straight segment",
        reference="baseline",
        needs="any module",
        cost="none",
        convex=False,
    )

    def find(self, task: Task) -> Connection:
        """The segment from `a` to `b`."""
        line = Path((Curve((task.a, task.b)),))
        return Connection(line, task.b, Outcome.CONSTRUCTED, {"segments": ["straight line"]})
