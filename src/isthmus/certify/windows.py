"""Rules for pooling, and what all rules share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
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


def axes_of(node: Node) -> int:
    """Over how many axes windows go, which the name says: 2 for max_pool2d."""
    return int(next(c for c in node.base if c.isdigit()))


def average_pool(node: Node, a: Arguments) -> Form:
    """Average and adaptive average pooling."""
    n, shape = axes_of(node), a["x"].centre.shape
    terms = prod(_list(a["kernel_size"], n)) if "kernel_size" in a else prod(shape[-n:])
    return average(calls(node, a), terms, a["x"])


def max_pool(node: Node, a: Arguments) -> Any:
    """The greatest of the entries of each window, two by two."""
    x, n = a["x"], axes_of(node)
    kernel, stride, padding, dilation = (_list(a[k], n) for k in ("kernel_size", "stride", "padding", "dilation"))
    stride = stride or kernel
    if any(padding) or a["ceil_mode"]:
        reach = [step * (count - 1) + gap * (k - 1) + 1 for step, count, gap, k in zip(
            stride, _counts(node, a), dilation, kernel, strict=True
        )]  # fmt: skip
        # with ceil_mode the last windows may end beyond the padding
        behind = [max(r - size - p, 0) for r, size, p in zip(reach, x.centre.shape[-n:], padding, strict=True)]
        pads = [v for pair in zip(reversed(padding), reversed(behind), strict=True) for v in pair]
        x = x.settled()
        below = -(2 * float(x.size().max()) + 1)  # below everything, so that the chord of a difference with it is flat
        x = moved(partial(F.pad, pad=pads, value=below), x, partial(F.pad, pad=pads))
    out = _windows(x, kernel, stride, dilation)
    return (out, None) if node.shapes else out


def _counts(node: Node, a: Arguments) -> list[int]:
    """How many windows there are along each axis."""
    found: Any = calls(node, a)(torch.zeros_like(a["x"].centre))
    first: Tensor = found[0] if node.shapes else found
    if not bool(first.isfinite().all()):
        raise Refused("a window of padding alone has no greatest entry")
    return list(first.shape[-axes_of(node) :])


def _list(value: Any, n: int) -> list[int]:
    value = [value] if isinstance(value, int) else list(value)
    return value * n if len(value) == 1 else value


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
    """As many windows as are asked for, which may overlap; the second result, where the maxima are, has no form."""
    x, n = a["x"], axes_of(node)
    for axis, count in zip(range(-n, 0), _list(a["output_size"], n), strict=True):
        size = x.centre.shape[axis]
        starts = [i * size // count for i in range(count)]
        ends = [-(-(i + 1) * size // count) for i in range(count)]
        longest = max(q - p for p, q in zip(starts, ends, strict=True))
        # a shorter window takes its last entry more than once
        at = [torch.tensor([min(p + j, q - 1) for p, q in zip(starts, ends, strict=True)]) for j in range(longest)]
        x = reduced(maximum, [moved(lambda p, i=i, d=axis: p.index_select(d, i.to(p.device)), x) for i in at])
    return (x, None)
