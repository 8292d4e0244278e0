"""One program for every number of examples, from traces at several numbers that wrote theirs down as a constant."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import UnsupportedError
from isthmus.program.program import Node, Program, Ref

SIZES = (2, 1021, 5)
"""Numbers of examples to trace at besides the given one: a small one, and a prime far from the sizes of layers."""

REMEDY = "write x.shape[0] where forward needs the number of examples, not len(x) or int(x.shape[0])"


def for_every_batch(traces: Sequence[Program]) -> Program:
    """The program of which every trace is the one at its own number of examples, ``trace.batch``.

    Node by node, what agrees in all traces is kept, and a number that is k times the number of examples in each
    becomes k times the size of the first input's axis 0. Nothing is run. Errors: `UnsupportedError` naming the first
    operation, with its source line, that depends on the number of examples in another way.

    >>> ones = torch.ops.aten.ones.default
    >>> at = [Program(("x",), {}, {}, (Node("o", "aten.ones.default", ones, ([n, 3],)),), (Ref("o"),), n)
    ...       for n in (2, 5)]
    >>> program = for_every_batch(at)
    >>> [n.op for n in program.nodes], tuple(program.run({}, torch.zeros(7, 3)).shape)
    (['aten.sym_size.int', 'aten.ones.default'], (7, 3))
    """
    first = traces[0]
    for nodes in zip_longest(*(p.nodes for p in traces)):
        if None in nodes or len({(n.name, n.op) for n in nodes}) > 1:
            found = [n for n in nodes if n is not None]
            raise _frozen(traces, found[0], "which operations forward makes depends on the number of examples")
    sizes = _Sizes(traces)
    nodes = tuple(sizes.node(several) for several in zip(*(p.nodes for p in traces), strict=True))
    return replace(first, nodes=(*sizes.made(), *nodes), compared=tuple(sizes.counts))


class _Sizes:
    """Merges the arguments of one node at a time; collects the multiples of the number of examples that they hold."""

    def __init__(self, traces: Sequence[Program]) -> None:
        self.traces = traces
        self.counts = [p.batch for p in traces]
        self.prefix = "number_of_examples"
        self.factors: set[int] = set()
        self.unlike = _unlike_constants(traces)

    def node(self, several: Sequence[Node]) -> Node:
        """The node that is each of `several` at its own number of examples."""
        first = several[0]
        if read := self.unlike.intersection(first.refs()):
            raise _frozen(self.traces, first, f"the constant {sorted(read)[0]!r} was made for that many")
        try:
            args = tuple(self.merged(v) for v in self._columns([n.args for n in several]))
            names = {tuple(n.kwargs) for n in several}
            if len(names) > 1:
                raise _UnlikeError
            return replace(
                first, args=args, kwargs={k: self.merged([n.kwargs[k] for n in several]) for k in first.kwargs}
            )
        except _UnlikeError as e:
            raise _frozen(self.traces, first, "it holds a number that was computed from that") from e

    def merged(self, values: Sequence[Any]) -> Any:
        """The one value that they are, or stand for."""
        first = values[0]
        if any(type(v) is not type(first) for v in values):
            raise _UnlikeError
        if isinstance(first, list | tuple):
            return type(first)(self.merged(column) for column in self._columns(values))
        if isinstance(first, Mapping):
            return self._merged_mappings(values)
        if all(v == first for v in values) or repr(first) == "nan" == repr(values[-1]):
            return first
        return self._multiple(values)

    def _merged_mappings(self, values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if any(v.keys() != values[0].keys() for v in values):
            raise _UnlikeError
        return {k: self.merged([v[k] for v in values]) for k in values[0]}

    def _multiple(self, values: Sequence[Any]) -> Ref:
        """The number of examples, times a number, that these are in each trace."""
        factor = values[0] // self.counts[0] if type(values[0]) is int else 0
        if factor < 1 or any(v != factor * n for v, n in zip(values, self.counts, strict=True)):
            raise _UnlikeError
        self.factors.add(factor)
        return Ref(self._name(factor))

    def made(self) -> list[Node]:
        """The nodes that compute the numbers which were found to be multiples of the number of examples."""
        if not self.factors:
            return []
        n, first = self.counts[0], self.traces[0].inputs[0]
        size = torch.ops.aten.sym_size.int
        out = [Node(self._name(1), str(size), size, (Ref(first), 0), hint=n)]
        for k in sorted(self.factors - {1}):
            out.append(Node(self._name(k), "mul", operator.mul, (Ref(self._name(1)), k), hint=k * n))
        return out

    def _name(self, factor: int) -> str:
        return self.prefix if factor == 1 else f"{self.prefix}_{factor}"

    @staticmethod
    def _columns(values: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        if len({len(v) for v in values}) > 1:
            raise _UnlikeError
        return list(zip(*values, strict=True))


class _UnlikeError(Exception):
    """Values of several traces that are neither equal nor proportional to the number of examples."""


def _unlike_constants(traces: Sequence[Program]) -> set[str]:
    """The constants that are not the same in every trace."""
    first = traces[0].constants

    def same(name: str, v: Tensor) -> bool:
        others = [p.constants.get(name) for p in traces[1:]]
        return all(o is not None and o.dtype == v.dtype and torch.equal(o, v) for o in others)

    return {k for p in traces for k in p.constants if k not in first} | {k for k, v in first.items() if not same(k, v)}


def _frozen(traces: Sequence[Program], node: Node, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"operation {node.op} ({node.where})",
        f"the network's graph is one for {traces[0].batch} examples only: {why}",
        REMEDY,
    )
