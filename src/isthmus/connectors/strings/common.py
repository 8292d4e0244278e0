"""What the two forms of string sampling share: how their beads are trained, and the search piece by piece."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import torch

from isthmus.connectors.base import Connection, Connector, Task
from isthmus.connectors.strings.beads import Trainer
from isthmus.connectors.strings.threshold import Threshold, threshold_for
from isthmus.errors import InputError
from isthmus.params import Params
from isthmus.training.fit import Checkpoint, Recipe
from isthmus.training.memory import forget
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


class Strings(Connector):
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
    def judged(self) -> bool:
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

    def find(self, task: Task) -> Connection:
        """The string from a to b."""
        limit = threshold_for(
            task.objective, task.test, (task.a, task.b),
            quantity=self.quantity, value=self.threshold, excess=self.excess, on=self.on, points=self.points,
        )  # fmt: skip
        task.progress(f"{limit.quantity} at most {limit.value:.4g} ({limit.origin})", 0, 1)
        trainer = Trainer.of(task.objective, limit, self.recipe(), self.batched, task.a)
        job = self.job(limit, trainer, task.generator, task.progress, None if task.memory is forget else task.memory)
        job.begin(task.a, task.b)
        while job.step():
            pass
        return job.connection()
