"""Experiments A and B, layer by layer, against networks written out in full and against scipy's Brent."""

import json
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar

import isthmus as im
from isthmus.structure.chain import chain_of
from isthmus.training.fit import Recipe
from tests.connectors.subnetwork.test_subnetwork import trained
from tests.problems import blobs, classify, convolutional, perceptron

QUICK = Recipe(lr=0.01, batch=8, steps=60)


@pytest.fixture(scope="module")
def pair():
    return trained([5, 11, 13, 12, 4])


def written_out(objective, params, row):
    """xi_l at full size: layers <= l as they are, xi_l in the first units above, zeros elsewhere."""
    chain = chain_of(objective.program, objective.structure)
    theta, l = chain.read(params), row.layer
    for p, small in row.weights.A.items():
        A, b = torch.zeros_like(theta.A[p]), torch.zeros_like(theta.b[p])
        columns = row.reads if p == l + 1 else torch.arange(small.shape[1])
        A[: len(small), columns], b[: len(small)] = small, row.weights.b[p]
        theta.A[p], theta.b[p] = A, b
    return chain.write(theta, params)


@pytest.mark.parametrize("bias", [True, False])
def test_every_row_is_the_loss_of_a_network_on_half_of_the_units(bias):
    objective, a, _ = trained([5, 11, 13, 12, 4], bias=bias)
    test = objective.on(blobs(16, (5,), 4, seed=9))
    bounds = im.subnetwork_bounds(objective, a, draws=3, recipe=QUICK, target=0.0, test=test.data)
    assert [row.layer for row in bounds.layers] == [0, 1, 2, 3]
    assert (bounds.reference, bounds.reference_error) == objective.measure(a)
    assert (bounds.test_reference, bounds.test_reference_error) == test.measure(a)
    widths = [5, 11, 13, 12]
    for l, row in enumerate(bounds.layers):
        full = written_out(objective, a, row)
        assert objective.measure(full) == pytest.approx((row.loss, row.error), rel=1e-9)
        assert test.measure(full) == pytest.approx((row.test_loss, row.test_error), rel=1e-9)
        assert len(row.reads) == (5 if l == 0 else -(-widths[l] // 2))
        assert {p: len(A) for p, A in row.weights.A.items() if p < 4} == {p: widths[p] // 2 for p in range(l + 1, 4)}
        assert len(row.losses) == (3 if l else 1)
        assert row.losses[row.best] == min(row.losses) == pytest.approx(row.loss, rel=1e-9)
        assert bounds.at(l) is row
    assert bounds.bound == max(bounds.reference, *(row.loss for row in bounds.layers))
    assert bounds.at(bounds.limited_by).loss == max(row.loss for row in bounds.layers)


def test_training_stops_where_nothing_lowers_the_bound_any_more():
    objective, a, _ = trained([5, 24, 24, 4])
    recipe = Recipe(lr=0.01, batch=24, steps=600)
    early = im.subnetwork_bounds(objective, a, draws=2, recipe=recipe)
    assert all(0 < row.loss <= early.reference for row in early.layers)
    assert early.bound == early.reference
    assert any(row.loss > early.reference / 10 for row in early.layers)  # training did stop there
    late = im.subnetwork_bounds(objective, a, draws=2, recipe=recipe, target=early.reference / 10)
    assert all(row.loss <= early.reference / 10 for row in late.layers)


@pytest.mark.parametrize("fraction", [0.5, 2 / 3, 0.75])
@pytest.mark.parametrize("bias", [True, False])
def test_corollary_4_2_a_is_never_above_b(bias, fraction):
    """A starts at B's best subnetwork: with one step that is too small to matter, and after training."""
    objective, a, _ = trained([5, 11, 13, 12, 4], bias=bias)
    b = im.dropout_bounds(objective, a, fraction=1 - fraction, draws=12)
    for recipe in (Recipe(lr=1e-12, steps=1, batch=24), QUICK):
        for draws in (1, 3):
            bounds = im.subnetwork_bounds(
                objective, a, fraction=fraction, draws=draws, init="dropout", masks=12, recipe=recipe, target=0.0
            )
            for l in (1, 2, 3):
                assert bounds.at(l).loss <= b.at(l).loss * (1 + 1e-9)
            assert bounds.at(0).loss <= b.at(1).loss * (1 + 1e-9)
            if draws == 1 and recipe is not QUICK:  # the start is that network exactly
                assert bounds.at(1).loss == pytest.approx(b.at(1).loss, rel=1e-6)
                assert bounds.at(0).loss == pytest.approx(b.at(1).loss, rel=1e-6)


def test_convolutional_networks_too():
    problem = convolutional()
    test = blobs(10, (1, 8, 8), 4, seed=3)
    b = im.dropout_bounds(problem.objective, problem.a, draws=4, test=test)
    bounds = im.subnetwork_bounds(
        problem.objective, problem.a, draws=2, init="dropout", masks=4, recipe=QUICK, target=0.0, test=test
    )
    for row in bounds.layers:
        full = written_out(problem.objective, problem.a, row)
        assert problem.objective.loss(full) == pytest.approx(row.loss, rel=1e-9)
        assert row.loss <= b.at(max(row.layer, 1)).loss * (1 + 1e-9)
        assert 0 <= row.test_error <= 1


@pytest.mark.parametrize("fraction", [0.5, 2 / 3, 0.75, 1 / 3])
def test_experiment_b_has_the_scale_that_brent_finds(pair, fraction):
    objective, a, _ = pair
    chain = chain_of(objective.program, objective.structure)
    test = objective.on(blobs(16, (5,), 4, seed=9))
    bounds = im.dropout_bounds(objective, a, fraction=fraction, draws=10, test=test)
    assert [row.layer for row in bounds.layers] == [1, 2, 3]
    x, y = objective.data
    for row in bounds.layers:
        l = row.layer
        assert all(len(A) == int(fraction * chain.widths[p] + 1e-9) for p, A in row.weights.A.items() if p < 4)
        # the network with the kept rows and columns of theta itself, and the scale by scipy
        theta = chain.read(a)
        kept = {l - 1: torch.arange(chain.widths[l - 1])}
        for p in range(l, 4):
            rows = row.weights.b[p]
            kept[p] = torch.stack([(theta.b[p] == r).all(1).nonzero()[0, 0] for r in rows])
        h = chain.features(a, x, l - 1, 24)
        for p in range(l, 4):
            factor = chain.widths[p - 1] / len(kept[p - 1]) if p > l else 1.0
            W = theta.A[p][kept[p]][:, kept[p - 1], 0]
            h = (factor * h @ W.T + theta.b[p][kept[p]].sum(1)).relu()
        z = h @ theta.A[4][:, kept[3], 0].T * (12 / len(kept[3]))

        offset = theta.b[4].sum(1)

        def loss(s, z=z, offset=offset):
            return float(objective.example_losses(s * z + offset, y).mean())

        brent: Any = minimize_scalar(loss, bracket=(0, 1), options={"xtol": 1e-9})
        # a subnetwork that separates the data has no finite best scale: ours is searched up to 100
        assert row.loss == pytest.approx(loss(min(brent.x, 100.0)), abs=1e-6)
        assert 0 <= row.error <= 1
        assert row.test_loss > 0
        assert row.losses[row.best] == min(row.losses) == pytest.approx(row.loss, rel=1e-9)


def test_the_same_seed_gives_the_same_bounds_and_nothing_is_written(pair):
    objective, a, _ = pair
    before, state = {k: v.clone() for k, v in a.items()}, torch.random.get_rng_state()
    one, two = (im.subnetwork_bounds(objective, a, draws=2, recipe=QUICK, seed=4) for _ in range(2))
    assert [r.losses for r in one.layers] == [r.losses for r in two.layers]
    other = im.subnetwork_bounds(objective, a, draws=2, recipe=QUICK, seed=5, target=0.0)
    assert one.layers[1].losses != other.layers[1].losses
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in a.items())
    plain = json.loads(json.dumps(one.to_dict()))
    assert plain["bound"] == one.bound
    assert plain["layers"][2]["losses"] == list(one.layers[2].losses)


def test_only_the_layers_asked_for_and_float32(pair):
    objective, a, _ = pair
    single = objective.cast(torch.float32)
    bounds = im.subnetwork_bounds(
        single, {k: v.float() for k, v in a.items()}, draws=2, recipe=QUICK, layers=[2, 0], init="random", target=0.0
    )
    assert [row.layer for row in bounds.layers] == [0, 2]
    assert bounds.at(2).weights.A[3].dtype == torch.float32
    with pytest.raises(im.InputError, match=r"one of \[0, 2\], got 1"):
        bounds.at(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.4}, r"fraction: expected a number in \[1/2, 1\)"),
        ({"fraction": 1.0}, r"fraction: expected a number in \[1/2, 1\)"),
        ({"draws": 0}, "at least 1 random subset"),
        ({"init": "zero"}, "'theta', 'random' or 'dropout'"),
        ({"layers": [4]}, r"some of 0 .. 3"),
        ({"layers": []}, r"some of 0 .. 3"),
        ({"hub_steps": 0}, "hub_steps: expected"),
    ],
)
def test_misuse_is_refused(pair, options, message):
    with pytest.raises(im.InputError, match=message):
        im.subnetwork_bounds(pair[0], pair[1], **options)


def test_misuse_of_experiment_b_is_refused(pair):
    with pytest.raises(im.InputError, match=r"fraction: expected a number in \(0, 1\)"):
        im.dropout_bounds(pair[0], pair[1], fraction=0)
    flat = im.Objective(torch.nn.Linear(2, 2), data=(torch.eye(2), torch.tensor([0, 1])))
    with pytest.raises(im.InputError, match="at least one hidden layer"):
        im.subnetwork_bounds(flat, {"weight": torch.eye(2), "bias": torch.zeros(2)})


def test_bounds_leave_a_penalty_out_on_both_sides():
    """With it in the network's own loss alone, that would seem to limit the path."""
    problem = classify("penalty", perceptron([5, 8, 8, 4]), (5,))
    heavy = im.Objective(problem.objective.skeleton, data=problem.objective.data, penalty=im.Ridge(10.0))
    for make in (im.subnetwork_bounds, im.dropout_bounds):
        plain, found = (make(o, problem.a, draws=3) for o in (problem.objective, heavy))
        assert found.reference == pytest.approx(plain.reference, rel=1e-9)
        assert found.limited_by == plain.limited_by
        assert found.bound == pytest.approx(plain.bound, rel=1e-6)
        tested = make(heavy, problem.a, draws=3, test=problem.objective.data)
        assert tested.test_reference == pytest.approx(plain.reference, rel=1e-9)
