"""Rules for elementwise operations, contractions and reductions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch

from isthmus.errors import UnsupportedError
from isthmus.program.export import Node
from isthmus.program.ops import Kind
from isthmus.structure import axes as ax
from isthmus.structure.axes import Axis
from isthmus.structure.propagation import NONE, Origin, Propagation, Rule, Value

__all__ = ["KINDS", "RULES", "contract", "elementwise", "reduced"]


def elementwise(walk: Propagation, operands: Sequence[Value], bent: bool = False) -> Value:
    """Entry by entry with broadcasting: equal axes become one, an axis of size 1 that is stretched is fixed."""
    if all(v.uniform for v in operands):
        return _uniform(*(v.shape for v in operands))
    rank = max(len(v.axes) for v in operands)
    joined = [_broadcast(operands, back) for back in range(rank, 0, -1)]
    axes, origins = [axis for axis, _ in joined], [origin for _, origin in joined]
    return _grown(walk, operands, axes) if any(v.active for v in operands) else Value(axes, origins, False, bent=bent)


def _grown(walk: Propagation, operands: Sequence[Value], axes: Sequence[Axis]) -> Value:
    """What activations become with weights that act on their units, entry by entry."""
    for v in operands:
        walk.absorb(v)
    return Value(axes)


def _uniform(*shapes: Sequence[int]) -> Value:
    """The same number everywhere."""
    return Value([Axis(n) for n in torch.broadcast_shapes(*shapes)], active=False, uniform=True)


def _broadcast(operands: Sequence[Value], back: int) -> tuple[Axis, Origin]:
    """One axis of the result, counted from the last, from those of the operands that have it."""
    here = [(v, len(v.axes) - back) for v in operands if len(v.axes) >= back]
    size = max((v.axes[d].size for v, d in here), key=lambda n: (n != 1, n))
    ax.fix(*(v.axes[d] for v, d in here if v.axes[d].size != size and not v.uniform))
    return _one([(v, d) for v, d in here if v.axes[d].size == size])


def _one(pairs: Sequence[tuple[Value, int]]) -> tuple[Axis, Origin]:
    """Axes of several values made one."""
    axis = pairs[0][0].axes[pairs[0][1]]
    for v, d in pairs[1:]:
        ax.unify(axis, v.axes[d])
    return axis, NONE.union(*(v.origins[d] for v, d in pairs))


def _pointwise(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    operands = [v for v in a.values() if isinstance(v, Value)]
    keeps = (
        node.about.zero_at_zero
        or (node.about.linear == "first" and len(operands) == 1)
        or (node.about.linear == "jointly" and sum(v.is_weight for v in operands) == 2)
    )
    return elementwise(walk, operands, not keeps or any(v.bent for v in operands))


def _same(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    return a["x"]


def _prelu(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, weight = a["x"], a["weight"]
    if weight.axes and weight.axes[0].size > 1:
        ax.unify(x.axes[1], weight.axes[0])
        walk.absorb(weight)
    return elementwise(walk, [x])


def _glu(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, dim = a["x"], a["dim"] % len(a["x"].axes)
    half, gate = ax.split(x.axes[dim], [x.axes[dim].size // 2] * 2)
    ax.unify(half, gate)
    return x.with_axis(dim, half)


def contract(walk: Propagation, a: Value, la: Sequence[Any], b: Value, lb: Sequence[Any], out: Sequence[Any]) -> Value:
    """A product summed over the labels that `out` lacks (einsum's rule, each label once per operand).

    Summed against a weight, the units of the other operand are read by it; two activations summed against each
    other leave nothing to silence.
    """
    operands = ((a, list(la)), (b, list(lb)))
    made = {}
    for name in dict.fromkeys((*la, *lb)):
        pairs = _stretched(operands, name)
        made[name] = _one(pairs)
        if name not in out:
            _sum_over(walk, pairs)
    axes, origins = [made[n][0] for n in out], [made[n][1] for n in out]
    if not (a.active or b.active):
        return Value(axes, origins, active=False, bent=a.bent or b.bent)
    for v, labels in operands:
        _makes(walk, v, labels, out)
    return Value(axes)


def _makes(walk: Propagation, v: Value, labels: Sequence[Any], out: Sequence[Any]) -> None:
    """A weight makes units along the axes that stay."""
    for d, name in enumerate(labels):
        if v.is_weight and name in out:
            walk.use(v, d, "in")


def _stretched(operands: Sequence[tuple[Value, Sequence[Any]]], name: Any) -> list[tuple[Value, int]]:
    """The axes of one label without those of size 1 that are stretched to the other's, which are fixed."""
    pairs = [(v, labels.index(name)) for v, labels in operands if name in labels]
    if len({v.axes[d].size for v, d in pairs}) == 1:
        return pairs
    ax.fix(*(v.axes[d] for v, d in pairs if v.axes[d].size == 1))
    return [(v, d) for v, d in pairs if v.axes[d].size > 1]


def _sum_over(walk: Propagation, pairs: Sequence[tuple[Value, int]]) -> None:
    weights = [(v, d) for v, d in pairs if v.is_weight]
    if len(pairs) == 1 or not weights:
        ax.mark(pairs[0][0].axes[pairs[0][1]], "two activations are multiplied and summed over these units")
        return
    # of two factors of one weight (W = B A), the left one reads what the right one makes
    for i, (v, d) in enumerate(weights):
        walk.use(v, d, "out" if i == 0 else "in")
        if v.bent:
            ax.mark(v.axes[d], "they are read through a function of the weights that does not keep zeros")


def _linear(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x = a["x"]
    batch = list(range(len(x.axes) - 1))
    y = contract(walk, x, [*batch, "i"], a["weight"], ["o", "i"], [*batch, "o"])
    return y if a["bias"] is None else elementwise(walk, [y, a["bias"]])


def _matmul(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, y = a["x"], next(a[k] for k in ("mat2", "other", "vec", "tensor") if k in a)
    m, n = len(x.axes), len(y.axes)
    batch = [f"b{i}" for i in range(max(m, n) - 2)]
    left = [*batch[len(batch) - max(m - 2, 0) :], "r", "k"] if m > 1 else ["k"]
    right = [*batch[len(batch) - max(n - 2, 0) :], "k", "c"] if n > 1 else ["k"]
    out = [*batch, *(["r"] if m > 1 else []), *(["c"] if n > 1 else [])]
    return contract(walk, x, left, y, right, out)


def _outer(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    return contract(walk, a["x"], ["r"], a["vec2"], ["c"], ["r", "c"])


def _addmm(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    one, two = (a["mat1"], a["mat2"]) if "mat1" in a else (a["batch1"], a["batch2"])
    return elementwise(walk, [a["x"], _matmul(walk, node, {"mat2": two, "x": one})])


def _grouped_product(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """Rows in the order of the experts, each times the matrix of its expert: a row is read by one matrix."""
    x, w = a["x"], a["weight"] if "weight" in a else a["mat2"]
    ax.fix(x.axes[0], w.axes[0])
    walk.use(w, 0, "in")
    y = contract(walk, x, ["s", "i"], w.at([1, 2]), ["i", "o"], ["s", "o"])
    return y if a.get("bias") is None else elementwise(walk, [y, a["bias"]])


def _einsum(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    equation, operands = a["equation"].replace(" ", ""), a["tensors"]
    if "->" not in equation or "..." in equation or len(operands) != 2:
        raise UnsupportedError("einsum", f"the equation {equation!r} is not of two operands with an explicit result")
    ins, out = equation.split("->")
    la, lb = ins.split(",")
    if len(set(la)) < len(la) or len(set(lb)) < len(lb):
        raise UnsupportedError("einsum", f"the equation {equation!r} repeats an index")
    return contract(walk, operands[0], la, operands[1], lb, out)


def _reduce(walk: Propagation, node: Node, a: dict[str, Any]) -> Any:
    """Mean, sum, maximum, norm over some axes: the units of those axes are interchangeable, but mixed."""
    x, base = a["x"], node.base
    if "other" in a:
        return _pointwise(walk, node, a)
    dims = _dims(a.get("dim"), len(x.axes))
    for d in dims:
        ax.mark(x.axes[d], f"{base} is taken over these units")
    out = reduced(x, dims, bool(a.get("keepdim")))
    if base in ("max", "min") and node.shapes:
        return out, replace(out, numbers=x.axes[min(dims)])
    return tuple(out for _ in node.shapes) if node.shapes else out


def _dims(dim: Any, rank: int) -> set[int]:
    """The axes that are meant; none given are all."""
    if dim is None or dim == []:
        return set(range(rank))
    return {d % rank for d in ([dim] if isinstance(dim, int) else dim)}


def reduced(x: Value, dims: Collection[int], keep: bool) -> Value:
    """The value without those axes, or with axes of size 1 in their place."""
    left = [d for d in range(len(x.axes)) if keep or d not in dims]
    axes = [ax.fixed(1) if d in dims else x.axes[d] for d in left]
    origins = [NONE if d in dims else x.origins[d] for d in left]
    return Value(axes, origins, active=x.active, bent=not x.active)


def _softmax(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    ax.mark(a["x"].axes[a["dim"]], "softmax normalises over these units")
    return elementwise(walk, [a["x"]], bent=True)


def _triangle(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x = elementwise(walk, [a["x"]])
    ax.fix(*x.axes[-2:])
    return Value(x.axes, x.origins, active=x.active)


def _constant(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    return _uniform(node.shape or ())


def _table(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    return Value([ax.fixed(n) for n in node.shape or ()], active=False)


KINDS: dict[Kind, Rule] = {
    "identity": _same,  # dropout in training mode was refused before the walk
    "cast": _same,
    "pointwise": _pointwise,
    "reduce": _reduce,
    "softmax": _softmax,
    "constant": _constant,
    "table": _table,
}

RULES: dict[str, Rule] = (
    dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul)
    | dict.fromkeys(("addmm", "baddbmm"), _addmm)
    | dict.fromkeys(("_grouped_mm", "grouped_mm_fallback"), _grouped_product)
    | dict.fromkeys(("tril", "triu"), _triangle)
    | {"linear": _linear, "outer": _outer, "einsum": _einsum, "prelu": _prelu, "glu": _glu}
)
