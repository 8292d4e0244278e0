"""Functions that have rules, beside the rules themselves; forms to put in, and a check of what comes out."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.certify.forms import Form
from isthmus.certify.norms import normalised
from isthmus.certify.rules import RULES
from tests.certify.test_forms import at, full

F64 = torch.float64
Shape = tuple[int, ...]
Values = Callable[..., Any]


def node(name: str, target: Any = None) -> Any:
    return SimpleNamespace(base=name, target=target, where="", shapes=())


def ruled(_name: str, _target: Any = None, **options: Any) -> Values:
    """The rule of an operation as a function of its forms, whose names stand in front."""
    return lambda **forms: RULES[_name](node(_name, _target), forms | options)


def form(shape: Shape, seed: int, width: float, parts: str = "sbr", shift: float = 0.0, spread: float = 1.0) -> Form:
    """Centres around `shift`; `parts`: slope, bend, radius."""
    g = torch.Generator().manual_seed(seed)
    c, k, q, r = (torch.randn(shape, generator=g, dtype=F64) for _ in range(4))
    k, q, r = k.clamp(-2, 2) * width, q.clamp(-2, 2) * width, r.abs().clamp(max=2) * width * 0.5
    if shift:
        c = c.clamp(-2, 2)
    return Form(
        shift + spread * c, k if "s" in parts else None, r if "r" in parts else None, 0, q if "b" in parts else None
    )


def signs(shape: Shape, g: torch.Generator, k: int) -> Tensor:
    """Remainders at random ends, or one entry of the last axis against all others."""
    if k < 3:
        return 2.0 * torch.randint(0, 2, shape, generator=g) - 1
    return torch.where(torch.arange(shape[-1]) == k % shape[-1], 1.0, -1.0).expand(shape).double()


def check(rule: Values, f: Values, forms: dict[str, Form], tolerance: float = 0.0) -> None:
    """No sample of f leaves the form of the rule, also when only some parts are there."""
    found, g = rule(**forms), torch.Generator().manual_seed(3)
    found = found[0] if isinstance(found, tuple | list) else found
    assert bool(found.settled().size().isfinite().all())
    both, radii = (found.rounded(), found.settled()), {name: full(x)[2] for name, x in forms.items()}
    for s in torch.tensor([-1.0, -0.99, -0.6, -0.3, 0.0, 0.25, 0.5, 0.75, 0.9, 1.0], dtype=F64):
        middles, known = {name: at(x, s) for name, x in forms.items()}, [(at(x, s), full(x)[2]) for x in both]
        for k in range(6):
            out = f(*(v + signs(v.shape, g, k) * radii[name] for name, v in middles.items()))
            out = out[0] if isinstance(out, tuple | list) else out
            assert all(float(((out - z).abs() - radius).max()) <= tolerance for z, radius in known)


ROWS = (60, 4)
ONE: dict[str, tuple[Values, Values, float]] = {
    "tanh": (ruled("tanh"), torch.tanh, 0), "sigmoid": (ruled("sigmoid"), torch.sigmoid, 0),
    "silu": (ruled("silu"), F.silu, 0), "gelu": (ruled("gelu", approximate="none"), F.gelu, 0),
    "gelu tanh": (ruled("gelu", approximate="tanh"), lambda x: F.gelu(x, approximate="tanh"), 0),
    "mish": (ruled("mish"), F.mish, 0), "erf": (ruled("erf"), torch.erf, 0), "exp": (ruled("exp"), torch.exp, 0),
    "hardswish": (ruled("hardswish"), F.hardswish, 0), "hardsigmoid": (ruled("hardsigmoid"), F.hardsigmoid, 0),
    "log_sigmoid": (ruled("log_sigmoid"), F.logsigmoid, 0), "abs": (ruled("abs"), torch.abs, 0),
    "softplus": (ruled("softplus", beta=2, threshold=1.5), lambda x: F.softplus(x, 2, 1.5), 0),
    "elu": (ruled("elu", alpha=0.4), lambda x: F.elu(x, 0.4), 0), "selu": (ruled("selu"), F.selu, 0),
    "celu": (ruled("celu", alpha=0.4), lambda x: F.celu(x, 0.4), 0), "square": (ruled("square"), torch.square, 0),
    "leaky": (ruled("leaky_relu", negative_slope=0.2), lambda x: F.leaky_relu(x, 0.2), 0),
    "steep": (ruled("leaky_relu", negative_slope=-1.3), lambda x: F.leaky_relu(x, -1.3), 0),
    "clamp": (ruled("clamp", min=-0.4, max=0.3), lambda x: x.clamp(-0.4, 0.3), 0),
    "cube": (ruled("pow", exponent=3), lambda x: x**3, 0), "fourth": (ruled("pow", exponent=4), lambda x: x**4, 0),
    "sin": (ruled("sin"), torch.sin, 0), "cos": (ruled("cos"), torch.cos, 0),
    "sqrt": (ruled("sqrt"), torch.sqrt, 9), "rsqrt": (ruled("rsqrt"), torch.rsqrt, 9),
    "log": (ruled("log"), torch.log, 9), "reciprocal": (ruled("reciprocal"), torch.reciprocal, -9),
    "power": (ruled("pow", exponent=1.7), lambda x: x**1.7, 9),
    "inverse": (ruled("pow", exponent=-2), lambda x: x**-2, 9),
    "softmax": (ruled("softmax", dim=-1), lambda x: x.softmax(-1), 0),
    "log_softmax": (ruled("log_softmax", dim=-1), lambda x: x.log_softmax(-1), 0),
    "logsumexp": (ruled("logsumexp", dim=[-1], keepdim=False), lambda x: x.logsumexp(-1), 0),
    "logsumexp, kept": (ruled("logsumexp", dim=[1], keepdim=True), lambda x: x.logsumexp(1, keepdim=True), 0),
    "prod": (ruled("prod", dim=-1, keepdim=False), lambda x: x.prod(-1), 0),
    "amax": (ruled("amax", dim=[-1], keepdim=True), lambda x: x.amax(-1, keepdim=True), 0),
    "amin": (ruled("amin", dim=[-1], keepdim=False), lambda x: x.amin(-1), 0),
    "max": (ruled("max", dim=-1, keepdim=False), lambda x: x.max(-1).values, 0),
    "min of all": (ruled("min"), torch.min, 0),
    "var": (ruled("var", dim=[-1], correction=1, keepdim=True), lambda x: x.var(-1, keepdim=True), 0),
    "std": (ruled("std", dim=[-1], correction=0, keepdim=False), lambda x: x.std(-1, correction=0), 0),
    "sum": (ruled("sum", torch.sum, dim=[-1], keepdim=False), lambda x: x.sum(-1), 0),
    "cumsum": (ruled("cumsum", torch.cumsum, dim=1), lambda x: x.cumsum(1), 0),
    "layer_norm": (
        ruled("layer_norm", normalized_shape=(4,), weight=None, bias=None, eps=0.1),
        lambda x: F.layer_norm(x, (4,), eps=0.1), 0,
    ),
    "rms_norm": (ruled("rms_norm", normalized_shape=(4,), weight=None, eps=None), lambda x: F.rms_norm(x, (4,)), 5),
    "root mean square of narrow types": (
        lambda x: normalised(x, -1, Form(torch.tensor(0.1, dtype=F64), None, torch.tensor(0.05, dtype=F64))),
        lambda x: F.rms_norm(x, (4,), eps=0.15), 0,
    ),
}  # fmt: skip


SEEN = torch.tensor([[True, False, False, True], [True, True, False, False], [True, False, True, True]])


PLACES, ENDS = torch.arange(60) % 7, torch.tensor([20, 20, 60])
COLUMNS, TURNED = PLACES[:, None].expand(ROWS), torch.arange(4).expand(ROWS).flip(1)


def in_groups(x: Tensor, weight: Tensor) -> Tensor:
    return torch.cat([x[:20] @ weight[0], x[20:] @ weight[2]])


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=SEEN)


SEVERAL: dict[str, tuple[Values, Values, dict[str, Shape]]] = {
    "mul": (ruled("mul"), torch.mul, {"x": ROWS, "other": (4,)}),
    "add": (ruled("add", alpha=-3), lambda x, other: x - 3 * other, {"x": ROWS, "other": (4,)}),
    "rsub": (ruled("rsub", alpha=3), lambda x, other: other - 3 * x, {"x": ROWS, "other": ROWS}),
    "matmul": (ruled("matmul"), lambda x, other: x @ other, {"x": ROWS, "other": (4, 3)}),
    "linear": (ruled("linear"), F.linear, {"x": ROWS, "weight": (3, 4), "bias": (3,)}),
    "maximum": (ruled("maximum"), torch.maximum, {"x": ROWS, "other": ROWS}),
    "max of two": (ruled("max"), torch.max, {"x": ROWS, "other": ROWS}),
    "prelu": (ruled("prelu"), lambda x, weight: F.prelu(x, weight), {"x": ROWS, "weight": (4,)}),
    "where": (
        ruled("where", condition=torch.arange(4) > 1), lambda x, other: torch.where(torch.arange(4) > 1, x, other),
        {"x": ROWS, "other": ROWS},
    ),
    "convolution": (
        ruled("conv1d", stride=[2], padding=[1], dilation=[1], groups=2),
        lambda x, weight, bias: F.conv1d(x, weight, bias, 2, 1, 1, 2),
        {"x": (9, 4, 5), "weight": (4, 2, 3), "bias": (4,)},
    ),
    "transposed": (
        ruled("conv_transpose1d", stride=[2], padding=[1], output_padding=[1], groups=2, dilation=[1]),
        lambda x, weight, bias: F.conv_transpose1d(x, weight, bias, 2, 1, 1, 2),
        {"x": (9, 4, 5), "weight": (4, 3, 3), "bias": (6,)},
    ),
    "layer_norm": (
        ruled("layer_norm", normalized_shape=(4,), eps=0.1),
        lambda x, weight, bias: F.layer_norm(x, (4,), weight, bias, 0.1), {"x": ROWS, "weight": (4,), "bias": (4,)},
    ),
    "group_norm": (
        ruled("group_norm", num_groups=2, eps=0.1), lambda x, weight, bias: F.group_norm(x, 2, weight, bias, 0.1),
        {"x": (9, 4, 3), "weight": (4,), "bias": (4,)},
    ),
    "instance_norm": (
        ruled("instance_norm", use_input_stats=True, eps=0.1),
        lambda x, weight, bias: F.instance_norm(x, None, None, weight, bias, True, 0.1, 0.1),
        {"x": (9, 4, 3), "weight": (4,), "bias": (4,)},
    ),
    "attention": (
        ruled(
            "scaled_dot_product_attention", attn_mask=SEEN, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
        ),
        attended, {"query": (5, 2, 3, 2), "key": (5, 2, 4, 2), "value": (5, 2, 4, 2)},
    ),
    "einsum": (
        lambda x, other: RULES["einsum"](node("einsum"), {"equation": "bi,ij->bj", "tensors": [x, other]}),
        lambda x, other: x @ other, {"x": ROWS, "other": (4, 3)},
    ),
    "groups": (ruled("_grouped_mm", offs=ENDS), in_groups, {"x": ROWS, "weight": (3, 4, 2)}),
    "index_add": (
        ruled("index_add", torch.index_add, dim=0, index=PLACES, alpha=2),
        lambda x, source: x.index_add(0, PLACES, source, alpha=2), {"x": (7, 4), "source": ROWS},
    ),
    "index_add to numbers": (
        ruled("index_add", torch.index_add, x=torch.full((7, 4), 3.0, dtype=F64), dim=0, index=PLACES),
        lambda source: torch.full((7, 4), 3.0, dtype=F64).index_add(0, PLACES, source), {"source": ROWS},
    ),
    "scatter_add": (
        ruled("scatter_add", torch.scatter_add, dim=0, index=COLUMNS), lambda x, src: x.scatter_add(0, COLUMNS, src),
        {"x": (7, 4), "src": ROWS},
    ),
    "scatter": (
        ruled("scatter", torch.scatter, dim=1, index=TURNED), lambda x, src: x.scatter(1, TURNED, src),
        {"x": ROWS, "src": ROWS},
    ),
    "addmm": (
        ruled("addmm", alpha=0.5, beta=-2), lambda x, mat1, mat2: torch.addmm(x, mat1, mat2, alpha=0.5, beta=-2),
        {"x": (9, 3), "mat1": (9, 4), "mat2": (4, 3)},
    ),
}  # fmt: skip
