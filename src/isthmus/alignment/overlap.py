"""The inner product of two networks as a function of how the units of the second are numbered."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from isthmus.params import Params, moves
from isthmus.structure import Group, Member, Structure

Orders = Mapping[str, Tensor]
"""For each group a permutation of its units: unit u is to be unit ``order[u]`` of the second network."""
Doubly = Mapping[str, Tensor]
"""For each group a doubly stochastic matrix [n, n]; a permutation p is the one with ones at (u, p[u])."""


@dataclass(frozen=True, eq=False)
class Overlap:
    """sum over tensors of <a, P b>, P the permutations of the groups of `structure`, each on its axes; in float64.

    `a`, `b`: the tensors that are compared, which hold all units, in their own precision: each is widened where it is
    used. Those that cannot move, and running statistics, are none. `of`: for each tensor the groups that have members
    in it, with those.
    """

    structure: Structure
    a: Params
    b: Params
    of: Mapping[str, tuple[tuple[str, Member], ...]]

    @classmethod
    def between(
        cls, structure: Structure, a: Params, b: Params, without: Collection[str] = (), also: Collection[str] = ()
    ) -> Overlap:
        """`without`: tensors that are not compared; `also`: some that are although no group has members in them."""

        def compared(name: str) -> bool:
            return name not in without and moves(a[name])

        held: dict[str, list[tuple[str, Member]]] = {name: [] for name in filter(compared, also)}
        for group in structure.groups:
            for member in group.members:
                if compared(member.tensor):
                    held.setdefault(member.tensor, []).append((group.name, member))
        of = {name: tuple(several) for name, several in held.items()}
        return cls(structure, {k: _real(a[k]) for k in of}, {k: _real(b[k]) for k in of}, of)

    def among(self, groups: Collection[str], b: Mapping[str, Tensor]) -> Overlap:
        """That of some groups alone, the others being as they are in `b`, over the tensors that hold any of them."""
        of = {k: held for k, several in self.of.items() if (held := tuple(m for m in several if m[0] in groups))}
        structure = replace(self.structure, groups=tuple(g for g in self.structure.groups if g.name in groups))
        return Overlap(structure, {k: self.a[k] for k in of}, {k: b[k] for k in of}, of)

    def value(self, b: Mapping[str, Tensor], names: Collection[str] | None = None) -> float:
        """<a, b> over all tensors, or some."""
        return sum(_dot(self.a[k], b[k]) for k in (names or self.of))

    def gram(self, group: Group, b: Mapping[str, Tensor], names: Collection[str] | None = None) -> Tensor:
        """What each pair of units of a group adds, [n, n]: entry (u, v) where u of a is given unit v of b."""
        out = torch.zeros(group.size, group.size, dtype=torch.float64)
        for m in group.members:
            if m.tensor in self.of and (names is None or m.tensor in names):
                out += _rows(self.a[m.tensor], m).double() @ _rows(b[m.tensor], m).double().T
        return out

    def tensors(self, group: Group) -> list[str]:
        """Those that hold units of the group."""
        return list(dict.fromkeys(m.tensor for m in group.members if m.tensor in self.of))

    def twice(self, group: Group) -> list[str]:
        """Tensors with units of the group on more than one axis, whose part of the inner product is not linear in
        its permutation."""
        axes: dict[str, set[int]] = {}
        for m in group.members:
            axes.setdefault(m.tensor, set()).add(m.dim)
        return [name for name, dims in axes.items() if len(dims) > 1 and name in self.of]

    def degree(self) -> int:
        """The degree of the inner product in the permutations, all of them together."""
        return max((len({(name, m.dim) for name, m in several}) for several in self.of.values()), default=0)

    def permuted(self, orders: Orders, b: Mapping[str, Tensor] | None = None) -> Params:
        """The tensors of b (or these) with their units renumbered."""
        b = self.b if b is None else b
        out = dict(b)
        for name in {m.tensor for g in orders for m in self.structure.group(g).members} & set(self.of):
            for group, m in self.of[name]:
                if group in orders:
                    out[name] = _moved(out[name], m, _rows(out[name], m)[orders[group]])
        return out

    def mixed(self, doubly: Doubly, name: str, but: Member | None = None) -> Tensor:
        """A tensor of b with each of its members, but one, under the matrix of its group."""
        out = self.b[name].double()
        for group, m in self.of[name]:
            if m is not but:
                out = _moved(out, m, doubly[group] @ _rows(out, m))
        return out

    def slopes(self, doubly: Doubly) -> dict[str, Tensor]:
        """The gradient of the inner product in the matrix of each group, where all of them are `doubly`."""
        out = {g: torch.zeros_like(v) for g, v in doubly.items()}
        for name, several in self.of.items():
            for group, m in several:
                out[group] += _rows(self.a[name], m).double() @ _rows(self.mixed(doubly, name, m), m).T
        return out

    def value_at(self, doubly: Doubly) -> float:
        """The inner product under such matrices."""
        return sum(_dot(self.a[name], self.mixed(doubly, name)) for name in self.of)


def _real(v: Tensor) -> Tensor:
    """On the host; a complex entry as two real ones."""
    v = v.detach().cpu()
    return torch.view_as_real(v.resolve_conj()) if v.is_complex() else v


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.double().reshape(-1), b.double().reshape(-1)))


def rows_of(v: Tensor, dim: int, index: Tensor) -> Tensor:
    """The entries of each unit, [..., n, entries]; `index`: where units are on the axis, [..., n, block].

    >>> rows_of(torch.arange(4), 0, torch.tensor([[3, 2], [1, 0]]))
    tensor([[3, 2],
            [1, 0]])
    """
    taken = v.movedim(dim, 0).index_select(0, index.reshape(-1))
    return taken.reshape(*index.shape[:-1], index.shape[-1] * prod(taken.shape[1:]))


def with_rows(v: Tensor, dim: int, index: Tensor, rows: Tensor) -> Tensor:
    """The tensor with other entries of the units, laid out as ``rows_of`` gives them."""
    axis = v.movedim(dim, 0)
    return axis.index_copy(0, index.reshape(-1), rows.reshape(-1, *axis.shape[1:])).movedim(0, dim)


def scaled(v: Tensor, factors: Tensor, dim: int) -> Tensor:
    """The tensor times one factor for each position of an axis."""
    size = [1] * v.ndim
    size[dim] = -1
    return (v.double() * factors.reshape(size)).to(v.dtype)


def _rows(v: Tensor, member: Member) -> Tensor:
    return rows_of(v, member.dim, member.index)


def _moved(v: Tensor, member: Member, rows: Tensor) -> Tensor:
    return with_rows(v, member.dim, member.index, rows)
