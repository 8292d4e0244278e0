"""Remainders in the Euclidean norm: they grow with the norms of matrices, where radii grow with those of their moduli.

With |rho| <= R entry by entry and, in each row, norm(rho) <= ball, a linear layer z = W x with a fixed W gives

    |rho_j| <= min(|W| R, norm(W_j) ball)_j + fresh_j,    norm(rho) <= norm(W) ball + norm(fresh),

and an operation entry by entry whose factors are at most k gives k ball + norm(fresh).
"""

from __future__ import annotations

import torch
from torch import Tensor

from isthmus.certify.forms import TINY, UNIT, Form, present, strayed
from isthmus.certify.origins import SHARE, norms_like

SQUARINGS = 3


def spectral_norm(w: Tensor) -> float:
    """An upper bound of the largest singular value, mostly within 2 %.

    norm(M)^2 = norm(M M'), and the Frobenius norm of M M' M M' ... is little more than its largest singular value. What
    a product rounds away is at most (n + 2) u norm(M)_F^2 in the Frobenius norm.

    >>> 3.0 <= spectral_norm(torch.diag(torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64))) < 3.1
    True
    """
    m = w if w.shape[0] <= w.shape[1] else w.T
    scales, lost = [], []
    for _ in range(SQUARINGS + 1):
        scale = float(m.abs().amax()) or 1.0
        m = m / scale
        scales.append(scale * (1 + 4 * UNIT))
        lost.append(float(m.square().sum()) * (m.shape[1] + m.numel() + 8) * UNIT)
        m = m @ m.T
    found = float(m.square().sum()) ** 0.5 * (1 + (m.numel() + 8) * UNIT)
    for scale, off in zip(scales[::-1], lost[::-1], strict=True):
        found = scale * (found + off) ** 0.5 * (1 + 8 * UNIT)
    return found + TINY


def row_norms(v: Tensor) -> Tensor:
    """Upper bounds of the norms along the last axis, which is kept."""
    return norms_like(v, v.new_zeros((*v.shape[:-1], 1)))


def is_tight(x: Form, w: Form) -> bool:
    """Whether norms alone bound a product of x and a matrix well enough."""
    if x.ball is None or x.radius is None or x.origin is None or w.norm is None:
        return False
    return 2 * float(x.ball.sum()) < float(row_norms(x.radius).sum())


def tightened(out: Form, x: Form, w: Form, axis: int, moving: Tensor | None = None) -> Form:
    """A product with a matrix W(s) = W + D(s), whose `axis` is summed, with what norms say of its remainder.

    `moving` >= |D(s) rho|, entry by entry, which its origin leaves out; a row takes that in the norm where it is less,
    or where it is not given. Without a radius of its own it gets that of the norms.
    """
    origin = out.origin
    if origin is None or w.norm is None:
        raise ValueError("only what is followed back has balls")
    if x.radius is None:
        out.ball = row_norms(present(out.radius))
        return out
    own = row_norms(x.radius)
    ball = own if x.ball is None else x.ball
    fixed, drift = w.norm(spectral_norm)
    stray = strayed(w)
    lengths, strays = _lengths(w.centre, axis), 0.0 if stray is None else _lengths(stray, axis)
    fresh, together = torch.as_tensor(origin.fresh).expand(out.centre.shape), ball * drift
    entries = ball * strays
    if moving is None:
        origin.ball = together
    else:
        apart = row_norms(moving) <= together
        origin.fresh, origin.ball = fresh + moving * apart, together.masked_fill(apart, 0.0)
        together, entries = torch.minimum(together, row_norms(moving)), torch.minimum(moving, entries)
    tight = entries + fresh + ball * lengths
    # the products of moduli are at most those of norms
    most = own * (lengths + strays) + fresh if out.radius is None else out.radius
    tight = torch.maximum(torch.minimum(tight, most), together / SHARE)
    origin.loose = max(1.0, float((most / tight).nan_to_num(nan=1.0).amax())) * (1 + 8 * UNIT)
    out.radius, out.ball = tight, torch.minimum(fixed * ball + together + row_norms(fresh), row_norms(tight))
    return out


def _lengths(w: Tensor, axis: int) -> Tensor:
    """Bounds of the norms of what each output is a product with."""
    return row_norms(w.movedim(axis, -1)).squeeze(-1)


def entrywise(out: Form, x: Form, factor: float) -> Form:
    """The ball of what is made entry by entry, with factors of at most this."""
    if x.ball is not None and out.origin is not None and x.centre.shape == out.centre.shape:
        fresh = torch.as_tensor(out.origin.fresh).expand(out.centre.shape)
        out.ball = torch.minimum(factor * x.ball + row_norms(fresh), row_norms(present(out.radius)))
    return out


def summed(out: Form, a: Form, b: Form) -> Form:
    """The ball of a sum, of which one part has one: the other has too, or is bounded by its radius."""
    for x, y in ((a, b), (b, a)):
        if x.ball is None or x.centre.shape != out.centre.shape:
            continue
        if y.ball is not None and y.centre.shape == x.centre.shape:
            out.ball = x.ball + y.ball
        elif y.radius is not None:
            out.ball = x.ball + row_norms(y.radius.expand(out.centre.shape))
        return out
    return out
