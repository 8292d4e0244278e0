"""Paths through optimised sparse subnetworks (Nguyen, Brechet, Mondelli 2021, Theorem 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from isthmus.checks import check_at_least_zero, check_choices, check_whole
from isthmus.connectors.base import About, Connection, Connector, Outcome, Task
from isthmus.connectors.subnetwork.choose import Choice, Options
from isthmus.connectors.subnetwork.inner import Memorised, Separated, Trained
from isthmus.connectors.subnetwork.path import build as build
from isthmus.connectors.subnetwork.untrained import fill
from isthmus.errors import InputError
from isthmus.evaluate.chain import require_hidden_chain
from isthmus.kinds import check_fields
from isthmus.objective import Objective
from isthmus.paths import Path
from isthmus.structure.chain import Chain
from isthmus.training.fit import Ended


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

    How each xi_l is made: ``inner=Trained(...)`` trains it until its loss is at most the larger end's loss + `slack`;
    ``Memorised()`` (Corollary 4.3) and ``Separated()`` (Corollary 4.4) build it without training, in seconds. The
    excess is then 0 or as small as the output layer's problem allows; `draws` sets are tried where one does not do, and
    what does not fit is refused by name.

    When to use: whenever the network is a chain of layers with a few spare units; the path is as low as half-width
    networks can be trained. Needs a loss that is convex in the outputs. Cost: 2L - 1 trainings of
    half-width networks, shorter ones near the output. ``connection.stats["limited_by"]`` names the subnetwork of the
    largest loss, which limits the path; with a penalty, which no theorem counts, also the vertex where loss and penalty
    together are the largest, with both: on no segment are they larger.
    """

    fraction: float | Literal["search"] | tuple[float, ...] = 0.5
    subsets: Literal["same", "own"] = "same"
    draws: int = 1
    inner: Trained | Memorised | Separated = Trained()  # noqa: RUF009 - frozen
    slack: float = 0.0

    about = About(
        makes="4L - 1 straight segments through trained half-width subnetworks",
        reference="Nguyen, Brechet, Mondelli 2021, Theorem 4.1",
        needs="a chain of layers (perceptron, plain convolutional network)",
        cost="2L - 1 trainings of half-width networks",
        convex=True,
        statistics="interpolate",
    )

    def __post_init__(self) -> None:
        if isinstance(self.fraction, Sequence) and not isinstance(self.fraction, str):
            object.__setattr__(self, "fraction", tuple(self.fraction))
        check_fields(self)
        if self.fraction != "search" and any(isinstance(f, str) or not 0.5 <= f < 1 for f in self._fractions(1)):
            raise InputError(
                "fraction", expected="a number in [1/2, 1), one per hidden layer, or 'search'", got=self.fraction
            )
        check_choices(self)
        check_whole(self, "draws")
        check_at_least_zero(self, "slack")
        self._check_inner()

    def _check_inner(self) -> None:
        if not isinstance(self.inner, Trained | Memorised | Separated):
            raise InputError("inner", expected="Trained(...), Memorised() or Separated()", got=repr(self.inner))
        if self.fraction == "search" and not isinstance(self.inner, Trained):
            raise InputError("fraction", expected=f"numbers with inner={self.inner}", got="'search'")
        if isinstance(self.inner, Trained) and self.inner.init == "dropout" and self.subsets == "same":
            raise InputError(
                "init='dropout'", expected="subsets='own': each end's sets hold its kept units", got="'same'"
            )

    def find(self, task: Task) -> Connection:
        """Train the subnetworks, then build the path of the theorem."""
        objective, a, b = task.objective, task.a, task.b
        chain = require_hidden_chain(objective, instead="Linear()")
        choice = Choice.start(self._options(chain), task, chain)
        if isinstance(self.inner, Trained):
            choice.train()
            if self.fraction == "search":
                choice.search()
            choice.spend(round(self.inner.effort * self.inner.recipe.steps))
        else:
            fill(choice, "memorise" if isinstance(self.inner, Memorised) else "separate", objective)
        weights = [{l: s.weights for l, s in end.items()} for end in choice.xi]
        path, labels = build(chain, choice.held[0], choice.held[1], a, b, weights)
        finite = all(s.ended is not Ended.NOT_FINITE for end in choice.xi for s in end.values())
        rows = choice.rows()
        stats = {"segments": labels, "subnetworks": rows, "limited_by": _limiting(objective, path, labels, rows)}
        stats["gradient_steps"] = sum(choice.training.spent)
        return Connection(path, b, Outcome.CONSTRUCTED if finite else Outcome.NOT_FINITE, stats)

    def _fractions(self, count: int) -> tuple[Any, ...]:
        return self.fraction if isinstance(self.fraction, tuple) else (self.fraction,) * count

    def _options(self, chain: Chain) -> Options:
        hidden = range(1, chain.L)
        fractions = self._fractions(len(hidden))
        if len(fractions) != len(hidden):
            raise InputError("fraction", expected=f"{len(hidden)} numbers, one per hidden layer", got=self.fraction)
        return Options(
            fractions={l: 0.5 if isinstance(f, str) else f for l, f in zip(hidden, fractions, strict=True)},
            own=self.subsets == "own",
            draws=self.draws,
            inner=self.inner if isinstance(self.inner, Trained) else Trained(),
            slack=self.slack,
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
