"""Every rule by itself, on forms whose bends and remainders are at their extremes: what goes in comes out inside."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from math import inf, prod
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.certify.arithmetic import add, divided, scaled
from isthmus.certify.forms import HEADROOM, UNIT, Form, Open, Refused, Undecided, half_width
from isthmus.certify.norms import centred
from isthmus.certify.recurrent import RECURRENT
from isthmus.certify.rules import RULES, apply
from tests.certify.functions import F64, ONE, ROWS, SEVERAL, Shape, Values, check, form, node, ruled, signs
from tests.certify.test_forms import at, excess, full


@pytest.mark.parametrize("width", [0.5, 0.05, 0.002])
@pytest.mark.parametrize("name", ONE)
def test_functions_of_one_form(name, width):
    rule, f, shift = ONE[name]
    for seed, parts in enumerate(("sbr", "s", "sb", "r", "br")):
        check(rule, f, {"x": form(ROWS, seed, width, parts, shift)})


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


def test_what_is_undecided_is_said_with_its_operation_and_place():
    """No other kind of error: a smaller sub-interval is tried then."""
    x = form((1,), 3, 0.1)
    where = SimpleNamespace(base="gt", where="model.py:7", shapes=(), given=lambda values: values)
    with pytest.raises(Undecided, match=r"gt \(model.py:7\): which side is larger depends on t, or on rounding"):
        apply(where, {"x": x, "other": float(x.centre)})  # type: ignore[arg-type]


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


def _one(k: float) -> Form:
    return Form(torch.tensor([k], dtype=F64))


OF_NUMBERS: dict[str, tuple[Callable[[Form, float], Form], Callable[[Any, Any], Any], float]] = {
    "times": (scaled, operator.mul, 1.5),
    "divided": (divided, operator.truediv, 1.5),
    # the form of a small number allows for little
    "plus": (lambda x, k: add(x, _one(k)), operator.add, 0.01),
    "minus": (lambda x, k: add(x, _one(k), -1.0), operator.sub, 0.01),
}


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_many_roundings_that_go_one_way_are_in_the_radius(name):
    """What one operation leaves out is hidden by what is allowed for at the end; that of two hundred is not."""
    step, f, largest = OF_NUMBERS[name]
    draw = random.Random(0)

    def rounded_up(k: float) -> Fraction:
        v = float(x.centre)
        return Fraction(f(v, k)) - f(Fraction(v), Fraction(k)) if 0.5 < f(v, k) < 2 else Fraction(-1)

    x, true = Form(torch.tensor([1.0], dtype=F64), torch.tensor([1e-9], dtype=F64)), Fraction(1)
    for _ in range(200):
        k = max((largest / 3 * draw.uniform(-3, 3) for _ in range(40)), key=rounded_up)
        x, true = step(x, k), f(true, Fraction(k))
    assert Fraction(float(x.centre)) - true > 32 * Fraction(UNIT)
    x = x.settled()
    assert abs(Fraction(float(x.centre)) - true) <= Fraction(float(full(x)[2]))
