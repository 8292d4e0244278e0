"""The best last layer on fixed features: stationarity, the gap, and other losses."""

import pytest
import torch
import torch.nn.functional as F

from isthmus.connectors.two_layer_relu.readout import Readout
from tests.connectors.subnetwork.sparse import matrix, squares


@pytest.mark.parametrize("bias", ["none", "free", "penalised"])
@pytest.mark.parametrize(("f", "kappa", "outputs"), [(12, 3e-2, 1), (30, 1e-3, 3), (80, 1e-2, 2)])
def test_the_lasso_is_stationary_and_its_gap_is_closed(bias, f, kappa, outputs):
    Z, y = F.relu(matrix(50, f)), 1 + matrix(50, outputs, seed=1)
    readout = Readout(Z, y, squares, kappa, bias, squared=True)
    start = torch.zeros(outputs, f, dtype=torch.float64), matrix(outputs, seed=2)
    found = readout.solve(start)
    assert found.gap is not None
    assert found.gap <= 1e-9 * found.value
    assert found.value == pytest.approx(readout.value(found.A, found.b), rel=1e-12)
    # subgradients: kappa sign where a weight is not zero, within kappa where it is
    pull = (2 / (50 * outputs)) * (y - Z @ found.A.T - found.b).T @ torch.cat([Z, torch.ones(50, 1).double()], 1)
    used = found.A != 0
    assert used.any()
    assert not used.all()
    torch.testing.assert_close(pull[:, :-1][used], kappa * found.A[used].sign(), rtol=0, atol=1e-7 * kappa + 1e-9)
    assert pull[:, :-1].abs().max() <= kappa * (1 + 1e-6)
    if bias == "none":
        assert torch.equal(found.b, start[1])
    elif bias == "free":
        assert pull[:, -1].abs().max() < 1e-10
    else:
        assert ((pull[:, -1] - kappa * found.b.sign()).abs() <= torch.where(found.b == 0, kappa, 1e-9)).all()


def test_the_gap_bounds_the_distance_from_the_least_value_anywhere():
    Z, y = F.relu(matrix(40, 15)), matrix(40, 2, seed=1)
    readout = Readout(Z, y, squares, 1e-2, "none", squared=True)
    assert readout.gram is not None
    least = readout.solve()
    moments = readout.gram.on(torch.ones(15, dtype=torch.bool), torch.zeros(2, dtype=torch.float64))
    for seed in range(20):
        W = least.A + 0.1 ** (seed / 4) * matrix(2, 15, seed=seed)
        value = readout.value(W, torch.zeros(2, dtype=torch.float64))
        assert moments.gap(W, 2 * 1e-2) / 2 >= (value - least.value) * (1 - 1e-9)
    # and it closes as the point comes close
    assert moments.gap(least.A + 1e-5, 2 * 1e-2) / 2 < 1e-3


def test_without_penalty_the_last_layer_is_least_squares():
    Z, y = F.relu(matrix(40, 10)), matrix(40, 2, seed=1)
    found = Readout(Z, y, squares, 0.0, "free", squared=True).solve()
    ones = torch.cat([Z, torch.ones(40, 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(ones, y).solution
    torch.testing.assert_close(torch.cat([found.A, found.b[:, None]], 1), best.T)


@pytest.mark.parametrize("bias", ["free", "penalised"])
def test_other_convex_losses_reach_a_stationary_point(bias):
    Z, y = F.relu(matrix(60, 12)), torch.arange(60) % 3
    readout = Readout(Z, y, lambda z, y: F.cross_entropy(z, y, reduction="none"), 1e-2, bias, squared=False, outputs=3)
    found = readout.solve(tolerance=1e-13, steps=20000)
    A, b = (v.clone().requires_grad_() for v in (found.A, found.b))
    F.cross_entropy(Z @ A.T + b, y).backward()
    assert A.grad is not None
    assert b.grad is not None
    used = found.A != 0
    assert used.any()
    torch.testing.assert_close(A.grad[used], -1e-2 * found.A[used].sign(), rtol=0, atol=1e-4)
    assert A.grad.abs().max() <= 1e-2 + 1e-4
    assert b.grad.abs().max() <= (1e-2 if bias == "penalised" else 0) + 1e-4
    assert found.value < readout.value(torch.zeros_like(found.A), torch.zeros_like(found.b))
