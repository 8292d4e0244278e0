"""Remainders in the Euclidean norm: they grow with the norms of matrices, where radii grow with those of their moduli.

With |rho| <= R entry by entry and, in each row, norm(rho) <= ball, a linear layer z = W x with a fixed W gives

    |rho_j| <= min(|W| R, norm(W_j) ball)_j + fresh_j,    norm(rho) <= norm(W) ball + norm(fresh),

and an operation entry by entry whose factors are at most k gives k ball + norm(fresh).
"""

from __future__ import annotations

import torch
from torch import Tensor

from isthmus.certify.forms import TINY, UNIT, Form, strayed

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
    return torch.linalg.vector_norm(v, dim=-1, keepdim=True).mul_(1 + (v.shape[-1] + 8) * UNIT).add_(1e-150)


def tightened(out: Form, x: Form, w: Form) -> Form:
    """The result of a linear layer, with what norms say of its remainder besides."""
    if out.origin is None or w.norm is None or out.radius is None:
        return out
    fresh = torch.as_tensor(out.origin.fresh).expand(out.centre.shape)
    if x.radius is not None:
        ball = row_norms(x.radius) if x.ball is None else x.ball
        rows = row_norms(w.centre)[..., 0]
        norm, moved = w.norm(spectral_norm)
        out.origin.ball = ball * moved
        if w.slope is not None:
            rows = rows + row_norms(strayed(w))[..., 0]
        radius = torch.minimum(out.radius, ball * rows + fresh)
        out.origin.loose = max(1.0, float((out.radius / radius).nan_to_num(nan=1.0).amax())) * (1 + 8 * UNIT)
        out.radius = radius
        ball = norm * ball + out.origin.ball + row_norms(fresh)
        out.ball = torch.minimum(ball, row_norms(out.radius))
    return out
