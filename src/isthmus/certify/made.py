"""Values that depend on no weights and no inputs: sizes, whole numbers, and tensors made from numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import torch
from torch import Tensor

from isthmus.certify.forms import TINY, UNIT, Form, Refused
from isthmus.certify.windows import Arguments, calls
from isthmus.program.export import Node

_STEPS = ("arange", "linspace")


def known(node: Node, values: Mapping[str, Any], rule: Callable[[], Any] | None) -> Any:
    """The result of an operation that reads no form. `rule`: its rule on forms.

    Whole numbers and sizes are computed as they stand, tensors made from numbers in float64 whatever type they were
    asked for. Any other floating-point result is that of the operation's rule on exact numbers.
    """
    args, kwargs = node.bind(values)
    made = node.kind in ("constant", "table")
    if made and _real(kwargs.get("dtype")):
        kwargs["dtype"] = torch.float64
    out = node.target(*args, **kwargs)
    if isinstance(out, Tensor) and out.is_complex():
        raise Refused("complex numbers have no rule")
    if made or not isinstance(out, Tensor) or not out.is_floating_point():
        return _formed(node.base, out)
    if rule is None:
        raise Refused("it has no rule for affine forms")
    return rule()


def like(node: Node, a: Arguments) -> Any:
    """Zeros, ones or a number in the shape of a form."""
    given = a | {"dtype": torch.float64} if _real(a.get("dtype")) else a
    return _formed(node.base, calls(node, given)(a["x"].centre))


def whole(x: Tensor) -> Form:
    """Whole numbers as real ones; those above 2^53 are rounded."""
    exact = x.is_floating_point() or x.dtype == torch.bool or not bool((x.abs() > 1 << 53).any())
    return Form(x.double(), None, None, 0 if exact else 1)


def form(x: Any, like: Form) -> Form:
    """A form of anything that stands beside one: a form, a tensor of exact numbers, a number."""
    if isinstance(x, Form):
        return x
    if isinstance(x, Tensor):
        return whole(x)
    return number(like.centre.new_full((), float(x)))


def number(x: Tensor) -> Form:
    """The form of floating-point numbers; -infinity is dropped, other infinities are refused."""
    x = x.double()
    dropped = x == -inf
    if not bool((x.isfinite() | dropped).all()):
        raise Refused("infinite entries have no rule")
    return Form(x.masked_fill(dropped, 0.0), dropped=dropped) if bool(dropped.any()) else Form(x)


def _real(dtype: torch.dtype | None) -> bool:
    return dtype is not None and dtype.is_floating_point


def _formed(name: str, out: Any) -> Any:
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return out
    if name not in _STEPS:
        return number(out)
    out = out.double()
    largest = float(out.abs().max()) if out.numel() else 0.0
    return Form(out, None, torch.full_like(out, 16 * UNIT * largest + TINY))
