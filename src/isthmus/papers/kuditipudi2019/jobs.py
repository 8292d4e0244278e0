"""The jobs of the page on Kuditipudi et al. 2019 that are no pairs: subnetworks, losses, noise stability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from isthmus.connectors.noise_dropout import End
from isthmus.device import seeded_global
from isthmus.evaluate import profile
from isthmus.evaluate.chain import losses_of, require_hidden_chain
from isthmus.experiments.jobs import Network, On
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.paths import Path
from isthmus.stability.noise.measure import noise_stability
from isthmus.storage.tensors import save_tensors
from isthmus.structure.chain import Weights
from isthmus.structure.network_units import kept_count, random_units
from isthmus.sweep import Cell, Job

PAGE = "kuditipudi2019"
TABLES = ("layer_cushion", "minimal_interlayer_cushion", "activation_contraction", "interlayer_smoothness")
"""What Figures 3 and D.3 show of a layer, one number per example."""


@dataclass(frozen=True)
class Subnetworks(Cell):
    """Figure 2, left and centre: for each p the best of `draws` subnetworks with floor(n (1 - p)) units per layer.

    The outgoing weights of kept units are multiplied by 1 / (1 - p), those of dropped ones are zero. For the p in
    `lines` the straight segment to the best one is measured at `num_points` points.
    """

    page: ClassVar[str] = PAGE
    what: ClassVar[str] = "subnetworks of"

    end: Network | On
    ps: tuple[float, ...]
    draws: int = 20
    lines: tuple[float, ...] = (0.2,)
    num_points: int = 11

    def run(self, job: Job) -> Mapping[str, Any]:
        """Every draw's loss and error, the units of the best, the straight segments to it."""
        objective, _ = self.end.problem.objectives(job.device)
        theta = objective.check(self.end.params(job))
        generator = torch.Generator().manual_seed(self.end.seed)
        loss, error = objective.measure(theta)
        out: dict[str, Any] = {"loss": loss, "error": error, "p": {}}
        for p in self.ps:
            out["p"][str(p)] = self._at(objective, theta, p, generator)
        return out

    def _at(self, objective: Objective, theta: Params, p: float, generator: torch.Generator) -> dict[str, Any]:
        chain = require_hidden_chain(objective)
        sizes = {l: kept_count(chain.widths[l], 1 - p) for l in range(1, chain.L)}
        factors = dict.fromkeys(sizes, 1 / (1 - p))
        subsets = [random_units(chain.widths, sizes, generator) for _ in range(self.draws)]
        draws = [End(chain, theta, kept, factors, (0, 0)) for kept in subsets]
        measured = [_smaller_measure(objective, d) for d in draws]
        losses, errors = (list(column) for column in zip(*measured, strict=True))
        best = min(range(self.draws), key=lambda k: losses[k] if isfinite(losses[k]) else float("inf"))
        row = {
            "kept": [sizes[l] for l in sorted(sizes)],
            "losses": losses,
            "errors": errors,
            "best": {"draw": best, "loss": losses[best], "error": errors[best]},
            "units": {str(l): u.tolist() for l, u in draws[best].kept.items()},
        }
        return row | ({"line": self._line(objective, draws[best])} if p in self.lines else {})

    def _line(self, objective: Objective, end: End) -> dict[str, Any]:
        line = Path.through([end.theta, end.chain.write(end.dropped(), end.theta)])
        found = profile(objective, line, self.num_points)
        return {"t": found.t.tolist(), "loss": found.loss.tolist(), "error": found.error.tolist()}


def _smaller_measure(objective: Objective, end: End) -> tuple[float, float]:
    """Loss and error of theta_1, computed by the smaller network on its kept units alone."""
    chain, kept = end.chain, end.kept
    theta_1 = end.dropped()
    A: dict[int, Tensor] = {}
    b: dict[int, Tensor] = {}
    for l in range(1, chain.L + 1):
        rows = theta_1.A[l] if l == chain.L else theta_1.A[l][kept[l]]
        A[l] = rows if l == 1 else rows[:, kept[l - 1]]
        b[l] = theta_1.b[l] if l == chain.L else theta_1.b[l][kept[l]]
    return losses_of(objective, chain, chain.write(Weights(A, b), end.theta))


@dataclass(frozen=True)
class Losses(Cell):
    """Loss and error of a network on training and test examples; with `passes`, also while its dropout is active.

    `figure`: what the row is for, "2 right" or "text" (of section 6).
    """

    page: ClassVar[str] = PAGE
    what: ClassVar[str] = "losses of"

    end: Network | On
    figure: str
    passes: int = 0

    def run(self, job: Job) -> Mapping[str, Any]:
        """Measure; with dropout active each pass draws new units for every example, and the mean is kept."""
        sets = dict(zip(("train", "test"), self.end.problem.objectives(job.device), strict=True))
        theta = self.end.params(job)
        out: dict[str, Any] = {}
        for name, objective in sets.items():
            if objective is None:
                continue
            loss, error = objective.measure(objective.check(theta))
            out[name] = {"loss": loss, "error": error}
            if self.passes:
                out[name]["active"] = self._active(objective, theta)
        return out

    def _active(self, objective: Objective, theta: Params) -> dict[str, float]:
        module = self.end.problem.module(self.end.problem.dataset()).to(objective.device).eval()
        for layer in module.modules():
            if isinstance(layer, nn.Dropout | nn.Dropout2d):
                layer.train()
        x, y = objective.data
        assert isinstance(x, Tensor)  # noqa: S101 - the networks of this page have one input
        found = []
        with seeded_global(self.end.seed, objective.device), torch.no_grad():
            for _ in range(self.passes):
                parts = zip(x.split(objective.chunk), y.split(objective.chunk), strict=True)
                found.append(objective.of_outputs((functional_call(module, theta, (p,)), q) for p, q in parts))
        loss, error = (sum(column) / self.passes for column in zip(*found, strict=True))
        return {"loss": loss, "error": error}


@dataclass(frozen=True)
class Noise(Cell):
    """Figure 3, left, and D.3: the four quantities of noise stability for every layer and example."""

    page: ClassVar[str] = PAGE
    what: ClassVar[str] = "noise stability of"

    end: Network | On
    p: float = 0.5
    draws: int = 20

    def run(self, job: Job) -> Mapping[str, Any]:
        """Definitions 2 to 4; every example's numbers are in noise.safetensors, as ``layer_cushion/6``."""
        objective, _ = self.end.problem.objectives(job.device)
        found = noise_stability(objective, self.end.params(job), self.p, draws=self.draws, seed=self.end.seed)
        smoothness: dict[int, Tensor] = {}
        for (i, _j), rho in found.interlayer_smoothness.items():
            smoothness[i] = torch.minimum(smoothness[i], rho) if i in smoothness else rho
        tables: dict[str, Mapping[int, Tensor]] = {
            "layer_cushion": found.layer_cushion,
            "minimal_interlayer_cushion": found.minimal_interlayer_cushion,
            "activation_contraction": found.activation_contraction,
            "interlayer_smoothness": smoothness,
        }
        values = {f"{name}/{i}": v.contiguous() for name in TABLES for i, v in tables[name].items()}
        save_tensors(values, job.folder / "noise.safetensors", {"examples": str(len(found.output_norm))})
        return found.to_dict() | {"layers": found.d, "widths": list(found.widths)}
