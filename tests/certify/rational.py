"""Chains without biases whose loss is computed in rational numbers."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor, nn

import isthmus as im

F64 = torch.float64
Rows = list[list[Fraction]]


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def fractions(v: Tensor) -> Rows:
    return [[Fraction(float(e)) for e in row] for row in v]


def chain(widths: list[int], activation: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:
    parts: list[nn.Module] = []
    for n, m in pairwise(widths):
        parts += [nn.Linear(n, m, bias=False), *([activation()] if activation else [])]
    return nn.Sequential(*parts[: -1 if activation else None]).double()


def weights(module: nn.Module, *several: object) -> im.Params:
    names = [k for k in module.state_dict() if k.endswith("weight")]
    return {k: torch.as_tensor(v, dtype=F64) for k, v in zip(names, several, strict=True)}


def at(level: list[Rows], t: Fraction) -> Rows:
    """The point at t on a Bezier curve of matrices, by the scheme of de Casteljau."""
    while len(level) > 1:
        level = [
            [[a + t * (b - a) for a, b in zip(u, v, strict=True)] for u, v in zip(m, n, strict=True)]
            for m, n in pairwise(level)
        ]
    return level[0]


def drawn(module: nn.Module, g: torch.Generator) -> im.Params:
    return {k: torch.randn(v.shape, generator=g, dtype=F64) for k, v in module.state_dict().items()}


def exact_mse(points: list[im.Params], t: Fraction, x: Tensor, y: Tensor, relu: bool) -> Fraction:
    """The loss of a chain without biases at t on the Bezier curve of these points, in rational numbers."""
    matrices = [at([fractions(p[name]) for p in points], t) for name in points[0]]
    rows = fractions(x)
    for l, matrix in enumerate(matrices):
        rows = [[sum((w * v for w, v in zip(row, h, strict=True)), Fraction(0)) for row in matrix] for h in rows]
        if relu and l + 1 < len(matrices):
            rows = [[max(v, Fraction(0)) for v in h] for h in rows]
    terms = [(z - v) ** 2 for h, w in zip(rows, fractions(y), strict=True) for z, v in zip(h, w, strict=True)]
    return sum(terms, Fraction(0)) / len(terms)


ONE = (torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64))


def of(module: nn.Module, *values: float) -> im.Params:
    return weights(module, *([[v]] for v in values))
