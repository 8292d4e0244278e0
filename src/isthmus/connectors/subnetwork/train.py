"""Training the subnetworks xi_l of Nguyen, Brechet, Mondelli 2021: one, or many draws as one batched problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import ceil

import torch
from torch import Tensor

from isthmus.connectors.subnetwork.batched import forward_stacked, gather
from isthmus.evaluate.chain import losses_of
from isthmus.objective import Objective
from isthmus.objective.data import single
from isthmus.params import Params, stack
from isthmus.stability.dropout.dropped import Dropped
from isthmus.stability.dropout.subsets import rescaling
from isthmus.structure.chain import Chain, Weights
from isthmus.structure.network_units import Units, complement
from isthmus.training.fit import Ended, Fitted, Recipe, fit, fit_together
from isthmus.training.memory import Memory, forget
from isthmus.training.progress import Progress

_CONVEX = Recipe("lbfgs", steps=200)
"""How xi_{L-1}, a convex problem, is solved: L-BFGS until a step of 20 iterations gains less than 1e-9 of the loss."""

_ROWS = 8192
"""Rows (examples x draws) that a check of stacked networks takes at a time: what stays in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Draw:
    """Where a training starts: the units I_l = `held` that xi_l reads, and its first weights."""

    held: Tensor
    weights: Weights


@dataclass(frozen=True, eq=False)
class Subnet:
    """A trained xi_l: the weights of layers l + 1 .. L in compact form, and its loss on all examples."""

    l: int
    held: Tensor
    weights: Weights
    loss: float
    steps: int
    ended: Ended

    def measure(self, objective: Objective, chain: Chain, params: Params) -> tuple[float, float]:
        """(loss, error) on the objective's data, from the features that `params` computes; no penalty."""
        return measure(objective, chain, params, self.l, self.held, self.weights)


def measure(
    objective: Objective, chain: Chain, params: Params, l: int, held: Tensor, weights: Weights
) -> tuple[float, float]:
    """(loss, error) of the subnetwork `weights` that reads the units `held` of layer l of `params`; no penalty.

    For l = 0 it reads the whole input.
    """
    units = held.to(objective.device)

    def features(x: Tensor) -> Tensor:
        return chain.features(params, x, l, len(x)).index_select(1, units) if l else x

    return losses_of(objective, chain, chain.compact(weights, params), first=l + 1, enter=features)


def sizes(widths: Mapping[int, int], fraction: Mapping[int, float]) -> dict[int, int]:
    """K_l = ceil(fraction * n_l), rounding errors of the product left out.

    >>> sizes({1: 9, 2: 100}, {1: 0.5, 2: 0.55})
    {1: 5, 2: 55}
    """
    return {l: ceil(fraction[l] * n - 1e-9) for l, n in widths.items()}


def filled(kept: Tensor, n: int, K: int, generator: torch.Generator) -> Tensor:
    """A set of K of n units that holds `kept` and random others, ascending.

    >>> filled(torch.tensor([1]), 2, 2, torch.Generator())
    tensor([0, 1])
    """
    rest = complement(n, kept)
    rest = rest[torch.randperm(len(rest), generator=generator)[: K - len(kept)].to(rest.device)]
    return torch.cat([kept, rest]).sort().values


@dataclass(frozen=True, eq=False)
class Start:
    """First weights of xi_l. `held`: for each layer p >= l the units I_p; xi_l reads I_l and has n_p - |I_p| units."""

    chain: Chain
    params: Params
    l: int
    held: Units

    @property
    def reads(self) -> Tensor:
        """I_l; all inputs for l = 0."""
        return self.held[self.l] if self.l else torch.arange(self.chain.widths[0])

    @property
    def rows(self) -> Units:
        """For p > l the units outside I_p: as many as xi_l has, and the ones whose weights it starts from."""
        widths, L = self.chain.widths, self.chain.L
        return {p: complement(widths[p], self.held[p]) for p in range(self.l + 1, L)} | {L: torch.arange(widths[L])}

    def columns(self, p: int) -> Tensor:
        """The units of layer p - 1 that xi_l has or reads."""
        return self.reads if p == self.l + 1 else self.rows[p - 1]

    def theta(self) -> Draw:
        """The network's own weights on these units, scaled up by the share of the inputs that is left."""
        own, A, b = self.chain.read(self.params), {}, {}
        for p, rows in self.rows.items():
            columns = self.columns(p)
            A[p] = own.A[p][rows][:, columns] * rescaling(self.chain.widths[p - 1], len(columns))
            b[p] = own.b[p][rows]
        return Draw(self.reads, Weights(A, b))

    def random(self, generator: torch.Generator) -> Draw:
        """He's random weights, biases 0, BatchNorm at its neutral values."""
        widths = {self.l: len(self.reads)} | {p: len(rows) for p, rows in self.rows.items()}
        return Draw(self.reads, self.chain.he_init(generator, self.params, widths, self.l + 1))

    def dropout(self, dropped: Dropped) -> Draw:
        """The network theta_{l,d} of Corollary 4.2 itself (theta_{1,d} for l = 0): the same outputs.

        Its kept units must lie in I_l and be at most as many as xi_l has; xi_l's further units start from the
        network's own rows, and no kept unit reads them.
        """
        small, draw = dropped.layers(self.chain.read(self.params), self.chain.L), self.theta()
        A, b = {}, {}
        for p in self.rows:
            columns = torch.arange(small.A[p].shape[1])
            if p == self.l + 1 and self.l:
                columns = torch.searchsorted(self.reads, dropped.kept[self.l])
            A[p], b[p] = draw.weights.A[p].clone(), draw.weights.b[p].clone()
            n = len(small.A[p])
            A[p][:n] = 0
            A[p][:n, columns] = small.A[p]
            b[p][:n] = small.b[p]
        return Draw(self.reads, Weights(A, b))


@dataclass(frozen=True, eq=False)
class SubnetTraining:
    """The one way in which the xi_l are trained: by `recipe`, and by L-BFGS where the problem is convex.

    With `looks_from` as in appendix C of the paper: `recipe` trains them all, no check comes before so many steps, and
    a draw is done at the first check without an error on the training examples; its loss is then its own. `spent`: the
    steps of each network that was trained, of those too that were not taken.
    """

    objective: Objective
    chain: Chain
    recipe: Recipe
    generator: torch.Generator
    progress: Progress
    memory: Memory = forget
    looks_from: int | None = None
    spent: list[int] = field(default_factory=list, repr=False)
    _count: Iterator[int] = field(default_factory=count, repr=False)
    _last: dict[tuple[int, int], tuple[Params, Tensor]] = field(default_factory=dict, repr=False)

    def features(self, params: Params, l: int) -> Tensor:
        """f_l on all examples; those asked for last are kept."""
        key = (id(params), l)
        if key not in self._last:
            self._last.clear()
            h = self.chain.features(params, single(self.objective.data[0]), l, self.objective.chunk)
            self._last[key] = (params, h)  # with the parameters, so that their id stays theirs
        return self._last[key][1]

    def convex(self, l: int) -> bool:
        """Whether only the last layer is trained, with a loss that is convex in the outputs."""
        return l == self.chain.L - 1 and self.objective.convex and self.looks_from is None

    def due(self, recipe: Recipe) -> Callable[[int], bool] | None:
        """When the losses are computed, if `looks_from` says so."""
        if (first := self.looks_from) is None:
            return None
        every = recipe.check or max(1, self.objective.num_examples // recipe.batch)
        return lambda step: step >= first and step % every == 0

    def train(
        self,
        l: int,
        params: Params,
        draws: Sequence[Draw],
        *,
        target: float,
        what: str,
        steps: int | None = None,
        enough: int | None = None,
    ) -> list[Subnet]:
        """xi_l on the features of `params`, from every draw; stops when `enough` (default: all) are at `target`.

        Several draws are trained as one problem with stacked weights, on the same batches; the convex ones, which
        L-BFGS solves at different speeds, one after another until enough of them are at the target (then fewer
        subnetworks than draws are returned).
        """
        recipe = _CONVEX if self.convex(l) else replace(self.recipe, steps=steps or self.recipe.steps)
        wanted = _Wanted(l, params, self.features(params, l), recipe, target, what)
        if len(draws) > 1 and recipe.optimizer != "lbfgs":
            return self._together(wanted, draws, enough)
        out: list[Subnet] = []
        for draw in draws:
            out.append(self._alone(wanted, draw))
            if sum(s.loss <= target for s in out) >= (len(draws) if enough is None else enough):
                break
        return out

    def _place(self, l: int) -> Memory:
        """Where the next training keeps its state: they come in the same order whenever the work is done again."""
        return self.memory.part(f"xi{l}-{next(self._count)}")

    def _parted(self, params: Params, l: int) -> tuple[Params, Params]:
        """What of the layers above l is trained, and the rest."""
        names = [n for p in range(l + 1, self.chain.L + 1) for n in self.chain.layer(p).trainable]
        return {n: params[n] for n in names}, {n: v for n, v in params.items() if n not in names}

    def _alone(self, wanted: _Wanted, draw: Draw) -> Subnet:
        objective, chain, y, l = self.objective, self.chain, self.objective.data[1], wanted.l
        h = wanted.h[:, draw.held].contiguous() if l else wanted.h
        moving, fixed = self._parted(chain.compact(draw.weights, wanted.params), l)

        def batch_loss(small: Params, index: Tensor) -> Tensor:
            return objective.example_losses(chain.forward({**fixed, **small}, h[index], l + 1), y[index]).mean()

        def full_loss(small: Params) -> float:
            return self._value(wanted, {**fixed, **small}, draw.held)

        fitted = fit(
            batch_loss, full_loss, moving, objective.num_examples, wanted.recipe, due=self.due(wanted.recipe),
            generator=self.generator, target=wanted.target, memory=self._place(l), progress=self.progress,
            what=wanted.what,
        )  # fmt: skip
        return self._subnet(wanted, draw, fixed, fitted)

    def _value(self, wanted: _Wanted, params: Params, held: Tensor) -> float:
        """The loss; with `looks_from` 0 where there is no error."""
        h = wanted.h[:, held] if wanted.l else wanted.h
        loss, error = losses_of(self.objective, self.chain, params, h, wanted.l + 1)
        return 0.0 if error == 0 and self.looks_from is not None else loss

    def _together(self, wanted: _Wanted, draws: Sequence[Draw], enough: int | None) -> list[Subnet]:
        objective, y, T, l = self.objective, self.objective.data[1], len(draws), wanted.l
        every = torch.arange(wanted.h.shape[1])  # inputs that are flattened later have fewer channels than entries
        units = torch.stack([d.held if l else every for d in draws]).to(wanted.h.device)
        moving, fixed = self._parted(stack([self.chain.compact(d.weights, wanted.params) for d in draws]), l)

        def losses(small: Params, h: Tensor, y: Tensor) -> Tensor:
            z = forward_stacked(self.chain, {**fixed, **small}, gather(h, units), l + 1, T)
            return objective.example_losses(z.flatten(0, 1), y.expand(T, *y.shape).flatten(0, 1)).unflatten(0, (T, -1))

        def batch_loss(small: Params, index: Tensor) -> Tensor:
            return losses(small, wanted.h[index], y[index]).mean(1).sum()

        def full_losses(small: Params) -> list[float]:
            if self.looks_from is not None:
                now = {**fixed, **small}
                return [self._value(wanted, {n: v[i] for n, v in now.items()}, d.held) for i, d in enumerate(draws)]
            chunk = max(1, min(objective.chunk, _ROWS) // T)
            with torch.no_grad():
                parts = zip(wanted.h.split(chunk), y.split(chunk), strict=True)
                sums: Tensor = sum(losses(small, p, q).double().sum(1) for p, q in parts)  # type: ignore[assignment]
            return (sums / len(y)).tolist()

        fitted = fit_together(
            batch_loss, full_losses, moving, objective.num_examples, wanted.recipe, due=self.due(wanted.recipe),
            generator=self.generator, target=wanted.target, enough=enough, memory=self._place(l),
            progress=self.progress, what=wanted.what,
        )  # fmt: skip
        own = [{n: v[i] for n, v in fixed.items()} for i in range(T)]
        return [self._subnet(wanted, *found) for found in zip(draws, own, fitted, strict=True)]

    def _subnet(self, wanted: _Wanted, draw: Draw, fixed: Params, fitted: Fitted) -> Subnet:
        l, params = wanted.l, wanted.params
        weights = self.chain.read({**fixed, **fitted.params}, l + 1, len(draw.held))
        found = Subnet(l, draw.held, weights, fitted.loss, fitted.steps, fitted.ended)
        self.spent.append(fitted.steps)
        if self.looks_from is None:
            return found
        return replace(found, loss=found.measure(self.objective, self.chain, params)[0])


@dataclass(frozen=True, eq=False)
class _Wanted:
    """xi_l on the features h of `params`, trained by `recipe` to the target."""

    l: int
    params: Params
    h: Tensor
    recipe: Recipe
    target: float
    what: str


def widened(subnet: Subnet, held: Tensor) -> Draw:
    """The same function, reading the larger set `held`: columns of zero for the units that join."""
    l, A = subnet.l, dict(subnet.weights.A)
    old = A[l + 1]
    A[l + 1] = old.new_zeros(old.shape[0], len(held), old.shape[2])
    A[l + 1][:, torch.searchsorted(held, subnet.held)] = old
    return Draw(held, Weights(A, subnet.weights.b))


def narrowed(subnet: Subnet, p: int, count: int) -> Draw:
    """The subnetwork with only `count` units in layer p: those of the largest incoming times outgoing weights."""
    A, b = dict(subnet.weights.A), dict(subnet.weights.b)
    size = A[p].flatten(1).norm(dim=1) * A[p + 1].transpose(0, 1).flatten(1).norm(dim=1)
    keep = size.argsort(descending=True)[:count].sort().values
    A[p], b[p], A[p + 1] = A[p][keep], b[p][keep], A[p + 1][:, keep]
    return Draw(subnet.held, Weights(A, b))


def best(subnets: Sequence[Subnet]) -> int:
    """The index of the lowest loss, the first of them; NaN is never the best."""
    return min(range(len(subnets)), key=lambda t: subnets[t].loss if subnets[t].loss == subnets[t].loss else torch.inf)
