"""Paths inside a level set of a linear network (Freeman & Bruna 2017, Proposition 2.2, repaired)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from isthmus.checks import check_whole
from isthmus.connectors.base import About, Connection, Connector, Outcome, Task
from isthmus.connectors.deep_linear.one_layer import Sizes, clear_biases, one_layer_path
from isthmus.connectors.deep_linear.two_factors import TwoFactors
from isthmus.errors import InputError, UnsupportedError
from isthmus.kinds import check_fields
from isthmus.objective import Objective
from isthmus.objective.losses import L1
from isthmus.params import Params, cast
from isthmus.paths import Curve, Path
from isthmus.structure.chain import Chain, chain_of, factor


@dataclass(frozen=True)
class DeepLinear(Connector):
    """Proposition 2.2 of Freeman & Bruna 2017: linear networks, on a path where F <= max(F(a), F(b)).

    The proposition as printed is false; this makes the paths that exist, and refuses the rest by name.

    *Without penalty*, any depth: both ends are brought to one form of all layers but one, by moves that change one
    layer at a time and never the outputs (a simplex method on the hidden units, ``connectors/exchange.py``); then that
    one layer moves straight. Every segment is proved exactly, the excess is 0. Each hidden layer l needs more units
    than there are outputs, or inputs: n_l >= min(n_0, n_L) + 1 (kernel entries count as so many inputs or outputs).

    *With ridge*, two layers: both ends go to balanced factors and meet on the segment of products (1-t) M_a + t M_b,
    where ridge is 2 ||M||_*, a convex function: at most 9 straight or curved parts. The curves are laid down as cubic
    Bezier curves, halved until the loss on each is at most max(F(a), F(b)) (1 + `tolerance`) (at most `max_segments`
    segments); the bound that decides is in the stats. With n_1 = min(n_0, n_2) units the square factor may have a
    positive determinant at one end and a negative one at the other. Every path is then singular somewhere: it goes
    through a product of lower rank (zero, if need be) whose loss is no larger than that of the larger end, which is
    looked for by descents. Where none is found the pair is refused, with the lowest that was: (w2 w1 - 1)^2 +
    0.05 (w1^2 + w2^2) is 0.0975 at w1 = w2 = 0.975 and at w1 = w2 = -0.975, and at least 1 where w1 = 0.

    Where all level sets are connected, no strict local minimum is above another (Proposition 2.1, which is false of
    plateaus). With ridge and three or more layers they are not connected: for (w1 w2 w3 - 1)^2 + 0.05 |w|^2 the origin
    is a strict local minimum of value 1, while three weights of 0.95 have 0.156. Refused.

    When to use: linear networks (nn.Linear, convolutions, average pooling; with or without biases) and a loss that is
    convex in the outputs. Cost: decompositions of the weights; with ridge 7 evaluations per Bezier curve.
    """

    tolerance: float = 1e-6
    max_segments: int = 2000

    about = About(
        makes="a path in the level set of a linear network: straight segments, with ridge Bezier curves",
        reference="Freeman & Bruna 2017, Proposition 2.2 (false as printed; repaired)",
        needs="a linear network with wide hidden layers; no penalty, or two layers and ridge",
        cost="decompositions of the weights, with ridge about 7 evaluations per segment",
        convex=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.tolerance < float("inf"):
            raise InputError("tolerance", expected="a number > 0 (part of the larger end's loss)", got=self.tolerance)
        check_whole(self, "max_segments", least=8)

    def find(self, task: Task) -> Connection:
        """Check the premises, then the construction that they allow."""
        objective, a, b = task.objective, task.a, task.b
        chain = linear_chain(objective)
        wide = objective.cast(torch.float64)
        ends = (cast(a, torch.float64), cast(b, torch.float64))
        penalised = ridge_names(objective, chain)
        if chain.L == 1:
            return Connection(Path((Curve((a, b)),)), b, Outcome.CONSTRUCTED, {"segments": ["straight line"]})
        if penalised and chain.L > 2:
            raise UnsupportedError(
                "the penalty",
                f"with ridge and {chain.L} layers level sets need not be connected (Proposition 2.2 is false there): "
                "for (w1 w2 w3 - 1)^2 + 0.05 |w|^2 the origin is a strict local minimum of value 1, but "
                "(0.95, 0.95, 0.95) has 0.156",
                "take two layers with ridge, or no penalty",
            )
        sizes = Sizes.of(chain, ends[0])
        movable = all(clear_biases(chain, wide, p) is not None for p in ends)
        if not penalised and (split := sizes.split(movable)) is not None:
            points, labels = one_layer_path(chain, wide, ends, split)
            stats: dict[str, Any] = {"construction": "one layer at a time", "free_layer": split + 1}
            return Connection(
                _path(list(pairwise(points)), a, b), b, Outcome.CONSTRUCTED, {"segments": labels, **stats}
            )
        if chain.L > 2:
            raise UnsupportedError("the hidden widths", sizes.too_narrow())
        build = TwoFactors(
            chain, wide, ends, penalised, self.tolerance, self.max_segments,
            lambda done: task.progress("laying down curves", done, max(done, self.max_segments)),
        )  # fmt: skip
        build.build()
        excess = build.bound - build.top
        stats = {"construction": "balanced factors", "bound": build.bound, "excess_bound": excess}
        outcome = Outcome.CONSTRUCTED if excess <= build.allowed else Outcome.BUDGET_EXHAUSTED
        return Connection(_path(build.controls, a, b), b, outcome, {"segments": build.labels, **stats})


def _path(controls: list[tuple[Params, ...]], a: Params, b: Params) -> Path:
    """The path in the precision of the ends, which are put in as they are."""
    done: dict[int, Params] = {}
    dtype = next(v.dtype for v in a.values() if v.is_floating_point())
    segments = [[done.setdefault(id(p), cast(p, dtype)) for p in control] for control in controls]
    segments[0][0], segments[-1][-1] = a, b
    return Path(tuple(Curve(tuple(control)) for control in segments))


def linear_chain(objective: Objective) -> Chain:
    """The chain of a linear network, or ``UnsupportedError`` naming the operation that is not linear."""
    chain = chain_of(objective.program, objective.structure)
    for layer in chain.layers:
        for node in layer.nodes:
            pooled = node.about.linear == "jointly" and node.kind not in ("pointwise", "shape", "join", "part")
            if node.kind != "affine" and not pooled and factor(node) is None:
                raise UnsupportedError(node.where or node.op, "the network is not linear")
    return chain


def ridge_names(objective: Objective, chain: Chain) -> set[str]:
    """The parameters that ridge counts; empty without penalty."""
    penalty = objective.penalty
    if penalty is None or penalty.kappa == 0:
        return set()
    if isinstance(penalty, L1):
        raise InputError("penalty", expected="ridge or none", got=repr(penalty), instead="im.Ridge(kappa)")
    names = set(objective.parameter_names if penalty.names is None else penalty.names)
    if missing := [layer.weight for layer in chain.layers if layer.weight not in names]:
        raise InputError("penalty.names", expected="all weights, or no penalty", got=f"not {missing[0]!r}")
    return names
