"""Rules for operations that exchange channels and positions, or take images apart."""

from __future__ import annotations

from math import prod
from typing import Any

from isthmus.program.export import Node
from isthmus.structure import axes as ax
from isthmus.structure.algebra import elementwise
from isthmus.structure.axes import Axis
from isthmus.structure.propagation import NONE, Propagation, Rule, Value

__all__ = ["RULES"]


def _rot90(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """Both axes are fixed, as their positions are reversed; after an odd number of quarters they are exchanged."""
    axes = a["x"].axes
    i, j = (d % len(axes) for d in a["dims"])
    ax.fix(axes[i], axes[j])
    order = list(range(len(axes)))
    if a["k"] % 2:
        order[i], order[j] = j, i
    return a["x"].at(order)


def _image(x: Value, node: Node, channels: Axis) -> Value:
    """The value with these channels, and with the places that the result of the operation has."""
    n = len(x.axes)
    x = x.with_axis(n - 3, channels)
    for d, size in enumerate((node.shape or ())[-2:], start=n - 2):
        x = x.with_axis(d, ax.fixed(size, ax.GIVEN), NONE)
    return x


def _pixel_shuffle(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """r x r channels in a row become places: units are the channels that are left."""
    x, r = a["x"], a["upscale_factor"]
    channels, *places = ax.factored(x.axes[-3], [x.axes[-3].size // r**2, r, r])
    ax.fix(*places, *x.axes[-2:])
    return _image(x, node, channels)


def _pixel_unshuffle(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    x, r = a["x"], a["downscale_factor"]
    ax.fix(*x.axes[-2:])
    return _image(x, node, ax.product([x.axes[-3], ax.fixed(r), ax.fixed(r)]))


def _channel_shuffle(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """Channel j of group i goes to place i of block j."""
    x, groups = a["x"], a["groups"]
    return x.with_axis(1, ax.product(reversed(ax.factored(x.axes[1], [groups, x.axes[1].size // groups]))))


def _patches(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """Channels by the places of a patch, for every patch."""
    x, n, size = a["x"], len(a["x"].axes), prod(a["kernel_size"])
    ax.fix(*x.axes[-2:])
    x = x.with_axis(n - 3, ax.product([x.axes[-3], ax.fixed(size)]))
    x = x.with_axis(n - 2, ax.fixed((node.shape or (0,))[-1]), NONE)
    return x.at(range(n - 1))


def _folded(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """Patches added up to an image."""
    x, n, size = a["x"], len(a["x"].axes), prod(a["kernel_size"])
    channels, places = ax.factored(x.axes[-2], [x.axes[-2].size // size, size])
    ax.fix(places, x.axes[-1])
    tail = [ax.fixed(k, ax.GIVEN) for k in a["output_size"]]
    return Value([*x.axes[: n - 2], channels, *tail], active=x.active)


def _bilinear(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """x_i W_oij y_j: the weight makes the units of one axis and reads those of two."""
    x, y, w = a["input1"], a["input2"], a["weight"]
    for p, q in (*zip(x.axes[:-1], y.axes[:-1], strict=True), (x.axes[-1], w.axes[1]), (y.axes[-1], w.axes[2])):
        ax.unify(p, q)
    for d, role in enumerate(("in", "out", "out")):
        walk.use(w, d, role)
    out = Value([*x.axes[:-1], w.axes[0]])
    return out if a["bias"] is None else elementwise(walk, [out, a["bias"]])


def _compared(walk: Propagation, node: Node, a: dict[str, Any]) -> Value:
    """A distance, or an angle, of two: over the units of one axis."""
    both = elementwise(walk, [a["x1"], a["x2"]], bent=True)
    n = len(both.axes)
    dim = a.get("dim", -1) % n
    ax.mark(both.axes[dim], f"{node.base} is taken over these units")
    left = [d for d in range(n) if d != dim]
    out = both.at(left)
    return out if not a.get("keepdim") else Value([*out.axes, ax.fixed(1)], active=out.active)


RULES: dict[str, Rule] = {
    "rot90": _rot90,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    "im2col": _patches,
    "col2im": _folded,
    "bilinear": _bilinear,
    "cosine_similarity": _compared,
    "pairwise_distance": _compared,
}
