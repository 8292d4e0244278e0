"""The plane in weight space through three networks: its axes, its points, and where other networks lie above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.params import Params, dot, in_dtype
from isthmus.shown import one_line

_FLAT = 1e-6
"""Networks span no plane where the third is nearer to the line than so many times its distance from the first."""


@one_line
@dataclass(frozen=True, eq=False)
class Frame:
    """The plane through `a`, `b` and `c`, with `a` at (0, 0), `b` at (`width`, 0) and `c` at (`shift`, `height`).

    Coordinates are Euclidean distances over the tensors `names`; the others are those of `a` everywhere.
    """

    a: Params
    b: Params
    c: Params
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise InputError("b", expected="another network than a", got="the same weights")
        apart = self._norm(self._from_a(self.c))
        point = {k: self.c[k] for k in self.names}
        rounding = max(torch.finfo(v.dtype).eps for v in point.values()) * self._norm(point)
        if not self.height >= max(_FLAT * apart, rounding) or not self.height > 0:
            raise InputError(
                "c",
                expected="a network off the straight line through a and b",
                got=f"one that is {self.height:.3g} from it, at a distance of {apart:.3g} from a",
                instead="a third network, or a point of a curve between them",
            )

    @cached_property
    def width(self) -> float:
        """The distance of a and b."""
        return self._norm(self._from_a(self.b))

    @cached_property
    def axes(self) -> tuple[Params, Params]:
        """Two orthonormal directions, float64: from a to b, and from their line to c."""
        u = {k: v / self.width for k, v in self._from_a(self.b).items()}
        v = self._from_a(self.c)
        for _ in range(2):  # once more, for the digits that the first time loses
            along = dot(u, v)
            v = {k: w - along * u[k] for k, w in v.items()}
        length = self._norm(v)
        return u, ({k: w / length for k, w in v.items()} if length > 0 else v)

    @cached_property
    def shift(self) -> float:
        """How far c lies along the direction from a to b."""
        return dot(self._from_a(self.c), self.axes[0])

    @cached_property
    def height(self) -> float:
        """How far c lies from the line through a and b."""
        return dot(self._from_a(self.c), self.axes[1])

    def place(self, point: Mapping[str, Tensor]) -> tuple[float, float, float]:
        """(x, y) of the nearest point of the plane, and the distance from it."""
        w, (u, v) = self._from_a(point), self.axes
        x, y = dot(w, u), dot(w, v)
        return x, y, self._norm({k: w[k] - x * u[k] - y * v[k] for k in w})

    def at(self, x: float, y: float) -> Params:
        """The point with these coordinates; a, b and c themselves at theirs."""
        third = y / self.height
        second = (x - third * self.shift) / self.width
        shares = (1 - second - third, second, third)
        corners = [(share, p) for share, p in zip(shares, (self.a, self.b, self.c), strict=True) if share]
        return self.a | {k: _combined([(share, p[k]) for share, p in corners]) for k in self.names}

    def _from_a(self, point: Mapping[str, Tensor]) -> Params:
        pairs = {k: (point[k].to(self.a[k].device), self.a[k]) for k in self.names}
        return {k: in_dtype(v, torch.float64) - in_dtype(w, torch.float64) for k, (v, w) in pairs.items()}

    def _norm(self, w: Params) -> float:
        return dot(w, w) ** 0.5


def from_line(point: Params, a: Params, b: Params, names: Sequence[str]) -> float:
    """How far `point` is from the line through `a` and `b`, over the tensors `names`; from a where b is a."""
    w, u = ({k: in_dtype(v[k], torch.float64) - in_dtype(a[k], torch.float64) for k in names} for v in (point, b))
    share = dot(w, u) / (dot(u, u) or 1.0)
    rest = {k: w[k] - share * u[k] for k in names}
    return dot(rest, rest) ** 0.5


def _combined(parts: list[tuple[float, Tensor]]) -> Tensor:
    (share, first), *rest = parts
    if all(v is first for _, v in rest):
        return first
    total = share * in_dtype(first, torch.float64)  # shares are large where c is near the line
    for share, v in rest:
        total = total + share * in_dtype(v, torch.float64)
    return total.to(first.dtype)
