"""The jobs of the page on Nguyen, Brechet, Mondelli 2021 that are no pairs: Experiments A and B on one network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from isthmus.analysis.subnetwork_bounds import dropout_bounds, subnetwork_bounds
from isthmus.experiments.jobs import Network
from isthmus.sweep import Cell, Job
from isthmus.training.fit import Recipe

PAGE = "nguyen2021"


@dataclass(frozen=True)
class ExperimentA(Cell):
    """Trained subnetworks xi_0 .. xi_{L-1} on a fraction 1 - p of the units.

    Training ends at the first check with a loss of at most `target`.
    """

    page: ClassVar[str] = PAGE

    network: Network
    p: float = 0.5
    seed: int = 0
    draws: int = 20
    recipe: Recipe = Recipe()  # noqa: RUF009 - frozen
    hub_steps: int | None = None
    target: float = 0.0

    def run(self, job: Job) -> Mapping[str, Any]:
        """Loss and error of every layer's best subnetwork, on training and test data, beside the network's own."""
        objective, test = self.network.problem.objectives(job.device)
        return subnetwork_bounds(
            objective, self.network.params(job), 1 - self.p, self.draws, self.seed,
            recipe=self.recipe, hub_steps=self.hub_steps, target=self.target, test=test,
        ).to_dict()  # fmt: skip


@dataclass(frozen=True)
class ExperimentB(Cell):
    """The best of `draws` random networks on fraction 1 - p of the units from layer l on, with its best scale."""

    page: ClassVar[str] = PAGE

    network: Network
    p: float = 0.5
    seed: int = 0
    draws: int = 200

    def run(self, job: Job) -> Mapping[str, Any]:
        """As of ``ExperimentA``."""
        objective, test = self.network.problem.objectives(job.device)
        params = self.network.params(job)
        return dropout_bounds(objective, params, 1 - self.p, self.draws, self.seed, test=test).to_dict()
