"""Paths between two-layer ReLU networks with an l1 penalty (Freeman & Bruna 2017, Theorem 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import pi, sin
from typing import Any

import torch
from torch import Tensor

from isthmus.checks import check_several, check_whole
from isthmus.connectors.base import About, Connection, Connector, Outcome, Task
from isthmus.connectors.moves.units import Label, WeightWalk, labels_as_text
from isthmus.connectors.two_layer_relu.compression import HiddenLayer, TwoLayers, compress
from isthmus.connectors.two_layer_relu.oracle import train_oracle
from isthmus.errors import InputError
from isthmus.kinds import check_fields
from isthmus.params import Params, cast
from isthmus.paths import Path
from isthmus.structure.network_units import common_places, complement
from isthmus.training.fit import Recipe


@dataclass(frozen=True)
class TwoLayerReLU(Connector):
    """Theorem 2.4 of Freeman & Bruna 2017: the loss is at most max(F(a), F(b), epsilon), epsilon by equation 10.

    From each end: to the best last layer on the same first layer (a lasso), to the best last layer on m - n units whose
    rows may move by the angle `alpha`, to an oracle network of n units, which both ends share. epsilon = max{e(n),
    delta_a(m, 0), delta_a(m - n, alpha), the same for b} + C alpha; e and delta are upper bounds here, the oracle being
    trained and the units chosen greedily (``stability/compression.py``). 9 straight segments for alpha = 0, all proved
    exactly; 11 for alpha > 0, where on two both layers move. The paper says that parts (3) and (4) change the second
    layer only; the oracle must first be written into dead units, and moved to those of b: that is done here.

    `units`: n, or several to choose the least epsilon from (default: an eighth, a quarter and half of the m units).
    `radius`: all rows of first layers, biases included, stay in the ball of this radius (default: the longest row of
    both ends; the paper has 1). The oracle is trained by `recipe` from the compressed ends and from
    `attempts` random starts.

    When to use: two-layer ReLU networks (with pooling: one convolution) with ``penalty=im.L1(kappa, names=(the second
    layer's weight,))``, or none, and a loss that is convex in the outputs; the terms in alpha are for squared loss.
    Cost: a few small trainings per n, and lassos.
    """

    units: int | tuple[int, ...] | None = None
    alpha: float = 0.0
    radius: float | None = None
    attempts: int = 1
    recipe: Recipe = Recipe(lr=1e-2, steps=1000)  # noqa: RUF009 - frozen

    about = About(
        makes="9 straight segments through sparse networks and a small oracle (11 for alpha > 0)",
        reference="Freeman & Bruna 2017, Theorem 2.4",
        needs="a two-layer ReLU network; l1 penalty on the second layer, or none",
        cost="a few trainings of a small network for each n, lassos",
        convex=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_several(self, "units")
        if not 0 <= self.alpha < pi / 2:
            raise InputError("alpha", expected="an angle in [0, pi / 2)", got=self.alpha)
        if self.radius is not None and not 0 < self.radius < float("inf"):
            raise InputError("radius", expected="a number > 0", got=self.radius)
        check_whole(self, "attempts", least=0)

    def find(self, task: Task) -> Connection:
        """Solve, compress and train for each n, keep the n of least epsilon, and build the path."""
        objective, a, b = task.objective, task.a, task.b
        problem = TwoLayers(objective)
        wide = [cast(p, torch.float64) for p in (a, b)]
        layers = [problem.read(p) for p in wide]
        radius = self._radius(layers)

        def solved(e: int) -> HiddenLayer:
            return problem.solved(problem.readout(layers[e].W, wide[0]), layers[e])

        def compressed(e: int, keep: int, alpha: float) -> HiddenLayer:
            part = task.memory.part(f"compressed{e}-{keep}-{'turned' if alpha else 'still'}")
            return problem.recalled(part, lambda: compress(problem, best[e], keep, alpha, wide[0]))

        best = [problem.recalled(task.memory.part(f"solved{e}"), partial(solved, e)) for e in (0, 1)]
        found: list[_Try] = []
        for n in self._sizes(problem.m):
            sparse = [compressed(e, problem.m - n, self.alpha) for e in (0, 1)]
            starts = [compressed(e, n, 0.0) for e in (0, 1)]
            oracle = train_oracle(
                problem, n, radius, starts, wide[0], self.recipe,
                attempts=self.attempts, task=task,
            )  # fmt: skip
            found.append(_Try(n, oracle, sparse, *self._margins(problem, best, sparse, radius, wide[0])))
        chosen = min(found, key=lambda x: (x.vertex(best) + (x.after or 0.0), x.n))
        points, labels = _walk(problem, wide, best, chosen, self.alpha)
        narrow = [a, *(cast(p, objective.dtype) for p in points[1:-1]), b]
        theorem = self._theorem(problem, layers, best, chosen, radius)
        rows = [{"n": x.n, "e": x.oracle.value, "vertex": x.vertex(best)} for x in found]
        stats = {"segments": labels, "theorem": theorem, "tried": rows}
        return Connection(Path.through(narrow), b, Outcome.CONSTRUCTED, stats)

    def _sizes(self, m: int) -> list[int]:
        asked = (m // 8, m // 4, m // 2) if self.units is None else self.units
        sizes = asked if isinstance(asked, Sequence) else (int(asked),)
        if bad := [n for n in sizes if self.units is not None and n >= m]:
            raise InputError("units", expected=f"fewer than the {m} hidden units", got=bad[0])
        if m < 2:
            raise InputError("network", expected="at least 2 hidden units", got=m)
        return sorted({max(1, n) for n in sizes})

    def _radius(self, layers: list[HiddenLayer]) -> float:
        longest = max(float(x.W.norm(dim=1).max()) for x in layers)
        if self.radius is not None and longest > self.radius * (1 + 1e-6):
            raise InputError("radius", expected=f"at least the longest row of the ends, {longest:.6g}", got=self.radius)
        return self.radius or longest or 1.0

    def _margins(
        self, problem: TwoLayers, best: list[HiddenLayer], sparse: list[HiddenLayer], radius: float, like: Params
    ) -> tuple[float | None, float | None]:
        """C alpha before (from kappa and the data alone) and after (from the rows and weights of these segments)."""
        if self.alpha == 0:
            return 0.0, 0.0
        if not problem.squared:
            return None, None
        level = max(x.value for x in (*best, *sparse))
        after = max(margin(deviation(problem, x, y, like), level) for x, y in zip(best, sparse, strict=True))
        nu = deviation_bound(problem, radius, self.alpha)
        return None if nu is None else margin(nu, level), after

    def _theorem(
        self, problem: TwoLayers, layers: list[HiddenLayer], best: list[HiddenLayer], chosen: _Try, radius: float
    ) -> dict[str, Any]:
        """Equation 10 with its parts, as plain values."""
        vertex = chosen.vertex(best)
        ends = [x.value for x in layers]
        delta = [{"delta(m, 0)": x.value, "gap": x.gap, "delta(m - n, alpha)": y.value, "units": len(y.live)}
                 for x, y in zip(best, chosen.sparse, strict=True)]  # fmt: skip
        return {
            "m": problem.m,
            "n": chosen.n,
            "alpha": self.alpha,
            "kappa": problem.kappa,
            "radius": radius,
            "e(n)": chosen.oracle.value,
            "a": delta[0],
            "b": delta[1],
            "vertex": vertex,
            "epsilon": None if chosen.apriori is None else vertex + chosen.apriori,
            "epsilon_of_this_path": None if chosen.after is None else vertex + chosen.after,
            "ends": ends,
            "bound": None if chosen.after is None else max(*ends, vertex + chosen.after),
        }


@dataclass(frozen=True, eq=False)
class _Try:
    """What one n gives: the oracle, the sparse networks of both ends, and the margins for moving both layers."""

    n: int
    oracle: HiddenLayer
    sparse: list[HiddenLayer]
    apriori: float | None
    after: float | None

    def vertex(self, best: list[HiddenLayer]) -> float:
        """The maximum in equation 10."""
        return max(x.value for x in (self.oracle, *best, *self.sparse))


def _walk(
    problem: TwoLayers, ends: list[Params], best: list[HiddenLayer], chosen: _Try, alpha: float
) -> tuple[list[Params], list[str]]:
    """The vertices in float64 and a label for each segment: 9, or 11 where rows move."""
    walk, (to_a, to_b) = WeightWalk(problem.chain, ends[0]), chosen.sparse
    oracle, m = chosen.oracle, problem.m
    # where the oracle's units stand: on units dead at both ends, and where these are too few on disjoint ones
    here, there = common_places(chosen.n, complement(m, to_a.live), complement(m, to_b.live))

    def put_layer(layer: HiddenLayer) -> None:
        walk.now = problem.weights(layer, ends[0])

    def put_rows(layer: HiddenLayer, units: Tensor, to: Tensor) -> None:
        rows = problem.weights(layer, ends[0])
        walk.put_rows(1, to, None, rows.A[1][units], rows.b[1][units])

    def compressed(layer: HiddenLayer, k: int) -> None:
        put_layer(layer)
        what = "best sparse last layer" if alpha == 0 else f"best sparse network, rows within the angle {alpha:.4g}"
        walk.step(f"at {'AB'[k]}, {what}" + ", backwards" * k, "a" if alpha == 0 else "both layers")

    if alpha > 0:
        put_layer(best[0])
        walk.step("at A, best last layer", "a")
    compressed(to_a, 0)
    everyone = torch.arange(len(oracle.W), device=oracle.W.device)
    put_rows(oracle, everyone, here)
    walk.step("write the oracle into dead units", "b")
    small = problem.weights(oracle, ends[0])
    walk.put_output(here, small.A[2], small.b[2])
    walk.step("switch to the oracle", "a")
    moving = here != there
    rest = complement(m, torch.cat([here, there]))
    put_rows(to_b, rest, rest)
    put_rows(oracle, everyone[moving], there[moving])
    walk.step("write the oracle and the rows of B into dead units", "b")
    walk.move_columns(1, here[moving], there[moving])
    walk.step("hand over outgoing weights", "m")
    put_rows(to_b, here[moving], here[moving])
    walk.step("write the other rows of B into dead units", "b")
    target = problem.weights(to_b, ends[0])
    walk.now.A[2], walk.now.b[2] = target.A[2], target.b[2]
    walk.step("switch to the sparse network of B", "a")
    put_layer(to_b)
    walk.step("restore the rows of dead units of B", "b")
    if alpha > 0:
        compressed(best[1], 1)
    walk.points.append(ends[1])
    last = "best last layer" if alpha > 0 else "best sparse last layer"
    walk.labels.append(Label(f"at B, {last}, backwards", "a"))
    return walk.points, labels_as_text(walk.labels)


def margin(nu: float, level: float) -> float:
    """How far squared loss can rise above `level` when the outputs stray by nu (root mean square): 2 nu sqrt + nu^2.

    >>> round(margin(0.1, 0.25), 12)
    0.11
    """
    return 2 * nu * level**0.5 + nu**2


def deviation(problem: TwoLayers, start: HiddenLayer, end: HiddenLayer, like: Params) -> float:
    """How far outputs can stray from the segment of last layers on both sets of rows, as a root mean square.

    A unit gives f = ((1-t) A + t A~) z((1-t) u + t u~), u = w x, where the segment has (1-t) A z(u) + t A~ z(u~). As z
    is 1-Lipschitz, |f - segment| <= t (1-t) (|A| + |A~|) |u~ - u|: (19) of the paper without its constants. It is also
    at most t (1-t) (|A~ - A| |z(u~) - z(u)| + max(|A|, |A~|) |u~ - u| where u and u~ have opposite signs), since z is
    linear elsewhere; the lesser of both is taken for each unit and example (with pooling, the former).
    """
    either = (start.A.norm(dim=0) + end.A.norm(dim=0)).flatten()
    if problem.x.dim() > 2:
        turn = end.W - start.W
        with torch.no_grad():  # |u| = relu(u) + relu(-u), and pooling of |u| is at most the sum of both poolings
            total = (problem.features(turn, like) + problem.features(-turn, like)) @ either
    else:
        x = problem.extended()
        u, v = x @ start.W.T, x @ end.W.T
        bend = torch.where(u * v < 0, (v - u).abs(), torch.zeros_like(u))
        change, most = (end.A - start.A).norm(dim=0)[:, 0], torch.maximum(start.A.norm(dim=0), end.A.norm(dim=0))[:, 0]
        fine = change * (v.relu() - u.relu()).abs() + most * bend
        total = torch.minimum(either * (v - u).abs(), fine).sum(1)
    return float(total.square().mean() / len(start.A)) ** 0.5 / 4


def deviation_bound(problem: TwoLayers, radius: float, alpha: float) -> float | None:
    """The deviation from kappa, the data and alpha alone, as Theorem 2.4 has it; None without a penalty.

    A last layer that is the best on its features has kappa ||A||_1 <= mean y^2, and rows of length `radius` turned by
    alpha move by 2 radius sin(alpha / 2): with S the second moments of x, nu <= mean y^2 / kappa sqrt(||S|| / O) radius
    sin(alpha / 2). The printed (19) has ||S|| where its root belongs, and kappa^(-1/2) for 1 / kappa.
    """
    if problem.kappa == 0 or problem.x.dim() > 2:
        return None
    x = problem.extended()
    largest = float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1])
    size = float(problem.y.square().mean()) / problem.kappa
    return size * (largest / problem.y.shape[1]) ** 0.5 * radius * sin(alpha / 2)
