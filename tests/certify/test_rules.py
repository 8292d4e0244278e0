"""Every rule by itself, on forms whose bends and remainders are at their extremes: what goes in comes out inside."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from math import inf, prod
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.certify.forms import HEADROOM, Form, Open, Refused, half_width
from isthmus.certify.norms import centred, normalised
from isthmus.certify.recurrent import RECURRENT
from isthmus.certify.rules import RULES
from tests.certify.test_forms import at, excess, full

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
    for s in torch.tensor([-1.0, -0.99, -0.6, -0.3, 0.0, 0.25, 0.5, 0.75, 0.9, 1.0], dtype=F64):
        for k in range(6):
            values = {name: at(x, s) + signs(x.centre.shape, g, k) * full(x)[2] for name, x in forms.items()}
            out = f(*values.values())
            out = out[0] if isinstance(out, tuple | list) else out
            assert excess(found, s, out) <= tolerance


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


@pytest.mark.parametrize("width", [0.5, 0.05, 0.002])
@pytest.mark.parametrize("name", ONE)
def test_functions_of_one_form(name, width):
    rule, f, shift = ONE[name]
    for seed, parts in enumerate(("sbr", "s", "sb", "r", "br")):
        check(rule, f, {"x": form(ROWS, seed, width, parts, shift)})


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


@pytest.mark.parametrize("width", [0.5, 0.05, 0.002])
@pytest.mark.parametrize("name", SEVERAL)
def test_functions_of_several_forms(name, width):
    rule, f, shapes = SEVERAL[name]
    for seed, parts in enumerate(("sbr", "s", "r", "sb")):
        check(rule, f, {k: form(shape, 9 * seed + i, width, parts) for i, (k, shape) in enumerate(shapes.items())})


@pytest.mark.parametrize("width", [0.3, 0.01])
def test_batch_norm_with_moving_statistics(width):
    rule = ruled("batch_norm", training=False, eps=0.1)

    def f(x: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, 0.1, 0.1)

    for parts in ("sbr", "s", "r"):
        forms = {"x": form(ROWS, 7, width, parts), "running_mean": form((4,), 1, width, parts)}
        forms |= {"running_var": form((4,), 8, width, parts, 4.0)}
        check(rule, f, forms | {k: form((4,), i, width, parts) for i, k in enumerate(("weight", "bias"))})


@pytest.mark.parametrize("width", [0.3, 0.01])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_recurrent_layers(name, width):
    """Inputs, states and weights that all move, with bends and remainders."""
    gates = {"lstm": 4, "gru": 3}.get(name, 1)
    shapes: dict[str, Shape] = {"x": (5, 3, 2), "h": (1, 5, 2), "c": (1, 5, 2), "own": (2 * gates, 2)}
    shapes |= {"back": (2 * gates, 2), "one": (2 * gates,), "two": (2 * gates,)}
    options = {
        "has_biases": True,
        "num_layers": 1,
        "dropout": 0.0,
        "train": False,
        "bidirectional": False,
        "batch_first": True,
    }

    def ordered(v: dict[str, Any]) -> tuple[Any, Any, list[Any]]:
        hx = [v["h"], v["c"]] if name == "lstm" else v["h"]
        return v["x"], hx, [v[k] for k in ("own", "back", "one", "two")]

    def rule(**v: Form) -> Any:
        x, hx, params = ordered(v)
        return RECURRENT[name](node(name), options | {"x": x, "hx": hx, "params": params})

    def f(*v: Tensor) -> Any:
        return getattr(torch, name)(*ordered(dict(zip(shapes, v, strict=True))), True, 1, 0.0, False, False, True)

    for parts in ("sbr", "s", "r"):
        check(rule, f, {k: form(shape, i, width, parts) for i, (k, shape) in enumerate(shapes.items())})


# -- choices


@pytest.mark.parametrize("largest", [True, False])
def test_the_greatest_entries_are_named_where_no_sample_disagrees_and_only_there(largest):
    """Rows one by one: whatever is decided is so for all samples; what no sample contradicts by far is decided."""
    rule, decided = ruled("topk", k=2, dim=-1, largest=largest, sorted=True), 0
    x, g = form((60, 5), 4, 0.3), torch.Generator().manual_seed(0)
    for i in range(60):
        row = Form(*(None if p is None else p[i : i + 1] for p in (x.centre, x.slope, x.radius)), 0, x.bend[i : i + 1])  # type: ignore[index]
        places, values = set(), []
        for s in torch.linspace(-1, 1, 41, dtype=F64):
            for k in range(6):
                v = at(row, s) + signs(row.centre.shape, g, k) * full(row)[2]
                places.add(tuple(v.topk(2, largest=largest).indices[0].tolist()))
                values.append((s, v.topk(2, largest=largest).values))
        try:
            form_, found = rule(x=row)
        except Open:
            continue
        decided += 1
        assert places == {tuple(found[0].tolist())}
        assert all(excess(form_, s, v) <= 0 for s, v in values)
    assert 5 < decided < 55


@pytest.mark.parametrize("parts", ["s", "b", "r"])
def test_a_comparison_is_made_only_where_it_cannot_turn(parts):
    """Against 0, which lies within what a form can be, or just beyond it."""
    x = form((1,), 3, 0.1, parts)
    reach = float(half_width(x.rounded()))
    with pytest.raises(Open, match="which side is larger depends on t, or on rounding"):
        ruled("gt")(x=x, other=float(x.centre) - 0.99 * reach)
    assert ruled("gt")(x=x, other=float(x.centre) - 1.01 * reach).tolist() == [True]


@pytest.mark.parametrize("options", [{"accumulate": True}, {"reduce": "add"}], ids=str)
def test_what_is_added_to_is_not_written(options):
    x = form((4,), 0, 0.1)
    with pytest.raises(Refused, match="only writing has a rule"):
        ruled("scatter", torch.scatter, dim=0, index=torch.tensor([0, 0, 1, 1]), **options)(x=x, src=x)


def test_a_mean_over_a_window_counts_every_entry_that_it_adds():
    x = Form(torch.ones(1, 1, 4096, dtype=F64))
    options = {"kernel_size": [4096], "stride": [4096], "padding": [0], "ceil_mode": False, "count_include_pad": True}
    assert float(ruled("avg_pool1d", F.avg_pool1d, **options)(x=x).radius) > 4096 * 2.0**-53
    assert float(ruled("adaptive_avg_pool1d", F.adaptive_avg_pool1d, output_size=[1])(x=x).radius) > 4096 * 2.0**-53


def test_a_mean_that_is_taken_off_counts_every_entry():
    x = Form(torch.ones(1, 4096, dtype=F64), None, torch.zeros(1, 4096, dtype=F64), HEADROOM)
    radius = centred(x, 1).radius
    assert radius is not None
    assert float(radius.min()) > 4096 * 2.0**-53


def test_equal_entries_have_no_order():
    x = Form(torch.tensor([[1.0, 1.0, 0.0]], dtype=F64))
    with pytest.raises(Open, match="which entries are the greatest depends on t, or on rounding"):
        ruled("topk", k=1, dim=-1, largest=True, sorted=True)(x=x)


# -- what is known of nothing


WITHOUT_A_VALUE: dict[str, Values] = {
    "rsqrt, sine": lambda x: RULES["sin"](node("sin"), {"x": ruled("rsqrt")(x=x)}),
    "log, tanh": lambda x: ruled("tanh")(x=ruled("log")(x=x)),
    "root, softmax": lambda x: ruled("softmax", dim=-1)(x=ruled("sqrt")(x=x)),
    "reciprocal, sigmoid": lambda x: ruled("sigmoid")(x=ruled("reciprocal")(x=x)),
    "log, norm": lambda x: ONE["layer_norm"][0](x=ruled("log")(x=x)),
    "log, deviation": lambda x: ruled("std", dim=[-1], keepdim=True)(x=ruled("log")(x=x)),
    "power, clamp": lambda x: ruled("clamp", min=-1, max=1)(x=ruled("pow", exponent=0.3)(x=x)),
    "log, relu6": lambda x: ruled("relu6")(x=ruled("log")(x=x)),
    "log, sign by maximum": lambda x: ruled("amax", dim=[-1], keepdim=True)(x=ruled("log")(x=x)),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_A_VALUE)
def test_what_may_have_no_value_stays_unknown_through_bounded_functions(name):
    """Nothing is known where a form reaches what a function is not defined for, and no later function mends that."""
    x = Form(torch.tensor([[1.0, 2.0, 0.5, 3.0]], dtype=F64), torch.tensor([[0.1, 0.1, 0.6, 0.1]], dtype=F64))
    out = WITHOUT_A_VALUE[name](x)
    assert not bool(out.settled().size().isfinite().all())


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "erf", "sin", "cos", "softmax"])
@pytest.mark.parametrize("part", ["centre", "slope", "radius"])
def test_what_overflowed_stays_unknown(name, part):
    given = {
        "centre": torch.zeros(1, 3, dtype=F64),
        "slope": torch.ones(1, 3, dtype=F64),
        "radius": torch.ones(1, 3, dtype=F64),
    }
    for huge in (inf, -inf, float("nan")):
        held = given | {part: torch.full((1, 3), huge, dtype=F64)}
        x = Form(held["centre"], held["slope"], held["radius"])
        out = ruled(name, dim=-1)(x=x) if name == "softmax" else ruled(name)(x=x)
        assert not bool(out.settled().size().isfinite().any())


def test_a_variance_with_too_large_a_correction_is_refused():
    with pytest.raises(Refused, match="a correction of as much as the number of entries, 4, leaves no number"):
        ruled("var", dim=[-1], correction=4)(x=form(ROWS, 0, 0.1))


# -- rounding, against sixty digits


EPS = 1e-5
ZERO = Decimal(0)


def _exact(rows: Tensor) -> list[list[Decimal]]:
    return [[Decimal(v) for v in row] for row in rows.tolist()]


def _exact_at(x: Form, s: float) -> list[list[Decimal]]:
    """Centre + s slope, without rounding."""
    pairs = zip(_exact(x.centre), _exact(full(x)[1]), strict=True)
    return [[c + Decimal(s) * k for c, k in zip(p, q, strict=True)] for p, q in pairs]


def _log_softmax(row: list[Decimal]) -> list[Decimal]:
    total = sum(((v - max(row)).exp() for v in row), ZERO).ln() + max(row)
    return [v - total for v in row]


def _normed(row: list[Decimal]) -> list[Decimal]:
    centred = [v - sum(row, ZERO) / len(row) for v in row]
    length = (sum((v * v for v in centred), ZERO) / len(row) + Decimal(EPS)).sqrt()
    return [v / length for v in centred]


def _deviation(row: list[Decimal]) -> list[Decimal]:
    return [(sum(((v - sum(row, ZERO) / len(row)) ** 2 for v in row), ZERO) / (len(row) - 1)).sqrt()]


IN_DIGITS: dict[str, tuple[Values, Callable[[list[Decimal]], list[Decimal]]]] = {
    "log_softmax": (ONE["log_softmax"][0], _log_softmax),
    "softmax": (ONE["softmax"][0], lambda row: [v.exp() for v in _log_softmax(row)]),
    "logsumexp": (ONE["logsumexp, kept"][0], lambda row: [row[0] - _log_softmax(row)[0]]),
    "layer_norm": (ruled("layer_norm", normalized_shape=(4,), weight=None, bias=None, eps=EPS), _normed),
    "std": (ruled("std", dim=[-1], correction=1, keepdim=True), _deviation),
    "prod": (ruled("prod", dim=-1, keepdim=True), lambda row: [prod(row, start=Decimal(1))]),
}


@pytest.mark.parametrize("moving", [0.0, 1.0, 1e9], ids=["still", "moving", "far"])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("name", IN_DIGITS)
def test_rounding_of_functions_of_rows_is_in_the_radius(name, size, moving):
    """Entries with a large part that all share; what they share may move as well, and far."""
    rule, f = IN_DIGITS[name]
    g = torch.Generator().manual_seed(5)
    shared, own, drift = (torch.randn(30, n, generator=g, dtype=F64) for n in (1, 4, 1))
    own[::5] = own[::5, :1]
    x = Form(size * shared + own, (moving * drift + 1e-3 * own).contiguous() if moving else None)
    out = rule(x=x).settled()
    with localcontext() as context:
        context.prec = 60
        for s in (-1.0, 0.5, 1.0) if moving else (0.0,):
            for row, found, radii in zip(_exact_at(x, s), _exact_at(out, s), _exact(full(out)[2]), strict=True):
                for p, q, e in zip(f(row), found, radii, strict=True):
                    assert not e.is_finite() or abs(p - q) <= e
