"""Paths through optimised sparse subnetworks (Nguyen, Brechet, Mondelli 2021, Theorem 4.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import cast

import torch
from torch import Tensor

from isthmus.connectors.base import About, Connection, Connector, Outcome, Progress
from isthmus.connectors.fit import Fitted, Recipe, fit
from isthmus.connectors.walk import Units, Walk, join, labels_as_text, network_of, others
from isthmus.errors import InputError
from isthmus.examples import single
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.paths import Path
from isthmus.structure.chain import Chain, Weights, chain_of


@dataclass(frozen=True)
class Subnetwork(Connector):
    """Theorem 4.1 of Nguyen, Brechet, Mondelli 2021: the loss is at most max(L(a), L(b), losses of the xi_l).

    In every hidden layer l a set I_l of K_l = ceil(fraction * n_l) units keeps its weights; the free units (at
    most half) carry subnetworks xi_l that read the features I_l of layer l and are trained to a low loss, for
    l = L-1 .. 1 at both ends. A hub xi_0, trained once from the input, is where the two halves of the path meet.
    Successive subnetworks live in free units alternately, so that nothing need be copied back: 4L - 1 straight
    segments for L layers, each of which only changes the last layer or rows of dead units.

    Each xi_l starts from the end's own weights on the free units (``init="theta"``) or at random (``"random"``)
    and is trained with `optimizer`, `lr`, `batch` for at most `steps` steps (`hub_steps` for xi_0, default
    twice as many) until its loss on all examples is at most the larger end's loss + `slack`; xi_{L-1}, a convex
    problem, by L-BFGS. A training that ends above twice that target is repeated from random weights, up to
    `attempts` trainings in all, and the best is kept.

    When to use: whenever the network is a chain of layers with a few spare units; the path is as low as half-width
    networks can be trained. Needs a loss that is convex in the outputs. Cost: 2L - 1 trainings of
    half-width networks, shorter ones near the output.
    """

    fraction: float = 0.5
    optimizer: str = "adam"
    lr: float = 2e-3
    batch: int = 256
    steps: int = 4000
    hub_steps: int | None = None
    slack: float = 0.0
    init: str = "theta"
    attempts: int = 2

    about = About(
        makes="4L - 1 straight segments through trained half-width subnetworks",
        reference="Nguyen, Brechet, Mondelli 2021, Theorem 4.1",
        needs="a chain of layers (perceptron, plain convolutional network)",
        cost="2L - 1 trainings of half-width networks",
    )

    def __post_init__(self) -> None:
        if not 0.5 <= self.fraction < 1:
            raise InputError("fraction", expected="a number in [1/2, 1)", got=self.fraction)
        if not 0 <= self.slack < float("inf"):
            raise InputError("slack", expected="a number >= 0", got=self.slack)
        if self.init not in ("theta", "random"):
            raise InputError("init", expected="'theta' or 'random'", got=repr(self.init))
        if self.hub_steps is not None and self.hub_steps < 1:
            raise InputError("hub_steps", expected="a whole number >= 1", got=self.hub_steps)
        if self.attempts < 1:
            raise InputError("attempts", expected="a whole number >= 1", got=self.attempts)
        self.recipe()

    def recipe(self) -> Recipe:
        """How the xi_l are trained."""
        return Recipe(optimizer=self.optimizer, lr=self.lr, batch=self.batch, steps=self.steps)

    def find(
        self, objective: Objective, a: Params, b: Params, generator: torch.Generator, progress: Progress
    ) -> Connection:
        """Train the subnetworks, then build the path of the theorem."""
        chain = chain_of(objective.program, objective.structure)
        if chain.L < 2:
            raise InputError("network", expected="at least one hidden layer", got="none", instead="Linear()")
        if narrow := [l for l in range(1, chain.L) if chain.widths[l] - ceil(self.fraction * chain.widths[l]) < 1]:
            raise InputError(
                "fraction",
                expected=f"a free unit in every hidden layer (layer {narrow[0]} has none)",
                got=self.fraction,
            )
        held = {
            l: torch.randperm(chain.widths[l], generator=generator)[: ceil(self.fraction * chain.widths[l])]
            .sort()
            .values
            for l in range(1, chain.L)
        }
        job = _Training(self, objective, chain, held, generator, progress, max(objective.loss(a), objective.loss(b)))
        hub = job.train(0, a, "hub")
        ends = [{0: hub} | {l: job.train(l, p, end) for l in range(1, chain.L)} for p, end in ((a, "A"), (b, "B"))]
        path, labels = build(chain, held, a, b, [{l: x.weights for l, x in end.items()} for end in ends])
        rows = [{"layer": 0, "end": "both", **hub.row()}]
        rows += [{"layer": l, "end": "ab"[e], **ends[e][l].row()} for e in (0, 1) for l in range(1, chain.L)]
        finite = all(x.fitted.outcome is not Outcome.NOT_FINITE for end in ends for x in end.values())
        stats = {"segments": labels, "subnetworks": rows, "limited_by": max(rows, key=lambda r: r["loss"])}
        return Connection(path, b, Outcome.CONNECTED if finite else Outcome.NOT_FINITE, stats)


@dataclass(frozen=True, eq=False)
class Subnet:
    """A trained xi_l: the weights of layers l + 1 .. L in compact form."""

    weights: Weights
    fitted: Fitted

    def row(self) -> dict[str, float | str]:
        """Its figures for `Connection.stats`."""
        return {"loss": self.fitted.loss, "steps": self.fitted.steps, "training": self.fitted.outcome.name.lower()}


@dataclass(frozen=True, eq=False)
class _Training:
    method: Subnetwork
    objective: Objective
    chain: Chain
    held: Units
    generator: torch.Generator
    progress: Progress
    larger_end: float

    def train(self, l: int, params: Params, end: str) -> Subnet:
        """xi_l on the features I_l of `params`."""
        chain, objective, method = self.chain, self.objective, self.method
        h = chain.features(params, single(objective.data[0]), l, objective.chunk)
        h = h if l == 0 else h[:, self.held[l]].contiguous()
        y = objective.data[1]
        names = [n for p in range(l + 1, chain.L + 1) for n in chain.layer(p).trainable]
        target = self.larger_end + method.slack
        recipe = method.recipe()
        convex = l == chain.L - 1 and objective.convex
        if convex:
            recipe = replace(recipe, optimizer="lbfgs", steps=200)
        elif l == 0:
            recipe = replace(recipe, steps=method.hub_steps or 2 * method.steps)
        best: Subnet | None = None
        for attempt in range(1 if convex else method.attempts):
            start = network_of(chain, self._start(l, params, "random" if attempt else method.init), params)
            fixed = {n: v for n, v in start.items() if n not in names}

            def batch_loss(small: Params, index: Tensor, fixed: Params = fixed) -> Tensor:
                return objective.example_losses(chain.forward({**fixed, **small}, h[index], l + 1), y[index]).mean()

            def full_loss(small: Params, fixed: Params = fixed) -> float:
                parts = zip(h.split(objective.chunk), y.split(objective.chunk), strict=True)
                with torch.no_grad():
                    return objective.of_outputs((chain.forward({**fixed, **small}, p, l + 1), q) for p, q in parts)[0]

            fitted = fit(
                batch_loss, full_loss, {n: start[n] for n in names}, objective.num_examples, recipe,
                generator=self.generator, target=target, progress=self.progress,
                what=("training the hub xi_0" if l == 0 else f"training xi_{l} at {end}") + " again" * bool(attempt),
            )  # fmt: skip
            if best is None or fitted.loss < best.fitted.loss:
                best = Subnet(self._compact({**fixed, **fitted.params}, l), fitted)
            if best.fitted.loss <= 2 * target:
                break
        return cast(Subnet, best)

    def _start(self, l: int, params: Params, init: str) -> Weights:
        """The first weights of xi_l: the network's own on the free units (scaled up), or He's random ones."""
        chain, L = self.chain, self.chain.L
        theta = chain.read(params)
        rows = {p: others(chain.widths[p], self.held[p]) for p in range(l + 1, L)}
        rows[L] = torch.arange(chain.widths[L])
        A, b = {}, {}
        for p in range(l + 1, L + 1):
            columns = torch.arange(chain.widths[0]) if p == 1 else self.held[l] if p == l + 1 else rows[p - 1]
            own = theta.A[p][rows[p]][:, columns]
            if init == "theta":
                A[p] = own * (chain.widths[p - 1] / len(columns))
                b[p] = theta.b[p][rows[p]]
            else:
                gain = (1 if p == L else 2) / (own.shape[1] * own.shape[2])
                A[p] = torch.randn(own.shape, generator=self.generator, dtype=torch.float64).to(own) * gain**0.5
                ones = [float(v.endswith((".weight", "running_var"))) for v in chain.layer(p).vectors]
                b[p] = torch.tensor(ones).to(own).expand(len(rows[p]), -1)
        return Weights(A, b)

    def _compact(self, small: Params, l: int) -> Weights:
        chain = self.chain
        A, b = {}, {}
        for p in range(l + 1, chain.L + 1):
            weight = small[chain.layer(p).weight]
            n = chain.widths[0] if p == 1 else len(self.held[l]) if p == l + 1 else len(A[p - 1])
            A[p] = weight.reshape(len(weight), n, -1)
            columns = [small[v] for v in chain.layer(p).vectors]
            b[p] = torch.stack(columns, 1) if columns else weight.new_zeros(len(weight), 0)
        return Weights(A, b)


def build(chain: Chain, held: Units, a: Params, b: Params, xi: list[dict[int, Weights]]) -> tuple[Path, list[str]]:
    """The path of Theorem 4.1 from trained subnetworks: ``xi[end][l]``, l = 0 .. L-1, with the same xi_0 at both."""
    walks = []
    for e, params in enumerate((a, b)):
        walk = Walk(chain, params)
        sparsify(walk, held, xi[e], "AB"[e])
        walks.append(walk)
    walks[0].now = walks[1].now.copy()
    walks[0].step("join the hubs", "b")
    path, labels = join(*walks)
    return path, labels_as_text(labels)


def sparsify(walk: Walk, held: Units, xi: dict[int, Weights], end: str) -> None:
    """From theta to the hub, through xi_{L-1}, ..., xi_1: 2L - 1 segments."""
    chain, L = walk.chain, walk.L
    free = {p: others(chain.widths[p], held[p]) for p in held}
    live: Units = {L - 1: held[L - 1]}
    walk.put_output(held[L - 1], xi[L - 1].A[L], xi[L - 1].b[L])
    walk.step(f"at {end}, output of xi_{L - 1}", "a")
    for l in range(L - 2, -1, -1):
        # xi_{l+1} reads the held units of layer l + 1 and lives in free, held, free, ... units above it
        live[l + 1] = held[l + 1]
        place = {p: free[p] if (p - l) % 2 else held[p][: len(free[p])] for p in range(l + 1, L)}
        for p in range(l + 1, L):
            walk.zero_rows(p, others(chain.widths[p], live[p]))
            before = None if p == 1 else held[l] if p == l + 1 else place[p - 1]
            walk.put_rows(p, place[p], before, xi[l].A[p], xi[l].b[p])
        walk.step(f"at {end}, write xi_{l} into dead units", "b")
        walk.put_output(place[L - 1], xi[l].A[L], xi[l].b[L])
        walk.step(f"at {end}, switch to xi_{l}", "a")
        live = dict(place)
