"""A segment is one smooth piece of a path in weight space: an interface with final classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.errors import InputError
from isthmus.kinds import check_kind
from isthmus.params import Params, check_like, distance, dot, lerp, moves, share
from isthmus.shown import count, line, plural


def check_t(t: float) -> None:
    """Refuse a t outside [0, 1]."""
    check_kind(t, float, "t")
    if not 0 <= t <= 1:
        raise InputError("t", expected="a number in [0, 1]", got=t)


class Segment(ABC):
    """One smooth piece of a path, a function of t in [0, 1] with values in ``Params``."""

    @abstractmethod
    def at(self, t: float) -> Params:
        """The point at t in [0, 1]; at 0 and 1 the ends themselves, bit for bit."""

    @property
    def start(self) -> Params:
        """The point at t = 0."""
        return self.at(0.0)

    @property
    def end(self) -> Params:
        """The point at t = 1."""
        return self.at(1.0)

    @property
    @abstractmethod
    def length(self) -> float:
        """The Euclidean length in weight space."""

    @abstractmethod
    def reversed(self) -> Segment:
        """The same points walked from the end to the start."""

    @abstractmethod
    def split(self, t: float) -> tuple[Segment, Segment]:
        """The parts before and after t in (0, 1); the first ends where the second starts, bit for bit."""


@final
@dataclass(frozen=True, eq=False)
class Curve(Segment):
    """A Bezier curve with the given control points: sum_i C(n, i) t^i (1-t)^(n-i) control[i].

    Two control points make a straight line. Tensors that are equal at all control points are shared, not
    copied, so that a vertex of a long path costs only what it changes. Errors: fewer than two control points,
    control points that differ in keys, shapes, dtypes or devices.

    `control`: the control points, both ends among them.

    >>> import torch
    >>> Curve(({"w": torch.zeros(1)}, {"w": torch.ones(1)}, {"w": torch.zeros(1)})).at(0.5)["w"]
    tensor([0.5000])
    """

    control: tuple[Params, ...]

    def __post_init__(self) -> None:
        check_kind(self.control, Sequence[Mapping], "control")
        if len(self.control) < 2:
            raise InputError("control", expected="at least 2 control points", got=len(self.control))
        first = self.control[0]
        if others := [k for k, v in first.items() if not isinstance(v, Tensor)]:
            raise InputError(
                f"control[0][{others[0]!r}]",
                expected="a torch.Tensor",
                got=type(first[others[0]]).__name__,
                instead="objective.check(point), which leaves extra state out",
            )
        if tiny := [k for k, v in first.items() if v.is_floating_point() and v.dtype.itemsize == 1]:
            raise InputError(
                f"control[0][{tiny[0]!r}]",
                expected="float16 or wider, which torch can interpolate",
                got=first[tiny[0]].dtype,
                instead="isthmus.params.cast(point, torch.float32)",
            )
        points = [first]
        for i, point in enumerate(self.control[1:], start=1):
            check_like(point, first, f"control[{i}]")
            points.append(share(point, points[-1]))
        # equal first and last tensors are shared too: a closed Bezier keeps one copy
        points[-1] = share(points[-1], first)
        object.__setattr__(self, "control", tuple(points))

    def __repr__(self) -> str:
        return line(self, plural(len(self.control), "control point"), plural(count(self.start), "parameter"))

    @property
    def is_straight(self) -> bool:
        """Whether this is a line of two control points."""
        return len(self.control) == 2

    def at(self, t: float) -> Params:
        """The point at t, by de Casteljau's scheme (stable, and exact at both ends)."""
        check_t(t)
        point: Params = {}
        for name in self.start:  # tensor by tensor: no second point is in memory
            values = [{name: p[name]} for p in self.control]
            while len(values) > 1:
                values = [lerp(p, q, t) for p, q in pairwise(values)]
            point |= values[0]
        return point

    @property
    def start(self) -> Params:
        """The first control point."""
        return self.control[0]

    @property
    def end(self) -> Params:
        """The last control point."""
        return self.control[-1]

    @property
    def length(self) -> float:
        """Exact for a line; else 32-point Gauss-Legendre quadrature of the speed on each of 8 pieces."""
        if self.is_straight:
            return distance(self.start, self.end)
        nodes, weights = np.polynomial.legendre.leggauss(32)
        t = ((np.arange(8)[:, None] + (nodes + 1) / 2) / 8).ravel()
        return float(self.speed(t) @ np.tile(weights / 16, 8))

    def speed(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """The length of the derivative at each of `t`, from the inner products of the steps between control points."""
        steps = [_minus(q, p) for p, q in pairwise(self.control)]
        gram = np.array([[dot(p, q) for q in steps] for p in steps])
        n = len(steps) - 1
        basis = np.array([comb(n, i) * t**i * (1 - t) ** (n - i) for i in range(n + 1)])
        return (n + 1) * np.sqrt(np.maximum(np.einsum("it,ij,jt->t", basis, gram, basis), 0))

    def reversed(self) -> Curve:
        """The curve with its control points in the opposite order."""
        return Curve(self.control[::-1])

    def split(self, t: float) -> tuple[Curve, Curve]:
        """De Casteljau's subdivision: two Bezier curves of the same degree."""
        if not 0 < t < 1:
            raise InputError("t", expected="a number strictly between 0 and 1", got=t)
        left, right = [], []
        points: list[Params] = list(self.control)
        while points:
            left.append(points[0])
            right.append(points[-1])
            points = [lerp(p, q, t) for p, q in pairwise(points)]
        return Curve(tuple(left)), Curve(tuple(reversed(right)))


def _minus(a: Params, b: Params) -> Params:
    # a shared tensor may hold infinities (a mask), whose difference is no number
    return {k: torch.zeros_like(v) if v is b[k] else v - b[k] for k, v in a.items() if moves(v)}
