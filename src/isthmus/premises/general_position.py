"""How points lie: whether they differ, and whether any hyperplane holds more of them than it must."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.errors import InputError


@dataclass(frozen=True)
class Position:
    """Points in R^d: at most d of them on any hyperplane is *generic position*.

    `coinciding`: how many points equal an earlier one. `most_on_hyperplane`: the largest number found on one
    hyperplane; counted exactly on all hyperplanes {x_i = c}, where units that are off put many points. `smallest`: over
    random subsets of d + 1 points, the smallest singular value of [x, 1] over the largest; below
    `tolerance`, they lie on one hyperplane. `generic`: False is shown by the count; True says only that none of the
    `subsets` subsets and no hyperplane {x_i = c} showed the contrary (with at most d points, it is always True).
    """

    points: int
    dimension: int
    coinciding: int
    most_on_hyperplane: int
    smallest: float
    subsets: int
    tolerance: float

    @property
    def distinct(self) -> bool:
        """Whether no two points are equal."""
        return self.coinciding == 0

    @property
    def generic(self) -> bool:
        """Whether no hyperplane was found that holds more than d points."""
        return self.most_on_hyperplane <= self.dimension


def position(
    points: Tensor, *, subsets: int = 100, tolerance: float = 1e-10, generator: torch.Generator | None = None
) -> Position:
    """Test the generic position of points [N, ...], each flattened, in float64.

    Cost: sorting each coordinate, and one singular value decomposition of d + 1 points per subset.

    >>> corner = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, 5.0]])
    >>> p = position(corner)
    >>> p.distinct, p.generic, p.most_on_hyperplane
    (True, False, 3)
    """
    if subsets < 0 or not 0 < tolerance < 1:
        raise InputError("subsets, tolerance", expected=">= 0 and in (0, 1)", got=(subsets, tolerance))
    x = points.detach().flatten(1).double()
    N, d = x.shape
    if not d:  # no coordinates, so all points are one
        return Position(N, 0, max(N - 1, 0), N, 0.0, 0, tolerance)
    coinciding = N - len(x.unique(dim=0))
    if N <= d:
        return Position(N, d, coinciding, min(N, d), 1.0, 0, tolerance)
    most = max(coinciding and _largest_class(x), _on_coordinate_planes(x))
    smallest = _smallest_ratio(x, subsets, generator or torch.Generator().manual_seed(0))
    if smallest <= tolerance:
        most = max(most, d + 1)
    return Position(N, d, coinciding, most, smallest, subsets, tolerance)


def _smallest_ratio(x: Tensor, subsets: int, generator: torch.Generator) -> float:
    """The least singular value, over the largest, of d + 1 points [x, 1]: 0 where they lie on one hyperplane."""
    N, d = x.shape
    scale = float(x.norm(dim=1).max()) or 1.0
    smallest = 1.0
    for _ in range(subsets):
        some = x[torch.randperm(N, generator=generator)[: d + 1].to(x.device)] / scale
        s = torch.linalg.svdvals(torch.cat([some, torch.ones_like(some[:, :1])], 1))
        smallest = min(smallest, float(s[-1] / s[0]))
    return smallest


def _largest_class(x: Tensor) -> int:
    """Points that coincide lie on a hyperplane with d - 1 further ones."""
    return int(x.unique(dim=0, return_counts=True)[1].max()) + min(x.shape[1] - 1, len(x.unique(dim=0)) - 1)


def _on_coordinate_planes(x: Tensor) -> int:
    """The most frequent value of one coordinate: how often it occurs."""
    most = 0
    for column in x.T:
        most = max(most, int(column.unique(return_counts=True)[1].max()))
    return most
