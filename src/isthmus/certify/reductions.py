"""Rules for reductions over whole axes: sums, maxima, products, variances, logarithms of sums of exponentials."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

from isthmus.certify.arithmetic import average, divided, moved, multiply, scaled, squared
from isthmus.certify.elementwise import ELEMENTWISE
from isthmus.certify.forms import UNIT, Form, Refused, cut, half_width, known
from isthmus.certify.kinks import maximum
from isthmus.certify.norms import centred
from isthmus.certify.smooth import ROOT, smooth
from isthmus.certify.softmax import logsumexp
from isthmus.certify.windows import Arguments, calls, reduced
from isthmus.program.export import Node

__all__ = ["REDUCTIONS", "by_twos", "root"]


def _axes(a: Arguments) -> list[int]:
    """The axes that are reduced: all where none is named."""
    n, dims = a["x"].centre.dim(), a.get("dim")
    dims = [dims] if isinstance(dims, int) else dims or range(n)
    return [d % n for d in dims]


def _count(a: Arguments) -> int:
    return prod(a["x"].centre.shape[d] for d in _axes(a))


def _last(a: Arguments) -> Form:
    """The axes that are reduced as one, behind the others."""
    axes = _axes(a)
    behind = tuple(range(-len(axes), 0))
    return moved(lambda p: p.movedim(axes, behind).flatten(-len(axes)) if axes else p.unsqueeze(-1), a["x"])


def _kept(out: Form, a: Arguments) -> Form:
    """With axes of size 1 where they are asked for."""
    if not a.get("keepdim"):
        return out
    shape = [1 if d in _axes(a) else s for d, s in enumerate(a["x"].centre.shape)]
    return moved(lambda p: p.reshape(shape), out)


def _mean(node: Node, a: Arguments) -> Any:
    """A mean, a sum, or running sums; in whole numbers of what is exact."""
    if (dtype := a.get("dtype")) is not None and not dtype.is_floating_point:
        if not a["x"].exact:
            raise Refused("a sum in whole numbers of what is not constant has no rule")
        return calls(node, a)(a["x"].centre)
    return average(calls(node, a | {"dtype": None}), _count(a), a["x"])


def by_twos(f: Callable[[Form, Form], Form], a: Arguments, sign: float = 1.0) -> Form:
    """f of all entries along the axes, two by two."""
    x = scaled(_last(a), sign)
    entries = [moved(lambda p, i=i: p[..., i], x) for i in range(x.centre.shape[-1])]
    return _kept(scaled(reduced(f, entries), sign), a)


def _greatest(sign: float, node: Node, a: Arguments) -> Any:
    """The greatest (or least) entry along axes; where it is, which torch says too for one axis, has no form."""
    if "other" in a:
        return ELEMENTWISE[f"{node.base}imum"](node, a)
    out = by_twos(maximum, a, sign)
    return (out, None) if node.base in ("max", "min") and "dim" in a else out


def _product(node: Node, a: Arguments) -> Form:
    return by_twos(multiply, a)


def _logsumexp(node: Node, a: Arguments) -> Form:
    return _kept(moved(lambda p: p.squeeze(-1), logsumexp(_last(a), -1)), a)


def _variance(node: Node, a: Arguments) -> Form:
    correction = a.get("correction", int(a.get("unbiased", True)))
    left = _count(a) - (1 if correction is None else float(correction))
    if left <= 0:
        raise Refused(f"a correction of as much as the number of entries, {_count(a)}, leaves no number")
    total = average(lambda p: p.sum(-1), _count(a), squared(centred(_last(a), -1)))
    out = _kept(divided(total, left), a)
    return root(out) if node.base == "std" else out


def root(x: Form) -> Form:
    """The root of what is nowhere below 0, whatever its form allows."""
    x = x.rounded()
    above = (x.centre + half_width(x)).clamp_(min=0) * (1 + 8 * UNIT)
    return cut(smooth(ROOT, x), known(x), above.sqrt() * (1 + 4 * UNIT))


def _with_mean(node: Node, a: Arguments) -> tuple[Form, Form]:
    """A variance, or its root, and the mean."""
    spread = _variance(node, a)
    mean = average(lambda p: p.mean(-1), _count(a), _last(a))
    return (root(spread) if node.base == "std_mean" else spread), _kept(mean, a)


REDUCTIONS: dict[str, Callable[[Node, Arguments], Any]] = (
    dict.fromkeys(("mean", "sum", "cumsum"), _mean)
    | dict.fromkeys(("amax", "max"), partial(_greatest, 1.0))
    | dict.fromkeys(("amin", "min"), partial(_greatest, -1.0))
    | dict.fromkeys(("var", "std"), _variance)
    | dict.fromkeys(("var_mean", "std_mean"), _with_mean)
    | {"prod": _product, "logsumexp": _logsumexp}
)
