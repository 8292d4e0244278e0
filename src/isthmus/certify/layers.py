"""Rules for layers made of several operations: gates, products of two activations, distances, and resized images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from isthmus.certify.arithmetic import add, average, contract, joined, moved, multiply, squared
from isthmus.certify.elementwise import reciprocal
from isthmus.certify.forms import TINY, UNIT, Form, Refused
from isthmus.certify.kinks import maximum, piecewise
from isthmus.certify.made import form
from isthmus.certify.origins import follow, same
from isthmus.certify.reductions import by_twos, root
from isthmus.certify.smooth import SIGMOID, smooth
from isthmus.certify.softmax import logsumexp
from isthmus.certify.windows import Arguments, axes_of, calls
from isthmus.program.export import Node

__all__ = ["LAYERS"]


def _glu(node: Node, a: Arguments) -> Form:
    """The first half of an axis times the sigmoid of the second."""
    one, two = (moved(lambda p, i=i: p.chunk(2, a["dim"])[i], a["x"]) for i in range(2))
    return multiply(one, smooth(SIGMOID, two))


def _log_add_exp(node: Node, a: Arguments) -> Form:
    one, two = _pair(a["x"], a["other"])
    both = joined(lambda parts: torch.stack(list(parts), -1), [one, two])
    return moved(lambda p: p.squeeze(-1), logsumexp(both, -1))


def _pair(x: Any, y: Any) -> tuple[Form, Form]:
    """Two values of which one is a form, of one shape."""
    like = x if isinstance(x, Form) else y
    x, y = form(x, like), form(y, like)
    shape = torch.broadcast_shapes(x.centre.shape, y.centre.shape)
    return moved(lambda p: p.expand(shape), x), moved(lambda p: p.expand(shape), y)


def _bilinear(node: Node, a: Arguments) -> Form:
    """x_i W_oij y_j + b_o: a product with x, and one of what it gives with y."""
    w = a["weight"]
    x, y = form(a["input1"], w), form(a["input2"], w)
    first = contract(lambda p, q, b: torch.einsum("...i,oij->...oj", p, q), w.centre.shape[1], x, w)
    out = contract(lambda p, q, b: torch.einsum("...oj,...j->...o", p, q), w.centre.shape[2], first, y)
    return out if a["bias"] is None else add(out, a["bias"])


# -- distances


def _vector_norm(node: Node, a: Arguments) -> Form:
    return _norm(float(a["ord"]), a)


def _norm(order: float, a: Arguments) -> Form:
    """The norm along axes, of order 1, 2 or infinity."""
    x = a["x"]
    if order == 2:
        return root(_total(squared(x), a))
    if order not in (1, torch.inf):
        raise Refused(f"only norms of order 1, 2 and infinity have a rule, not of {order:g}")
    size = a | {"x": piecewise(torch.abs, (0.0,), x)}
    return _total(size["x"], a) if order == 1 else by_twos(maximum, size)


def _total(x: Form, a: Arguments) -> Form:
    """The sum along the axes of `a`."""
    dims = a["dim"] if a["dim"] not in (None, []) else list(range(x.centre.dim()))
    terms = torch.zeros_like(x.centre).sum(dims).numel()
    return average(lambda p: p.sum(dims, bool(a["keepdim"])), max(x.centre.numel() // max(terms, 1), 1), x)


def _distance(node: Node, a: Arguments) -> Form:
    """|x1 - x2 + eps| along the last axis."""
    one, two = _pair(a["x1"], a["x2"])
    apart = add(add(one, two, -1.0), form(float(a["eps"]), one))
    return _norm(float(a["p"]), {"x": apart, "dim": -1, "keepdim": a["keepdim"]})


def _cosine(node: Node, a: Arguments) -> Form:
    """x1 x2 / (max(|x1|, eps) max(|x2|, eps)) along an axis."""
    pair, eps = _pair(a["x1"], a["x2"]), float(a["eps"])
    along = {"dim": a["dim"], "keepdim": False}
    sizes = [piecewise(lambda v: v.clamp(min=eps), (eps,), _norm(2.0, along | {"x": x})) for x in pair]
    return multiply(_total(multiply(*pair), along), multiply(*map(reciprocal, sizes)))


# -- images


def _interpolated(node: Node, a: Arguments) -> Form:
    """Means of neighbours with fixed weights, which are computed from their places, and rounded there."""
    x, n = a["x"].rounded(), axes_of(node)
    f, sizes = calls(node, a), x.centre.shape[-n:]
    out = average(f, 2**n, x)
    # a weight is off by a few ulps of a place, at most those of the larger image
    off = 64 * n * max(*sizes, *out.centre.shape[-n:]) * UNIT
    largest = x.size().amax(tuple(range(-n, 0)), keepdim=True).mul_(off).add_(TINY).expand(out.centre.shape)
    radius = largest if out.radius is None else out.radius + largest
    return Form(out.centre, out.slope, radius, out.ulps, out.bend, origin=follow(lambda: largest, (out, same)))


def _cubic(node: Node, a: Arguments) -> Form:
    raise Refused("weights of both signs, as cubic interpolation has, have no rule")


def _folded(node: Node, a: Arguments) -> Form:
    """Patches put back into an image; where they overlap they are added up."""
    kernel = a["kernel_size"]
    return average(calls(node, a), kernel[0] * kernel[1], a["x"])


def _reshaped(node: Node, a: Arguments) -> Form:
    shape = a["other"].centre.shape if isinstance(a["other"], Form) else a["other"].shape
    return moved(lambda p: p.reshape(shape), a["x"])


def _differences(node: Node, a: Arguments) -> Form:
    """Of neighbours along an axis, n times over."""
    x, dim = a["x"], a["dim"]
    if a["prepend"] is not None or a["append"] is not None:
        raise Refused("what is put before or behind has no rule")
    for _ in range(a["n"]):
        left = x.centre.shape[dim] - 1
        x = add(*(moved(lambda p, s=s, k=left: p.narrow(dim, s, k), x) for s in (1, 0)), -1.0)
    return x


LAYERS: dict[str, Callable[[Node, Arguments], Any]] = (
    dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), _interpolated)
    | dict.fromkeys(("view_as", "reshape_as"), _reshaped)
    | {
        "glu": _glu,
        "linalg_vector_norm": _vector_norm,
        "logaddexp": _log_add_exp,
        "bilinear": _bilinear,
        "pairwise_distance": _distance,
        "cosine_similarity": _cosine,
        "upsample_bicubic2d": _cubic,
        "col2im": _folded,
        "diff": _differences,
    }
)
