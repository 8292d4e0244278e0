"""The best factor of the outputs: min over s of the mean loss of s z + c, for many z at once."""

from __future__ import annotations

from typing import Any, cast

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from isthmus.objective import Objective

_GAIN = 1e-12
"""A search stops when convexity leaves less than this to gain in the loss ..."""
_STEP = 1e-7
"""... or after a step shorter than this, relative to 1 + |s|; Newton's error is then about its square."""


def mean_losses(objective: Objective, z: Tensor, offset: Tensor, s: Tensor) -> Tensor:
    """The mean loss of ``s[m] z[m] + offset`` for every m, float64 [M]; z is [M, N, classes, ...], offset [classes]."""
    y = objective.data[1]
    y = y.double() if y.is_floating_point() else y
    offset = broadcast(offset, z)
    return torch.stack([objective.example_losses(f * v + offset, y).double().mean() for f, v in zip(s, z, strict=True)])


def best_scales(objective: Objective, z: Tensor, offset: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """(s, loss), each [M] in float64: the s in [-bound, bound] of the lowest mean loss, for outputs z [M, N, ...].

    `offset` (the output bias) is added to each s z. Cross-entropy: a safeguarded Newton method for all m at
    once. Mean squared error: in closed form. Any other loss: Brent's bounded method, one m at a time, which finds a
    local minimum if the loss is not convex.

    >>> y = torch.tensor([[2.0], [4.0]])
    >>> objective = Objective(torch.nn.Linear(1, 1), "mse", (torch.zeros(2, 1), y))
    >>> best_scales(objective, torch.tensor([[[1.0], [2.0]]], dtype=torch.float64), torch.zeros(1), 100.0)[0]
    tensor([2.], dtype=torch.float64)
    """
    y = objective.data[1]
    if objective.named_loss == "mse":
        s = _least_squares(z, y.double() - broadcast(offset, z), bound)
    elif objective.named_loss == "cross_entropy" and not (y.is_floating_point() and bool((y < 0).any())):
        s = _newton(z, offset, y, bound)
    else:
        s = torch.tensor([_brent(objective, v[None], offset, bound) for v in z], dtype=torch.float64, device=z.device)
    return s, mean_losses(objective, z, offset, s)


def smallest_scale(objective: Objective, z: Tensor, offset: Tensor, s: float, enough: float) -> tuple[float, float]:
    """(s', loss): the s' of least size from sign(s) to s whose loss is at most `enough`, to three digits.

    z is [1, N, ...]. The loss must be convex with its minimum at s: it falls from sign(s) to s, to `enough` or less.

    >>> objective = Objective(torch.nn.Linear(1, 1), "mse", (torch.zeros(1, 1), torch.full((1, 1), 5.0)))
    >>> s, loss = smallest_scale(objective, torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1), 5.0, 1.0)
    >>> round(s, 2), loss <= 1.0
    (4.0, True)
    """

    def loss(s: float) -> float:
        return float(mean_losses(objective, z, offset, torch.tensor([s], dtype=z.dtype, device=z.device)))

    low, high = (1.0 if s > 0 else -1.0), s
    if abs(s) <= 1:
        return s, loss(s)
    if (found := loss(low)) <= enough:
        return low, found
    while abs(high - low) > 1e-3 * abs(low):
        middle = (low + high) / 2
        low, high = (low, middle) if loss(middle) <= enough else (middle, high)
    return high, loss(high)


def broadcast(offset: Tensor, z: Tensor) -> Tensor:
    """The output bias in the shape of outputs [M, N, ...] without their first axis."""
    return offset.to(z).reshape(-1, *(1,) * (z.dim() - 3))


def _least_squares(z: Tensor, target: Tensor, bound: float) -> Tensor:
    """argmin |s z - target|^2; 1 where z vanishes, or is so large that no s is known."""
    flat = z.flatten(1)
    square = flat.square().sum(1)
    s = torch.where(square > 0, (flat @ target.flatten()) / square, 1.0)
    return s.nan_to_num(1.0).clamp(-bound, bound)


def _brent(objective: Objective, z: Tensor, offset: Tensor, bound: float) -> float:
    def loss(s: float) -> float:
        return float(mean_losses(objective, z, offset, torch.tensor([s], dtype=torch.float64, device=z.device)))

    found = cast(Any, minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6}))
    return float(found.x)


def _newton(z: Tensor, offset: Tensor, y: Tensor, bound: float) -> Tensor:
    """The minimum in [-bound, bound] of the mean cross-entropy, convex in s, for every m.

    Newton's step where it stays inside the bracket and is at most half as long as the step before; else to the bound
    ahead if that was not tried yet (subnetworks that separate the data end there), else the bracket is halved.
    With l = s z + c and p = softmax(l), the slope is mean(w p.z - y.z) and its derivative mean(w (p.z^2 - (p.z)^2)),
    where w is the weight of the example's labels (1, or the sum of its probabilities).
    """
    # classes before examples: torch's softmax over the last, short axis is several times slower
    z = z.movedim(2, 1).flatten(2).contiguous()
    if y.is_floating_point():
        target = y.double().movedim(1, 0).flatten(1)
        weight, aim = target.sum(0), (target * z).sum(1).mean(1)
    else:
        weight = torch.ones((), dtype=z.dtype, device=z.device)
        aim = z.gather(1, y.reshape(1, 1, -1).expand(len(z), 1, -1)).squeeze(1).mean(1)
    s = torch.ones(len(z), dtype=z.dtype, device=z.device)
    low, high = torch.full_like(s, -bound), torch.full_like(s, bound)
    tried = torch.zeros(2, len(z), dtype=torch.bool, device=z.device)
    step = high - low
    todo = torch.arange(len(z), device=z.device)
    for _ in range(200):
        at = s[todo]
        slope, bend = _slopes(z if len(todo) == len(z) else z[todo], offset.to(z)[:, None], at, weight, aim[todo])
        low[todo] = torch.where(slope < 0, at, low[todo])
        high[todo] = torch.where(slope > 0, at, high[todo])
        a, b = low[todo], high[todo]
        newton = at - slope / bend  # not finite where the curvature vanishes, and then not used
        to = torch.where((newton > a) & (newton < b) & ((newton - at).abs() <= step[todo] / 2), newton, (a + b) / 2)
        halved = to != newton
        for side, ahead, wall in ((0, slope < 0, bound), (1, slope > 0, -bound)):
            leap = halved & ahead & ~tried[side, todo]
            to = torch.where(leap, wall, to)
            tried[side, todo] = tried[side, todo] | leap
        to = torch.where(slope.abs() * (b - a) <= _GAIN, at, to)
        s[todo], step[todo] = to, (to - at).abs()
        todo = todo[(to - at).abs() > _STEP * (1 + at.abs())]
        if not len(todo):
            break
    return s


def _slopes(z: Tensor, shift: Tensor, s: Tensor, weight: Tensor, aim: Tensor) -> tuple[Tensor, Tensor]:
    """The first and second derivative of the mean loss at s, for every m; z is [M, classes, N]."""
    p = torch.addcmul(shift, z, s[:, None, None]).softmax(1)
    pz = p.mul_(z)
    first = pz.sum(1)
    second = pz.mul_(z).sum(1)
    return (weight * first).mean(1) - aim, (weight * (second - first.square())).mean(1)
