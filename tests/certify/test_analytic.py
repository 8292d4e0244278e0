"""Level curves under proof: every premise is checked again, and a curve that breaks one is only measured."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import inf, nan
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.certify import analytic
from isthmus.certify.analytic import level
from isthmus.evaluate.level_network import LevelNetwork
from isthmus.objective.data import single
from isthmus.paths import level_curve
from isthmus.sweep.parallel import certify_in_parallel
from tests.problems import Problem, blobs, perceptron, random_params, wide_then_narrow

F64 = torch.float64


def found(problem: Problem | None = None) -> tuple[Problem, im.LevelCurve]:
    problem = problem or wide_then_narrow()
    path = im.connect(problem.objective, problem.a, problem.b, im.Sublevel()).path
    curve = path.segments[-1]
    assert isinstance(curve, im.LevelCurve)
    return problem, curve


def samples(objective: im.Objective) -> tuple[torch.Tensor, torch.Tensor]:
    return single(objective.data[0]), objective.data[1]


def data_of(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    return samples(problem.objective)


def refused(objective: im.Objective, curve: im.LevelCurve, why: str) -> None:
    claim = level(objective.cast(F64), curve).claim
    assert claim.kind == "measured"
    assert why in claim.why
    certificate = im.certify(objective, im.Path((curve,)))
    assert not certificate.proved
    assert certificate.segments[0].claim == "measured"


def test_the_bound_holds_on_dense_samples_and_is_that_of_the_higher_end():
    problem, curve = found()
    certificate = im.certify(problem.objective, im.Path((curve,)), labels=["level"])
    row = certificate.segments[0]
    assert (row.claim, row.label) == ("analytic", "level")
    assert "33 points" in row.why
    losses = [problem.objective.loss(curve.at(k / 200)) for k in range(201)]
    assert max(losses) <= row.bound
    assert row.bound - max(certificate.ends) <= 1e-11
    assert row.deviation <= 1e-12
    errors = [problem.objective.error(curve.at(k / 200)) for k in range(201)]
    assert row.error_bound is not None
    assert max(errors) <= row.error_bound <= 1


def test_parts_and_reversals_of_a_curve_are_proved_too():
    problem, curve = found()
    left, right = curve.split(0.37)
    path = im.Path((right.reversed(), left.reversed()))
    certificate = im.certify(problem.objective, path)
    assert certificate.counts == {"analytic": 2}
    assert im.verify_certificate(problem.objective, path, certificate.to_dict()) == []


def test_a_part_of_the_examples_is_covered_by_the_data_of_all():
    problem, curve = found()
    x, y = data_of(problem)
    for index in (torch.tensor([3, 5, 6]), torch.tensor([7, 0])):
        part = problem.objective.on((x[index], y[index]))
        assert im.certify(part, im.Path((curve,))).proved


def test_the_bounds_of_a_line_prove_nothing_about_a_level_curve():
    """Affine forms read control points, which a level curve has none of."""
    problem, curve = found()
    line = im.certify(problem.objective, im.Path.through([curve.start, curve.end]), 0.05)
    assert [s.claim for s in line.segments] == ["bounded"]
    problems = im.verify_certificate(problem.objective, im.Path((curve,)), line)
    assert any("affine forms are about Bezier curves alone" in p for p in problems), problems


def test_other_data_than_the_curve_was_made_for():
    problem, curve = found()
    x, y = data_of(problem)
    refused(problem.objective.on((x + 1e-6, y)), curve, "the data of the curve differ from what layer 2 reads")
    moved = replace(curve, x=curve.x + 1e-6, _shared=None)
    refused(problem.objective, moved, "the data of the curve differ")
    wider = torch.cat([curve.x, torch.zeros_like(curve.x[:, :1])], 1)
    assert analytic._gap(wider, curve.x) == inf
    assert analytic._gap(curve.x, curve.x) == 0.0


def test_another_network_than_the_curve_was_made_for():
    problem, curve = found()
    for activation, why in (
        (lambda: nn.LeakyReLU(0.3), "behind layer 2 the network has leaky_relu(0.3), the curve a slope of 0.2"),
        (nn.ReLU, "behind layer 2 the network has relu"),
    ):
        module = perceptron([5, 17, 9, 6, 3], activation).double()
        refused(im.Objective(module, data=problem.objective.data), curve, why)
    dropped = replace(curve, layers=(*curve.layers[:2], replace(curve.layers[2], slope=0.2)), _shared=None)
    refused(problem.objective, dropped, "behind layer 4 the network has no activation, the curve a slope of 0.2")
    first, second, *_ = curve.layers
    for layers, why in (
        ((replace(first, weight="0.weight", bias="0.bias"), *curve.layers[1:]), "'4.weight' is not layer 2"),
        ((replace(first, weight="x.weight"),), "'x.weight' is no layer of the network"),
        ((replace(first, bias=None), second), "layer 2 has the biases ('2.bias',), not None"),
    ):
        net = LevelNetwork.of(problem.objective, problem.a)
        stub = SimpleNamespace(layers=layers)
        assert why in str(analytic._place(net, stub))  # type: ignore[arg-type]
    other = im.Objective(
        perceptron([5, 17, 9, 6, 3], lambda: nn.LeakyReLU(0.2), bias=False).double(), data=problem.objective.data
    )
    with pytest.raises(im.InputError, match="only the keys"):
        im.certify(other, im.Path((curve,)))


def test_a_curve_of_some_layers_whose_features_the_next_one_does_not_ignore():
    problem, curve = found()
    a = problem.a
    b = {**a, "2.weight": problem.b["2.weight"]}
    short = im.LevelCurve(a, b, LevelNetwork.of(problem.objective, a).design(a, 2).flatten(1), curve.layers[:1])
    refused(problem.objective, short, "the curve ends at layer 2, but what layer 3 makes of it moves by")


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_what_the_next_layer_sees_move_is_judged_by_the_size_of_its_weights(size):
    """A curve that it does not ignore is refused however small its weights are, and one that it does however large."""
    problem, curve = found()
    a = {**problem.a, "4.weight": size * problem.a["4.weight"]}
    x = LevelNetwork.of(problem.objective, a).design(a, 2).flatten(1)
    moving = im.LevelCurve(a, {**a, "2.weight": problem.b["2.weight"]}, x, curve.layers[:1])
    refused(problem.objective, moving, "the curve ends at layer 2, but what layer 3 makes of it moves by")
    still = im.LevelCurve(a, a, x, curve.layers[:1])
    assert level(problem.objective, still).claim.kind == "analytic"


def test_small_data_have_the_rank_that_they_have():
    """The first layer reads them as they are: no rounding below it could have made their rank."""
    module = perceptron([6, 5, 4, 3], lambda: nn.LeakyReLU(0.2)).double()
    x, y = blobs(6, (6,), 3)
    problem = Problem("small", im.Objective(module, data=(1e-3 * x, y)), *(random_params(module, k) for k in (1, 2)))
    curves = [s for s in im.connect(problem.objective, problem.a, problem.b, im.Sublevel("3.2")).path.segments
              if isinstance(s, im.LevelCurve)]  # fmt: skip
    assert curves
    assert all(level(problem.objective, curve).claim.kind == "analytic" for curve in curves)


def test_losses_that_are_not_convex_and_penalties():
    problem, curve = found()
    x, y = data_of(problem)
    module = perceptron([5, 17, 9, 6, 3], lambda: nn.LeakyReLU(0.2)).double()
    refused(im.Objective(module, lambda z, y: z.sum(1).sin(), (x, y)), curve, "not declared convex")
    refused(im.Objective(module, data=(x, y), penalty=im.Ridge(1e-3)), curve, "a penalty")


def test_data_without_full_row_rank():
    problem, curve = found()
    x = curve.x.clone()
    x[1] = x[0]
    twice, y = data_of(problem)
    twice = twice.clone()
    twice[1] = twice[0]
    broken = replace(curve, x=x, _shared=None)
    refused(problem.objective.on((twice, y)), broken, "[x, 1] has not full row rank")


def test_a_curve_that_strays_from_its_closed_form_is_only_measured(monkeypatch):
    """Break the recursion on purpose: the certificate must see it."""
    problem, curve = found()
    exact = level_curve.preimage
    monkeypatch.setattr(level_curve, "preimage", lambda A, *rest: exact(A, *rest) + 1e-3)
    refused(problem.objective, curve, "stray by")


def test_a_loss_at_an_end_that_is_not_finite_is_only_measured(monkeypatch):
    problem, curve = found()
    last = problem.objective.cast(F64).outputs(curve.at(1.0))
    exact = analytic.loss_of_outputs
    monkeypatch.setattr(analytic, "loss_of_outputs", lambda o, Z: nan if torch.equal(Z, last) else exact(o, Z))
    refused(problem.objective, curve, "stray by nan")


def test_stored_certificates_of_level_curves_are_checked_again():
    problem, curve = found()
    path = im.Path((curve,))
    stored = im.certify(problem.objective, path).to_dict()
    assert im.verify_certificate(problem.objective, path, stored) == []
    row = stored["segments"][0]
    low = stored | {"segments": [row | {"bound": row["bound"] - 0.01}]}
    assert any("below that of the closed form" in p for p in im.verify_certificate(problem.objective, path, low))
    convex = stored | {"segments": [row | {"claim": "convex"}]}
    assert any("claimed 'convex'" in p for p in im.verify_certificate(problem.objective, path, convex))
    line = im.Path((im.Curve((curve.start, curve.end)),))
    assert any("claimed 'analytic'" in p for p in im.verify_certificate(problem.objective, line, stored))
    x, y = data_of(problem)
    other = im.verify_certificate(problem.objective.on((x + 1e-6, y)), path, stored)
    assert any("claimed 'analytic', but the curve gives 'measured'" in p for p in other)


def test_profiles_and_sweeps_treat_a_level_curve_as_any_segment():
    problem, curve = found()
    path = im.Path((curve,))
    p = im.profile(problem.objective, path, 9)
    want = [problem.objective.loss(curve.at(k / 8)) for k in range(9)]
    torch.testing.assert_close(p.loss, torch.tensor(want, dtype=F64), rtol=1e-12, atol=1e-12)
    assert p.excess <= 1e-12
    adaptive = im.profile(problem.objective, path, 9, tol=1e-3)
    assert adaptive.max == pytest.approx(p.max, abs=1e-9)
    by_parts = certify_in_parallel(problem.objective, path, chunk=3)
    assert by_parts.proved
    assert by_parts.segments[0].claim == "analytic"
    assert by_parts.bound - max(by_parts.ends) < 1e-10
    assert im.verify_certificate(problem.objective, path, by_parts.to_dict()) == []


def test_float32_curves_are_proved_with_their_rounding():
    problem = wide_then_narrow()
    objective = problem.objective.cast(torch.float32)
    a, b = ({k: v.float() for k, v in p.items()} for p in (problem.a, problem.b))
    curve = im.connect(objective, a, b, im.Sublevel()).path.segments[-1]
    row = im.certify(objective, im.Path((curve,))).segments[0]
    assert row.claim == "analytic"
    worst = max(objective.cast(F64).loss({k: v.double() for k, v in curve.at(i / 100).items()}) for i in range(101))
    assert worst <= row.bound


def exact(v: torch.Tensor) -> list[list[Fraction]]:
    """A matrix of rational numbers: those that the floating-point numbers are."""
    return [[Fraction(float(e)) for e in row] for row in v]


def outputs(layers: Sequence[tuple[str, Fraction]], params: im.Params, rows: list[list[Fraction]]) -> Any:
    """What these layers with biases, each with the slope behind it, make of the rows, without any rounding."""
    for name, slope in layers:
        W, b = exact(params[f"{name}.weight"]), exact(params[f"{name}.bias"][None])[0]
        sums = [
            [sum((w * v for w, v in zip(u, row, strict=True)), c) for u, c in zip(W, b, strict=True)] for row in rows
        ]
        rows = [[max(v, 0) + slope * min(v, 0) for v in row] for row in sums]
    return rows


def mse(Z: Any, y: torch.Tensor) -> Fraction:
    differences = [(z - t) ** 2 for zs, ts in zip(Z, exact(y), strict=True) for z, t in zip(zs, ts, strict=True)]
    return sum(differences, Fraction(0)) / len(differences)


def mixed(p: Any, q: Any, s: Fraction) -> Any:
    return [[(1 - s) * a + s * b for a, b in zip(u, v, strict=True)] for u, v in zip(p, q, strict=True)]


SLOPE = Fraction(0.25)


def cancelling(size: float) -> tuple[im.Objective, im.LevelCurve]:
    """Layer 2 subtracts numbers of that size that layer 1 makes, so that digits are lost below the curve's layers."""
    module = perceptron([2, 8, 3, 1], lambda: nn.LeakyReLU(0.25)).double()
    g = torch.Generator().manual_seed(5)
    a = {k: torch.randn(v.shape, generator=g, dtype=F64) for k, v in module.state_dict().items()}
    a["0.bias"][:4] += size
    a["2.weight"][:, 2:4] = -a["2.weight"][:, :2] * (1 + 1e-3)
    b = a | {k: torch.randn(a[k].shape, generator=g, dtype=F64) for k in ("2.weight", "2.bias", "4.weight", "4.bias")}
    b["2.weight"][:, 2:4] = -b["2.weight"][:, :2] * (1 + 1e-3)
    x = torch.randn(4, 2, generator=g, dtype=F64)
    objective = im.Objective(module, "mse", (x, torch.zeros(4, 1, dtype=F64)))
    data = LevelNetwork.of(objective, a).design(a, 2).flatten(1)
    layers = (im.LevelLayer("2.weight", "2.bias", 0.25), im.LevelLayer("4.weight", "4.bias"))
    return objective, im.LevelCurve(a, b, data, layers)


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_the_closed_form_is_bounded_at_the_ends_of_its_line(size):
    """Against rational arithmetic: the curve on the true features, its outputs the mixtures of the true ones."""
    objective, curve = cancelling(size)
    (x, y), layers = samples(objective), [("0", SLOPE), ("2", SLOPE), ("4", Fraction(1))]
    ends = [outputs(layers, p, exact(x)) for p in (curve.origin, curve.goal)]
    left, right = curve.split(0.25)
    for part, low, high in ((curve, 0, 16), (left, 0, 4), (right, 4, 16), (right.reversed(), 4, 16)):
        found = level(objective, part)
        true = max(mse(mixed(ends[0], ends[1], Fraction(k, 16)), y) for k in range(low, high + 1))
        assert true <= Fraction(found.exact) <= true * (1 + Fraction(1e-12 * size))
        assert found.bound >= found.exact


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_what_the_layer_above_a_curve_sees_move_is_in_its_bound(size):
    """A curve of layer 2 whose features the next layer does not ignore by 1e-11 of their size; rounding below it."""
    objective, whole = cancelling(size)
    a = whole.origin
    b = {**a, "2.bias": a["2.bias"] + 2e-11 * torch.ones(3, dtype=F64)}
    curve = im.LevelCurve(a, b, whole.x, whole.layers[:1])
    found = level(objective, curve)
    assert found.claim.kind == "analytic"
    (x, y), below = samples(objective), [("0", SLOPE), ("2", SLOPE)]
    features = [outputs(below, p, exact(x)) for p in (a, b)]
    losses = [
        mse(outputs([("4", Fraction(1))], a, mixed(features[0], features[1], Fraction(k, 8))), y) for k in range(9)
    ]
    assert max(losses) - min(losses) > Fraction(1e-12)
    # with large numbers the losses in floating point are below the true ones by more than the moves
    assert max(losses) <= Fraction(found.exact) <= max(losses) * (1 + Fraction(1e-11 * size))
    assert found.bound >= found.exact


def test_a_rank_that_rounding_below_the_curve_may_have_made_is_refused():
    """Two samples so close that the features differ, but by no more than their rounding."""
    objective, curve = cancelling(1.0)
    x, y = samples(objective)
    x = x.clone()
    x[1] = x[0] + 2e-14
    moved = objective.on((x, y))
    data = LevelNetwork.of(moved, curve.origin).design(curve.origin, 2).flatten(1)
    close = replace(curve, x=data, _shared=None)
    s = close.work.solver.singular_values
    assert float(s[-1]) > len(x) * torch.finfo(F64).eps * float(s[0])
    refused(moved, close, "[x, 1] has not full row rank")


@pytest.mark.parametrize("width", [33, 513])
def test_a_loss_known_only_to_be_convex_is_bounded_where_no_point_moves(width):
    """Above the curve a layer reads what hardly moves: an interval, limited to 32 outputs. At ends the limit is 512."""
    module = perceptron([6, 7, width], lambda: nn.LeakyReLU(0.5)).double()
    g = torch.Generator().manual_seed(0)
    a = {k: torch.randn(v.shape, generator=g, dtype=F64) for k, v in module.state_dict().items()}
    b = {**a, "0.bias": a["0.bias"] + 1e-12}
    x, y = torch.randn(4, 6, generator=g, dtype=F64), torch.arange(4)
    objective = im.Objective(module, lambda z, y: z.amax(1) - z.gather(1, y[:, None])[:, 0], (x, y), convex=True)
    refused(objective, im.LevelCurve(a, b, x, (im.LevelLayer("0.weight", "0.bias", 0.5),)), "at most 32 outputs")
    last = {**a, "2.weight": a["2.weight"] * 1.1}
    claims = im.certify(objective, im.Path.through([a, last])).segments
    assert claims[0].claim == ("convex" if width <= 512 else "measured")
    assert claims[0].bound >= max(objective.loss(a), objective.loss(last))
