"""From forms of the outputs to a bound on the mean loss and on the error rate over an interval of t.

The outputs are z(s) = c0 + s c1 + e with |e| <= R. For every loss here there is a U(s), convex in s, that no such e
exceeds; the mean over the examples of a convex function is convex, so it is at most the larger of its two ends:

- cross-entropy rises with every logit but the label's: e = -R there, +R elsewhere;
- mean squared error: (|z - y| + R)^2;
- any other loss that was declared convex in the outputs: the box |e| <= R lies in the convex hull of the 2 C points
  +-C R_j on the axes (C outputs), so that the largest loss over those points is a bound; C is limited to `WIDEST`, at a
  point of the path to `WIDEST_POINT`;
- a penalty is convex in the weights: along a Bezier curve it is at most the chord of its values at the ends plus what
  the control points of the sub-interval rise above that chord.

What the evaluation of these formulas may round away is added; of a loss given as a function it is assumed to be below
1e-12, relative to max(1, the loss). Outputs that are not finite have no bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import inf, isfinite, nan

import torch
from torch import Tensor

from isthmus.certify.affine import Interval, Reading
from isthmus.certify.forms import TINY, UNIT, Form, Undecided
from isthmus.certify.gradient import followed_back
from isthmus.certify.smooth import ASSUMED
from isthmus.errors import UnsupportedError
from isthmus.objective import Objective
from isthmus.objective.losses import per_example
from isthmus.params import Params, lerp
from isthmus.program.export import Program

WIDEST = 32
"""The number of outputs up to which a loss that is known only to be convex has a bound."""
WIDEST_POINT = 512
"""The same at a point of the path, where one bound is enough."""


@dataclass(frozen=True)
class Bound:
    """On one interval: the loss is at most `loss`, the error rate at most `error` (NaN where none is defined).

    `estimate`: the loss at the centres of the forms, close to the loss at the middle of the interval; proves nothing.
    `unsure`: per example whether (or at what fraction of its positions) another class may be the largest. `why` there
    is no bound, where a choice is open on this interval and may not be on a smaller one. `shares`: by operation, how
    much of the bound comes of what it adds, where remainders are followed back.
    """

    loss: float
    error: float
    estimate: float
    unsure: Tensor | None = None
    why: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)


class Bounds:
    """Bounds on the loss of `objective` (float64) over any interval of the Bezier curve with these control points.

    `simple`: the control points of the same functions, without the weights into dead units; the penalty does not read
    them. `uncertain`: by how much the weights in `simple` may be off. Errors: `UnsupportedError` names the operation
    or the loss that has no rule.
    """

    means = "affine forms in t"

    def __init__(
        self,
        objective: Objective,
        program: Program,
        control: Sequence[Params],
        simple: Sequence[Params] | None = None,
        memory: int = 1 << 26,
        uncertain: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not objective.convex:
            raise UnsupportedError("the loss", "it was not declared convex in the outputs")
        self.objective, self.control = objective, list(control)
        self.reading = Reading(objective, program, simple or control, memory, uncertain=uncertain)

    def over(self, start: float, end: float, followed: bool = False) -> Bound:
        """The bound for t in [start, end]; `followed`: with remainders followed back from the loss."""
        with torch.no_grad():
            left, right = (float(v) for v in self.penalty(start, end))
            outputs = self.reading.outputs(Interval.between(start, end), followed)
            try:
                return bound_of_outputs(self.objective, outputs, left, right)
            except Undecided as e:
                return Bound(inf, nan, -inf, why=str(e))

    def penalty(self, start: float, end: float) -> tuple[float, float]:
        """A line over [start, end] above the penalty, by its values at both ends."""
        if self.objective.penalty is None:
            return 0.0, 0.0
        n = len(self.control) - 1
        values = [
            self.objective.penalty_of(_blossom(self.control, [start] * (n - i) + [end] * i)) for i in range(n + 1)
        ]
        first, last = values[0], values[-1]
        if not all(map(isfinite, values)):
            return inf, inf
        rise = max([v - first - i / n * (last - first) for i, v in enumerate(values)])
        # the Bernstein polynomials of the interior control points add up to at most 1 - 2^(1 - n)
        rise = max(rise, 0.0) * (1 - 2.0 ** (1 - n)) + self.penalty_rounding
        return first + rise, last + rise

    @cached_property
    def penalty_rounding(self) -> float:
        """What rounding may take from a penalty: of its sum, and of the points of the curve, which are at most as far
        off as few ulps of the control points, whose weights may be larger."""
        penalty, first = self.objective.penalty, self.control[0]
        if penalty is None:
            return 0.0
        terms = sum(first[name].numel() for name in penalty.names or self.objective.parameter_names)
        largest = sum(self.objective.penalty_of(p) for p in self.control)
        share = 64 * ASSUMED + 4 * (terms + 16 * len(self.control)) * UNIT
        return share * largest + (1 + penalty.kappa) * TINY


def bound_of_outputs(
    objective: Objective, outputs: Iterable[tuple[Form, Tensor]], left: float = 0.0, right: float = 0.0
) -> Bound:
    """The bound for outputs within these forms, given chunk by chunk with their targets.

    `left`, `right`: of the penalty at both ends. Errors: `UnsupportedError` for a loss without a rule.
    """
    sums, n = torch.zeros(4, dtype=torch.float64), objective.num_examples
    humps, shares = torch.zeros(2, dtype=torch.float64), Counter[str]()
    marks = []
    for z, y in outputs:
        own, z = z.rounded(), z.settled()
        marks.append(unsure(objective, z, y))
        if not bool(z.size().isfinite().all()):  # a loss given as a function might make something of it
            sums += nan
            continue
        low, high, centre = (v.double() for v in _losses(objective, z, y))
        if own.origin is not None and (found := followed_back(objective, own, y, (low, high))) is not None:
            (low, high), humps = found.losses, humps + torch.tensor(found.humps, dtype=torch.float64)
            shares.update(found.shares)
        sums += torch.stack([low.sum(), high.sum(), centre.sum(), low.abs().sum() + high.abs().sum()]).cpu()
    low, high, centre, size = (float(v) / n for v in sums)
    hump = max(0.0, float(humps.max()) / n)
    loss = max(low + left, high + right) + hump + (n + 64) * UNIT * (size + left + right) + TINY
    known = all(map(isfinite, (low, high, size, left, right, loss)))
    wrong = torch.cat(marks)
    own = {k: v / n for k, v in shares.items()}
    return Bound(loss if known else inf, float(wrong.mean()), centre + (left + right) / 2, wrong, shares=own)


def _blossom(control: Sequence[Params], at: Sequence[float]) -> Params:
    """One lerp per level, each at its own t: the control points of a part of the curve."""
    level = list(control)
    for t in at:
        level = [lerp(p, q, t) for p, q in pairwise(level)]
    return level[0]


def _losses(objective: Objective, z: Form, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per example: bounds at s = -1 and s = 1, and the loss at the centre."""
    # at a point both ends are the same
    ends = (z.centre,) if z.slope is None else (z.centre - z.slope, z.centre + z.slope)
    bounds = [_worst(objective, z, end, y) for end in ends]
    return bounds[0], bounds[-1], objective.example_losses(z.centre, y)


def end_losses(objective: Objective, z: Form, y: Tensor) -> tuple[Tensor, Tensor]:
    """Per example: bounds at both ends of the interval; in between the loss is at most the line from one to the other.

    What adding and averaging them may round away is in.
    """
    low, high, _ = _losses(objective, z, y)
    left, right = (v + v.abs() * (2 * len(y) + 64) * UNIT + TINY for v in (low, high))
    return left, right


def _worst(objective: Objective, z: Form, end: Tensor, y: Tensor) -> Tensor:
    """Per example a bound at one end, over all remainders."""
    radius, terms = z.size() if z.radius is None else z.radius, z.centre[:1].numel()
    if objective.named_loss == "mse":
        radius = radius + (z.size() + y.abs()) * (8 * UNIT)
        return per_example(((end - y).abs() + radius).square()) * (1 + ASSUMED + 2 * terms * UNIT) + TINY
    soft, rises = y.is_floating_point(), objective.criterion.rises
    if rises is None or (soft and not objective.named_loss):
        return _convex(objective, end, radius, y, WIDEST_POINT if z.slope is None else WIDEST)
    weight = y.flatten(1).sum(1).add_(1) * rises if soft else rises
    extra = z.size().flatten(1).amax(1).add_(1) * (4 * ASSUMED + 4 * terms * UNIT) * weight
    return _cross_entropy(objective, end, radius, y) + extra


def _cross_entropy(objective: Objective, z: Tensor, radius: Tensor, y: Tensor) -> Tensor:
    """The largest cross-entropy over the box of that radius; for labels that spread over classes, a bound on it.

    With probabilities p of sum P the loss P logsumexp(z) - p z rises with z_j where p_j = 0 and falls where p_j = P;
    for other j both terms take their own worst sign.
    """
    if not y.is_floating_point():
        labels = objective.criterion.positions
        assert labels is not None  # noqa: S101
        at = labels.target(y).unsqueeze(labels.axis)
        worst = (z + radius).scatter_(labels.axis, at, (z - radius).gather(labels.axis, at))
        return objective.example_losses(worst, y)
    if bool((y < 0).any()):
        raise UnsupportedError("the targets", "negative probabilities have no rule")
    total = y.sum(1, keepdim=True)
    outer = torch.where(y >= total, z - radius, z + radius).logsumexp(1, keepdim=True)
    linear = (y * torch.where(y <= 0, z + radius, z - radius)).sum(1, keepdim=True)
    return (total * outer - linear).flatten(1).mean(1)


def _convex(objective: Objective, z: Tensor, radius: Tensor, y: Tensor, widest: int) -> Tensor:
    """The largest loss over the points z +- C R_j, example by example; its own rounding is assumed below 1e-12."""
    count = z[:1].numel()
    if count > widest:
        raise UnsupportedError(
            "the loss", f"a loss that is only known to be convex has a bound for at most {widest} outputs, not {count}"
        )
    worst = objective.example_losses(z, y)
    flat = (count * radius).reshape(len(z), -1)
    if not bool((z.abs().reshape(len(z), -1) + flat).isfinite().all()):
        return torch.full_like(worst, inf)
    for j in range(count):
        step = torch.zeros_like(flat)
        step[:, j] = flat[:, j]
        step = step.view_as(z)
        for end in (z - step, z + step):
            worst = torch.maximum(worst, objective.example_losses(end, y))
    return worst + worst.abs() * (10 * ASSUMED) + 10 * ASSUMED


def unsure(objective: Objective, z: Form, y: Tensor) -> Tensor:
    """Per example 1, or the fraction of its positions, where another class may be the largest somewhere, else 0."""
    if (labels := objective.criterion.labels) is None or z.centre.dim() < 2:
        return torch.full((len(y),), nan, dtype=torch.float64)
    axis = labels.axis
    at = labels.target(y).unsqueeze(axis)
    margin = z.centre.gather(axis, at) - z.centre
    if z.slope is not None:
        margin.sub_((z.slope.gather(axis, at) - z.slope).abs_())
    if z.radius is not None:
        margin.sub_(z.radius).sub_(z.radius.gather(axis, at))
    maybe = ~(margin > 0).scatter_(axis, at, True).all(axis)
    return labels.average(maybe.double(), y)
