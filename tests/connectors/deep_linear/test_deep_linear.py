"""Proposition 2.2 of Freeman & Bruna 2017, repaired: exact paths, and what is refused."""

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.deep_linear.exchange import to_hub
from isthmus.connectors.deep_linear.method import DeepLinear
from isthmus.params import cast, equal
from tests.connectors.deep_linear.networks import excess, linear, matrix, two_layer_convolutional

# -- exact paths, without penalty


@pytest.mark.parametrize(("D", "n", "rank"), [(1, 2, 1), (3, 4, 3), (3, 9, 3), (4, 6, 2), (3, 7, 0), (5, 6, 4)])
def test_an_exchange_changes_one_matrix_at_a_time_and_never_the_product(D, n, rank):
    V, W = matrix(D, rank, 1) @ matrix(rank, n, 2), matrix(n, 4, 3)
    product, now = V @ W, (V, W)
    for pair in to_hub(V, W, 0.7):
        assert torch.equal(pair.V, now[0]) or torch.equal(pair.W, now[1])
        assert (pair.V @ pair.W - product).abs().max() < 1e-12
        for t in (0.3, 0.8):
            between = torch.lerp(now[0], pair.V, t) @ torch.lerp(now[1], pair.W, t)
            assert (between - product).abs().max() < 1e-12
        now = (pair.V, pair.W)
    assert torch.equal(now[0], 0.7 * torch.eye(D, n, dtype=torch.float64))
    assert not now[1][D:].any()


def test_an_exchange_turns_an_orientation_round():
    """Permuted and mirrored bases come to the same form: that is what the spare unit is for."""
    mirrored = torch.diag(torch.tensor([-1.0, 1, 1], dtype=torch.float64))
    V = torch.cat([mirrored[[1, 2, 0]], torch.zeros(3, 1, dtype=torch.float64)], 1)
    *_, last = to_hub(V, matrix(4, 2), 1.0)
    assert torch.equal(last.V, torch.eye(3, 4, dtype=torch.float64))
    torch.testing.assert_close(last.W[:3], V @ matrix(4, 2))


EXACT = [[5, 6, 3], [5, 4, 3], [3, 4, 5], [5, 8, 9, 7, 3], [3, 9, 4, 6], [4, 5, 5, 5, 4]]


# every two of widths, bias and loss meet
@pytest.mark.parametrize(
    ("widths", "bias", "loss"),
    [(w, bias, ("mse", "cross_entropy")[(i + bias) % 2]) for i, w in enumerate(EXACT) for bias in (True, False)],
    ids=str,
)
def test_without_penalty_every_segment_is_proved_exactly(widths, bias, loss):
    problem = linear(widths, bias=bias, loss=loss)
    connection = im.connect(problem.objective, problem.a, problem.b, DeepLinear())
    assert connection.stats["construction"] == "one layer at a time"
    certificate = im.certify(problem.objective, connection.path, budget=0)
    assert certificate.proved
    assert certificate.excess <= 1e-12 * max(certificate.ends) + certificate.slack
    assert certificate.slack <= 1e-10 * max(1.0, *certificate.ends)
    assert excess(problem.objective, connection, 5) <= 1e-12
    # the outputs move on the segment of the free layer only
    start, goal = (problem.objective.outputs(p) for p in (problem.a, problem.b))
    moves = [
        float((problem.objective.outputs(s.end) - problem.objective.outputs(s.start)).abs().max())
        for s in connection.path.segments
    ]
    moved = [label for label, size in zip(connection.stats["segments"], moves, strict=True) if size > 1e-10]
    assert [("straight from A to B" in label) for label in moved] == [True]
    assert max(moves) == pytest.approx(float((goal - start).abs().max()), rel=1e-9)


def test_layers_that_have_lost_rank_are_repaired():
    problem = linear([5, 6, 7, 3])
    a = dict(problem.a) | {k: torch.zeros_like(problem.a[k]) for k in ("1.weight", "2.weight")}
    b = dict(problem.b) | {"2.weight": problem.b["2.weight"][:, :1] @ problem.b["2.weight"][:1]}
    connection = im.connect(problem.objective, a, b, DeepLinear())
    assert excess(problem.objective, connection, 5) <= 1e-12
    assert im.certify(problem.objective, connection.path, budget=0).proved


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 11, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(11 * 4, 9), nn.Linear(9, 4))


def many_channels():
    """27 inputs per kernel, 8 outputs: two classes with four pixels each."""
    return nn.Sequential(nn.Conv2d(3, 9, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(9 * 4, 2))


@pytest.mark.parametrize("make", [convolutional, two_layer_convolutional, many_channels])
def test_linear_convolutional_networks_without_penalty(make):
    channels, classes = (3, 2) if make is many_channels else (1, 4)
    problem = linear([1, classes], module=make(), shape=(channels, 6, 6), loss="cross_entropy")
    connection = im.connect(problem.objective, problem.a, problem.b, DeepLinear())
    certificate = im.certify(problem.objective, connection.path, budget=0)
    assert certificate.proved
    assert certificate.excess <= 1e-12 + certificate.slack
    assert certificate.slack <= 1e-10
    assert connection.stats["free_layer"] == {convolutional: 2, two_layer_convolutional: 2, many_channels: 1}[make]


def test_hidden_layers_that_are_too_narrow_are_named():
    for n in (3, 4):
        problem = linear([5, 6, n, 4])
        with pytest.raises(im.UnsupportedError, match=f"hidden layer 2 has {n} units; the construction needs 5"):
            im.connect(problem.objective, problem.a, problem.b, DeepLinear())


def test_two_layers_without_penalty_and_without_a_spare_unit_go_through_balanced_factors():
    problem = linear([5, 3, 3], bias=False)
    b = {k: 1.5 * v for k, v in problem.a.items()}
    connection = im.connect(problem.objective, problem.a, b, DeepLinear())
    assert connection.stats["construction"] == "balanced factors"
    assert excess(problem.objective, connection) <= 1e-6


def test_other_networks_losses_and_penalties_are_refused_by_name():
    relu = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    problem = linear([3, 5, 2], module=relu)
    with pytest.raises(im.UnsupportedError, match=r"module '1' \(ReLU\): the network is not linear"):
        im.connect(problem.objective, problem.a, problem.b, DeepLinear())
    problem = linear([3, 5, 2], penalty=im.L1(0.1))
    with pytest.raises(im.InputError, match="ridge or none"):
        im.connect(problem.objective, problem.a, problem.b, DeepLinear())
    narrow = linear([5, 2, 4], penalty=im.Ridge(0.1), bias=False)
    with pytest.raises(im.UnsupportedError, match="2 units are fewer than"):
        im.connect(narrow.objective, narrow.a, narrow.b, DeepLinear())
    bare = im.Objective(relu[:1], lambda z, y: z.square().sum(1), problem.objective.data)
    bare_params = {"0.weight": problem.a["0.weight"], "0.bias": problem.a["0.bias"]}
    with pytest.raises(im.InputError, match="convex"):
        im.connect(bare, bare_params, bare_params, DeepLinear())
    with pytest.raises(im.InputError, match="tolerance"):
        DeepLinear(tolerance=0.0)


def test_one_layer_is_a_straight_line_and_float32_ends_are_kept():
    problem = linear([4, 3])
    assert len(im.connect(problem.objective, problem.a, problem.b, DeepLinear()).path) == 1
    problem = linear([4, 6, 3], penalty=im.Ridge(1e-2))
    objective = problem.objective.cast(torch.float32)
    a, b = cast(problem.a, torch.float32), cast(problem.b, torch.float32)
    connection = im.connect(objective, a, b, DeepLinear())
    assert equal(connection.path.start, a)
    assert equal(connection.path.end, b)
    assert excess(objective.cast(torch.float64), cast_path(connection)) <= 2e-6


def cast_path(connection):
    return im.Connection(connection.path.map(lambda p: cast(p, torch.float64)), connection.target, connection.outcome)
