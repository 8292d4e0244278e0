"""Moves between two matrices whose product stays: how a linear network is brought to a common form exactly.

For V [D, n] and W [n, q] with n > D the product V W determines little: units beyond D are spare. As in the simplex
method, D columns of V form a basis, the rows of W at all other units are zero, and the columns there are free. A basis
column is exchanged in two moves: a free unit is given the new column (V changes, its row of W is zero), then the rows
of W are rewritten in the new basis (W changes, V W does not). No move changes V and W at once, so that on each the
outputs of a linear network are affine in t, and in exact arithmetic constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import scipy.linalg
import torch
from torch import Tensor

from isthmus.params import in_range

_RANK = 1e-12
"""Singular values below this part of the largest count as zero."""


@dataclass(frozen=True, eq=False)
class _Pair:
    """V [D, n] and W [n, q] after a move, and what the move did."""

    V: Tensor
    W: Tensor
    what: str


def to_hub(V: Tensor, W: Tensor, scale: float) -> Iterator[_Pair]:
    """The moves from (V, W) to V = scale [I, 0] and W with zero rows from D on; V W stays, n > D.

    With m units to exchange and n - D spare ones there are about 2 m / (n - D) rounds of two moves.

    >>> V, W = torch.tensor([[-2.0, 0.0]]), torch.tensor([[3.0], [1.0]])
    >>> *_, last = to_hub(V, W, 1.0)
    >>> last.V[0], last.W[0]
    (tensor([1., 0.]), tensor([-6.]))
    """
    exchange = _Exchange(V, W, scale)
    yield from exchange.full_rank()
    yield from exchange.onto_pivots()
    while exchange.open:
        yield from exchange.round()
    yield from exchange.clear()


class _Exchange:
    """The state: `live` units carry the product, `done` of them already have their column of scale [I, 0]."""

    def __init__(self, V: Tensor, W: Tensor, scale: float) -> None:
        self.V, self.W, self.scale = V, W, scale
        self.D, self.n = V.shape
        self.product = V @ W
        self.live: list[int] = []
        self.done: list[int] = []

    @property
    def open(self) -> list[int]:
        """The units that still want their final column."""
        return [j for j in range(self.D) if j not in self.done]

    def full_rank(self) -> Iterator[_Pair]:
        """Two moves that give V rank D where it has less: W leaves the kernel of V, which can then be used."""
        U, s, Vh = torch.linalg.svd(self.V)
        r = int((s > _RANK * s[0]).sum()) if float(s[0]) > 0 else 0
        if r < self.D:
            self.W = Vh[:r].T @ (Vh[:r] @ self.W)
            yield self._pair("leave the kernel of the layer above")
            self.V = self.V + self.scale * U[:, r:] @ Vh[r : self.D]
            yield self._pair("give it full rank")

    def onto_pivots(self) -> Iterator[_Pair]:
        """W onto D units whose columns of V are well conditioned."""
        self.live = _pivots(self.V)[: self.D]
        self._put(torch.linalg.solve(self.V[:, self.live], self.product))
        yield self._pair("gather the product on pivot units")

    def round(self) -> Iterator[_Pair]:
        """One exchange of as many columns as there is room for."""
        slots, columns, may_leave = self._room()
        self.V = self.V.clone()
        self.V[:, slots] = columns
        yield self._pair("write columns of spare units")
        C = torch.linalg.solve(self.V[:, self.live], columns)
        rows = [self.live.index(i) for i in may_leave]
        leave = {may_leave[i] for i in _pivots(C[rows].T)[: len(slots)]}
        self.live = [i for i in self.live if i not in leave] + slots
        self._put(torch.linalg.solve(self.V[:, self.live], self.product))
        yield self._pair("hand the product over to them")

    def _room(self) -> tuple[list[int], Tensor, list[int]]:
        """Spare units, the columns that they are given, and the live units that may leave for them."""
        spare = [j for j in range(self.n) if j not in self.live]
        slots = [j for j in self.open if j in spare]
        if slots:
            may_leave = [i for i in self.live if i not in self.done]
            self.done += slots
            return slots, self.scale * torch.eye(self.D).to(self.V)[:, slots], may_leave
        # every place that is still wanted is taken: its unit moves to a spare one first
        may_leave = [j for j in self.open if j in self.live][: len(spare)]
        return spare[: len(may_leave)], self.V[:, may_leave], may_leave

    def clear(self) -> Iterator[_Pair]:
        """Zero columns at the units that carry nothing."""
        V = torch.zeros_like(self.V)
        V[:, : self.D] = self.scale * torch.eye(self.D).to(V)
        self.V = V
        yield self._pair("clear the spare units")

    def _put(self, rows: Tensor) -> None:
        basis = self.V[:, self.live]
        rows = rows + torch.linalg.solve(basis, self.product - basis @ rows)
        self.W = torch.zeros_like(self.W)
        self.W[self.live] = rows

    def _pair(self, what: str) -> _Pair:
        return _Pair(self.V, self.W, what)


def _pivots(V: Tensor) -> list[int]:
    """The columns of V in the order of a pivoted QR factorisation."""
    found: Any = scipy.linalg.qr(in_range(V, "products of the weights").cpu().numpy(), mode="r", pivoting=True)
    return [int(j) for j in found[1]]
