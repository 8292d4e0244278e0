"""Trained curves: what is trained, where on the curve, what is returned, and what its statistics are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.curves import losses
from isthmus.connectors.curves.losses import CurveLosses
from isthmus.data import load
from isthmus.params import equal
from isthmus.paths import Curve
from isthmus.pipeline import train
from tests.evaluate.networks import Residual
from tests.problems import blobs, classify, odd_widths, perceptron

RECIPE = im.Recipe(lr=None, epochs=30, batch=16)


# -- what is trained


def test_tensors_that_the_ends_share_stay_and_tied_ones_move_together():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.same = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 4)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.same(self.two(self.one(x).relu()).relu())

    x, y = blobs(24, (5,), 4)
    objective = im.Objective(Tied(), data=(x, y))
    a, b = pair(Tied, x, y)
    b["same.bias"] = a["same.bias"]
    found = im.connect(objective, a, b, im.Bezier(recipe=RECIPE))
    (curve,) = found.path.segments
    assert isinstance(curve, Curve)
    middle = curve.control[1]
    assert torch.equal(middle["same.bias"], a["same.bias"])
    assert torch.equal(middle["one.weight"], middle["two.weight"])
    assert objective.loss(found.path.at(0.5)) < objective.loss(im.connect(objective, a, b).path.at(0.5))


# -- curves


def pair(make, x, y, **changes):
    """Two networks, trained from other weights."""
    out = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        recipe = im.Recipe(**{"lr": 1e-2, "steps": 60, "batch": 16} | changes)
        out.append(train(make().to(x.dtype), (x, y), recipe, seed=seed).params)
    return out


@pytest.fixture(scope="module")
def digits():
    held = load("digits").flat().subset(400, None)
    x, y = held.x_train.double(), held.y_train

    def make():
        return perceptron([64, 24, 24, 10])

    return im.Objective(make(), data=(x, y)), *pair(make, x, y, steps=300, batch=64)


@pytest.mark.parametrize(
    "method", [im.Bezier(recipe=RECIPE), im.PolyChain(recipe=RECIPE)], ids=lambda m: type(m).__name__
)
def test_a_curve_is_far_below_the_line_and_says_how_high_it_is(digits, method):
    objective, a, b = digits
    found = im.connect(objective, a, b, replace(method, recipe=replace(RECIPE, epochs=60, batch=32)))
    line, measured = im.profile(objective, im.connect(objective, a, b)), im.profile(objective, found)
    assert measured.max < 0.1 * line.max
    assert found.info.max == pytest.approx(measured.max, rel=0.05)
    assert found.outcome is im.Outcome.BUDGET_EXHAUSTED
    assert found.info.history[-1]["confirmed"]
    assert found.cost.gradient_steps == 60 * (400 // 32)
    proved = im.certify(objective, found, 0.2)
    assert proved.bound >= measured.max


def test_training_stops_when_the_target_is_confirmed(digits):
    objective, a, b = digits
    found = im.connect(objective, a, b, im.Bezier(recipe=replace(RECIPE, epochs=200), target=0.5))
    assert found.outcome.ok
    assert found.info.max <= 0.5
    for wrong in (1e-9, float("nan")):
        with pytest.raises(im.InputError, match="target: expected at least the larger end's loss"):
            im.connect(objective, a, b, im.Bezier(target=wrong))
    assert (found.cost.gradient_steps or 0) < 0.8 * 200 * (400 // 16)


def test_the_line_is_returned_where_training_makes_it_worse(digits):
    objective, a, b = digits
    found = im.connect(objective, a, b, im.Bezier(recipe=im.Recipe(lr=10.0, steps=20, batch=32, schedule="constant")))
    assert not found.outcome.ok
    line = im.profile(objective, im.connect(objective, a, b), 17).max
    assert line <= found.info.max <= 1.01 * line  # which also looks between these points
    assert im.profile(objective, found, 17).max == pytest.approx(line, rel=1e-6)


def test_a_maximum_between_the_screened_points_is_found():
    """It begins at the larger end and is over before the next point."""
    x = torch.ones(4, 1)
    module = nn.Linear(1, 1, bias=False)
    spike = lambda out: 3 * torch.exp(-((out - 1.969) / 0.005).square())
    loss = lambda out, y: ((out - y).square() + spike(out)).sum(1)
    objective = im.Objective(module, loss, (x, torch.zeros(4, 1)))
    a, b = ({"weight": v * torch.ones(1, 1)} for v in (2.0, 1.0))
    found = im.connect(objective, a, b, im.Bezier(recipe=im.Recipe(lr=1e-9, steps=4, batch=4), target=9.0))
    assert found.info.max > 6.5, "the loss is 6.88 at t = .031, and 4 at the larger end"


def test_low_precision_is_as_low(digits):
    objective, a, b = digits
    narrow = objective.cast(torch.float32)
    a, b = ({k: v.float() for k, v in p.items()} for p in (a, b))
    recipe = replace(RECIPE, batch=32)
    tops = []
    for precision in ("own", "bf16"):
        method = im.Bezier(recipe=replace(recipe, precision=precision))
        found = im.connect(narrow, a, b, method)
        assert found.info.precision == {"own": "float32", "bf16": "bfloat16"}[precision]
        assert found.path.at(0.5)["0.weight"].dtype == torch.float32
        tops.append(im.profile(narrow, found).max)
    assert tops[1] == pytest.approx(tops[0], rel=0.5)


@pytest.mark.parametrize("runs", [True, False])
def test_precision_is_chosen_by_the_processor_the_size_and_what_the_network_can_do(monkeypatch, runs):
    class Choosy(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(6, 4)

        def forward(self, x):
            if not runs and x.dtype == torch.bfloat16:
                raise RuntimeError("not implemented for BFloat16")
            return self.one(x)

    x, y = blobs(12, (6,), 4)
    objective = im.Objective(Choosy(), data=(x.float(), y))
    assert CurveLosses.of(objective, "recompute", "auto").dtype == torch.float32
    monkeypatch.setattr(losses, "has_bf16", lambda device: True)
    assert CurveLosses.of(objective, "recompute", "auto").dtype == torch.float32  # small
    monkeypatch.setattr(losses, "_LARGE", 10)
    found = CurveLosses.of(objective, "recompute", "auto")
    assert found.dtype == (torch.bfloat16 if runs else torch.float32)
    assert CurveLosses.of(objective.cast(torch.float64), "recompute", "auto").dtype == torch.float64


def test_several_places_a_step_are_their_mean(digits):
    objective, a, b = digits
    found = im.connect(objective, a, b, im.Bezier(recipe=im.Recipe(lr=None, steps=10, batch=32), draws=3))
    assert found.cost.gradient_steps == 30
    assert found.info.history[-1]["gradient_samples"] == 10 * 32 * 3


def test_a_loss_that_is_not_finite_ends_training():
    p = classify("three", perceptron([5, 7, 4]), (5,))

    def loss(outputs, y):
        return nn.functional.cross_entropy(outputs, y, reduction="none") + torch.where(
            outputs.abs().max() > 3, torch.inf, 0.0
        )

    objective = im.Objective(perceptron([5, 7, 4]), loss, data=p.objective.data)
    found = im.connect(
        objective, p.a, {k: -v for k, v in p.a.items()}, im.Bezier(recipe=im.Recipe(lr=5.0, steps=30, batch=8))
    )
    assert found.outcome in (im.Outcome.NOT_FINITE, im.Outcome.BUDGET_EXHAUSTED)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"bends": 2}, "bends"),
        ({"focus": 0.5}, "focus"),
        ({"focus": "a"}, "focus: expected a number, got str"),
        ({"recipe": None}, "recipe: expected a Recipe"),
        ({"target": "a"}, "target: expected a number"),
        ({"draws": 0}, "draws"),
        ({"bn": "freeze"}, "bn"),
        ({"recipe": im.Recipe("lbfgs")}, "recipe"),
    ],
)
def test_options_that_do_not_fit_are_refused(wrong, what):
    for kind in (im.Bezier, im.PolyChain):
        with pytest.raises(im.InputError, match=what):
            kind(**wrong)


@pytest.mark.parametrize("recipe", [im.Recipe(lr=None), im.Recipe(epochs=3), im.Recipe(precision="auto")])
def test_what_only_curves_can_do_is_refused_elsewhere(recipe):
    p = odd_widths()
    with pytest.raises(im.InputError, match="curves"):
        im.connect(p.objective, p.a, p.b, im.Subnetwork(inner=im.Trained(recipe=recipe)))


# -- networks with statistics


@pytest.fixture(scope="module")
def normalised():
    x, y = blobs(40, (1, 8, 8), 4)
    return im.Objective(Residual().eval(), data=(x, y)), *pair(Residual, x, y)


@pytest.mark.parametrize(
    "method",
    [im.Bezier(recipe=RECIPE), im.PolyChain(recipe=RECIPE)],
    ids=["Bezier", "PolyChain"],
)
def test_statistics_are_recomputed_at_knots_and_settle_at_the_ends(normalised, method):
    objective, a, b = normalised
    before = {k: v.clone() for k, v in a.items()}
    found = im.connect(objective, a, b, method)
    assert equal(a, before)
    path = found.path
    assert equal(path.start, objective.check(a))
    assert equal(path.end, objective.check(b))
    for segment in (path.segments[0], path.segments[-1]):
        moved = [k for k in segment.start if not torch.equal(segment.start[k], segment.end[k])]
        assert moved
        assert all("running" in k for k in moved)
    assert found.labels[0] == "the statistics of the start settle"
    assert len(found.labels) == len(path) == found.info.statistics["pieces"] + 2
    stored, fresh = (im.profile(objective, found, 3, bn=policy) for policy in ("interpolate", "recompute"))
    inner = slice(2, -2)
    assert float((stored.loss - fresh.loss)[inner].abs().max()) <= 0.03 * found.info.max
    line = im.profile(objective, im.connect(objective, a, b), 3)
    assert fresh.loss[len(fresh.loss) // 2] < line.loss[1]
    for knot in path.knots[1:-1]:
        assert all(float(v.min()) > 0 for k, v in knot.items() if k.endswith("running_var"))


def test_kept_statistics_are_those_of_the_start(normalised):
    objective, a, b = normalised
    found = im.connect(objective, a, b, im.Bezier(recipe=RECIPE, bn="keep"))
    kept = im.profile(objective, found, 17, bn="keep")
    assert found.info.max == pytest.approx(kept.max, rel=0.05)
    assert len(found.path) == 1


@pytest.mark.parametrize("epochs", [5, 10, 20])
def test_a_screening_that_sees_nothing_does_not_make_a_curve_low(digits, monkeypatch, epochs):
    """As where the few examples lack those that carry the loss."""
    objective, a, b = digits
    monkeypatch.setattr(CurveLosses, "few", lambda self, point: 0.0)
    target = 1.5 * max(map(objective.loss, (a, b)))
    found = im.connect(objective, a, b, im.Bezier(target=target, recipe=im.Recipe(lr=None, epochs=epochs, batch=16)))
    most = im.profile(objective, found, 17).max
    assert found.info.max == pytest.approx(most, rel=1e-9) or (found.info.max > target and most > target)
    assert (found.outcome is im.Outcome.CONSTRUCTED) == (most <= target)
