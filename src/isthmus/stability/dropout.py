"""Dropout stability (Kuditipudi et al. 2019, Definition 1): good networks on at most half of the units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import floor

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from isthmus.errors import InputError
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.structure.chain import Chain, Weights

LARGEST_SCALE = 100.0
"""A subnetwork that separates the data has no finite optimal scale; the search stops here and says so."""


@dataclass(frozen=True, eq=False)
class Dropped:
    """theta_i of Definition 1: the network that keeps the units `kept` in layers `entry` .. L-1.

    Kept units of layer j have their outgoing weights multiplied by `factors[j]` (n_j / |kept_j|, or 1), those of
    the last hidden layer also by `scale`; biases stay. `loss` is the loss of this network, penalty left out.
    `separates`: the loss does not rise up to the largest scale that is searched, so no finite one is optimal.
    """

    entry: int
    kept: dict[int, Tensor]
    factors: dict[int, float]
    scale: float
    loss: float
    separates: bool

    def layers(self, theta: Weights, L: int) -> Weights:
        """Its weights in compact form: the rows of layer `entry` and all that follows, kept units only."""
        i = self.entry
        A = {i: theta.A[i][self.kept[i]]}
        b = {i: theta.b[i][self.kept[i]]}
        for j in range(i + 1, L):
            A[j] = theta.A[j][self.kept[j]][:, self.kept[j - 1]] * self.factors[j - 1]
            b[j] = theta.b[j][self.kept[j]]
        A[L] = theta.A[L][:, self.kept[L - 1]] * (self.factors[L - 1] * self.scale)
        b[L] = theta.b[L]
        return Weights(A, b)


def random_subsets(widths: dict[int, int], keep: float, generator: torch.Generator) -> dict[int, Tensor]:
    """A uniformly random subset of floor(keep * n) units (at least one) of every layer, ascending."""
    return {
        j: torch.randperm(n, generator=generator)[: max(1, floor(keep * n))].sort().values for j, n in widths.items()
    }


def search(
    objective: Objective,
    chain: Chain,
    params: Params,
    *,
    keep: float,
    masks: int,
    scale: str,
    generator: torch.Generator,
    progress: Callable[[int], None],
) -> dict[int, Dropped]:
    """For each entry layer i the best of `masks` random subsets, with its output scale: theta_1 .. theta_{L-1}.

    The features of layer i are computed once for all masks; a mask then runs a network of its own size.
    """
    if not 0 < keep <= 0.5:
        raise InputError("keep", expected="a number in (0, 1/2], as Definition 1 asks", got=keep)
    if scale not in ("output", "layer", "none"):
        raise InputError("scale", expected="'output', 'layer' or 'none'", got=repr(scale))
    x = objective.data[0]
    theta = chain.read(params)
    best: dict[int, Dropped] = {}
    h = x
    for i in range(1, chain.L):
        h = torch.cat([chain.through(params, part, i) for part in h.split(objective.chunk)])
        widths = {j: chain.widths[j] for j in range(i, chain.L)}
        for _ in range(masks):
            kept = random_subsets(widths, keep, generator)
            factors = {j: widths[j] / len(kept[j]) if scale != "none" else 1.0 for j in kept}
            trial = Dropped(i, kept, factors, 1.0, float("inf"), False)
            trial = _scaled(objective, chain, params, theta, h, trial, scale)
            if i not in best or trial.loss < best[i].loss:
                best[i] = trial
            progress(1)
    return best


def _scaled(
    objective: Objective, chain: Chain, params: Params, theta: Weights, h: Tensor, trial: Dropped, scale: str
) -> Dropped:
    """`trial` with its best output scale (for scale = "output") and its loss."""
    i, L = trial.entry, chain.L
    small = trial.layers(theta, L)
    del small.A[i], small.b[i]
    bias = small.b[L].sum(1)
    small.b[L] = torch.zeros_like(small.b[L])
    weights = chain.write(small, params)
    chunk = objective.chunk
    with torch.no_grad():
        z = torch.cat([chain.forward(weights, part[:, trial.kept[i]], i + 1) for part in h.split(chunk)]).double()
        y = objective.data[1]
        offset = bias.double().reshape(-1, *(1,) * (z.dim() - 2))

        def loss(s: float) -> float:
            return float(objective.example_losses(s * z + offset, y).double().mean())

        if scale != "output":
            return Dropped(i, trial.kept, trial.factors, 1.0, loss(1.0), False)
        found = minimize_scalar(loss, bounds=(-LARGEST_SCALE, LARGEST_SCALE), method="bounded", options={"xatol": 1e-6})
    s = float(found.x)
    separates = loss(LARGEST_SCALE if s > 0 else -LARGEST_SCALE) <= float(found.fun)
    return Dropped(i, trial.kept, trial.factors, s, float(found.fun), separates)
