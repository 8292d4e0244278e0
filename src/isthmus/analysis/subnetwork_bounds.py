"""The bounds of Theorem 4.1 of Nguyen, Brechet, Mondelli 2021, layer by layer: their Experiments A and B."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from isthmus.connectors.base import check_convex
from isthmus.connectors.subnetwork.inner import Trained
from isthmus.connectors.subnetwork.train import Draw, Start, SubnetTraining, best, filled, measure, sizes
from isthmus.errors import InputError
from isthmus.evaluate.chain import require_hidden_chain
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.batches import Data
from isthmus.objective.given import ParamsLike
from isthmus.params import Params, check_finite
from isthmus.shown import one_line
from isthmus.stability.dropout.dropped import Dropped
from isthmus.stability.dropout.recall import search_recalled
from isthmus.stability.dropout.search import Sought, search
from isthmus.structure.chain import Chain, Weights
from isthmus.structure.network_units import random_units
from isthmus.training.fit import Recipe
from isthmus.training.memory import Memory, forget
from isthmus.training.progress import Progress, no_progress


@one_line
@dataclass(frozen=True, eq=False)
class LayerBound:
    """One layer of Experiment A or B: the best subnetwork found, measured on all examples.

    Experiment A: xi_l reads the units `reads` of layer l (all inputs for l = 0), and `loss` bounds Q_l of equation
    5. Experiment B: the network with units left out of the layers from l on. `losses` are those of the draws that
    were computed in full, `best` the place of the lowest in it. Test figures are NaN without test data.

    `layer`: l. `error`, `test_loss`, `test_error`: of the best one. `weights`: its weights.
    """

    layer: int
    loss: float
    error: float
    test_loss: float
    test_error: float
    losses: tuple[float, ...]
    best: int
    reads: Tensor = field(repr=False)
    weights: Weights = field(repr=False)


@one_line
@dataclass(frozen=True, eq=False)
class SubnetworkBounds:
    """What ``subnetwork_bounds`` (experiment "A") and ``dropout_bounds`` ("B") return: one row per layer.

    `reference` is the network's own loss, `bound` what the theorem then gives for this end: the largest of all. All
    leave a penalty out, as the theorem does.

    `experiment`: "A" or "B". `fraction`: the share of the units that was kept. `layers`: a row for each l.
    `reference_error`, `test_reference`, `test_reference_error`: the network's own error and test figures.
    """

    experiment: str
    fraction: float
    layers: tuple[LayerBound, ...]
    reference: float
    reference_error: float
    test_reference: float
    test_reference_error: float

    @property
    def bound(self) -> float:
        """max(own loss, losses of all layers): this end's part of the right-hand side of equation 4."""
        return max(self.reference, *(row.loss for row in self.layers))

    @property
    def limited_by(self) -> int:
        """The layer whose loss is the largest."""
        return max(self.layers, key=lambda row: row.loss).layer

    def at(self, l: int) -> LayerBound:
        """The row of layer l (Experiment B has no layer 0)."""
        for row in self.layers:
            if row.layer == l:
                return row
        raise InputError("l", expected=f"one of {[row.layer for row in self.layers]}", got=l)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain values, without the weights."""
        plain = ("layer", "loss", "error", "test_loss", "test_error", "losses", "best")
        rows = [{k: getattr(row, k) for k in plain} | {"losses": list(row.losses)} for row in self.layers]
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layers"}
        return own | {"bound": self.bound, "limited_by": self.limited_by, "layers": rows}


def subnetwork_bounds(
    objective: Objective,
    params: ParamsLike,
    fraction: float = 0.5,
    draws: int = 20,
    seed: int = 0,
    *,
    init: Literal["theta", "random", "dropout"] = "theta",
    recipe: Recipe = Recipe(),  # noqa: B008
    hub_steps: int | None = None,
    target: float | None = None,
    looks_from: int | None = None,
    masks: int = 200,
    layers: Sequence[int] | None = None,
    test: Objective | Data | None = None,
    memory: Memory = forget,
    progress: Progress = no_progress,
) -> SubnetworkBounds:
    """Experiment A: for l = 0 .. L-1 a trained subnetwork xi_l on K_l = ceil(fraction n_l) units of layer l.

    Per layer, `draws` uniformly random subsets I_l (one for l = 0, which has nothing to draw) are trained together
    by `recipe` (``recipe.steps`` steps, `hub_steps` for l = 0, default twice as many; L-BFGS for the convex l = L-1)
    and the lowest loss is kept: an upper bound of Q_l, equation 5, and their maximum is one of equation 6. Training
    stops as soon as one draw is at `target`: default, the network's own loss, below which nothing lowers the bound;
    0 trains to the end. `init`: from the network's own weights ("theta"), at random ("random"), or the first draw from
    the best subnetwork of Experiment B with `masks` masks ("dropout"; Corollary 4.2: then no row is above B's).
    `looks_from`: stop as the paper's appendix C does: no check before so many steps, then every draw trains to its
    first check without an error on the training examples, by `recipe` for l = L-1 too. `layers`: only these l. `test`:
    an objective or data (x, y) on which the best subnetworks are measured too. With a `memory` (a ``Memory`` of this
    call alone) a call that was killed goes on to the same result.

    `fraction`: the share of the units of each layer that a subnetwork reads.

    When to use: to see which layer limits a path before computing one. Cost: L batched trainings of half-width
    networks. Errors: as ``Subnetwork``. Source: Nguyen, Brechet, Mondelli 2021, Theorem 4.1, section 6 and appendix B.

    >>> _ = torch.manual_seed(0)  # of some, no half reaches the target: dead units
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> objective = Objective(net, data=(x, torch.tensor([0, 1])))
    >>> bounds = subnetwork_bounds(objective, net.state_dict(), draws=3, recipe=Recipe(lr=0.01, steps=300), target=0.1)
    >>> [row.layer for row in bounds.layers], all(row.loss <= 0.1 for row in bounds.layers if row.layer == 1)
    ([0, 1], True)
    """
    check_kinds(subnetwork_bounds, locals())
    _check_options(fraction, draws, 0.5)
    inner = Trained(recipe, init, masks, hub_steps)
    chain, theta, generator = *_ready(objective, params), torch.Generator().manual_seed(seed)
    wanted = _wanted(layers, chain.L)
    frame = _Frame(objective, chain, theta, _test_objective(objective, test), "A", fraction)
    goal = frame.reference[0] if target is None else target
    dropped: dict[int, Dropped] = {}
    if init == "dropout":
        part, sought = memory.part("dropout"), Sought(1 - fraction, masks)
        dropped = search_recalled(part, objective, chain, theta, sought, generator, progress)
    if looks_from is not None:
        goal = 0.0
    training = SubnetTraining(objective, chain, recipe, generator, progress, memory, looks_from)
    rows = []
    for l in wanted:
        starts = frame.starts(l, draws if l else 1, init, generator)
        if dropped:
            starts[0] = frame.dropout_start(l, dropped[max(l, 1)], generator)
        found = training.train(
            l,
            theta,
            starts,
            target=goal,
            what=f"training xi_{l}",
            steps=inner.steps(l),
            enough=1 if looks_from is None else None,
        )
        i = best(found)
        rows.append(frame.row(l, found[i].held, found[i].weights, tuple(s.loss for s in found), i))
    return frame.bounds(rows)


def dropout_bounds(
    objective: Objective,
    params: ParamsLike,
    fraction: float = 0.5,
    draws: int = 200,
    seed: int = 0,
    *,
    rescale: bool = True,
    test: Objective | Data | None = None,
    progress: Progress = no_progress,
) -> SubnetworkBounds:
    """Experiment B: for l = 1 .. L-1, keep a random `fraction` of the units of each layer from l on, rescaled.

    The best of `draws` subsets is taken, each with the output scale of the lowest training loss (exactly: a convex
    problem in one number), and with `rescale` outgoing weights of every layer times n / kept, which the paper does
    not have. 1 - fraction is the dropout ratio p of appendix B; Definition 1 of Kuditipudi et al. 2019,
    and so the path of ``Dropout``, needs fraction <= 1/2. The rows are as those of ``subnetwork_bounds``, to be
    set beside them. Cost: draws x (L - 1) evaluations of half-width networks.
    Source: Nguyen, Brechet, Mondelli 2021, section 6, Experiment (B), and appendix B.

    `test`: an objective or data (x, y) on which the best subnetworks are measured too. Errors: ``UnsupportedError`` for
    a network that is no chain of layers.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> objective = Objective(net, data=(x, torch.tensor([0, 1])))
    >>> [row.layer for row in dropout_bounds(objective, net.state_dict(), draws=3).layers]
    [1]
    """
    check_kinds(dropout_bounds, locals())
    _check_options(fraction, draws, 0.0)
    chain, theta = _ready(objective, params)
    frame = _Frame(objective, chain, theta, _test_objective(objective, test), "B", fraction)
    generator = torch.Generator().manual_seed(seed)
    found = search(
        objective, chain, theta, Sought(fraction, draws, "output" if rescale else "alone"), generator, progress
    )
    rows = []
    for l, d in found.items():
        losses = d.trace or (d.loss,)
        small = d.layers(chain.read(theta), chain.L)
        every = torch.arange(chain.widths[l - 1])  # the rows of layer l are part of the compact network
        rows.append(frame.row(l, every, small, losses, losses.index(min(losses)), below=1))
    return frame.bounds(rows)


def _wanted(layers: Sequence[int] | None, L: int) -> list[int]:
    every = range(L)
    wanted = sorted(set(every if layers is None else layers))
    if not wanted or not set(wanted) <= set(every):
        raise InputError("layers", expected=f"some of 0 .. {L - 1}", got=layers)
    return wanted


@dataclass(frozen=True, eq=False)
class _Frame:
    """What all rows share."""

    objective: Objective
    chain: Chain
    theta: Params
    test: Objective | None
    experiment: str
    fraction: float

    @property
    def reference(self) -> tuple[float, float]:
        return self._own(self.objective)

    def _own(self, objective: Objective) -> tuple[float, float]:
        """Loss without penalty, and error, of the network itself."""
        loss, error = objective.measure(self.theta)
        return loss - objective.penalty_of(self.theta), error

    @property
    def K(self) -> dict[int, int]:
        hidden = {l: self.chain.widths[l] for l in range(1, self.chain.L)}
        return sizes(hidden, dict.fromkeys(hidden, self.fraction))

    def starts(self, l: int, draws: int, init: str, generator: torch.Generator) -> list[Draw]:
        """xi_l on so many random sets I_p, p >= l."""
        counts = {j: k for j, k in self.K.items() if j >= l}
        out = []
        for _ in range(draws):
            start = Start(self.chain, self.theta, l, random_units(self.chain.widths, counts, generator))
            out.append(start.random(generator) if init == "random" else start.theta())
        return out

    def dropout_start(self, l: int, dropped: Dropped, generator: torch.Generator) -> Draw:
        """xi_l that computes what the dropped network does, its I_p filled up at random to K_p units."""
        K, widths = self.K, self.chain.widths
        held = {p: filled(kept, widths[p], K[p], generator) for p, kept in dropped.kept.items()}
        return Start(self.chain, self.theta, l, held).dropout(dropped)

    def row(
        self, l: int, reads: Tensor, weights: Weights, losses: tuple[float, ...], i: int, below: int = 0
    ) -> LayerBound:
        """The subnetwork `weights`, which reads the features of layer l - below, on both data sets."""
        nan = (float("nan"), float("nan"))
        loss, error = measure(self.objective, self.chain, self.theta, l - below, reads, weights)
        test = measure(self.test, self.chain, self.theta, l - below, reads, weights) if self.test else nan
        return LayerBound(l, loss, error, *test, losses, i, reads, weights)

    def bounds(self, rows: Iterable[LayerBound]) -> SubnetworkBounds:
        test = self._own(self.test) if self.test else (float("nan"), float("nan"))
        return SubnetworkBounds(self.experiment, self.fraction, tuple(rows), *self.reference, *test)


def _check_options(fraction: float, draws: int, low: float) -> None:
    if not low <= fraction < 1 or fraction == 0:
        raise InputError("fraction", expected="a number in " + ("[1/2, 1)" if low else "(0, 1)"), got=fraction)
    if draws < 1:
        raise InputError("draws", expected="at least 1 random subset per layer", got=draws)


def _ready(objective: Objective, params: ParamsLike) -> tuple[Chain, Params]:
    check_convex(objective, "Theorem 4.1")
    theta = objective.check(params)
    check_finite(theta)
    return require_hidden_chain(objective), theta


def _test_objective(objective: Objective, test: Objective | Data | None) -> Objective | None:
    return test if test is None or isinstance(test, Objective) else objective.on(test)
