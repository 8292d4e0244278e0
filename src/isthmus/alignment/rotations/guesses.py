"""What the program does not say may be turned, but the network confirms: phases, what is inside heads and experts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import permutations

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
    several = [(g, key, _beside(structure, g, key)) for g, key in permutations(free, 2)]
    pairs = {one[0].name: one for one in reversed(several) if one[2]}.values()  # the first that stands beside it
    for kind in ("rotation", "order"):
        for group, key, members in pairs:
            turn = Turn(group.name, group.size, members, ((key.name, key.size),), kind=kind)
            yield Guess(group.name, f"{kind} in {key.name}", (turn,))


def _beside(structure: Structure, group: Group, key: Group) -> tuple[Placed, ...]:
    """The units of a group under each unit of the key; empty where some tensor does not tell both apart."""
    own, held = ({m.tensor: m for m in g.members} for g in (group, key))
    if not own.keys() <= held.keys() or (len(own), len(held)) != (len(group.members), len(key.members)):
        return ()
    placed = [p for k, m in own.items() if (p := _placed(structure.shapes[k], m, held[k])) is not None]
    return tuple(placed) if len(placed) == len(own) else ()


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
        held = _all_left(group.ins, beside) if beside else {}
        left = _all_left(tuple(held), beside, _positions(structure, {m.tensor for m in held}))
        least = min((at.shape[1] for at in left.values()), default=0)
        for dim in (least, least // 2):  # one is of packed queries and keys
            yield from _planes(group, left, dim)


def _positions(structure: Structure, names: Collection[str]) -> list[Placed]:
    """Where units are that stand in exactly the tensors of queries and keys."""
    inner = [g for g in structure.groups if {m.tensor for m in g.members} == names]
    return [Placed(m.tensor, (m.dim,), m.index) for g in inner for m in g.members]


def _all_left(members: Sequence[Member], turns: Sequence[Turn], also: Sequence[Placed] = ()) -> dict[Member, Tensor]:
    """For each member with such positions those of each head that nothing rotates or renumbers, [heads, block]."""
    held = [*also, *(m for t in turns for m in t.members if isinstance(m, Placed))]
    return {m: at for m in members if (at := _left(m, held)).numel()}


def _left(member: Member, held: Sequence[Placed]) -> Tensor:
    """The positions of each head that are not held; empty where the heads differ in their number."""
    taken = [m.index.reshape(-1) for m in held if (m.tensor, m.dims) == (member.tensor, (member.dim,))]
    free = ~torch.isin(member.index, torch.cat([*taken, torch.empty(0, dtype=torch.int64)]))
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
