"""The jobs of the page on Freeman & Bruna 2017 that need no data: the counterexamples, and Theorem 2.4 by width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from isthmus.analysis.gap_by_width import gap_by_width
from isthmus.connectors import ConstrainedStringSampling, StringSampling, TwoLayerReLU, connect
from isthmus.counterexamples import gaussian_mixture, permutation
from isthmus.evaluate import profile
from isthmus.experiments.jobs import HOST
from isthmus.models import mlp, seeded
from isthmus.objective import Objective
from isthmus.objective.losses import L1
from isthmus.papers.freeman2017.jobs import PAGE
from isthmus.params import Params
from isthmus.paths import Path
from isthmus.storage import save
from isthmus.sweep import Cell, Job
from isthmus.training.fit import Recipe, fit


@dataclass(frozen=True)
class Disconnected(Cell):
    """A string asked for between the two solutions of a counterexample: "permutation" (D.1) or "mixture" (2.3.1)."""

    page: ClassVar[str] = PAGE

    example: str
    level: float
    method: StringSampling | ConstrainedStringSampling
    seed: int = 0

    @property
    def label(self) -> str:
        """For people."""
        return f"{type(self.method).__name__} counterexample {self.example}, level {self.level:g}"

    def run(self, job: Job) -> Mapping[str, Any]:
        """How it ended, and whether the string changes sides, as every path must."""
        example = permutation() if self.example == "permutation" else gaussian_mixture()
        method = replace(self.method, threshold=self.level)
        memory = job.memory("search")
        found = connect(example.objective, *example.minima, method, seed=self.seed, memory=memory)
        save(found, job.folder / "string.safetensors")
        out = {k: found.stats[k] for k in ("beads", "gradient_steps", "maximum")}
        sides = [example.side(p) for p in example.minima]
        return out | {
            "outcome": found.outcome.name,
            "threshold": example.threshold,
            "proved": self.example == "permutation",
            "sides": sides,
            "length": found.path.normalized_length,
            "dense": float(profile(example.objective, found.path, 101).max),
            "reached": found.stats.get("level"),
        }


@dataclass(frozen=True)
class PrintedMixture(Cell):
    """The mixture of section 2.3.1 as printed, Y = (X - mu_Z) Z in two dimensions, and a way between its two networks.

    The ends are two units that bisect the components, with the best output layer, and the same with the units
    exchanged. The way goes through output weights of zero: down from one end, the first layer across, up to the other.
    """

    page: ClassVar[str] = PAGE

    sigma: float = 0.1
    examples: int = 400

    @property
    def label(self) -> str:
        """For people."""
        return f"counterexample mixture, as printed, sigma {self.sigma:g}"

    def run(self, job: Job) -> Mapping[str, Any]:
        """The largest losses on this way and on the straight line."""
        repaired = gaussian_mixture(self.sigma, examples=self.examples)
        x: Any = repaired.objective.data[0]
        z = x[:, :1].sign()
        y = (x - torch.cat([z, torch.zeros_like(z)], 1)) * z
        objective = Objective(mlp((2, 2, 2)).double().eval(), "mse", (x, y))
        a, b = (self._end(end["0.weight"], x, y) for end in repaired.minima)
        low = [{k: v if k[0] == "0" else torch.zeros_like(v) for k, v in end.items()} for end in (a, b)]
        way, line = Path.through([a, *low, b]), Path.through([a, b])
        return {
            "ends": [objective.loss(a), objective.loss(b)],
            "largest": float(profile(objective, way, 101).max),
            "line": float(profile(objective, line, 101).max),
            "claimed": 0.5,
        }

    @staticmethod
    def _end(W: Tensor, x: Tensor, y: Tensor) -> Params:
        """Units of unit norm, and the output layer of the smallest squares."""
        W = W / W.norm(dim=1, keepdim=True)
        design = torch.cat([(x @ W.T).relu(), torch.ones_like(x[:, :1])], 1)
        solved = torch.linalg.lstsq(design, y).solution
        zero = torch.zeros(2, dtype=x.dtype)
        return {"0.weight": W, "0.bias": zero, "2.weight": solved[:2].T.contiguous(), "2.bias": solved[2]}


@dataclass(frozen=True)
class Gap(Cell):
    """Theorem 2.4 between two trained networks of m ReLU units: the bound of equation 10 and the loss on the path.

    sin(x_1 + x_2) on `examples` normal points, squared error, kappa |output weights|_1, first layers free.
    """

    page: ClassVar[str] = PAGE

    m: int
    seed: int
    kappa: float = 1e-3
    examples: int = 200
    steps: int = 2000
    method: TwoLayerReLU = TwoLayerReLU()  # noqa: RUF009 - frozen

    @property
    def label(self) -> str:
        """For people."""
        return f"Theorem 2.4, m = {self.m}, seed {self.seed}"

    def run(self, job: Job) -> Mapping[str, Any]:
        """``gap_by_width`` at this width."""
        (row,) = gap_by_width(partial(self.ends, device=job.device), [self.m], self.method, seed=self.seed)
        return asdict(row) | {"gap": row.gap, "excess": row.excess}

    def ends(self, m: int, device: torch.device = HOST) -> tuple[Objective, Params, Params]:
        """The objective and two networks trained from their own seeds."""
        x = torch.randn(self.examples, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        net = mlp((2, m, 1), bias=False).double()
        y = torch.sin(x.sum(1, keepdim=True))
        data = (x.to(device), y.to(device))
        objective = Objective(net.eval(), "mse", data, penalty=L1(self.kappa, ("2.weight",)))
        out = []
        for seed in (2 * self.seed, 2 * self.seed + 1):
            made = seeded(lambda: mlp((2, m, 1), bias=False).double(), seed).state_dict()
            recipe = Recipe(lr=1e-2, steps=self.steps, batch=self.examples, check=50)
            generator = torch.Generator().manual_seed(seed)
            start = {k: v.to(device) for k, v in made.items()}
            found = fit(objective.batch_loss, objective.loss, start, self.examples, recipe, generator=generator)
            out.append(found.params)
        return objective, out[0], out[1]
