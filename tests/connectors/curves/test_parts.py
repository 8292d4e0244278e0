"""The parts of a trained curve: its shape, where it is trained, what a step sees, and how its largest loss is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.connectors.base import Task
from isthmus.connectors.curves.coordinates import Coordinates, combine
from isthmus.connectors.curves.focus import Focus
from isthmus.connectors.curves.highest import Highest, confirm, of_screened, screen
from isthmus.connectors.curves.losses import CurveLosses
from isthmus.connectors.curves.setting import CurveSetting
from isthmus.connectors.curves.shape import Bernstein, Polygon
from isthmus.connectors.curves.train import CurveTraining
from isthmus.params import distance, equal, lerp
from tests.evaluate.networks import Residual
from tests.problems import classify, odd_widths, with_ridge

SHAPES = [Bernstein(3), Bernstein(5), Polygon(3), Polygon(5)]
RECIPE = im.Recipe(lr=None, epochs=30, batch=16)


# -- shapes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_start_is_the_straight_line(shape):
    p = odd_widths()
    path = shape.path(shape.straight(p.a, p.b))
    line = im.Path.through([p.a, p.b])
    assert equal(path.start, p.a)
    assert equal(path.end, p.b)
    for t in np.linspace(0, 1, 13):
        assert distance(path.at(float(t)), line.at(float(t))) < 1e-12 * distance(p.a, p.b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_are_those_of_the_path(shape):
    points = [{"w": torch.tensor([float(v)], dtype=torch.float64)} for v in (1, 4, 9, 16, 25)[: shape.bends]]
    path = shape.path(points)
    for t in np.linspace(0, 1, 17):
        weights = shape.weights(float(t))
        assert sum(weights) == pytest.approx(1)
        assert min(weights) >= 0
        at = path.at(float(t))["w"]
        assert sum(w * p["w"] for w, p in zip(weights, points, strict=True)) == pytest.approx(at, rel=1e-13)


# -- where to train


def test_t_is_drawn_as_the_loss_to_the_power_says():
    focus = Focus(3.0)
    centres = (np.arange(32) + 0.5) / 32
    for t in centres:
        focus.note(float(t), float(1 + 4 * t))
    wanted = 0.8 * (1 + 4 * centres) ** 2 / ((1 + 4 * centres) ** 2).sum() + 0.2 / 32
    assert focus.density() == pytest.approx(wanted)
    generator = torch.Generator().manual_seed(0)
    drawn = np.histogram([focus.draw(generator) for _ in range(8000)], 32, (0, 1))[0] / 8000
    assert drawn == pytest.approx(wanted, abs=0.004)


def test_bins_of_which_nothing_is_known_are_interpolated():
    focus = Focus(2.0)
    for i, loss in ((4, 1.0), (8, 3.0)):
        focus.note((i + 0.5) / 32, loss)
    losses_ = np.interp(np.arange(32), [4, 8], [1.0, 3.0])  # those outside are as the nearest
    assert focus.density() == pytest.approx(0.8 * losses_ / losses_.sum() + 0.2 / 32)


@pytest.mark.parametrize("p", [1.0, 3.0])
def test_t_is_uniform_for_a_power_of_1_and_before_anything_is_known(p):
    focus, generator = Focus(p), torch.Generator().manual_seed(1)
    if p == 1:
        for t in (0.1, 0.5, 0.9):
            focus.note(t, 1 / t)
    drawn = [focus.draw(generator) for _ in range(800)]
    assert np.histogram(drawn, 8, (0, 1))[0].tolist() == [100] * 8  # eight draws in a row are spread over the eighths
    assert not focus.known


def test_drawing_by_the_density_gives_the_gradient_of_the_power_mean():
    """grad J_p of a scalar family, by quadrature, against the expectation of gradients under the density."""
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    w = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    losses_ = 0.1 + (w[0] - t) ** 2 + (w[1] * t - 0.2) ** 2
    (wanted,) = torch.autograd.grad(losses_.pow(3).mean().pow(1 / 3), w, retain_graph=True)
    density = losses_.detach() ** 2 / (losses_.detach() ** 2).sum()
    (drawn,) = torch.autograd.grad((density * losses_).sum(), w)
    assert torch.cosine_similarity(wanted, drawn, dim=0) > 1 - 1e-12


def test_a_negative_loss_has_no_powers():
    with pytest.raises(im.InputError, match="focus: expected 1 for a loss that can be negative"):
        Focus(3.0).note(0.5, -1.0)
    Focus(1.0).note(0.5, -1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_the_running_means(bad):
    """Another place of the same step is drawn by them."""
    focus = Focus(3.0)
    focus.note(0.5, 1.0)
    before = focus.profile
    focus.note(0.5, bad)
    assert (focus.profile, focus.finite) == (before, False)
    assert 0 <= focus.draw(torch.Generator().manual_seed(0)) < 1


# -- what is trained


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_gradients_are_those_through_the_combination(shape, t):
    p = with_ridge()
    coordinates = Coordinates.between(p.objective, p.a, p.b)
    points = [
        coordinates.flat(v).requires_grad_(0 < i < shape.bends - 1) for i, v in enumerate(shape.straight(p.a, p.b))
    ]
    slow = torch.stack(points).T @ torch.tensor(shape.weights(t), dtype=torch.float64)
    index = torch.arange(7)
    inner = points[1:-1]
    wanted = torch.autograd.grad(p.objective.batch_loss(coordinates.views(slow), index), inner, retain_graph=True)
    fast = combine(shape.weights(t), points, torch.float64)
    training = CurveTraining.start(task_of(p), shape, RECIPE, focus=1.0, draws=1, target=None, bn="recompute")
    loss = training.setting.losses.batch(coordinates.views(fast), index)
    torch.testing.assert_close(loss, p.objective.batch_loss(coordinates.views(slow), index), rtol=1e-13, atol=0)
    loss.backward()
    for point, grad, weight in zip(inner, wanted, shape.weights(t)[1:-1], strict=True):
        assert (point.grad is None) == (weight == 0)
        if point.grad is not None:
            torch.testing.assert_close(point.grad, grad, rtol=1e-12, atol=1e-14)


def task_of(p):
    return Task(p.objective, p.a, p.b, torch.Generator().manual_seed(0))


# -- the largest loss


def test_the_highest_point_is_confirmed_on_all_examples():
    def few(t):
        return 1 - abs(t - 0.4) + 0.1 * (t > 0.7)

    screened = screen(few, (0.2, 0.3), [0.41])
    assert 0.41 in screened
    assert len(screened) == 18
    assert of_screened(screened) == Highest(few(0.41), 0.41, False)
    asked = []

    def everything(t):
        asked.append(t)
        return few(t) - (0.5 if t == 0.41 else 0.0)

    found = confirm(screened, everything)
    assert found == Highest(few(0.75), 0.75, True)
    assert asked[0] == 0.41
    assert confirm(screened, lambda t: 0.0).loss == 0.3  # the larger end


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_the_highest(bad):
    found = confirm({0.0: 0.1, 0.5: bad, 1.0: 0.2}, lambda t: bad)
    assert not np.isfinite(found.loss)
    assert found.t == 0.5


def setting_of(p, **options):
    return CurveSetting.of(task_of(p), RECIPE, **{"target": None, "bn": "recompute"} | options)


def training_of(p, **options):
    chosen = {"recipe": RECIPE, "focus": 1.0, "draws": 1, "target": None, "bn": "recompute"} | options
    return CurveTraining.start(task_of(p), Bernstein(3), **chosen)


def test_a_bin_keeps_a_running_mean():
    focus = Focus(3.0)
    for loss in (1.0, 2.0):
        focus.note(0.5, loss)
    assert focus.highest == pytest.approx(1.2)


def test_a_peak_is_confirmed_while_screening_may_be_off_by_so_much():
    """Screening was off by .1 at the highest peak: the one at .98 may be higher on all examples, the one at .3 not."""
    screened = {0.0: 0.0, 0.2: 1.0, 0.3: 0.1, 0.5: 0.98, 0.6: 0.1, 0.8: 0.3, 1.0: 0.0}
    whole = {0.2: 1.1, 0.5: 1.2}
    assert confirm(screened, whole.__getitem__) == Highest(1.2, 0.5, True)


def test_the_losses_of_points_have_the_penalty():
    p = with_ridge()
    losses = CurveLosses.of(p.objective, "recompute", "own")
    assert losses.few(p.a) == pytest.approx(losses.all(p.a), rel=1e-12)
    assert losses.passes == 2
    assert losses.all(p.a) == p.objective.loss(p.a)


def test_the_rate_and_the_target_follow_from_the_ends():
    p = with_ridge()
    setting = setting_of(p)
    apart = torch.cat([(p.a[k] - p.b[k]).flatten() for k in p.objective.parameter_names])
    assert setting.recipe.lr == pytest.approx(0.024 * float(apart.square().mean().sqrt()))
    ends = [p.objective.loss(v) for v in (p.a, p.b)]
    assert setting.target == pytest.approx(1.05 * max(ends))
    below = im.Objective(p.objective.skeleton, lambda out, y: -1 - out.square().mean(1), p.objective.data)
    top = max(below.loss(v) for v in (p.a, p.b))
    assert setting_of(replace(p, objective=below)).target == pytest.approx(0.95 * top)


@pytest.mark.parametrize("t", [0.25, 0.5])
def test_statistics_that_are_interpolated_are_those_at_t(t):
    p = classify("normalised", Residual(), (1, 8, 8))
    setting, shape = setting_of(p, bn="interpolate"), Bernstein(3)
    vector = setting.combined(shape, setting.straight(shape, "bend"), t, torch.float64)
    found = setting.batch_loss(vector, t, torch.arange(p.objective.num_examples))
    assert float(found) == pytest.approx(p.objective.loss(lerp(p.a, p.b, t)), rel=1e-10)


def test_the_loss_of_a_step_is_the_mean_over_its_places():
    p = odd_widths()
    even = im.Objective(p.objective.skeleton, lambda out, y: 2.0 + 0.0 * out.sum(1), p.objective.data)
    training = training_of(replace(p, objective=even), draws=3)
    bends = training.setting.straight(training.shape, "bend")
    assert float(training._batch_loss(bends, torch.arange(4))) == pytest.approx(2.0)


def test_a_curve_is_measured_where_there_is_hope(monkeypatch):
    training, limits = training_of(odd_widths()), []
    found = Highest(1.0, 0.5, True)
    monkeypatch.setattr(CurveSetting, "highest", lambda self, shape, bends, limit: limits.append(limit) or found)
    for _ in range(2):
        training._check({})
    assert limits == [training.setting.target, 1.25]


def test_tensors_that_are_far_apart_have_larger_steps():
    """Adam's steps are in units of how far the entries of each tensor are apart, unless a rate is given."""
    p = odd_widths()
    far = {k: v + (10.0 if k.startswith("0") else 0.01) for k, v in p.a.items()}
    coordinates = Coordinates.between(p.objective, p.a, far).in_distances()
    for k, v in coordinates.views(coordinates.flat(far) - coordinates.flat(p.a)).items():
        assert torch.allclose(v, far[k] - p.a[k])
    units = coordinates.views(torch.ones(len(coordinates.flat(p.a)), dtype=torch.float64))
    assert float(units["0.weight"].mean()) == pytest.approx(10)
    assert float(units["2.weight"].mean()) == pytest.approx(0.01)
    for recipe, own in ((im.Bezier().recipe, True), (replace(im.Bezier().recipe, lr=1e-3), False)):
        assert (training_of(p, recipe=recipe).setting.coordinates.units is not None) is own
