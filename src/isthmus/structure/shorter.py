"""The shortest input on which a network still does all that it does: what a structure is verified on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from isthmus.errors import UnsupportedError
from isthmus.program.export import Program, trace

__all__ = ["LONG", "shortest"]

LONG = 64
"""Axes of inputs that are longer are worth cutting."""

Given = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a forward pass, by place and by name."""


def shortest(module: nn.Module, given: Given, program: Program | None, runs: Callable[[Given], bool]) -> Given:
    """`given` with its long axes cut to the same shorter length, as far as the module does the same with that.

    Sequences and images of any size stay what they are; where the size is built in (a flattened image that a linear
    layer reads, positions that are learned), nothing can be cut. The forward pass of a candidate must run (`runs`),
    and its trace must hold every operation, at every source line and with every parameter, of the `program` of the
    whole input.
    """
    for long in _choices(given):
        for length in _powers(min(long)):
            short = tree_map(lambda x, long=long, n=length: _cut(x, long, n), given)
            if not runs(short):
                continue
            program = program or trace(module, *given, every_batch=False)
            if _does(module, short) == _content(program):
                return short
            break  # what runs, and is not the same, is another network at longer inputs too
    return given


def _choices(given: Given) -> Iterator[frozenset[int]]:
    """The lengths to cut together: all long ones, then each alone."""
    tensors = [x for x in tree_leaves(given) if isinstance(x, Tensor)]
    long = sorted({n for x in tensors for n in x.shape[1:] if n > LONG}, reverse=True)
    if long:
        yield frozenset(long)
    if len(long) > 1:
        yield from (frozenset({n}) for n in long)


def _powers(length: int) -> Iterator[int]:
    n = 16
    while n < length:
        yield n
        n *= 2


def _cut(x: Any, long: frozenset[int], length: int) -> Any:
    if not isinstance(x, Tensor):
        return x
    for dim in range(1, x.ndim):
        if x.shape[dim] in long:
            x = x.narrow(dim, 0, length)
    return x.contiguous()


def _does(module: nn.Module, given: Given) -> object:
    try:
        return _content(trace(module, *given, every_batch=False))
    except UnsupportedError:
        return None


def _content(program: Program) -> object:
    live = program.live()
    return {(n.op, n.where) for n in program.needed}, {k for place, k in program.tensors.items() if place in live}
