"""What has no rule is refused by name, and the path is measured, not proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import isthmus as im
from isthmus.certify.forms import Form, Refused
from tests.certify.functions import F64, ruled
from tests.problems import blobs, random_params
from tests.structure.models import Lambda, between

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "three tensors": (lambda h: torch.einsum("bi,bi,bi->bi", h, h, h), "only one or two tensors"),
    "dots": (lambda h: torch.einsum("...i,...i->...i", h, h), "all axes named on both sides"),
    "division that rounds": (lambda h: torch.div(h, 3, rounding_mode="floor"), "only division that does not round"),
    "a cast": (lambda h: h * h.long(), "the cast to torch.int64 of what is not constant has no rule"),
    "decimals": (lambda h: torch.round(h, decimals=1), "only rounding to whole numbers has a rule"),
    "a negative beta": (lambda h: F.softplus(h, beta=-1.0), "only beta > 0 has a rule"),
    "a negative alpha": (lambda h: F.elu(h, alpha=-1.0), "only a positive alpha has a rule"),
    "a negative alpha of CELU": (lambda h: F.celu(h, alpha=-1.0), "only a positive alpha has a rule"),
    "a tensor as exponent": (lambda h: h.square().add(1) ** h, "only a number as exponent has a rule"),
    "a base that is a number": (lambda h: 2.0**h, "only a number as exponent has a rule"),
    "no order": (lambda h: h * h.topk(2, sorted=False).values.sum(1, keepdim=True), "without an order it has no rule"),
    "complex numbers": (lambda h: h * torch.view_as_real(torch.tensor([1j])).sum(), "a complex tensor: it has no rule"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_reason_stands_in_the_certificate(name: str) -> None:
    f, why = FUNCTIONS[name]
    module = between(Lambda(f)).double().eval()
    x, y = blobs(4, (4,), 3)
    c = im.certify(im.Objective(module, data=(x, y)), im.Path.through([random_params(module, k) for k in (1, 2)]))
    assert not c.proved
    assert why in c.segments[0].why


DROPPED = Form(torch.zeros(3, dtype=F64), dropped=torch.tensor([True, False, False]))
X, W = Form(torch.arange(6, dtype=F64).reshape(2, 3)), Form(torch.ones(2, 3, 2, dtype=F64))
RNN = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "train": False, "bidirectional": False, "batch_first": True}
RNN |= {"x": Form(torch.ones(1, 2, 3, dtype=F64)), "hx": Form(torch.ones(1, 1, 2, dtype=F64)), "params": [X] * 3}
BY_RULE: dict[str, tuple[str, dict[str, Any], str]] = {
    "random slopes": ("rrelu", {"x": X, "training": True, "lower": 0.1, "upper": 0.3}, "in training mode"),
    "dropout": ("dropout", {"x": X, "train": True, "p": 0.5}, "in training mode"),
    "no axis": ("argmax", {"x": X, "dim": None}, "only along an axis"),
    "counts of what moves": ("histc", {"x": Form(X.centre, X.centre)}, "depend on t has no rule"),
    "a negative eps": ("rms_norm", {"x": X, "normalized_shape": [3], "weight": None, "eps": -0.1}, "negative eps"),
    "statistics of the batch": (
        "batch_norm", {"x": X, "training": True, "running_mean": None, "running_var": None}, "in training mode"
    ),
    "no statistics": (
        "batch_norm", {"x": X, "training": False, "running_mean": None, "running_var": None}, "keeps no running"
    ),
    "-infinity by a negative number": ("mul", {"x": DROPPED, "other": -2}, "cannot be multiplied"),
    "-infinity by a negative divisor": ("div", {"x": DROPPED, "other": -2}, "cannot be divided"),
    "a mask that moves": ("where", {"condition": X, "x": X, "other": X}, "only a mask that does not depend on t"),
    "the type of whole numbers": ("type_as", {"x": X, "other": torch.arange(2)}, "cast to whole numbers has no rule"),
    "a view of bits": ("view", {"x": X, "dtype": torch.int64}, "only a change of shape"),
    "rows in groups without ends": ("_grouped_mm", {"x": X, "mat2": W, "offs": None}, "rows by several matrices"),
    "layers with dropout": ("rnn_tanh", RNN | {"train": True, "dropout": 0.5}, "training mode, with dropout"),
    "packed sequences": ("rnn_tanh", RNN | {"batch_sizes": torch.ones(2)}, "packed sequences"),
    "projections": ("lstm", RNN | {"hx": [X, X], "params": [X] * 5}, "projections have no rule"),
    "an infinite number": ("add", {"x": X, "other": torch.inf, "alpha": 1}, "infinite entries"),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_RULE)
def test_rules_trust_no_one_who_calls_them(name: str) -> None:
    operation, arguments, why = BY_RULE[name]
    with pytest.raises(Refused, match=why):
        ruled(operation, getattr(torch, operation, None))(**arguments)
