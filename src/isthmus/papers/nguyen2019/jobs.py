"""The jobs of the page on Nguyen 2019: trained ends, paths inside sublevel sets, descents, rays, sketches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from isthmus.analysis.descend import descend
from isthmus.analysis.ray import ray
from isthmus.certify import Certificate, certify
from isthmus.certify.certify import BUDGET
from isthmus.connectors import Connection, connect
from isthmus.connectors.sublevel import Sublevel
from isthmus.errors import InputError
from isthmus.evaluate import Profile, profile
from isthmus.experiments.jobs import Network
from isthmus.objective import Objective
from isthmus.papers.nguyen2019.problems import BAD, PAGE, STARTS, Setting, spoil
from isthmus.papers.nguyen2019.sketches import SKETCHES, survey
from isthmus.params import Params
from isthmus.paths import Curve, Path
from isthmus.shown import largest
from isthmus.sweep import Cell, Job
from isthmus.training.fit import Recipe

_INSIDE = (0.25, 0.5, 0.75, 1.0)
"""Where on every segment the outputs are compared."""


@dataclass(frozen=True)
class _OnSamples(Cell):
    """Something constructed from one or two points of a perceptron. `start`: what they are, one of ``STARTS``."""

    page: ClassVar[str] = PAGE
    ends: ClassVar[int]

    setting: Setting
    start: str = "random"
    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise InputError("start", expected=f"one of {', '.join(STARTS)}", got=repr(self.start))

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.what} {self.setting.label}, {self.start}, seed {self.seed}"

    def needs(self) -> tuple[Network, ...]:
        """The ends that must be trained."""
        if self.start != "trained":
            return ()
        setting: Any = self.setting  # trains itself as a Problem does
        return tuple(Network(setting, seed, self.recipe) for seed in self._seeds)

    @property
    def _seeds(self) -> list[int]:
        return [self.ends * self.seed + i for i in range(self.ends)]

    def points(self, job: Job) -> list[Params]:
        """The points to start from."""
        if self.start == "trained":
            return [network.params(job) for network in self.needs()]
        found = [self.setting.random(s) for s in self._seeds]
        return [job.put(spoil(p, self.start) if self.start in BAD else p) for p in found]


@dataclass(frozen=True)
class Joined(_OnSamples):
    """A path inside a sublevel set by one theorem: constructed, measured at `num_points` per segment, proved."""

    what: ClassVar[str] = "path"
    ends: ClassVar[int] = 2
    theorem: str = "6.1"
    num_points: int = 21

    @property
    def label(self) -> str:
        """For people."""
        return f"Theorem {self.theorem} {super().label}"

    def run(self, job: Job) -> Mapping[str, Any]:
        """The path's numbers, its losses, and those of the straight line between the same ends."""
        objective = self.setting.objective(job.device)
        a, b = self.points(job)
        # the certificate below is the same; made here, it can be read
        found = connect(objective, a, b, Sublevel(theorem=self.theorem, prove=False), seed=self.seed)
        out = _about(found)
        if found.stats["theorem"] is None:
            return out
        proved = certify(objective, found, budget=BUDGET)
        measured = profile(objective, found.path, self.num_points)
        line = profile(objective, Path((Curve((a, b)),)), 4 * self.num_points)
        stats = found.stats
        return out | {
            "growth": stats["growth"],
            "conditions": stats["conditions"],
            "excess": largest((stats["excess"], measured.excess)),
            "invariance": invariance(objective, found.path, _joining(stats["segments"])),
            "certificate": _of_certificate(proved),
            "curve": _of_profile(measured),
            "line": _of_profile(line),
        }


def _joining(labels: Sequence[str]) -> int:
    """The segment on which the outputs move."""
    (at,) = [i for i, label in enumerate(labels) if label.startswith(("last layer (a)", "layers "))]
    return at


def invariance(objective: Objective, path: Path, joining: int) -> float | None:
    """The largest change of an output on the segments before and after the joining one, relative to the outputs there.

    Their outputs must be those of the start before, and those of the end after. None without such segments.
    """
    if len(path) == 1:
        return None
    worst = 0.0
    for i, segment in enumerate(path.segments):
        if i == joining:
            continue
        kept = objective.outputs(path.start if i < joining else path.end)
        scale = float(kept.abs().max()) or 1.0
        points = [segment.at(t) for t in _INSIDE]
        worst = largest((worst, *(float((objective.outputs(p) - kept).abs().max()) / scale for p in points)))
    return worst


def _about(found: Connection) -> dict[str, Any]:
    """What every construction says of itself."""
    return {
        "outcome": found.outcome.name,
        "theorem": found.stats["theorem"],
        "segments": list(found.stats["segments"]),
        "drift": found.stats.get("drift"),
        "premises": found.stats.get("premises"),
    }


def _of_certificate(proved: Certificate) -> dict[str, Any]:
    """Whether all is proved, the bound, the ends' losses, the kinds of claims."""
    finite = proved.bound if isfinite(proved.bound) else None
    return {"proved": proved.proved, "bound": finite, "ends": list(proved.ends), "claims": dict(proved.counts)}


def _of_profile(measured: Profile) -> dict[str, list[float]]:
    """The losses along a path."""
    return {"t": measured.t.tolist(), "loss": measured.loss.tolist()}


def rise(losses: Sequence[float]) -> float:
    """The largest loss less any earlier one.

    >>> rise([3.0, 1.0, 1.5, 0.0])
    0.5
    """
    lowest, worst = losses[0], 0.0
    for value in losses:
        lowest, worst = min(lowest, value), largest((worst, value - lowest))
    return worst


@dataclass(frozen=True)
class Descent(_OnSamples):
    """``descend`` from one point: the losses on the way, and a bound on them."""

    what: ClassVar[str] = "descend"
    ends: ClassVar[int] = 1
    tolerance: float = 1e-12
    num_points: int = 51

    def run(self, job: Job) -> Mapping[str, Any]:
        """The way down."""
        objective = self.setting.objective(job.device)
        (a,) = self.points(job)
        found = descend(objective, a, self.tolerance, seed=self.seed, prove=False)
        out = _about(found)
        if found.stats["theorem"] is None:
            return out
        proved = certify(objective, found.path, labels=found.stats["segments"], budget=BUDGET)
        measured = profile(objective, found.path, self.num_points)
        return out | {
            "growth": found.stats["growth"],
            "conditions": found.stats["conditions"],
            "loss": [objective.loss(a), objective.loss(found.path.end)],
            "rise": largest((found.stats["rise"], rise(measured.loss.tolist()))),
            "certificate": _of_certificate(proved),
            "curve": _of_profile(measured),
        }


@dataclass(frozen=True)
class Far(_OnSamples):
    """``ray`` from one point to weights of norm `size`: how much the loss changes on the way, and a bound on it."""

    what: ClassVar[str] = "ray"
    ends: ClassVar[int] = 1
    size: float = 1e6
    num_points: int = 21

    def run(self, job: Job) -> Mapping[str, Any]:
        """The way out; the weights' norms at its vertices."""
        objective = self.setting.objective(job.device)
        (a,) = self.points(job)
        found = ray(objective, a, self.size)
        proved = certify(objective, found.path, labels=found.stats["segments"], budget=BUDGET)
        measured = profile(objective, found.path, self.num_points)
        losses = measured.loss.tolist()
        norms = [float(torch.stack([_square(v) for v in p.values()]).sum().sqrt()) for p in found.path.knots]
        return _about(found) | {
            "norms": norms,
            "loss": losses[0],
            "change": largest((found.stats["change"], largest(losses) - min(losses))),
            "certificate": _of_certificate(proved),
        }


def _square(v: Tensor) -> Tensor:
    return v.double().square().sum()


@dataclass(frozen=True)
class Sketch(Cell):
    """One of the functions sketched in Figures 1 to 5, on a grid: minima, and components of its sublevel sets."""

    page: ClassVar[str] = PAGE

    figure: str
    points: int = 401

    def __post_init__(self) -> None:
        if self.figure not in SKETCHES:
            raise InputError("figure", expected=f"one of {', '.join(SKETCHES)}", got=repr(self.figure))

    @property
    def label(self) -> str:
        """For people."""
        return f"Figure {self.figure}, {self.points} points"

    def run(self, job: Job) -> Mapping[str, Any]:
        """Levels, components, minima, convexity; where gradient descent goes."""
        return asdict(survey(SKETCHES[self.figure], self.points))
