"""Rules for operations that find or write entries by whole numbers: lookups, scattering, choosing, running along."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from isthmus.errors import UnsupportedError
from isthmus.program.export import Node
from isthmus.program.ops import Kind
from isthmus.structure import axes as ax
from isthmus.structure.algebra import elementwise, reduced
from isthmus.structure.propagation import NONE, Propagation, Rule, Value

__all__ = ["KINDS", "NUMBERING", "RULES"]


def _looked_up(x: Value, dim: int, index: Any) -> None:
    """An axis whose positions are named by numbers: those of units that were chosen, or places with a meaning."""
    if isinstance(index, Value) and index.numbers is not None:
        ax.unify(x.axes[dim], index.numbers)
    else:
        ax.fix(x.axes[dim], why=ax.GIVEN if x.is_weight else "")


def _embedding(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    weight, indices = a["weight"], a["indices"]
    _looked_up(weight, 0, indices)
    walk.absorb(weight)
    return Value([*indices.axes, weight.axes[1]], active=indices.active or not weight.is_weight)


def _index(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """Indexing with tensors: the axes looked up are given by the numbers, the others pass.

    What was looked up stands where the indexed axes stood, or in front if they are not next to each other.
    """
    x, indices = a["x"], {d: index for d, index in enumerate(a["indices"]) if index is not None}
    for d, index in indices.items():
        _looked_up(x, d, index)
        ax.fix(*index.axes)
        walk.use(x, d, "in")
    rest = _vectors(walk, x.at([d for d in range(len(x.axes)) if d not in indices]), indices.values())
    first, last = min(indices), max(indices)
    return _put_in(rest, first if last - first < len(indices) else 0, node.shape or ())


def _vectors(walk: Propagation, rest: Value, indices: Iterable[Value]) -> Value:
    """What is found in a weight: where that is one vector for each number in the data, the units of an embedding."""
    if len(rest.axes) != 1 or not rest.is_weight or not any(index.active for index in indices):
        return rest
    walk.absorb(rest)
    return Value(rest.axes)


def _put_in(x: Value, place: int, shape: Sequence[int]) -> Value:
    """The value with as many new axes, of which the positions are fixed, at one place as the shape has more."""
    new = [ax.fixed(n) for n in shape[place : place + len(shape) - len(x.axes)]]
    origins = [*x.origins[:place], *[NONE] * len(new), *x.origins[place:]]
    return replace(x, axes=[*x.axes[:place], *new, *x.axes[place:]], origins=origins)


def _index_select(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, d = a["x"], a["dim"] % len(a["x"].axes)
    _looked_up(x, d, a["index"])
    return x.with_axis(d, ax.fixed(a["index"].shape[0] if a["index"].axes else 1), NONE)


def _gather(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, d, index = a["x"], a["dim"] % len(a["x"].axes), a["index"]
    _looked_up(x, d, index)
    _tied(d, x, index)
    return replace(x, axes=index.axes, origins=[NONE if k == d else o for k, o in enumerate(x.origins)], stack=())


def _tied(dim: int, x: Value, *others: Value) -> None:
    """Equal axes everywhere but at `dim`; an axis of which only the beginning is used is fixed."""
    for other in others:
        for k, (p, q) in enumerate(zip(x.axes, other.axes, strict=True)):
            if k == dim:
                continue
            if p.size == q.size:
                ax.unify(p, q)
            else:
                ax.fix(p, q)


def _scatter(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """Entries overwritten, or added to, along one axis: at single places, or at whole slices (index_add)."""
    x, d, index = a["x"], a["dim"] % len(a["x"].axes), a["index"]
    sources = [v for v in (a.get("src"), a.get("source")) if isinstance(v, Value)]
    _looked_up(x, d, index)
    if node.base.startswith("scatter"):
        sources.append(index)
    else:
        ax.fix(*index.axes)
    _tied(d, x, *sources)
    ax.fix(*(v.axes[d] for v in sources))
    return _written(walk, x, *sources)


def _written(walk: Propagation, x: Value, *sources: Value) -> Value:
    if x.numbers is not None:
        ax.fix(x.numbers)
    for v in (x, *sources):
        walk.absorb(v)
    active = any(v.active for v in (x, *sources))
    return Value(x.axes, () if active else x.origins, active=active, bent=not active)


def _index_put(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, indices, source = a["x"], a["indices"], a["values"]
    if any(index is None for index in indices):
        raise UnsupportedError(node.op, "only leading axes that are indexed have a rule")
    for d, index in enumerate(indices):
        _looked_up(x, d, index)
    rest = len(x.axes) - len(indices)
    ax.fix(*source.axes[: max(len(source.axes) - rest, 0)])
    for p, q in zip(reversed(x.axes[len(indices) :]), reversed(source.axes), strict=False):
        if p.size == q.size:
            ax.unify(p, q)
    return _written(walk, x, source)


def _one_hot(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, size = a["x"], (node.shape or (0,))[-1]
    numbers = x.numbers if x.numbers is not None and x.numbers.size == size else ax.fixed(size)
    if x.numbers is not None and numbers is not x.numbers:
        ax.fix(x.numbers)
    return Value([*x.axes, numbers], active=x.active)


def _length(shape: tuple[int, ...] | None, d: int) -> int:
    return 0 if shape is None else shape[d]


def _chosen(walk: Propagation, node: Node, a: dict[str, Any]) -> Any:
    """The largest, or all in order: values that do not depend on the order of the units, and the units' numbers."""
    x, d = a["x"], a["dim"] % len(a["x"].axes)
    axis = x.axes[d]
    ax.mark(axis, f"{node.base} chooses among these units")
    values = elementwise(walk, [x], bent=True).with_axis(d, ax.fixed(_length(node.shapes[0], d)), NONE)
    return values, Value(values.axes, active=x.active, numbers=axis)


def _best(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """The number of the largest or smallest."""
    x, dim = a["x"], a["dim"]
    if dim is None:
        ax.fix(*x.axes)
        return Value(list(map(ax.fixed, node.shape or ())), active=x.active)
    d = dim % len(x.axes)
    ax.mark(x.axes[d], f"{node.base} chooses among these units")
    return replace(reduced(x, {d}, bool(a["keepdim"])), numbers=x.axes[d])


def _order(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, d = a["x"], a["dim"] % len(a["x"].axes)
    ax.mark(x.axes[d], f"{node.base} orders these units")
    return Value(x.with_axis(d, ax.fixed(x.axes[d].size)).axes, active=x.active, numbers=x.axes[d])


def _along(walk: Propagation, node: Node, a: dict[str, Any]) -> Any:
    """Each line along one axis by itself: its positions are fixed."""
    x, d = a["x"], a["dim"] % len(a["x"].axes)
    more = [v for v in (a.get("prepend"), a.get("append")) if v is not None]
    _tied(d, x, *more)
    ax.fix(*(v.axes[d] for v in (x, *more)))
    out = elementwise(walk, [x], bent=True)
    if node.base == "diff":
        return out.with_axis(d, ax.fixed(_length(node.shape, d)), NONE)
    return tuple(out for _ in node.shapes) if node.shapes else out


def _counted(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """How often each number is there."""
    ax.fix(*a["x"].axes)
    return Value([ax.fixed(n) for n in node.shape or ()], active=a["x"].active)


def _roll(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, dims = a["x"], a["dims"]
    ax.fix(*(x.axes[d] for d in dims or range(len(x.axes))))
    return x


KINDS: dict[Kind, Rule] = {"along": _along, "write": _scatter}

RULES: dict[str, Rule] = {
    "embedding": _embedding,
    "index": _index,
    "index_select": _index_select,
    "gather": _gather,
    "index_put": _index_put,
    "one_hot": _one_hot,
    "topk": _chosen,
    "sort": _chosen,
    "argsort": _order,
    "argmax": _best,
    "argmin": _best,
    "roll": _roll,
    "histc": _counted,
    "bincount": _counted,
}
NUMBERING = frozenset(
    {"embedding", "index", "index_select", "gather", "scatter", "scatter_add", "index_add", "index_copy", "index_put"}
    | {"one_hot", "view", "reshape", "flatten", "unflatten", "_unsafe_view", "expand", "repeat_interleave", "to"}
    | {"unsqueeze", "squeeze", "transpose", "permute", "clone", "contiguous", "alias", "detach", "slice", "select"}
    | {"getitem", "_to_copy"}
)
"""Operations for which numbers of units stay numbers of units, or that look units up by them."""
