"""A network as a graph of operations: nodes in the order of execution. Knows nothing of how graphs are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import InputError


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

    def named(self) -> dict[str, Any]:
        """All arguments by name, defaults filled in, as torch's schema has them (a0, a1, ... if there is none)."""
        schema = getattr(self.target, "_schema", None)
        if schema is None:
            return {f"a{i}": value for i, value in enumerate(self.args)} | dict(self.kwargs)
        out = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        out |= {a.name: value for a, value in zip(schema.arguments, self.args, strict=False)}
        return out | dict(self.kwargs)

    def refs(self) -> list[str]:
        """The names of the values that the node reads, in order."""
        return [r.name for r in _refs((self.args, tuple(self.kwargs.values())))]


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

        Computes in the floating-point type of `params`, whatever type was traced.
        """
        if len(inputs) != len(self.inputs):
            raise InputError("inputs", expected=f"{len(self.inputs)} tensors", got=len(inputs))
        if missing := sorted(set(self.tensors.values()) - set(params)):
            raise InputError("params", expected=f"the key {missing[0]!r}", got=f"only {sorted(params)}")
        dtype = next((v.dtype for v in params.values() if v.is_floating_point()), self.dtype)

        def value(x: Any) -> Any:
            if isinstance(x, Ref):
                return env[x.name]
            if isinstance(x, (list, tuple)):
                return type(x)(value(v) for v in x)
            return dtype if x is self.dtype else x

        env: dict[str, Any] = {p: params[name] for p, name in self.tensors.items()}
        env |= {k: v.to(dtype) if v.dtype == self.dtype else v for k, v in self.constants.items()}
        env |= dict(zip(self.inputs, inputs, strict=True))
        for node in self.nodes:
            kwargs = {k: value(v) for k, v in node.kwargs.items()}
            env[node.name] = node.target(*(value(a) for a in node.args), **kwargs)
        out = tuple(env[r.name] for r in self.outputs)
        return out[0] if len(out) == 1 else out

    def reads(self, name: str) -> bool:
        """Whether an output depends on this entry of the state_dict."""
        live = self.live()
        return self.tied.get(name, name) in {k for place, k in self.tensors.items() if place in live}

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
