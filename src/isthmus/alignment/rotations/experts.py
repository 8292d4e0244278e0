"""Experts in tensors of their own, which may change places with the rows of their router."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from isthmus.alignment.rotations.frame import Guess, Placed, Stacked, Turn
from isthmus.structure import Structure

_NUMBER = re.compile(r"\.(\d+)\.")
_Parts = dict[int, dict[str, tuple[int, ...]]]


def experts(structure: Structure, turned: Collection[str], tied: Mapping[str, str]) -> Iterator[Guess]:
    """For each list of modules of one form beside whose module a tensor has a row for each: that both change places.

    `turned`: the groups that turn; nothing in the modules does, which would have to change places with them. So of
    lists inside of each other the innermost are taken.
    """
    shared = {*tied, *tied.values()}
    lists = {prefix: parts for prefix, parts in _lists(structure).items() if _alike(parts)}
    routers = {prefix: router for prefix, parts in lists.items() if (router := _router(structure, prefix, len(parts)))}
    for prefix, router in routers.items():
        inside = f"{prefix}."
        if not any(name.startswith(inside) for name in (*turned, *shared, *routers)):
            yield Guess(f"{prefix} exchanged", "experts", (_turn(structure, prefix, lists[prefix], router),))


def _turn(structure: Structure, prefix: str, parts: _Parts, router: Sequence[str]) -> Turn:
    """The modules with the rows for them, and the groups that are inside."""
    size, begin = len(parts), f"{prefix}.0."
    rows = [Placed(name, (0,), torch.arange(size)[:, None]) for name in router]
    stacks = [Stacked(tuple(f"{prefix}.{i}.{rest}" for i in range(size))) for rest in parts[0]]
    inner = [g.name.removeprefix(begin) for g in structure.groups if g.name.startswith(begin)]
    carried = tuple(tuple(f"{prefix}.{i}.{name}" for i in range(size)) for name in inner)
    return Turn(f"{prefix} exchanged", size, (*rows, *stacks), kind="order", carried=carried)


def _router(structure: Structure, prefix: str, size: int) -> list[str]:
    """The tensors of the module that holds the list, without the list, that have a row for each and no units there."""
    near = [k for k in structure.shapes if k.startswith(_parent(prefix)) and not k.startswith(f"{prefix}.")]
    rows = [k for k in near if structure.shapes[k][:1] == (size,)]
    return [k for k in rows if all(m.dim for _, m in structure.members_of(k))]


def _alike(parts: _Parts) -> bool:
    """Whether the modules are numbered from 0 and have tensors of the same shapes."""
    return len(parts) > 1 and list(parts) == list(range(len(parts))) and all(p == parts[0] for p in parts.values())


def _lists(structure: Structure) -> dict[str, _Parts]:
    """For each prefix of a number in the names of tensors, and each number, the rest of the names with the shapes."""
    out: dict[str, _Parts] = {}
    for name, shape in structure.shapes.items():
        for found in _NUMBER.finditer(name):
            held = out.setdefault(name[: found.start()], {}).setdefault(int(found[1]), {})
            held[name[found.end() :]] = shape
    return out


def _parent(prefix: str) -> str:
    """The module that holds a module, as names of tensors begin."""
    before, dot, _ = prefix.rpartition(".")
    return before + dot
