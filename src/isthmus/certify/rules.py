"""The table operation -> rule: how each operation of a network's graph acts on affine forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.certify import smooth as s
from isthmus.certify.forms import Form, add, contract, joined, maximum, moved, multiply, piecewise, rectified
from isthmus.certify.forms import scaled as _scaled
from isthmus.certify.windows import Arguments, Refused, adaptive_max_pool, average_pool, base, calls, max_pool, mean
from isthmus.errors import UnsupportedError
from isthmus.params import moves
from isthmus.program import Node, Ref

__all__ = ["RULES", "apply", "refusal"]

Rule = Callable[[Node, Arguments], Any]


def refusal(node: Node, why: str) -> UnsupportedError:
    """The error that names an operation and its source line."""
    return UnsupportedError(f"{base(node)} ({node.where})" if node.where else base(node), why)


def apply(node: Node, values: Mapping[str, Any]) -> Any:
    """The node's result: forms for floating-point tensors, plain values for whole numbers and sizes."""
    arguments = {("x" if k in ("self", "input") else k): _read(v, values) for k, v in node.named().items()}
    if not any(isinstance(v, Form) for v in _leaves(list(arguments.values()))):
        return _plain(node, values)
    rule = RULES.get(base(node))
    if rule is None:
        raise refusal(node, "it has no rule for affine forms")
    try:
        return rule(node, arguments)
    except Refused as e:
        raise refusal(node, str(e)) from None
    except (RuntimeError, TypeError, KeyError, IndexError, AttributeError) as e:
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise refusal(node, f"its rule does not cover this use of it: {reason}") from e


def _read(x: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(x, Ref):
        return values[x.name]
    return type(x)(_read(v, values) for v in x) if isinstance(x, (list, tuple)) else x


def _leaves(x: Any) -> list[Any]:
    return [leaf for v in x for leaf in _leaves(v)] if isinstance(x, (list, tuple)) else [x]


def _plain(node: Node, values: Mapping[str, Any]) -> Any:
    """Whole numbers and sizes are computed as they stand, and so are tensors of exact numbers, such as zeros."""
    kwargs = {k: _read(v, values) for k, v in node.kwargs.items()}
    out = node.target(*(_read(v, values) for v in node.args), **kwargs)
    if isinstance(out, Tensor) and moves(out):
        if out.is_complex() or base(node) not in (
            "zeros",
            "ones",
            "zeros_like",
            "ones_like",
            "new_zeros",
            "new_ones",
            "full",
        ):
            raise refusal(node, "it has no rule for affine forms")
        return Form(out.double())
    return out


def _form(x: Any, like: Form) -> Form:
    if isinstance(x, Form):
        return x
    if isinstance(x, Tensor):
        return Form(x.to(like.centre.dtype))
    return Form(torch.tensor(float(x), dtype=like.centre.dtype, device=like.centre.device))


# -- linear layers


def _linear(node: Node, a: Arguments) -> Form:
    return contract(F.linear, a["weight"].centre.shape[1], a["x"], a["weight"], a["bias"])


def _convolution(node: Node, a: Arguments) -> Form:
    function = F.conv2d if base(node) == "conv2d" else F.conv1d
    where = {k: a[k] for k in ("stride", "padding", "dilation", "groups")}

    def f(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return function(x, w, b, **where)

    return contract(f, a["weight"].centre[0].numel(), a["x"], a["weight"], a["bias"])


def _matmul(node: Node, a: Arguments) -> Form:
    x, y = a["x"], next(a[k] for k in ("mat2", "other", "vec", "tensor") if k in a)
    x, y = (v if isinstance(v, Form) else Form(v.double()) for v in (x, y))
    return contract(lambda p, q, b: torch.matmul(p, q), x.centre.shape[-1], x, y)


def _addmm(node: Node, a: Arguments) -> Form:
    product = contract(lambda p, q, b: torch.matmul(p, q), a["mat1"].centre.shape[-1], a["mat1"], a["mat2"])
    return add(_scaled(product, float(a["alpha"])), a["x"], float(a["beta"]))


def _batch_norm(node: Node, a: Arguments) -> Form:
    """(x - mean) weight / sqrt(var + eps) + bias, in evaluation mode; statistics and weights may move."""
    if a.get("training"):
        raise Refused("it is in training mode")
    x, mean, variance = a["x"], a["running_mean"], a["running_var"]
    if mean is None or variance is None:
        raise Refused("it keeps no running statistics, so that an example's value depends on its batch")
    shape = (1, -1, *(1,) * (x.centre.dim() - 2))

    def channel(v: Form) -> Form:
        return moved(lambda p: p.reshape(shape), v)

    factor = s.smooth(s.INVERSE_ROOT, add(variance, _form(a["eps"], variance)))
    if a["weight"] is not None:
        factor = multiply(factor, a["weight"])
    out = multiply(add(x, channel(mean), -1.0), channel(factor))
    return out if a["bias"] is None else add(out, channel(a["bias"]))


# -- arithmetic


def _add(node: Node, a: Arguments, sign: float = 1.0) -> Form:
    like = a["x"] if isinstance(a["x"], Form) else a["other"]
    return add(_form(a["x"], like), _form(a["other"], like), sign * float(a.get("alpha", 1)))


def _rsub(node: Node, a: Arguments) -> Form:
    return add(_form(a["other"], a["x"]), a["x"], -float(a.get("alpha", 1)))


def _mul(node: Node, a: Arguments) -> Form:
    x, y = a["x"], a["other"]
    if not isinstance(y, (Form, Tensor)):
        return _scaled(x, float(y))
    like = next(v for v in (x, y) if isinstance(v, Form))
    return multiply(_form(x, like), _form(y, like))


def _div(node: Node, a: Arguments) -> Form:
    if isinstance(a["other"], (Form, Tensor)) or a.get("rounding_mode"):
        raise Refused("only division by a number has a rule")
    c0, c1, r, q = (None if p is None else p / float(a["other"]) for p in a["x"].parts())
    if c0 is None:
        raise ValueError("a form has a centre")
    return Form(c0, c1, None if r is None else r.abs(), a["x"].ulps + 2, q)


def _negative(node: Node, a: Arguments) -> Form:
    return _scaled(a["x"], -1.0)


def _same(node: Node, a: Arguments) -> Any:
    if isinstance(a.get("dtype"), torch.dtype) and not a["dtype"].is_floating_point:
        raise Refused(f"the cast to {a['dtype']} has no rule")
    if isinstance(a.get("other"), Tensor):
        raise Refused("the cast to whole numbers has no rule")
    return a["x"]


def _dropout(node: Node, a: Arguments) -> Form:
    if a["train"]:
        raise Refused("it is in training mode")
    return a["x"]


# -- activations


def _relu(node: Node, a: Arguments) -> Form:
    return rectified(a["x"])


def _leaky_relu(node: Node, a: Arguments) -> Form:
    leak = float(a["negative_slope"])
    if 0 <= leak <= 1:
        return rectified(a["x"], leak)
    return piecewise(lambda v: F.leaky_relu(v, leak), (0.0,), a["x"])


def _prelu(node: Node, a: Arguments) -> Form:
    """max(x, 0) - p max(-x, 0)."""
    x, weight = a["x"], a["weight"]
    if weight.centre.numel() > 1:
        weight = moved(lambda p: p.reshape(1, -1, *(1,) * (x.centre.dim() - 2)), weight)
    return add(rectified(x), multiply(weight, rectified(_scaled(x, -1.0))), -1.0)


def _clamp(node: Node, a: Arguments) -> Form:
    low, high = (a.get(k, a.get(f"{k}_val")) for k in ("min", "max"))
    if base(node) == "relu6":
        low, high = 0.0, 6.0
    if any(isinstance(v, (Form, Tensor)) for v in (low, high)):
        raise Refused("only numbers as limits have a rule")
    return piecewise(lambda v: v.clamp(low, high), [float(v) for v in (low, high) if v is not None], a["x"])


def _smooth(f: s.Smooth, node: Node, a: Arguments) -> Form:
    return s.smooth(f, a["x"])


def _gelu(node: Node, a: Arguments) -> Form:
    return s.smooth(s.GELU if a["approximate"] == "none" else s.GELU_TANH, a["x"])


def _softplus(node: Node, a: Arguments) -> Form:
    if a["beta"] <= 0:
        raise Refused("only beta > 0 has a rule")
    return s.smooth(s.softplus(float(a["beta"]), float(a["threshold"])), a["x"])


def _elu(node: Node, a: Arguments) -> Form:
    alpha = float(a.get("alpha", 1.0))
    scale, rate = float(a.get("scale", 1.0)), float(a.get("input_scale", 1.0))
    if base(node) == "selu":
        alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    if base(node) == "celu":
        rate = 1 / alpha
    if alpha <= 0 or scale <= 0 or rate <= 0:
        raise Refused("only a positive alpha has a rule")
    return s.smooth(s.elu(alpha, scale, rate), a["x"])


# -- maxima


def _maximum(node: Node, a: Arguments) -> Form:
    like = a["x"] if isinstance(a["x"], Form) else a["other"]
    x, y = torch.broadcast_tensors(_form(a["x"], like).centre, _form(a["other"], like).centre)
    if x.shape != _form(a["x"], like).centre.shape or y.shape != _form(a["other"], like).centre.shape:
        raise Refused("broadcasting has no rule here")
    return maximum(a["x"], a["other"])


# -- moving entries


def _moved(node: Node, a: Arguments) -> Any:
    return moved(calls(node, a), a["x"])


def _viewed(node: Node, a: Arguments) -> Any:
    """A reshape: the parts of a form need not lie in memory as the value that it stands for."""
    if "size" not in a:
        raise Refused("only a change of shape has a rule")
    return moved(lambda p: p.reshape(a["size"]), a["x"])


def _padded(node: Node, a: Arguments) -> Form:
    if a.get("mode", "constant") != "constant":
        return moved(calls(node, a), a["x"])
    zero = calls(node, a | {"value": 0.0})
    return moved(calls(node, a), a["x"], zero)


def _joined(node: Node, a: Arguments) -> Form:
    several = [v if isinstance(v, Form) else Form(v.double()) for v in a["tensors"]]
    return joined(lambda parts: node.target(list(parts), a["dim"]), several)


def _parted(node: Node, a: Arguments) -> list[Form]:
    f = calls(node, a)
    columns = [None if p is None else f(p) for p in a["x"].parts()]  # type: ignore[arg-type]
    pick = [[None if c is None else c[i] for c in columns] for i in range(len(columns[0] or ()))]
    return [Form(c0, c1, r, a["x"].ulps, q) for c0, c1, r, q in pick if c0 is not None]


def _item(node: Node, a: Arguments) -> Any:
    return a["a0"][a["a1"]]


def _count(node: Node, a: Arguments) -> int:
    return a["x"].centre.shape[a["dim"]]


def _embedding(node: Node, a: Arguments) -> Form:
    return moved(lambda w: F.embedding(a["indices"], w), a["weight"])


_SAME = "alias clone contiguous detach lift_fresh lift_fresh_copy positive to _to_copy type_as".split()
_MOVED = """reshape flatten unflatten permute transpose t unsqueeze squeeze expand slice
select movedim swapaxes narrow upsample_nearest1d upsample_nearest2d index_select flip roll""".split()

RULES: dict[str, Rule] = (
    {name: _same for name in _SAME}
    | {name: _moved for name in _MOVED}
    | {name: _viewed for name in ("view", "_unsafe_view")}
    | {name: _parted for name in ("split", "split_with_sizes", "chunk", "unbind", "tensor_split")}
    | {name: _joined for name in ("cat", "concat", "stack")}
    | {name: _matmul for name in ("matmul", "mm", "bmm", "mv")}
    | {name: _convolution for name in ("conv1d", "conv2d")}
    | {name: _dropout for name in ("dropout", "feature_dropout")}
    | {name: _clamp for name in ("hardtanh", "relu6", "clamp", "clamp_min", "clamp_max")}
    | {name: _elu for name in ("elu", "selu", "celu")}
    | {name: average_pool for name in ("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d")}
    | {name: max_pool for name in ("max_pool1d", "max_pool2d", "max_pool2d_with_indices")}
    | {name: adaptive_max_pool for name in ("adaptive_max_pool1d", "adaptive_max_pool2d")}
    | {name: mean for name in ("mean", "sum")}
    | {name: partial(_smooth, f) for name, f in (("tanh", s.TANH), ("sigmoid", s.SIGMOID), ("silu", s.SILU))}
    | {
        "linear": _linear,
        "addmm": _addmm,
        "batch_norm": _batch_norm,
        "add": _add,
        "sub": partial(_add, sign=-1.0),
        "rsub": _rsub,
        "mul": _mul,
        "div": _div,
        "neg": _negative,
        "relu": _relu,
        "leaky_relu": _leaky_relu,
        "prelu": _prelu,
        "gelu": _gelu,
        "softplus": _softplus,
        "maximum": _maximum,
        "constant_pad_nd": _padded,
        "pad": _padded,
        "embedding": _embedding,
        "getitem": _item,
        "sym_size": _count,
    }
)
