"""What the two forms of string sampling share: how their beads are trained, and the search piece by piece."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import torch

from isthmus.connectors.base import Connection, Search
from isthmus.connectors.strings.beads import Trainer
from isthmus.connectors.strings.threshold import Threshold, threshold_for
from isthmus.errors import InputError
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.training.fit import Checkpoint, Recipe
from isthmus.training.progress import Progress


class Job(Protocol):
    """A search on its way, which may be left after every step."""

    def begin(self, a: Params, b: Params) -> None:
        """Start, or take over the state that is kept."""
        ...

    def step(self) -> bool:
        """The next piece of work; False where there is none."""
        ...

    def connection(self) -> Connection:
        """What was found."""
        ...


class Strings(Search):
    """A method whose path is a string of beads; the fields are those of its dataclass."""

    threshold: float | None
    excess: float | None
    quantity: str
    on: str
    points: int
    optimizer: str
    lr: float
    batch: int
    steps: int
    check: int | None
    schedule: str
    batched: bool | None

    def recipe(self) -> Recipe:
        """How beads are trained."""
        if self.optimizer == "lbfgs":
            raise InputError("optimizer", expected="'adam' or 'sgd'", got="'lbfgs'")
        return Recipe(
            optimizer=self.optimizer, lr=self.lr, steps=self.steps, batch=self.batch, schedule=self.schedule,
            check=self.check,
        )  # fmt: skip

    @property
    def judged_by_test(self) -> bool:
        """Whether the second data set judges the path; else none may be given."""
        return self.on == "test"

    @abstractmethod
    def job(
        self,
        limit: Threshold,
        trainer: Trainer,
        generator: torch.Generator,
        progress: Progress,
        checkpoint: Checkpoint | None,
    ) -> Job:
        """The search below `limit`, not yet begun."""

    def search(
        self,
        objective: Objective,
        a: Params,
        b: Params,
        generator: torch.Generator,
        progress: Progress,
        *,
        test: Objective | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Connection:
        """The string from `a` to `b`."""
        limit = threshold_for(
            objective, test, (a, b),
            quantity=self.quantity, value=self.threshold, excess=self.excess, on=self.on, points=self.points,
        )  # fmt: skip
        progress(f"{limit.quantity} at most {limit.value:.4g} ({limit.origin})", 0, 1)
        trainer = Trainer.of(objective, limit, self.recipe(), self.batched, a)
        job = self.job(limit, trainer, generator, progress, checkpoint)
        job.begin(a, b)
        while job.step():
            pass
        return job.connection()
