"""Segment counts, vertices and figures of Theorem 3 of Kuditipudi et al."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.base import describe
from isthmus.params import equal
from isthmus.structure.chain import chain_of
from isthmus.training.fit import Recipe, fit
from tests.problems import PROBLEMS, classify, convolutional, perceptron, random_params

WIDTHS = [[5, 9, 4], [5, 8, 6, 4], [5, 7, 3, 11, 6, 4], [5, 6, 6, 6, 6, 6, 4]]
deep = pytest.mark.parametrize("widths", WIDTHS, ids=str)
QUICK = im.Narrow(draws=2, recipe=im.Recipe(steps=5))


def connect(widths, method, *, bias=True, seed=0):
    problem = classify("chain", perceptron(widths, bias=bias), (widths[0],))
    return problem, im.connect(problem.objective, problem.a, problem.b, method, seed=seed)


OPTIONS = ({}, {"width": 1}, {"width": 1, "p": 0.5, "counts": "bernoulli"})


# every two of widths, bias and options meet
@pytest.mark.parametrize(
    ("widths", "bias", "options"),
    [(w, (i + j) % 2 == 0, o) for i, w in enumerate(WIDTHS) for j, o in enumerate(OPTIONS)],
    ids=str,
)
def test_13_segments_whose_middle_is_proved_exactly(widths, bias, options):
    problem, connection = connect(widths, replace(QUICK, **options), bias=bias)
    assert len(connection.path) == 13
    assert equal(connection.path.end, problem.b)
    middle = im.certify(problem.objective, connection.path, budget=0).segments[1:12]
    assert [s.claim for s in middle] == ["unchanged", "convex", *["unchanged"] * 7, "convex", "unchanged"]
    assert [label[-2] for label in connection.stats["segments"]] == list("dbabbmbmbbabd")
    bound = max(s.bound for s in middle)
    noise, hub = connection.stats["noise"], connection.stats["network"]
    vertices = max(noise["a"]["loss_at_theta_1"], noise["b"]["loss_at_theta_1"], hub["loss"])
    assert bound == pytest.approx(vertices, rel=1e-9)


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)
def test_outputs_do_not_move_but_on_the_two_exchanges(make):
    problem = make()
    connection = im.connect(problem.objective, problem.a, problem.b, QUICK)
    for k in (1, *range(3, 10), 11):
        segment = connection.path.segments[k]
        start = problem.objective.outputs(segment.start)
        for t in (0.3, 0.8, 1.0):
            assert (problem.objective.outputs(segment.at(t)) - start).abs().max() <= 1e-12 * start.abs().max()


def test_a_given_network_is_met_on_the_path():
    problem = classify("", perceptron([5, 9, 8, 4]), (5,))
    small = perceptron([5, 3, 2, 4]).double()
    params = random_params(small, 7)
    connection = im.connect(problem.objective, problem.a, problem.b, im.Narrow(network=params, draws=2))
    own = im.Objective(small, data=problem.objective.data)
    torch.testing.assert_close(problem.objective.outputs(connection.path.knots[9]), own.outputs(params))
    hub = connection.stats["network"]
    assert hub["loss"] == pytest.approx(own.loss(params), rel=1e-12)
    assert (hub["widths"], hub["source"]) == ([3, 2], "given")
    # the dropped count is matched to its widths
    assert hub["dropped"] == {"a": [3, 2], "b": [3, 2]}
    assert connection.stats["noise"]["a"]["factors"] == {"1": 9 / 6, "2": 8 / 6}


def test_a_given_convolutional_network_is_met_on_the_path():
    problem = convolutional()
    small = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * 4, 3), nn.ReLU(), nn.Linear(3, 4),
    ).double().eval()  # fmt: skip
    params = random_params(small, 7)
    connection = im.connect(problem.objective, problem.a, problem.b, im.Narrow(network=params, draws=2))
    own = im.Objective(small, data=problem.objective.data)
    torch.testing.assert_close(problem.objective.outputs(connection.path.knots[9]), own.outputs(params))
    middle = im.certify(problem.objective, connection.path, budget=0).segments[1:12]
    assert [s.claim for s in middle] == ["unchanged", "convex", *["unchanged"] * 7, "convex", "unchanged"]


@deep
def test_both_ends_of_the_middle_are_algorithm_1(widths):
    problem, connection = connect(widths, QUICK)
    chain = chain_of(problem.objective.program, problem.objective.structure)
    for knot, theta, end in ((1, problem.a, "a"), (12, problem.b, "b")):
        have, want = chain.read(connection.path.knots[knot]), chain.read(theta)
        row = connection.stats["noise"][end]
        for l in range(1, chain.L + 1):
            columns = torch.ones(chain.widths[l - 1]).double()
            if l > 1:
                columns.zero_()[torch.tensor(row["kept"][str(l - 1)])] = row["factors"][str(l - 1)]
            assert torch.equal(have.A[l], want.A[l] * columns[:, None])
            assert torch.equal(have.b[l], want.b[l])


@deep
def test_the_narrow_network_stands_on_units_that_b_has_dropped(widths):
    problem, connection = connect(widths, QUICK)
    chain = chain_of(problem.objective.program, problem.objective.structure)
    hub = chain.read(connection.path.knots[9])
    for l in range(1, chain.L):
        used = (hub.A[l].flatten(1) != 0).any(1).nonzero().flatten().tolist()
        assert used
        assert not set(used) & set(connection.stats["noise"]["b"]["kept"][str(l)])


def test_how_many_units_are_dropped():
    def row(widths=(5, 10, 8, 4), **options):
        _, connection = connect(list(widths), replace(QUICK, **options))
        hub, factors = connection.stats["network"], connection.stats["noise"]["a"]["factors"]
        return hub["widths"], hub["dropped"]["a"], list(factors.values())

    assert row() == ([3, 3], [3, 3], [1 / 0.7, 1 / 0.7])
    assert row(p=0.5) == ([5, 4], [5, 4], [2, 2])
    assert row(width=2) == ([2, 2], [2, 2], [10 / 8, 8 / 6])
    assert row(width=(4, 1)) == ([4, 1], [4, 1], [10 / 6, 8 / 7])
    assert row(width=2, p=0.5) == ([2, 2], [5, 4], [2, 2])
    # more than half of the units: room is counted in dropped units alone
    assert row(width=(7, 7)) == ([7, 7], [7, 7], [10 / 3, 8.0])
    for seed in range(5):
        _, connection = connect([5, 10, 8, 4], replace(QUICK, width=3, p=0.4, counts="bernoulli"), seed=seed)
        dropped = connection.stats["network"]["dropped"]
        assert min(dropped["a"] + dropped["b"]) >= 3


@pytest.fixture(scope="module")
def trained():
    problem = classify("trained", perceptron([5, 20, 20, 4]), (5,))
    ends = []
    for end in (problem.a, problem.b):
        fitted = fit(
            problem.objective.batch_loss, problem.objective.loss, end, 24,
            Recipe(lr=0.01, batch=24, steps=2000, check=10), generator=torch.Generator().manual_seed(0), target=0.01,
        )  # fmt: skip
        ends.append(fitted.params)
    return replace(problem, a=ends[0], b=ends[1])


def test_the_narrow_network_is_trained_to_the_larger_end(trained):
    method = im.Narrow(width=6, draws=5, recipe=im.Recipe(lr=0.01, steps=3000, batch=24))
    connection = im.connect(trained.objective, trained.a, trained.b, method)
    hub = connection.stats["network"]
    assert (hub["source"], hub["training"]) == ("trained", "done")
    assert hub["steps"] < 3000
    assert hub["loss"] <= max(trained.objective.loss(trained.a), trained.objective.loss(trained.b)) * (1 + 1e-9)
    short = im.connect(
        trained.objective, trained.a, trained.b, replace(method, recipe=replace(method.recipe, steps=1), attempts=1)
    )
    assert short.stats["network"]["loss"] > 20 * hub["loss"]
    assert short.stats["network"]["training"] == "budget_exhausted"


def test_training_that_breaks_is_an_outcome(trained):
    method = im.Narrow(width=3, draws=1, attempts=1, recipe=im.Recipe(optimizer="sgd", lr=1e200, steps=20, batch=24))
    connection = im.connect(trained.objective, trained.a, trained.b, method)
    assert connection.outcome is im.Outcome.NOT_FINITE
    assert equal(connection.path.end, trained.b)
    assert len(connection.path) == 13


def test_networks_with_batchnorm_are_trained_too():
    problem = convolutional()
    objective, names = problem.objective, problem.objective.parameter_names
    fitted = fit(
        objective.batch_loss, objective.loss, {k: problem.a[k] for k in names}, 24, Recipe(steps=300, batch=24),
        generator=torch.Generator(), buffers={k: v for k, v in problem.a.items() if k not in names},
    )  # fmt: skip
    method = im.Narrow(width=3, draws=1, attempts=1, recipe=im.Recipe(steps=300, batch=24))
    connection = im.connect(objective, fitted.params, fitted.params, method)
    assert connection.stats["network"]["loss"] < 0.5 < objective.loss(problem.a)
    assert connection.stats["network"]["steps"] > 1
    assert im.certify(objective, connection.path).segments[5].claim == "unchanged"


def test_a_method_is_plain_values_and_keeps_its_network():
    params = perceptron([5, 3, 4]).double().state_dict()
    method = im.Narrow(network=params, p=0.5)
    assert json.loads(json.dumps(describe(method)))["p"] == 0.5
    assert "network" not in describe(method)
    problem = classify("", perceptron([5, 9, 4]), (5,))
    again = im.connect(problem.objective, problem.a, problem.b, replace(method, draws=1))
    assert again.stats["network"]["source"] == "given"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 0}, "whole numbers"),
        ({"width": (2, 1.5)}, "whole numbers"),
        ({"width": True}, "whole numbers"),
        ({"p": 0.0}, "probability"),
        ({"p": 1.0}, "probability"),
        ({"counts": "bernoulli"}, "p: expected a number, for counts"),
        ({"counts": "some"}, "'fixed' or 'bernoulli'"),
        ({"draws": 0}, "draws"),
        ({"num_points": 1}, "num_points"),
        ({"slack": -1.0}, "slack"),
        ({"attempts": 0}, "attempts"),
        ({"slack": float("inf")}, "slack"),
        ({"width": 2, "network": {}}, "width, network: expected one of them"),
    ],
)
def test_misuse_is_refused(options, match):
    with pytest.raises(im.InputError, match=match):
        im.Narrow(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 9}, "hidden layer 2: expected at most the layer's 8 units, got 9"),
        ({"width": (2, 2, 2)}, "2 for the hidden layers"),
        ({"width": 5, "p": 0.3}, r"p: expected at least 0.5: .* 5 of the 10 units of hidden layer 1.*drops 3"),
    ],
)
def test_room_that_is_missing_is_refused_with_the_numbers(options, match):
    with pytest.raises(im.InputError, match=match):
        connect([5, 10, 8, 4], replace(QUICK, **options))


def test_given_networks_are_checked_by_name():
    problem = classify("", perceptron([5, 9, 8, 4]), (5,))
    good = random_params(perceptron([5, 3, 2, 4]), 7)

    def refused(network, match):
        with pytest.raises(im.InputError, match=match):
            im.connect(problem.objective, problem.a, problem.b, im.Narrow(network=network, draws=1))

    refused({k: v for k, v in good.items() if k != "2.bias"}, "the tensor '2.bias'")
    refused(good | {"extra": torch.zeros(1)}, "also 'extra'")
    refused(good | {"4.weight": torch.zeros(4, 3).double()}, r"4.weight.*expected shape \(4, 2\), got \(4, 3\)")
    refused(good | {"2.bias": torch.zeros(3).double()}, r"2.bias.*expected shape \(2,\)")
    refused(good | {"2.bias": torch.full((2,), float("nan")).double()}, "NaN or infinite")
    refused(random_params(perceptron([5, 10, 2, 4]), 7), "hidden layer 1: expected at most the layer's 9 units")
    single = classify("", perceptron([5, 9, 8, 4]), (5,)).objective.cast(torch.float32)
    few = {k: v.float() for k, v in problem.a.items()}
    with pytest.raises(im.InputError, match=r"0.bias.*expected torch.float32, got torch.float64"):
        im.connect(single, few, few, im.Narrow(network=good, draws=1))


def test_the_steps_of_all_attempts_are_counted(trained):
    method = im.Narrow(width=2, draws=1, attempts=3, recipe=im.Recipe(lr=1e-9, steps=5, batch=8))
    found = im.connect(trained.objective, trained.a, trained.b, method)
    assert found.stats["network"]["steps"] == 5
    assert found.cost.gradient_steps == 15


def test_the_penalty_counts_on_neither_side_of_the_target(trained):
    objective = im.Objective(trained.objective.skeleton, "cross_entropy", trained.objective.data, penalty=im.Ridge(0.5))
    ends = trained.a, trained.b
    method = im.Narrow(width=6, draws=2, recipe=im.Recipe(lr=0.01, steps=3000, batch=24))
    found, plain = (im.connect(o, *ends, method, seed=0) for o in (objective, trained.objective))
    assert found.stats["network"]["steps"] == plain.stats["network"]["steps"]
