"""The jobs of the page on Nguyen, Brechet, Mondelli 2021 that are no pairs: Experiments A and B on one network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isthmus.analysis.subnetwork_bounds import SubnetworkBounds, dropout_bounds, subnetwork_bounds
from isthmus.experiments.jobs import Network
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.sweep import Cell, Job
from isthmus.training.fit import Recipe

PAGE = "nguyen2021"


@dataclass(frozen=True)
class _OnOneNetwork(Cell):
    """One of the two experiments on one trained network, at the dropout ratio `p`: a fraction 1 - p is kept."""

    network: Network
    p: float = 0.5
    seed: int = 0

    @property
    def group(self) -> str:
        """The experiment's folder."""
        return PAGE

    @property
    def label(self) -> str:
        """For people."""
        end = f"{self.network.problem.label}, seed {self.network.seed}"
        return f"{type(self).__name__} {end}, p = {self.p:.3g}"

    def digests(self) -> Mapping[str, str]:
        """Of the network's problem."""
        return self.network.digests()

    def needs(self) -> tuple[Cell, ...]:
        """The trained network."""
        return (self.network,)

    def run(self, job: Job) -> Mapping[str, Any]:
        """Loss and error of every layer's best subnetwork, on training and test data, beside the network's own."""
        objective, test = self.network.problem.objectives()
        return self.bounds(objective, test, self.network.params(job)).to_dict()

    @abstractmethod
    def bounds(self, objective: Objective, test: Objective | None, params: Params) -> SubnetworkBounds:
        """The rows."""


@dataclass(frozen=True)
class ExperimentA(_OnOneNetwork):
    """Trained subnetworks xi_0 .. xi_{L-1}; training ends at the first check with a loss of at most `target`."""

    draws: int = 20
    recipe: Recipe = Recipe()  # noqa: RUF009 - frozen
    hub_steps: int | None = None
    target: float = 0.0

    def bounds(self, objective: Objective, test: Objective | None, params: Params) -> SubnetworkBounds:
        """``subnetwork_bounds``, on fraction 1 - p of the units."""
        return subnetwork_bounds(
            objective, params, 1 - self.p, self.draws, self.seed,
            recipe=self.recipe, hub_steps=self.hub_steps, target=self.target, test=test,
        )  # fmt: skip


@dataclass(frozen=True)
class ExperimentB(_OnOneNetwork):
    """The best of `draws` random networks on fraction 1 - p of the units from layer l on, with its best scale."""

    draws: int = 200

    def bounds(self, objective: Objective, test: Objective | None, params: Params) -> SubnetworkBounds:
        """``dropout_bounds``, on fraction 1 - p of the units."""
        return dropout_bounds(objective, params, 1 - self.p, self.draws, self.seed, test=test)
