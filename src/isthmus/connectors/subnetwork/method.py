"""Paths through optimised sparse subnetworks (Nguyen, Brechet, Mondelli 2021, Theorem 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from isthmus.connectors.base import About, Connection, Connector, Outcome
from isthmus.connectors.subnetwork.choose import Choice, Options
from isthmus.connectors.subnetwork.path import build as build
from isthmus.connectors.subnetwork.untrained import MAKERS, fill
from isthmus.errors import InputError
from isthmus.evaluate.chain import require_hidden_chain
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.paths import Path
from isthmus.structure.chain import Chain
from isthmus.training.fit import Ended, Recipe
from isthmus.training.progress import Progress

TRAINING = (
    "init",
    "masks",
    "optimizer",
    "lr",
    "momentum",
    "schedule",
    "batch",
    "steps",
    "hub_steps",
    "attempts",
    "effort",
)
"""The fields that say how the xi_l are trained."""


@dataclass(frozen=True)
class Subnetwork(Connector):
    """Theorem 4.1 of Nguyen, Brechet, Mondelli 2021: the loss is at most max(L(a), L(b), losses of the xi_l).

    In every hidden layer l a set I_l of K_l = ceil(fraction * n_l) units keeps its weights; the free units (at
    most half) carry subnetworks xi_l that read the features I_l of layer l and are trained to a low loss, for
    l = L-1 .. 1 at both ends. A hub xi_0, trained once from the input, is where the two halves of the path meet.
    Successive subnetworks live in free units alternately, so that nothing need be copied back: 4L - 1 straight
    segments for L layers, each of which only changes the last layer or rows of dead units (4L + 3 if the ends have
    different sets, 4L + 5 if these differ in size).

    Which sets: `fraction` is one number, one per hidden layer, or "search": from 1/2 everywhere, K_l grows where xi_l
    limits the path as long as the narrower subnetworks below stay lower (equation 6). `subsets`: "same" sets at both
    ends, or each its "own". `draws` sets per layer (T_A) are trained together as one batched problem, and the best is
    kept (for "same", the one of the lowest larger loss).

    How each xi_l is trained: from the end's own weights on the free units (``init="theta"``), at random
    (``"random"``), or from the best of `masks` half-width networks of Theorem 1 of Kuditipudi et al.
    (``"dropout"``, with own subsets; by Corollary 4.2 the path is then never above the losses of those), with
    `optimizer`, `lr`, `momentum`, `schedule`, `batch` for at most `steps` steps (`hub_steps` for xi_0, default twice
    as many) until its loss on all examples is at most the larger end's loss + `slack`; xi_{L-1}, a convex problem, by
    L-BFGS. A training that ends above twice that target is repeated from random weights, up to `attempts` trainings
    in all, and the best is kept. `effort` times `steps` further steps go to whichever subnetwork limits the path
    (equation 4's maximum): first it is trained on, then on other sets.

    `xi`: "trained"; or built without training, in seconds: "memorise" (Corollary 4.3: ReLU, class labels or mse, layers
    L-2 and L-1 wide enough; xi_{L-1}, convex, is solved) or "separate" (Corollary 4.4: features in which a linear
    classifier is right on all examples, n_L free units per layer). The excess is then 0 or as small as the output
    layer's problem allows; `draws` sets are tried where one does not do, and what does not fit is refused by name.

    When to use: whenever the network is a chain of layers with a few spare units; the path is as low as half-width
    networks can be trained. Needs a loss that is convex in the outputs. Cost: 2L - 1 trainings of
    half-width networks, shorter ones near the output. ``connection.stats["limited_by"]`` names the subnetwork of the
    largest loss, which limits the path; with a penalty, which no theorem counts, also the vertex where loss and penalty
    together are the largest, with both: on no segment are they larger.
    """

    fraction: float | str | Sequence[float] = 0.5
    subsets: str = "same"
    draws: int = 1
    xi: str = "trained"
    init: str = "theta"
    masks: int = 30
    optimizer: str = "adam"
    lr: float = 2e-3
    momentum: float = 0.9
    schedule: str = "cosine"
    batch: int = 256
    steps: int = 4000
    hub_steps: int | None = None
    slack: float = 0.0
    attempts: int = 2
    effort: float = 2.0

    about = About(
        makes="4L - 1 straight segments through trained half-width subnetworks",
        reference="Nguyen, Brechet, Mondelli 2021, Theorem 4.1",
        needs="a chain of layers (perceptron, plain convolutional network)",
        cost="2L - 1 trainings of half-width networks",
        convex=True,
    )

    def __post_init__(self) -> None:
        if isinstance(self.fraction, Sequence) and not isinstance(self.fraction, str):
            object.__setattr__(self, "fraction", tuple(self.fraction))
        given: tuple[Any, ...] = self.fraction if isinstance(self.fraction, tuple) else (self.fraction,)
        if self.fraction != "search" and any(isinstance(f, str) or not 0.5 <= f < 1 for f in given):
            raise InputError(
                "fraction", expected="a number in [1/2, 1), one per hidden layer, or 'search'", got=self.fraction
            )
        for name, words in (
            ("subsets", ("same", "own")),
            ("xi", ("trained", *MAKERS)),
            ("init", ("theta", "random", "dropout")),
        ):
            if getattr(self, name) not in words:
                raise InputError(name, expected=" or ".join(map(repr, words)), got=repr(getattr(self, name)))
        if self.init == "dropout" and self.subsets == "same":
            raise InputError(
                "init='dropout'", expected="subsets='own': each end's sets hold its kept units", got="'same'"
            )
        if self.xi != "trained" and (set_ := [n for n in TRAINING if getattr(self, n) != getattr(Subnetwork, n)]):
            raise InputError(
                ", ".join(set_), expected=f"the default with xi={self.xi!r}: nothing is trained", got="set"
            )
        if self.xi != "trained" and self.fraction == "search":
            raise InputError("fraction", expected=f"numbers with xi={self.xi!r}", got="'search'")
        for name in ("slack", "effort"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(name, expected="a number >= 0", got=getattr(self, name))
        for name in ("hub_steps", "attempts", "draws", "masks"):
            value = getattr(self, name)
            if value is not None and (value != int(value) or value < 1):
                raise InputError(name, expected="a whole number >= 1", got=value)
        self.recipe()

    def recipe(self) -> Recipe:
        """How the xi_l are trained."""
        return Recipe(
            optimizer=self.optimizer, lr=self.lr, batch=self.batch, steps=self.steps,
            momentum=self.momentum, schedule=self.schedule,
        )  # fmt: skip

    def find(
        self, objective: Objective, a: Params, b: Params, generator: torch.Generator, progress: Progress
    ) -> Connection:
        """Train the subnetworks, then build the path of the theorem."""
        chain = require_hidden_chain(objective, instead="Linear()")
        choice = Choice.start(self._options(chain), objective, chain, (a, b), generator, progress)
        if self.xi == "trained":
            choice.train()
            if self.fraction == "search":
                choice.search()
            choice.spend(round(self.effort * self.steps))
        else:
            fill(choice, self.xi, objective)
        weights = [{l: s.weights for l, s in end.items()} for end in choice.xi]
        path, labels = build(chain, choice.held[0], choice.held[1], a, b, weights)
        finite = all(s.ended is not Ended.NOT_FINITE for end in choice.xi for s in end.values())
        rows = choice.rows()
        stats = {"segments": labels, "subnetworks": rows, "limited_by": _limiting(objective, path, labels, rows)}
        return Connection(path, b, Outcome.CONSTRUCTED if finite else Outcome.NOT_FINITE, stats)

    def _options(self, chain: Chain) -> Options:
        hidden = range(1, chain.L)
        fractions: tuple[Any, ...] = (
            self.fraction if isinstance(self.fraction, tuple) else (self.fraction,) * len(hidden)
        )
        if len(fractions) != len(hidden):
            raise InputError("fraction", expected=f"{len(hidden)} numbers, one per hidden layer", got=self.fraction)
        return Options(
            fractions={l: 0.5 if isinstance(f, str) else f for l, f in zip(hidden, fractions, strict=True)},
            own=self.subsets == "own",
            draws=self.draws,
            init=self.init,
            masks=self.masks,
            recipe=self.recipe(),
            hub_steps=self.hub_steps or 2 * self.steps,
            slack=self.slack,
            attempts=self.attempts,
        )


def _limiting(objective: Objective, path: Path, labels: Sequence[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The subnetwork of the largest loss; with a penalty, the vertex where loss and penalty are the largest."""
    worst = max(rows, key=lambda r: r["loss"])
    if objective.penalty is None:
        return worst
    points = list(path.knots)
    values = [objective.loss(p) for p in points]
    k = max(range(len(points)), key=values.__getitem__)
    penalty = objective.penalty_of(points[k])
    where = "an end" if k in (0, len(points) - 1) else f"after {labels[k - 1]}"
    return worst | {"vertex": k, "where": where, "vertex_loss": values[k] - penalty, "penalty": penalty}
