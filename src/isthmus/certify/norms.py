"""Rules for normalisation: by running statistics, and by what each example itself holds."""

from __future__ import annotations

from collections.abc import Callable
from math import prod, sqrt

import torch
from torch import Tensor

from isthmus.certify.arithmetic import add, average, moved, multiply, squared
from isthmus.certify.balls import entrywise
from isthmus.certify.forms import HEADROOM, TINY, UNIT, Form, Refused, cut, half_width, known, present
from isthmus.certify.made import form
from isthmus.certify.origins import follow
from isthmus.certify.smooth import INVERSE_ROOT, smooth
from isthmus.certify.windows import Arguments
from isthmus.program.export import Node

__all__ = ["NORMS", "centred"]


def centred(x: Form, dim: int) -> Form:
    """x less its mean along an axis: an entry's own remainder counts (1 - 1/n) times, those of the others 1/n times."""
    x, n = x.rounded(), x.centre.shape[dim]

    def less_mean(v: Tensor) -> Tensor:
        return v - v.mean(dim, keepdim=True)

    radius, size = present(x.radius), x.size()
    out = (radius * (1 - 2 / n)).add_(radius.mean(dim, keepdim=True)).clamp_(min=0)
    rounding = (size + size.mean(dim, keepdim=True)).mul_((n + 32) * UNIT).add_(TINY)
    out.add_(rounding)
    slope, bend = (None if p is None else less_mean(p) for p in (x.slope, x.bend))
    origin = follow(lambda: rounding, (x, less_mean))
    return entrywise(Form(less_mean(x.centre), slope, out, HEADROOM, bend, origin=origin), x, 1.0)


def normalised(x: Form, dim: int, eps: float | Form) -> Form:
    """x / sqrt(mean of x^2 + eps) along an axis, which is nowhere larger than sqrt(n)."""
    eps = form(eps, x).rounded()
    least = float(eps.centre - half_width(eps))
    if float(eps.centre) < 0:
        raise Refused("a negative eps has no rule")
    n = x.centre.shape[dim]
    mean = average(lambda v: v.mean(dim, keepdim=True), n, squared(x))
    factor = smooth(INVERSE_ROOT, add(mean, eps))
    if least <= 0:
        return multiply(x, factor)
    factor = cut(factor, known(mean), known(mean) + (1 + 4 * UNIT) / sqrt(least))
    largest = known(x) + sqrt(n) * (1 + 4 * UNIT)
    return cut(multiply(x, factor), -largest, largest)


def _affine(x: Form, a: Arguments, shape: Callable[[Tensor], Tensor] = lambda p: p) -> Form:
    weight, bias = (None if a[k] is None else moved(shape, form(a[k], x)) for k in ("weight", "bias"))
    x = x if weight is None else multiply(x, weight)
    return x if bias is None else add(x, bias)


def _channels(x: Form) -> Callable[[Tensor], Tensor]:
    """A vector with an entry per channel, beside `x`."""
    shape = (1, -1, *(1,) * (x.centre.dim() - 2))
    return lambda p: p.reshape(shape)


def _layer_norm(node: Node, a: Arguments) -> Form:
    x, k = a["x"], len(a["normalized_shape"])
    flat = moved(lambda p: p.flatten(-k), x)
    out = normalised(centred(flat, -1), -1, float(a["eps"]))
    return _affine(moved(lambda p: p.reshape(x.centre.shape), out), a)


def _rms_norm(node: Node, a: Arguments) -> Form:
    x, k = a["x"], len(a["normalized_shape"])
    eps = _of_any_type(x) if a["eps"] is None else float(a["eps"])
    out = normalised(moved(lambda p: p.flatten(-k), x), -1, eps)
    return _affine(moved(lambda p: p.reshape(x.centre.shape), out), a | {"bias": None})


def _of_any_type(x: Form) -> Form:
    """The eps that torch takes where none is given: that of float64 or, for all narrower types, of float32."""
    low, high = (torch.finfo(t).eps for t in (torch.float64, torch.float32))
    middle, half = (
        torch.full((), v / 2, dtype=x.centre.dtype, device=x.centre.device) for v in (high + low, high - low)
    )
    return Form(middle, None, half)


def _by_groups(a: Arguments, groups: int) -> Form:
    x = a["x"]
    flat = moved(lambda p: p.reshape(len(p), groups, -1), x)
    out = normalised(centred(flat, -1), -1, float(a["eps"]))
    return _affine(moved(lambda p: p.reshape(x.centre.shape), out), a, _channels(x))


def _group_norm(node: Node, a: Arguments) -> Form:
    return _by_groups(a, a["num_groups"])


def _instance_norm(node: Node, a: Arguments) -> Form:
    if not a["use_input_stats"]:
        return _batch_norm(node, a)
    return _by_groups(a, a["x"].centre.shape[1])


def _batch_norm(node: Node, a: Arguments) -> Form:
    """(x - mean) weight / sqrt(var + eps) + bias, in evaluation mode; statistics and weights may move."""
    if a.get("training"):
        raise Refused("it is in training mode")
    x, mean, variance = a["x"], a["running_mean"], a["running_var"]
    if mean is None or variance is None:
        raise Refused("it keeps no running statistics, so that an example's value depends on its batch")
    channel = _channels(x)
    factor = smooth(INVERSE_ROOT, add(variance, form(a["eps"], variance)))
    if a["weight"] is not None:
        factor = multiply(factor, a["weight"])
    out = multiply(add(x, moved(channel, mean), -1.0), moved(channel, factor))
    return out if a["bias"] is None else add(out, moved(channel, a["bias"]))


def _weight_norm(node: Node, a: Arguments) -> Form:
    """g v / |v|, the length over all axes but one; over all where that is -1, as torch has it."""
    v, g, n = a["v"], a["g"], a["v"].centre.dim()
    axes = [d for d in range(n) if a["dim"] == -1 or d != a["dim"] % n]
    terms = prod(v.centre.shape[d] for d in axes)
    length = average(lambda p: p.sum(axes, keepdim=True), terms, squared(v))
    return multiply(v, multiply(g, smooth(INVERSE_ROOT, length)))


NORMS = {
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "_weight_norm": _weight_norm,
}
