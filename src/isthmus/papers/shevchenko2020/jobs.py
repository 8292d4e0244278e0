"""The jobs of the page on Shevchenko and Mondelli 2020: trials of one width, and paths between their solutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from isthmus.certify import certify
from isthmus.connectors import Linear, MeanField, connect
from isthmus.errors import InputError
from isthmus.evaluate import Profile, profile
from isthmus.models import mean_field_init
from isthmus.models.train_mean_field import mean_field_trials
from isthmus.objective import Objective
from isthmus.papers.shevchenko2020.tasks import Examples, Schedule, Task
from isthmus.params import Params
from isthmus.stability.dropout.pattern import PatternStability, pattern_stability
from isthmus.storage import load_params, save_params
from isthmus.sweep import Cell, Job

PAGE = "shevchenko2020"
_BINS = 80
"""Of the histograms of Figure 3."""


@dataclass(frozen=True)
class Trials(Cell):
    """Trainings of one width from several seeds, stacked, judged in between with all and with half of the units.

    Judged at 0, at the fraction `middle` of T, at T and at the further fractions of `grid`. `keeps`: at the end also
    with the first M units, for these M. `saved`: the final weights of so many trials (the first ones) are kept in
    files, for paths. Losses are population risks, estimated on test examples.
    """

    page: ClassVar[str] = PAGE

    task: Task
    N: int
    schedule: Schedule
    seeds: tuple[int, ...]
    init: str = "unimodal"
    middle: float = 0.7
    grid: tuple[float, ...] = ()
    keeps: tuple[int, ...] = ()
    saved: int = 0

    def __post_init__(self) -> None:
        if not self.seeds:
            raise InputError("seeds", expected="at least one", got="none")
        if self.N < 2:
            raise InputError("N", expected="at least 2 units", got=self.N)
        if not all(0 < f < 1 for f in (self.middle, *self.grid)):
            raise InputError("middle, grid", expected="numbers in (0, 1)", got=(self.middle, *self.grid))
        if not all(1 <= M < self.N for M in self.keeps):
            raise InputError("keeps", expected=f"numbers from 1 to {self.N - 1}", got=self.keeps)
        if not 0 <= self.saved <= len(self.seeds):
            raise InputError("saved", expected=f"0 to {len(self.seeds)} trials", got=self.saved)

    @property
    def fractions(self) -> tuple[float, ...]:
        """Of T, at which the networks are judged."""
        return tuple(sorted({0.0, self.middle, 1.0, *self.grid}))

    @property
    def label(self) -> str:
        """For people."""
        first, last = self.seeds[0], self.seeds[-1]
        seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
        return f"train {self.task.label}, N = {self.N}, {self.init}, {seeds}"

    @property
    def like(self) -> Trials:
        """The same with the steps of its own width, whatever those of others are."""
        step, steps = self.schedule.at(self.N)
        return replace(self, schedule=Schedule(step, steps, self.schedule.batch))

    def run(self, job: Job) -> Mapping[str, Any]:
        """Train all trials as one problem, judge each, keep the weights of the first."""
        examples = self.task.read(job)
        objective = examples.objective(self.task, self.N)
        step, steps = self.schedule.at(self.N)
        times = {f: round(f * steps) * step for f in self.fractions}
        found = mean_field_trials(
            examples.network(self.task, self.N), examples.sample(self.task),
            step=step, time=steps * step, batch=self.schedule.batch, seeds=self.seeds, times=tuple(times.values()),
            loss="square" if self.task.gaussian else "cross_entropy", start=self.init,
        )  # fmt: skip
        judged = {f: found[t] for f, t in times.items()}
        trials = [self._trial(k, judged, objective, examples) for k in range(len(self.seeds))]
        about = {"task": self.task.label, "N": str(self.N), "init": self.init}
        for k in range(self.saved):
            save_params(judged[1.0][k], job.folder / f"{self.seeds[k]}.safetensors", about)
        widths = list(self.task.widths(examples, self.N))
        return {"T": self.schedule.T, "step": step, "steps": steps, "widths": widths, "trials": trials}

    def _trial(
        self, k: int, judged: Mapping[float, list[Params]], objective: Objective, examples: Examples
    ) -> Mapping[str, Any]:
        """At every fraction of T the whole network and its first half; at the end also the `keeps`."""
        at = {str(f): _as_row(pattern_stability(objective, p[k], self.N // 2)) for f, p in judged.items()}
        end = judged[1.0][k]
        kept = {str(M): _as_row(pattern_stability(objective, end, M)) for M in self.keeps}
        training = None if examples.training is None else objective.on(examples.training).loss(end)
        return {"seed": self.seeds[k], "at": at, "kept": kept, "training_loss": training}

    def params(self, job: Job, seed: int) -> Params:
        """The final weights of a trial that was saved."""
        return job.put(load_params(job.load(self).folder / f"{seed}.safetensors"))


@dataclass(frozen=True)
class Starts(Cell):
    """The beginning of training alone, for more seeds than are trained: there half of the units change little."""

    page: ClassVar[str] = PAGE

    task: Task
    N: int
    seeds: tuple[int, ...]
    init: str = "unimodal"

    @property
    def label(self) -> str:
        """For people."""
        return f"starts of {self.task.label}, N = {self.N}, {self.init}, {len(self.seeds)} seeds"

    def run(self, job: Job) -> Mapping[str, Any]:
        """Judge the weights that training from these seeds begins with."""
        examples = self.task.read(job)
        objective, module = examples.objective(self.task, self.N), examples.network(self.task, self.N)
        begins = ((seed, mean_field_init(module, self.init, seed)) for seed in self.seeds)
        return {"trials": [{"seed": s, **_as_row(pattern_stability(objective, p, self.N // 2))} for s, p in begins]}


def _as_row(found: PatternStability) -> dict[str, float]:
    """What `pattern_stability` found, as plain numbers."""
    return {
        "loss": found.loss,
        "error": found.error,
        "dropped_loss": found.dropped_loss,
        "dropped_error": found.dropped_error,
    }


@dataclass(frozen=True)
class Paths(Cell):
    """``MeanField`` between final weights: for each of `pairs` a trial of `a` and one of `b`, by their seeds.

    The path and the straight line are measured and certified on the examples that estimate the population risk. Of the
    first pair the curves and, layer by layer, the histograms of the weights are kept.
    """

    page: ClassVar[str] = PAGE

    a: Trials
    b: Trials
    pairs: tuple[tuple[int, int], ...]
    method: MeanField = field(default_factory=MeanField)
    num_points: int = 21

    def __post_init__(self) -> None:
        if (self.a.task, self.a.N) != (self.b.task, self.b.N):
            raise InputError("b", expected=f"trials of {self.a.task.label}, N = {self.a.N}", got=self.b.label)
        for trials, seeds in zip((self.a, self.b), zip(*self.pairs, strict=True), strict=True):
            if missing := set(seeds) - set(trials.seeds[: trials.saved]):
                raise InputError("pairs", expected=f"saved seeds of {trials.label}", got=sorted(missing))

    @property
    def label(self) -> str:
        """For people."""
        ends = f"{self.a.init} to {self.b.init}"
        return f"paths {self.a.task.label}, N = {self.a.N}, {ends}, {len(self.pairs)} pairs"

    def run(self, job: Job) -> Mapping[str, Any]:
        """Connect, measure and prove every pair."""
        objective = self.a.task.read(job).objective(self.a.task, self.a.N)
        out: dict[str, Any] = {"pairs": []}
        for i, (s, t) in enumerate(self.pairs):
            ends = self.a.params(job, s), self.b.params(job, t)
            row, measured, line = self._pair(objective, *ends)
            out["pairs"].append({"seeds": [s, t], **row})
            if i == 0:
                out["curve"], out["line"] = _curve_of(measured), _curve_of(line)
                out["weights"] = _histograms(*ends)
        return out

    def _pair(self, objective: Objective, a: Params, b: Params) -> tuple[dict[str, Any], Profile, Profile]:
        found = connect(objective, a, b, self.method, seed=0)
        straight = connect(objective, a, b, Linear(), seed=0)
        measured = profile(objective, found.path, self.num_points)
        line = profile(objective, straight.path, self.num_points)
        proved = certify(objective, found.path, budget=0, labels=found.stats["segments"])
        row = {
            "segments": len(found.path),
            "normalized_length": found.path.normalized_length,
            "barriers": {k: asdict(v) for k, v in measured.barriers.items()},
            "ends": [objective.measure(p) for p in (a, b)],
            "halved": found.stats["halved"],
            "line": {k: asdict(v) for k, v in line.barriers.items()},
            "bound": proved.bound,
            "proved": proved.proved,
            "claims": [s.claim for s in proved.segments],
            "distances": {k: distribution_distance(a[k], b[k]) for k in _weight_names(a)},
        }
        return row, measured, line


def _curve_of(measured: Profile) -> dict[str, list[float]]:
    """t, loss and error along a path."""
    return {"t": measured.t.tolist(), "loss": measured.loss.tolist(), "error": measured.error.tolist()}


def _weight_names(params: Params) -> list[str]:
    """The weight matrices, first layer first."""
    return [k for k in params if k.endswith("weight")]


def _histograms(a: Params, b: Params) -> list[dict[str, Any]]:
    """For each layer the histograms of its weights at both ends, on common edges; the counts hold every weight."""
    out = []
    for name in _weight_names(a):
        values = [p[name].double().cpu().flatten() for p in (a, b)]
        low, high = (float(f(torch.stack([f(v) for v in values]))) for f in (torch.amin, torch.amax))
        high = high if high > low else low + 1.0
        counts = [torch.histc(v, _BINS, low, high).long().tolist() for v in values]
        edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64).tolist()
        out.append({"name": name, "edges": edges, "a": counts[0], "b": counts[1]})
    return out


def distribution_distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of the distribution functions of two tensors' entries; 0 for any permutation of them.

    >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> distribution_distance(x, x.flip(0)), distribution_distance(x, x + 1), distribution_distance(x, x + 9)
    (0.0, 0.25, 1.0)
    """
    u, v = (t.flatten().double().cpu().sort().values for t in (a, b))
    at = torch.cat([u, v])
    F, G = ((torch.searchsorted(s, at, right=True)) / len(s) for s in (u, v))
    return float((F - G).abs().max())
