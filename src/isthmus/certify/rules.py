"""The table operation -> rule: how each operation of a network's graph acts on affine forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.certify.arithmetic import add, average, contract, divided, joined, moved, multiply
from isthmus.certify.arithmetic import scaled as _scaled
from isthmus.certify.attention import ATTENTION
from isthmus.certify.choices import CHOICES
from isthmus.certify.elementwise import ELEMENTWISE, reciprocal
from isthmus.certify.forms import Form, Open, Refused, Undecided, half_width
from isthmus.certify.layers import LAYERS
from isthmus.certify.made import form, known, like, whole
from isthmus.certify.norms import NORMS
from isthmus.certify.recurrent import RECURRENT
from isthmus.certify.reductions import REDUCTIONS
from isthmus.certify.widened import TROUBLE, first_line
from isthmus.certify.windows import Arguments, adaptive_max_pool, average_pool, calls, max_pool
from isthmus.errors import UnsupportedError
from isthmus.program.export import Node
from isthmus.program.ops import OPS, names

__all__ = ["RULES", "apply", "refusal"]

Rule = Callable[[Node, Arguments], Any]


def refusal(node: Node, why: str, kind: type[UnsupportedError] = UnsupportedError) -> UnsupportedError:
    """The error that names an operation and its source line."""
    return kind(f"{node.base} ({node.where})" if node.where else node.base, why)


def apply(node: Node, values: Mapping[str, Any]) -> Any:
    """The node's result: forms for floating-point tensors, plain values for whole numbers and sizes.

    Errors: ``Undecided`` where a smaller interval may do, else ``UnsupportedError``.
    """
    try:
        out = _applied(node, values)
    except Open as e:
        raise refusal(node, str(e), Undecided) from None
    except Refused as e:
        raise refusal(node, str(e)) from None
    except TROUBLE as e:
        raise refusal(node, f"its rule does not cover this use of it: {first_line(e)}") from e
    if isinstance(out, Form) and out.origin is not None:
        out.origin.label = node.where or node.base
    return out


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
    w = a["weight"]
    return contract(F.linear, w.centre.shape[-1], a["x"], w, a["bias"], 1)


def _convolution(node: Node, a: Arguments) -> Form:
    """Also a transposed one: an output reads at most every input channel at every place of the kernel."""
    function, places = getattr(F, node.base), ("stride", "padding", "output_padding", "dilation", "groups")
    where, w = {k: a[k] for k in places if k in a}, a["weight"].centre

    def f(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return function(x, w, b, **where)

    terms = w.numel() // w.shape[1] if "transpose" in node.base else w[0].numel()
    return contract(f, terms, a["x"], a["weight"], a["bias"])


def _matmul(node: Node, a: Arguments) -> Form:
    return _product(a["x"], next(a[k] for k in ("mat2", "other", "vec", "tensor") if k in a))


def _product(x: Any, y: Any) -> Form:
    x, y = (v if isinstance(v, Form) else Form(v.double()) for v in (x, y))
    return contract(
        lambda p, q, b: torch.matmul(p, q), x.centre.shape[-1], x, y, axis=0 if y.centre.dim() == 2 else None
    )


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
    size: dict[str, int] = {}
    for letters, v in zip(inputs.split(","), tensors, strict=True):
        size |= zip(letters, v.centre.shape, strict=True)
    terms = prod(n for k, n in size.items() if k not in output)
    if len(tensors) == 1:
        return average(lambda p: torch.einsum(a["equation"], p), terms, tensors[0])
    return contract(lambda p, q, b: torch.einsum(a["equation"], p, q), terms, tensors[0], tensors[1])


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


def _same(node: Node, a: Arguments) -> Any:
    dtype = a.get("dtype")
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        if isinstance(a["x"], Form) and a["x"].exact:
            return a["x"].centre.to(dtype)
        raise Refused(f"the cast to {dtype} of what is not constant has no rule")
    if isinstance(a.get("other"), Tensor):
        raise Refused("the cast to whole numbers has no rule")
    return whole(a["x"]) if isinstance(a["x"], Tensor) else a["x"]


def _dropout(node: Node, a: Arguments) -> Form:
    if a["train"]:
        raise Refused("it is in training mode")
    return a["x"]


def _compared(node: Node, a: Arguments) -> Tensor:
    """A comparison that comes out the same for all values that its sides can have."""
    like = a["x"] if isinstance(a["x"], Form) else a["other"]
    x, other = (form(a[k], like) for k in ("x", "other"))
    compare = getattr(torch, node.base)
    if x.exact and other.exact:
        return compare(x.centre, other.centre)
    gap = add(x, other, -1.0).settled()
    if not bool((gap.centre.abs() > half_width(gap)).all()):
        raise Open("which side is larger depends on t, or on rounding")
    return compare(gap.centre, 0.0)


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


def _filled(node: Node, a: Arguments) -> Form:
    like = a["x"] if isinstance(a["x"], Form) else a["value"]
    return moved(lambda p: p.expand(like.centre.shape), form(a["value"], like))


def _scattered(node: Node, a: Arguments) -> Form:
    """One tensor written into a part of another."""
    like = a["x"] if isinstance(a["x"], Form) else a["src"]
    later = {k: v for k, v in a.items() if k not in ("x", "src")}
    return joined(lambda pair: node.target(*pair, **later), [form(a["x"], like), form(a["src"], like)])


def _parted(node: Node, a: Arguments) -> list[Form]:
    f = calls(node, a)
    count = len(f(a["x"].centre))  # type: ignore[arg-type]
    return [moved(lambda p, i=i: f(p)[i], a["x"]) for i in range(count)]  # type: ignore[index]


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
    | dict.fromkeys([name for name in names("resize") if "nearest" in name], _moved)
    | dict.fromkeys(names("part"), _parted)
    | dict.fromkeys(("cat", "concat", "stack"), _joined)
    | dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul)
    | dict.fromkeys(("addmm", "addmv", "baddbmm"), _addmm)
    | dict.fromkeys(names("affine"), _convolution)
    | dict.fromkeys(("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"), like)
    | {f"{kind}avg_pool{n}d": average_pool for kind in ("", "adaptive_") for n in (1, 2, 3)}
    | dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices"), max_pool)
    | {f"adaptive_max_pool{n}d": adaptive_max_pool for n in (1, 2, 3)}
    | dict.fromkeys(("conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution)
    | dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), _compared)
    | dict.fromkeys(("slice_scatter", "select_scatter"), _scattered)
    | ATTENTION
    | CHOICES
    | ELEMENTWISE
    | LAYERS
    | NORMS
    | RECURRENT
    | REDUCTIONS
    | {
        "linear": _linear,
        "einsum": _einsum,
        "outer": _outer,
        "add": _add,
        "sub": partial(_add, sign=-1.0),
        "rsub": _rsub,
        "mul": _mul,
        "div": _div,
        "true_divide": _div,
        "neg": _negative,
        "expand_as": _expanded,
        "constant_pad_nd": _padded,
        "pad": _padded,
        "embedding": _embedding,
        "gather": _moved,
        "fill": _filled,
        "getitem": _item,
        "sym_size": _count,
    }
)
