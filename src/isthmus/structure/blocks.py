"""The parts of a network that its names tell: layers and repeated blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from isthmus.errors import InputError
from isthmus.kinds import check_kind

_FEW = 3
"""So many blocks are sought, deeper in the names where the first numbers in them give fewer."""


def checked_blocks(blocks: Mapping[str, Sequence[str]], own: Sequence[str]) -> dict[str, list[str]]:
    """The blocks as a user gives them. Errors: ``InputError`` for names that are not among `own`, or stand twice."""
    for name, names in blocks.items():
        check_kind(names, Sequence[str], f"blocks[{name!r}]")
    named = [k for names in blocks.values() for k in names]
    wrong = [f"no tensor {k!r}" for k in named if k not in own]
    wrong += [f"the block {name!r} without names" for name, names in blocks.items() if not names]
    wrong += ["one name twice"] * (len({*named}) < len(named)) + ["no blocks"] * (not blocks)
    if wrong:
        raise InputError("blocks", expected="names of tensors, each in one block", got=wrong[0])
    return {name: list(names) for name, names in blocks.items()}


def blocks_of(names: Sequence[str]) -> dict[str, list[str]]:
    """The tensors of each layer or repeated block, as their names tell it, in the order of the names.

    A name is cut behind the first number in it, "encoder.layers.3.attention.weight" -> "encoder.layers.3", one without
    a number before the last dot; where that gives fewer than 3 blocks, behind the second number, and so on.

    >>> blocks_of(["wte.weight", "h.0.attn.weight", "h.0.mlp.weight", "h.1.attn.weight", "head.weight"])
    {'wte': ['wte.weight'], 'h.0': ['h.0.attn.weight', 'h.0.mlp.weight'], 'h.1': ['h.1.attn.weight'], \
'head': ['head.weight']}
    >>> list(blocks_of(["net.0.0.weight", "net.0.0.bias", "net.0.2.weight"]))
    ['net.0.0', 'net.0.2']
    """
    deepest = max((_numbers(k) for k in names), default=0)
    for depth in range(1, max(1, deepest) + 1):
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(_block(name, depth), []).append(name)
        if len(found) >= _FEW or depth >= deepest:
            return found
    return {}


def _numbers(name: str) -> int:
    return sum(part.isdigit() for part in name.split(".")[:-1])


def _block(name: str, depth: int) -> str:
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts[:-1]) if part.isdigit()]
    end = numbers[min(depth, len(numbers)) - 1] + 1 if numbers else len(parts) - 1
    return ".".join(parts[:end]) or name
