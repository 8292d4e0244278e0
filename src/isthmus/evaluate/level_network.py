"""A chain of layers with its data, as the constructions of Nguyen 2019 read it, and the ranks that they ask about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod

import torch
from torch import Tensor

from isthmus.objective import Objective
from isthmus.objective.data import single
from isthmus.params import Params, cast, in_range
from isthmus.paths.full_rank import ones_column
from isthmus.structure.activations import Activation, activation_of, affine_of, check_units, design
from isthmus.structure.chain import Chain
from isthmus.structure.slopes import chain_with_slopes

__all__ = ["RANK", "LevelNetwork", "closest_rows", "independent_examples", "rank_of", "singular_values"]

RANK = 1e-12
"""Singular values below this fraction of the largest count as zero."""


def singular_values(M: Tensor) -> Tensor:
    """The singular values of M, descending; of its triangular factor, which is cheaper where M is far from square."""
    tall = M if len(M) >= M.shape[1] else M.T
    return torch.linalg.svdvals(torch.linalg.qr(tall, mode="r")[1] if len(tall) > 2 * tall.shape[1] else tall)


def rank_of(M: Tensor, tol: float = RANK) -> int:
    """The number of singular values above `tol` times the largest.

    >>> rank_of(torch.tensor([[1.0, 0.0], [0.0, 1e-13]], dtype=torch.float64))
    1
    """
    s = singular_values(M)
    return int((s > tol * s[0]).sum()) if len(s) else 0


def independent_examples(x: Tensor, tol: float = RANK) -> int:
    """The largest n for which the first n rows of x are linearly independent, by orthogonalisation in order.

    >>> independent_examples(torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 3.0]]))
    2
    """
    pivots = torch.linalg.qr(x.T, mode="r")[1].diagonal().abs()
    small = (pivots <= tol * x[: len(pivots)].norm(dim=1)).nonzero()
    return int(small[0]) if len(small) else len(pivots)


def closest_rows(x: Tensor, chunk: int = 4096) -> float:
    """The least distance of two rows of x [N, d], N >= 2; above `chunk` rows in blocks, as there are N^2 / 2 distances.

    Blocks are by matrix products, in which digits cancel, and each row's nearest by its own difference then.

    >>> closest_rows(torch.tensor([[0.0], [5.0], [3.0]])), closest_rows(torch.tensor([[0.0], [5.0], [3.0]]), chunk=2)
    (2.0, 2.0)
    """
    if len(x) <= chunk:
        return float(torch.pdist(x).min())
    least = float("inf")
    for start in range(0, len(x) - 1, chunk):  # a last row by itself has been compared with all others
        rows = x[start : start + chunk]
        distances = torch.cdist(rows, x[start:])
        distances.fill_diagonal_(float("inf"))
        least = min(least, float((rows - x[start:][distances.argmin(1)]).norm(dim=1).min()))
    return least


@dataclass(frozen=True, eq=False)
class LevelNetwork:
    """A chain of layers with its data, read in float64: what the constructions of Nguyen 2019 work on."""

    objective: Objective
    chain: Chain
    x: Tensor
    sizes: dict[int, tuple[int, int]]
    _reached: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, objective: Objective, params: Mapping[str, Tensor], *others: Mapping[str, Tensor]) -> LevelNetwork:
        """Read the objective's module at some points. Errors: no chain, normalisation, several input tensors."""
        wide = objective.cast(torch.float64)
        chain = chain_with_slopes(wide.program, wide.structure, (params, *others))
        check_units(chain)
        x = single(wide.data[0])
        point, h, sizes = cast(params, torch.float64), x[:1], {}
        for l in range(1, chain.L + 1):
            G = design(chain, l, point, h)
            sizes[l] = (len(G) * len(x), G.shape[2])
            h = chain.through(point, h, l)
        return cls(wide, chain, x, sizes)

    @property
    def N(self) -> int:
        """The number of samples."""
        return len(self.x)

    @cached_property
    def inputs(self) -> Tensor:
        """The samples as the first layer reads them, one row each."""
        return self.chain.entered(self.x).flatten(1)

    @property
    def L(self) -> int:
        """The number of layers."""
        return self.chain.L

    @cached_property
    def activations(self) -> dict[int, Activation]:
        """The activations of the hidden layers 1..L-1."""
        return {l: activation_of(self.chain.layer(l)) for l in range(1, self.L)}

    def has_bias(self, l: int) -> bool:
        """Whether layer l has biases."""
        return affine_of(self.chain.layer(l)).named()["bias"] is not None

    def features(self, params: Params, l: int) -> Tensor:
        """F_l on all samples, in float64."""
        found = self.chain.features(cast(params, torch.float64), self.x, l, self.objective.chunk)
        return in_range(found, f"features of layer {l}")

    def design(self, params: Params, l: int) -> Tensor:
        """What layer l reads: [rows, n_{l-1}, k_l], with one row per sample for a linear layer."""
        return design(self.chain, l, params, self.features(params, l - 1))

    def data(self, params: Params, k: int) -> Tensor:
        """[F_k, 1] as layer k + 1 reads it; without the column of ones where that layer has no biases."""
        return ones_column(self.design(params, k + 1).flatten(1), self.has_bias(k + 1))

    def reached(self, l: int) -> Tensor:
        """What layer l + 1 reads behind random weights of layers 1 .. l, for several draws of layer l side by side.

        Its rank is the one that layer l can reach if it has no biases to move: with samples that are zero or
        proportional, or an odd activation, that may be less than their number.
        """
        if l not in self._reached:
            rows, each = self.sizes[l + 1]
            draws = max(1, min(8, ceil(4 * rows / (each * self.chain.widths[l]))))
            generator = torch.Generator().manual_seed(0)
            below = {k: v for p in range(1, self.L + 1) for k, v in self._random(p, generator).items()}
            found = [self.design(below | self._random(l, generator), l + 1).flatten(1) for _ in range(draws)]
            self._reached[l] = torch.cat(found, 1)
        return self._reached[l]

    def _random(self, l: int, generator: torch.Generator) -> Params:
        """Normal weights of layer l, of the size that keeps features as large as they are."""
        layer, shapes = self.chain.layer(l), self.objective.structure.shapes
        inputs = prod(shapes[layer.weight][1:])
        draws = {k: torch.randn(shapes[k], generator=generator, dtype=torch.float64) for k in layer.trainable}
        return {k: v.to(self.x.device) * (2 / inputs) ** 0.5 for k, v in draws.items()}

    def units_needed(self, l: int) -> int:
        """How many units of layer l give layer l + 1 a matrix of full row rank: N for perceptrons."""
        rows, each = self.sizes[l + 1]
        return ceil(rows / each)

    @cached_property
    def closest(self) -> float:
        """The least distance of two samples, over the largest norm of a sample less the mean (Assumption 2.4)."""
        flat = self.inputs - self.inputs.mean(0)
        if len(flat) < 2:
            return 1.0
        return closest_rows(flat) / (float(flat.norm(dim=1).max()) or 1.0)
