"""Dropout stability (Kuditipudi et al. 2019, Definition 1): good networks on at most half of the units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from isthmus.errors import InputError
from isthmus.evaluate.network import size
from isthmus.evaluate.plan import cast_for
from isthmus.evaluate.screen import SHARE, TIMES, has_bf16
from isthmus.objective import Objective
from isthmus.objective.data import single
from isthmus.params import Params
from isthmus.program.export import Program
from isthmus.stability.dropout.dropped import Dropped
from isthmus.stability.dropout.scales import best_scales, broadcast, mean_losses, smallest_scale
from isthmus.stability.dropout.subsets import SEARCHES, Budget, Scores, check_choice, random_subsets, rescaling
from isthmus.structure.chain import RESHAPE, Chain, Weights
from isthmus.structure.network_units import Units
from isthmus.training.progress import Progress, no_progress

WORTH_SCREENING = 1e9
"""Multiply-adds per mask above which a search asks whether bfloat16 is faster on this machine."""

LARGEST_SCALE = 100.0
"""A subnetwork that separates the data has no finite optimal scale; the search stops here and says so."""

SCALES = ("output", "each", "layer", "none")
"""What the kept outputs are multiplied by: n / kept and the best factor of the outputs; the best factors of every layer
(the footnote of Definition 1); n / kept alone; nothing."""
_ALONE = "alone"
"""The best factor of the outputs without n / kept, as in Experiment B of Nguyen, Brechet, Mondelli 2021."""
_SCALED = ("output", "each", _ALONE)
"""Those that search a factor of the outputs."""


@dataclass(frozen=True)
class Sought:
    """What a search is asked for: for each entry layer the best network on floor(keep n) units per layer.

    The price is that of `masks` evaluations. `by`: one of ``SEARCHES``, `scale`: one of ``SCALES``. `enough`: a loss
    below which nothing is gained: output scales that reach a lower one are made smaller (not below 1). `screen`, for
    random subsets: run them in bfloat16 first and again in the working precision where they may be the best; default:
    for large searches on a processor that has bfloat16, so that the same machine gives the same subsets every time.
    """

    keep: float
    masks: int
    scale: str = "output"
    by: str = "random"
    enough: float | None = None
    screen: bool | None = None

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError("keep", expected="a number in (0, 1]; Definition 1 asks for at most 1/2", got=self.keep)
        if self.masks < 1:
            raise InputError("masks", expected="at least 1 subset per layer", got=self.masks)
        check_choice("scale", self.scale, (*SCALES, _ALONE))
        check_choice("search", self.by, SEARCHES)

    def screened(self, objective: Objective, params: Params) -> bool:
        """Whether subsets are run in bfloat16 first."""
        if self.screen is not None or self.by != "random":
            return bool(self.screen) and self.by == "random"
        work = size(params) * objective.num_examples * self.keep**2
        return work >= WORTH_SCREENING and self.masks > 8 and has_bf16(objective.device)


def search(
    objective: Objective,
    chain: Chain,
    params: Params,
    sought: Sought,
    generator: torch.Generator,
    progress: Progress = no_progress,
) -> dict[int, Dropped]:
    """For each entry layer i the best subsets found: theta_1 .. theta_{L-1}.

    The features of layer i are computed once for all subsets, as far as they fit in the objective's memory; a subset
    then runs a network of its own size, and its outputs are kept while the scale is found, for many subsets at once
    (`best_scales`). The subsets, losses and scales that are returned were computed in the working precision.
    """
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        progress("searching subnetworks", done, sought.masks * (chain.L - 1))

    features = _features(objective, chain, params)
    best: dict[int, Dropped] = {}
    scores: Scores | None = None
    screened = sought.screened(objective, params)
    # an informed search passes what it learnt about the deeper layers on to the entry layer before
    for i in range(1, chain.L) if sought.by == "random" else range(chain.L - 1, 0, -1):
        l = max(k for k in features if k <= i)
        entry = _Entry(objective, chain, params, chain.read(params), i, features[l], l, sought.scale)
        with torch.no_grad():
            if screened:
                found = entry.best_screened(sought, generator, count)
            else:
                found, scores = entry.searched(sought, generator, count, scores)
            best[i] = entry.finished(found, sought.enough)
    return dict(sorted(best.items()))


def _features(objective: Objective, chain: Chain, params: Params) -> dict[int, Tensor]:
    """The features of all examples by hidden layer, of as many layers as fit in memory together, and layer 0."""
    with torch.no_grad():
        out, l, left = {0: single(objective.data[0])}, 0, objective.memory
        for i in range(1, chain.L):
            one = _onward(chain, params, out[l][:1], l, i)
            needed = objective.num_examples * one.numel() * one.element_size()
            if needed <= left:
                parts = [_onward(chain, params, part, l, i) for part in out[l].split(objective.chunk)]
                out[i], l, left = torch.cat(parts), i, left - needed
    return out


def _onward(chain: Chain, params: Params, h: Tensor, l: int, i: int) -> Tensor:
    """The features of layer i from those of layer l <= i."""
    for k in range(l + 1, i + 1):
        h = chain.through(params, h, k)
    return h


@dataclass(frozen=True, eq=False)
class _Entry:
    """One entry layer i, and the networks that read some of its features; `h` are those of layer l <= i."""

    objective: Objective
    chain: Chain
    params: Params
    theta: Weights
    i: int
    h: Tensor
    l: int
    scale: str

    @property
    def widths(self) -> dict[int, int]:
        """Those of the layers whose units are chosen."""
        return {j: self.chain.widths[j] for j in range(self.i, self.chain.L)}

    def finished(self, found: Dropped, enough: float | None) -> Dropped:
        """With the scales of every layer where they are wanted, and no larger ones than is enough."""
        found = self.flagged(self.each_scaled(found) if self.scale == "each" else found)
        return found if enough is None else self.shortened(found, enough)

    def trial(self, kept: Units) -> Dropped:
        """The network on these units, not measured yet."""
        return Dropped(self.i, kept, {j: self.factor(j, kept[j]) for j in kept}, 1.0, inf, False)

    def factor(self, j: int, kept: Tensor) -> float:
        """What the outgoing weights of kept units are multiplied by."""
        return rescaling(self.chain.widths[j], len(kept)) if self.scale not in ("none", _ALONE) else 1.0

    def searched(
        self, sought: Sought, generator: torch.Generator, progress: Callable[[int], None], scores: Scores | None
    ) -> tuple[Dropped, Scores | None]:
        """What a search finds at this entry layer, and the scores it leaves for the next."""
        reported = 0

        def evaluate(subsets: Sequence[Units]) -> list[tuple[float, float]]:
            nonlocal reported
            progress(len(budget.trace) - reported)  # spent on gradients since
            reported = len(budget.trace) + len(subsets)
            found = self.measured([self.trial(kept) for kept in subsets], progress=progress)
            return [(d.scale, d.loss) for d in found]

        masks, examples = sought.masks, self.objective.num_examples
        budget = Budget(self.widths, sought.keep, masks, examples, generator, evaluate, self.slopes, self.strengths)
        scores = SEARCHES[sought.by](budget, scores)
        progress(masks - reported)
        best = budget.best
        trace = (*budget.trace, *[inf] * (masks - len(budget.trace)))  # a part of one evaluation counts as a whole
        return replace(self.trial(best.kept), scale=best.scale, loss=best.loss, trace=trace), scores

    def strengths(self, index: Tensor) -> Scores:
        """For every unit the norm of its features on some examples times the norm of its outgoing weights."""
        out, chain = {}, self.chain
        for part in index.split(self.objective.chunk):
            h = self._sample(part)
            for j in range(self.i, chain.L):
                out[j] = out.get(j, 0) + h.movedim(1, 0).flatten(1).double().square().sum(1).cpu()
                h = chain.through(self.params, h, j + 1) if j < chain.L - 1 else h
        norms = {j: self.theta.A[j + 1].movedim(1, 0).flatten(1).double().norm(dim=1).cpu() for j in out}
        return {j: v.sqrt() * norms[j] for j, v in out.items()}

    def slopes(self, kept: Units, scale: float, index: Tensor) -> Scores:
        """The derivative of the mean loss on some examples in the membership (0 or 1) of every unit."""
        chain, objective = self.chain, self.objective
        member = {j: torch.zeros(chain.widths[j], dtype=self.h.dtype, device=self.h.device) for j in kept}
        for j, units in kept.items():
            member[j][units] = 1
        totals = {j: torch.zeros(len(v), dtype=torch.float64) for j, v in member.items()}
        for part in index.split(objective.chunk):
            with torch.enable_grad():
                gates = [v.requires_grad_() for v in member.values()]
                h = self._sample(part)
                for j, gate in member.items():
                    # the outgoing weights of the last hidden layer carry the output scale, the output bias does not
                    factor = self.factor(j, kept[j]) * (scale if j == chain.L - 1 else 1.0)
                    h = h * (factor * gate).reshape(-1, *(1,) * (h.dim() - 2))
                    h = chain.through(self.params, h, j + 1)
                total = objective.example_losses(h, objective.data[1][part.to(h.device)]).sum()
                if not total.requires_grad:
                    raise InputError(
                        "loss", expected="one that carries gradients", got="none", instead="search='random'"
                    )
                for j, slope in zip(member, torch.autograd.grad(total, gates), strict=True):
                    totals[j] += slope.double().nan_to_num().cpu() / len(index)
        return totals

    def _sample(self, index: Tensor) -> Tensor:
        """The features of layer i on some examples."""
        return _onward(self.chain, self.params, self.h[index.to(self.h.device)], self.l, self.i)

    def best_screened(self, sought: Sought, generator: torch.Generator, progress: Callable[[int], None]) -> Dropped:
        """The best random subset: each is run in bfloat16, and in the working precision while it may be the best."""
        trials = [self.trial(random_subsets(self.widths, sought.keep, generator)) for _ in range(sought.masks)]
        rough = [_loss(d) for d in self.measured(trials, torch.bfloat16, progress)]
        exact: dict[int, Dropped] = {}
        todo = [min(range(len(trials)), key=rough.__getitem__)]
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
        each = 32 * self.objective.num_examples * self.chain.widths[self.chain.L]
        each += max(map(self._bytes, trials))
        together = max(1, min(len(trials), self.objective.memory // each))
        out = []
        for k in range(0, len(trials), together):
            part = trials[k : k + together]
            scales, losses = self._scaled(self._outputs(part, dtype, progress))
            out += [replace(d, scale=s, loss=v) for d, s, v in zip(part, scales, losses, strict=True)]
        return out

    def flagged(self, found: Dropped) -> Dropped:
        """With a note whether it separates the data: all are right at the largest scale, up to which the loss falls."""
        errors = self.objective.criterion.errors
        if self.scale not in _SCALED or errors is None:
            return found
        z = self._outputs([replace(found, scale=1.0)], self.objective.dtype, lambda n: None)
        wall = LARGEST_SCALE if found.scale > 0 else -LARGEST_SCALE
        scales = torch.tensor([0.0, wall], dtype=z.dtype, device=z.device)
        none, high = mean_losses(self.objective, z.expand(2, *z.shape[1:]), self._offset, scales).tolist()
        outputs, y = wall * z[0] + broadcast(self._offset, z), self.objective.data[1]
        right = not bool(errors(outputs, y.double() if y.is_floating_point() else y).any())
        return replace(found, separates=right and high <= found.loss and high < none)

    def shortened(self, found: Dropped, enough: float) -> Dropped:
        """With a smaller scale where its loss is lower than needed."""
        if self.scale not in _SCALED or not found.loss <= enough:
            return found
        z = self._outputs([replace(found, scale=1.0)], self.objective.dtype, lambda n: None)
        scale, loss = smallest_scale(self.objective, z, self._offset, found.scale, enough)
        return replace(found, scale=scale, loss=loss)

    def each_scaled(self, found: Dropped) -> Dropped:
        """With the best factor of every layer, by a quasi-Newton method from the factors it has; never a worse one."""
        inner = range(self.i, self.chain.L - 1)
        if not inner:
            return found
        bare = replace(found, factors=dict.fromkeys(found.factors, 1.0), scale=1.0)
        run = self._small(bare, self.objective.dtype, bias=True)
        start = np.array([found.factors[j] for j in inner] + [found.factors[self.chain.L - 1] * found.scale])

        def value(u: np.ndarray) -> tuple[float, np.ndarray]:
            # the factors are start * exp(u): without biases only their product counts, which is a line in u
            factors = start * np.exp(u)
            at = torch.tensor(factors, dtype=self.h.dtype, device=self.h.device, requires_grad=True)
            slope = torch.zeros(len(factors), dtype=torch.float64)
            total, y = 0.0, self.objective.data[1].split(self.objective.chunk)
            with torch.enable_grad():
                for k, part in enumerate(self.h.split(self.objective.chunk)):
                    z = run(_onward(self.chain, self.params, part, self.l, self.i), at)
                    loss = self.objective.example_losses(z, y[k]).double().sum() / self.objective.num_examples
                    slope += torch.autograd.grad(loss, at)[0].double().cpu()
                    total += float(loss.detach())
            return total, slope.numpy() * factors

        options = {"maxiter": 30}
        better: Any = minimize(
            value, np.zeros(len(start)), jac=True, method="L-BFGS-B", bounds=[(-5, 5)] * len(start), options=options
        )
        factors = found.factors | dict(zip(inner, (start * np.exp(better.x)).tolist(), strict=False))
        again = self.measured([replace(found, factors=factors, scale=1.0)])[0]
        return again if again.loss < found.loss else found

    @cached_property
    def _program(self) -> Program:
        """To ask for it takes about as long as to run a small network."""
        return self.objective.program

    def _bytes(self, d: Dropped) -> int:
        """What the weights of a small network take."""
        share = {j: len(kept) / self.chain.widths[j] for j, kept in d.kept.items()} | {self.chain.L: 1.0}
        layers = range(self.i + 1, self.chain.L + 1)
        return round(8 * sum(self.theta.A[j].numel() * share[j] * share[j - 1] for j in layers))

    @property
    def _offset(self) -> Tensor:
        return self.theta.b[self.chain.L].sum(1).double()

    def _scaled(self, z: Tensor) -> tuple[list[float], list[float]]:
        if self.scale in _SCALED:
            s, losses = best_scales(self.objective, z, self._offset, LARGEST_SCALE)
        else:
            s = torch.ones(len(z), dtype=z.dtype, device=z.device)
            losses = mean_losses(self.objective, z, self._offset, s)
        return s.tolist(), losses.tolist()

    def _outputs(self, trials: Sequence[Dropped], dtype: torch.dtype, progress: Callable[[int], None]) -> Tensor:
        """The outputs without the output bias of each trial's small network, float64 [trials, N, ...]."""
        parts = self.h.split(self.objective.chunk)
        run = self._products(trials, dtype) if self._one_product else self._small_networks(trials, dtype)
        rows = []
        for k, part in enumerate(parts):
            rows.append(run(_onward(self.chain, self.params, part, self.l, self.i).to(dtype)).double())
            progress(len(trials) * (k + 1) // len(parts) - len(trials) * k // len(parts))
        return torch.cat(rows, 1)

    def _small_networks(self, trials: Sequence[Dropped], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        runs = [self._small(d, dtype) for d in trials]
        return lambda h: torch.stack([run(h) for run in runs])

    def _small(self, d: Dropped, dtype: torch.dtype, *, bias: bool = False) -> Callable[..., Tensor]:
        """The outputs of a small network from features of layer i, its hidden outputs multiplied by `factors` if given.

        `bias`: whether the output bias is added.
        """
        chain, small = self.chain, d.layers(self.theta, self.chain.L)
        del small.A[d.entry], small.b[d.entry]
        small.b[chain.L] = small.b[chain.L] if bias else torch.zeros_like(small.b[chain.L])
        weights = cast_for(self._program, chain.write(small, self.params), dtype)
        index = d.kept[d.entry].to(self.h.device)

        def run(h: Tensor, factors: Tensor | None = None) -> Tensor:
            h = h.index_select(1, index)
            for j in range(self.i, chain.L):
                h = chain.through(weights, h if factors is None else h * factors[j - self.i], j + 1)
            return h

        return run

    @property
    def _one_product(self) -> bool:
        """Whether one product gives the outputs from the features of the layer."""
        last = self.chain.layer(self.chain.L).nodes
        return self.i == self.chain.L - 1 and all(n.base == "linear" or n.kind in RESHAPE for n in last)

    def _products(self, trials: Sequence[Dropped], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The same for the last hidden layer, all trials in one product: the columns of dropped units are zero."""
        L = self.chain.L
        A, columns = self.theta.A[L], []
        for d in trials:
            masked = torch.zeros_like(A)
            masked[:, d.kept[L - 1]] = A[:, d.kept[L - 1]] * d.factors[L - 1]
            columns.append(masked.flatten(1))
        together = torch.cat(columns).to(dtype).T

        def run(h: Tensor) -> Tensor:
            return (h.flatten(1) @ together).unflatten(1, (len(trials), -1)).movedim(1, 0)

        return run


def _loss(d: Dropped) -> float:
    """For comparison: NaN is never the best."""
    return d.loss if d.loss == d.loss else float("inf")
