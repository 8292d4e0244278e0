"""What the program does not say may be turned, but the network itself can confirm: phases, orders inside of groups."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from isthmus.alignment.rotations.frame import Guess, Placed, Turn
from isthmus.structure import Group, Member, Structure
from isthmus.structure import axes as ax
from isthmus.structure.propagation import Propagation

PHASES = " phases"
"""How the subject ends that phases of queries and keys are guessed for."""


def orders(structure: Structure, turned: Collection[str]) -> Iterator[Guess]:
    """For units that are only renumbered, beside which stand those of another group in all tensors: one order for each.

    Query heads that share a head of keys, and the units inside of experts.
    """
    free = [g for g in structure.groups if g.name not in turned and g.size > 1]
    for group in free:
        for key in free:
            members = _beside(structure, group, key) if key is not group else ()
            if members:
                turn = Turn(group.name, group.size, members, ((key.name, key.size),), kind="order")
                yield Guess(group.name, f"order in {key.name}", (turn,))


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
    if key.index.shape[1] % member.size or not bool(torch.isin(key.index, member.index).all()):
        return None
    unit = torch.full((shape[member.dim],), -1)
    unit[member.index.reshape(-1)] = torch.arange(member.size).repeat_interleave(member.index.shape[1])
    rank = unit[key.index].argsort(stable=True)
    return Placed(member.tensor, (member.dim,), key.index.gather(1, rank).unflatten(1, (member.size, -1)))


def phases(walk: Propagation, structure: Structure, turns: Sequence[Turn]) -> Iterator[Guess]:
    """For queries and keys that do not rotate: planes that a rotary embedding turns, (i, i + r/2) or (2i, 2i + 1).

    They stand in the first r positions of each head; the others rotate. Queries of heads that share a head of keys have
    its phases.
    """
    for group in structure.groups:
        beside = [t for t in turns if group.name in t.renumbered]
        left = {m: at for m in group.ins if (at := _left(m, beside)).numel()}
        if not beside or len({len(at[0]) for at in left.values()}) not in (1, 2):
            continue
        least = min(len(at[0]) for at in left.values())
        for dim in (least, least // 2):
            for rotary in _cuts(walk, left, dim) if dim > 1 else ():
                yield from _planes(group, left, dim, rotary)


def _left(member: Member, turns: Sequence[Turn]) -> Tensor:
    """The positions of each head that no rotation holds, [heads, block]; empty where these differ."""
    rotated = [m for t in turns for m in t.members if isinstance(m, Placed) and m.tensor == member.tensor]
    held = [m.index.reshape(-1) for m in rotated if m.dims == (member.dim,)]
    free = ~torch.isin(member.index, torch.cat(held)) if held else torch.ones_like(member.index, dtype=torch.bool)
    return member.index[free].reshape(member.size, -1) if len(set(free.sum(1).tolist())) == 1 else torch.empty(0)


def _cuts(walk: Propagation, left: Mapping[Member, Tensor], dim: int) -> list[int]:
    """How many positions of a head may be rotary: all, or up to where the program cuts its axis."""
    ends = {dim, dim // 2, dim // 4}
    for member, at in left.items():
        name = walk.program.tied.get(member.tensor, member.tensor)
        labels = torch.stack(list(ax.labels(walk.weights[name][member.dim]).values())) >= 0
        first = labels[:, at[0][:dim]]
        ends |= set((torch.nonzero((first[:, 1:] != first[:, :-1]).any(0)).reshape(-1) + 1).tolist())
    return sorted((n for n in ends if n and n % 2 == 0), reverse=True)


def _planes(group: Group, left: Mapping[Member, Tensor], dim: int, rotary: int) -> Iterator[Guess]:
    """The two ways to pair positions, of which wholes of heads have `dim`."""
    if any(at.shape[1] % dim for at in left.values()):
        return
    several = {m: at.unflatten(1, (-1, dim)).mT for m, at in left.items()}  # [heads, positions, heads inside]
    for layout in ("halves", "pairs"):
        if rotary == 2 and layout == "pairs":
            continue  # the one plane is the same
        name = f"{layout} of {rotary} in {dim}"
        planes = [
            Placed(m.tensor, (m.dim,), _paired(at[:, :rotary], layout)) for m, at in several.items()
        ]
        keys = ((group.name, group.size), ("", rotary // 2))
        found = [Turn(f"{group.name}{PHASES}, {name}", 2, tuple(planes), keys, kind="phase")]
        if rotary < dim:
            rest = tuple(Placed(m.tensor, (m.dim,), at[:, rotary:]) for m, at in several.items())
            found.append(Turn(f"{group.name} rest, {name}", dim - rotary, rest, keys[:1]))
        yield Guess(f"{group.name}{PHASES}", name, tuple(found))


def _paired(at: Tensor, layout: str) -> Tensor:
    """[heads, positions, inside] as [heads, planes, 2, inside]."""
    return at.unflatten(1, (2, -1)).transpose(1, 2) if layout == "halves" else at.unflatten(1, (-1, 2))
