"""Ends whose square factors have determinants of opposite signs: through a singular product, or refused."""

import os

import pytest
import torch

import isthmus as im
from isthmus.connectors.deep_linear.method import DeepLinear
from isthmus.params import equal
from tests.connectors.deep_linear.networks import excess, linear, matrix, mirrored, trained


def sign(params):
    """Of the square factor's determinant."""
    return float(torch.linalg.det(params["1.weight"]).sign())


def check_through_a_singular_product(problem, a, b, rank):
    connection = im.connect(problem.objective, a, b, DeepLinear())
    assert connection.outcome.ok
    assert any(label.startswith(f"from A to a product of rank {rank}") for label in connection.stats["segments"])
    assert equal(connection.path.start, a)
    assert equal(connection.path.end, b)
    assert excess(problem.objective, connection) <= 1e-6
    for p, q in zip(connection.path.segments, connection.path.segments[1:], strict=False):
        assert equal(p.end, q.start)
    certificate = im.certify(problem.objective, connection.path)
    assert certificate.proved
    assert certificate.excess <= 0.011 * max(certificate.ends)
    return connection


@pytest.mark.parametrize("penalty", [None, im.Ridge(0.02)], ids=["none", "ridge"])
def test_opposite_determinants_meet_at_a_singular_product(penalty):
    """Ends that are not at the bottom: a product of rank 2 is as good as they are."""
    found = 0
    for seed in range(2, 8 if os.environ.get("ISTHMUS_LONG_TESTS") == "1" else 5):
        problem = linear([3, 3, 3], bias=False, penalty=penalty, seed=seed)
        if sign(problem.a) == sign(problem.b):
            continue
        check_through_a_singular_product(problem, problem.a, problem.b, 2)
        found += 1
    assert found >= 3


@pytest.mark.parametrize("widths", [[3, 3, 3], [5, 3, 3]], ids=str)
def test_the_same_function_on_both_sides_of_det_zero(widths):
    problem = linear(widths, penalty=im.Ridge(0.3, ("0.weight", "1.weight")), loss="cross_entropy")
    check_through_a_singular_product(problem, problem.a, mirrored(problem.a), 2)


def test_one_hidden_unit_goes_through_zero():
    problem = linear([3, 1, 1], bias=False)
    zero = problem.objective.loss({k: torch.zeros_like(v) for k, v in problem.a.items()})
    a = {k: 2 * v for k, v in problem.a.items()}
    assert problem.objective.loss(a) > zero
    check_through_a_singular_product(problem, a, mirrored(a), 0)


@pytest.mark.parametrize("seed", range(3))
def test_ends_below_every_singular_product_stay_refused(seed):
    """Whitened inputs and the square loss: what rank 2 leaves is the square of the third singular value, a proof."""
    problem = linear([3, 3, 3], bias=False, seed=seed)
    x = torch.linalg.qr(matrix(24, 3, seed))[0] * 24**0.5
    objective = problem.objective.on((x, problem.objective.data[1]))
    y = objective.data[1]
    W = x.T @ y / 24  # what each output takes from each input
    lost = torch.linalg.svdvals(W)[2].square()
    best = (y - x @ W).square().sum(1).mean()
    scale = objective.loss({"0.weight": torch.eye(3).double(), "1.weight": W.T.contiguous()}) / best  # sum or mean
    U, S, Vh = torch.linalg.svd(W.T)
    a = {"0.weight": S.sqrt()[:, None] * Vh, "1.weight": U * S.sqrt()}
    with pytest.raises(
        im.UnsupportedError, match=r"det W2 is positive.*the lowest that was found has a loss"
    ) as caught:
        im.connect(objective, a, mirrored(a), DeepLinear())
    found = float(str(caught.value).split("has a loss of ")[1].split(",")[0])
    assert found == pytest.approx(float((best + lost) * scale), rel=1e-5)
    assert excess(objective, im.connect(objective, a, a | {"0.weight": 1.1 * a["0.weight"]}, DeepLinear())) <= 1e-6


def test_opposite_determinants_are_refused_with_the_evidence():
    problem = linear([3, 1, 1], penalty=im.Ridge(0.05), bias=False)
    b = trained(problem, problem.a)
    with pytest.raises(im.UnsupportedError, match=r"det W2 is positive at one end.*needs one unit more, 2"):
        im.connect(problem.objective, b, {k: -v for k, v in b.items()}, DeepLinear())
    turned = {"0.weight": 2 * problem.a["0.weight"], "1.weight": problem.a["1.weight"]}
    assert excess(problem.objective, im.connect(problem.objective, problem.a, turned, DeepLinear())) <= 1e-6


def test_the_evidence_for_the_refusals_holds():
    """The numbers in the messages: a barrier between mirrored scalars, and a strict local minimum at the origin."""

    def value(w, kappa=0.05):
        return float((w.prod() - 1) ** 2 + kappa * w.square().sum())

    assert value(torch.tensor([0.975, 0.975])) == pytest.approx(0.0975, abs=1e-4)
    assert value(torch.tensor([0.0, 0.3])) >= 1
    assert value(torch.full((3,), 0.95)) == pytest.approx(0.156, abs=1e-3)
    sphere = matrix(2000, 3)
    sphere = 0.1 * sphere / sphere.norm(dim=1, keepdim=True)
    assert min(value(w) for w in sphere) > 1
    problem = linear([3, 4, 4, 3], penalty=im.Ridge(0.05))
    with pytest.raises(im.UnsupportedError, match=r"with ridge and 3 layers.*strict local minimum"):
        im.connect(problem.objective, problem.a, problem.b, DeepLinear())
