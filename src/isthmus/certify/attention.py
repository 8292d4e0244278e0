"""Rules for softmax and attention."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from isthmus.certify.arithmetic import add, contract, moved, scaled
from isthmus.certify.forms import Form, Refused
from isthmus.certify.made import form
from isthmus.certify.softmax import log_softmax, softmax
from isthmus.certify.windows import Arguments
from isthmus.program.export import Node

__all__ = ["ATTENTION"]


def _softmax(node: Node, a: Arguments) -> Form:
    return softmax(a["x"], a["dim"])


def _log_softmax(node: Node, a: Arguments) -> Form:
    return log_softmax(a["x"], a["dim"])


def _attention(node: Node, a: Arguments) -> Form:
    """softmax(q k' / sqrt(d) + mask) v; a query whose keys are all masked gives 0, as in torch."""
    if a["dropout_p"]:
        raise Refused("it has dropout")
    q, k, v = (form(a[name], a["query"]) for name in ("query", "key", "value"))
    if a["enable_gqa"]:
        k, v = (_repeated(x, q.centre.shape[-3]) for x in (k, v))
    scale = 1 / sqrt(q.centre.shape[-1]) if a["scale"] is None else float(a["scale"])
    keys = moved(lambda p: p.transpose(-2, -1), k)
    scores = scaled(contract(_matmul, q.centre.shape[-1], q, keys), scale)
    scores, nothing = _masked(scores, a["attn_mask"], a["is_causal"])
    out = averaged(softmax(scores, -1), v)
    if nothing is None:
        return out
    return moved(lambda p: p.masked_fill(nothing, 0.0), out)


def averaged(p: Form, v: Form) -> Form:
    """p v for rows p that sum to 1: v less anything that all keys share is averaged, and that is added again."""
    shared = Form(v.centre.mean(-2, keepdim=True))
    return add(contract(_matmul, v.centre.shape[-2], p, add(v, shared, -1.0)), shared)


def _masked(scores: Form, mask: Any, causal: bool) -> tuple[Form, Tensor | None]:
    """The scores with what is masked dropped, and the queries (if any) that see nothing, which keep all keys."""
    if isinstance(mask, Form):
        scores = add(scores, mask)
    dropped = scores.dropped
    if isinstance(mask, Tensor):
        dropped = mask.logical_not()
    if causal:
        shape = scores.centre.shape[-2:]
        dropped = torch.ones(shape, dtype=torch.bool, device=scores.centre.device).triu(1)
    if dropped is None:
        return scores, None
    dropped = dropped.expand(scores.centre.shape)
    nothing = dropped.all(-1, keepdim=True)
    kept = scores.kept()
    scores = Form(kept.centre, kept.slope, kept.radius, kept.ulps, kept.bend, dropped & ~nothing, kept.origin)
    return scores, nothing if bool(nothing.any()) else None


def _repeated(x: Form, heads: int) -> Form:
    return moved(lambda p: p.repeat_interleave(heads // p.shape[-3], -3), x)


def _matmul(p: Tensor, q: Tensor, b: Tensor | None) -> Tensor:
    return torch.matmul(p, q)


ATTENTION = {"softmax": _softmax, "log_softmax": _log_softmax, "scaled_dot_product_attention": _attention}
