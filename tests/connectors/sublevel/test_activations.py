"""Sublevel on activations of which less is known: no rule of certify, or a slope that is learned (PReLU)."""

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.analysis.ray import ray
from isthmus.params import cast, equal
from tests.analysis.test_descend import falls
from tests.connectors.sublevel.test_sublevel import N, below, check, leaky, setting
from tests.problems import Atan, random_params

F64 = torch.float64
WIDE = (5, 2 * N + 1, 2 * N, 3)
NARROWING = (5, 2 * N, 9, 6, 3)


def test_a_missing_rule_of_certify_is_said_and_is_no_failure():
    objective, a, b = setting(WIDE, Atan)
    connection = im.connect(objective, a, b, im.Sublevel(), throw=True)
    assert connection.outcome is im.Outcome.UNPROVED
    assert connection.outcome.ok
    assert str(connection.outcome).startswith("constructed, unproved")
    assert "no rule" in connection.stats["certificate"]["why"]
    below(objective, connection.path)
    assert not im.certify(objective, connection.path).proved
    low = im.descend(objective, a)
    assert low.outcome is im.Outcome.UNPROVED  # what it moves stands above the activations, but they round too
    assert falls(objective, low.path) < 1e-12


def test_without_a_rule_what_is_measured_still_decides():
    objective, a, b = setting(WIDE, Atan)
    narrow, a, b = objective.cast(torch.float32), cast(a, torch.float32), cast(b, torch.float32)
    assert im.connect(narrow, a, b, im.Sublevel(tolerance=1e-12)).outcome is im.Outcome.IMPRECISE
    exact = im.connect(objective, cast(a, F64), cast(b, F64), im.Sublevel(prove=False))
    assert exact.outcome is im.Outcome.CONNECTED  # nothing was asked of certify


# -- PReLU


def with_slopes(params, value):
    """All PReLU slopes set to one number, or to the same random ones."""
    out = {k: v.clone() for k, v in params.items()}
    for k in slopes(out):
        out[k] = torch.full_like(out[k], value)
    return out


def slopes(params):
    """The names of the PReLU slopes: the vectors without a bias's name."""
    return [k for k, v in params.items() if v.dim() == 1 and k.endswith("weight")]


def prelu(widths, per_unit, bias=True):
    parts = []
    for i, (p, q) in enumerate(zip(widths, widths[1:], strict=False)):
        parts += [nn.Linear(p, q, bias=bias), *([nn.PReLU(q if per_unit else 1)] if i < len(widths) - 2 else [])]
    module = nn.Sequential(*parts).double()
    other, _, _ = setting(widths)
    return im.Objective(module, data=other.data), random_params(module, 1), random_params(module, 2)


@pytest.mark.parametrize("slope", [0.25, -0.4, 0.0, 1.7])
def test_one_slope_at_both_ends_is_a_leaky_relu(slope):
    """Any slope but 1 gives independent shifts, which is all that Theorem 6.1 asks for."""
    objective, a, b = prelu(WIDE, per_unit=False)
    a, b = with_slopes(a, slope), with_slopes(b, slope)
    connection = im.connect(objective, a, b, im.Sublevel())
    check(objective, connection, "6.1 (case 2)", 13)
    assert all(equal({k: p[k] for k in slopes(a)}, {k: a[k] for k in slopes(a)}) for p in connection.path.knots)
    line = im.connect(objective, with_slopes(a, 1.0), with_slopes(b, 1.0), im.Sublevel())
    assert "Assumption 2.2 for leaky_relu(1)" in " ".join(line.stats["premises"])


@pytest.mark.parametrize("per_unit", [False, True])
def test_narrowing_layers_take_one_positive_slope(per_unit):
    objective, a, b = prelu(NARROWING, per_unit)
    a, b = with_slopes(a, 0.25), with_slopes(b, 0.25)
    connection = im.connect(objective, a, b, im.Sublevel())
    assert check(objective, connection, "5.1", 7).counts["analytic"] == 1
    for value in (-0.25, 0.0):
        bent = im.connect(objective, with_slopes(a, value), with_slopes(b, value), im.Sublevel())
        assert bent.outcome is im.Outcome.PREMISE_FAILS
        assert f"Assumption 2.1: slope of leaky_relu({value:g})" in " ".join(bent.stats["premises"])
    low = im.descend(objective, a)
    assert low.outcome.ok
    assert low.stats["theorem"] == "4.2"
    assert falls(objective, low.path) < 1e-12
    assert ray(objective, a, 1e4).outcome.ok


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dead", [False, True])
def test_slopes_of_single_units_move_with_their_units(bias, dead):
    objective, a, b = prelu(WIDE, per_unit=True, bias=bias)
    if dead:  # features of low rank at b: new units are made, with a slope of torch's own
        b = b | {"0.weight": b["0.weight"][torch.arange(2 * N + 1) % 2], "1.weight": b["1.weight"].clone().fill_(0.5)}
        b |= {"0.bias": b["0.bias"].clone().zero_()} if bias else {}
    assert not torch.equal(a["1.weight"], b["1.weight"])
    connection = im.connect(objective, a, b, im.Sublevel())
    check(objective, connection, "6.1 (case 2)", len(connection.path))
    assert equal(connection.path.end, b)
    narrow = objective.cast(torch.float32)
    rough = im.connect(narrow, cast(a, torch.float32), cast(b, torch.float32), im.Sublevel())
    assert rough.outcome.ok


def test_convolutions_with_a_slope_per_channel():
    module = nn.Sequential(nn.Conv2d(1, 7, 3), nn.PReLU(7), nn.Flatten(), nn.Linear(7 * 4, 3)).double()
    x = torch.randn(N, 1, 4, 4, generator=torch.Generator().manual_seed(5), dtype=F64)
    objective = im.Objective(module, data=(x, torch.arange(N) % 3))
    connection = im.connect(objective, random_params(module, 1), random_params(module, 2), im.Sublevel())
    assert connection.outcome.ok, connection.stats
    below(objective, connection.path)
    assert im.certify(objective, connection.path).proved


def test_shared_slopes_that_differ_are_refused_in_one_line():
    objective, a, b = prelu(WIDE, per_unit=False)
    a, b = with_slopes(a, 0.25), with_slopes(b, 0.3)
    refused = im.connect(objective, a, b, im.Sublevel())
    assert refused.outcome is im.Outcome.PREMISE_FAILS
    (why,) = refused.stats["premises"]
    assert "'1.weight', which all 25 units share, differs (0.25, 0.3)" in why
    assert "nn.PReLU(25)" in why
    one = nn.PReLU()
    module = nn.Sequential(nn.Linear(2, 8), one, nn.Linear(8, 8), one, nn.Linear(8, 2)).double()
    twice = im.Objective(module, data=(torch.eye(2, dtype=F64), torch.tensor([0, 1])))
    a, b = random_params(module, 1), random_params(module, 2)
    for p in (a, b):
        p["3.weight"] = p["1.weight"]
    assert "which two layers share" in im.connect(twice, a, b, im.Sublevel()).stats["premises"][0]
    assert im.connect(twice, with_slopes(a, 0.2), with_slopes(b, 0.2), im.Sublevel()).outcome.ok


def test_slopes_of_single_units_do_not_do_for_narrowing_layers():
    objective, a, b = prelu(NARROWING, per_unit=True)
    refused = im.connect(objective, a, b, im.Sublevel())
    assert "Assumption 2.1: slope of prelu, layer 2" in " ".join(refused.stats["premises"])
    one = with_slopes(a, 0.25) | {"1.weight": a["1.weight"]}
    other = with_slopes(b, 0.25) | {"1.weight": b["1.weight"]}
    check(objective, im.connect(objective, one, other, im.Sublevel()), "5.1", 7)


def test_other_methods_still_refuse_prelu_by_name():
    objective, a, b = prelu(WIDE, per_unit=True)
    with pytest.raises(im.UnsupportedError, match=r"parameter '1.weight': it belongs to no layer"):
        im.connect(objective, a, b, im.Dropout())
    assert leaky().negative_slope == 0.2
