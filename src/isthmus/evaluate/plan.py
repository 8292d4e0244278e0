"""What to compute once and what at every point of a segment: the nodes of the program, sorted into three stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, prod
from typing import Any

import torch
from torch import Tensor

from isthmus.params import Params
from isthmus.program.export import Node, Program, Ref
from isthmus.program.program import interpret, last_reads
from isthmus.structure.liveness import AFFINE, CONSTANT, NEITHER, levels

WORTH = 64
"""Multiply-adds per entry above which a product is worth interpolating: reading two tensors is not free."""

_PRODUCTS = ("matmul", "mm", "bmm", "addmm")


@dataclass(frozen=True, eq=False)
class Stage:
    """Nodes in order, with the values that may be dropped after each and the ReLUs that may overwrite their input."""

    nodes: tuple[Node, ...]
    drop: tuple[tuple[str, ...], ...]
    over: frozenset[str]

    def run(self, env: dict[str, Any], batch: int, dtypes: Mapping[Any, Any]) -> None:
        """Add the values of the nodes to `env`; `batch` is that of the traced example, `dtypes` renames types."""

        def handle(node: Node, values: Mapping[str, Any]) -> Any:
            if node.name in self.over:
                return torch.relu_(values[node.refs()[0]])
            shape = node.shape or ()
            if node.kind == "reshape" and len(shape) == 2 and shape[0] == batch:
                return values[node.refs()[0]].flatten(1)  # the width may be a smaller one
            return node.call(values, dtypes)

        interpret(self.nodes, handle, env, self.drop)


@dataclass(frozen=True, eq=False)
class Plan:
    """The stages of a program for one set of moved tensors.

    `fixed` does not depend on t. `ends` is affine in the control points: it runs once for each of them. `each` runs at
    every t. `held` are the fixed values that the later stages read, `mixed` the values of `ends` that are combined
    at each t. `kind`: "unchanged", "affine" (the output is one of `mixed`) or "general".
    """

    kind: str
    fixed: Stage
    ends: Stage
    each: Stage
    held: tuple[str, ...]
    mixed: tuple[str, ...]
    output: str

    def bytes_held(self, program: Program, size: int, degree: int) -> int:
        """The bytes per example that `held` and `mixed` keep, for numbers of `size` bytes."""
        nodes = {n.name: n for n in program.nodes}
        fixed = sum(_numel(nodes[k]) for k in self.held if k in nodes)
        mixed = sum(_numel(nodes[k]) for k in self.mixed)
        return size * (fixed + (degree + 1) * mixed) // max(1, program.batch)


def plan_for(program: Program, moved: set[str], points: int, degree: int) -> Plan:
    """The stages when the tensors `moved` follow a Bezier curve of this degree, for so many points of it."""
    level, _ = levels(program, moved)
    output, nodes = program.outputs[0].name, list(program.needed)
    if level.get(output, CONSTANT) == NEITHER:
        level |= dict.fromkeys(_not_worth(program, nodes, level, everything=points <= degree + 1), NEITHER)
    fixed, ends, each = ([n for n in nodes if level[n.name] == kind] for kind in (CONSTANT, AFFINE, NEITHER))
    kind = {CONSTANT: "unchanged", AFFINE: "affine", NEITHER: "general"}[level.get(output, CONSTANT)]
    read_later, read_each = _read([*ends, *each]) | {output}, _read(each) | {output}
    held = tuple(k for k in (*(n.name for n in fixed), *program.inputs) if k in read_later)
    mixed = tuple(n.name for n in ends if n.name in read_each)
    readers = _readers(program, nodes)
    return Plan(
        kind,
        _stage(fixed, keep={*held, output}, readers=readers),
        _stage(ends, keep={*mixed}, readers=readers),
        _stage(each, keep={output}, readers=readers, fresh=set(mixed)),
        held,
        mixed,
        output,
    )


def whole(program: Program) -> Plan:
    """The plan that runs everything at each point."""
    return plan_for(program, set(program.tensors.values()), 1, 1)


def _read(nodes: list[Node]) -> set[str]:
    return {r for n in nodes for r in n.refs()}


def _readers(program: Program, nodes: list[Node]) -> dict[str, int]:
    count: dict[str, int] = {r.name: 1 for r in program.outputs}
    for n in nodes:
        for r in n.refs():
            count[r] = count.get(r, 0) + 1
    return count


def _stage(nodes: list[Node], keep: set[str], readers: Mapping[str, int], fresh: set[str] | None = None) -> Stage:
    fresh = fresh or set()
    own = {n.name for n in nodes} | fresh
    free = {k for k in fresh | ({n.name for n in nodes if _fresh(n)} - keep) if readers.get(k) == 1}
    over = frozenset(n.name for n in nodes if n.base == "relu" and n.refs()[0] in free)
    return Stage(tuple(nodes), last_reads(nodes, keep, own), over)


def _fresh(node: Node) -> bool:
    """Whether its result is new memory that nothing else sees."""
    return node.kind in ("affine", "norm") or node.base in (*_PRODUCTS, "add")


def _numel(node: Node) -> int:
    """The entries of a node's result at the traced batch size."""
    return prod(node.shape or (0,)) if not node.shapes else sum(prod(s) for s in node.shapes if s is not None)


def _not_worth(program: Program, nodes: list[Node], level: Mapping[str, int], *, everything: bool) -> set[str]:
    """The affine nodes that are as cheap to compute at each point as to interpolate."""
    by_name = {n.name: n for n in nodes}
    affine = {n.name for n in nodes if level[n.name] == AFFINE}
    if everything:
        return affine
    worth: set[str] = set()
    for name in affine & _read([n for n in nodes if level[n.name] == NEITHER]):
        above = _up_to(name, by_name, affine)
        if sum(_multiplications(program, by_name, by_name[k]) for k in above) >= WORTH * _numel(by_name[name]):
            worth |= above
    return affine - worth


def _up_to(name: str, by_name: Mapping[str, Node], among: set[str]) -> set[str]:
    """The node and what it is computed from, of those in `among`."""
    found, todo = set(), {name}
    while todo:
        found |= todo
        todo = ({r for k in todo for r in by_name[k].refs()} & among) - found
    return found


def _multiplications(program: Program, by_name: Mapping[str, Node], node: Node) -> int:
    """The multiply-adds of a product, 0 for other operations."""

    def shape(x: Any) -> tuple[int, ...]:
        if not isinstance(x, Ref):
            return ()
        return (by_name[x.name].shape if x.name in by_name else program.shapes.get(x.name)) or ()

    if node.kind == "affine":
        return _numel(node) * prod(shape(node.args[1])[1:])
    if node.base in _PRODUCTS:
        left = node.args[1 if node.about.linear == "added" else 0]
        return _numel(node) * (shape(left) or (0,))[-1]
    return 0


def normalised(program: Program) -> frozenset[str]:
    """The tensors that batch normalisations read; torch takes them in float32 beside half-precision values."""
    names = {r for n in program.nodes if n.kind == "norm" for r in n.refs()}
    return frozenset(v for k, v in program.tensors.items() if k in names)


def combine(values: Sequence[Any], t: float) -> Any:
    """The point at t of the Bezier curve through `values`, in new memory; at the ends exact, whatever the others are.

    Infinities that all `values` share stay what they are: masks.

    >>> combine([torch.zeros(1), torch.ones(1), torch.zeros(1)], 0.5)
    tensor([0.5000])
    """
    if not isinstance(values[0], Tensor):
        return tuple(combine(v, t) for v in zip(*values, strict=True))
    if t in (0, 1):
        return values[0 if t == 0 else -1].clone()
    n = len(values) - 1
    if n == 1:
        out = torch.lerp(values[0], values[1], t)
    else:
        out = values[0] * (1 - t) ** n
        for i in range(1, n + 1):
            out.add_(values[i], alpha=comb(n, i) * t**i * (1 - t) ** (n - i))
    if not bool(out.sum().isfinite()):
        shared = torch.stack([v == values[0] for v in values]).all(0) & values[0].isinf()
        out = torch.where(shared, values[0], out)
    return out


def cast_for(program: Program | None, params: Params, dtype: torch.dtype) -> Params:
    """`params` in `dtype`, but for what batch normalisations read when `dtype` is a half precision."""
    keep = normalised(program) if program is not None and dtype.itemsize < 4 else frozenset()
    return {
        k: v if not v.is_floating_point() else v.to(torch.float32 if k in keep else dtype) for k, v in params.items()
    }
