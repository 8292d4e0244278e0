"""Segment counts, vertices and figures of Theorem 2 of Kuditipudi et al."""

from math import comb, floor, inf, nan

import pytest
import torch

import isthmus as im
from isthmus.connectors.noise_dropout import bernoulli_count, best_of
from isthmus.objective.data import single
from isthmus.params import equal
from isthmus.structure.chain import chain_of
from tests.problems import PROBLEMS, classify, convolutional, perceptron, two_layers
from tests.slow_twins import masked_perceptron

WIDTHS = [[5, 9, 4], [5, 8, 6, 4], [5, 7, 3, 11, 6, 4], [5, 6, 6, 6, 6, 6, 4]]


def connect(widths, method, *, bias=True, seed=0):
    problem = classify("chain", perceptron(widths, bias=bias), (widths[0],))
    return problem, im.connect(problem.objective, problem.a, problem.b, method, seed=seed)


def kept_of(connection, end):
    rows = connection.stats["noise"][end]["kept"]
    return {int(l): torch.tensor(units) for l, units in rows.items()}


# every two of widths, bias and counts meet
@pytest.mark.parametrize(
    ("widths", "bias", "counts"),
    [(w, bias, ("fixed", "bernoulli")[(i + bias) % 2]) for i, w in enumerate(WIDTHS) for bias in (True, False)],
    ids=str,
)
def test_10_segments_whose_middle_is_proved_exactly(widths, bias, counts):
    problem, connection = connect(widths, im.NoiseDropout(draws=2, counts=counts), bias=bias)
    assert len(connection.path) == 10
    assert equal(connection.path.end, problem.b)
    claims = [s.claim for s in im.certify(problem.objective, connection.path, budget=0).segments]
    assert claims[1:9] == ["unchanged", "convex", *["unchanged"] * 6]
    labels = connection.stats["segments"]
    assert [label[-2] for label in labels] == list("dbabbmbmbd")
    assert labels[0].startswith("Algorithm 1 at A")
    assert labels[9].startswith("Algorithm 1 at B")


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)
def test_outputs_do_not_move_on_the_constructed_segments_but_one(make):
    problem = make()
    connection = im.connect(problem.objective, problem.a, problem.b, im.NoiseDropout(draws=2))
    for k in (1, *range(3, 9)):
        segment = connection.path.segments[k]
        start = problem.objective.outputs(segment.start)
        for t in (0.3, 0.8, 1.0):
            assert (problem.objective.outputs(segment.at(t)) - start).abs().max() <= 1e-12 * start.abs().max()


@pytest.mark.parametrize("p", [0.5, 0.75])
@pytest.mark.parametrize("problem", [two_layers(), classify("", perceptron([5, 8, 6, 4]), (5,)), convolutional()])
def test_theta_1_is_algorithm_1_and_nothing_else(problem, p):
    """At both ends: outgoing weights zero or multiplied by 1 / (1 - p), rows and biases bit for bit the end's own."""
    connection = im.connect(problem.objective, problem.a, problem.b, im.NoiseDropout(p=p, draws=2))
    chain = chain_of(problem.objective.program, problem.objective.structure)
    for knot, theta, end in ((1, problem.a, "a"), (9, problem.b, "b")):
        have, want = chain.read(connection.path.knots[knot]), chain.read(theta)
        kept = kept_of(connection, end)
        factors = connection.stats["noise"][end]["factors"]
        for l in range(1, chain.L + 1):
            columns = torch.ones(chain.widths[l - 1]).double()
            if l > 1:
                assert len(kept[l - 1]) == max(1, min(floor((1 - p) * chain.widths[l - 1]), chain.widths[l - 1] // 2))
                assert factors[str(l - 1)] == 1 / (1 - p)
                columns.zero_()[kept[l - 1]] = 1 / (1 - p)
            assert torch.equal(have.A[l], want.A[l] * columns[:, None])
            assert torch.equal(have.b[l], want.b[l])


def test_the_judged_losses_are_those_of_a_network_with_scaled_units():
    problem, connection = connect([5, 8, 6, 4], im.NoiseDropout(draws=3))
    x, y = single(problem.objective.data[0]), problem.objective.data[1]
    for end, theta in (("a", problem.a), ("b", problem.b)):
        row = connection.stats["noise"][end]
        for t, name in ((1.0, "loss_at_theta_1"), (0.5, "loss_at_half")):
            masks = {}
            for l, units in kept_of(connection, end).items():
                masks[l] = torch.full(([5, 8, 6, 4][l],), 1 - t, dtype=torch.float64)
                masks[l][units] += t * 2
            outputs = masked_perceptron(theta, x, masks, 1.0)
            assert row[name] == pytest.approx(float(torch.nn.functional.cross_entropy(outputs, y)), rel=1e-12)


def test_the_best_draw_is_taken():
    single_draws = []
    for seed in range(4):
        _, connection = connect([5, 8, 6, 4], im.NoiseDropout(draws=1), seed=seed)
        row = connection.stats["noise"]["a"]
        single_draws.append(max(row["loss_at_half"], row["loss_at_theta_1"]))
    assert len(set(single_draws)) == 4
    best = []
    for draws in (1, 5, 50):
        _, connection = connect([5, 8, 6, 4], im.NoiseDropout(draws=draws))
        row = connection.stats["noise"]["a"]
        best.append(max(row["loss_at_half"], row["loss_at_theta_1"]))
    assert best[0] == single_draws[0]
    assert best[0] >= best[1] > best[2]


def test_straight_segments_are_reported_apart():
    problem, connection = connect([5, 8, 6, 4], im.NoiseDropout(draws=3, num_points=7))
    profile = im.profile(problem.objective, connection.path, 7)
    noise = connection.stats["noise"]
    assert noise["a"]["num_points"] == 7
    for end, segment in (("a", 0), ("b", 9)):
        worst = float(profile.loss[profile.segment == segment].max())
        assert noise[end]["max_loss"] == pytest.approx(worst, rel=1e-12)
    certificate = im.certify(problem.objective, connection.path)
    middle = max(s.bound for s in certificate.segments[1:9])
    assert noise["constructed"]["max_loss"] == pytest.approx(middle, rel=1e-9)
    theta_1 = max(noise["a"]["loss_at_theta_1"], noise["b"]["loss_at_theta_1"])
    assert noise["constructed"]["max_loss"] == pytest.approx(theta_1, rel=1e-12)


def test_bernoulli_counts_are_those_of_algorithm_1_given_that_at_most_half_stay():
    g = torch.Generator().manual_seed(0)
    n, p, most, N = 9, 0.6, 4, 20000
    found = torch.bincount(torch.tensor([bernoulli_count(n, p, most, g) for _ in range(N)]), minlength=most + 1)
    weights = torch.tensor([comb(n, k) * (1 - p) ** k * p ** (n - k) for k in range(most + 1)])
    want = N * weights / weights.sum()
    assert float(((found - want) ** 2 / want).sum()) < 18.5  # chi-squared, 4 degrees of freedom: 0.1 %


def test_bernoulli_draws_differ_in_size():
    sizes = set()
    for seed in range(6):
        _, connection = connect([5, 20, 20, 4], im.NoiseDropout(draws=1, counts="bernoulli"), seed=seed)
        for end in "ab":
            sizes |= {len(units) for units in kept_of(connection, end).values()}
    assert len(sizes) > 2
    assert max(sizes) <= 10


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"p": 0.3}, r"p: .*half of each layer.*Narrow\(p"),
        ({"p": 1.0}, "p: "),
        ({"draws": 0}, "draws"),
        ({"counts": "exact"}, "'fixed' or 'bernoulli'"),
        ({"num_points": 1}, "num_points"),
    ],
)
def test_misuse_is_refused(options, match):
    with pytest.raises(im.InputError, match=match):
        im.NoiseDropout(**options)


def test_networks_without_hidden_layer_are_refused():
    with pytest.raises(im.InputError, match="hidden layer"):
        connect([5, 4], im.NoiseDropout())


@pytest.mark.parametrize("first", [(0.5, nan), (nan, 0.5), (inf, nan)])
def test_a_draw_whose_loss_is_no_number_is_not_the_best(first, monkeypatch):
    problem = classify("chain", perceptron([5, 9, 4]), (5,))
    losses = iter([*first, 0.6, 0.7, *first, 0.6, 0.7])
    monkeypatch.setattr(im.Objective, "loss", lambda *_: next(losses))
    chain = chain_of(problem.objective.program, problem.objective.structure)
    ends = problem.a, problem.b
    found = best_of(problem.objective, chain, ends, lambda: {1: torch.arange(4)}, {1: 2.0}, 2, lambda *_: None)
    assert [end.judged for end in found] == [(0.6, 0.7), (0.6, 0.7)]
