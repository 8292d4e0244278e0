"""Theorem 2.4 and Corollary 2.5 of Freeman & Bruna 2017: the oracle, the path and its bound."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isthmus as im
from isthmus.analysis.gap_by_width import gap_by_width, schedule
from isthmus.connectors.base import Task
from isthmus.connectors.two_layer_relu.compression import HiddenLayer, TwoLayers, cap, compress
from isthmus.connectors.two_layer_relu.method import TwoLayerReLU, deviation, deviation_bound, margin
from isthmus.connectors.two_layer_relu.oracle import scaled_to, train_oracle
from isthmus.params import cast, equal, lerp
from isthmus.training.fit import Recipe
from tests.connectors.subnetwork.sparse import (
    WEIGHT,
    convolutional,
    matrix,
    params_of,
    regression,
    solved,
    squares,
    unit_rows,
)
from tests.problems import Problem, blobs, perceptron, random_params

QUICK = TwoLayerReLU(units=3, attempts=0, recipe=Recipe(lr=1e-2, steps=60))


def measured(problem, connection, points=15):
    t = torch.linspace(0, 1, points).tolist()
    return max(problem.objective.loss(s.at(v)) for s in connection.path.segments for v in t)


# -- the oracle


def test_the_oracle_learns_rows_of_the_given_length_and_beats_its_starts():
    problem = regression(m=12, kappa=1e-2)
    two, layer = solved(problem, problem.a)
    start = compress(two, layer, 3, 0.0, problem.a)
    oracle = train_oracle(
        two, 3, 1.0, [start], problem.a, Recipe(lr=1e-2, steps=300),
        attempts=1, task=Task(two.objective, problem.a, problem.b, torch.Generator().manual_seed(0)),
    )  # fmt: skip
    torch.testing.assert_close(oracle.W.norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert oracle.value < 0.98 * start.value
    assert oracle.A.shape == (1, 3, 1)
    # longer rows carry the same function with a smaller penalty
    long = scaled_to(oracle, 2.0)
    x, y = two.x, two.y
    same = [F.relu(torch.cat([x, torch.ones(60, 1).double()], 1) @ o.W.T) @ o.A[:, :, 0].T for o in (oracle, long)]
    torch.testing.assert_close(*same)
    assert long.A.abs().sum() == pytest.approx(float(oracle.A.abs().sum()) / 2)
    rest = squares(same[0] + oracle.b, y).mean() + 1e-2 * oracle.A.abs().sum()
    assert float(rest) == pytest.approx(oracle.value, rel=1e-12)


# -- the path


# every two of bias, kappa and units meet
@pytest.mark.parametrize(
    ("bias", "kappa", "units"),
    [((i + j) % 2 == 0, k, n) for i, k in enumerate((0.0, 1e-3, 1e-2)) for j, n in enumerate((1, 3, 5, 7))],
)
def test_9_segments_whose_maximum_is_an_end_or_a_vertex_of_equation_10(bias, kappa, units):
    problem = regression(bias=bias, kappa=kappa)
    method = TwoLayerReLU(units=units, attempts=0, recipe=Recipe(lr=1e-2, steps=20))
    connection = im.connect(problem.objective, problem.a, problem.b, method)
    assert [label.split("(")[-1][:-1] for label in connection.stats["segments"]] == list("ababmbaba")
    certificate = im.certify(problem.objective, connection.path, budget=0)
    assert certificate.proved
    theorem = connection.stats["theorem"]
    assert theorem["epsilon"] == theorem["vertex"]
    assert theorem["a"]["units"] <= 10 - units
    assert theorem["b"]["units"] <= 10 - units
    values = [theorem["e(n)"], *(theorem[e][k] for e in "ab" for k in ("delta(m, 0)", "delta(m - n, alpha)"))]
    assert theorem["vertex"] == max(values)
    assert theorem["bound"] == max(*theorem["ends"], theorem["vertex"])
    assert certificate.bound <= theorem["bound"] * (1 + 1e-9)
    assert measured(problem, connection, 5) <= theorem["bound"] * (1 + 1e-9)
    # the vertices are the networks that they are said to be
    losses = [problem.objective.loss(p) for p in connection.path.knots]
    assert losses[1] == pytest.approx(theorem["a"]["delta(m - n, alpha)"], rel=1e-9)
    assert losses[3] == pytest.approx(theorem["e(n)"], rel=1e-9)
    assert losses[-2] == pytest.approx(theorem["b"]["delta(m - n, alpha)"], rel=1e-9)
    for i in (1, 3, 4, 5, 7):
        segment = connection.path.segments[i]
        moved = problem.objective.outputs(segment.at(0.4)) - problem.objective.outputs(segment.start)
        assert moved.abs().max() <= 1e-12


def test_a_number_of_units_may_be_of_any_kind():
    problem = regression(m=6)
    found = [im.connect(problem.objective, problem.a, problem.b, replace(QUICK, units=n)) for n in (2, 2.0)]
    assert found[0].stats == found[1].stats


def test_the_least_epsilon_of_several_n_is_taken():
    problem = regression(m=12)
    connection = im.connect(
        problem.objective, problem.a, problem.b, TwoLayerReLU(units=(1, 4, 8), recipe=Recipe(lr=1e-2, steps=50))
    )
    tried = connection.stats["tried"]
    assert [row["n"] for row in tried] == [1, 4, 8]
    best = min(tried, key=lambda row: row["vertex"])
    assert connection.stats["theorem"]["n"] == best["n"]
    assert connection.stats["theorem"]["vertex"] == best["vertex"]
    # more units: a better oracle, less room beside it
    assert tried[0]["e"] > tried[1]["e"]
    default = im.connect(
        problem.objective, problem.a, problem.b, TwoLayerReLU(attempts=0, recipe=Recipe(lr=1e-2, steps=5))
    )
    assert [row["n"] for row in default.stats["tried"]] == [1, 3, 6]


def test_rows_stay_in_the_ball_of_both_ends():
    problem = regression(m=10)
    connection = im.connect(
        problem.objective, problem.a, problem.b, TwoLayerReLU(units=4, alpha=0.3, recipe=Recipe(lr=1e-2, steps=30))
    )
    assert connection.stats["theorem"]["radius"] == pytest.approx(1.0)
    for segment in connection.path.segments:
        for t in (0.0, 0.3, 0.7, 1.0):
            p = segment.at(t)
            assert (p["0.weight"].square().sum(1) + p["0.bias"].square()).max() <= 1 + 1e-9
    with pytest.raises(im.InputError, match=r"radius: expected at least the longest row"):
        im.connect(problem.objective, problem.a, problem.b, TwoLayerReLU(units=4, radius=0.9))


@pytest.mark.parametrize("alpha", [0.05, 0.3])
@pytest.mark.parametrize("out", [1, 2])
def test_11_segments_where_rows_may_move_and_the_bound_of_the_theorem_holds(alpha, out):
    problem = regression(m=10, out=out, kappa=1e-2)
    method = TwoLayerReLU(units=4, alpha=alpha, attempts=0, recipe=Recipe(lr=1e-2, steps=50))
    connection = im.connect(problem.objective, problem.a, problem.b, method)
    assert len(connection.path) == 11
    theorem = connection.stats["theorem"]
    certificate = im.certify(problem.objective, connection.path)
    assert certificate.proved
    assert certificate.counts["bounded"] <= 2
    top = measured(problem, connection)
    assert top <= theorem["bound"]
    assert top <= certificate.bound
    assert theorem["epsilon"] >= theorem["epsilon_of_this_path"] > theorem["vertex"]
    assert (
        theorem["vertex"]
        <= 1.0001
        * im.connect(
            problem.objective, problem.a, problem.b, TwoLayerReLU(units=4, attempts=0, recipe=Recipe(lr=1e-2, steps=50))
        ).stats["theorem"]["vertex"]
    )
    losses = [problem.objective.loss(p) for p in connection.path.knots]
    assert losses[1] == pytest.approx(theorem["a"]["delta(m, 0)"], rel=1e-9)
    assert losses[2] == pytest.approx(theorem["a"]["delta(m - n, alpha)"], rel=1e-9)


@pytest.mark.parametrize("make", [regression, convolutional])
def test_the_deviation_bounds_how_far_outputs_stray_when_both_layers_move(make):
    problem = make()
    two = TwoLayers(problem.objective)
    like = problem.a
    seen = []
    for seed in range(12):
        start = two.read(random_params(problem.objective._materialised(), seed))
        turn = cap(start.W + 0.7 * matrix(*start.W.shape, seed=seed), start.W, 0.5)
        end = HiddenLayer(turn, start.A + 0.3 * matrix(*start.A.shape, seed=seed + 50), start.b + 0.1, 0.0)
        nu = deviation(two, start, end, like)
        ends = [two.features(W, like) for W in (start.W, turn)]
        p, q = params_of(two, start, like), params_of(two, end, like)
        for t in (0.3, 0.5, 0.8):
            on_path = problem.objective.outputs(lerp(p, q, t))
            straight = (1 - t) * ends[0] @ start.A.flatten(1).T + t * ends[1] @ end.A.flatten(1).T
            stray = on_path - straight - torch.lerp(start.b, end.b, t)
            seen.append(float(stray.square().mean().sqrt()) / nu)
    assert max(seen) <= 1
    assert max(seen) > 0.01


def test_the_margin_from_kappa_and_alpha_alone_is_above_that_of_the_path():
    problem = regression(m=10, kappa=1e-2)
    two, layer = solved(problem, problem.a)
    for alpha in (0.05, 0.2, 0.6):
        moved = compress(two, layer, 5, alpha, problem.a)
        bound = deviation_bound(two, 1.0, alpha)
        assert bound is not None
        assert 0 < deviation(two, layer, moved, problem.a) <= bound
        # kappa ||A||_1 <= mean y^2, which the bound rests on
        assert two.kappa * float(moved.A.abs().sum()) <= float(two.y.square().mean())
    assert deviation_bound(TwoLayers(regression(kappa=0).objective), 1.0, 0.1) is None
    assert margin(0.0, 1.0) == 0
    # the root mean square of a sum is at most the sum of the root mean squares
    for seed in range(5):
        r, e = matrix(50, seed=seed), 0.3 * matrix(50, seed=seed + 9)
        level, nu = float(r.square().mean()), float(e.square().mean()) ** 0.5
        assert float((r + e).square().mean()) <= level + margin(nu, level)
        # and it is attained where they are parallel
        assert float((1.2 * r).square().mean()) == pytest.approx(level + margin(0.2 * level**0.5, level))


@pytest.mark.parametrize(("loss", "alpha"), [("mse", 0.0), ("mse", 0.2), ("cross_entropy", 0.0)])
def test_convolutional_networks_by_channel(loss, alpha):
    problem = convolutional(loss)
    method = TwoLayerReLU(units=3, alpha=alpha, attempts=0, recipe=Recipe(lr=1e-2, steps=20))
    connection = im.connect(problem.objective, problem.a, problem.b, method)
    theorem = connection.stats["theorem"]
    certificate = im.certify(problem.objective, connection.path)
    assert certificate.proved
    top = measured(problem, connection, 7)
    assert top <= certificate.bound
    if alpha == 0:
        assert certificate.bound <= theorem["bound"] * (1 + 1e-9)
        assert len(connection.path) == 9
    else:
        assert top <= theorem["bound"]


def test_other_losses_have_no_bound_where_rows_move_but_a_certificate():
    problem = regression(m=6, n=15)
    x, y = problem.objective.data[0], torch.arange(15) % 2
    module = perceptron([3, 6, 2]).double()
    objective = im.Objective(module, "cross_entropy", (x, y), penalty=im.L1(1e-2, WEIGHT))
    a, b = random_params(module, 1), random_params(module, 2)
    connection = im.connect(
        objective, a, b, TwoLayerReLU(units=2, alpha=0.2, attempts=0, recipe=Recipe(lr=1e-2, steps=20))
    )
    assert connection.stats["theorem"]["bound"] is None
    assert connection.stats["theorem"]["epsilon"] is None
    certificate = im.certify(objective, connection.path)
    assert certificate.proved
    assert certificate.bound >= max(objective.loss(p) for p in connection.path.knots)


def test_a_penalised_output_bias_is_counted():
    problem = regression(names=("2.weight", "2.bias"), kappa=3e-2)
    connection = im.connect(problem.objective, problem.a, problem.b, QUICK)
    theorem = connection.stats["theorem"]
    assert TwoLayers(problem.objective).bias == "penalised"
    assert measured(problem, connection, 5) <= theorem["bound"] * (1 + 1e-9)
    losses = [problem.objective.loss(p) for p in connection.path.knots]
    assert losses[3] == pytest.approx(theorem["e(n)"], rel=1e-9)


def test_float32_ends_are_kept():
    problem = regression()
    objective = problem.objective.cast(torch.float32)
    a, b = (cast(p, torch.float32) for p in (problem.a, problem.b))
    connection = im.connect(objective, a, b, QUICK)
    assert equal(connection.path.start, a)
    assert equal(connection.path.end, b)
    certificate = im.certify(objective, connection.path, budget=0)
    assert certificate.proved
    assert certificate.bound <= connection.stats["theorem"]["bound"] * (1 + 1e-5)


def test_other_networks_and_penalties_are_refused_by_name():
    def refused(error, match, module, shape=(3,), **options):
        module = module.double()
        x = matrix(8, *shape)
        objective = im.Objective(module, options.pop("loss", "mse"), (x, matrix(8, 2, seed=1)), **options)
        with pytest.raises(error, match=match):
            im.connect(objective, random_params(module, 1), random_params(module, 2), QUICK)

    refused(im.UnsupportedError, "one hidden layer, and this has 2", perceptron([3, 5, 5, 2]))
    refused(im.UnsupportedError, r"module '1' \(Tanh\): Theorem 2.4 is about ReLU", perceptron([3, 5, 2], nn.Tanh))
    refused(im.UnsupportedError, "it has no ReLU", nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)))
    network = perceptron([3, 5, 2])
    refused(im.InputError, r"l1 on the second layer.*write im.L1\(kappa", network, penalty=im.L1(0.1))
    refused(im.InputError, "l1 on the second layer", network, penalty=im.Ridge(0.1))
    refused(im.InputError, "convex", network, loss=lambda z, y: (z - y).square().mean(1))
    refused(im.InputError, "fewer than the 3 hidden units", perceptron([3, 3, 2]))
    wrong: list[dict[str, Any]] = [{"units": 0}, {"units": ()}, {"alpha": 2.0}, {"radius": -1.0}, {"attempts": -1}]
    for bad in wrong:
        with pytest.raises(im.InputError, match=next(iter(bad))):
            TwoLayerReLU(**bad)
    with pytest.raises(im.InputError, match="lr: expected a positive number"):
        TwoLayerReLU(recipe=im.Recipe(lr=0.0))


# -- Corollary 2.5


def random_layers(m):
    """Random first layers with their best last layers."""
    module = perceptron([2, m, 1], bias=False).double()
    x = matrix(60, 2)
    objective = im.Objective(module, "mse", (x, torch.sin(2 * x.sum(1, keepdim=True))), penalty=im.L1(1e-3, WEIGHT))
    ends = []
    for seed in (1, 2):
        params = unit_rows({"0.weight": matrix(m, 2, seed=seed), "2.weight": torch.zeros(1, m, dtype=torch.float64)})
        two, layer = solved(Problem("", objective, params, params), params)
        ends.append(params_of(two, layer, params))
    return objective, ends[0], ends[1]


def test_the_gap_closes_as_the_width_grows():
    rows = gap_by_width(random_layers, (6, 16, 40), TwoLayerReLU(attempts=0, recipe=Recipe(lr=1e-2, steps=100)))
    assert [row.m for row in rows] == [6, 16, 40]
    bounds = [row.epsilon for row in rows if row.epsilon is not None]
    assert all(row.measured <= max(*row.ends, e) * (1 + 1e-9) for row, e in zip(rows, bounds, strict=True))
    assert rows[-1].gap <= 1e-9
    narrow = gap_by_width(random_layers, (6,), TwoLayerReLU(units=4, attempts=0, recipe=Recipe(lr=1e-2, steps=100)))[0]
    assert narrow.gap > 1e-4
    assert narrow.excess == pytest.approx(narrow.gap, abs=1e-9)
    assert bounds[0] > bounds[1] > bounds[2]
    assert all(row.excess <= row.gap + 1e-9 for row in rows)


def test_the_schedule_of_the_corollary():
    n, alpha = schedule(4096, 1, eta=0.25)
    assert (n, alpha) == (8, pytest.approx(4096**-0.75))
    # eta - (1 - eta) / dim < 0: what dropping the units of one cell costs goes to zero
    for dim in (1, 3, 10):
        n, alpha = schedule(10**6, dim)
        assert n * alpha < schedule(10**3, dim)[0] * schedule(10**3, dim)[1] or n == 1
    row = gap_by_width(random_layers, (8,), TwoLayerReLU(attempts=0, recipe=Recipe(lr=1e-2, steps=20)), dim=2)[0]
    assert (row.n, row.alpha) == schedule(8, 2)
    for bad in ({"m": 1, "dim": 1}, {"m": 9, "dim": 0}, {"m": 9, "dim": 1, "eta": 0.5}):
        with pytest.raises(im.InputError):
            schedule(**bad)


def test_a_penalty_that_leaves_no_unit_leaves_no_rows_to_move():
    module = perceptron([3, 6, 2]).double()
    x, _ = blobs(20, (3,), 4)
    objective = im.Objective(module, "mse", (x, x[:, :2].sin()), penalty=im.L1(1e3, ("2.weight",)))
    a, b = random_params(module, 1), random_params(module, 2)
    method = TwoLayerReLU(units=2, alpha=0.3, attempts=0, recipe=Recipe(lr=1e-2, steps=5))
    found = im.connect(objective, a, b, method)
    assert not found.path.knots[2]["2.weight"].any()
    assert im.certify(objective, found).bound <= max(objective.loss(a), objective.loss(b)) * (1 + 1e-9)
