"""Robust compression, delta_W(n, alpha; m) of Freeman & Bruna 2017."""

from itertools import combinations
from math import cos

import pytest
import torch

from isthmus.connectors.two_layer_relu.compression import HiddenLayer, cap, compress
from tests.connectors.subnetwork.sparse import matrix, params_of, regression, solved


def test_compression_is_close_to_the_best_of_all_choices_of_units():
    problem = regression(m=8, kappa=1e-3)
    two, layer = solved(problem, problem.a)
    readout = two.readout(layer.W, problem.a)
    for keep in (2, 4):
        best = float("inf")
        for units in combinations(range(8), keep):
            mask = torch.zeros(8, dtype=torch.bool)
            mask[list(units)] = True
            best = min(best, readout.solve(columns=mask).value)
        found = compress(two, layer, keep, 0.0, problem.a)
        assert len(found.live) <= keep
        assert found.value == pytest.approx(problem.objective.loss(params_of(two, found, problem.a)), rel=1e-12)
        assert best * (1 - 1e-9) <= found.value <= best * 1.25


def test_copies_of_units_are_dropped_for_nothing():
    problem = regression(m=8, kappa=1e-3)
    a = {k: v.clone() for k, v in problem.a.items()}
    a["0.weight"][4:], a["0.bias"][4:] = a["0.weight"][:4], a["0.bias"][:4]
    two, layer = solved(problem, a)
    # spread over both copies, as gradient descent leaves them
    shared = layer.A.reshape(1, 2, 4, 1).mean(1, keepdim=True).expand(1, 2, 4, 1).reshape(1, 8, 1)
    spread = HiddenLayer(layer.W, shared, layer.b, layer.value)
    assert len(spread.live) > 4
    assert compress(two, spread, 4, 0.0, a).value == pytest.approx(layer.value, rel=1e-9)


def test_rows_move_within_the_angle_keep_their_length_and_lower_the_value():
    problem = regression(m=10, out=2)
    two, layer = solved(problem, problem.a)
    values = [compress(two, layer, 5, 0.0, problem.a).value]
    for alpha in (0.05, 0.3):
        found = compress(two, layer, 5, alpha, problem.a)
        length = layer.W.norm(dim=1)
        torch.testing.assert_close(found.W.norm(dim=1), length, rtol=1e-12, atol=0)
        angle = ((found.W * layer.W).sum(1) / length**2).clamp(-1, 1).acos()
        assert angle.max() <= alpha * (1 + 1e-6)
        assert angle.max() > 0.5 * alpha
        dead = torch.ones(10, dtype=torch.bool)
        dead[found.live] = False
        assert torch.equal(found.W[dead], layer.W[dead])
        assert found.value == pytest.approx(problem.objective.loss(params_of(two, found, problem.a)), rel=1e-12)
        values.append(found.value)
    assert values[0] > values[1] > values[2]


def test_cap_turns_rows_no_further_than_asked():
    W, V = matrix(6, 4), matrix(6, 4, seed=1)
    turned = cap(V, W, 0.4)
    cosine = (turned * W).sum(1) / W.square().sum(1)
    assert (cosine - cos(0.4)).abs().max() < 1e-12
    torch.testing.assert_close(cap(W + 1e-3 * V, W, 0.4).norm(dim=1), W.norm(dim=1))
    near = cap(W + 1e-3 * V, W, 0.4)
    assert ((near * (W + 1e-3 * V)).sum(1) / near.norm(dim=1) / (W + 1e-3 * V).norm(dim=1)).min() > 1 - 1e-12
