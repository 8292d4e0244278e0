"""A network as a graph of operations: nodes in the order of execution. Knows nothing of how graphs are made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.params import moves
from isthmus.program.ops import UNKNOWN, Kind, Op, op_named


@dataclass(frozen=True)
class Ref:
    """A value by name: the result of a node, or a placeholder."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operation: ``target(*args, **kwargs)``, whose arguments hold `Ref` or constants, nested.

    `shape` holds the sizes of a tensor result at the example's batch size, `shapes` those of an operation with
    several results (None for one that is not a tensor), `hint` the value of a size computed in the graph.
    """

    name: str
    op: str
    target: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    shapes: tuple[tuple[int, ...] | None, ...] = ()
    hint: int | float | bool | None = None
    where: str = ""

    @cached_property
    def base(self) -> str:
        """The operation without its namespace and overload: "add" for "aten.add.Tensor"."""
        return self.op.split(".")[1] if "." in self.op else self.op

    @cached_property
    def about(self) -> Op:
        """What the table of operations says of this use; `UNKNOWN` for one that means something else.

        A division that rounds, a view of the same bits as another type, and results in whole numbers.
        """
        given, op = self.named(), op_named(self.base)
        dtype = given.get("dtype")
        whole = isinstance(dtype, torch.dtype) and (op.kind == "reshape" or not dtype.is_floating_point)
        another = given.get("rounding_mode") is not None or (whole and op.kind not in ("constant", "table"))
        return UNKNOWN if another else op

    @property
    def kind(self) -> Kind:
        """What sort of operation it is, as far as the table knows."""
        return self.about.kind

    @cached_property
    def _reads(self) -> tuple[str, ...]:
        return tuple(r.name for r in _refs((self.args, tuple(self.kwargs.values()))))

    def refs(self) -> list[str]:
        """The names of the values that the node reads, in order."""
        return list(self._reads)

    def named(self) -> dict[str, Any]:
        """All arguments by name, defaults filled in, as torch's schema has them (a0, a1, ... if there is none)."""
        return self._by_name(self.args, self.kwargs)

    def _by_name(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        schema = getattr(self.target, "_schema", None)
        if schema is None:
            return {f"a{i}": value for i, value in enumerate(args)} | dict(kwargs)
        out = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        out |= {a.name: value for a, value in zip(schema.arguments, args, strict=False)}
        return out | dict(kwargs)

    def bind(
        self, values: Mapping[str, Any], types: Mapping[torch.dtype, torch.dtype] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with every `Ref` replaced by its value, and every type by the one that `types` has for it."""
        args = tuple(_bound(v, values, types) for v in self.args)
        return args, {k: _bound(v, values, types) for k, v in self.kwargs.items()}

    def given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """``named`` with the values put in; what the operation acts on is called "x"."""
        out = self._by_name(*self.bind(values))
        for first in ("self", "input", "a0"):
            if first in out:
                out["x"] = out.pop(first)
        return out

    def call(self, values: Mapping[str, Any], types: Mapping[torch.dtype, torch.dtype] | None = None) -> Any:
        """The operation on these values."""
        args, kwargs = self.bind(values, types)
        return self.target(*args, **kwargs)


Handler = Callable[[Node, Mapping[str, Any]], Any]
"""What an interpreter makes of a node, given the values so far."""


def interpret(
    nodes: Sequence[Node], handle: Handler, env: dict[str, Any], drop: Sequence[Sequence[str]] | None = None
) -> None:
    """Add to `env` what `handle` makes of each node, in order; `drop` holds the names to forget after each."""
    for i, node in enumerate(nodes):
        env[node.name] = handle(node, env)
        for name in drop[i] if drop is not None else ():
            del env[name]


def last_reads(
    nodes: Sequence[Node], keep: Collection[str], among: Collection[str] | None = None
) -> tuple[tuple[str, ...], ...]:
    """For each node the values, of those in `among` (default: all), that no later one reads and that are not kept."""
    last: dict[str, int] = {}
    for i, node in enumerate(nodes):
        last |= dict.fromkeys((node.name, *node.refs()), i)
    out: list[list[str]] = [[] for _ in nodes]
    for name, i in last.items():
        if name not in keep and (among is None or name in among):
            out[i].append(name)
    return tuple(map(tuple, out))


@dataclass(frozen=True, eq=False)
class Program:
    """The forward pass of a module as nodes in the order of execution, without the weights; none writes into a tensor.

    `inputs` are the placeholders of the tensor arguments; `tensors` maps a placeholder to the ``state_dict`` name it
    stands for; `constants` are the tensors that are neither (lifted literals, non-persistent buffers). `outputs` are
    the tensors among what the module returns, flattened; the first is the model's. `batch` is the batch size of the
    example, `shapes` holds the sizes of the placeholders. `tied` maps each further name of a shared tensor to its
    first name; the nodes use the first one only. `dtype` is the floating-point type of the traced module, `integers`
    are the names of the tensors that hold no floating-point numbers. `compared`: the numbers of examples at which the
    module was traced and the traces agreed; empty where torch proved that the one trace holds for any number.
    """

    inputs: tuple[str, ...]
    tensors: Mapping[str, str]
    constants: Mapping[str, Tensor]
    nodes: tuple[Node, ...]
    outputs: tuple[Ref, ...]
    batch: int
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    integers: frozenset[str] = frozenset()
    compared: tuple[int, ...] = ()

    def run(self, params: Mapping[str, Tensor], *inputs: Any) -> Any:
        """The module's output at `params`, node by node: one tensor, or a tuple when the module returns several.

        Computes in the floating-point type of `params`, whatever type was traced; in float64 throughout, even where
        the module says float32.
        """
        names = [r.name for r in self.outputs]
        values = self.seen(params, inputs, names)
        out = tuple(values[name] for name in names)  # two outputs may be one value
        return out[0] if len(out) == 1 else out

    def seen(self, params: Mapping[str, Tensor], inputs: Sequence[Any], names: Collection[str]) -> dict[str, Any]:
        """The values of these names, as ``run`` computes them."""
        if len(inputs) != len(self.inputs):
            raise InputError("inputs", expected=f"{len(self.inputs)} tensors", got=len(inputs))
        if missing := sorted(set(self.tensors.values()) - set(params)):
            raise InputError("params", expected=f"the key {missing[0]!r}", got=f"only {sorted(params)}")
        dtype = next((v.dtype.to_real() for v in params.values() if moves(v)), self.dtype)
        env: dict[str, Any] = {p: params[name] for p, name in self.tensors.items()}
        types = {self.dtype: dtype} | ({torch.float32: dtype} if dtype == torch.float64 else {})
        types |= {k.to_complex(): v.to_complex() for k, v in types.items()}
        env |= {k: v.to(types.get(v.dtype, v.dtype)) for k, v in self.constants.items()}
        env |= dict(zip(self.inputs, inputs, strict=True))
        interpret(self.needed, lambda node, values: node.call(values, types), env, last_reads(self.needed, keep=names))
        return {name: env[name] for name in names}

    def interpret(self, handle: Handler, env: Mapping[str, Any]) -> tuple[Any, ...]:
        """The outputs when `handle` makes the values, node by node; `env` holds those of the placeholders.

        Nodes on which no output depends are left out, and a value is forgotten after its last use.
        """
        values = dict(env)
        interpret(self.needed, handle, values, self._drop)
        return tuple(values[r.name] for r in self.outputs)

    @cached_property
    def needed(self) -> tuple[Node, ...]:
        """The nodes on which an output depends, in order."""
        live = self.live()
        return tuple(n for n in self.nodes if n.name in live)

    @cached_property
    def _drop(self) -> tuple[tuple[str, ...], ...]:
        return last_reads(self.needed, keep={r.name for r in self.outputs})

    def reads(self, name: str) -> bool:
        """Whether an output depends on this entry of the state_dict."""
        live = self.live()
        return self.tied.get(name, name) in {k for place, k in self.tensors.items() if place in live}

    def reads_once(self, name: str) -> bool:
        """Whether one operation reads this entry of the state_dict, once."""
        places = {place for place, k in self.tensors.items() if k == self.tied.get(name, name)}
        return sum(node.refs().count(place) for node in self.needed for place in places) == 1

    def live(self) -> set[str]:
        """The names of the values on which an output depends."""
        seen = {r.name for r in self.outputs}
        for node in reversed(self.nodes):
            if node.name in seen:
                seen.update(node.refs())
        return seen


def _refs(x: Any) -> Iterator[Ref]:
    if isinstance(x, Ref):
        yield x
    elif isinstance(x, (list, tuple)):
        for v in x:
            yield from _refs(v)


def _bound(x: Any, values: Mapping[str, Any], types: Mapping[torch.dtype, torch.dtype] | None) -> Any:
    if isinstance(x, Ref):
        return values[x.name]
    if isinstance(x, list | tuple):
        return type(x)(_bound(v, values, types) for v in x)
    return types.get(x, x) if types and isinstance(x, torch.dtype) else x
