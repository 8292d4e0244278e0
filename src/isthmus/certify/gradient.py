"""Bounds by the gradient of the loss: remainders are followed back through the network, with their signs.

The outputs are z(s) = chord(s) - (1 - s^2) bend + rho, the chord that between z(-1) and z(1), without remainders. Put
d = -(1 - s^2) bend + rho. The loss is convex, so that it is at most the mean, with the weights (1 - s) / 2 and
(1 + s) / 2, of loss(z(-1) + d) and loss(z(1) + d), and at each end e

    loss(z(e) + d) <= loss(z(e)) + g . d + curvature,    g . d <= (1 - s^2) (-g . bend) + sum |B| fresh,

with g the gradient at z(e) and B as in ``origins.py``. The curvature is at most (range of d)^2 / 8 for a cross-entropy,
by Hoeffding's lemma, times the sum of its probabilities where the targets are such; and the mean of d^2 times half the
largest second derivative for a mean over entries. What bends is the same function of s for all examples and outputs: it
is added up with its signs first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from isthmus.certify.forms import Form, plus, present
from isthmus.certify.origins import contributions, roundings
from isthmus.objective import Objective
from isthmus.objective.losses import per_example

EVALUATED = 1e-11
"""More than the relative error of a loss and of its gradient, times the sizes of outputs and targets."""

BENDS = {"mse": 2.0, "bce_with_logits": 0.25, "huber": 1.0}
"""The losses that are means over entries, each with a second derivative of at most this."""

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Followed:
    """Bounds of the losses at both ends, whose sums over the examples count, and what is added to a sum in between.

    `shares`: how much of the sums comes from which operation.
    """

    losses: Pair
    humps: tuple[float, float]
    shares: Mapping[str, float]


def followed_back(objective: Objective, z: Form, y: Tensor, known: Pair) -> Followed | None:
    """Smaller bounds than those `known` at both ends, where there are any; None for losses without a rule.

    Examples whose curvature alone is more than their known bounds allow keep those.
    """
    curvature = _curvature(objective, z, y)
    if curvature is None:
        return None
    losses, humps, shares = [], [], Counter[str]()
    for sign, old in zip((-1.0, 1.0), known, strict=True):
        new, hump, own = _at_end(objective, z, y, sign, old, curvature)
        losses.append(new)
        humps.append(hump)
        shares.update({k: v / 2 for k, v in own.items()})
    return Followed((losses[0], losses[1]), (humps[0], humps[1]), shares)


def _at_end(
    objective: Objective, z: Form, y: Tensor, sign: float, old: Tensor, curvature: Tensor
) -> tuple[Tensor, float, Mapping[str, float]]:
    end = z.centre if z.slope is None else z.centre + sign * z.slope
    end = end if z.bend is None else end + 0.5 * z.bend
    with torch.enable_grad():
        leaf = end.detach().requires_grad_()
        values = objective.example_losses(leaf, y)
        g = torch.autograd.grad(values.sum(), leaf)[0]
    values = values.detach().double()
    better = values + curvature < old
    if not bool(better.any()):
        return old, 0.0, {}
    g = g.masked_fill(~better.reshape(-1, *(1,) * (g.dim() - 1)), 0.0)
    shares = contributions(z, g)
    hump = 0.0 if z.bend is None else -float((g * z.bend).sum())
    own = values + curvature + _rounding(objective, z, y, values)
    total, before = float(own[better].sum()) + sum(shares.values()), float(old[better].sum())
    if not isfinite(total) or total + max(hump, 0.0) >= before:
        return old, 0.0, {}
    return torch.where(better, total / int(better.sum()), old), hump, shares


def _curvature(objective: Objective, z: Form, y: Tensor) -> Tensor | None:
    """How far the loss of each example may be above its tangent, over all d; None where that is not known."""
    up = plus(z.radius, None if z.bend is None else z.bend.clamp(max=0).neg())
    down = plus(z.radius, None if z.bend is None else z.bend.clamp(min=0))
    if up is None or down is None:
        return None
    if (bend := BENDS.get(_name(objective))) is not None:
        return per_example(torch.maximum(up, down).square()) * (bend / 2 * (1 + EVALUATED))
    return _of_cross_entropy(objective, up, down, y)


def _name(objective: Objective) -> str:
    """The name of the loss, also where it was given as an object of torch that is the same function."""
    return objective._loss if isinstance(objective._loss, str) else objective.named_loss or ""


def _of_cross_entropy(objective: Objective, up: Tensor, down: Tensor, y: Tensor) -> Tensor | None:
    """That of a cross-entropy whose logits move so far up and down."""
    if y.is_floating_point():
        entropy = objective.named_loss == "cross_entropy"
        return per_example(_spread(up, down, 1) * y.sum(1)) if entropy else None
    rises, positions = objective.criterion.rises, objective.criterion.positions
    if rises is None or positions is None:
        return None
    spread = _spread(up, down, positions.axis)
    if objective.named_loss == "cross_entropy":
        return positions.average(spread, y)
    return spread.reshape(len(spread), -1).amax(1) * rises


def _spread(up: Tensor, down: Tensor, axis: int) -> Tensor:
    """Hoeffding's bound, position by position."""
    return (up.amax(axis) + down.amax(axis)).square() * ((1 + EVALUATED) / 8)


def _rounding(objective: Objective, z: Form, y: Tensor, values: Tensor) -> Tensor:
    """What the evaluation of the loss, of its gradient, and of what that is multiplied by may round away."""

    def each(v: Tensor) -> Tensor:
        return v.abs().reshape(len(v), -1).sum(1)

    stray = 1 + each(present(z.radius)) + (0.0 if z.bend is None else each(z.bend))
    size = 1 + each(z.size()) + (each(y) if y.is_floating_point() else 0.0)
    steep = (objective.criterion.rises or 1.0) + (each(y) if y.is_floating_point() else 0.0)
    steep = steep + (size + stray if objective.named_loss == "mse" else 0.0)
    return (roundings(z) + EVALUATED * size) * stray * steep + EVALUATED * values.abs()
