"""Theorems 1 (B) and 2 (B) of Shevchenko and Mondelli 2020: counts, vertices, bounds, and wide networks."""

from __future__ import annotations

import os

import pytest
import torch

import isthmus as im
from isthmus.models import mean_field, mean_field_init, mean_field_trials, train_mean_field
from isthmus.stability.dropout.pattern import pattern_stability
from isthmus.structure.chain import chain_of
from tests.problems import PROBLEMS, Problem, blobs, classify, perceptron, two_layers

PAIRS = 6 if os.environ.get("ISTHMUS_LONG_TESTS") == "1" else 2
"""Of two-layer networks of each width."""
METHODS = [im.MeanField(mask, halves) for mask in ("first", "random") for halves in ("same", "opposite")]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.mask}-{m.halves}")


def averaged(widths, activation="sigmoid", **options) -> Problem:
    net = mean_field(widths, activation, seed=0, **options).double()
    objective = im.Objective(net, data=blobs(24, (widths[0],), widths[-1]))
    return Problem("averaged", objective, mean_field_init(net, "unimodal", 1), mean_field_init(net, "bimodal", 2))


def count(L: int, method: im.MeanField) -> int:
    return 4 * L - (1 if method.halves == "same" else 3)


def layers_of(problem: Problem) -> int:
    return chain_of(problem.objective.program, problem.objective.structure).L


AVERAGED = [
    lambda: averaged((5, 9, 4)),
    lambda: averaged((5, 8, 8, 4), "relu", bias=False),
    lambda: averaged((5, 9, 6, 11, 4), "tanh"),
    lambda: averaged((5, 6, 6, 6, 6, 4), "clipped_relu", hidden_bias=True),
]


# every two of network, mask and halves meet in some case, a network with half of the methods
@pytest.mark.parametrize(
    ("make", "method"),
    [(make, m) for i, make in enumerate([*PROBLEMS, *AVERAGED]) for m in (METHODS[i % 2], METHODS[3 - i % 2])],
)
def test_segments_claims_and_the_bound_of_the_theorems(make, method):
    problem = make()
    L = layers_of(problem)
    connection = im.connect(problem.objective, problem.a, problem.b, method)
    assert len(connection.path) == count(L, method) == len(connection.stats["segments"])
    certificate = im.certify(problem.objective, connection.path)
    assert certificate.proved
    if problem.objective.penalty is None:
        moves = [label[-2] for label in connection.stats["segments"]]
        assert [s.claim == "convex" for s in certificate.segments] == [m == "a" for m in moves]
        assert certificate.counts == {"convex": 2 * L - 1, "unchanged": len(moves) - 2 * L + 1}
        halved = max(row["loss"] for row in connection.stats["halved"])
        ends = max(problem.objective.loss(p) for p in (problem.a, problem.b))
        top = im.profile(problem.objective, connection.path, 61).max
        assert top <= max(halved, ends) * (1 + 1e-12)
        assert certificate.bound == pytest.approx(max(halved, ends), rel=1e-9)


def test_seven_segments_for_two_layers_and_their_moves():
    problem = averaged((5, 9, 4))
    labels = im.connect(problem.objective, problem.a, problem.b, im.MeanField()).stats["segments"]
    assert [label[-2] for label in labels] == list("ababmba")
    short = im.connect(problem.objective, problem.a, problem.b, im.MeanField(halves="opposite"))
    assert [label[-2] for label in short.stats["segments"]] == list("ababa")


@methods
@pytest.mark.parametrize("widths", [(5, 8, 4), (5, 9, 7, 4), (5, 8, 7, 9, 8, 4)], ids=str)
def test_every_theta_i_is_met_on_the_path(widths, method):
    """With the loss of a network whose layers from i on are halved, averages taken over the half."""
    problem = averaged(widths)
    objective, L = problem.objective, len(widths) - 1
    connection = im.connect(objective, problem.a, problem.b, method)
    chain = chain_of(objective.program, objective.structure)
    rows = connection.stats["halved"]
    assert [(r["end"], r["entry"]) for r in rows] == [(e, i) for e in "ab" for i in range(1, L)]
    assert all(n == widths[int(l)] // 2 for r in rows for l, n in r["kept"].items())
    for end, params in (("a", problem.a), ("b", problem.b)):
        for row in (r for r in rows if r["end"] == end):
            losses, errors = zip(*(objective.measure(p) for p in connection.path.knots), strict=True)
            found = min(range(len(losses)), key=lambda k, want=row["loss"]: abs(losses[k] - want))
            assert losses[found] == pytest.approx(row["loss"], rel=1e-12)
            assert row["error"] == pytest.approx(errors[found])
        knots = connection.path.knots if end == "a" else connection.path.knots[::-1]
        theta, first = chain.read(params), chain.read(knots[1])
        stays = (first.A[L] != 0).flatten(2).any(2).any(0)
        assert int(stays.sum()) == widths[L - 1] // 2
        torch.testing.assert_close(first.A[L][:, stays], theta.A[L][:, stays] * widths[L - 1] / (widths[L - 1] // 2))


def test_masks_are_the_halves_they_say():
    problem = averaged((5, 10, 4))

    def kept(method, end, seed=0):
        path = im.connect(problem.objective, problem.a, problem.b, method, seed=seed).path
        knot = path.knots[1] if end == "a" else path.knots[-2]
        return (knot["3.weight"] != 0).any(0).nonzero().flatten().tolist()

    assert kept(im.MeanField(), "a") == kept(im.MeanField(), "b") == [0, 1, 2, 3, 4]
    assert kept(im.MeanField(halves="opposite"), "b") == [5, 6, 7, 8, 9]
    random = im.MeanField(mask="random", halves="opposite")
    assert sorted(kept(random, "a") + kept(random, "b")) == list(range(10))
    assert kept(im.MeanField(mask="random"), "a", 1) == kept(im.MeanField(mask="random"), "b", 1)
    assert len({tuple(kept(im.MeanField(mask="random"), "a", s)) for s in range(5)}) > 1


def test_the_halved_losses_are_those_of_pattern_stability():
    problem = averaged((5, 9, 6, 11, 4))
    rows = im.connect(problem.objective, problem.a, problem.b, im.MeanField()).stats["halved"]
    pattern = {1: range(4), 2: range(3), 3: range(5)}
    for row, params in zip((rows[0], rows[3]), (problem.a, problem.b), strict=True):
        found = pattern_stability(problem.objective, params, pattern)
        assert row["loss"] == pytest.approx(found.dropped_loss, rel=1e-14)
        assert row["error"] == found.dropped_error


def gaussians(k, g, d=16, shift=0.2):
    y = torch.randint(2, (k, 1), generator=g) * 2.0 - 1
    return torch.randn(k, d, generator=g) * (1 + shift * y), y


def test_the_excess_falls_as_two_layer_networks_grow():
    """Theorem 1 (B), between different initial distributions, data and numbers of steps."""
    test = gaussians(800, torch.Generator().manual_seed(9))
    means = []
    for N in (50, 1600):
        net = mean_field((16, N, 1), "clipped_relu", seed=0)
        objective = im.Objective(net, "mse", test)
        one = mean_field_trials(net, gaussians, step=0.04, time=6, batch=16, seeds=range(PAIRS))[6.0]
        two = mean_field_trials(net, gaussians, step=0.02, time=4, batch=8, seeds=range(9, 9 + PAIRS), start="bimodal")[
            4.0
        ]
        excess = []
        for a, b in zip(one, two, strict=True):
            connection = im.connect(objective, a, b, im.MeanField())
            certificate = im.certify(objective, connection.path)
            assert certificate.proved
            assert len(connection.path) == 7
            profile = im.profile(objective, connection.path, 5)
            assert profile.max <= certificate.bound * (1 + 1e-5)
            changes = [pattern_stability(objective, p, N // 2).change for p in (a, b)]
            assert profile.excess <= max(changes) * (1 + 1e-4) + 1e-6
            excess.append(profile.excess)
        means.append(sum(excess) / len(excess))
    assert means[1] < means[0] / 4
    assert means[1] < 0.01


def test_the_excess_falls_as_multilayer_networks_grow():
    """Theorem 2 (B), with L + 1 = 4 layers and the first and last fixed."""

    def sample(k, g):
        x = torch.randn(k, 6, generator=g)
        return x, (x[:, :1] + x[:, 1:2] * x[:, 2:3]).tanh()

    test = sample(500, torch.Generator().manual_seed(9))
    means = []
    for N in (20, 160):
        net = mean_field((6, N, N, N, 1), "tanh", seed=0)
        objective = im.Objective(net, "mse", test)
        runs = mean_field_trials(
            net, sample, step=0.1, time=20, batch=10, seeds=range(4), times=(10, 20), train_ends=False
        )
        excess = []
        for i in range(2):
            connection = im.connect(objective, runs[20.0][i], runs[10.0][i + 2], im.MeanField())
            assert len(connection.path) == 15
            assert im.certify(objective, connection.path).proved
            excess.append(im.profile(objective, connection.path, 3).excess)
        means.append(sum(excess) / 2)
        if N == 160:
            start = mean_field_init(net, seed=0)
            assert objective.loss(runs[20.0][0]) < 0.7 * objective.loss(start), "training must have moved the network"
    assert means[1] < means[0] / 2


def test_paths_of_trained_networks_in_float64_and_float32():
    def sample(k, g):
        y = torch.randint(3, (k,), generator=g)
        return torch.randn(k, 5, generator=g) + 2 * torch.eye(5)[y], y

    x, y = sample(200, torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        net = mean_field((5, 60, 40, 3), "relu", seed=0).to(dtype)
        objective = im.Objective(net, data=(x.to(dtype), y))
        a, b = (
            train_mean_field(net, sample, step=0.05, time=10, batch=10, seed=s, loss="cross_entropy") for s in (0, 1)
        )
        connection = im.connect(objective, a, b, im.MeanField(mask="random"))
        certificate = im.certify(objective, connection.path)
        assert certificate.proved
        wide = objective.cast(torch.float64)
        seen = []
        for segment in connection.path.segments:
            points = [{k: v.double() for k, v in segment.at(float(t)).items()} for t in torch.linspace(0, 1, 41)]
            seen.append(max(wide.loss(p) for p in points))
        assert max(seen) <= certificate.bound * (1 + (1e-12 if dtype == torch.float64 else 1e-6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: im.MeanField(mask="last"), "mask: expected 'first' or 'random'"),  # type: ignore[arg-type]
        (lambda: im.MeanField(halves="both"), "halves: expected 'same' or 'opposite'"),  # type: ignore[arg-type]
    ],
)
def test_bad_fields_are_refused_at_once(make, message):
    with pytest.raises(im.InputError, match=message):
        make()


def test_networks_without_hidden_layer_are_refused():
    problem = classify("flat", perceptron([5, 4]), (5,))
    with pytest.raises(im.InputError, match="at least one hidden layer"):
        im.connect(problem.objective, problem.a, problem.b, im.MeanField())


def test_progress_counts_to_the_end():
    problem, seen = two_layers(), []
    im.connect(problem.objective, problem.a, problem.b, im.MeanField(), progress=lambda *a: seen.append(a))
    assert seen[-1] == ("halving", 2, 2)
