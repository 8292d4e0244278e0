"""The straight line, the baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from isthmus.connectors.base import About, Connection, Connector, Outcome
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.paths import Curve, Path
from isthmus.training.progress import Progress


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

    def find(
        self, objective: Objective, a: Params, b: Params, generator: torch.Generator, progress: Progress
    ) -> Connection:
        """The segment from `a` to `b`."""
        return Connection(Path((Curve((a, b)),)), b, Outcome.CONSTRUCTED, {"segments": ["straight line"]})
