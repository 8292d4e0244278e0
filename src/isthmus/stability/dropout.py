"""Dropout stability (Kuditipudi et al. 2019, Definition 1): good networks on at most half of the units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import floor

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.evaluate.network import size
from isthmus.evaluate.plan import cast_for
from isthmus.evaluate.screen import SHARE, TIMES, has_bf16
from isthmus.examples import single
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.stability.scales import best_scales, mean_losses
from isthmus.structure.chain import AFFINE, RESHAPE, Chain, Weights

WORTH_SCREENING = 1e9
"""Multiply-adds per mask above which a search asks whether bfloat16 is faster on this machine."""

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
    screen: bool | None = None,
) -> dict[int, Dropped]:
    """For each entry layer i the best of `masks` random subsets, with its output scale: theta_1 .. theta_{L-1}.

    The features of layer i are computed once for all masks; a mask then runs a network of its own size, and its outputs
    are kept while the scale is found, for many masks at once (`best_scales`). `screen`: run the masks in bfloat16
    first and again in the working precision where they may be the best; default: for large searches on a processor
    that has bfloat16, so that the same machine gives the same subsets every time.
    The subsets, losses and scales that are returned were computed in the working precision.
    """
    if not 0 < keep <= 0.5:
        raise InputError("keep", expected="a number in (0, 1/2], as Definition 1 asks", got=keep)
    if scale not in ("output", "layer", "none"):
        raise InputError("scale", expected="'output', 'layer' or 'none'", got=repr(scale))
    if screen is None:
        work = size(params) * objective.num_examples * keep**2
        screen = work >= WORTH_SCREENING and masks > 8 and has_bf16(objective.device)
    best: dict[int, Dropped] = {}
    h = single(objective.data[0])
    with torch.no_grad():
        for i in range(1, chain.L):
            h = torch.cat([chain.through(params, part, i) for part in h.split(objective.chunk)])
            widths = {j: chain.widths[j] for j in range(i, chain.L)}
            trials = []
            for _ in range(masks):
                kept = random_subsets(widths, keep, generator)
                factors = {j: widths[j] / len(kept[j]) if scale != "none" else 1.0 for j in kept}
                trials.append(Dropped(i, kept, factors, 1.0, float("inf"), False))
            entry = _Entry(objective, chain, params, chain.read(params), h, scale)
            best[i] = entry.flagged(entry.best_screened(trials, progress) if screen else entry.best(trials, progress))
    return best


@dataclass(frozen=True, eq=False)
class _Entry:
    """The features h of one layer, and the networks that read some of them."""

    objective: Objective
    chain: Chain
    params: Params
    theta: Weights
    h: Tensor
    scale: str

    def best(self, trials: Sequence[Dropped], progress: Callable[[int], None]) -> Dropped:
        """The trial of the lowest loss; the first of them."""
        return min(self.measured(trials, progress=progress), key=_loss)

    def best_screened(self, trials: Sequence[Dropped], progress: Callable[[int], None]) -> Dropped:
        """The same, each trial run in bfloat16, and in the working precision while it may be the best."""
        rough = [_loss(d) for d in self.measured(trials, torch.bfloat16, progress)]
        exact: dict[int, Dropped] = {}
        todo = [min(range(len(trials)), key=lambda m: rough[m])]
        while todo:
            exact |= dict(zip(todo, self.measured([trials[m] for m in todo]), strict=True))
            lowest = min(map(_loss, exact.values()))
            margin = TIMES * max(abs(d.loss - rough[m]) for m, d in exact.items()) + SHARE * abs(lowest)
            todo = [m for m in range(len(trials)) if m not in exact and not rough[m] > lowest + margin]
        return min((exact[m] for m in sorted(exact)), key=_loss)

    def measured(
        self,
        trials: Sequence[Dropped],
        dtype: torch.dtype | None = None,
        progress: Callable[[int], None] = lambda n: None,
    ) -> list[Dropped]:
        """The trials with their best scales and losses; as many at a time as memory allows."""
        dtype = dtype or self.objective.dtype
        h = self.h.to(dtype)
        each = 32 * self.objective.num_examples * self.chain.widths[self.chain.L]
        together = max(1, min(len(trials), self.objective.memory // each))
        out = []
        for k in range(0, len(trials), together):
            part = trials[k : k + together]
            z = self._products(part, h) if self._ends_here(part[0].entry) else self._outputs(part, h, progress)
            scales, losses = self._scaled(z)
            out += [replace(d, scale=s, loss=v) for d, s, v in zip(part, scales, losses, strict=True)]
            if self._ends_here(part[0].entry):
                progress(len(part))
        return out

    def flagged(self, found: Dropped) -> Dropped:
        """With a note whether its loss does not rise up to the largest scale."""
        if self.scale != "output":
            return found
        z = self._outputs([found], self.h, lambda n: None)
        wall = torch.tensor([LARGEST_SCALE if found.scale > 0 else -LARGEST_SCALE], dtype=z.dtype, device=z.device)
        return replace(found, separates=float(mean_losses(self.objective, z, self._offset, wall)) <= found.loss)

    @property
    def _offset(self) -> Tensor:
        return self.theta.b[self.chain.L].sum(1).double()

    def _scaled(self, z: Tensor) -> tuple[list[float], list[float]]:
        if self.scale == "output":
            s, losses = best_scales(self.objective, z, self._offset, LARGEST_SCALE)
        else:
            s = torch.ones(len(z), dtype=z.dtype, device=z.device)
            losses = mean_losses(self.objective, z, self._offset, s)
        return s.tolist(), losses.tolist()

    def _outputs(self, trials: Sequence[Dropped], h: Tensor, progress: Callable[[int], None]) -> Tensor:
        """The outputs without the output bias of each trial's small network, float64 [trials, N, ...]."""
        chain, out = self.chain, []
        for d in trials:
            small = d.layers(self.theta, chain.L)
            del small.A[d.entry], small.b[d.entry]
            small.b[chain.L] = torch.zeros_like(small.b[chain.L])
            weights = cast_for(self.objective.program, chain.write(small, self.params), h.dtype)
            index = d.kept[d.entry].to(h.device)
            parts = h.split(self.objective.chunk)
            out.append(
                torch.cat([chain.forward(weights, p.index_select(1, index), d.entry + 1) for p in parts]).double()
            )
            progress(1)
        return torch.stack(out)

    def _ends_here(self, entry: int) -> bool:
        """Whether one product gives the outputs from the features of the layer."""
        last = self.chain.layer(self.chain.L).nodes
        return entry == self.chain.L - 1 and all(n.op in (*RESHAPE, AFFINE[0]) for n in last)

    def _products(self, trials: Sequence[Dropped], h: Tensor) -> Tensor:
        """The same for the last hidden layer, all trials in one product: the columns of dropped units are zero."""
        L = self.chain.L
        A, parts = self.theta.A[L], []
        for d in trials:
            masked = torch.zeros_like(A)
            masked[:, d.kept[L - 1]] = A[:, d.kept[L - 1]] * d.factors[L - 1]
            parts.append(masked.flatten(1))
        together = torch.cat(parts).to(h.dtype).T
        rows = [(p.flatten(1) @ together).double() for p in h.split(self.objective.chunk)]
        return torch.cat(rows).unflatten(1, (len(trials), -1)).movedim(1, 0).contiguous()


def _loss(d: Dropped) -> float:
    """For comparison: NaN is never the best."""
    return d.loss if d.loss == d.loss else float("inf")
