"""Rules for pooling, and what all rules share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from isthmus.certify.arithmetic import average, moved
from isthmus.certify.forms import Form, Refused
from isthmus.certify.kinks import maximum
from isthmus.program.export import Node

__all__ = ["Arguments", "adaptive_max_pool", "average_pool", "calls", "max_pool", "reduced"]

Arguments = dict[str, Any]


def calls(node: Node, a: Arguments) -> Callable[[Tensor], Tensor]:
    """The node's own operation, as a function of its tensor argument."""
    later = {k: v for k, v in a.items() if k != "x"}
    return lambda x: node.target(x, **later)


def average_pool(node: Node, a: Arguments) -> Form:
    """Average and adaptive average pooling."""
    n, shape = 1 if "1d" in node.base else 2, a["x"].centre.shape
    terms = prod(_list(a["kernel_size"], n)) if "kernel_size" in a else prod(shape[-n:])
    return average(calls(node, a), terms, a["x"])


def max_pool(node: Node, a: Arguments) -> Any:
    """The greatest of the entries of each window, two by two."""
    x, n = a["x"], 1 if "1d" in node.base else 2
    kernel, stride, padding, dilation = (_list(a[k], n) for k in ("kernel_size", "stride", "padding", "dilation"))
    if a["ceil_mode"]:
        raise Refused("ceil_mode has no rule")
    if any(padding):
        x = x.settled()
        below = -(2 * float(x.size().max()) + 1)  # below everything, so that the chord of a difference with it is flat
        x = moved(partial(F.pad, pad=_pads(padding), value=below), x, partial(F.pad, pad=_pads(padding)))
    out = _windows(x, kernel, stride or kernel, dilation)
    return (out, None) if node.shapes else out


def _list(value: Any, n: int) -> list[int]:
    value = [value] if isinstance(value, int) else list(value)
    return value * n if len(value) == 1 else value


def _pads(padding: list[int]) -> list[int]:
    return [p for size in reversed(padding) for p in (size, size)]


def _windows(x: Form, kernel: list[int], stride: list[int], dilation: list[int]) -> Form:
    """One axis after the other: the maximum over a window is the maximum over its rows."""
    for i, (k, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
        axis = x.centre.dim() - len(kernel) + i
        count = (x.centre.shape[axis] - gap * (k - 1) - 1) // step + 1
        entries = []
        for j in range(k):
            last = gap * j + step * (count - 1) + 1
            at = tuple(slice(None) if d != axis else slice(gap * j, last, step) for d in range(x.centre.dim()))
            entries.append(moved(lambda p, at=at: p[at], x))
        x = reduced(maximum, entries)
    return x


def reduced(f: Callable[[Form, Form], Form], several: list[Form]) -> Form:
    """f of all, two by two."""
    while len(several) > 1:
        pairs = [f(p, q) for p, q in zip(several[::2], several[1::2], strict=False)]
        several = pairs + ([several[-1]] if len(several) % 2 else [])
    return several[0]


def adaptive_max_pool(node: Node, a: Arguments) -> Any:
    """Windows of equal size; the second result, where the maxima are, has no form."""
    x, n = a["x"], 1 if "1d" in node.base else 2
    target, size = _list(a["output_size"], n), x.centre.shape[-n:]
    if any(have % want for have, want in zip(size, target, strict=True)):
        raise Refused(f"windows of unequal size ({tuple(size)} to {tuple(target)}) have no rule")
    kernel = [have // want for have, want in zip(size, target, strict=True)]
    return (_windows(x, kernel, kernel, [1] * n), None)
