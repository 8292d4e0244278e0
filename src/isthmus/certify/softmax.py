"""Affine forms through softmax: one probability against all others, which is what cancels common motion.

With x = c + s k + (s^2 - 1/2) q + e and |e| <= r, log p_i = x_i - logsumexp(x). What all entries share changes nothing,
so k and q are taken less their means under p(c). Then, for probabilities of points in the box that x runs over,

    logsumexp(c + h) = logsumexp(c) + p(c) . h + Var(h) / 2     for h = s k + (s^2 - 1/2) q, p(c) . h = 0,
    |what e adds to log p_i| <= (1 - p_i) r_i + sum over the others of p_j r_j.

Var(h) is s^2 sum_j p_j(c) k_j^2, which is carried on, and what else p and h allow; neither is above range(h)^2 / 4.
Every p_j lies between e^lo_j / (e^lo_j + sum e^hi) and e^hi_j / (e^hi_j + sum e^lo), the sums over the others.
Entries that are dropped take no part. Besides what ``smooth.py`` assumes, torch's exp is assumed to be within 1e-13
max(1, |x|) of the true value, relative to it, for x from -700 to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from isthmus.certify.arithmetic import moved
from isthmus.certify.forms import HEADROOM, TINY, UNIT, Form, Refused, cut, half_width, known, present
from isthmus.certify.origins import follow
from isthmus.certify.smooth import ASSUMED, EXP, smooth

Masked = Callable[[Tensor, float], Tensor]
"""Puts a number in the place of what is dropped."""
LEAST = -700.0
"""exp is not taken below: it is at most exp(LEAST), and at least 0."""
EXPONENT = 1e-10
"""More than the relative error of exp down to `LEAST`."""


@dataclass(frozen=True)
class _Simplex:
    """The logarithms of probabilities and of their sum, as forms, and the least and the greatest value of each."""

    logs: Form
    total: Form
    low: Tensor
    high: Tensor


def log_softmax(x: Form, dim: int) -> Form:
    """log p along an axis; nothing may be dropped from it."""
    return _simplex(x.rounded(), None, dim).logs


def logsumexp(x: Form, dim: int) -> Form:
    """log(sum of exp(x)) along an axis, which is kept.

    >>> z = logsumexp(Form(torch.zeros(1, 4, dtype=torch.float64)), 1)
    >>> round(float(z.centre.exp()), 9)
    4.0
    """
    return _simplex(x.kept().rounded(), _some(x, dim), dim).total


def _some(x: Form, dim: int) -> Tensor | None:
    """What is dropped, which is never everything."""
    if x.dropped is not None and bool(x.dropped.all(dim).any()):
        raise Refused("the softmax of nothing but -infinity is no number")
    return x.dropped


def softmax(x: Form, dim: int) -> Form:
    """p along an axis, exactly 0 where an entry is dropped.

    >>> p = softmax(Form(torch.zeros(1, 4, dtype=torch.float64)), 1)
    >>> [round(v, 9) for v in p.centre[0].tolist()], bool((p.settled().radius < 1e-11).all())
    ([0.25, 0.25, 0.25, 0.25], True)
    """
    dropped = _some(x, dim)
    found = _simplex(x.kept().rounded(), dropped, dim)
    p = cut(smooth(EXP, found.logs), found.low, found.high)
    if dropped is None:
        return p
    return moved(lambda v: v.masked_fill(dropped, 0.0), p)


def _simplex(x: Form, dropped: Tensor | None, dim: int) -> _Simplex:
    def masked(v: Tensor, instead: float) -> Tensor:
        return v if dropped is None else v.masked_fill(dropped, instead)

    def total(v: Tensor) -> Tensor:
        return v.sum(dim, keepdim=True)

    n, top = x.centre.shape[dim], masked(x.centre, -inf).amax(dim, keepdim=True)
    centre, parts, shared = x.centre - top, [], []
    share = masked(centre, -inf).softmax(dim)
    rounding = (x.size() + top.abs()).mul_(8 * UNIT).add_(TINY)
    off = torch.zeros_like(top)
    for part in (x.slope, x.bend):
        part = torch.zeros_like(centre) if part is None else masked(part, 0.0)
        common = total(share * part)
        shared.append(common)
        part = part - common
        parts.append(masked(part, 0.0))
        off += total(share * parts[-1]).abs_() + parts[-1].abs().amax(dim, keepdim=True) * (10 * n * ASSUMED)
        rounding += common.abs() * (8 * UNIT)
    k, q = parts
    radius = masked(present(x.radius) + rounding, 0.0)
    low, high = (v + total(masked(known(x), 0.0)) for v in _range(Form(centre, k, radius, HEADROOM, q), masked, dim))
    others = total(high * radius).mul_(1 + (2 * n + 64) * UNIT)
    spread, left = _variance(share, low, high, k, q, masked, dim)
    logarithm = masked(centre, -inf).logsumexp(dim, keepdim=True)
    off += (n + logarithm.abs()) * (10 * ASSUMED) + left * 0.5
    rest = ((1 - low) * radius).add_((others - high * radius).clamp_(min=0)).add_(off)
    rest.add_((centre.abs() + logarithm.abs() + k.abs() + q.abs() + spread).mul_(32 * UNIT))
    slope, bend = (None, None) if x.constant else (k, q - spread * 0.5)
    # log p_i moves by rho_i - sum p_j rho_j, for probabilities that may be anywhere between low and high
    stray = total(torch.maximum(high - share, share - low) * radius).mul_(1 + (2 * n + 64) * UNIT)
    new = stray + (rest - (1 - low) * radius - (others - high * radius).clamp(min=0)).abs()
    logs = Form(centre - logarithm - spread * 0.25, slope, rest, HEADROOM, bend)
    logs.origin = follow(
        lambda: new.expand(rest.shape), (x, lambda g: masked(g - share * total(g), 0.0)), terms=n, loose=2.0
    )
    slope, bend = (None, None) if x.constant else (shared[0], shared[1] + spread * 0.5)
    size = top.abs() + logarithm.abs() + spread + shared[0].abs() + shared[1].abs()
    radius = (others + off).add_(size.mul_((2 * n + 64) * UNIT)).add_(TINY)
    whole = Form(top + logarithm + spread * 0.25, slope, radius, HEADROOM, bend)
    whole.origin = follow(lambda: stray + (radius - others).abs(), (x, lambda g: masked(g * share, 0.0)), terms=n)
    return _Simplex(logs, whole, low, high)


def _variance(
    share: Tensor, low: Tensor, high: Tensor, k: Tensor, q: Tensor, masked: Masked, dim: int
) -> tuple[Tensor, Tensor]:
    """V = sum of p_j(c) k_j^2, and how far Var(h) may be from s^2 V, anywhere in the box."""

    def total(v: Tensor) -> Tensor:
        return v.sum(dim, keepdim=True)

    def spread(v: Tensor) -> Tensor:
        return masked(v, -inf).amax(dim, keepdim=True) - masked(v, inf).amin(dim, keepdim=True)

    n, loose, half = k.shape[dim], (high - low).add_(high, alpha=100 * k.shape[dim] * ASSUMED), q.abs() * 0.5
    own = total(share * k.square())
    left = total(loose * k.square() + high * half * (2 * k.abs() + half)) + total(loose * (k.abs() + half)).square()
    most = torch.maximum((spread(k) + spread(q) * 0.5).square() * 0.25, own)
    return own, torch.minimum(left, most).mul_(1 + (4 * n + 64) * UNIT).add_(TINY)


def _range(x: Form, masked: Masked, dim: int) -> tuple[Tensor, Tensor]:
    """The least and the greatest probabilities that entries can have, whatever the others are."""
    width, n = half_width(x), x.centre.shape[dim]
    width = width.mul_(1 + 8 * UNIT).add_(x.centre.abs(), alpha=8 * UNIT)
    lo, hi = x.centre - width, x.centre + width
    top = masked(hi, -inf).amax(dim, keepdim=True)
    lo, hi = lo - top, hi - top
    below = masked(torch.where(lo < LEAST, 0.0, lo.exp() * (1 - EXPONENT)), 0.0)
    above = masked(hi.clamp(min=LEAST).exp_() * (1 + EXPONENT), 0.0)
    sums, rest = [v.sum(dim, keepdim=True) for v in (below, above)], (n + 16) * UNIT
    high = above / (above + (sums[0] * (1 - rest) - below).clamp_(min=0)) * (1 + 8 * UNIT)
    low = below / (below + (sums[1] * (1 + rest) - above)) * (1 - 8 * UNIT)
    return low.nan_to_num(0.0, 0.0, 0.0), masked(high.nan_to_num(1.0, 1.0, 1.0).clamp_(max=1), 0.0)
