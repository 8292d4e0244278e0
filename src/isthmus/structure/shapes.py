"""Rules for operations that only move entries: views, reshapes, concatenation, indexing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from isthmus.errors import UnsupportedError
from isthmus.program.export import Node
from isthmus.program.ops import names
from isthmus.structure import axes as ax
from isthmus.structure.algebra import elementwise
from isthmus.structure.axes import Axis
from isthmus.structure.propagation import NONE, Propagation, Rule, Value

__all__ = ["RAW", "RULES", "reshaped"]


def reshaped(x: Value, shape: Sequence[int], picked: int | None = None) -> Value:
    """The entries in the same order under another shape: products of consecutive axes are made equal.

    `picked` is a new axis of which only single positions will be read: the slices along it are kept apart.
    """
    axes: list[Axis] = []
    origins = []
    slices: list[list[Axis]] = [[] for _ in range(0 if picked is None else shape[picked])]
    for ins, outs in _blocks(x.shape, shape):
        own, parts = _regrouped(x.axes[slice(*ins)], shape[slice(*outs)], None if picked is None else picked - outs[0])
        axes += own
        origins += [NONE.union(*x.origins[slice(*ins)])] * len(own)
        slices = [done + part for done, part in zip(slices, parts or [own] * len(slices), strict=True)]
    out = replace(x, axes=axes, origins=origins, stack=())
    return out if picked is None else replace(out, stack=[replace(out, axes=s) for s in slices], along=picked)


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """The shortest runs of consecutive axes that have the same size before and after."""
    i = j = 0
    while i < len(before) or j < len(after):
        m, n = min(i + 1, len(before)), min(j + 1, len(after))
        while (p := prod(before[i:m])) != (q := prod(after[j:n])):
            if (p < q and m < len(before)) or n == len(after):
                m += 1
            else:
                n += 1
        yield (i, m), (j, n)
        i, j = m, n


def _regrouped(ins: Sequence[Axis], sizes: Sequence[int], cut: int | None) -> tuple[list[Axis], list[list[Axis]]]:
    """New axes for one block; and, where one of them is to be cut, those of each slice along it."""
    if len(ins) == len(sizes) == 1:
        return list(ins), []
    if cut is not None and 0 <= cut < len(sizes):
        return _cut(ins, sizes, cut)
    outs = [Axis(size) for size in sizes]
    if ins and outs:
        ax.unify(ax.product(ins), ax.product(outs))
    else:
        ax.fix(*ins, *outs)
    return outs, []


def _cut(ins: Sequence[Axis], sizes: Sequence[int], cut: int) -> tuple[list[Axis], list[list[Axis]]]:
    before = [Axis(n) for n in sizes[:cut]]
    behind = [[Axis(n) for n in sizes[cut + 1 :]] for _ in range(sizes[cut])]
    ax.unify(ax.product(ins), ax.product([*before, ax.total([ax.product(slice_) for slice_ in behind])]))
    return [*before, ax.fixed(sizes[cut]), *behind[0]], [[*before, ax.fixed(1), *slice_] for slice_ in behind]


def _reshape(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    if node.shape is None or prod(node.shape) != prod(a["x"].shape):
        raise UnsupportedError(node.op, f"the shape {a['x'].shape} does not become {node.shape}")
    new = [d for _, (start, stop) in _blocks(a["x"].shape, node.shape) if stop - start > 1 for d in range(start, stop)]
    picked = next((d for d in new if node.shape[d] > 1 and _only_picked(walk, node.name, node.shape, d)), None)
    return reshaped(a["x"], node.shape, picked)


def _only_picked(walk: Propagation, name: str, shape: Sequence[int], dim: int) -> bool:
    """Whether every reader of a value takes single positions of that axis, as packed projections are taken apart."""
    readers = walk.flow.users.get(name, ())
    return name not in walk.flow.outputs and all(_picks(walk, node, shape, dim) for node in readers)


def _picks(walk: Propagation, node: Node, shape: Sequence[int], dim: int) -> bool:
    if node.base in ("select", "unbind") and node.named()["dim"] % len(shape) == dim:
        return True
    if node.kind != "identity" and node.base not in MOVES:
        return False
    x = Value([ax.fixed(n) for n in shape])
    moved = MOVES.get(node.base, _same)(walk, node, node.given(dict.fromkeys(node.refs(), x)))
    return any(
        axis is x.axes[dim] and _only_picked(walk, node.name, moved.shape, d) for d, axis in enumerate(moved.axes)
    )


def _together(rule: Rule) -> Rule:
    """A rule that moves whole axes, for a value and for the slices that it is known to consist of."""

    def moved(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
        x = a["x"]
        out = rule(walk, node, {**a, "x": replace(x, stack=())})
        slices = [rule(walk, node, {**a, "x": part}) for part in x.stack]
        along = next((d for d, axis in enumerate(out.axes) if x.stack and axis is x.axes[x.along]), None)
        if along is None or any(len(part.axes) != len(out.axes) for part in slices):
            return rule(walk, node, {**a, "x": walk.read(x)})
        return replace(out, stack=slices, along=along)

    return moved


def _same(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    return a["x"]


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
    x, times = a["x"], a["repeats"] if "repeats" in a else a["dims"]
    times = [1] * (len(x.axes) - len(times)) + list(times)  # tile may name the last axes alone
    extra = len(times) - len(x.axes)
    axes: list[Axis] = [Axis(n) for n in times[:extra]]
    axes += [axis if n == 1 else ax.product([Axis(n), axis]) for axis, n in zip(x.axes, times[extra:], strict=True)]
    return replace(x, axes=axes, origins=[NONE] * extra + list(x.origins), stack=())


def _repeat_interleave(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """Each entry several times in a row: with a number of times, a new axis behind the repeated one."""
    x, times, dim = a["x"], a["repeats"], a["dim"]
    if not isinstance(times, int) or dim is None:
        raise UnsupportedError(node.op, "only one number of repeats along one axis has a rule")
    return x.with_axis(dim % len(x.axes), ax.product([x.axes[dim], Axis(times)]))


def _select(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """One position: a layer of a stack, or an axis whose positions are then not interchangeable."""
    x, d, i = a["x"], a["dim"] % len(a["x"].axes), a["index"]
    if x.stack and d == x.along:
        return x.stack[i].at([k for k in range(len(x.axes)) if k != d])
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
            walk.absorb(v)
    out = _cat(walk, node, a)
    return Value(out.axes, active=True) if out.active else out


def _stack(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    parts = a["tensors"] if "tensors" in a else a["x"]
    d = a.get("dim", 0) % (len(parts[0].axes) + 1)
    lifted = [_unsqueeze(walk, node, {"x": v, "dim": d}) for v in parts]
    out = _cat_checked(walk, node, {"tensors": lifted, "dim": d})
    return out.with_axis(d, ax.fixed(len(parts)), NONE)


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


MOVES: dict[str, Rule] = {n: _transpose for n in ("transpose", "swapaxes", "swapdims", "t", "mT", "adjoint")} | {
    "permute": _permute,
    "movedim": _movedim,
    "moveaxis": _movedim,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
}

RULES: dict[str, Rule] = (
    {n: _reshape for n in ("view", "reshape", "flatten", "ravel", "unflatten", "_unsafe_view", "view_as", "reshape_as")}
    | {n: _together(rule) for n, rule in MOVES.items()}
    | {n: _expand for n in ("expand", "expand_as", "broadcast_to")}
    | {n: _split for n in ("split", "split_with_sizes", "chunk", "tensor_split")}
    | {n: _cat_checked for n in ("cat", "concat", "concatenate")}
    | {n: _pad for n in ("pad", "constant_pad_nd")}
    | {"repeat": _repeat, "tile": _repeat, "repeat_interleave": _repeat_interleave, "flip": _flip}
    | {"select": _select, "unbind": _unbind, "getitem": _getitem, "slice": _slice, "narrow": _slice}
    | {"select_scatter": _scatter, "slice_scatter": _scatter, "copy": _copy, "stack": _stack}
)
RAW = frozenset({"select", "unbind", "getitem", *MOVES, *names("identity")})
"""Operations that see a stack slice by slice."""
