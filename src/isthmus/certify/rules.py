"""The table operation -> rule: how each operation of a network's graph acts on affine forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.certify.elementwise import ELEMENTWISE, reciprocal
from isthmus.certify.forms import Form, add, average, contract, divided, joined, moved, multiply
from isthmus.certify.forms import scaled as _scaled
from isthmus.certify.made import form, known, like, whole
from isthmus.certify.smooth import INVERSE_ROOT, smooth
from isthmus.certify.widened import TROUBLE, first_line
from isthmus.certify.windows import Arguments, Refused, adaptive_max_pool, average_pool, calls, max_pool, mean
from isthmus.errors import UnsupportedError
from isthmus.program.export import Node
from isthmus.program.ops import OPS, names

__all__ = ["RULES", "apply", "refusal"]

Rule = Callable[[Node, Arguments], Any]


def refusal(node: Node, why: str) -> UnsupportedError:
    """The error that names an operation and its source line."""
    return UnsupportedError(f"{node.base} ({node.where})" if node.where else node.base, why)


def apply(node: Node, values: Mapping[str, Any]) -> Any:
    """The node's result: forms for floating-point tensors, plain values for whole numbers and sizes."""
    try:
        return _applied(node, values)
    except Refused as e:
        raise refusal(node, str(e)) from None
    except TROUBLE as e:
        raise refusal(node, f"its rule does not cover this use of it: {first_line(e)}") from e


def _applied(node: Node, values: Mapping[str, Any]) -> Any:
    arguments = node.given(values)
    rule = RULES.get(node.base)
    if not any(isinstance(v, Form) for v in _leaves(list(arguments.values()))):
        exact = {k: whole(v) if k in ("x", "other") and isinstance(v, Tensor) else v for k, v in arguments.items()}
        return known(node, values, None if rule is None else partial(rule, node, exact))
    if rule is None:
        raise Refused("it has no rule for affine forms")
    return rule(node, arguments)


def _leaves(x: Any) -> list[Any]:
    return [leaf for v in x for leaf in _leaves(v)] if isinstance(x, (list, tuple)) else [x]


# -- linear layers


def _linear(node: Node, a: Arguments) -> Form:
    return contract(F.linear, a["weight"].centre.shape[-1], a["x"], a["weight"], a["bias"])


def _convolution(node: Node, a: Arguments) -> Form:
    function = F.conv2d if node.base == "conv2d" else F.conv1d
    where = {k: a[k] for k in ("stride", "padding", "dilation", "groups")}

    def f(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return function(x, w, b, **where)

    return contract(f, a["weight"].centre[0].numel(), a["x"], a["weight"], a["bias"])


def _matmul(node: Node, a: Arguments) -> Form:
    return _product(a["x"], next(a[k] for k in ("mat2", "other", "vec", "tensor") if k in a))


def _product(x: Any, y: Any) -> Form:
    x, y = (v if isinstance(v, Form) else Form(v.double()) for v in (x, y))
    return contract(lambda p, q, b: torch.matmul(p, q), x.centre.shape[-1], x, y)


def _addmm(node: Node, a: Arguments) -> Form:
    """beta x + alpha (a matrix product)."""
    pairs = (("mat1", "mat2"), ("mat", "vec"), ("batch1", "batch2"))
    product = next(_product(a[p], a[q]) for p, q in pairs if p in a)
    return add(_scaled(product, float(a["alpha"])), form(a["x"], product), float(a["beta"]))


def _outer(node: Node, a: Arguments) -> Form:
    return contract(lambda p, q, b: torch.outer(p, q), 1, form(a["x"], a["vec2"]), form(a["vec2"], a["x"]))


def _einsum(node: Node, a: Arguments) -> Form:
    """A sum of products of the entries of one tensor, or of two."""
    tensors = [v if isinstance(v, Form) else Form(v.double()) for v in a["tensors"]]
    inputs, arrow, output = a["equation"].replace(" ", "").partition("->")
    if len(tensors) > 2 or "." in inputs or not arrow:
        raise Refused("only one or two tensors, all axes named on both sides of an arrow, have a rule")
    size = {
        k: n
        for names, v in zip(inputs.split(","), tensors, strict=True)
        for k, n in zip(names, v.centre.shape, strict=True)
    }
    terms = prod(n for k, n in size.items() if k not in output)
    if len(tensors) == 1:
        return average(lambda p: torch.einsum(a["equation"], p), terms, tensors[0])
    return contract(lambda p, q, b: torch.einsum(a["equation"], p, q), terms, *tensors)


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

    factor = smooth(INVERSE_ROOT, add(variance, form(a["eps"], variance)))
    if a["weight"] is not None:
        factor = multiply(factor, a["weight"])
    out = multiply(add(x, channel(mean), -1.0), channel(factor))
    return out if a["bias"] is None else add(out, channel(a["bias"]))


# -- arithmetic


def _add(node: Node, a: Arguments, sign: float = 1.0) -> Form:
    like = a["x"] if isinstance(a["x"], Form) else a["other"]
    return add(form(a["x"], like), form(a["other"], like), sign * float(a.get("alpha", 1)))


def _rsub(node: Node, a: Arguments) -> Form:
    return add(form(a["other"], a["x"]), a["x"], -float(a.get("alpha", 1)))


def _mul(node: Node, a: Arguments) -> Form:
    x, y = a["x"], a["other"]
    if not isinstance(y, (Form, Tensor)):
        return _scaled(x, float(y))
    like = next(v for v in (x, y) if isinstance(v, Form))
    return multiply(form(x, like), form(y, like))


def _div(node: Node, a: Arguments) -> Form:
    if a.get("rounding_mode"):
        raise Refused("only division that does not round has a rule")
    x, y = a["x"], a["other"]
    if not isinstance(y, (Form, Tensor)):
        return divided(x, float(y))
    like = next(v for v in (x, y) if isinstance(v, Form))
    return multiply(form(x, like), reciprocal(form(y, like)))


def _negative(node: Node, a: Arguments) -> Form:
    return _scaled(a["x"], -1.0)


def _cumulated(node: Node, a: Arguments) -> Form:
    return average(calls(node, a | {"dtype": None}), a["x"].centre.shape[a["dim"]], a["x"])


def _same(node: Node, a: Arguments) -> Any:
    if isinstance(a.get("dtype"), torch.dtype) and not a["dtype"].is_floating_point:
        raise Refused(f"the cast to {a['dtype']} has no rule")
    if isinstance(a.get("other"), Tensor):
        raise Refused("the cast to whole numbers has no rule")
    return whole(a["x"]) if isinstance(a["x"], Tensor) else a["x"]


def _dropout(node: Node, a: Arguments) -> Form:
    if a["train"]:
        raise Refused("it is in training mode")
    return a["x"]


# -- moving entries


def _moved(node: Node, a: Arguments) -> Any:
    return moved(calls(node, a), a["x"])


def _viewed(node: Node, a: Arguments) -> Any:
    """A reshape: the parts of a form need not lie in memory as the value that it stands for."""
    if "size" not in a:
        raise Refused("only a change of shape has a rule")
    return moved(lambda p: p.reshape(a["size"]), a["x"])


def _expanded(node: Node, a: Arguments) -> Form:
    shape = a["other"].centre.shape if isinstance(a["other"], Form) else a["other"].shape
    return moved(lambda p: p.expand(shape), a["x"])


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
    return a["x"][a["a1"]]


def _count(node: Node, a: Arguments) -> int:
    return a["x"].centre.shape[a["dim"]]


def _embedding(node: Node, a: Arguments) -> Form:
    return moved(lambda w: F.embedding(a["indices"], w), a["weight"])


RULES: dict[str, Rule] = (
    dict.fromkeys(names("identity", "cast"), _same)
    | dict.fromkeys([name for name in names("identity") if OPS[name].random], _dropout)
    | dict.fromkeys(names("reshape", "squeeze", "shape"), _moved)
    | dict.fromkeys(("view", "_unsafe_view"), _viewed)
    | dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d"), _moved)
    | dict.fromkeys(names("part"), _parted)
    | dict.fromkeys(("cat", "concat", "stack"), _joined)
    | dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul)
    | dict.fromkeys(("addmm", "addmv", "baddbmm"), _addmm)
    | dict.fromkeys(names("affine"), _convolution)
    | dict.fromkeys(("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"), like)
    | dict.fromkeys(("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"), average_pool)
    | dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool2d_with_indices"), max_pool)
    | dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d"), adaptive_max_pool)
    | dict.fromkeys(("mean", "sum"), mean)
    | ELEMENTWISE
    | {
        "linear": _linear,
        "einsum": _einsum,
        "outer": _outer,
        "batch_norm": _batch_norm,
        "add": _add,
        "sub": partial(_add, sign=-1.0),
        "rsub": _rsub,
        "mul": _mul,
        "div": _div,
        "neg": _negative,
        "cumsum": _cumulated,
        "expand_as": _expanded,
        "constant_pad_nd": _padded,
        "pad": _padded,
        "embedding": _embedding,
        "getitem": _item,
        "sym_size": _count,
    }
)
