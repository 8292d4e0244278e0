"""Modules with one operation of any kind between two layers: in narrower types, on parameters of any shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TENTHS = torch.full((6,), 0.1)


class Made(nn.Module):
    """f(m, h) between two layers of 6 units, with parameters of many shapes."""

    def __init__(self, f: Callable[[Any, Tensor], Tensor], read: int = 6) -> None:
        super().__init__()
        self.f, self.one, self.two = f, nn.Linear(4, 6), nn.Linear(read, 4)
        self.scalar, self.vector = nn.Parameter(torch.rand(())), nn.Parameter(torch.randn(6))
        self.matrix, self.cube = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(2, 3, 6))
        self.register_buffer("kept", torch.linspace(0.1, 1, 6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.f(self, self.one(x)))


NARROW = {
    "float32 constant": lambda m, h: h * TENTHS,
    "buffer outside the state": lambda m, h: h + m.kept,
    "cast to float32": lambda m, h: h.float().relu(),
    "cast by to": lambda m, h: h.to(torch.float32) * 2,
    "half and back": lambda m, h: h.half().relu().float(),
    "arange": lambda m, h: h + torch.arange(6, dtype=torch.float32),
    "linspace": lambda m, h: h * torch.linspace(0, 1, 6),
    "whole numbers": lambda m, h: h * torch.arange(6) / 3,
    "eye": lambda m, h: h @ torch.eye(6),
    "zeros in the batch": lambda m, h: torch.cat([h[:, :3], torch.zeros(h.shape[0], 3)], 1),
    "ones like": lambda m, h: h + torch.ones_like(h) - torch.full_like(h, 0.3),
    "a literal": lambda m, h: h + torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
    "mask": lambda m, h: h.masked_fill(torch.arange(6) > 3, 0.1),
    "where": lambda m, h: torch.where(torch.arange(6) > 3, h, TENTHS),
}
SHAPES = {
    "vector behind": lambda m, h: h * (h @ m.vector)[:, None],
    "vector in front": lambda m, h: h * m.vector.unsqueeze(0).matmul(h.t()).t(),
    "scalar": lambda m, h: m.scalar * h,
    "scalar below": lambda m, h: h / (m.scalar.square() + 1),
    "a number by a vector": lambda m, h: h * (2 / (m.vector.abs() + 1)),
    "vector alone": lambda m, h: h * torch.dot(m.vector, m.vector),
    "no batch": lambda m, h: h + m.matrix @ m.vector,
    "vector into a layer": lambda m, h: h + F.linear(m.vector, m.matrix),
    "cube": lambda m, h: torch.matmul(h, m.cube.transpose(1, 2)).permute(1, 0, 2).reshape(h.shape[0], 6),
    "einsum": lambda m, h: torch.einsum("bi,tji->btj", h, m.cube).reshape(h.shape[0], 6),
    "einsum of one": lambda m, h: h * torch.einsum("tji->i", m.cube),
    "bilinear": lambda m, h: torch.einsum("bi,ij->bj", h, m.matrix) * m.vector,
    "broadcast on the left": lambda m, h: m.vector - h,
    "maximum with a vector": lambda m, h: torch.maximum(m.vector, h),
    "minimum with a row": lambda m, h: torch.minimum(h, m.matrix[:1]),
    "powers": lambda m, h: h**2 + (h.abs() + 1).rsqrt() + (h.abs() + 1) ** 0.5 + (h.abs() + 1).reciprocal(),
    "cumulated": lambda m, h: h.cumsum(1),
    "repeated": lambda m, h: m.vector.repeat(2)[:6] + m.vector.expand_as(h) * h,
    "baddbmm": lambda m, h: torch.baddbmm(m.cube, m.cube, m.matrix.expand(2, 6, 6))[0].sum(0) * h,
    "root mean square": lambda m, h: h * (h.square().mean(1, keepdim=True) + 0.1).rsqrt() * m.vector,
    "indexed": lambda m, h: h[:, torch.tensor([1, 0, 2, 3, 5, 5])],
    "triangles": lambda m, h: h @ (m.matrix.tril() + 2 * m.matrix.triu(1)),
    "diagonals": lambda m, h: h @ torch.diag(m.vector) * m.matrix.diagonal(),
    "outer product": lambda m, h: h @ torch.outer(m.vector, m.vector),
    "sliding": lambda m, h: h.unfold(1, 3, 3).flatten(1),
    "patches": lambda m, h: F.unfold(h.reshape(-1, 1, 2, 3), (1, 3)).flatten(1),
    "new tensors": lambda m, h: h * h.new_full((6,), 0.3) + h.new_ones(6) - h.new_zeros(6) + torch.zeros_like(h),
    "affine in one": lambda m, h: torch.addmv(m.vector, m.matrix, m.vector) + h,
    "divided by a norm": lambda m, h: h @ (m.matrix / (m.matrix.square().sum() + 1).sqrt()),
}
ACTIVATIONS = {
    "softsign": F.softsign, "logsigmoid": F.logsigmoid, "mish": F.mish, "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish, "abs": torch.abs, "exp": torch.exp,
}  # fmt: skip
SHAPES |= {name: lambda m, h, f=f: f(h) for name, f in ACTIVATIONS.items()}
