"""A module as a program: the operations of its forward pass, in order. The only file that knows torch.export."""

from __future__ import annotations

import inspect
import logging
import operator
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from copy import copy
from functools import partial
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_map

from isthmus.errors import UnsupportedError
from isthmus.params import moves
from isthmus.program.batch import REMEDY, SIZES, for_every_batch
from isthmus.program.copied import name_of
from isthmus.program.ops import op_named
from isthmus.program.program import Node as Node
from isthmus.program.program import Program as Program
from isthmus.program.program import Ref as Ref
from isthmus.program.where import where_of

__all__ = ["Node", "Program", "Ref", "plain_attention", "trace"]


def trace(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, *, every_batch: bool = True
) -> Program:
    """The program of ``module(*args, **kwargs)``, for any number of examples (axis 0 of every tensor argument).

    The module is exported in the mode it is in and is never written to. An example of one row is doubled, because
    torch.export treats the size 1 as a constant. Where the export holds only for the number of examples that was given
    (``len(x)`` is a plain number to it), the module is exported at other numbers too, and what follows the number of
    examples is told from what does not by comparing the graphs (``for_every_batch``); with ``every_batch=False``
    the program of that number is returned. Errors: `UnsupportedError` when the module cannot be exported
    (for instance, when an ``if`` depends on the data), with torch's reason, or when it does another computation
    at another number of examples, with the source line.

    >>> program = trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), (torch.zeros(4, 2),))
    >>> [n.op for n in program.nodes], program.batch, sorted(program.tensors.values())
    (['aten.linear.default', 'aten.relu.default'], 4, ['0.bias', '0.weight'])
    """
    example = _two_rows((tuple(args), dict(kwargs or {})))
    exported = _export(module, *example)
    program = _of(module, exported, example)
    if not every_batch or program.batch == 0:
        return program
    conditions = _conditions(exported)
    if conditions and _free(exported):
        raise UnsupportedError(
            name_of(module),
            f"its forward pass branches on the number of examples ({conditions[0]})",
            "write it for any number of them",
        )
    return program if _free(exported) else _at_several(module, program, example)


def _of(module: nn.Module, exported: ExportedProgram, example: tuple[tuple[Any, ...], dict[str, Any]]) -> Program:
    first: dict[int, str] = {}
    tied = {}
    named = {k: v for k, v in module.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    for name, tensor in named.items():
        if (canonical := first.setdefault(id(tensor), name)) != name:
            tied[name] = canonical
    return _read(exported, named, tied, _tensors(example))


def _at_several(module: nn.Module, program: Program, example: tuple[tuple[Any, ...], dict[str, Any]]) -> Program:
    """`program`, whose number of examples is written down in it, for any number: see ``for_every_batch``."""
    traces = [program]
    found = program
    for n in [n for n in SIZES if n != program.batch][:2]:
        # only sizes and types are read
        other = tree_map(
            lambda x, n=n: x.new_empty(n, *x.shape[1:]) if isinstance(x, Tensor) and x.ndim else x, example
        )
        exported = _try_export(module, *other)
        if isinstance(exported, str):
            why = f"its forward pass runs on {program.batch} examples and not on {n} ({exported})"
            raise UnsupportedError(name_of(module), why, REMEDY)
        traces.append(_of(module, exported, other))
        found = for_every_batch(traces)
    return found


def _free(exported: ExportedProgram) -> bool:
    """Whether the number of examples stayed a symbol in every input."""
    places = {s.arg.name for s in exported.graph_signature.input_specs if s.kind is InputKind.USER_INPUT}
    values = [n.meta.get("val") for n in exported.graph.nodes if n.op == "placeholder" and n.name in places]
    return all(_symbol(v.shape[0]) for v in values if isinstance(v, Tensor) and v.ndim)


def _symbol(n: Any) -> bool:
    return isinstance(n, torch.SymInt) and not n.node.expr.is_number


_SIZE = r"L\[[^\]]+\](?:\[[^\]]+\])*\.size\(\)\[0\]"


def _conditions(exported: ExportedProgram) -> list[str]:
    """What torch assumed of the number of examples, other than that it is the same in all inputs."""
    found = getattr(exported, "_guards_code", None) or []
    found = [g for g in found if ".size()[0]" in g and not _always(g)]
    return [re.sub(r"L\['(\w+)'\]", r"\1", g).replace(".size()[0]", ".shape[0]") for g in found]


def _always(condition: str) -> bool:
    """Whether a condition, as torch writes it, compares the numbers of examples of inputs, and holds if they are equal.

    Seen at the first thousand numbers, where any branch on the number itself shows.
    """
    if len(set(re.findall(_SIZE, condition))) < 2:
        return False
    numbers = re.sub(_SIZE, "n", condition)
    if not re.fullmatch(r"[n\d\s()+*/%<>=!-]+", numbers):
        return False
    return all(eval(numbers, {"__builtins__": {}}, {"n": n}) for n in range(2, 1030))  # noqa: S307 - numbers alone


def _export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    found = _try_export(module, args, kwargs)
    if isinstance(found, ExportedProgram):
        return found
    raise UnsupportedError(
        name_of(module),
        f"torch.export cannot follow its forward pass: {found}",
        (_BRANCH if "data-dependent" in found else "")
        + "methods that need only loss and gradient still work; the unit structure can be written by hand",
    )


_BRANCH = """which operations it makes depends on the data: compute all branches and choose with torch.where
(experts of transformers: call model.set_experts_implementation("batched_mm")); """.replace("\n", " ")


def _try_export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram | str:
    """Export with a dynamic batch, else with the example's; or torch's reason why neither is possible.

    The fused attention of eval mode is switched off.
    """
    module = _named(module, kwargs)
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    batched = tree_map(lambda x: {0: Dim.AUTO} if isinstance(x, Tensor) and x.ndim else None, dict(bound))
    reason = ""
    with _quiet():
        for dynamic in (batched, None):
            try:
                return _functional(export(module, args, kwargs, dynamic_shapes=dynamic, strict=False))
            except Exception as error:
                reason = reason or next(iter(str(error).strip().splitlines()), type(error).__name__)
    return reason


def _named(module: nn.Module, kwargs: Mapping[str, Any]) -> nn.Module:
    """The module with its keyword arguments by name: torch.export follows no sizes through ``**kwargs``."""
    signature = inspect.signature(module.forward)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY) for k in kwargs if k not in signature.parameters]
    if not more:
        return module
    named = copy(module)
    forward = partial(module.forward)
    vars(forward)["__signature__"] = signature.replace(parameters=[*own, *more])
    vars(named)["forward"] = forward
    return named


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.export and keep its effects to itself: logging, warnings, generators."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.enable_grad(), plain_attention():
            warnings.simplefilter("ignore")
            with redirect_stderr(StringIO()):
                yield
    finally:
        logging.disable(level)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep nn.TransformerEncoder in eval mode on its ordinary code, not on one fused operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _functional(program: ExportedProgram) -> ExportedProgram:
    """Leave the graph alone if each in-place operation overwrites a value that nothing else sees, else rewrite it.

    ReLU(inplace=True) after a convolution overwrites such a value, and `_node` reads it as a ReLU;
    ``z[:, 0] = 0`` does not: it writes through a view.
    """
    writers = [node for node in program.graph.nodes if _writes(node)]
    if all(_private(node.args[0], node) and _pure(node.target) is not None for node in writers):
        return program
    return program.run_decompositions({})


def _writes(node: FxNode) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _pure(target: Any) -> Any:
    """The operation that computes what an in-place one would write, with the same arguments, or None."""
    namespace, name = target._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    return getattr(packet, target._overloadname, None) if name.endswith("_") else None


def _is_view(node: FxNode) -> bool:
    """Whether the result may share memory with an argument."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.target is operator.getitem
    return op_named(schema.name.split("::")[1]).aliases or any(r.alias_info is not None for r in schema.returns)


def _private(value: Any, reader: FxNode) -> bool:
    """Whether only `reader` can see the memory of `value` from now on (torch reads an overwritten value by its new
    name, so that earlier readers of the value itself do no harm, but a second view would)."""
    if not isinstance(value, FxNode) or value.op != "call_function":
        return False
    if any(_is_view(user) for user in value.users if user is not reader):
        return False
    if not _is_view(value):
        return True
    base = value.args[0]
    return isinstance(base, FxNode) and (_writes(value) or len(base.users) == 1) and _private(base, value)


def _read(
    program: ExportedProgram, named: Mapping[str, Tensor], tied: dict[str, str], examples: list[Tensor]
) -> Program:
    inputs, tensors, constants = _placeholders(program, named)
    alias = _aliases(tensors, tied)
    shapes, made = _sorted(program)
    return Program(
        inputs=tuple(n for n in inputs if shapes[n] is not None),
        tensors=tensors,
        constants=constants,
        nodes=tuple(_node(n, alias) for n in made),
        outputs=_outputs(program, alias),
        batch=len(torch.atleast_1d(examples[0])) if examples else 1,
        shapes={name: shape or () for name, shape in shapes.items()},
        tied=tied,
        dtype=_floating([*named.values(), *examples]),
        integers=frozenset(k for k, v in named.items() if not moves(v)),
    )


def _aliases(tensors: Mapping[str, str], tied: Mapping[str, str]) -> dict[str, str]:
    """For the place of each further name of a shared tensor, that of its first name."""
    places = {name: place for place, name in tensors.items()}
    return {places[a]: places[c] for a, c in tied.items() if {a, c} <= places.keys()}


def _sorted(program: ExportedProgram) -> tuple[dict[str, tuple[int, ...] | None], list[FxNode]]:
    """The sizes of the placeholders (None for what is no tensor), and the operations."""
    held = [n for n in program.graph.nodes if n.op == "placeholder"]
    made = [n for n in program.graph.nodes if n.op not in ("placeholder", "output")]
    return {n.name: _sizes(n.meta.get("val")) for n in held}, made


def _outputs(program: ExportedProgram, alias: Mapping[str, str]) -> tuple[Ref, ...]:
    """The tensors that the module returns."""
    returned = [s.arg for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    return tuple(Ref(alias.get(arg.name, arg.name)) for arg in returned if isinstance(arg, TensorArgument))


def _floating(tensors: Sequence[Tensor]) -> torch.dtype:
    """The first floating-point type."""
    return next((v.dtype for v in tensors if v.is_floating_point()), torch.float32)


def _placeholders(
    program: ExportedProgram, named: Mapping[str, Tensor]
) -> tuple[list[str], dict[str, str], dict[str, Tensor]]:
    """The places of the inputs; those of named tensors, with their names; and those of constants."""
    inputs: list[str] = []
    tensors: dict[str, str] = {}
    constants: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        place = spec.arg.name
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(place)
        elif spec.target is not None and spec.target in named:
            tensors[place] = spec.target
        elif isinstance(constant := program.constants.get(spec.target or ""), Tensor):
            constants[place] = constant.detach().clone()
        else:
            raise UnsupportedError(f"input {place!r}", f"torch.export made it a {spec.kind.name.lower()}")
    return inputs, tensors, constants


def _node(node: FxNode, alias: Mapping[str, str]) -> Node:
    _refuse_control_flow(node)
    args, kwargs = (_referring(given, alias) for given in (tuple(node.args), dict(node.kwargs)))
    result = node.meta.get("val")
    several = tuple(result) if isinstance(result, (tuple, list)) else ()
    _refuse_unknown_sizes(node, several or (result,))
    target: Any = _pure(node.target) if _writes(node) else node.target
    if isinstance(result, Tensor) and result.is_floating_point() and _creates(node):
        # written down, so that it is not the default type of the day
        kwargs.setdefault("dtype", result.dtype)
    return Node(
        name=node.name,
        op=str(target) if hasattr(target, "_schema") else getattr(target, "__name__", str(target)),
        target=target,
        args=args,
        kwargs=kwargs,
        shape=_sizes(result),
        shapes=tuple(map(_sizes, several)),
        hint=None if isinstance(result, (tuple, list, Tensor)) else _hint(result),
        where=where_of(node),
    )


def _referring(x: Any, alias: Mapping[str, str]) -> Any:
    """Arguments with references in the place of torch's nodes; shared tensors go by their first name."""
    if isinstance(x, FxNode):
        return Ref(alias.get(x.name, x.name))
    if isinstance(x, (list, tuple)):
        return type(x)(_referring(v, alias) for v in x)
    return {k: _referring(v, alias) for k, v in x.items()} if isinstance(x, dict) else x


def _refuse_control_flow(node: FxNode) -> None:
    if node.op != "call_function":
        raise UnsupportedError(
            f"{node.target} ({where_of(node)})",
            "control flow and gradient-mode blocks inside forward are not followed",
            "move torch.no_grad() out of forward",
        )


def _refuse_unknown_sizes(node: FxNode, results: Sequence[Any]) -> None:
    sizes = [n for v in results if isinstance(v, Tensor) for n in v.shape]
    if any(_hint(n) is None for n in sizes):
        raise UnsupportedError(
            f"operation {node.target} ({where_of(node)})",
            "how many entries its result has depends on the data",
            "keep all of them and multiply by a mask, or use torch.where",
        )


def _creates(node: FxNode) -> bool:
    """Whether the operation makes a tensor from numbers alone, of a type it may be told."""
    schema = getattr(node.target, "_schema", None)
    tensors = any(isinstance(n.meta.get("val"), Tensor) for n in node.all_input_nodes)
    return schema is not None and not tensors and any(a.name == "dtype" for a in schema.arguments)


def _hint(x: Any) -> Any:
    """The value of a size at the example's batch."""
    return x.node.hint if isinstance(x, (torch.SymInt, torch.SymFloat, torch.SymBool)) else x


def _sizes(x: Any) -> tuple[int, ...] | None:
    return tuple(int(_hint(n)) for n in x.shape) if isinstance(x, Tensor) else None


def _two_rows(example: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    first = next(iter(_tensors(example)), None)
    if first is None or first.ndim == 0 or first.shape[0] != 1:
        return example
    return tree_map(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) and x.ndim and len(x) == 1 else x, example)


def _tensors(example: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda x: found.append(x) if isinstance(x, Tensor) else None, example)
    return found
