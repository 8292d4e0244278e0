"""Bounds over whole paths: sound, close, affordable."""

import json
from statistics import median

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.certify import verify_certificate
from isthmus.certify.bounds import Bound, Bounds, _convex, unsure
from isthmus.certify.branch import FLOOR, SearchTask, close, search
from isthmus.certify.forms import Form
from isthmus.errors import UnsupportedError
from tests.problems import blobs, convolutional, odd_widths, perceptron, random_params, tanh_regression, two_layers

PROBLEMS = (two_layers, odd_widths, tanh_regression, convolutional)


def straight(problem) -> im.Path:
    return im.Path.through([problem.a, problem.b])


def bent(problem, degree: int = 2) -> im.Path:
    fresh = [random_params(problem.objective.skeleton, 5 + i) for i in range(degree - 1)]
    middle = [{k: p[k] if v.is_floating_point() else v for k, v in problem.a.items()} for p in fresh]
    return im.Path((im.Curve((problem.a, *middle, problem.b)),))


def largest(objective: im.Objective, path: im.Path, points: int = 401) -> tuple[float, float]:
    at = torch.linspace(0, 1, points, dtype=torch.float64).tolist()
    values = [objective.measure(path.at(t)) for t in at]
    return max(v for v, _ in values), max(e for _, e in values)


def known(bound: float | None) -> float:
    assert bound is not None
    return bound


def control(path: im.Path) -> tuple[im.Params, ...]:
    segment = path.segments[0]
    assert isinstance(segment, im.Curve)
    return segment.control


# -- what a certificate says


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("route", [straight, bent], ids=lambda f: f.__name__)
def test_the_bound_is_above_the_path_and_within_the_gap(make, route):
    problem = make()
    path = route(problem)
    top, error = largest(problem.objective, path)
    for gap in (0.1, 0.005):
        c = im.certify(problem.objective, path, gap, budget=2000)
        assert c.proved
        assert c.segments[0].claim == "bounded"
        assert top <= c.bound <= (1 + gap) * top + FLOOR
        assert 0 <= c.gap <= gap
        t, value = c.witness
        assert problem.objective.loss(path.at(t)) == pytest.approx(value, rel=1e-12)
        assert value <= top * (1 + 1e-6) or value <= c.bound
        assert c.evaluations <= 2000
        assert 0 < c.slack < 1e-8
        if problem.objective.has_error:
            assert error <= known(c.error_bound) <= 1
        else:
            assert c.error_bound is None


def test_every_kind_of_segment_on_one_path():
    """A constructed path continued by a line and a curve: exact where possible, bounded elsewhere, one maximum."""
    problem = two_layers()
    b = problem.objective.structure.permute(problem.b, {"0": torch.arange(9).flip(0)})
    path = im.connect(problem.objective, problem.a, problem.b, im.Dropout(masks=2)).path
    path = path + im.Path((im.Curve((path.end, problem.a, b)),)) + im.Path.through([b, problem.a])
    c = im.certify(problem.objective, path)
    assert set(c.counts) == {"unchanged", "convex", "bounded"}
    assert c.counts["bounded"] == 2
    for i, (segment, proof) in enumerate(zip(path.segments, c.segments, strict=True)):
        top = max(problem.objective.loss(segment.at(k / 100)) for k in range(101))
        wrong = max(problem.objective.error(segment.at(k / 100)) for k in range(101))
        assert top <= proof.bound, i
        assert wrong <= known(proof.error_bound) + 1e-12, i
        assert problem.objective.loss(segment.at(proof.witness)) == pytest.approx(proof.value)
    assert c.gap <= 0.01
    json.dumps(c.to_dict(), allow_nan=False)


def test_effort_is_spent_where_the_maximum_is():
    """Of ten segments nine are low: they keep their first sub-intervals."""
    problem = two_layers()
    near = [{k: v * (1 + 1e-3 * i) for k, v in problem.a.items()} for i in range(9)]
    c = im.certify(problem.objective, im.Path.through([*near, problem.b]), 0.001)
    counts = [len(s.intervals) for s in c.segments]
    assert counts[:-1] == [8] * 8
    assert counts[-1] > 8
    assert c.gap <= 0.001


def test_the_budget_is_respected_and_its_bound_is_still_one():
    problem = odd_widths()
    path = straight(problem)
    top, _ = largest(problem.objective, path)
    before = float("inf")
    for budget in (1e-9, 0.5, 1, 3):
        c = im.certify(problem.objective, path, 1e-9, model="box", budget=budget)
        assert c.cost <= budget or c.evaluations == 1
        assert c.proved
        assert top <= c.bound <= before
        assert c.gap > 1e-6
        before = c.bound
    none = im.certify(problem.objective, path, budget=0)
    assert none.segments[0].claim == "measured"
    assert not none.proved
    with pytest.raises(im.InputError, match="budget: expected a number of profiles >= 0, got -1"):
        im.certify(problem.objective, path, budget=-1)


@pytest.mark.parametrize("make", [two_layers, odd_widths, tanh_regression], ids=lambda m: m.__name__)
@pytest.mark.parametrize("route", [straight, bent, lambda p: bent(p, 3)], ids=["line", "quadratic", "cubic"])
def test_the_excess_of_a_bound_falls_fourfold_per_halving(make, route):
    """At most places: around a kink of a ReLU the excess only halves, until the interval no longer holds it."""
    problem = make()
    path = route(problem)
    bounds = Bounds(problem.objective, problem.objective.program, control(path))
    ratios = []
    for start in torch.linspace(0.02, 0.95, 12).tolist():
        excess = []
        for width in (2.0**-9, 2.0**-10):
            top = max(problem.objective.loss(path.at(start + width * j / 30)) for j in range(31))
            excess.append(bounds.over(start, start + width).loss - top)
        ratios.append(excess[0] / excess[1])
        assert excess[1] > 0
    assert 3.9 < median(ratios) < 4.2, ratios


def test_losses_that_are_almost_zero_stop_at_the_floor():
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, _ = blobs(12, (3,), 4)
    a = random_params(module, 1)
    objective = im.Objective(module, "mse", (x, torch.zeros(12, 2, dtype=torch.float64)))
    a["2.weight"], a["2.bias"] = a["2.weight"] * 1e-9, a["2.bias"] * 0
    b = {k: v * (1.1 if k.startswith("0") else 1.0) for k, v in a.items()}
    c = im.certify(objective, im.Path.through([a, b]))
    assert c.proved
    assert 0 < c.witness[1] < 1e-15
    assert c.bound - c.witness[1] <= FLOOR
    assert c.evaluations == 8
    assert close(2e-9, 1.5e-9, 0.01)
    assert not close(3e-9, 1.5e-9, 0.01)


# -- losses, errors, penalties


def everything(n: int = 12):
    module = perceptron([5, 9, 4]).double()
    x, y = blobs(n, (5,), 4)
    soft = torch.rand(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hot = nn.functional.one_hot(y, 4).double()
    return module, x, y, soft, hot


def huber(z, y):
    return nn.functional.smooth_l1_loss(z, y, reduction="none").sum(1)


LOSSES = ("labels", "soft", "one-hot", "half", "mse", "convex callable")
PENALTIES = (None, im.Ridge(0.05), im.L1(0.05), im.Ridge(0.1, ("0.weight",)))
# bounds of a loss and of a penalty are added: every loss and every penalty on every degree, not all products
ADDED = [(name, PENALTIES[(i + k) % 4], k) for i, name in enumerate(LOSSES) for k in (1, 2, 3)]


@pytest.mark.parametrize(("name", "penalty", "degree"), ADDED, ids=str)
def test_losses_and_penalties(name, penalty, degree):
    module, x, y, soft, hot = everything()
    targets = {"labels": y, "soft": soft / soft.sum(1, keepdim=True), "one-hot": hot, "half": soft * (soft > 0.5)}
    loss = {"mse": "mse", "convex callable": huber}.get(name, "cross_entropy")
    objective = im.Objective(module, loss, (x, targets.get(name, hot)), convex=True, penalty=penalty)
    control = tuple(random_params(module, i) for i in range(degree + 1))
    curve, bounds = im.Curve(control), Bounds(objective, objective.program, control)
    for start, end in ((0.0, 0.125), (0.5, 0.5625), (0.97, 1.0)):
        found = bounds.over(start, end)
        values = [objective.measure(curve.at(start + (end - start) * k / 16)) for k in range(17)]
        assert max(v for v, _ in values) <= found.loss
        assert all(e <= found.error for _, e in values) or not objective.has_error
        assert found.estimate == pytest.approx(values[8][0], rel=0.1)
    path = im.Path((curve,))
    c = im.certify(objective, path, 0.02, budget=3000)
    assert c.gap <= 0.02
    assert largest(objective, path, 201)[0] <= c.bound


@pytest.mark.parametrize("penalty", [im.Ridge(0.5), im.L1(0.5)], ids=str)
def test_a_penalty_that_rises_and_falls_stays_below_its_line(penalty):
    """Control points far out: the penalty has its maximum inside, above the chord of its ends."""
    problem = two_layers()
    objective = im.Objective(perceptron([5, 9, 4]).double(), data=problem.objective.data, penalty=penalty)
    far = {k: 5 * v + 1 for k, v in problem.a.items()}
    for points in ((problem.a, far, problem.b), (problem.a, far, problem.b, far, problem.a)):
        curve, bounds = im.Curve(points), Bounds(objective, objective.program, points)
        for start, end in ((0.0, 1.0), (0.25, 0.75), (0.4, 0.41)):
            low, high = bounds.penalty(start, end)
            for k in range(101):
                value = objective.penalty_of(curve.at(start + (end - start) * k / 100))
                assert value <= low + (high - low) * k / 100
        assert low == pytest.approx(objective.penalty_of(curve.at(0.4)), rel=1e-2)


def test_outputs_with_positions_are_averaged():
    module = nn.Sequential(nn.Conv1d(2, 5, 3, padding=1), nn.Tanh(), nn.Conv1d(5, 3, 1)).double()
    x, _ = blobs(9, (2, 6), 4)
    y = torch.randint(0, 3, (9, 6), generator=torch.Generator().manual_seed(0))
    objective = im.Objective(module, "cross_entropy", (x, y))
    path = im.Path.through([random_params(module, 1), random_params(module, 2)])
    c = im.certify(objective, path)
    top, error = largest(objective, path, 201)
    assert top <= c.bound <= 1.01 * top
    assert error <= known(c.error_bound) < error + 0.15


def test_the_error_bound_tightens():
    problem = two_layers()
    path = straight(problem)
    bounds = Bounds(problem.objective, problem.objective.program, control(path))
    for width, spare in ((2.0**-4, 0.5), (2.0**-12, 0.05)):
        assert bounds.over(0.4, 0.4 + width).error <= problem.objective.error(path.at(0.4)) + spare


def test_a_custom_error_has_no_bound_and_exact_segments_have_one():
    problem = two_layers()
    moved = dict(problem.a) | {"2.bias": problem.a["2.bias"] + 0.3 * torch.arange(4)}
    path = im.Path.through([problem.a, moved])
    c = im.certify(problem.objective, path)
    assert c.segments[0].claim == "convex"
    assert largest(problem.objective, path)[1] <= known(c.error_bound)
    top5 = im.Objective(
        perceptron([5, 9, 4]).double(), data=problem.objective.data, error=lambda z, y: (z[:, 0] > 0).double()
    )
    assert im.certify(top5, straight(problem)).error_bound is None


# -- precision, dead units, what is refused


def test_float32_paths_are_certified_in_float64():
    problem = odd_widths()
    x, y = problem.objective.data
    assert isinstance(x, torch.Tensor)
    objective = im.Objective(perceptron([5, 7, 3, 11, 6, 4]), "cross_entropy", (x.float(), y))
    path = straight(problem).map(lambda p: {k: v.float() for k, v in p.items()})
    c = im.certify(objective, path)
    assert (c.dtype, c.proved) == ("float64", True)
    wide = objective.cast(torch.float64)
    assert max(wide.loss({k: v.double() for k, v in path.at(k / 200).items()}) for k in range(201)) <= c.bound
    assert c.gap <= 0.01
    assert verify_certificate(objective, path, c.to_dict()) == []


def test_weights_into_dead_units_do_not_loosen_the_bound():
    problem = two_layers()
    a = problem.objective.structure.silence(problem.a, {"0": [0, 1]})
    b = problem.objective.structure.silence(problem.b, {"0": [0, 1]})
    wild = dict(b) | {"0.weight": b["0.weight"].clone()}
    wild["0.weight"][:2] = 1e3
    one = im.certify(problem.objective, im.Path.through([a, b]))
    two = im.certify(problem.objective, im.Path.through([a, wild]))
    assert two.bound == pytest.approx(one.bound, rel=1e-9)
    assert two.evaluations == one.evaluations


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.two(torch.atan(self.one(x)))


def test_operations_without_a_rule_are_measured_by_name():
    x, y = blobs(12, (5,), 4)
    objective = im.Objective(Unknown().double(), data=(x, y))
    path = im.Path.through([random_params(Unknown(), 1), random_params(Unknown(), 2)])
    c = im.certify(objective, path)
    assert not c.proved
    assert c.segments[0].claim == "measured"
    assert "atan (test_bounded.py:" in c.segments[0].why
    assert "torch.atan" in c.segments[0].why
    assert c.error_bound is None
    assert verify_certificate(objective, path, c.to_dict()) == []


def test_losses_without_a_rule_are_measured():
    problem = two_layers()
    x, y = problem.objective.data
    path = straight(problem)
    wavy = im.Objective(perceptron([5, 9, 4]).double(), lambda z, y: z.sum(1).sin(), (x, y))
    row = im.certify(wavy, path).segments[0]
    assert row.claim == "measured"
    assert "not declared convex" in row.why
    module = perceptron([5, 9, 40]).double()
    wide = im.Objective(module, lambda z, y: z.square().sum(1), (x, y), convex=True)
    row = im.certify(wide, im.Path.through([random_params(module, 1), random_params(module, 2)])).segments[0]
    assert row.claim == "measured"
    assert "at most 32 outputs, not 40" in row.why


def test_variances_that_may_be_negative_have_no_bound():
    module = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)).double().eval()
    objective = im.Objective(module, data=blobs(12, (5,), 4))
    a = random_params(module, 1)

    def with_variance(factor: float):
        return dict(a) | {"1.running_var": torch.full_like(a["1.running_var"], factor)}

    # 2 (1 - t)^2 + t^2 / 10 stays above 0.09, but its form over [0, 1] does not
    path = im.Path((im.Curve((with_variance(2.0), with_variance(0.0), with_variance(0.1))),))
    assert Bounds(objective, objective.program, control(path)).over(0.0, 1.0).loss == float("inf")
    row = im.certify(objective, path, budget=1e-9).segments[0]
    assert row.claim == "measured"
    assert "did not become finite within 1 sub-intervals" in row.why
    c = im.certify(objective, path)
    assert c.proved
    assert largest(objective, path)[0] <= c.bound <= 1.01 * largest(objective, path)[0]
    with pytest.raises(im.InputError, match="expected a finite loss, got nan"):
        im.certify(objective, im.Path((im.Curve((with_variance(0.1), with_variance(-1.0), with_variance(0.1))),)))


def test_a_segment_whose_bound_a_sample_contradicts_is_given_up():
    """The loss at a sample is above what the bound says: the segment is not bounded, and says why."""

    def confront(i, t, value, bound):
        raise UnsupportedError("its graph", f"{value} at t = {t} is above the bound {bound}")

    result = search(
        [0],
        SearchTask(lambda i, start, end: Bound(1.0, 0.0, 5.0), lambda i, t: 3.0, lambda i: (0.5, 0.5), confront),
        best=0.5,
        gap=0.01,
        budget=100,
        progress=lambda *_: None,
    )
    assert result.pieces == {}
    assert "above the bound" in result.refused[0]


def test_what_is_far_from_its_bound_is_cut_in_four():
    """An excess of 40 width^2 is within .01 at a width of 1/64: 1 + 4 + 16 + 64 bounds, with halves 127."""

    def bound(i, start, end):
        return Bound(1 + 40 * (end - start) ** 2, 0.0, 0.0)

    asked = SearchTask(bound, lambda i, t: 1.0, lambda i: (1.0, 1.0), lambda i, t, value, bound: None)
    result = search([0], asked, best=1.0, gap=0.01, budget=1000, first=1, progress=lambda *_: None)
    assert result.evaluations == 85
    assert len(result.pieces[0]) == 64


@pytest.mark.parametrize("loss", ["mse", nn.MSELoss(reduction="sum"), nn.BCEWithLogitsLoss(), nn.HuberLoss()], ids=str)
def test_outputs_that_are_one_number_each_have_bounds(loss):
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1), nn.Flatten(0))
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(13, 5, generator=g), torch.rand(13, generator=g)
    a, b = ({k: torch.randn(v.shape, generator=g) for k, v in module.state_dict().items()} for _ in range(2))
    objective, path = im.Objective(module, loss, (x, y)), im.Path.through([a, b])
    c = im.certify(objective, path)
    assert c.proved
    assert max(objective.loss(path.at(k / 50)) for k in range(51)) <= c.bound * (1 + 1e-6)


# -- single examples


def test_a_class_that_may_be_as_large_is_no_sure_answer():
    """At a tie, which the forms cannot tell from a defeat: for points, slopes and radii alike."""
    objective = im.Objective(torch.nn.Linear(2, 3).double(), data=(torch.eye(2).double(), torch.tensor([0, 0])))
    zero, y = torch.zeros(2, 3).double(), torch.tensor([0, 0])
    half = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.5, 0.0]]).double()
    one = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).double()
    tied = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.5, 0.0]]).double()
    for z in (Form(tied), Form(one, half), Form(one, zero, half)):
        assert unsure(objective, z, y).tolist() == [1.0, 0.0]


def test_a_convex_loss_of_what_may_be_infinite_has_no_bound():
    """Not even where the loss itself is not a number there: inf - inf."""
    x, y = torch.eye(2).double(), torch.tensor([0, 1])
    spread = im.Objective(torch.nn.Linear(2, 3).double(), lambda z, y: z.var(1), data=(x, y), convex=True)
    radius = torch.tensor([[0.0, 0.0, torch.inf], [0.0, 0.0, 0.0]]).double()
    assert _convex(spread, torch.ones(2, 3).double(), radius, y, 10).tolist() == [torch.inf] * 2
