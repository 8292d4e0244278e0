"""The jobs of the page on Freeman & Bruna 2017 that are strings: networks taken down to levels, and their strings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from isthmus.analysis.straighten import straighten
from isthmus.certify import certify
from isthmus.connectors import StringSampling, connect
from isthmus.connectors.strings.threshold import Threshold
from isthmus.evaluate import profile
from isthmus.experiments.jobs import HOST
from isthmus.experiments.page import ended
from isthmus.objective import Objective
from isthmus.papers.freeman2017.problems import Images, Learned, cropped, start_of
from isthmus.params import Params, distance
from isthmus.paths import Path
from isthmus.storage import load_connection, load_params, save, save_params
from isthmus.sweep import Cell, Job
from isthmus.training.fit import Recipe, fit
from isthmus.training.memory import Beside, State, named, taken

PAGE = "freeman2017"


@lru_cache(maxsize=1)
def _objectives(problem: Learned, device: torch.device) -> tuple[Objective, Objective | None]:
    """Cells of one problem follow one another, and images take seconds to read."""
    return problem.objectives(device)


@dataclass(frozen=True)
class Judge:
    """What a level is on: a quantity, on training or test data, sampled at `points` of a segment to begin with."""

    quantity: str = "loss"
    on: str = "train"
    points: int = 11

    def threshold(self, problem: Learned, value: float, device: torch.device = HOST) -> tuple[Objective, Threshold]:
        """The training objective, and the set below `value`."""
        objective, test = _objectives(problem, device)
        judging = test if self.on == "test" and test is not None else objective
        return objective, Threshold(judging, self.quantity, value, self.points)


@dataclass(frozen=True)
class Ends(Cell):
    """One training from `seed`: its weights at the first check at or below each of the `levels`, from high to low."""

    page: ClassVar[str] = PAGE

    problem: Learned
    judge: Judge
    levels: tuple[float, ...]
    recipe: Recipe
    seed: int

    @property
    def label(self) -> str:
        """For people."""
        return f"train {self.problem.label} to {self.judge.quantity} {min(self.levels):g}, seed {self.seed}"

    @property
    def like(self) -> Ends:
        """The same to a level that is not reached."""
        return replace(self, levels=(-1.0,))

    def run(self, job: Job) -> Mapping[str, Any]:
        """Train to the lowest level; the weights of level i, where it was reached, are in level-i.safetensors."""
        objective, limit = self.judge.threshold(self.problem, min(self.levels), job.device)
        start = objective.check(job.put(start_of(self.problem, self.seed)))
        check = self.recipe.check or max(1, objective.num_examples // self.recipe.batch)
        watch = Crossings(limit, self.levels, check)
        generator = torch.Generator().manual_seed(self.seed)
        fitted = fit(
            self.batch_loss(objective, generator), watch.value, start, objective.num_examples,
            replace(self.recipe, check=check),
            generator=generator, target=min(self.levels),
            memory=Beside(job.memory("training"), watch.give, watch.take),
        )  # fmt: skip
        for i, params in watch.found.items():
            save_params(params, job.folder / f"level-{i}.safetensors", {"seed": str(self.seed)})
        reached = {str(i): row for i, row in watch.rows.items()}
        return {"reached": reached, "steps": fitted.steps, "best": fitted.loss, "outcome": fitted.ended.name}

    def batch_loss(self, objective: Objective, generator: torch.Generator) -> Callable[[Params, Tensor], Tensor]:
        """Of the objective, or of parts of the images at random places."""
        problem = self.problem
        if not isinstance(problem, Images) or problem.crop is None:
            return objective.batch_loss
        side, whole = problem.crop, problem.dataset().x_train.to(objective.device)

        def loss(params: Params, index: Tensor) -> Tensor:
            outputs = objective.forward(params, cropped(whole[index], side, generator))
            own = objective.example_losses(outputs, objective.data[1][index]).mean()
            penalty = objective.penalty
            return own if penalty is None else own + penalty(params, objective.parameter_names).to(own.dtype)

        return loss

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

    @property
    def like(self) -> Cell:
        """The training of one bead: networks that are hardly trained are at no level."""
        return replace(self.a.like, recipe=self.method.recipe)

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

    @property
    def like(self) -> None:
        """It depends on the string."""

    def run(self, job: Job) -> Mapping[str, Any]:
        """``certify``; nothing where no string was found."""
        stored = job.load(self.string)
        if ended(stored.result["outcome"]) != "CONSTRUCTED":
            return {"bound": None}
        objective, _ = self.string.a.problem.objectives(job.device)
        path = load_connection(stored.folder / "string.safetensors", job.device).path
        found = certify(objective, path, self.gap, budget=self.budget)
        return {"bound": found.bound if found.proved else None, "claims": found.counts}
