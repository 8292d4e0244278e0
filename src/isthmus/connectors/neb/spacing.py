"""Where the pivots of a band are: spread over it again, and new ones put in where the loss asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

Place = tuple[int, float]
"""A gap between neighbouring points of a band, and where in it."""


def places(points: Sequence[Tensor], shares: Sequence[float]) -> list[Place]:
    """For each inner point the place on the band at which the gaps have these shares of its length.

    >>> places([torch.tensor([v]) for v in (0.0, 1.0, 4.0)], [0.5, 0.5])
    [(1, 0.3333333333333333)]
    """
    lengths = [float(torch.linalg.vector_norm(q - p)) for p, q in pairwise(points)]
    ends = list(accumulate(lengths))
    unit = ends[-1] / sum(shares)
    out = []
    for share in list(accumulate(shares))[:-1]:
        gap = next((i for i, end in enumerate(ends) if share * unit < end), len(lengths) - 1)
        start = ends[gap] - lengths[gap]
        out.append((gap, min(max((share * unit - start) / lengths[gap], 0.0), 1.0) if lengths[gap] > 0 else 0.0))
    return out


def between(points: Sequence[Tensor], at: Sequence[Place]) -> list[Tensor]:
    """What lies at these places, the points being joined by straight lines."""
    return [torch.lerp(points[gap], points[gap + 1], where) for gap, where in at]


def gaps(screened: Mapping[float, float], points: int, rule: str, target: float) -> list[Place]:
    """The places for new pivots on a band of so many points, the most urgent first, at most one for each gap.

    `screened`: losses along the band, at equal shares of t for each gap, the points among them. "peak": gaps inside
    which the loss is above both points and the target, the highest first. "highest", the rule of Draxler et al. 2018:
    gaps inside which it is above the chord between its values at the points, the farthest above first.
    """
    found = []
    for gap in range(points - 1):
        start, end = gap / (points - 1), (gap + 1) / (points - 1)
        left, right = screened[start], screened[end]
        inside = {(t - start) / (end - start): loss for t, loss in screened.items() if start < t < end}
        floor = max(left, right, target)
        above = {s: v - (floor if rule == "peak" else (1 - s) * left + s * right) for s, v in inside.items()}
        where = max(above, key=lambda s: above[s])
        if above[where] > 0:
            found.append((inside[where] if rule == "peak" else above[where], gap, where))
    return [(gap, where) for _, gap, where in sorted(found, key=lambda f: -f[0])]


def with_new(
    points: Sequence[Tensor], shares: Sequence[float], new: Sequence[Place]
) -> tuple[list[Tensor], list[float]]:
    """The band with a point at each of these places, and the shares of its gaps, those with a new point divided there.

    >>> with_new([torch.tensor([0.0]), torch.tensor([4.0])], [1.0], [(0, 0.25)])
    ([tensor([0.]), tensor([1.]), tensor([4.])], [0.25, 0.75])
    """
    at, out, parts = dict(new), [points[0]], []
    for gap, share in enumerate(shares):
        if gap in at:
            out += between(points, [(gap, at[gap])])
            parts += [share * at[gap], share * (1 - at[gap])]
        else:
            parts.append(share)
        out.append(points[gap + 1])
    return out, parts
