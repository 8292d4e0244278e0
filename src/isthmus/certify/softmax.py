"""Affine forms through softmax: one probability against all others, which is what cancels common motion.

With x = c + s k + e and |e| <= r, log p_i = x_i - logsumexp(x). A multiple of s that all entries share changes nothing,
so k is taken less its mean under p. Then, for probabilities of points in the box that x runs over,

    logsumexp(c + s k) = logsumexp(c) + s (p . k) + s^2 Var(k) / 2,   Var(k) <= min(range(k)^2 / 4, sum_j p_j k_j^2),
    |what e adds to log p_i| <= (1 - p_i) r_i + sum over the others of p_j r_j,

and every p_j lies between e^lo_j / (e^lo_j + sum e^hi) and e^hi_j / (e^hi_j + sum e^lo), the sums over the others.
Entries that are dropped take no part. Besides what ``smooth.py`` assumes, torch's exp is assumed to be within 1e-13
max(1, |x|) of the true value, relative to it, for x from -700 to 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from isthmus.certify.forms import HEADROOM, TINY, UNIT, Form, Refused, cut, half_width, present
from isthmus.certify.smooth import ASSUMED, EXP, smooth

LEAST = -700.0
"""exp is not taken below: it is at most exp(LEAST), and at least 0."""
EXPONENT = 1e-10
"""More than the relative error of exp down to `LEAST`."""


@dataclass(frozen=True)
class _Simplex:
    """The logarithms of probabilities, as a form, and the least and the greatest value of each probability."""

    logs: Form
    low: Tensor
    high: Tensor


def log_softmax(x: Form, dim: int) -> Form:
    """log p along an axis; nothing may be dropped from it."""
    return _simplex(x.settled(), None, dim).logs


def softmax(x: Form, dim: int) -> Form:
    """p along an axis, exactly 0 where an entry is dropped.

    >>> p = softmax(Form(torch.zeros(1, 4, dtype=torch.float64)), 1)
    >>> [round(v, 9) for v in p.centre[0].tolist()], bool((p.settled().radius < 1e-11).all())
    ([0.25, 0.25, 0.25, 0.25], True)
    """
    dropped = x.dropped
    if dropped is not None and bool(dropped.all(dim).any()):
        raise Refused("the softmax of nothing but -infinity is no number")
    found = _simplex(x.kept().settled(), dropped, dim)
    p = cut(smooth(EXP, found.logs), found.low, found.high)
    if dropped is None:
        return p
    slope, radius = (None if v is None else v.masked_fill(dropped, 0.0) for v in (p.slope, p.radius))
    return Form(p.centre.masked_fill(dropped, 0.0), slope, radius, p.ulps)


def _simplex(x: Form, dropped: Tensor | None, dim: int) -> _Simplex:
    def masked(v: Tensor, instead: float) -> Tensor:
        return v if dropped is None else v.masked_fill(dropped, instead)

    n, top = x.centre.shape[dim], masked(x.centre, -inf).amax(dim, keepdim=True)
    centre, k = x.centre - top, torch.zeros_like(x.centre) if x.slope is None else masked(x.slope, 0.0)
    share = masked(centre, -inf).softmax(dim)
    common = (share * k).sum(dim, keepdim=True)
    own = k - common
    rounding = (x.centre.abs() + top.abs() + k.abs() + common.abs()).mul_(8 * UNIT).add_(TINY)
    radius = masked(present(x.radius) + rounding, 0.0)
    low, high = _range(Form(centre, own, radius, HEADROOM), masked, dim)
    spread = (masked(own, -inf).amax(dim, keepdim=True) - masked(own, inf).amin(dim, keepdim=True)).square_() / 4
    spread = torch.minimum(spread, (high * own.square()).sum(dim, keepdim=True)).mul_(1 + (n + 16) * UNIT).add_(TINY)
    others = (high * radius).sum(dim, keepdim=True).mul_(1 + (2 * n + 64) * UNIT)
    total = masked(centre, -inf).logsumexp(dim, keepdim=True)
    off = masked(share * own, 0.0).sum(dim, keepdim=True).abs_() + own.abs().amax(dim, keepdim=True) * (
        10 * n * ASSUMED
    )
    off += (n + total.abs()) * (10 * ASSUMED)
    moved = ((1 - low) * radius).add_((others - high * radius).clamp_(min=0)).add_(spread / 4).add_(off)
    moved.add_((centre.abs() + total.abs() + own.abs() + spread).mul_(32 * UNIT))
    slope = None if x.slope is None else own
    return _Simplex(Form(centre - total - spread / 4, slope, moved, HEADROOM), low, high)


def _range(x: Form, masked: object, dim: int) -> tuple[Tensor, Tensor]:
    """The least and the greatest probabilities that entries can have, whatever the others are."""
    width, n = half_width(x), x.centre.shape[dim]
    width = width.mul_(1 + 8 * UNIT).add_(x.centre.abs(), alpha=8 * UNIT)
    lo, hi = x.centre - width, x.centre + width
    top = masked(hi, -inf).amax(dim, keepdim=True)  # type: ignore[operator]
    lo, hi = lo - top, hi - top
    below = masked(torch.where(lo < LEAST, 0.0, lo.exp() * (1 - EXPONENT)), 0.0)  # type: ignore[operator]
    above = masked(hi.clamp(min=LEAST).exp_() * (1 + EXPONENT), 0.0)  # type: ignore[operator]
    sums, rest = [v.sum(dim, keepdim=True) for v in (below, above)], (n + 16) * UNIT
    high = above / (above + (sums[0] * (1 - rest) - below).clamp_(min=0)) * (1 + 8 * UNIT)
    low = below / (below + (sums[1] * (1 + rest) - above)) * (1 - 8 * UNIT)
    return low.nan_to_num(0.0, 0.0, 0.0), masked(high.nan_to_num(1.0, 1.0, 1.0).clamp_(max=1), 0.0)  # type: ignore[operator]
