"""The degree of a value as a polynomial in tensors, operation by operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from isthmus.program.export import Node, Ref
from isthmus.program.ops import Linear

__all__ = ["degree_of"]


def degree_of(node: Node, known: Mapping[str, float]) -> float:
    """The degree of a node's result from those of what it reads; infinite where it may be no polynomial of it."""

    def of(value: Any) -> float:
        if isinstance(value, Ref):
            return known.get(value.name, 0)
        return max(map(of, value), default=0) if isinstance(value, list | tuple) else 0

    args = [of(v) for v in node.args]
    everything = max([*args, *(of(v) for v in node.kwargs.values())], default=0)
    return _degree(node.about.linear, args, everything) if 0 < everything < inf else everything


def _degree(linear: Linear, args: Sequence[float], everything: float) -> float:
    """What an operation that is affine in this sense makes of arguments of these degrees, the largest `everything`."""
    if linear == "jointly" or (linear == "first" and args[0] == everything and max(args[1:], default=0) == 0):
        return everything
    if linear in ("each", "added"):
        first, second = args[:2] if linear == "each" else args[1:3]
        return max(first + second, everything)
    if linear == "scaled" and args[4] == 0:  # (x - mean) / sqrt(var + eps) * weight + bias, statistics fixed
        x, weight, _, mean = args[:4]
        return max(max(x, mean) + weight, everything)
    return inf
