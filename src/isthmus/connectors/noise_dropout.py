"""Paths between noise-stable networks (Kuditipudi et al. 2019, Theorem 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite, lgamma, log
from typing import Any, Literal

import torch

from isthmus.checks import check_choices, check_whole
from isthmus.connectors.base import About, Connection, Connector, Outcome, Task
from isthmus.connectors.dropout import connect_halves
from isthmus.connectors.moves.units import WeightWalk, join, labels_as_text
from isthmus.errors import InputError
from isthmus.evaluate.chain import require_hidden_chain
from isthmus.kinds import check_fields
from isthmus.objective import Objective
from isthmus.params import Params, lerp
from isthmus.paths import Path
from isthmus.shown import largest
from isthmus.structure.chain import Chain, Weights
from isthmus.structure.network_units import Units, complement, kept_count, random_units
from isthmus.training.progress import Progress


@dataclass(frozen=True)
class NoiseDropout(Connector):
    """Theorem 2 of Kuditipudi et al. 2019: straight to a dropped-out network, through Lemma 2, and straight back.

    Algorithm 1 zeroes the outgoing weights (columns) of each hidden unit with probability `p` and multiplies the
    others by 1 / (1 - p); the incoming weights (rows) and biases of dropped units stay, so theta_1 is reached from
    theta by one straight segment, and again from theta_1 of b to b. Lemma 2 needs at least half of every layer
    dropped, so draws are made under that condition: exactly floor((1 - p) n) units kept (``counts="fixed"``, as in
    the paper's experiments) or as many as Algorithm 1 draws, given that they are at most half ("bernoulli"). Of
    `draws` draws per end the one with the smallest max(L(1/2), L(1)) on its straight segment is taken.

    The path has 10 straight segments for any depth: 1 + 8 + 1. The 8 of Lemma 2 overwrite dropped rows at their start
    and restore them at their end; their loss is at most that of the larger theta_1, proved, the penalty left out. The
    two straight segments carry no guarantee but the theorem's O(epsilon) (see ``noise_stability``): `stats["noise"]`
    reports their largest loss at `num_points` points each, apart.

    When to use: for networks trained with dropout; a shorter path than ``Dropout``. Needs a chain of layers and a loss
    that is convex in the outputs. Cost: 2 evaluations per draw and end.
    """

    p: float = 0.5
    draws: int = 20
    counts: Literal["fixed", "bernoulli"] = "fixed"
    num_points: int = 11

    about = About(
        makes="10 straight segments, the first and last of them to a dropped-out network",
        reference="Kuditipudi et al. 2019, Theorem 2",
        needs="a chain of layers (perceptron, plain convolutional network); low loss if noise stable",
        cost="2 x draws evaluations per end",
        convex=True,
        statistics="interpolate",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0.5 <= self.p < 1:
            raise InputError(
                "p",
                expected="a number in [1/2, 1): Lemma 2 needs at least half of each layer dropped",
                got=self.p,
                instead="Narrow(p=...) for a smaller one" if 0 < self.p < 0.5 else "",
            )
        check_choices(self)
        check_whole(self, "draws")
        check_whole(self, "num_points", least=2)

    def find(self, task: Task) -> Connection:
        """Draw at both ends, then build the path of the theorem."""
        objective, a, b = task.objective, task.a, task.b
        chain = require_hidden_chain(objective, instead="Linear()")
        most = {l: chain.widths[l] // 2 for l in range(1, chain.L)}

        def draw() -> Units:
            if self.counts == "fixed":
                sizes = {l: min(m, kept_count(chain.widths[l], 1 - self.p)) for l, m in most.items()}
            else:
                sizes = {l: bernoulli_count(chain.widths[l], self.p, m, task.generator) for l, m in most.items()}
            return random_units(chain.widths, sizes, task.generator)

        factors = {l: 1 / (1 - self.p) for l in most}
        ends = best_of(objective, chain, (a, b), draw, factors, self.draws, task.progress)
        there, back = (e.walk("AB"[k]) for k, e in enumerate(ends))
        for l, kept in ends[0].kept.items():  # dropped units keep their rows in theta_1: they are overwritten
            there.zero_rows(l, complement(chain.widths[l], kept))
        connect_halves(there, ends[0].kept, back.now, ends[1].kept)
        # the last step of Lemma 4 may write any rows into dead units: those that b has, in place of zeros
        there.points.pop()
        there.labels.pop()
        there.now = back.now.copy()
        there.step("Lemma 4, restore the rows of dropped units", "b")
        path, labels = join(there, back)
        stats = {"segments": labels_as_text(labels), "noise": report(objective, path, ends, self.num_points)}
        return Connection(path, b, Outcome.CONSTRUCTED, stats)


def bernoulli_count(n: int, p: float, most: int, generator: torch.Generator) -> int:
    """How many of n units Algorithm 1 keeps, given that there are at most `most`."""
    k = range(most + 1)
    logs = [lgamma(n + 1) - lgamma(j + 1) - lgamma(n - j + 1) + j * log(1 - p) + (n - j) * log(p) for j in k]
    weights = torch.tensor(logs, dtype=torch.float64).softmax(0)
    return k[int(torch.multinomial(weights, 1, generator=generator))]


@dataclass(frozen=True, eq=False)
class End:
    """theta_1 of one end: the units kept, the factor on their outgoing weights, and the losses at t = 1/2 and 1."""

    chain: Chain
    theta: Params
    kept: Units
    factors: Mapping[int, float]
    judged: tuple[float, float]

    def dropped(self) -> Weights:
        """Algorithm 1: outgoing weights of kept units multiplied, of the others zeroed; rows and biases stay."""
        out = self.chain.read(self.theta).copy()
        for l, kept in self.kept.items():
            new = torch.zeros_like(out.A[l + 1])
            new[:, kept] = out.A[l + 1][:, kept] * self.factors[l]
            out.A[l + 1] = new
        return out

    def walk(self, end: str) -> WeightWalk:
        """From theta straight to theta_1."""
        walk = WeightWalk(self.chain, self.theta)
        walk.now = self.dropped()
        walk.step(f"Algorithm 1 at {end}, straight to theta_1", "d")
        return walk


def best_of(
    objective: Objective,
    chain: Chain,
    thetas: tuple[Params, Params],
    draw: Callable[[], Units],
    factors: Mapping[int, float],
    draws: int,
    progress: Progress,
) -> tuple[End, End]:
    """For both ends the draw with the smallest max(L(1/2), L(1)) on the straight segment to theta_1."""
    found = []
    for k, theta in enumerate(thetas):
        best: End | None = None
        for i in range(draws):
            trial = End(chain, theta, draw(), factors, (0.0, 0.0))
            theta_1 = chain.write(trial.dropped(), theta)
            judged = (objective.loss(lerp(theta, theta_1, 0.5)), objective.loss(theta_1))
            trial = End(chain, theta, trial.kept, factors, judged)
            # NaN, the largest where one of the two is, never compares as smaller
            if best is None or largest(judged) < largest(best.judged) or not isfinite(largest(best.judged)):
                best = trial
            progress("drawing dropped-out networks", k * draws + i + 1, 2 * draws)
        if best is not None:
            found.append(best)
    return found[0], found[1]


def report(objective: Objective, path: Path, ends: tuple[End, End], num_points: int) -> dict[str, Any]:
    """The draws and the largest loss of the straight segments, which no theorem bounds by a number, and of the rest."""
    rows: dict[str, Any] = {}
    for name, end, segment in (("a", ends[0], path.segments[0]), ("b", ends[1], path.segments[-1])):
        losses = [objective.loss(segment.at(k / (num_points - 1))) for k in range(num_points)]
        rows[name] = {
            "kept": {str(l): units.tolist() for l, units in end.kept.items()},
            "factors": {str(l): float(f) for l, f in end.factors.items()},
            "loss_at_half": end.judged[0],
            "loss_at_theta_1": end.judged[1],
            "max_loss": largest(losses),
            "num_points": num_points,
        }
    # on the constructed segments the loss is largest at a vertex
    rows["constructed"] = {"max_loss": largest(objective.loss(p) for p in path.knots[1:-1])}
    return rows
