"""A proof that two small networks are not connected below a level: boxes that cover all of weight space.

A box of weights is dropped when interval arithmetic proves that the loss is above the level on all of it. What is left
covers the sublevel set {L <= level}; a path that stays there stays in one component of the union of closed boxes that
touch. When the component of `a` does not hold `b`, every path between them rises above the level.

Weight space is not compact. With a penalty the level bounds every weight, as the loss is at least 0. Without, boxes
cover |w| <= `radius`, and the proof holds for all paths only if one of the two components keeps away from the border:
a path that leaves through the border has to go through boxes that touch it.

The forms of certificates evaluate a box: weights with a radius and no slope. They bound real arithmetic, their own
rounding included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from isthmus.certify.affine import Interval, Reading
from isthmus.certify.bounds import bound_of_outputs
from isthmus.certify.forms import TINY, UNIT, Form, half_width
from isthmus.certify.smooth import ASSUMED
from isthmus.checks import refuse_unless_whole
from isthmus.errors import InputError, UnsupportedError
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.objective.losses import Ridge, per_example
from isthmus.objective.skeleton import ties_of
from isthmus.params import Params, cast, check_ends, equal
from isthmus.program.export import Program
from isthmus.shown import count, one_line

MOST = 4
"""The number of parameters up to which boxes are few enough."""
BUDGET = 20_000
"""Boxes that are evaluated, unless told otherwise."""
SLACK = 1e-12
"""What the evaluation of a penalty of so few weights may round away, relative to it."""
ROOM = 1 << 26
"""Bytes for what does not depend on the weights."""


@one_line
@dataclass(frozen=True)
class Separation:
    """Whether it is `proved` that every path between two networks rises above `level`, with `boxes` evaluated.

    `left`: boxes of the component of the first network when the search ended. `why` nothing is proved: the networks
    are joined by boxes on which the loss is proved to be at most the level (`connected`), or the budget is spent.
    """

    proved: bool
    boxes: int
    level: float
    left: int
    connected: bool = False
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def separated(
    objective: Objective,
    a: ParamsLike,
    b: ParamsLike,
    level: float,
    *,
    radius: float | None = None,
    budget: int = BUDGET,
) -> Separation:
    """Try to prove that no path from `a` to `b` stays at or below `level`, for at most 4 parameters.

    `level`: of the loss, penalty included; both ends must lie at or below it. `radius`: the largest |weight| that is
    searched where no penalty bounds all parameters; then the component of one end must not touch that border.
    `budget`: of boxes. Buffers stay what they are in both networks. The loss is "mse" or "cross_entropy" with labels.

    Cost: one evaluation of the forms for every box, about 2 ms for ten examples. Boxes grow with the closeness of the
    level to the wall: for two parameters about 300 at a third of it, 4,500 at 97 %.

    Errors: ``InputError`` for ends above the level, for more than 4 parameters, and for a missing radius;
    ``UnsupportedError`` for other losses and for operations without a rule.

    >>> x, y = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)).double()
    >>> one, other = ({k: s * torch.ones(1, 1, dtype=torch.float64) for k in ("0.weight", "1.weight")} for s in (1, -1))
    >>> squares = Objective(net, "mse", (x, y), penalty=Ridge(0.01))
    >>> separated(squares, one, other, 0.5).proved
    True
    """
    check_kinds(separated, locals())
    refuse_unless_whole("budget", budget)
    ends = objective.check(a, "a"), objective.check(b, "b")
    check_ends(*ends)
    for name, end in zip("ab", ends, strict=True):
        if not objective.loss(end) <= level:
            raise InputError(name, expected=f"a loss of at most the level, {level:g}", got=objective.loss(end))
    narrow = objective.cast(torch.float64)
    _check(narrow, *ends)
    space = _Space.of(narrow, cast(ends[0], torch.float64), level, radius)
    return _search(space, [space.flat(cast(e, torch.float64)) for e in ends], budget)


def _check(objective: Objective, a: Params, b: Params) -> None:
    """Few parameters, the same buffers, and a loss that is at least 0 and has a rule."""
    own = objective.parameter_names
    if (number := count({k: a[k] for k in own})) > MOST:
        raise InputError("objective", expected=f"at most {MOST} parameters", got=f"{number:,} parameters")
    moving = {*own, *ties_of(objective.skeleton)}
    if not equal(*({k: v for k, v in p.items() if k not in moving} for p in (a, b))):
        raise InputError("b", expected="the buffers of a, as only parameters move", got="other buffers")
    labels = objective.named_loss == "cross_entropy" and not objective.data[1].is_floating_point()
    if not labels and objective.named_loss != "mse":
        raise UnsupportedError(
            "the loss", "it has no lower bound over a box", "use 'mse', or 'cross_entropy' of labels"
        )


@dataclass(frozen=True, eq=False)
class _Space:
    """The parameters as one vector, within |w| <= `radius`; `whole`: beyond, the loss is above the level."""

    objective: Objective
    program: Program
    base: Params
    level: float
    radius: float
    whole: bool

    @classmethod
    def of(cls, objective: Objective, base: Params, level: float, radius: float | None) -> _Space:
        """Errors: neither a penalty nor a radius."""
        program = objective.program
        if (own := _largest(objective, level)) is not None:
            return cls(objective, program, base, level, own, True)
        if radius is None or not 0 < radius < inf:
            raise InputError(
                "radius", expected="a number > 0, as nothing bounds the weights", got=radius,
                instead="the largest |weight| to search, or Objective(..., penalty=im.Ridge(kappa))",
            )  # fmt: skip
        return cls(objective, program, base, level, radius, False)

    def flat(self, params: Params) -> Tensor:
        """The parameters one after the other. Errors: beyond the radius."""
        w = torch.cat([params[k].reshape(-1) for k in self.objective.parameter_names])
        if not float(w.abs().max()) <= self.radius:
            raise InputError(
                "radius", expected=f"at least {float(w.abs().max()):g}, a weight of an end", got=self.radius
            )
        return w

    def params(self, w: Tensor) -> Params:
        """The parameters of a vector, by name."""
        like = {k: self.base[k] for k in self.objective.parameter_names}
        parts = w.split([v.numel() for v in like.values()])
        return {k: part.view_as(v) for (k, v), part in zip(like.items(), parts, strict=True)}

    def bounds(self, lo: Tensor, hi: Tensor) -> tuple[float, float]:
        """What the loss is at least and at most on the box."""
        middle = lo + (hi - lo) / 2
        half = torch.maximum(hi - middle, middle - lo) * (1 + 4 * UNIT)
        at, objective = self.base | self.params(middle), self.objective
        reading = Reading(objective, self.program, (at,), ROOM, moving=(), uncertain=self.params(half))
        outputs = [(z.settled(), y) for z, y in reading.outputs(Interval(0.5, 0.5))]
        # a penalty rises with every |w|
        nearest = torch.where((lo <= 0) & (hi >= 0), 0.0, torch.minimum(lo.abs(), hi.abs()))
        low, high = (objective.penalty_of(self.params(w)) for w in (nearest, torch.maximum(lo.abs(), hi.abs())))
        high *= 1 + SLACK
        return _least(objective, outputs) + low * (1 - SLACK), bound_of_outputs(objective, outputs, high, high).loss


def _largest(objective: Objective, level: float) -> float | None:
    """Beyond this |w| the penalty alone exceeds the level; None where it does not bound every parameter."""
    penalty, own = objective.penalty, objective.parameter_names
    if penalty is None or not penalty.kappa > 0 or not set(own) <= set(penalty.names or own):
        return None
    most = level / penalty.kappa
    return (most**0.5 if isinstance(penalty, Ridge) else most) * (1 + SLACK)


def _least(objective: Objective, outputs: Sequence[tuple[Form, Tensor]]) -> float:
    """A lower bound on the mean loss of outputs within these forms, without penalty; -infinity where there is none."""
    total, n = 0.0, objective.num_examples
    for z, y in outputs:
        if not bool(z.size().isfinite().all()):
            return -inf
        values = _least_square(z, y) if objective.named_loss == "mse" else _least_entropy(objective, z, y)
        total += float(values.sum()) - (n + 64) * UNIT * float(values.abs().sum()) - TINY
    return total / n


def _least_square(z: Form, y: Tensor) -> Tensor:
    terms, size = z.centre[:1].numel(), z.size()
    reach = half_width(z) + (size + y.abs()) * (8 * UNIT)
    return per_example(((z.centre - y).abs() - reach).clamp(min=0).square()) * (1 - ASSUMED - 2 * terms * UNIT)


def _least_entropy(objective: Objective, z: Form, y: Tensor) -> Tensor:
    """It falls with the label's output and rises with the others."""
    labels, reach = objective.criterion.positions, half_width(z)
    assert labels is not None  # noqa: S101
    at = labels.target(y).unsqueeze(labels.axis)
    best = (z.centre - reach).scatter_(labels.axis, at, (z.centre + reach).gather(labels.axis, at))
    rounding = z.size().flatten(1).amax(1).add_(1) * (4 * ASSUMED + 4 * z.centre[:1].numel() * UNIT)
    return (objective.example_losses(best, y) - rounding).clamp(min=0)


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Closed boxes [lo, hi], each [n, d]; `inside`: the loss is at most the level on the whole box."""

    lo: Tensor
    hi: Tensor
    inside: Tensor

    def __len__(self) -> int:
        return len(self.lo)

    def at(self, index: Tensor) -> _Boxes:
        """Some of them."""
        return _Boxes(self.lo[index], self.hi[index], self.inside[index])

    def holding(self, w: Tensor) -> Tensor:
        """Which hold a point."""
        return ((self.lo <= w) & (w <= self.hi)).all(1)

    def component(self, start: Tensor) -> Tensor:
        """Which can be reached from those of `start` through boxes that touch."""
        reached, front = start.clone(), start
        while bool(front.any()):
            lo, hi = self.lo[front], self.hi[front]
            rest = (~reached).nonzero()[:, 0]
            near = ((self.lo[rest, None] <= hi) & (self.hi[rest, None] >= lo)).all(2).any(1)
            front = torch.zeros_like(reached)
            front[rest[near]] = True
            reached |= front
        return reached

    def halved(self) -> tuple[Tensor, Tensor]:
        """Both halves of each, across its longest side; neighbours are halved at the same numbers."""
        longest = (self.hi - self.lo).argmax(1, keepdim=True)
        middle = self.lo + (self.hi - self.lo) / 2
        cut = middle.gather(1, longest)
        lo = torch.cat([self.lo, self.lo.scatter(1, longest, cut)])
        hi = torch.cat([self.hi.scatter(1, longest, cut), self.hi])
        return lo, hi


def _search(space: _Space, ends: Sequence[Tensor], budget: int) -> Separation:
    """Halve the boxes on which nothing is decided, of the components that matter, until the ends are apart."""
    root = torch.full((1, len(ends[0])), space.radius, dtype=torch.float64)
    boxes, done = _Boxes(-root, root, torch.zeros(1, dtype=torch.bool)), 0
    while True:
        lo, hi = boxes.at(~boxes.inside).halved()
        if done + len(lo) > budget:
            return Separation(False, done, space.level, len(boxes), why=f"the budget of {budget:,} boxes is spent")
        boxes, done = _joined(boxes.at(boxes.inside), _evaluated(space, lo, hi)), done + len(lo)
        parts = [boxes.component(boxes.holding(w)) for w in ends]
        apart = not bool((parts[0] & parts[1]).any())
        if apart and (space.whole or not all(_touches(boxes.at(p), space.radius) for p in parts)):
            return Separation(True, done, space.level, int(parts[0].sum()))
        if _connected(boxes, ends):
            why = "boxes on which the loss is at most the level join the networks"
            return Separation(False, done, space.level, int(parts[0].sum()), True, why)
        boxes = boxes.at(parts[0] | parts[1])


def _evaluated(space: _Space, lo: Tensor, hi: Tensor) -> _Boxes:
    """Those boxes that may hold a point at most at the level."""
    found = [space.bounds(p, q) for p, q in zip(lo, hi, strict=True)]
    below, above = torch.tensor(found, dtype=torch.float64).T
    keep = ~(below > space.level)
    return _Boxes(lo[keep], hi[keep], (above <= space.level)[keep])


def _joined(a: _Boxes, b: _Boxes) -> _Boxes:
    return _Boxes(torch.cat([a.lo, b.lo]), torch.cat([a.hi, b.hi]), torch.cat([a.inside, b.inside]))


def _touches(boxes: _Boxes, radius: float) -> bool:
    """Whether one reaches the border of the cube."""
    return bool(((boxes.lo <= -radius) | (boxes.hi >= radius)).any())


def _connected(boxes: _Boxes, ends: Sequence[Tensor]) -> bool:
    """Whether boxes of low loss alone join the ends."""
    low = boxes.at(boxes.inside)
    first, last = (low.holding(w) for w in ends)
    return bool((low.component(first) & last).any())
