"""Patterns fixed beforehand, curves over trials, and the premises of Shevchenko and Mondelli 2020."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf, isnan, log, sqrt

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import linregress
from scipy.stats import t as student
from torch import Tensor, nn
from torch.func import functional_call

import isthmus as im
from isthmus.models import mean_field, mean_field_init, mean_field_trials, train_mean_field
from isthmus.objective.data import single
from isthmus.premises.mean_field import dropout_rate, multilayer_premises, two_layer_premises
from isthmus.stability.dropout.pattern import PatternStability, StabilityCurve, log_slope, pattern_stability, rate
from tests.problems import convolutional, odd_widths, random_params, tanh_regression, two_layers, without_bias


def masked(problem, params, kept):
    """The definition, by masks on the outputs of every unit: n / |kept| where it stays, 0 where it does not."""
    module = problem.objective._materialised()
    activations = [part for part in module if isinstance(part, nn.ReLU | nn.Tanh)]
    for l, part in enumerate(activations, start=1):
        part.register_forward_hook(partial(apply_mask, units=kept[l]))
    return functional_call(module, params, (problem.objective.data[0],))


def apply_mask(module, args, out, units):
    return out * mask(units, out)


def mask(units: list[int], out: Tensor) -> Tensor:
    keep = torch.zeros(out.shape[1], dtype=out.dtype)
    keep[torch.as_tensor(units)] = out.shape[1] / len(units)
    return keep.reshape(1, -1, *(1,) * (out.dim() - 2))


PATTERNS = {
    two_layers: {1: [0, 4, 8]},
    odd_widths: {1: [6, 1, 2], 2: [1], 3: [0, 3, 9, 10], 4: [2, 5]},
    without_bias: {1: [0, 1, 2, 7], 2: [5, 3, 1]},
    tanh_regression: {1: [0, 1], 2: [6, 0, 3]},
    convolutional: {1: [6, 2, 3], 2: [0, 1, 5], 3: [8, 7, 2, 4]},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("make", PATTERNS, ids=lambda make: make.__name__)
def test_dropping_a_pattern_is_masking_outputs_and_rescaling(make, dtype):
    problem = make()
    objective = problem.objective.cast(dtype)
    params = {k: v.to(dtype) if v.is_floating_point() else v for k, v in problem.a.items()}
    found = pattern_stability(objective, params, PATTERNS[make])
    full, small = problem.objective.outputs(problem.a), masked(problem, problem.a, PATTERNS[make])
    y = problem.objective.data[1]
    loss = (lambda z: float(F.mse_loss(z, y))) if y.is_floating_point() else (lambda z: float(F.cross_entropy(z, y)))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    assert abs(found.loss - loss(full)) < tolerance
    assert abs(found.dropped_loss - loss(small)) < tolerance * max(1, found.dropped_loss)
    assert found.change == abs(found.dropped_loss - found.loss)
    assert found.kept == {l: len(units) for l, units in PATTERNS[make].items()}
    if not y.is_floating_point():
        assert found.dropped_error == pytest.approx(float((small.argmax(1) != y).double().mean()))
        assert found.error_change == found.dropped_error - found.error
    else:
        assert isnan(found.error)


def test_averages_over_all_units_become_averages_over_those_that_stay():
    """(3.4) for two layers, and its multilayer form of section 4.1, written out."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(11, 4, generator=g, dtype=torch.float64), torch.randn(11, 2, generator=g, dtype=torch.float64)
    for widths in ((4, 10, 2), (4, 10, 9, 8, 2)):
        net = mean_field(widths, "sigmoid", seed=1).double()
        p = net.state_dict()
        M = 5
        h = torch.sigmoid(x @ p["0.weight"][:M].T + p["0.bias"][:M])
        for l in range(1, len(widths) - 2):
            h = torch.sigmoid(h @ p[f"{3 * l}.weight"][:M, :M].T / M)
        out = h @ p[f"{3 * (len(widths) - 2)}.weight"][:, :M].T / M
        found = pattern_stability(im.Objective(net, "mse", (x, y)), p, M)
        assert found.dropped_loss == pytest.approx(float(F.mse_loss(out, y)), rel=1e-12)


def test_keeping_everything_changes_nothing_and_data_come_in_chunks():
    problem = two_layers()
    assert pattern_stability(problem.objective, problem.a, 9).change < 1e-14
    small = im.Objective(problem.objective.skeleton, data=problem.objective.data, memory=1)
    one, two = (pattern_stability(o, problem.a, 4) for o in (problem.objective, small))
    assert small.chunk == 1
    assert one.dropped_loss == pytest.approx(two.dropped_loss, rel=1e-13)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (-1, "keep: expected 0 to 3 units"),
        (4, "keep: expected 0 to 3 units"),
        ({1: [0]}, r"a pattern for each of the hidden layers \[1, 2, 3, 4\], got \[1\]"),
        ({1: [0], 2: [3], 3: [0], 4: [0]}, r"keep\[2\]: expected unit numbers from 0 to 2"),
        ({1: [0], 2: [-1], 3: [0], 4: [0]}, r"keep\[2\]: expected unit numbers"),
        ({1: [[]], 2: [0], 3: [0], 4: [0]}, r"keep\[1\]: expected unit numbers"),
        ({1: [0.5], 2: [0], 3: [0], 4: [0]}, r"keep\[1\]: expected unit numbers"),
        ({1: [1, 1], 2: [0], 3: [0], 4: [0]}, r"keep\[1\]: expected every unit once"),
    ],
)
def test_patterns_that_are_none_are_refused(keep, message):
    problem = odd_widths()
    with pytest.raises(im.InputError, match=message):
        pattern_stability(problem.objective, problem.a, keep)


# -- curves


def point(change, error=0.0):
    return PatternStability({1: 1}, 1.0, 0.1, 1.0 + change, 0.1 + error)


def test_curves_hold_means_deviations_and_slopes_of_the_absolute_changes():
    trials = {N: [point(s * c / sqrt(N), 0.3 / N) for s, c in ((1, 1), (-1, 3))] for N in (400, 100, 1600)}
    curve = StabilityCurve.of("N", trials)
    assert curve.x == (100, 400, 1600)
    assert curve.mean == pytest.approx([2 / sqrt(N) for N in curve.x])
    assert curve.deviation == pytest.approx([sqrt(2) / sqrt(N) for N in curve.x])
    assert curve.error_mean == pytest.approx([0.3 / N for N in curve.x])
    assert curve.error_deviation == pytest.approx([0] * 3, abs=1e-12)
    assert curve.slope().value == pytest.approx(-0.5)
    ratios = [p / rate(N) for p, N in zip(curve.predicted, curve.x, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 3)
    assert sum(log(p / m) for p, m in zip(curve.predicted, curve.mean, strict=True)) == pytest.approx(0, abs=1e-12)
    assert -0.5 < curve.predicted_slope < -0.35
    assert isnan(StabilityCurve.of("M", {2: [point(1)]}).deviation[0])
    assert isnan(StabilityCurve.of("M", {2: [point(1), point(2, float("nan"))]}).error_deviation[0])
    with pytest.raises(im.InputError, match="points: expected at least one x"):
        StabilityCurve.of("N", {100: []})


def test_slopes_are_those_of_scipy():
    x, y = [10.0, 20.0, 70.0, 300.0, 500.0], [3.0, 1.0, 0.8, 0.05, 0.09]
    found = log_slope(x, y, 0.9)
    want = linregress([log(v) for v in x], [log(v) for v in y])
    half = student.ppf(0.95, 3) * want[4]
    assert (found.value, found.intercept) == pytest.approx(want[:2])
    assert (found.low, found.high) == pytest.approx((want[0] - half, want[0] + half))


def test_intervals_of_slopes_hold_the_truth_as_often_as_they_say():
    g = torch.Generator().manual_seed(0)
    x = [100.0 * 2**i for i in range(7)]
    for confidence in (0.5, 0.95):
        hits = 0
        for _ in range(400):
            noise = 0.3 * torch.randn(7, generator=g, dtype=torch.float64)
            found = log_slope(x, [float(5 * v**-0.6 * e.exp()) for v, e in zip(x, noise, strict=True)], confidence)
            hits += found.low <= -0.6 <= found.high
        assert abs(hits / 400 - confidence) < 4 * sqrt(confidence * (1 - confidence) / 400)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2], [1, 2], "at least 3, got 2"),
        ([1, 2, 3], [1, 2], "as many x as y"),
        ([0, 2, 3], [1, 2, 3], "x: expected positive"),
        ([1, 2, 3], [1, 0, 3], "y: expected positive"),
        ([2, 2, 2], [1, 2, 3], "two different"),
    ],
)
def test_slopes_that_cannot_be_fitted_are_refused(x, y, message):
    with pytest.raises(im.InputError, match=message):
        log_slope(x, y)
    with pytest.raises(im.InputError, match=r"confidence: expected a number in \(0, 1\)"):
        log_slope([1, 2, 3], [1, 2, 3], 95)
    with pytest.raises(im.InputError, match="more than one unit"):
        rate(1)


def gaussians(k, g, d=16):
    y = torch.randint(2, (k, 1), generator=g) * 2.0 - 1
    return torch.randn(k, d, generator=g) * (1 + 0.2 * y), y


def test_the_change_falls_with_N_and_with_M_at_any_time_of_training():
    """Theorem 1 (A): about like 1 / sqrt(M), and not with N at fixed M."""
    test, times, sizes = gaussians(800, torch.Generator().manual_seed(9)), (0.0, 4.0, 8.0), (64, 256, 1024)
    points = {t: {N: [] for N in sizes} for t in times}
    fixed, by_size = {}, {}
    for N in sizes:
        net = mean_field((16, N, 1), "clipped_relu", seed=0)
        objective = im.Objective(net, "mse", test)
        runs = mean_field_trials(net, gaussians, step=0.04, time=8, batch=16, seeds=range(10), times=times)
        for t in times:
            points[t][N] = [pattern_stability(objective, p, N // 2) for p in runs[t]]
        fixed[N] = [pattern_stability(objective, p, 16) for p in runs[8.0]]
        if N == 1024:
            by_size = {M: [pattern_stability(objective, p, M) for p in runs[8.0]] for M in (16, 64, 256)}
    assert all(trial.change > 0 for trial in fixed[1024])
    for t in times:
        assert -1.2 < StabilityCurve.of("N", points[t]).slope().value < -0.3
    assert -1.4 < StabilityCurve.of("M", by_size).slope().value < -0.3
    few, many = StabilityCurve.of("N", {N: fixed[N] for N in (256, 1024)}).mean
    assert 0.5 < few / many < 2


# -- premises


def rows(conditions):
    return {c.name: c for c in conditions}


def regression(net, widths, n=20):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, widths[0], generator=g, dtype=torch.float64)
    return im.Objective(net.double(), "mse", (x, 2 * torch.rand(n, widths[-1], generator=g, dtype=torch.float64) - 1))


def test_premises_of_theorem_1_hold_for_a_sigmoid_network():
    net = mean_field((5, 30, 1), "sigmoid", seed=0)
    objective = regression(net, (5, 30, 1))
    start = mean_field_init(net)
    found = rows(two_layer_premises(objective, time=2.0, xi=lambda t: 1 / (1 + t), start=start, bound=2.3))
    assert all(c.holds for c in found.values()), found
    x, y = single(objective.data[0]), objective.data[1]
    assert found["max |y|"].value == pytest.approx(float(y.abs().max()))
    assert found["sup |sigma|"].value == 1
    assert found["max |a| at the start"].value == float(start["3.weight"].abs().max())
    longest = float((x.square().sum(1) + 1).max().sqrt())
    assert found["sup |sigma'| max |x|"].value == pytest.approx(longest / 4)
    assert found["max xi on [0, T]"].value == 1
    assert found["Lipschitz constant of xi"].value == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize(("name", "f"), [("sigmoid", torch.sigmoid), ("tanh", torch.tanh), ("silu", F.silu)])
def test_the_suprema_of_the_table_are_those_of_the_functions(name, f):
    z = torch.linspace(-8, 8, 40001, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(f(z).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    net = mean_field((2, 3, 1), name, seed=0)
    found = rows(two_layer_premises(regression(net, (2, 3, 1)), time=1))
    assert found["sup |sigma'|"].value == pytest.approx(float(first.detach().abs().max()), rel=1e-6)
    assert found["Lipschitz constant of sigma'"].value == pytest.approx(float(second.detach().abs().max()), rel=1e-6)
    assert found["sup |sigma|"].holds == (name != "silu")


def test_premises_that_fail_are_named():
    relu = rows(two_layer_premises(regression(mean_field((3, 8, 2), seed=0), (3, 8, 2)), time=0.5))
    assert relu["sup |sigma|"].value == inf
    assert [k for k, c in relu.items() if c.holds is False] == [
        "outputs", "time T", "sup |sigma|", "Lipschitz constant of sigma'"
    ]  # fmt: skip
    assert relu["max |a| at the start"].holds is None
    plain = rows(two_layer_premises(two_layers().objective, time=1))
    assert not plain["largest |N c - 1|"].holds
    assert plain["largest |N c - 1|"].value == pytest.approx(8)
    assert not plain["square loss"].holds
    assert not rows(two_layer_premises(convolutional().objective, time=1))["convolutions"].holds
    clipped = rows(two_layer_premises(regression(mean_field((3, 8, 1), "clipped_relu", seed=0), (3, 8, 1)), time=1))
    assert clipped["sup |sigma|"].value == 4
    assert not clipped["Lipschitz constant of sigma'"].holds
    assert rows(two_layer_premises(regression(mean_field((3, 8, 1), "gelu", seed=0), (3, 8, 1)), time=1))[
        "sup |sigma|"
    ].holds is None  # fmt: skip


@pytest.mark.parametrize(
    ("xi", "name"),
    [
        (lambda t: 1.0 if t < 0.5 else 0.1, "Lipschitz constant of xi"),
        (lambda t: 1 - t, "max xi on [0, T]"),
        (lambda t: inf if t == 0 else t**-0.5, "max xi on [0, T]"),
    ],
    ids=["jump", "zero", "infinite"],
)
def test_step_size_functions_that_A1_excludes(xi, name):
    found = rows(two_layer_premises(tanh_regression().objective, time=1.0, xi=xi))
    assert not found[name].holds


def test_the_factor_may_stand_before_the_layer_after_it_or_after_the_activation():
    class ByHand(nn.Module):
        def __init__(self, late):
            super().__init__()
            self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 8, bias=False)
            self.out, self.late = nn.Linear(8, 1, bias=False), late

        def forward(self, x):
            h = self.one(x).tanh()
            h = (self.two(h) / 8).tanh() if self.late else self.two(h / 8).tanh()
            return self.out(h) * 0.125

    for late in (True, False):
        net = ByHand(late).double()
        objective = regression(net, (3, 8, 1))
        found = rows(multilayer_premises(objective, time=1))
        assert found["largest |N c - 1|"].holds
        a, b = random_params(net, 1), random_params(net, 2)
        connection = im.connect(objective, a, b, im.MeanField())
        assert im.certify(objective, connection.path).proved
        M = pattern_stability(objective, a, 4)
        h = (single(objective.data[0]) @ a["one.weight"][:4].T + a["one.bias"][:4]).tanh()
        out = (h @ a["two.weight"][:4, :4].T / 4).tanh() @ a["out.weight"][:, :4].T / 4
        assert M.dropped_loss == pytest.approx(float(F.mse_loss(out, objective.data[1])), rel=1e-12)


def test_a_factor_on_biased_outputs_is_refused_with_advice():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.out = nn.Linear(3, 8), nn.Linear(8, 1)

        def forward(self, x):
            return self.out(self.one(x).tanh()) / 8

    net = Scaled()
    with pytest.raises(im.UnsupportedError, match="scale what the layer reads instead"):
        pattern_stability(regression(net, (3, 8, 1)), random_params(net, 1), 4)


def test_premises_of_theorem_2():
    widths = (4, 12, 12, 12, 2)
    net = mean_field(widths, "tanh", seed=0).double()
    objective = regression(net, widths)
    start = mean_field_init(net, seed=1)

    def sample(k, g):
        x = torch.randn(k, 4, generator=g)
        return x, x[:, :2].tanh()

    for ends in (False, True):
        end = train_mean_field(net, sample, step=0.1, time=1.0, batch=4, start=start, train_ends=ends)
        found = rows(multilayer_premises(objective, end, time=1.0, start=start, bound=2.3))
        assert found["movement of the first and last layer"].holds == (not ends)
        assert all(c.holds for k, c in found.items() if k != "movement of the first and last layer")
    for key in ("0.weight", "0.bias", "9.weight"):  # either end, its bias too
        moved = {**start, key: start[key] + 0.5}
        found = rows(multilayer_premises(objective, moved, time=1.0, start=start))
        assert found["movement of the first and last layer"].value == pytest.approx(0.5)
        assert found["movement of the first and last layer"].holds is False
    found = rows(multilayer_premises(objective, time=1.0))
    assert found["movement of the first and last layer"].holds is None
    biased = regression(mean_field((4, 12, 9, 2), "tanh", hidden_bias=True, seed=0), (4, 12, 9, 2))
    found = rows(multilayer_premises(biased, time=1.0))
    failed = [k for k, c in found.items() if c.holds is False]
    assert failed == ["layers L + 1", "different hidden widths", "layers with bias after the first"]


def test_rates_of_both_theorems():
    assert dropout_rate((32, 400, 1), 100, 0.01) == pytest.approx(sqrt(log(100) / 100) + sqrt(0.01 * (32 + log(400))))
    assert dropout_rate((8, 400, 300, 400, 10), 50, 0.01) == pytest.approx(
        sqrt(10 / 50) + sqrt(log(400) / 400) + sqrt(0.01 * (10 + log(400)))
    )
    assert dropout_rate((20, 400, 300, 400, 10), 50, 0.0) == pytest.approx(sqrt(20 / 50) + sqrt(log(400) / 400))
    with pytest.raises(im.InputError, match="a network and 1 to N units"):
        dropout_rate((32, 400, 1), 401, 0.0)


def test_stability_is_a_value():
    found = point(0.5)
    assert replace(found, dropped_loss=0.75).change == 0.25
