"""Rules for choices: which entries are the greatest, and what is done with them, as where experts are asked.

A choice is a whole number, which has no form: it must be the same for all that a form stands for. Where it may not be,
the interval has no bound (``Open``), and halves of it may.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from isthmus.certify.arithmetic import add, average, contract, joined, moved, scaled
from isthmus.certify.forms import Form, Open, Refused, half_width
from isthmus.certify.made import form
from isthmus.certify.widened import grouped_product
from isthmus.certify.windows import Arguments, calls
from isthmus.program.export import Node

__all__ = ["CHOICES"]


def _ranked(x: Form, k: int, dim: int, largest: bool) -> Tensor:
    """The places of the k greatest (or least) entries along an axis, the first ones first."""
    order = x.centre.sort(dim=dim, descending=largest, stable=True).indices
    n, x = x.centre.shape[dim], scaled(x, 1.0 if largest else -1.0)
    first = torch.arange(n - 1, device=order.device).clamp(max=k - 1)  # each chosen one, and the last before all others
    over = moved(lambda p: p.gather(dim, order.index_select(dim, first)), x)
    under = moved(lambda p: p.gather(dim, order.narrow(dim, 1, n - 1)), x)
    gap = add(over, under, -1.0).settled()
    if not bool((gap.centre > half_width(gap)).all()):
        raise Open("which entries are the greatest depends on t, or on rounding")
    return order.narrow(dim, 0, k).contiguous()


def _topk(node: Node, a: Arguments) -> tuple[Form, Tensor]:
    if not a["sorted"]:
        raise Refused("without an order it has no rule")
    at = _ranked(a["x"], a["k"], a["dim"], a["largest"])
    return moved(lambda p: p.gather(a["dim"], at), a["x"]), at


def _sort(node: Node, a: Arguments) -> Any:
    at = _ranked(a["x"], a["x"].centre.shape[a["dim"]], a["dim"], a["descending"])
    return at if node.base == "argsort" else (moved(lambda p: p.gather(a["dim"], at), a["x"]), at)


def _first(largest: bool, node: Node, a: Arguments) -> Tensor:
    """Where the greatest (or least) entry is."""
    if a.get("dim") is None:
        raise Refused("only along an axis has it a rule")
    at = _ranked(a["x"], 1, a["dim"], largest)
    return at if a.get("keepdim") else at.squeeze(a["dim"])


def _counted(node: Node, a: Arguments) -> Form:
    """How often whole numbers occur."""
    if not a["x"].exact:
        raise Refused("how often numbers occur that depend on t has no rule")
    return Form(calls(node, a)(a["x"].centre))


def _written(node: Node, a: Arguments) -> Form:
    """Entries written into a tensor at places that are fixed."""
    source = next(k for k in ("src", "source", "values", "value") if k in a)
    like = a["x"] if isinstance(a["x"], Form) else a[source]
    if a.get("accumulate") or a.get("reduce") is not None:
        raise Refused("only writing has a rule")
    later = {k: v for k, v in a.items() if k not in ("x", source)}
    pair = [form(a["x"], like), form(a[source], like)]
    return joined(lambda p: node.target(p[0], **later, **{source: p[1]}), pair)


def _added(node: Node, a: Arguments) -> Form:
    """Entries added to those of a tensor, at places that are fixed."""
    source = "src" if "src" in a else "source"
    like = a["x"] if isinstance(a["x"], Form) else a[source]
    x, several = form(a["x"], like), form(a[source], like)
    zeros = torch.zeros_like(x.centre)
    terms = several.centre.shape[a["dim"]]
    out = average(lambda p: node.target(zeros, a["dim"], a["index"], p), terms, several)
    return add(x, out, float(a.get("alpha", 1)))


def _grouped(node: Node, a: Arguments) -> Form:
    """Rows in groups, each by a matrix of its own."""
    x, w, ends = a["x"], a["weight"] if "weight" in a else a["mat2"], a["offs"]
    if x.centre.dim() != 2 or w.centre.dim() != 3 or ends is None or a.get("bias") is not None:
        raise Refused("only rows by several matrices have a rule")
    return contract(lambda p, q, b: grouped_product(p, q, ends), w.centre.shape[1], x, w)


CHOICES: dict[str, Callable[[Node, Arguments], Any]] = {
    "topk": _topk,
    "sort": _sort,
    "argsort": _sort,
    "argmax": partial(_first, True),
    "argmin": partial(_first, False),
    "histc": _counted,
    "scatter": _written,
    "index_put": _written,
    "scatter_add": _added,
    "index_add": _added,
    "_grouped_mm": _grouped,
    "grouped_mm_fallback": _grouped,
}
