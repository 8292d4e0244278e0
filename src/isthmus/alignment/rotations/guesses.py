"""What the program does not say may be turned, but the network itself can confirm: phases, what is inside of heads and experts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from isthmus.alignment.rotations.frame import Guess, Placed, Turn
from isthmus.structure import Group, Member, Structure

PHASES = " phases"
"""How the subject ends that phases of queries and keys are guessed for."""


def inside(structure: Structure, turned: Collection[str]) -> Iterator[Guess]:
    """For units that are only renumbered, beside which stand those of another group in all tensors: that they rotate,
    or at least have an order, for each of these by itself.

    Positions of heads without a rotary embedding, query heads that share a head of keys, the units inside of experts.
    """
    free = [g for g in structure.groups if g.name not in turned and g.size > 1]
    pairs = [(g, key, m) for g in free for key in free if key is not g and (m := _beside(structure, g, key))]
    for kind in ("rotation", "order"):
        for group, key, members in pairs:
            turn = Turn(group.name, group.size, members, ((key.name, key.size),), kind=kind)
            yield Guess(group.name, f"{kind} in {key.name}", (turn,))


def _beside(structure: Structure, group: Group, key: Group) -> tuple[Placed, ...]:
    """The units of a group under each unit of the key; empty where some tensor does not tell both apart."""
    held = {m.tensor: m for m in key.members}
    alone = len(held) == len(key.members) and len({m.tensor for m in group.members}) == len(group.members)
    if not alone or any(m.tensor not in held for m in group.members):
        return ()
    placed = [_placed(structure.shapes[m.tensor], m, held[m.tensor]) for m in group.members]
    return tuple(p for p in placed if p is not None) if None not in placed else ()


def _placed(shape: Sequence[int], member: Member, key: Member) -> Placed | None:
    """On one axis, as in a grid; or on two, that of the key being made there."""
    if member.dim != key.dim:
        if key.role != "in":
            return None
        # positions along both axes, that of the key slower
        both = key.index[:, None, :, None] * shape[member.dim] + member.index[None, :, None, :]
        return Placed(member.tensor, (key.dim, member.dim), both.flatten(2))
    unit = torch.full((shape[member.dim],), -1)
    unit[member.index.reshape(-1)] = torch.arange(member.size).repeat_interleave(member.index.shape[1])
    here = unit[key.index] >= 0
    if member.index.numel() != int(here.sum()) or len(set(here.sum(1).tolist())) > 1:
        return None
    shared = key.index[here].reshape(len(key.index), -1)
    rank = unit[shared].argsort(stable=True)
    return Placed(member.tensor, (member.dim,), shared.gather(1, rank).unflatten(1, (member.size, -1)))


def phases(structure: Structure, turns: Sequence[Turn]) -> Iterator[Guess]:
    """For queries and keys that do not rotate: planes that a rotary embedding turns, (i, i + d/2) or (2i, 2i + 1).

    Queries of heads that share a head of keys have its phases; positions behind no embedding are units of their own.
    """
    for group in structure.groups:
        beside = [t for t in turns if group.name in t.renumbered]
        held = {m: _left(m, beside) for m in group.ins} if beside else {}
        plain = _positions(structure, [m for m, at in held.items() if at.numel()])
        left = {m: at for m in held if (at := _left(m, beside, plain)).numel()}
        least = min((at.shape[1] for at in left.values()), default=0)
        for dim in (least, least // 2):  # one is of packed queries and keys
            yield from _planes(group, left, dim)


def _positions(structure: Structure, members: Sequence[Member]) -> list[Placed]:
    """Where units are that stand in all tensors of queries and keys."""
    names = {m.tensor for m in members}
    several = [g for g in structure.groups if names and names <= {m.tensor for m in g.members}]
    inner = [g for g in several if not {m.tensor for m in g.members} - names]
    return [Placed(m.tensor, (m.dim,), m.index) for g in inner for m in g.members]


def _left(member: Member, turns: Sequence[Turn], also: Sequence[Placed] = ()) -> Tensor:
    """The positions of each head that nothing rotates or renumbers, [heads, block]; empty where these differ."""
    placed = [m for t in turns for m in t.members if isinstance(m, Placed)]
    held = [m.index.reshape(-1) for m in (*placed, *also) if (m.tensor, m.dims) == (member.tensor, (member.dim,))]
    free = ~torch.isin(member.index, torch.cat(held)) if held else torch.ones_like(member.index, dtype=torch.bool)
    return member.index[free].reshape(member.size, -1) if len(set(free.sum(1).tolist())) == 1 else torch.empty(0)


def _planes(group: Group, left: Mapping[Member, Tensor], dim: int) -> Iterator[Guess]:
    """The two ways to pair positions, of which each head has `dim`."""
    if dim < 2 or dim % 2 or any(at.shape[1] % dim for at in left.values()):
        return
    for layout in ("halves", "pairs")[: dim // 2]:  # one plane is the same in both
        planes = [Placed(m.tensor, (m.dim,), _paired(at.unflatten(1, (-1, dim)).mT, layout)) for m, at in left.items()]
        keys, name = ((group.name, group.size), ("", dim // 2)), f"{layout} of {dim}"
        turn = Turn(f"{group.name}{PHASES}, {name}", 2, tuple(planes), keys, kind="phase")
        yield Guess(f"{group.name}{PHASES}", name, (turn,))


def _paired(at: Tensor, layout: str) -> Tensor:
    """[heads, positions, inside] as [heads, planes, 2, inside]."""
    return at.unflatten(1, (2, -1)).transpose(1, 2) if layout == "halves" else at.unflatten(1, (-1, 2))
