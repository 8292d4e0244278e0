"""The jobs of the page on Freeman & Bruna 2017 that are strings: networks taken down to levels, and their strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from isthmus.analysis.straighten import straighten
from isthmus.certify import certify
from isthmus.connectors import StringSampling, connect
from isthmus.connectors.strings.threshold import Threshold
from isthmus.evaluate import profile
from isthmus.experiments.jobs import HOST, Problem
from isthmus.experiments.page import ended
from isthmus.models import mlp, seeded
from isthmus.objective import Objective
from isthmus.params import Params, distance
from isthmus.paths import Path
from isthmus.storage import load_connection, load_params, save, save_params
from isthmus.sweep import Cell, Job
from isthmus.training.fit import Recipe, fit
from isthmus.training.memory import Beside, State, named, taken

PAGE = "freeman2017"
_COEFFICIENTS = {"quadratic": (0.1, 0.25, 0.5), "cubic": (0.0, 3.0, -10.0, 8.0)}
"""Of 1, x, x^2, ... (section 4.1)."""


def absolute(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean absolute error of every example, as in the program of the paper's authors.

    >>> absolute(torch.tensor([[1.0], [-2.0]]), torch.zeros(2, 1))
    tensor([1., 2.])
    """
    return (outputs - y).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class Polynomial:
    """A polynomial on `examples` equidistant points of [0, 1], and a 1-4-4-1 sigmoid network in float64.

    `closed`: without biases, and with a sigmoid after the last layer too. `loss`: "absolute" or "squared", the mean.
    """

    name: str
    loss: str = "absolute"
    closed: bool = False
    examples: int = 200

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.name}, {self.loss} error"

    def module(self, seed: int) -> nn.Sequential:
        """The network with the weights of that seed."""
        net = seeded(lambda: mlp((1, 4, 4, 1), bias=not self.closed, activation="sigmoid"), seed).double()
        return nn.Sequential(*net, nn.Sigmoid()) if self.closed else net

    def start(self, seed: int) -> Params:
        """These weights."""
        return {k: v.detach() for k, v in self.module(seed).state_dict().items()}

    def objectives(self, device: torch.device = HOST) -> tuple[Objective, Objective | None]:
        """On the points; there are no others to test on."""
        x = torch.linspace(0, 1, self.examples, dtype=torch.float64)[:, None].to(device)
        y = sum((c * x**k for k, c in enumerate(_COEFFICIENTS[self.name])), torch.zeros_like(x))
        if self.loss == "squared":
            return Objective(self.module(0).eval(), "mse", (x, y)), None
        return Objective(self.module(0).eval(), absolute, (x, y), convex=True), None


def _start_of(problem: Problem | Polynomial, seed: int) -> Params:
    """The weights that training starts from."""
    if isinstance(problem, Polynomial):
        return problem.start(seed)
    return {k: v.detach() for k, v in problem.module(problem.dataset(), seed).state_dict().items()}


@lru_cache(maxsize=1)
def _objectives(problem: Problem | Polynomial, device: torch.device) -> tuple[Objective, Objective | None]:
    """Cells of one problem follow one another, and images take seconds to read."""
    return problem.objectives(device)


@dataclass(frozen=True)
class Judge:
    """What a level is on: a quantity, on training or test data, sampled at `points` of a segment to begin with."""

    quantity: str = "loss"
    on: str = "train"
    points: int = 11

    def threshold(
        self, problem: Problem | Polynomial, value: float, device: torch.device = HOST
    ) -> tuple[Objective, Threshold]:
        """The training objective, and the set below `value`."""
        objective, test = _objectives(problem, device)
        judging = test if self.on == "test" and test is not None else objective
        return objective, Threshold(judging, self.quantity, value, self.points)


@dataclass(frozen=True)
class Ends(Cell):
    """One training from `seed`: its weights at the first check at or below each of the `levels`, from high to low."""

    page: ClassVar[str] = PAGE

    problem: Problem | Polynomial
    judge: Judge
    levels: tuple[float, ...]
    recipe: Recipe
    seed: int

    @property
    def label(self) -> str:
        """For people."""
        return f"train {self.problem.label} to {self.judge.quantity} {min(self.levels):g}, seed {self.seed}"

    def run(self, job: Job) -> Mapping[str, Any]:
        """Train to the lowest level; the weights of level i, where it was reached, are in level-i.safetensors."""
        objective, limit = self.judge.threshold(self.problem, min(self.levels), job.device)
        start = objective.check(job.put(_start_of(self.problem, self.seed)))
        check = self.recipe.check or max(1, objective.num_examples // self.recipe.batch)
        watch = Crossings(limit, self.levels, check)
        fitted = fit(
            objective.batch_loss, watch.value, start, objective.num_examples, replace(self.recipe, check=check),
            generator=torch.Generator().manual_seed(self.seed), target=min(self.levels),
            memory=Beside(job.memory("training"), watch.give, watch.take),
        )  # fmt: skip
        for i, params in watch.found.items():
            save_params(params, job.folder / f"level-{i}.safetensors", {"seed": str(self.seed)})
        reached = {str(i): row for i, row in watch.rows.items()}
        return {"reached": reached, "steps": fitted.steps, "best": fitted.loss, "outcome": fitted.ended.name}

    def params(self, job: Job, level: float) -> Params | None:
        """The weights at that level; None where it was not reached."""
        i, found = self.levels.index(level), job.load(self)
        reached = str(i) in found.result["reached"]
        return job.put(load_params(found.folder / f"level-{i}.safetensors")) if reached else None


class Crossings:
    """The first parameters at or below each level, seen while a fit asks for values."""

    def __init__(self, limit: Threshold, levels: tuple[float, ...], check: int) -> None:
        self.limit, self.levels, self.check = limit, levels, check
        self.looks = 0
        self.found: dict[int, Params] = {}
        self.rows: dict[int, dict[str, float]] = {}

    def value(self, params: Params) -> float:
        """The judged quantity, as a check of the fit asks for it."""
        value = self.limit.of(params)
        for i, level in enumerate(self.levels):
            if value <= level and i not in self.found:
                self.found[i] = {k: v.detach().clone() for k, v in params.items()}
                self.rows[i] = {"level": level, "value": value, "step": self.looks * self.check}
        self.looks += 1
        return value

    def give(self) -> State:
        """What was crossed, for a memory."""
        crossed = {k: v for i, p in self.found.items() for k, v in named(str(i), p).items()}
        return crossed, {"looks": self.looks, "rows": {str(i): row for i, row in self.rows.items()}}

    def take(self, tensors: Params, values: Mapping[str, Any]) -> None:
        """What a memory kept."""
        self.looks, self.rows = values["looks"], {int(i): row for i, row in values["rows"].items()}
        self.found = {i: taken(tensors, str(i)) for i in self.rows}


@dataclass(frozen=True)
class String(Cell):
    """A string between two networks of the same `level`: every segment below `reach` times the level.

    `method` holds the rest; its beads go to alpha * reach * level. With `dense` the judged quantity is also measured at
    so many points of each segment of the result, and with `passes` the string is straightened.
    """

    page: ClassVar[str] = PAGE

    figure: str
    task: str
    a: Ends
    b: Ends
    level: float
    reach: float
    method: StringSampling
    dense: int = 0
    passes: int = 0

    @property
    def label(self) -> str:
        """For people."""
        return f"string {self.figure}, {self.task}, level {self.level:g}, seeds {self.a.seed} - {self.b.seed}"

    def run(self, job: Job) -> Mapping[str, Any]:
        """Connect and measure; a search that was killed goes on. The string is in string.safetensors."""
        a, b = self.a.params(job, self.level), self.b.params(job, self.level)
        if a is None or b is None:
            return {"outcome": "END_NOT_TRAINED"}
        judge, problem = self.a.judge, self.a.problem
        objective, limit = judge.threshold(problem, self.reach * self.level, job.device)
        method = replace(
            self.method, threshold=limit.value, quantity=judge.quantity, on=judge.on, points=judge.points
        )  # fmt: skip
        test = limit.objective if method.judged else None
        found = connect(objective, a, b, method, seed=self.a.seed, test=test, memory=job.memory("search"))
        save(found, job.folder / "string.safetensors")
        out = {k: found.stats[k] for k in ("beads", "depth", "gradient_steps", "evaluations", "maximum", "rounds")}
        out |= {
            "outcome": found.outcome.name,
            "limit": limit.value,
            "ends": [limit.of(a), limit.of(b)],
            "line": found.stats["rounds"][0]["maximum"],
            "distance": distance(a, b),
            "length": found.path.normalized_length,
            "weights_length": _weights_length(found.path),
        }
        if self.dense:
            measured = profile(limit.objective, found.path, self.dense)
            values = measured.error if judge.quantity == "error" else measured.loss
            out["dense"] = float(values.max().exp() if judge.quantity == "perplexity" else values.max())
        if self.passes and found.outcome.ok:
            short = straighten(
                limit.objective, found.path, limit.value,
                quantity=judge.quantity, points=judge.points, passes=self.passes,
            )  # fmt: skip
            out["straightened"] = short.after
        return out


def _weights_length(path: Path) -> float:
    """The normalised length counted on the weights alone, without the biases.

    >>> knots = [{"0.weight": torch.tensor([w]), "0.bias": torch.tensor([w * w])} for w in (0.0, 1.0, 2.0)]
    >>> _weights_length(Path.through(knots))
    1.0
    """
    knots = [{k: v for k, v in p.items() if "bias" not in k} for p in path.knots]
    return sum(distance(p, q) for p, q in pairwise(knots)) / distance(knots[0], knots[-1])


@dataclass(frozen=True)
class Proof(Cell):
    """A stored string of a loss that can be bounded, proved: the certified bound of the training loss on all of it."""

    page: ClassVar[str] = PAGE
    what: ClassVar[str] = "proof of"

    string: String
    gap: float = 0.01
    budget: int = 200

    def run(self, job: Job) -> Mapping[str, Any]:
        """``certify``; nothing where no string was found."""
        stored = job.load(self.string)
        if ended(stored.result["outcome"]) != "CONSTRUCTED":
            return {"bound": None}
        objective, _ = self.string.a.problem.objectives(job.device)
        path = load_connection(stored.folder / "string.safetensors", job.device).path
        found = certify(objective, path, self.gap, budget=self.budget)
        return {"bound": found.bound if found.proved else None, "claims": found.counts}
