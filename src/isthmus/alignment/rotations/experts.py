"""Experts in tensors of their own, which may change places with the rows of their router."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

import torch

from isthmus.alignment.rotations.frame import Guess, Placed, Stacked, Turn
from isthmus.structure import Structure

_NUMBER = re.compile(r"\.(\d+)\.")


def experts(structure: Structure, turned: Collection[str], tied: Mapping[str, str]) -> Iterator[Guess]:
    """For each list of modules of one form beside whose module a tensor has a row for each: that both change places."""
    for prefix, parts in _lists(structure).items():
        size, several = len(parts), [*parts.values()]
        router = [
            name for name, shape in structure.shapes.items()
            if name.startswith(_parent(prefix)) and not name.startswith(f"{prefix}.")
            and shape[:1] == (size,) and not any(m.dim == 0 for _, m in structure.members_of(name))
        ]  # fmt: skip
        names = {f"{prefix}.{i}.{rest}" for i, some in parts.items() for rest in some}
        alike = size > 1 and all(one == several[0] for one in several) and list(parts) == list(range(size))
        if (
            not alike
            or not router
            or names & {*tied, *tied.values()}
            or any(t.startswith(f"{prefix}.") for t in turned)
        ):
            continue
        rows = [Placed(name, (0,), torch.arange(size)[:, None]) for name in router]
        stacks = [Stacked(tuple(f"{prefix}.{i}.{rest}" for i in range(size))) for rest in several[0]]
        inside = [g.name for g in structure.groups if g.name.startswith(f"{prefix}.0.")]
        carried = tuple(tuple(f"{prefix}.{i}.{g.removeprefix(f'{prefix}.0.')}" for i in range(size)) for g in inside)
        turn = Turn(f"{prefix} exchanged", size, (*rows, *stacks), kind="order", carried=carried)
        yield Guess(turn.group, "experts", (turn,))


def _lists(structure: Structure) -> dict[str, dict[int, dict[str, tuple[int, ...]]]]:
    """For each prefix of a number in the names of tensors, and each number, the rest of the names with the shapes."""
    out: dict[str, dict[int, dict[str, tuple[int, ...]]]] = {}
    for name, shape in structure.shapes.items():
        for found in _NUMBER.finditer(name):
            held = out.setdefault(name[: found.start()], {}).setdefault(int(found[1]), {})
            held[name[found.end() :]] = shape
    return out


def _parent(prefix: str) -> str:
    """The module that holds a module, as names of tensors begin."""
    before, dot, _ = prefix.rpartition(".")
    return before + dot
