"""The jobs of the page on Nguyen, Brechet, Mondelli 2021: Experiments A and B, and the path through A's networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from isthmus.analysis.subnetwork_bounds import LayerBound, SubnetworkBounds, dropout_bounds, subnetwork_bounds
from isthmus.connectors import Connection, Outcome
from isthmus.connectors.subnetwork.method import build
from isthmus.errors import InputError
from isthmus.evaluate.chain import require_hidden_chain
from isthmus.experiments.jobs import Network, Problem, report
from isthmus.params import Params
from isthmus.pipeline import examples_of
from isthmus.storage.tensors import read_tensors, save_tensors
from isthmus.structure.chain import Weights
from isthmus.sweep import Cell, Job
from isthmus.training.fit import Recipe

PAGE = "nguyen2021"
_FILE = "xi.safetensors"


@dataclass(frozen=True)
class ExperimentA(Cell):
    """Trained subnetworks xi_0 .. xi_{L-1} on a fraction 1 - p of the units.

    Training ends at the first check with a loss of at most `target`; with `looks_from`, as printed, at the first check
    from that step on without an error on the training examples. `init`: from the network's own weights, or anew.
    `layers`: only these l; all if there are none. With `keeps` the best xi_l are kept in a file.
    """

    page: ClassVar[str] = PAGE

    network: Network
    p: float = 0.5
    seed: int = 0
    draws: int = 20
    recipe: Recipe = Recipe()  # noqa: RUF009 - frozen
    hub_steps: int | None = None
    target: float = 0.0
    init: Literal["theta", "random"] = field(default="theta", metadata={"later": True})
    looks_from: int | None = field(default=None, metadata={"later": True})
    layers: tuple[int, ...] = field(default=(), metadata={"later": True})
    keeps: bool = field(default=False, metadata={"later": True})

    @property
    def label(self) -> str:
        """For people."""
        return super().label + (f", layers {', '.join(map(str, self.layers))}" if self.layers else "")

    def run(self, job: Job) -> Mapping[str, Any]:
        """Loss and error of every layer's best subnetwork, on training and test data, beside the network's own."""
        objective, test = self.network.problem.objectives(job.device)
        found = subnetwork_bounds(
            objective, self.network.params(job), 1 - self.p, self.draws, self.seed,
            init=self.init, recipe=self.recipe, hub_steps=self.hub_steps, target=self.target,
            looks_from=self.looks_from, layers=self.layers or None, test=test, memory=job.memory("xi"),
        )  # fmt: skip
        if self.keeps:
            save_tensors(_packed(found), job.folder / _FILE, {"seed": str(self.seed)})
        return found.to_dict()

    def subnetworks(self, job: Job) -> dict[int, tuple[Tensor, Weights]]:
        """By layer the units that the best xi_l reads, and its weights."""
        tensors, _ = read_tensors(job.load(self).folder / _FILE)
        out: dict[int, tuple[Tensor, Weights]] = {}
        for name, held in tensors.items():
            l, _, what = name.partition("/")
            if what == "reads":
                parts = {k: {int(n.rpartition("/")[2]): job.put({"": v})[""] for n, v in tensors.items()
                             if n.startswith(f"{l}/{k}/")} for k in "Ab"}  # fmt: skip
                out[int(l)] = held, Weights(parts["A"], parts["b"])
        return out


def _packed(found: SubnetworkBounds) -> Params:
    return {k: v for row in found.layers for k, v in _packed_row(row).items()}


def _packed_row(row: LayerBound) -> Params:
    weights = {"A": row.weights.A, "b": row.weights.b}
    named = {f"{row.layer}/{k}/{p}": v.contiguous() for k, group in weights.items() for p, v in group.items()}
    return {f"{row.layer}/reads": row.reads.cpu(), **named}


@dataclass(frozen=True)
class ExperimentB(Cell):
    """The best of `draws` random networks on fraction 1 - p of the units from layer l on, with its best scale.

    With `rescale` every layer is scaled by n / kept before, which the paper does not have.
    """

    page: ClassVar[str] = PAGE

    network: Network
    p: float = 0.5
    seed: int = 0
    draws: int = 200
    rescale: bool = field(default=True, metadata={"later": True})

    def run(self, job: Job) -> Mapping[str, Any]:
        """As of ``ExperimentA``."""
        objective, test = self.network.problem.objectives(job.device)
        params = self.network.params(job)
        return dropout_bounds(
            objective, params, 1 - self.p, self.draws, self.seed, rescale=self.rescale, test=test
        ).to_dict()


@dataclass(frozen=True)
class PathA(Cell):
    """Figure 3 (d), path (A): that of Theorem 4.1 through the subnetworks of Experiment A on two networks."""

    page: ClassVar[str] = PAGE

    a: ExperimentA
    b: ExperimentA
    num_points: int = 21
    budget: float = 0

    def __post_init__(self) -> None:
        if self.problem != self.b.network.problem or not (self.a.keeps and self.b.keeps):
            raise InputError("a, b", expected="experiments on one problem that keep their subnetworks", got=repr(self))

    @property
    def problem(self) -> Problem:
        """Of both ends."""
        return self.a.network.problem

    @property
    def label(self) -> str:
        """For people."""
        return f"path (A) of {self.problem.label}, seeds {self.a.network.seed} - {self.b.network.seed}"

    def run(self, job: Job) -> Mapping[str, Any]:
        """Build, measure and certify, as a ``Pair`` does."""
        objective, test = self.problem.objectives(job.device)
        chain = require_hidden_chain(objective)
        ends = [objective.check(end.network.params(job)) for end in (self.a, self.b)]
        xi = [end.subnetworks(job) for end in (self.a, self.b)]
        held = [{l: reads for l, (reads, _) in end.items() if l} for end in xi]
        weights = [{l: w for l, (_, w) in end.items()} for end in xi]
        path, labels = build(chain, held[0], held[1], ends[0], ends[1], weights)
        about = {"model": self.problem.model, "data": self.problem.data, "test": examples_of(test), "segments": labels}
        found = Connection(path, ends[1], Outcome.CONSTRUCTED, about)
        return report(job, objective, test, found, self.a.seed, self.num_points, self.budget)
