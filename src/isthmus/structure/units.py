"""Which entries of which tensors belong to each hidden unit: data, and the maps on parameters that follow from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import prod
from typing import Literal

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.params import Params
from isthmus.shown import one_line

__all__ = ["Group", "Member", "Structure", "Units", "whole"]

Units = Sequence[int] | Tensor


@one_line
@dataclass(frozen=True, eq=False)
class Member:
    """The entries of one tensor that belong to the units of a group.

    ``index[u]`` lists the positions along axis `dim` of `tensor` that belong to unit u. Role "in": the entries
    that make the unit (rows of the weight that computes it, bias, BatchNorm entries). Role "out": the entries that
    read it (columns of the next weight).

    `role`: "in" or "out".
    """

    tensor: str
    dim: int
    role: Literal["in", "out"]
    index: Tensor

    @property
    def size(self) -> int:
        """The number of units."""
        return len(self.index)


@one_line
@dataclass(frozen=True, eq=False)
class Group:
    """A set of interchangeable units: any permutation, made on all members at once, leaves the function unchanged.

    `separable` says that zeroing the "out" entries of a unit removes it: nothing else then depends on it. `why` names
    what mixes the units when that is not so (LayerNorm, softmax, a product of two activations).

    `name`: that of the layer that makes the units. `size`: how many there are. `members`: where they stand in the
    tensors.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    separable: bool = True
    why: str = ""

    @property
    def ins(self) -> tuple[Member, ...]:
        """The members that make the units."""
        return tuple(m for m in self.members if m.role == "in")

    @property
    def outs(self) -> tuple[Member, ...]:
        """The members that read the units."""
        return tuple(m for m in self.members if m.role == "out")


@one_line
@dataclass(frozen=True, eq=False)
class Structure:
    """The unit groups of a network, in the order in which it computes them, and the tensor shapes they fit.

    All methods are pure: they return new dictionaries that share the tensors they do not touch. Two groups may share
    positions of an axis only as a grid (attention heads and the dimensions inside each head). `fixed` names
    the layers of which some units form no group, with the operation that gives each of these a meaning of its own;
    `verified` says on what inputs the laws were checked, if they were.

    `groups`: in the order of the network. `shapes`: of the tensors, by name.

    >>> index = torch.arange(2)[:, None]
    >>> hidden = Group("0", 2, (Member("0.weight", 0, "in", index), Member("2.weight", 1, "out", index)))
    >>> s = Structure((hidden,), {"0.weight": (2, 1), "2.weight": (1, 2)})
    >>> p = {"0.weight": torch.tensor([[1.0], [2.0]]), "2.weight": torch.tensor([[3.0, 4.0]])}
    >>> s.permute(p, {"0": [1, 0]})
    {'0.weight': tensor([[2.],
            [1.]]), '2.weight': tensor([[4., 3.]])}
    >>> s.silence(p, {"0": [0]})["2.weight"]
    tensor([[0., 4.]])
    """

    groups: tuple[Group, ...]
    shapes: Mapping[str, tuple[int, ...]]
    fixed: Mapping[str, str] = field(default_factory=dict)
    verified: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "shapes", {k: tuple(v) for k, v in self.shapes.items()})
        name, times = Counter(g.name for g in self.groups).most_common(1)[0] if self.groups else ("", 0)
        if times > 1:
            raise InputError("groups", expected="a different name for each", got=f"{name!r} twice")
        claims: dict[tuple[str, int], list[tuple[Group, Member]]] = {}
        for group, member in [(g, m) for g in self.groups for m in g.members]:
            self._check_member(group, member)
            claims.setdefault((member.tensor, member.dim), []).append((group, member))
        for several in claims.values():
            self._check_overlap(several)

    def _check_member(self, group: Group, member: Member) -> None:
        what = f"group {group.name!r}, member {member.tensor!r} axis {member.dim}"
        if member.tensor not in self.shapes:
            raise InputError(what, expected="a tensor of the network", got=f"only {sorted(self.shapes)[:4]} and so on")
        shape, index = self.shapes[member.tensor], member.index
        if not 0 <= member.dim < len(shape):
            raise InputError(what, expected=f"an axis of the shape {shape}", got=member.dim)
        if member.role not in ("in", "out"):
            raise InputError(what, expected='the role "in" or "out"', got=member.role)
        if index.ndim != 2 or index.dtype != torch.int64 or len(index) != group.size:
            got = f"{tuple(index.shape)} of {index.dtype}"
            raise InputError(what, expected=f"an int64 index of shape ({group.size}, block)", got=got)
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < shape[member.dim]:
            got = f"{int(index.min())} to {int(index.max())}"
            raise InputError(what, expected=f"positions 0 to {shape[member.dim] - 1}", got=got)
        if index.numel() != index.unique().numel():
            raise InputError(what, expected="each position at most once", got="a position that belongs to two units")

    def _check_overlap(self, claims: Sequence[tuple[Group, Member]]) -> None:
        """Refuse a position that two members of an axis claim, unless their units form a grid."""
        if len(torch.cat([m.index.reshape(-1) for _, m in claims]).unique()) == sum(m.index.numel() for _, m in claims):
            return
        for (g, one), (h, other) in combinations(claims, 2):
            shared, size = int(torch.isin(one.index, other.index).sum()), self.shapes[one.tensor][one.dim]
            if shared and (g is h or not _commute(one.index, other.index, size)):
                raise InputError(
                    f"groups {g.name!r} and {h.name!r}",
                    expected=f"each position of {one.tensor!r} axis {one.dim} in one group",
                    got=f"{shared} in both",
                )

    def group(self, name: str) -> Group:
        """The group of that name."""
        for g in self.groups:
            if g.name == name:
                return g
        raise InputError("group", expected=f"one of {[g.name for g in self.groups]}", got=repr(name))

    def members_of(self, tensor: str) -> tuple[tuple[Group, Member], ...]:
        """The groups that hold entries of `tensor`, each with its member."""
        if tensor not in self.shapes:
            raise InputError("tensor", expected=f"one of {sorted(self.shapes)}", got=repr(tensor))
        return tuple((g, m) for g in self.groups for m in g.members if m.tensor == tensor)

    def permute(self, params: Mapping[str, Tensor], permutations: Mapping[str, Units]) -> Params:
        """The same function with its units renumbered: unit u of the result is unit ``permutation[u]`` of `params`."""
        self._check(params)
        orders = {}
        for name, permutation in permutations.items():
            orders[name] = self._units(name, permutation)
            if len(orders[name]) != (size := self.group(name).size):
                raise InputError(f"group {name!r}", expected=f"a permutation of {size}", got=f"{len(orders[name])}")
        return self._take(params, self._sources(orders))

    def silence(self, params: Mapping[str, Tensor], units: Mapping[str, Units]) -> Params:
        """Zero the "out" entries of the units, so that nothing depends on them; refuses groups not separable."""
        for group in map(self.group, units):
            if not group.separable:
                got = f"units that are not: {group.why}"
                raise InputError(f"group {group.name!r}", expected="separable units", got=got)
        return self.scale(params, {name: self._silent(name, which) for name, which in units.items()})

    def scale(self, params: Mapping[str, Tensor], factors: Mapping[str, Tensor | Sequence[float]]) -> Params:
        """Multiply the "out" entries of unit u by ``factors[group][u]``; a factor 0 writes exact zeros."""
        self._check(params)
        out = dict(params)
        for name, values in factors.items():
            group, values = self.group(name), torch.as_tensor(values)
            if values.shape != (group.size,):
                got = tuple(values.shape)
                raise InputError(f"group {name!r}", expected=f"{group.size} factors, shape ({group.size},)", got=got)
            for member in group.outs:
                out[member.tensor] = _multiplied(out[member.tensor], member, values)
        return out

    def select(self, params: Mapping[str, Tensor], units: Mapping[str, Units]) -> Params:
        """The smaller network that has only those units, in the given order."""
        self._check(params)
        keep = {name: self._units(name, which) for name, which in units.items()}
        return self._take(params, {axis: s[k] for axis, (s, k) in self._kept(keep).items()})

    def embed(self, small: Mapping[str, Tensor], units: Mapping[str, Units]) -> Params:
        """The full-size network with `small` at those units and zeros at the others: the right inverse of `select`.

        All entries of the other units are zero, a running variance too; as nothing reads them, they do not act.
        """
        keep = {name: self._units(name, which) for name, which in units.items()}
        kept = self._kept(keep)
        sizes = {name: list(shape) for name, shape in self.shapes.items()}
        for (tensor, dim), (_, k) in kept.items():
            sizes[tensor][dim] = len(k)
        for name, size in sizes.items():
            if name not in small or tuple(small[name].shape) != tuple(size):
                got = "nothing" if name not in small else tuple(small[name].shape)
                raise InputError(f"params[{name!r}]", expected=f"shape {tuple(size)}", got=got)
        out = dict(small)
        for (tensor, dim), (source, k) in kept.items():
            shape = list(out[tensor].shape)
            shape[dim] = self.shapes[tensor][dim]
            out[tensor] = out[tensor].new_zeros(shape).index_copy(dim, source[k].to(out[tensor].device), out[tensor])
        return out

    def _check(self, params: Mapping[str, Tensor]) -> None:
        for name, shape in self.shapes.items():
            if name not in params:
                raise InputError("params", expected=f"the key {name!r}", got=f"only {sorted(params)[:4]} and so on")
            if tuple(params[name].shape) != shape:
                raise InputError(f"params[{name!r}]", expected=f"shape {shape}", got=tuple(params[name].shape))

    def _units(self, name: str, units: Units) -> Tensor:
        """The units as an int64 tensor of distinct numbers in range."""
        size, u = self.group(name).size, torch.as_tensor(units).reshape(-1).cpu()
        if u.numel() and (u.dtype == torch.bool or u.is_floating_point()):
            raise InputError(f"group {name!r}", expected="unit numbers (integers)", got=u.dtype)
        u = u.long()
        if u.numel() and not 0 <= int(u.min()) <= int(u.max()) < size:
            raise InputError(f"group {name!r}", expected=f"units 0 to {size - 1}", got=u.tolist())
        if u.unique().numel() != u.numel():
            raise InputError(f"group {name!r}", expected="distinct units", got=u.tolist())
        return u

    def _silent(self, name: str, units: Units) -> Tensor:
        factors = torch.ones(self.group(name).size)
        factors[self._units(name, units)] = 0
        return factors

    def _sources(self, orders: Mapping[str, Tensor]) -> dict[tuple[str, int], Tensor]:
        """For each axis touched, the old position of every new one. Grid permutations commute, so the order is free."""
        out: dict[tuple[str, int], Tensor] = {}
        for name, order in orders.items():
            for m in self.group(name).members:
                source = torch.arange(self.shapes[m.tensor][m.dim])
                source[m.index.reshape(-1)] = m.index[order].reshape(-1)
                before = out.get((m.tensor, m.dim))
                out[m.tensor, m.dim] = source if before is None else before[source]
        return out

    def _kept(self, keep: Mapping[str, Tensor]) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
        """For each axis touched: the permutation that moves the kept units to the front, and the positions kept."""
        orders = {}
        for name, units in keep.items():
            rest = torch.ones(self.group(name).size, dtype=torch.bool)
            rest[units] = False
            orders[name] = torch.cat([units, rest.nonzero().reshape(-1)])
        out = {}
        for (tensor, dim), source in self._sources(orders).items():
            stay = torch.ones(self.shapes[tensor][dim], dtype=torch.bool)
            for name, units in keep.items():
                for m in self.group(name).members:
                    if (m.tensor, m.dim) == (tensor, dim):
                        stay[m.index[len(units) :].reshape(-1)] = False
            out[tensor, dim] = (source, stay.nonzero().reshape(-1))
        return out

    def _take(self, params: Mapping[str, Tensor], sources: Mapping[tuple[str, int], Tensor]) -> Params:
        out = dict(params)
        for (tensor, dim), source in sources.items():
            out[tensor] = out[tensor].index_select(dim, source.to(out[tensor].device))
        return out


def _multiplied(tensor: Tensor, member: Member, factors: Tensor) -> Tensor:
    """`tensor` with the entries of unit u times factors[u]; zeros are written, not multiplied (0 * inf is NaN)."""
    line = torch.ones(tensor.shape[member.dim], dtype=torch.float64)
    line[member.index] = factors.detach().cpu().double()[:, None].expand_as(member.index)
    shape = [1] * tensor.ndim
    shape[member.dim] = -1
    line = line.reshape(shape).to(tensor)
    return torch.where(line == 0, torch.zeros_like(tensor), tensor * line)


def _commute(a: Tensor, b: Tensor, size: int) -> bool:
    """Whether the permutations of two groups on one axis may be made in either order, as those of a grid may."""
    return all(torch.equal(p[q], q[p]) for p in _generators(a, size) for q in _generators(b, size))


def _generators(index: Tensor, size: int) -> list[Tensor]:
    """A cycle of all units and an exchange of two, as maps of positions: together they generate all permutations."""
    out = []
    for order in (torch.arange(len(index)).roll(1), torch.tensor([1, 0, *range(2, len(index))])[: len(index)]):
        if len(index) > 1:
            source = torch.arange(size)
            source[index.reshape(-1)] = index[order].reshape(-1)
            out.append(source)
    return out


def whole(group: Group, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether the units are all that stands on their axes, in their natural order."""
    return all(_natural(m.index, shapes[m.tensor][m.dim]) for m in group.members)


def _natural(index: Tensor, length: int) -> bool:
    return prod(index.shape) == length and torch.equal(index.flatten(), torch.arange(length))
