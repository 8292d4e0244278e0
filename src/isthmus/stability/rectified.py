"""Two rectified units that are near each other are nearly linear in each other (Freeman & Bruna 2017, Prop. 2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, sin

import torch
from torch import Tensor

from isthmus.errors import InputError

__all__ = ["RectifiedProduct", "rectified_product"]


@dataclass(frozen=True)
class RectifiedProduct:
    """The mean `value` of max(0, <w1, x>) max(0, <w2, x>) for unit vectors at the angle `alpha`, and its bounds."""

    value: float
    lower: float
    upper: float
    alpha: float


def rectified_product(x: Tensor, w1: Tensor, w2: Tensor) -> RectifiedProduct:
    """Proposition 2.3 of Freeman & Bruna 2017 on a sample x [N, n], for directions w1 and w2 [n]; in float64.

    With the bisector w_m of the unit vectors, z(w) = max(0, <w, x>) and Sigma the mean of x x^T (not centred),

        cos^2(alpha/2) E z(w_m)^2 - 2 |Sigma| (sin^2(alpha/2) + sin^2 alpha)
            <= E z(w1) z(w2) <= cos^2(alpha/2) E z(w_m)^2,

    (1 + cos alpha) / 2 = cos^2(alpha/2) in the paper. So units at a small angle act as multiples of each other, which
    is why ``compress`` may move rows by an angle, and many units on few directions can be merged. The proof's r is
    |w1 + w2| / 2 = cos(alpha/2), not its square as printed. Errors: a vector of length 0, shapes that do not fit.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> p = rectified_product(x, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]))
    >>> p.value, round(p.upper, 3), round(p.alpha, 3)
    (0.0, 0.25, 1.571)
    """
    if x.dim() != 2 or w1.shape != x.shape[1:] or w2.shape != x.shape[1:]:
        raise InputError("x, w1, w2", expected="shapes [N, n], [n], [n]", got=[tuple(v.shape) for v in (x, w1, w2)])
    x, w1, w2 = x.double(), w1.double(), w2.double()
    lengths = [float(w.norm()) for w in (w1, w2)]
    if not all(0 < length < float("inf") for length in lengths):
        raise InputError("w1, w2", expected="finite vectors of a length above 0", got=lengths)
    w1, w2 = w1 / w1.norm(), w2 / w2.norm()
    alpha = 2 * atan2(float((w1 - w2).norm()), float((w1 + w2).norm()))  # acos loses half the digits
    middle = (w1 + w2) / 2  # cos(alpha/2) w_m
    upper = float((x @ middle).clamp_min(0).square().mean())
    value = float(((x @ w1).clamp_min(0) * (x @ w2).clamp_min(0)).mean())
    sigma = float(torch.linalg.matrix_norm(x.T @ x / len(x), ord=2))
    return RectifiedProduct(value, upper - 2 * sigma * (sin(alpha / 2) ** 2 + sin(alpha) ** 2), upper, alpha)
