"""The direction of a band at each of its pivots, and what is left of a vector across it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def tangent(points: Sequence[Tensor], losses: Sequence[float], rule: str) -> Tensor:
    """The unit tangent at the middle one of three neighbouring points; zero where it has no direction.

    "central": along the chord of the neighbours. "henkelman": towards the higher neighbour; at an extremum both
    directions, weighted by the differences of the losses, the larger weight towards the higher neighbour (Henkelman and
    Jonsson 2000, equations 8 to 11).

    >>> points = [torch.tensor(p) for p in ([0.0, 0.0], [1.0, 0.0], [1.0, 2.0])]
    >>> tangent(points, [1.0, 2.0, 3.0], "henkelman"), tangent(points, [3.0, 2.0, 1.0], "henkelman")
    (tensor([0., 1.]), tensor([1., 0.]))
    """
    before, after = points[1] - points[0], points[2] - points[1]
    back, ahead = (1.0, 1.0) if rule == "central" else _weights(*losses)
    direction = back * before + ahead * after
    length = torch.linalg.vector_norm(direction)
    return direction / length if length > 0 else direction


def _weights(left: float, middle: float, right: float) -> tuple[float, float]:
    """The weights of the steps from the left neighbour and to the right one."""
    if left < middle < right:
        return 0.0, 1.0
    if left > middle > right:
        return 1.0, 0.0
    small, large = sorted((abs(left - middle), abs(right - middle)))
    if large == 0:
        return 1.0, 1.0
    return (small, large) if right > left else (large, small)


def across(vector: Tensor, unit: Tensor) -> Tensor:
    """The part of a vector that is orthogonal to the tangent.

    >>> across(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0]))
    tensor([3., 0.])
    """
    return vector - torch.dot(vector, unit) * unit
