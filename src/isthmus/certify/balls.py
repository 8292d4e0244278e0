"""Remainders in the Euclidean norm: they grow with the norms of matrices, where radii grow with those of their moduli.

With |rho| <= R entry by entry and, in each row, norm(rho) <= ball, a linear layer z = W x with a fixed W gives

    |rho_j| <= min(|W| R, norm(W_j) ball)_j + fresh_j,    norm(rho) <= norm(W) ball + norm(fresh),

and an operation entry by entry whose factors are at most k gives k ball + norm(fresh).
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi, prod

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


GRID = 8
"""Points per axis at which the symbol of a convolution is taken."""


def kernel_norm(k: Tensor, groups: int = 1) -> float:
    """An upper bound of the norm of a convolution with zeros around, of any stride and dilation, on any image.

    It is a part of the convolution on an endless grid, whose norm is the largest over all angles of the norm of
    sum_a K_a exp(i a . angle). A trigonometric polynomial of n terms per axis, centred, has the degree (n - 1) / 2, and
    is at most 1 / cos(pi degree / GRID) per axis times its largest value on GRID points (Ehlich, Zeller 1964). Besides
    it is at most the norm of all K_a side by side, times the root of their number.
    """
    out, axes = k.shape[0] // groups, k.shape[2:]
    parts = k.reshape(groups, out, *k.shape[1:])
    side = [max(spectral_norm(p.movedim(0, d).flatten(1)) for p in parts) for d in (0, 1)]
    found = min(side) * prod(axes) ** 0.5
    if len(axes) > 2 or max(axes) > GRID // 2:
        return found
    symbol = torch.fft.fftn(parts, s=[GRID] * len(axes), dim=list(range(3, 3 + len(axes))))
    symbol = symbol.flatten(3).movedim(3, 1).flatten(0, 1)
    largest = complex_norm(symbol)
    for n in axes:
        largest /= cos(pi * (n - 1) / (2 * GRID))
    return min(found, (largest + 1e-12 * float(k.square().sum()) ** 0.5) * (1 + 1e-9))


def complex_norm(several: Tensor) -> float:
    """An upper bound of the largest singular value among complex matrices, as ``spectral_norm``."""
    real, imaginary = several.real, several.imag
    both = torch.cat([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)
    # only those that may be the largest are looked at
    bounds = both.square().sum((1, 2)).sqrt()
    found = 0.0
    for i in bounds.argsort(descending=True).tolist():
        if float(bounds[i]) <= found:
            break
        found = max(found, spectral_norm(both[i]))
    return found


def row_norms(v: Tensor, rest: bool = False) -> Tensor:
    """Upper bounds of the norms along the last axis, or along all but the first, which are kept."""
    dims = tuple(range(1, v.dim())) if rest else (-1,)
    terms = v[0].numel() if rest and len(v) else v.shape[-1]
    return torch.linalg.vector_norm(v, dim=dims, keepdim=True).mul_(1 + (terms + 8) * UNIT).add_(1e-150)


def tightened(out: Form, x: Form, w: Form, norm: Callable[[Tensor], float] = spectral_norm) -> Form:
    """The result of a linear layer or a convolution, with what norms say of its remainder besides."""
    if out.origin is None or w.norm is None or out.radius is None:
        return out
    rest = w.centre.dim() > 2
    fresh = torch.as_tensor(out.origin.fresh).expand(out.centre.shape)
    if x.radius is not None:
        ball = row_norms(x.radius, rest) if x.ball is None else x.ball
        norms, moved = w.norm(norm)
        out.origin.ball = ball * moved
        rows = row_norms(w.centre, True) + (0.0 if w.slope is None else row_norms(strayed(w), True))
        rows = rows.reshape(-1, *(1,) * (w.centre.dim() - 2))
        radius = torch.minimum(out.radius, ball * rows + fresh)
        out.origin.loose = max(1.0, float((out.radius / radius).nan_to_num(nan=1.0).amax())) * (1 + 8 * UNIT)
        out.radius = radius
        ball = norms * ball + out.origin.ball + row_norms(fresh, rest)
        out.ball = torch.minimum(ball, row_norms(out.radius, rest))
    return out


def reshaped(out: Form, x: Form) -> Form:
    """The same entries in the same order: a ball of whole examples stays one."""
    if x.ball is not None and out.centre.shape[:1] == x.centre.shape[:1] == (x.ball.numel(),):
        out.ball = x.ball.reshape(-1, *(1,) * (out.centre.dim() - 1))
    return out


def entrywise(out: Form, x: Form, factor: float) -> Form:
    """Entry by entry, with factors of at most this."""
    if x.ball is not None and out.origin is not None and x.centre.shape == out.centre.shape:
        rest = x.ball.numel() == len(x.centre) and x.centre.dim() > 2
        fresh = torch.as_tensor(out.origin.fresh).expand(out.centre.shape)
        out.ball = torch.minimum(factor * x.ball + row_norms(fresh, rest), row_norms(out.radius, rest))
    return out


def summed(out: Form, a: Form, b: Form) -> None:
    """The ball of a sum of two values of the same shape, or of one and a constant without a remainder of its own."""
    for x, y in ((a, b), (b, a)):
        if x.ball is None or x.centre.shape != out.centre.shape:
            continue
        if y.ball is not None and y.ball.shape == x.ball.shape and y.centre.shape == x.centre.shape:
            out.ball = x.ball + y.ball
            return
        if y.radius is not None and y.ball is None:
            rest = x.ball.numel() == len(x.centre) and x.centre.dim() > 2
            out.ball = x.ball + row_norms(y.radius.expand(out.centre.shape), rest)
            return
