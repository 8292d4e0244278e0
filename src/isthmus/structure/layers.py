"""Rules for whole layers: convolutions, normalisations, pooling, embeddings, recurrent networks, attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from isthmus.errors import UnsupportedError
from isthmus.program.export import Node
from isthmus.program.ops import Kind
from isthmus.structure import axes as ax
from isthmus.structure.algebra import contract, elementwise
from isthmus.structure.axes import Axis
from isthmus.structure.propagation import NONE, Propagation, Rule, Value
from isthmus.structure.shapes import reshaped

__all__ = ["KINDS", "RAW", "RULES"]

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _convolution(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """Channels go through the kernel: all of them, or each of several groups of channels by itself."""
    x, w, groups = a["x"], a["weight"], a["groups"]
    spatial = len(w.axes) - 2
    batch = list(range(len(x.axes) - spatial - 1))
    ax.fix(*x.axes[-spatial:], *w.axes[2:], why=ax.GIVEN)
    for d in range(2, len(w.axes)):
        walk.use(w, d, "in")
    x, w = x.at([*batch, len(batch)]), w.at([0, 1])
    kernel = ["i", "o"] if "transpose" in node.base else ["o", "i"]
    ins, outs = [*batch, "i"], [*batch, "o"]
    if groups > 1:
        x, w = _factored(x, -1, groups), _factored(w, 0, groups)
        kernel, ins, outs = ["g", *kernel], [*batch, "g", "i"], [*batch, "g", "o"]
    y = contract(walk, x, ins, w, kernel, outs)
    y = reshaped(y, (*y.shape[: len(batch)], prod(y.shape[len(batch) :])))
    if a["bias"] is not None:
        y = elementwise(walk, [y, a["bias"]])
    return _with_tail(y, (node.shape or ())[-spatial:])


def _factored(x: Value, dim: int, groups: int) -> Value:
    """The value with an axis taken apart into groups and what is in each."""
    d = dim % len(x.axes)
    parts = ax.factored(x.axes[d], [groups, x.axes[d].size // groups])
    axes = [*x.axes[:d], *parts, *x.axes[d + 1 :]]
    origins = [*x.origins[:d], x.origins[d], x.origins[d], *x.origins[d + 1 :]]
    return replace(x, axes=axes, origins=origins, stack=())


def _with_tail(x: Value, sizes: Sequence[int]) -> Value:
    """The value with further axes, whose positions have a meaning of their own."""
    return replace(
        x, axes=[*x.axes, *(ax.fixed(n, ax.GIVEN) for n in sizes)], origins=[*x.origins, *[NONE] * len(sizes)]
    )


def _spatial(walk: Propagation, node: Node, a: dict[str, Any]) -> Any:
    """Pooling and resizing: each channel for itself, its positions fixed."""
    x = a["x"]
    n = int(next(c for c in node.base if c.isdigit()))
    ax.fix(*x.axes[-n:])
    shape = node.shape or next(s for s in node.shapes if s is not None)
    out = _with_tail(x.at(range(len(x.axes) - n)), shape[-n:])
    return tuple(out for _ in node.shapes) if node.shapes else out


def _per_unit(walk: Propagation, axis: Axis, weights: Sequence[Value | None]) -> None:
    """Vectors with one entry per unit of an axis."""
    for w in weights:
        if w is not None:
            ax.unify(axis, w.axes[0])
            walk.absorb(w)


def _batch_norm(walk: Propagation, node: Node, a: dict[str, Any]) -> Any:
    x = a["x"]
    _per_unit(walk, x.axes[1], [a["weight"], a["bias"], a["running_mean"], a["running_var"]])
    if a["running_mean"] is None:
        # statistics of the batch: each channel for itself
        ax.fix(x.axes[0], *x.axes[2:])
    out = elementwise(walk, [x])
    return (out, None, None) if node.shapes else out


def _instance_norm(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x = a["x"]
    _per_unit(walk, x.axes[1], [a["weight"], a["bias"], a["running_mean"], a["running_var"]])
    ax.fix(*x.axes[2:])
    return elementwise(walk, [x])


def _layer_norm(walk: Propagation, node: Node, a: dict[str, Any]) -> Any:
    x, n = a["x"], len(a["normalized_shape"])
    for axis in x.axes[-n:]:
        ax.mark(axis, f"{'RMSNorm' if 'rms' in node.base else 'LayerNorm'} normalises over these units")
    for w in (a["weight"], a.get("bias")):
        if w is not None:
            for p, q in zip(x.axes[-n:], w.axes, strict=True):
                ax.unify(p, q)
            walk.absorb(w)
    out = elementwise(walk, [x])
    return (out, None, None) if node.shapes else out


def _group_norm(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """Whole groups of channels are interchangeable, and so are the channels inside each, all groups alike."""
    x, n = a["x"], a["num_groups"]
    outer, inner = Axis(n), Axis(x.axes[1].size // n)
    ax.label(outer, "groups")
    ax.unify(x.axes[1], ax.product([outer, inner]))
    ax.mark(inner, "GroupNorm normalises over these units")
    if n == 1:
        ax.fix(outer)
    _per_unit(walk, x.axes[1], [a["weight"], a["bias"]])
    ax.fix(*x.axes[2:])
    return elementwise(walk, [x])


def _recurrent(walk: Propagation, node: Node, a: dict[str, Any]) -> Any:
    """LSTM, GRU and plain recurrent layers: the gates are a fixed factor in front of the units of each direction."""
    x = walk.read(a["x"])
    ax.fix(x.axes[1 if a["batch_first"] else 0])
    batch = [x.axes[0 if a["batch_first"] else 1]] if len(x.axes) == 3 else []
    features, states = x.axes[-1], []
    for layer, cells in enumerate(_cells(walk, node.base, a)):
        outs = _directions(walk, node, features, f"hidden.{layer}", cells)
        states += [Value([ax.fixed(1), *batch, hidden]) for hidden in outs]
        features = ax.total(outs)
    for given in a["hx"] if node.base == "lstm" else [a["hx"]]:
        if not given.uniform:
            _initial(walk, walk.read(given), states)
    out = replace(x.with_axis(len(x.axes) - 1, features), active=True)
    last = Value([ax.fixed(len(states)), *states[0].axes[1:]], stack=states)
    return (out, last, last) if node.base == "lstm" else (out, last)


def _cells(walk: Propagation, kind: str, a: dict[str, Any]) -> list[list[list[Value]]]:
    """The weights of each direction of each layer."""
    weights, directions = [walk.read(w) for w in a["params"]], 2 if a["bidirectional"] else 1
    each = len(weights) // (a["num_layers"] * directions)
    if a["train"] and a["dropout"] and a["num_layers"] > 1:
        raise UnsupportedError(kind, "its dropout is in training mode", "call module.eval() first")
    if each != (4 if a["has_biases"] else 2):
        raise UnsupportedError(kind, "a projection of the hidden state (proj_size) has no rule", "use a linear layer")
    cells = [weights[i : i + each] for i in range(0, len(weights), each)]
    return [cells[i : i + directions] for i in range(0, len(cells), directions)]


def _directions(
    walk: Propagation, node: Node, features: Axis, label: str, cells: Sequence[Sequence[Value]]
) -> list[Axis]:
    """The units of one layer, by direction."""
    for cell, name in zip(cells, (label, f"{label}.reverse"), strict=False):
        walk.labels |= {tensor: name for w in cell for tensor, _ in w.origins[0]}
        _cell(walk, _GATES[node.base], features, cell[1].axes[1], cell)
    return [cell[1].axes[1] for cell in cells]


def _cell(walk: Propagation, gates: int, features: Axis, hidden: Axis, weights: Sequence[Value]) -> None:
    w_in, w_hidden, *biases = weights
    rows = ax.product([ax.fixed(gates, ax.GIVEN), hidden])
    for w in weights:
        ax.unify(w.axes[0], rows)
    ax.unify(w_in.axes[1], features)
    for w in (w_in, w_hidden):
        walk.use(w, 0, "in")
        walk.use(w, 1, "out")
    for b in biases:
        walk.absorb(b)


def _initial(walk: Propagation, given: Value, states: Sequence[Value]) -> None:
    """A given first state has one axis for the units of all layers, which ties them."""
    for state in states:
        ax.unify(given.axes[-1], state.axes[-1])
    ax.fix(*given.axes[:-1])
    walk.absorb(given)


def _attention(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """softmax(q k^T / sqrt(d)) v, head by head: heads are separable units, the dimensions inside a head are not."""
    q, k, v = a["query"], a["key"], a["value"]
    if a["dropout_p"]:
        raise UnsupportedError("attention", "its dropout is in training mode", "call module.eval() first")
    n = len(q.axes) - 2
    batch, repeats = [f"b{i}" for i in range(n)], []
    if a.get("enable_gqa") and q.shape[-3] != k.shape[-3]:
        q, repeats = _grouped_queries(q, k, v), ["r"]
    scores = contract(walk, q, [*batch, *repeats, "t", "d"], k, [*batch, "s", "d"], [*batch, *repeats, "t", "s"])
    if n > 1:
        ax.label(scores.axes[n - 1], "heads")
    ax.label(q.axes[-1], "head_dim")
    ax.fix(q.axes[-2], k.axes[-2], why=ax.GIVEN)
    if a["attn_mask"] is not None:
        elementwise(walk, [_with_heads(scores, n), a["attn_mask"]])
    out = contract(walk, scores, [*batch, *repeats, "t", "s"], v, [*batch, "s", "e"], [*batch, *repeats, "t", "e"])
    ax.label(v.axes[-1], "value_dim")
    return _with_heads(out, n)


def _grouped_queries(q: Value, k: Value, v: Value) -> Value:
    """The queries by the keys and values that they share."""
    heads, shared = q.shape[-3], k.shape[-3]
    if v.shape[-3] != shared or heads % shared:
        raise UnsupportedError(
            "attention", f"{heads} heads of queries do not share {shared} keys, {v.shape[-3]} values"
        )
    q = _factored(q, -3, shared)
    ax.label(q.axes[-3], "queries")
    return q


def _with_heads(x: Value, n: int) -> Value:
    """Queries that share keys, as heads of one axis."""
    return (
        x if len(x.axes) == n + 2 else reshaped(x, (*x.shape[: n - 1], x.shape[n - 1] * x.shape[n], *x.shape[n + 1 :]))
    )


def _step(walk: Propagation, node: Node, a: dict[str, Any]) -> Any:
    """One step of a recurrent layer (nn.LSTMCell and the like); its states may be those of the step before."""
    weights = [a["w_ih"], a["w_hh"], *(b for b in (a["b_ih"], a["b_hh"]) if b is not None)]
    hidden, states = weights[1].axes[1], a["hx"] if isinstance(a["hx"], list) else [a["hx"]]
    _cell(walk, _GATES[node.base.replace("_cell", "")], a["x"].axes[-1], hidden, weights)
    for given in states:
        _initial(walk, given, [Value([hidden])])
    out = replace(states[0], axes=[*a["x"].axes[:-1], hidden], origins=(), active=True, uniform=False)
    return (out, out) if node.shapes else out


def _weight_norm(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """g v / |v|, the norm over all axes but one: a column that is zero still counts as a function of the others."""
    v, g, dim = a["v"], a["g"], a["dim"]
    ax.unify(v.axes[dim], g.axes[dim])
    ax.fix(*(axis for d, axis in enumerate(g.axes) if d != dim % len(g.axes)))
    return replace(v.with_axis(dim, v.axes[dim], v.origins[dim] | g.origins[dim]), bent=True)


KINDS: dict[Kind, Rule] = {
    "affine": _convolution,  # linear has a rule of its own
    "convolution": _convolution,
    "pool": _spatial,
    "adaptive pool": _spatial,
    "resize": _spatial,
    "norm": _batch_norm,
}

RULES: dict[str, Rule] = (
    {name: _recurrent for name in _GATES}
    | {f"{name}_cell": _step for name in _GATES}
    | {
        "layer_norm": _layer_norm,
        "native_layer_norm": _layer_norm,
        "rms_norm": _layer_norm,
        "group_norm": _group_norm,
        "instance_norm": _instance_norm,
    }
    | {"_weight_norm": _weight_norm, "scaled_dot_product_attention": _attention}
)
RAW = frozenset(_GATES)
"""Operations that treat a uniform argument (zero first states) in their own way."""
