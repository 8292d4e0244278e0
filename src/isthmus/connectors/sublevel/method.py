"""Paths that never leave a sublevel set (Nguyen 2019, Theorems 3.2, 5.1 and 6.1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.connectors.base import About, Connection, Connector, Outcome, Task
from isthmus.connectors.sublevel.columns import Unreachable
from isthmus.connectors.sublevel.judge import default_tolerance, measure, prove
from isthmus.connectors.sublevel.trail import Trail
from isthmus.errors import InputError, UnsupportedError
from isthmus.evaluate.level_network import LevelNetwork, independent_examples
from isthmus.kinds import check_fields
from isthmus.objective import Objective
from isthmus.params import Params, cast
from isthmus.paths import Curve, Path, Segment
from isthmus.paths.full_rank import ones_column
from isthmus.premises.sublevel import WITHOUT_BIASES, Theorem, connecting
from isthmus.training.progress import Progress

__all__ = ["Sublevel", "plain_premises", "refused"]


@dataclass(frozen=True)
class Sublevel(Connector):
    """Nguyen 2019: on N samples with a convex loss, a path on which the loss is at most that of the higher end.

    Theorem 3.2: [X, 1] has rank N, n_1 > ... > n_L, an activation that is strictly monotone onto R (leaky ReLU, the
    identity). Theorem 5.1: n_1 >= 2N, n_2 > ... > n_L, such an activation behind the layers 2..L-1. Theorem 6.1, case
    2: all hidden layers >= 2N, any activation whose shifts are independent (ReLU, leaky ReLU, ELU, tanh, ...). Layers
    up to some k that are >= 2N below narrowing ones serve too. Of the theorems whose premises hold the first in the
    order 6.1, 3.2, 5.1 is taken, or the one named. A convolution of c channels that a linear layer reads at q positions
    counts as c q units.

    Layer by layer a takes over the wide layers of b, by six straight segments each (Lemma 5.3; two more where features
    of b lack full rank or are worse conditioned than `limit`, Lemma 5.2); the narrowing layers above follow one
    ``LevelCurve``, whose outputs are affine in t, after Lemma 3.4 where one of their weights lacks full rank. The
    outputs stay, except on that curve (or on a last straight segment), where they are those of both ends mixed.

    All is computed in float64. `tolerance`: the largest excess, in units of the larger of 1 and the higher end's loss,
    for which the outcome is ok (default 1e-8; for float32 networks 1e4 of their units in the last place): the excess
    that ``certify`` proves, rounding included, or with ``prove=False`` what is measured at all vertices and between
    them, with 8 times the largest deviation from the construction. An activation for which ``certify`` has no rule
    leaves it at what is measured: ``UNPROVED``.

    PReLU: slopes that are one number, the same at both ends, are those of a leaky ReLU (a negative one will do for
    Theorem 6.1); otherwise slopes of which each belongs to one unit move with their units, in layers of 2N units. A
    slope that the units of a layer share must be the same at both ends.

    `theorem`: "3.2", "5.1" or "6.1"; None: the first whose premises hold.

    When to use: on few samples or very wide networks. Needs a chain of layers without normalisation, a convex loss, no
    penalty. If no theorem applies the path is the straight line, the outcome says so, and ``stats["premises"]`` says
    what fails and by how much, ``stats["largest_subproblem"]`` for how many of the samples a theorem would apply. Costs
    some factorisations of N x n_l matrices per layer, and a certificate.
    """

    theorem: str | None = None
    tolerance: float | None = None
    limit: float = 1e6
    prove: bool = True

    about = About(
        makes="6 straight segments per wide layer and one level curve",
        reference="Nguyen 2019, Theorems 3.2, 5.1, 6.1",
        needs="a perceptron (or plain convolutional network) with layers of 2N units, or N independent samples",
        cost="factorisations of N x n_l matrices",
        convex=True,
        statistics="interpolate",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.theorem not in (None, "3.2", "5.1", "6.1"):
            raise InputError("theorem", expected="None, '3.2', '5.1' or '6.1'", got=repr(self.theorem))
        if self.tolerance is not None and not 0 < self.tolerance < float("inf"):
            raise InputError("tolerance", expected="a number > 0", got=self.tolerance)
        if not self.limit > 1:
            raise InputError("limit", expected="a condition number > 1", got=self.limit)

    def find(self, task: Task) -> Connection:
        """Choose the theorem, build both halves, join them, measure what rounding did."""
        objective, a, b = task.objective, task.a, task.b
        try:
            plain_premises(objective)
            net = LevelNetwork.of(objective, a, b)
        except UnsupportedError as e:
            return refused(a, b, [str(e)], {})
        known = connecting(net)
        wanted = [t for t in known if self._asked_for(t, net.L)]
        failing, unreachable = [], set[str]()
        for theorem in wanted:
            if not theorem.holds:
                failing += [f"Theorem {theorem.name}: {text}" for text in theorem.failing]
                continue
            try:
                return self._build(net, theorem, objective, a, b, task.generator, task.progress)
            except Unreachable as e:
                failing.append(f"Theorem {theorem.name}: {e}")
                unreachable.add(theorem.name)
        if not wanted:
            failing = [f"Theorem {self.theorem} is about networks with hidden layers, this one has {net.L} layer"]
        return refused(a, b, failing, {"largest_subproblem": _largest_subproblem(net, a, unreachable)})

    def _asked_for(self, theorem: Theorem, L: int) -> bool:
        """Whether this is the theorem that was named: with one hidden layer, 5.1 and 6.1 are about the same layer."""
        k = theorem.level
        levels = {"3.2": k == 0 < L - 1, "5.1": k > 0, "6.1": k == L - 1 > 0}
        return self.theorem is None or levels[self.theorem]

    def _build(
        self, net: LevelNetwork, theorem: Theorem, objective: Objective, a: Params, b: Params,
        generator: torch.Generator, progress: Progress,
    ) -> Connection:  # fmt: skip
        k, there, back = theorem.level, Trail(net, a, "at A, "), Trail(net, b, "at B, ")
        for l in range(1, k + 1):  # at A any rank will do: its features are given up
            back.make_features_full(l, generator, limit=self.limit)
        for l in range(1, k + 1):
            progress("adopting layers", l - 1, k)
            there.note_condition(l)
            back.note_condition(l)
            there.adopt(l, back)
        if k < net.L - 1:
            for trail in (there, back):
                trail.note_condition(k)
                trail.make_weights_full(k)
        progress("adopting layers", k, k)
        segments, labels, joined = _join(net, k, there, back)
        path = Path(tuple(segments))
        stats = {"theorem": theorem.name, "segments": labels, "premises": premises(theorem)}
        stats |= {"conditions": {"a": there.conditions, "b": back.conditions}}
        return self._judged(net, path, b, joined, stats, objective)

    def _judged(
        self, net: LevelNetwork, path: Path, b: Params, joined: int, stats: dict[str, Any], objective: Objective
    ) -> Connection:
        wide = net.objective
        first, last = wide.outputs(cast(path.start, torch.float64)), wide.outputs(cast(path.end, torch.float64))

        def kept(i: int, t: float) -> Tensor:
            return first if i < joined else last if i > joined else torch.lerp(first, last, t)

        found = measure(wide, path.segments, kept)
        tolerance = default_tolerance(self.tolerance, objective.dtype)
        top = max(found.losses[0], found.losses[-1])
        allowed = tolerance * max(1.0, abs(top))
        stats |= {
            "excess": found.excess,
            "deviation": found.deviation,
            "allowed": allowed,
            "drift": found.drift,
            "digits_lost": found.digits_lost,
            "growth": found.growth,
        }
        outcome = Outcome.CONSTRUCTED if found.provable <= allowed else Outcome.IMPRECISE  # also for NaN
        if self.prove and outcome.ok:
            shown = prove(objective, path, top)
            outcome, stats["certificate"] = shown.outcome(allowed), shown.facts
        return Connection(path, b, outcome, stats)


def _join(net: LevelNetwork, k: int, there: Trail, back: Trail) -> tuple[list[Segment], list[str], int]:
    """The segments and labels of both trails and of what joins them, and the number of that segment."""
    first, last = there.segments(), back.segments()
    p, q = (s[-1].end if s else t.start for s, t in ((first, there), (last, back)))
    straight = k == net.L - 1
    middle: Segment = Curve((p, q)) if straight else there.curve(p, q, range(k + 1, net.L + 1))
    labels = [str(label) for label in there.labels]
    labels.append("last layer (a)" if straight else f"layers {k + 1} to {net.L} (level curve)")
    labels += [f"{label.source}, backwards ({label.move})" for label in reversed(back.labels)]
    return [*first, middle, *(s.reversed() for s in reversed(last))], labels, len(first)


def plain_premises(objective: Objective) -> None:
    """Refuse what no theorem of the paper covers: a loss that is not convex in the outputs, a penalty."""
    if not objective.convex:
        raise UnsupportedError("the loss", "it was not declared convex in the outputs", "pass convex=True if it is")
    if objective.penalty is not None:
        raise UnsupportedError("the penalty", "the theorems are for losses that depend on the outputs alone")


def refused(a: Params, b: Params, failing: list[str], more: Mapping[str, Any]) -> Connection:
    """The straight line, with what failed."""
    stats = {"theorem": None, "segments": ["straight line"], "premises": failing, **more}
    return Connection(Path((Curve((a, b)),)), b, Outcome.PREMISE_FAILS, stats)


def premises(theorem: Theorem) -> list[dict[str, Any]]:
    """The premises with their numbers, as JSON values."""
    return [{"name": c.name, "value": c.value, "needed": c.needed, "holds": c.holds} for c in theorem.conditions]


def _largest_subproblem(net: LevelNetwork, a: Params, refused: Collection[str] = ()) -> dict[str, Any] | None:
    """The theorem that covers the most of the first samples, with their number: ``objective.subset(n)`` would do.

    Theorems whose construction was tried and `refused` are left out: nothing tells on how many samples they would do.
    """
    known = [(_most_samples(net, t), t) for t in connecting(net) if t.name not in refused]
    for n, theorem in sorted(known, key=lambda pair: -pair[0]):
        if n > 0 and _would_hold(net, a, theorem, n):
            return {"theorem": theorem.name, "examples": n}
    return None


def _most_samples(net: LevelNetwork, theorem: Theorem) -> int:
    """For how many samples the layers are wide enough; 0 where a premise fails that fewer samples cannot mend."""
    k = theorem.level
    if not _mendable(net, theorem):
        return 0
    if k == 0:
        return independent_examples(ones_column(net.inputs, net.has_bias(1))) if net.L > 1 else net.N
    wide = [net.chain.widths[l] // 2 * net.sizes[l + 1][1] * net.N // net.sizes[l + 1][0] for l in range(1, k + 1)]
    n = min(net.N, *wide)
    return n if net.has_bias(1) else min(n, independent_examples(net.reached(1)) * net.N // net.sizes[2][0])


def _mendable(net: LevelNetwork, theorem: Theorem) -> bool:
    fewer = ("n_", "rank", WITHOUT_BIASES)
    rest = [c for c in theorem.conditions if c.holds is False and not c.name.startswith(fewer)]
    narrowing = all(net.chain.widths[l] > net.chain.widths[l + 1] for l in range(theorem.level + 1, net.L))
    return narrowing and not rest


def _would_hold(net: LevelNetwork, a: Params, theorem: Theorem, n: int) -> bool:
    """Whether the premises hold on the first n samples."""
    fewer = LevelNetwork.of(net.objective.subset(n), a)
    return all(t.holds for t in connecting(fewer) if t.level == theorem.level)
