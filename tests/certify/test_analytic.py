"""Level curves under proof: every premise is checked again, and a curve that breaks one is only measured."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.certify.analytic import level
from isthmus.examples import single
from isthmus.paths import level_curve
from isthmus.stability.sublevel import LevelNetwork
from isthmus.sweep.parallel import certify_in_parallel
from tests.problems import Problem, perceptron, wide_then_narrow

F64 = torch.float64


def found(problem: Problem | None = None) -> tuple[Problem, im.LevelCurve]:
    problem = problem or wide_then_narrow()
    path = im.connect(problem.objective, problem.a, problem.b, im.Sublevel()).path
    curve = path.segments[-1]
    assert isinstance(curve, im.LevelCurve)
    return problem, curve


def data_of(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    return single(problem.objective.data[0]), problem.objective.data[1]


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


def test_other_data_than_the_curve_was_made_for():
    problem, curve = found()
    x, y = data_of(problem)
    refused(problem.objective.on((x + 1e-6, y)), curve, "the data of the curve differ from what layer 2 reads")
    moved = replace(curve, x=curve.x + 1e-6, _shared=None)
    refused(problem.objective, moved, "the data of the curve differ")


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
