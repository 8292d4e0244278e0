"""The two shapes of trained curves: which control points make up the point at t, and which path they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import final

from isthmus.params import Params, lerp
from isthmus.paths import Curve, Path


class Shape(ABC):
    """A family of curves through two ends with `bends` control points, the ends among them."""

    bends: int

    @abstractmethod
    def weights(self, t: float) -> list[float]:
        """The share of each control point in the point at t; they are >= 0 and add up to 1."""

    @abstractmethod
    def path(self, control: Sequence[Params]) -> Path:
        """The curve as a path."""

    def place(self, t: float) -> tuple[int, float]:
        """The number of the path's segment in which t lies, and where in it."""
        return 0, t

    def straight(self, a: Params, b: Params) -> list[Params]:
        """The control points of the straight line, equally spaced, with `a` and `b` themselves at its ends."""
        last = self.bends - 1
        return [a, *(lerp(a, b, i / last) for i in range(1, last)), b]


@final
@dataclass(frozen=True)
class Bernstein(Shape):
    """One Bezier curve.

    >>> Bernstein(3).weights(0.5)
    [0.25, 0.5, 0.25]
    """

    bends: int

    def weights(self, t: float) -> list[float]:
        """Bernstein's polynomials."""
        n = self.bends - 1
        return [comb(n, i) * t**i * (1 - t) ** (n - i) for i in range(n + 1)]

    def path(self, control: Sequence[Params]) -> Path:
        """One segment."""
        return Path((Curve(tuple(control)),))


@final
@dataclass(frozen=True)
class Polygon(Shape):
    """Straight segments from control point to control point.

    >>> Polygon(3).weights(0.75), Polygon(3).place(0.75)
    ([0.0, 0.5, 0.5], (1, 0.5))
    """

    bends: int

    def place(self, t: float) -> tuple[int, float]:
        """The segment of t; a control point belongs to the one that it starts."""
        i = min(int(t * (self.bends - 1)), self.bends - 2)
        return i, t * (self.bends - 1) - i

    def weights(self, t: float) -> list[float]:
        """Those of the two control points around t."""
        i, s = self.place(t)
        return [1 - s if k == i else s if k == i + 1 else 0.0 for k in range(self.bends)]

    def path(self, control: Sequence[Params]) -> Path:
        """One segment less than there are control points."""
        return Path.through(list(control))
