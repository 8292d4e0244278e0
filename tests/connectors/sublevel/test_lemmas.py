"""The lemmas of Nguyen 2019 one by one: what must stay stays, what must be reached is reached."""

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.sublevel import full_rank_features, move_onto, replace_features, shifts
from isthmus.connectors.sublevel.columns import Unreachable, independent_units, kinks, least_squares, multiply
from isthmus.connectors.sublevel.trail import Trail
from isthmus.evaluate.level_network import LevelNetwork, rank_of
from isthmus.structure.network_units import complement
from tests.problems import blobs, perceptron, random_params

F64 = torch.float64
ACTIVATIONS = {"relu": torch.relu, "leaky": nn.functional.leaky_relu, "elu": nn.functional.elu, "tanh": torch.tanh}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def reader(X, sigma):
    """U [d + 1, n] -> sigma([X, 1] U) as [N, n, 1]."""
    return lambda U: sigma(torch.cat([X, X.new_ones(len(X), 1)], 1) @ U)[:, :, None]


def same_product(read, vertices, U, V, within=1e-12):
    """F V stays on every segment, at its ends and inside."""
    want = multiply(read(U), V)
    for v in vertices:
        for t in (0.0, 0.3, 0.5, 1.0):
            found = multiply(read(torch.lerp(U, v.U, t)), torch.lerp(V, v.V, t))
            assert float((found - want).abs().max()) <= within * float(want.abs().max() + 1)
        U, V = v.U, v.V


# -- Lemma 4.3


@pytest.mark.parametrize("k", [1, 3])
def test_lemma_4_3_moves_outgoing_weights_onto_columns_that_span(k):
    rank, units = 4, 9
    F = (randn(10, rank) @ randn(rank, units * k, seed=1)).view(10, units, k)
    V = randn(units, k, 2, seed=2)
    order, count = independent_units(F)
    held = order[:count]
    assert count == (rank if k == 1 else 2)  # three columns per unit: two units span four dimensions
    new = move_onto(F, V, held)
    assert bool((new[complement(units, held)] == 0).all())
    for t in (0.25, 1.0):
        torch.testing.assert_close(multiply(F, torch.lerp(V, new, t)), multiply(F, V), rtol=1e-12, atol=1e-11)
    # at the end, the features of the other units do not matter
    changed = F.clone()
    changed[:, complement(units, held)] = 1e3
    torch.testing.assert_close(multiply(changed, new), multiply(F, V), rtol=1e-12, atol=1e-11)


def test_lemma_4_3_needs_columns_that_span():
    F, V = randn(10, 6)[:, :, None], randn(6, 2, seed=1)[:, None]
    bad = move_onto(F, V, torch.tensor([0, 1, 2]))
    assert float((multiply(F, bad) - multiply(F, V)).abs().max()) > 0.1


def test_lemma_4_3_does_not_blow_up_weights_where_columns_are_nearly_dependent():
    """E is bounded by the pivoting, however badly conditioned the columns are."""
    F = (randn(30, 30) * torch.logspace(0, -9, 30, dtype=F64)) @ randn(30, 40, seed=1)
    V = randn(40, 3, seed=2)[:, None]
    order, count = independent_units(F[:, :, None])
    new = move_onto(F[:, :, None], V, order[:count])
    assert float(new.abs().max()) < 100 * float(V.abs().max())
    assert float((multiply(F[:, :, None], new) - multiply(F[:, :, None], V)).abs().max()) < 1e-11


def test_independent_units_are_the_pivots_and_zero_features_have_none():
    F = torch.zeros(5, 4, 1, dtype=F64)
    assert independent_units(F)[1] == 0
    F[:, 2, 0] = 1.0
    order, count = independent_units(F)
    assert (int(order[0]), count) == (2, 1)
    assert independent_units(torch.zeros(5, 3, 2, dtype=F64))[1] == 0


def test_least_squares_with_dependent_columns_is_of_least_norm():
    F = randn(8, 3) @ randn(3, 5, seed=1)
    X = least_squares(F, F @ randn(5, 2, seed=2))
    torch.testing.assert_close(X, torch.linalg.pinv(F) @ F @ randn(5, 2, seed=2), rtol=1e-9, atol=1e-9)


# -- Lemma 4.4


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_lemma_4_4_shifts_span_everything(name):
    v = randn(9)
    gap = float(v.sort().values.diff().min())
    S = ACTIVATIONS[name](v[:, None] + shifts(v, gap / 2)[None])
    assert rank_of(S) == 9


def test_lemma_4_4_fails_for_the_identity_and_refuses_equal_entries():
    v = randn(9)
    assert rank_of(v[:, None] + shifts(v, 0.01)[None]) == 2
    with pytest.raises(im.InputError, match="2 values in 3 entries"):
        shifts(torch.tensor([1.0, 2.0, 1.0]), 0.01)


# -- Lemma 5.2


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("n", [12, 20])
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_lemma_5_2_reaches_full_rank_at_the_same_product(name, n, rank):
    N, d = 12, 3
    X, sigma = randn(N, d), ACTIVATIONS[name]
    read = reader(X, sigma)
    U = torch.zeros(d + 1, n, dtype=F64) if rank == 0 else randn(d + 1, rank, seed=1)[:, torch.arange(n) % rank]
    V = randn(n, 2, seed=2)[:, None]
    assert rank_of(read(U)[:, :, 0]) <= max(rank, 1)
    make = lambda m: kinks(X, True, m, 1.0, generator(3))
    vertices = full_rank_features(read, U, V, make, limit=1e6)
    assert 1 <= len(vertices) <= 2
    assert rank_of(read(vertices[-1].U)[:, :, 0]) == N
    same_product(read, vertices, U, V)
    assert full_rank_features(read, vertices[-1].U, vertices[-1].V, make, limit=float("inf")) == []


def test_lemma_5_2_fails_where_it_must():
    X = randn(12, 3)
    make = lambda m: kinks(X, True, m, 1.0, generator(3))
    U, V = torch.zeros(4, 12, dtype=F64), randn(12, 2)[:, None]
    for read, message in (
        (reader(X, lambda z: z), "below 12"),  # the identity: Assumption 2.2
        (reader(X[[0, *range(11)]], torch.relu), "below 12: are inputs equal"),  # Assumption 2.4
    ):
        with pytest.raises(Unreachable, match=message):
            full_rank_features(read, U, V, make, limit=1e6)
    with pytest.raises(Unreachable, match="rank 5 of 12, and no unit is to spare"):
        full_rank_features(reader(X, nn.functional.elu), randn(4, 5), V[:5], make, limit=1e6)
    with pytest.raises(Unreachable, match="3 new units leave the rank of the features below 12"):
        full_rank_features(reader(X, nn.functional.elu), randn(4, 5)[:, [0, 1, 0, 1, 0]], V[:5], make, limit=1e6)


def test_new_units_have_their_kinks_at_the_data():
    X = randn(10, 4)
    for bias in (True, False):
        U = kinks(X, bias, 10, 2.0, generator(1))
        z = (torch.cat([X, X.new_ones(10, 1)], 1) if bias else X) @ U
        # every sample is 0.01 * scale above the kink of one unit
        assert int(((z - 0.02).abs() < 1e-9).sum()) == 10
        assert bool(((z - 0.02).abs() < 1e-9).any(0).all())


# -- Lemma 5.3


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("n", [20, 27])
def test_lemma_5_3_takes_over_another_layer_in_six_segments(name, n):
    N, d = 10, 4
    X, sigma = randn(N, d), ACTIVATIONS[name]
    read = reader(X, sigma)
    U, goal, V = randn(d + 1, n, seed=1), randn(d + 1, n, seed=2), randn(n, 3, seed=3)[:, None]
    vertices = replace_features(read, U, V, goal)
    assert len(vertices) == 6
    assert torch.equal(vertices[-1].U, goal)
    same_product(read, vertices, U, V)
    # moves of units happen only where their outgoing weights are zero, bit for bit
    u, v = U, V
    for w in vertices:
        moved = (w.U != u).any(0)
        assert bool((v[moved] == 0).all())
        assert bool((w.V[moved] == 0).all())
        assert "b" in w.move if bool(moved.any()) else w.move in "vm"
        u, v = w.U, w.V
    assert replace_features(read, goal, V, goal) == []


def test_lemma_5_3_from_features_of_low_rank_and_to_units_in_other_places():
    N, d, n = 6, 3, 12
    X = randn(N, d)
    read = reader(X, torch.relu)
    U, V = randn(d + 1, n, seed=1), randn(n, 2, seed=3)[:, None]
    U[:, 3:] = U[:, :1]  # rank 3
    permuted = randn(d + 1, n, seed=2).flip(1)
    vertices = replace_features(read, U, V, permuted)
    assert torch.equal(vertices[-1].U, permuted)
    same_product(read, vertices, U, V)


def test_lemma_5_3_needs_twice_as_many_units_as_samples():
    X = randn(10, 4)
    with pytest.raises(Unreachable, match="10 units are needed for features of full rank, 9 are to spare"):
        replace_features(reader(X, torch.relu), randn(5, 19), randn(19, 2)[:, None], randn(5, 19, seed=1))
    low = torch.zeros(5, 20, dtype=F64)
    with pytest.raises(Unreachable, match="no features of full row rank 10"):
        replace_features(reader(X, torch.relu), randn(5, 20), randn(20, 2)[:, None], low)


# -- Lemma 3.4


def low_rank(params, ranks, seed=7):
    """The weights of some layers replaced by ones of low rank."""
    out = dict(params)
    for name, rank in ranks.items():
        m, n = params[name].shape
        out[name] = randn(m, rank, seed=seed) @ randn(rank, n, seed=seed + 1)
    return out


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "ranks",
    [{"2.weight": 2}, {"2.weight": 0, "4.weight": 1}, {"6.weight": 0}, {"2.weight": 1, "4.weight": 1, "6.weight": 1}],
)
def test_lemma_3_4_makes_weights_full_rank_at_the_same_outputs(ranks, bias):
    module = perceptron([9, 10, 7, 5, 3], lambda: nn.LeakyReLU(0.2), bias=bias).double()
    objective = im.Objective(module, data=blobs(8, (9,), 3))
    start = low_rank(random_params(module, 1), ranks)
    net = LevelNetwork.of(objective, start)
    trail = Trail(net, start)
    trail.make_weights_full(0)
    assert len(trail.labels) == 2 * len(ranks)
    for name in ("2.weight", "4.weight", "6.weight"):
        s = torch.linalg.svdvals(trail.params[name])
        assert float(s[-1]) > 1e-3 * float(s[0]) > 0
    want = objective.outputs(start)
    segments = trail.segments()
    assert [isinstance(s, im.LevelCurve) for s in segments] == [True, False] * len(ranks)
    for segment in segments:
        for k in range(11):
            assert float((objective.outputs(segment.at(k / 10)) - want).abs().max()) <= 1e-12 * float(
                want.abs().max() + 1
            )


def test_lemma_3_4_does_nothing_where_all_weights_have_full_rank():
    module = perceptron([9, 10, 7, 3], lambda: nn.LeakyReLU(0.2)).double()
    objective = im.Objective(module, data=blobs(8, (9,), 3))
    start = random_params(module, 1)
    trail = Trail(LevelNetwork.of(objective, start), start)
    trail.make_weights_full(0)
    assert trail.labels == []
    assert set(trail.conditions) == {"W_2", "W_3"}
