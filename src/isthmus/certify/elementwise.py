"""Rules for operations entry by entry: activations, powers, maxima, masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.certify import smooth as s
from isthmus.certify.arithmetic import add, divided, joined, moved, multiply, squared
from isthmus.certify.arithmetic import scaled as _scaled
from isthmus.certify.forms import Form, Refused, times
from isthmus.certify.kinks import maximum, piecewise, rectified, stepped
from isthmus.certify.made import form
from isthmus.certify.origins import by, follow
from isthmus.certify.smooth import smooth
from isthmus.certify.windows import Arguments
from isthmus.program.export import Node

__all__ = ["ELEMENTWISE", "reciprocal"]


def _relu(node: Node, a: Arguments) -> Form:
    return rectified(a["x"])


def _leaky_relu(node: Node, a: Arguments) -> Form:
    leak = float(a["negative_slope"])
    if 0 <= leak <= 1:
        return rectified(a["x"], leak)
    return piecewise(lambda v: F.leaky_relu(v, leak), (0.0,), a["x"])


def _rrelu(node: Node, a: Arguments) -> Form:
    """In evaluation mode the slope is the middle of those that are drawn in training."""
    if a["training"]:
        raise Refused("it is in training mode")
    return _leaky_relu(node, {"x": a["x"], "negative_slope": (float(a["lower"]) + float(a["upper"])) / 2})


def _prelu(node: Node, a: Arguments) -> Form:
    """max(x, 0) - p max(-x, 0)."""
    x, weight = a["x"], a["weight"]
    if weight.centre.numel() > 1:
        weight = moved(lambda p: p.reshape(1, -1, *(1,) * (x.centre.dim() - 2)), weight)
    return add(rectified(x), multiply(weight, rectified(_scaled(x, -1.0))), -1.0)


def _clamp(node: Node, a: Arguments) -> Form:
    low, high = (a.get(k, a.get(f"{k}_val")) for k in ("min", "max"))
    if node.base == "relu6":
        low, high = 0.0, 6.0
    if any(isinstance(v, (Form, Tensor)) for v in (low, high)):
        x = a["x"] if low is None else _maximum(node, {"x": a["x"], "other": low})
        return x if high is None else _minimum(node, {"x": x, "other": high})
    clamped = partial(torch.clamp, min=low, max=high)
    if a["x"].constant:
        return stepped(clamped, a["x"])
    return piecewise(clamped, [float(v) for v in (low, high) if v is not None], a["x"])


def _smooth(f: s.Smooth, node: Node, a: Arguments) -> Form:
    return smooth(f, a["x"])


def _gelu(node: Node, a: Arguments) -> Form:
    return smooth(s.GELU if a["approximate"] == "none" else s.GELU_TANH, a["x"])


def _log_sigmoid(node: Node, a: Arguments) -> Form:
    return _scaled(smooth(s.softplus(1.0, 40.0), _scaled(a["x"], -1.0)), -1.0)


def _mish(node: Node, a: Arguments) -> Form:
    return multiply(a["x"], smooth(s.TANH, smooth(s.softplus(1.0, 40.0), a["x"])))


def _absolute(node: Node, a: Arguments) -> Form:
    return piecewise(torch.abs, (0.0,), a["x"])


def _hard_sigmoid(node: Node, a: Arguments) -> Form:
    return divided(piecewise(lambda v: v.clamp(-3.0, 3.0) + 3, (-3.0, 3.0), a["x"]), 6.0)


def _hard_swish(node: Node, a: Arguments) -> Form:
    return multiply(a["x"], _hard_sigmoid(node, a))


def _soft_shrink(node: Node, a: Arguments) -> Form:
    c = float(a["lambd"])
    return piecewise(lambda v: F.softshrink(v, c), (-c, c), a["x"])


def _hard_shrink(node: Node, a: Arguments) -> Form:
    """Itself outside [-c, c], 0 within: it jumps at both ends."""
    c = float(a["lambd"])
    return piecewise(lambda v: F.hardshrink(v, c), (-c, c), a["x"], ((-c, -c), (c, c)))


def _threshold(node: Node, a: Arguments) -> Form:
    """Itself above the threshold, else a value: it jumps where that is another one."""
    c = float(a["threshold"])
    return piecewise(lambda v: F.threshold(v, c, float(a["value"])), (c,), a["x"], ((c, c),))


def _steps(node: Node, a: Arguments) -> Form:
    if a.get("decimals"):
        raise Refused("only rounding to whole numbers has a rule")
    return stepped(getattr(torch, node.base), a["x"])


def _softplus(node: Node, a: Arguments) -> Form:
    if a["beta"] <= 0:
        raise Refused("only beta > 0 has a rule")
    return smooth(s.softplus(float(a["beta"]), float(a["threshold"])), a["x"])


def _elu(node: Node, a: Arguments) -> Form:
    alpha = float(a.get("alpha", 1.0))
    scale, rate = float(a.get("scale", 1.0)), float(a.get("input_scale", 1.0))
    if node.base == "selu":
        alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    if node.base == "celu":
        rate = 1 / alpha
    if alpha <= 0 or scale <= 0 or rate <= 0:
        raise Refused("only a positive alpha has a rule")
    return smooth(s.elu(alpha, scale, rate), a["x"])


def _linear_between(node: Node, a: Arguments) -> Form:
    """x + weight (end - x)."""
    like = next(v for v in (a["x"], a["end"], a["weight"]) if isinstance(v, Form))
    x, end = form(a["x"], like), form(a["end"], like)
    return add(x, multiply(form(a["weight"], like), add(end, x, -1.0)))


def _product_added(node: Node, a: Arguments) -> Form:
    """x + value tensor1 tensor2."""
    like = next(v for v in (a["x"], a["tensor1"], a["tensor2"]) if isinstance(v, Form))
    x, one, two = (form(a[k], like) for k in ("x", "tensor1", "tensor2"))
    return add(x, multiply(one, two), float(a["value"]))


# -- maxima


def _maximum(node: Node, a: Arguments) -> Form:
    like = a["x"] if isinstance(a["x"], Form) else a["other"]
    pair = [form(a[k], like) for k in ("x", "other")]
    shape = torch.broadcast_shapes(*(v.centre.shape for v in pair))
    return maximum(*(moved(lambda p: p.expand(shape), v) for v in pair))


def _minimum(node: Node, a: Arguments) -> Form:
    like = a["x"] if isinstance(a["x"], Form) else a["other"]
    pair = {k: _scaled(form(a[k], like), -1.0) for k in ("x", "other")}
    return _scaled(_maximum(node, pair), -1.0)


def _where(node: Node, a: Arguments) -> Form:
    """Entries of one of two, by a mask that does not move."""
    mask = a["condition"] if "condition" in a else a["mask"].logical_not()
    if isinstance(mask, Form):
        raise Refused("only a mask that does not depend on t has a rule")
    like = next(v for k in ("x", "other", "value") if isinstance(v := a.get(k), Form))
    pair = [form(a["x"], like), form(a["other"] if "other" in a else a["value"], like)]
    shape = torch.broadcast_shapes(mask.shape, *(v.centre.shape for v in pair))
    return joined(lambda p: torch.where(mask, *p), [moved(lambda p: p.expand(shape), v) for v in pair])


def reciprocal(x: Form) -> Form:
    """1 / v, where every entry keeps its sign: sign / |v|."""
    x = x.rounded()
    sign = torch.where(x.centre < 0, -1.0, 1.0)

    def turned(y: Form) -> Form:
        origin = follow(lambda: 0.0, (y, by(sign)))
        return Form(y.centre * sign, times(y.slope, sign), y.radius, y.ulps, times(y.bend, sign), origin=origin)

    return turned(smooth(s.RECIPROCAL, turned(x)))


def _power(node: Node, a: Arguments) -> Form:
    exponent = a["exponent"]
    if isinstance(exponent, (Form, Tensor)) or not isinstance(a["x"], Form):
        raise Refused("only a number as exponent has a rule")
    rule = _POWERS.get(exponent)
    return smooth(s.power(float(exponent)), a["x"]) if rule is None else rule(a["x"])


_POWERS: dict[float, Callable[[Form], Form]] = {
    1: lambda x: x,
    2: squared,
    0.5: partial(smooth, s.ROOT),
    -0.5: partial(smooth, s.INVERSE_ROOT),
    -1: reciprocal,
}

ELEMENTWISE: dict[str, Callable[[Node, Arguments], Form]] = (
    dict.fromkeys(("hardtanh", "relu6", "clamp", "clamp_min", "clamp_max"), _clamp)
    | dict.fromkeys(("elu", "selu", "celu"), _elu)
    | dict.fromkeys(("where", "masked_fill"), _where)
    | dict.fromkeys(("sign", "sgn", "floor", "ceil", "trunc", "round"), _steps)
    | {name: partial(_smooth, f) for name, f in s.BY_NAME.items()}
    | {
        "reciprocal": lambda node, a: reciprocal(a["x"]),
        "pow": _power,
        "square": lambda node, a: squared(a["x"]),
        "sin": lambda node, a: s.sine(a["x"], False),
        "cos": lambda node, a: s.sine(a["x"], True),
        "relu": _relu,
        "leaky_relu": _leaky_relu,
        "prelu": _prelu,
        "rrelu": _rrelu,
        "softshrink": _soft_shrink,
        "hardshrink": _hard_shrink,
        "threshold": _threshold,
        "lerp": _linear_between,
        "addcmul": _product_added,
        "gelu": _gelu,
        "softplus": _softplus,
        "log_sigmoid": _log_sigmoid,
        "mish": _mish,
        "abs": _absolute,
        "hardsigmoid": _hard_sigmoid,
        "hardswish": _hard_swish,
        "maximum": _maximum,
        "minimum": _minimum,
        "fmax": _maximum,
        "fmin": _minimum,
    }
)
