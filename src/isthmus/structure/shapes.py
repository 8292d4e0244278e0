"""Rules for operations that only move entries: views, reshapes, concatenation, indexing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from isthmus.errors import UnsupportedError
from isthmus.program.export import Node
from isthmus.structure import axes as ax
from isthmus.structure.algebra import elementwise
from isthmus.structure.axes import Axis
from isthmus.structure.propagation import NONE, Propagation, Rule, Value

__all__ = ["RULES", "reshaped"]


def reshaped(x: Value, shape: Sequence[int]) -> Value:
    """The entries in the same order under another shape: products of consecutive axes are made equal."""
    axes: list[Axis] = []
    origins = []
    i = j = 0
    while i < len(x.axes) or j < len(shape):
        m, n = min(i + 1, len(x.axes)), min(j + 1, len(shape))
        while (p := prod(x.shape[i:m])) != (q := prod(shape[j:n])):
            if (p < q and m < len(x.axes)) or n == len(shape):
                m += 1
            else:
                n += 1
        ins, outs = x.axes[i:m], [Axis(size) for size in shape[j:n]]
        if len(ins) == len(outs) == 1:
            outs = list(ins)
        elif not outs or not ins:
            ax.fix(*ins, *outs)
        else:
            ax.unify(ax.product(ins), ax.product(outs))
        axes += outs
        origins += [NONE.union(*x.origins[i:m])] * len(outs)
        i, j = m, n
    return replace(x, axes=axes, origins=origins, stack=())


def _reshape(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    if node.shape is None or prod(node.shape) != prod(a["x"].shape):
        raise UnsupportedError(node.op, f"the shape {a['x'].shape} does not become {node.shape}")
    return reshaped(a["x"], node.shape)


def _permute(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    return a["x"].at([d % len(a["x"].axes) for d in a["dims"]])


def _transpose(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    n = len(a["x"].axes)
    order = list(range(n))
    # t and mT name no axes: they exchange the last two
    i, j = (a.get(k, d) % n for k, d in (("dim0", -2), ("dim1", -1))) if n > 1 else (0, 0)
    order[i], order[j] = order[j], order[i]
    return a["x"].at(order)


def _movedim(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    n = len(a["x"].axes)
    lists = ([d] if isinstance(d, int) else d for d in (a["source"], a["destination"]))
    moves = dict(zip(*([d % n for d in dims] for dims in lists), strict=True))
    order = [d for d in range(n) if d not in moves]
    for source, target in sorted(moves.items(), key=lambda move: move[1]):
        order.insert(target, source)
    return a["x"].at(order)


def _unsqueeze(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x = a["x"]
    d = a["dim"] % (len(x.axes) + 1)
    axes, origins = list(x.axes), list(x.origins)
    axes.insert(d, ax.fixed(1))
    origins.insert(d, NONE)
    return replace(x, axes=axes, origins=origins, stack=())


def _squeeze(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, dims = a["x"], a.get("dim")
    dims = range(len(x.axes)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % len(x.axes) for d in dims if x.axes[d].size == 1}
    ax.fix(*(x.axes[d] for d in gone))
    return x.at([d for d in range(len(x.axes)) if d not in gone])


def _expand(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """Stretched axes hold copies of one entry: they are new, and tie nothing."""
    x, shape = a["x"], node.shape or ()
    extra = len(shape) - len(x.axes)
    axes, origins = [Axis(n) for n in shape[:extra]], [NONE] * extra
    for axis, origin, n in zip(x.axes, x.origins, shape[extra:], strict=True):
        if axis.size != n:
            ax.fix(axis)
        axes.append(axis if axis.size == n else Axis(n))
        origins.append(origin if axis.size == n else NONE)
    return replace(x, axes=axes, origins=origins, stack=())


def _repeat(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, times = a["x"], a["repeats"]
    extra = len(times) - len(x.axes)
    axes: list[Axis] = [Axis(n) for n in times[:extra]]
    axes += [axis if n == 1 else ax.product([Axis(n), axis]) for axis, n in zip(x.axes, times[extra:], strict=True)]
    return replace(x, axes=axes, origins=[NONE] * extra + list(x.origins), stack=())


def _select(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """One position: a layer of a stack, or an axis whose positions are then not interchangeable."""
    x, d, i = a["x"], a["dim"] % len(a["x"].axes), a["index"]
    if x.stack and d == 0:
        return x.stack[i]
    x = walk.read(x)
    ax.fix(x.axes[d])
    return x.at([k for k in range(len(x.axes)) if k != d])


def _unbind(walk: Propagation, node: Node, a: dict[str, Any]) -> Any:
    d = a.get("dim", 0)
    return tuple(_select(walk, node, {**a, "dim": d, "index": i}) for i in range(a["x"].axes[d].size))


def _getitem(walk: Propagation, node: Node, a: dict[str, Any]) -> Any:
    return a["x"][a["a1"]]


def _pieces(walk: Propagation, x: Value, dim: int, sizes: Sequence[int]) -> list[Value]:
    d = dim % len(x.axes)
    return [x.with_axis(d, piece) for piece in ax.split(x.axes[d], sizes)]


def _split(walk: Propagation, node: Node, a: dict[str, Any]) -> Any:
    x, dim = walk.read(a["x"]), a.get("dim", 0)
    return tuple(_pieces(walk, x, dim, [s[dim] for s in node.shapes if s is not None]))


def _slice(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, dim = walk.read(a["x"]), a.get("dim", 0) % len(a["x"].axes)
    n = x.axes[dim].size
    if "length" in a:  # narrow
        a = {**a, "end": a["start"] + a["length"]}
    start, stop, step = slice(a["start"], a["end"], a.get("step", 1)).indices(n)
    if step != 1:
        ax.fix(x.axes[dim])
        return x.with_axis(dim, ax.fixed(len(range(start, stop, step))), NONE)
    if (start, stop) == (0, n):
        return x
    return _pieces(walk, x, dim, [start, max(stop - start, 0), n - max(start, stop)])[1]


def _cat(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    parts = a["tensors"] if "tensors" in a else a["x"]
    parts = [v for v in parts if v.shape != (0,)]
    d = a.get("dim", 0) % len(parts[0].axes)
    return _joined(parts, d, ax.total([v.axes[d] for v in parts]))


def _joined(parts: Sequence[Value], d: int, axis: Axis) -> Value:
    """Equal axes everywhere but at d; a mixture of weights and activations counts its weights as made here."""
    first = parts[0]
    for other in parts[1:]:
        for k, (p, q) in enumerate(zip(first.axes, other.axes, strict=True)):
            if k != d:
                ax.unify(p, q)
    origins = [NONE.union(*(v.origins[k] for v in parts)) for k in range(len(first.axes))]
    return Value(first.axes, origins, any(v.active for v in parts), bent=any(v.bent for v in parts)).with_axis(d, axis)


def _cat_checked(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    parts = a["tensors"] if "tensors" in a else a["x"]
    if any(v.active for v in parts):
        for v in parts:
            if v.is_weight:
                walk.absorb(v)
    out = _cat(walk, node, a)
    return Value(out.axes, active=True) if out.active else out


def _stack(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    parts = a["tensors"] if "tensors" in a else a["x"]
    d = a.get("dim", 0) % (len(parts[0].axes) + 1)
    lifted = [_unsqueeze(walk, node, {"x": v, "dim": d}) for v in parts]
    out = _cat_checked(walk, node, {"tensors": lifted, "dim": d})
    return out.with_axis(d, ax.fixed(len(parts)), NONE)


def _index(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """Indexing with tensors: the axes looked up are fixed, the others pass (one run of indexed axes only)."""
    x, indices = a["x"], a["indices"]
    at = [d for d, index in enumerate(indices) if index is not None]
    if at != list(range(at[0], at[-1] + 1)) or node.shape is None:
        raise UnsupportedError(node.op, "the indexed axes are not next to each other")
    ax.fix(*(x.axes[d] for d in at), *(axis for d in at for axis in indices[d].axes))
    new = len(node.shape) - (len(x.axes) - len(at))
    axes = [*x.axes[: at[0]], *map(ax.fixed, node.shape[at[0] : at[0] + new]), *x.axes[at[-1] + 1 :]]
    origins = [*x.origins[: at[0]], *[NONE] * new, *x.origins[at[-1] + 1 :]]
    _passed(walk, x, at)
    return replace(x, axes=axes, origins=origins, stack=())


def _index_select(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, d = a["x"], a["dim"] % len(a["x"].axes)
    ax.fix(x.axes[d])
    return x.with_axis(d, ax.fixed(a["index"].shape[0] if a["index"].axes else 1), NONE)


def _passed(walk: Propagation, x: Value, dims: Sequence[int]) -> None:
    for d in dims:
        walk.use(x, d, "in")


def _flip(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x = a["x"]
    dims = a["dims"] if "dims" in a else [a["dim"]]
    ax.fix(*(x.axes[d] for d in dims))
    return x


def _pad(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """Constant padding puts new terms before and after an axis; any other mode reads positions and fixes it."""
    x, pad = a["x"], a["pad"]
    for i in range(len(pad) // 2):
        d, (before, after) = len(x.axes) - 1 - i, pad[2 * i : 2 * i + 2]
        if before == after == 0:
            continue
        if node.base != "constant_pad_nd" and a.get("mode", "constant") != "constant":
            ax.fix(x.axes[d])
        if min(before, after) < 0:
            ax.fix(x.axes[d])
            x = x.with_axis(d, ax.fixed(x.axes[d].size + before + after), NONE)
        else:
            x = x.with_axis(d, ax.total([Axis(before), x.axes[d], Axis(after)]))
    return x


def _scatter(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """A tensor with one position, or a range of an axis, overwritten: what writing into a view becomes."""
    x, source, d = a["x"], a["src"], a["dim"] % len(a["x"].axes)
    if "index" in a:
        ax.fix(x.axes[d])
        part = x.at([k for k in range(len(x.axes)) if k != d])
    else:
        part = _slice(walk, node, a)
    both = elementwise(walk, [part, source], bent=True)
    return replace(x, active=x.active or both.active, uniform=False, stack=(), bent=not both.active)


def _copy(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """The source, stretched to the shape of the value that it overwrites."""
    return _expand(walk, node, {"x": a["src"]})


RULES: dict[str, Rule] = (
    {n: _reshape for n in ("view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_as", "reshape_as")}
    | {n: _transpose for n in ("transpose", "swapaxes", "swapdims", "t", "mT")}
    | {n: _expand for n in ("expand", "expand_as", "broadcast_to")}
    | {n: _split for n in ("split", "split_with_sizes", "chunk", "tensor_split")}
    | {n: _cat_checked for n in ("cat", "concat", "concatenate")}
    | {n: _pad for n in ("pad", "constant_pad_nd")}
    | {"permute": _permute, "movedim": _movedim, "unsqueeze": _unsqueeze, "squeeze": _squeeze, "repeat": _repeat}
    | {"select": _select, "unbind": _unbind, "getitem": _getitem, "slice": _slice, "narrow": _slice}
    | {"select_scatter": _scatter, "slice_scatter": _scatter, "copy": _copy}
    | {"stack": _stack, "index": _index, "index_select": _index_select, "flip": _flip}
)
RAW = frozenset({"select", "unbind", "getitem"})
"""Operations that see a stack layer by layer."""
