"""What may be rotated in a network, and the maps on its parameters that follow: fold, renumber, rotate, unfold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from isthmus.alignment.overlap import rows_of, scaled, with_rows
from isthmus.errors import InputError
from isthmus.params import Params, cast, moves
from isthmus.structure import Structure

_SMALL = 1e-3
"""A gain is put back as at least so much of the largest one: the weights that read it are divided by it."""
_EQUAL = 1e-12
"""Gains whose differences are at most so much of the largest are equal."""


@dataclass(frozen=True, eq=False)
class Placed:
    """Entries of a tensor that rotate: ``index[k..., u]`` are the positions of unit u under key k.

    Along an axis, or along several of them, `dims`, as if these were one.
    """

    tensor: str
    dims: tuple[int, ...]
    index: Tensor

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those that hold the units."""
        return (self.tensor,)

    def rows(self, values: Mapping[str, Tensor]) -> Tensor:
        """The entries of each unit, [keys..., units, entries]."""
        return rows_of(self._one_axis(values[self.tensor]), 0, self.index)

    def filled(self, values: Mapping[str, Tensor], rows: Tensor) -> Params:
        """The tensor with other entries there."""
        v, front = values[self.tensor], tuple(range(len(self.dims)))
        axis = with_rows(self._one_axis(v), 0, self.index, rows)
        return {self.tensor: axis.unflatten(0, [v.shape[d] for d in self.dims]).movedim(front, self.dims)}

    def _one_axis(self, v: Tensor) -> Tensor:
        return v.movedim(self.dims, tuple(range(len(self.dims)))).flatten(0, len(self.dims) - 1)


@dataclass(frozen=True)
class Stacked:
    """Units that are each a whole tensor."""

    tensors: tuple[str, ...]

    def rows(self, values: Mapping[str, Tensor]) -> Tensor:
        """The entries of each unit, [units, entries]."""
        return torch.stack([values[name].flatten() for name in self.tensors])

    def filled(self, values: Mapping[str, Tensor], rows: Tensor) -> Params:
        """The tensors with other entries."""
        return {name: row.view_as(values[name]) for name, row in zip(self.tensors, rows, strict=True)}


@dataclass(frozen=True, eq=False)
class Turn:
    """A group whose units may be rotated among each other: one rotation for each value of its `keys`.

    `keys`: the groups, or "" for what cannot be renumbered, that stand beside it wherever it is, such as heads, with
    their sizes. `centred`: only rotations that keep the vector of ones commute. `seen`: the values, in place of
    tensors, that weights read.
    """

    group: str
    size: int
    members: tuple[Placed | Stacked, ...]
    keys: tuple[tuple[str, int], ...] = ()
    centred: bool = False
    seen: tuple[Placed, ...] = ()
    kind: Literal["rotation", "phase", "order"] = "rotation"
    carried: tuple[tuple[str, ...], ...] = ()

    @property
    def tensors(self) -> list[str]:
        """Those that hold units of it."""
        return [name for m in self.members for name in m.tensors]

    @property
    def renumbered(self) -> tuple[str, ...]:
        """The groups among the keys."""
        return tuple(name for name, _ in self.keys if name)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the rotations of all keys."""
        return (*(n for _, n in self.keys), self.size, self.size)


@dataclass(frozen=True, eq=False)
class Guess:
    """Turns that only the network itself can confirm. `subject`: of its guesses the first that holds is taken; `name`:
    which of them it is."""

    subject: str
    name: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Reader:
    """A weight whose axis `dim` reads what a gain multiplied, with its bias."""

    weight: str
    dim: int
    bias: str | None


@dataclass(frozen=True)
class Gain:
    """A vector that multiplies the units of a group, one that is then added, and what reads the result.

    `carried`: something else than weights of its own reads it, so that it cannot be moved into them.
    """

    group: str
    gain: str | None
    bias: str | None
    readers: tuple[Reader, ...]
    carried: bool

    @property
    def absorbed(self) -> bool:
        """Whether the biases of the readers can take over what is added."""
        return all(r.bias is not None for r in self.readers)


@dataclass(frozen=True, eq=False)
class Rotatable:
    """All of a network that may be rotated. `tied`: each further name of a tensor with its first one.

    `guesses`: what may be, if the network confirms it.
    """

    structure: Structure
    turns: tuple[Turn, ...]
    gains: tuple[Gain, ...]
    tied: Mapping[str, str]
    guesses: tuple[Guess, ...] = ()

    @property
    def folded(self) -> tuple[Gain, ...]:
        """The gains that can be moved into their readers."""
        return tuple(g for g in self.gains if not g.carried)

    @property
    def visible(self) -> list[Turn]:
        """What can be told by its values alone: nothing beside it is renumbered."""
        return [t for t in self.turns if t.seen and not t.renumbered]

    def only(self, rotations: Collection[str], norms: Collection[str]) -> Rotatable:
        """What is needed to rotate these groups and move these gains; others must not be folded."""
        every = [*self.turns, *(t for guess in self.guesses for t in guess.turns)]
        one = {t.group: t for t in every if t.group in rotations}  # guesses of one group differ in their kind alone
        turns = tuple(one.values())
        return replace(self, turns=turns, gains=tuple(g for g in self.gains if g.carried or _in(norms, g)))

    def joined(self, other: Rotatable) -> Rotatable:
        """What at least one of two frames of one network has: other weights confirm other turns and gains."""
        turns = {t.group: t for t in (*other.turns, *self.turns)}
        gains = {(g.gain, g.bias): g for g in (*other.gains, *self.gains)}
        return replace(self, turns=tuple(turns.values()), gains=tuple(gains.values()))

    def apply(
        self,
        params: Mapping[str, Tensor],
        permutations: Mapping[str, Tensor],
        rotations: Mapping[str, Tensor],
        norms: Mapping[str, Tensor],
    ) -> Params:
        """The parameters folded, renumbered, rotated, and unfolded with the gains in `norms`; in their own types."""
        self.check(params, rotations)
        out = self.structure.permute(self.fold(cast(params, torch.float64)), permutations)
        out = self.unfold(self.rotate(out, rotations), norms)
        return {k: v if v is params[k] else v.to(params[k].dtype) for k, v in out.items()}

    def check(self, params: Mapping[str, Tensor], rotations: Mapping[str, Tensor]) -> None:
        """Refuse gains that a rotation does not commute with."""
        for gain in self.gains:
            if gain.carried and gain.group in rotations and not uniform(params, gain):
                got = "others, so that the rotation would change the function"
                raise InputError(f"params[{gain.gain!r}]", expected="equal entries", got=got)

    def _tie(self, out: Params) -> Params:
        return out | {name: out[first] for name, first in self.tied.items() if name in out}

    def fold(self, params: Mapping[str, Tensor]) -> Params:
        """The same function with gains of one; what they add is zero, or to be multiplied by them."""
        out = dict(params)
        for gain in self.folded:
            scale, shift = self._of(gain, out)
            for reader in gain.readers:
                self._shift(out, reader, gain, shift)
                out[reader.weight] = scaled(out[reader.weight], scale, reader.dim)
            if gain.gain is not None:
                out[gain.gain] = torch.ones_like(scale)
            if gain.bias is not None and shift is not None:
                out[gain.bias] = torch.zeros_like(shift) if gain.absorbed else shift / scale
        return self._tie(out)

    def unfold(self, params: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> Params:
        """The same function with other gains than one."""
        out = dict(params)
        for gain in self.folded:
            scale = norms[gain.gain] if gain.gain is not None else None
            if scale is not None:
                for reader in gain.readers:
                    out[reader.weight] = scaled(out[reader.weight], 1 / scale, reader.dim)
                out[gain.gain or ""] = scale.clone()
            if gain.bias is None:
                continue
            if not gain.absorbed:
                out[gain.bias] = out[gain.bias] * (1 if scale is None else scale)
                continue
            for reader in gain.readers:
                self._shift(out, reader, gain, -norms[gain.bias])
            out[gain.bias] = norms[gain.bias].clone()
        return self._tie(out)

    def rotate(self, params: Mapping[str, Tensor], rotations: Mapping[str, Tensor]) -> Params:
        """Unit u of the result is the sum over v of ``rotations[group][k..., u, v]`` times unit v.

        Whole numbers stay where they are: they must be those of the other network for a path between both. So does what
        `params` do not have, such as statistics that are not compared.
        """
        out = dict(params)
        for turn in self.turns:
            if turn.group in rotations:
                for m in (m for m in turn.members if _turns(out, m.tensors[0])):
                    out |= m.filled(out, rotations[turn.group] @ m.rows(out))
        return out

    def renumbered(self, group: str, rotations: Tensor, orders: Mapping[str, Tensor]) -> Tensor:
        """Rotations of a group after its keys, such as heads, were renumbered."""
        keys = next(t.keys for t in self.turns if t.group == group)
        for place, (name, _) in enumerate(keys):
            if name in orders:
                rotations = rotations.index_select(place, orders[name])
        return rotations

    def carried(self, orders: Mapping[str, Tensor], rotations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Orders of groups inside of modules that change places, by where these are afterwards."""
        out = dict(orders)
        for turn in self.turns:
            if turn.carried and turn.group in rotations:
                places = rotations[turn.group].argmax(1).tolist()
                for names in turn.carried:
                    out |= {names[i]: orders[names[j]] for i, j in enumerate(places)}
        return out

    def composed(
        self,
        first: Mapping[str, Tensor],
        orders: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
        later: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """The rotations of both, after `orders`, which are the permutations of both; `later`: those of the second."""
        out: dict[str, Tensor] = {}
        for turn in self.turns:
            if turn.group in first or turn.group in second:
                eye, still = torch.eye(turn.size, dtype=torch.float64), torch.arange(turn.size)
                one = first.get(turn.group, eye[orders.get(turn.group, still)])
                one = one[..., later.get(turn.group, still), :] if turn.group in first else one
                two = second.get(turn.group, eye)
                one = self.renumbered(turn.group, one.expand(turn.shape), later)
                out[turn.group] = two @ one
        return out

    def norms(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gains to unfold with that make these parameters' own, and the biases; none is nearly 0."""
        out: dict[str, Tensor] = {}
        for gain in self.folded:
            if gain.gain is not None:
                scale = params[gain.gain].double()
                least = _SMALL * (float(scale.abs().max()) or 1.0)
                out[gain.gain] = torch.where(scale.abs() < least, torch.copysign(scale.new_tensor(least), scale), scale)
            if gain.bias is not None and gain.absorbed:
                out[gain.bias] = params[gain.bias].double().clone()
        return out

    @staticmethod
    def _of(gain: Gain, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        shift = params[gain.bias] if gain.bias is not None else None
        scale = params[gain.gain] if gain.gain is not None else torch.ones_like(params[gain.bias or ""])
        return scale, shift

    @staticmethod
    def _shift(out: Params, reader: Reader, gain: Gain, shift: Tensor | None) -> None:
        """Let the reader's bias take over what is added to what it reads."""
        if shift is not None and gain.absorbed and reader.bias is not None:
            out[reader.bias] = out[reader.bias] + out[reader.weight].movedim(reader.dim, 1) @ shift


def uniform(params: Mapping[str, Tensor], gain: Gain) -> bool:
    """Whether all entries of the gain are equal."""
    v = params[gain.gain].double() if gain.gain is not None else torch.ones(1)
    return float(v.max() - v.min()) <= _EQUAL * float(v.abs().max())


def _turns(params: Mapping[str, Tensor], name: str) -> bool:
    return name in params and moves(params[name])


def _in(names: Collection[str], gain: Gain) -> bool:
    return gain.gain in names or gain.bias in names
