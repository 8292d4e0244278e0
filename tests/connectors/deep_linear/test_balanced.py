"""The balanced construction: its parts, and paths of linear networks with ridge."""

import pytest
import torch

import isthmus as im
from isthmus.connectors.deep_linear.balanced import (
    Balanced,
    Balancing,
    Factors,
    Moving,
    Turning,
    coefficients,
    common_frame,
    project,
)
from isthmus.connectors.deep_linear.method import DeepLinear
from isthmus.params import equal
from tests.connectors.deep_linear.networks import excess, linear, matrix, trained, two_layer_convolutional

# -- the parts of the balanced construction


def factors(p, n, q, seed=0):
    return Factors(matrix(p, n, seed), matrix(n, q, seed + 1), torch.zeros(p, 1, dtype=torch.float64))


def squares(x):
    return float(x.W1.square().sum() + x.W2.square().sum())


@pytest.mark.parametrize(("p", "n", "q"), [(3, 4, 5), (5, 4, 3), (3, 6, 3), (2, 5, 7)])
def test_balancing_keeps_the_product_and_lowers_the_squares_to_twice_the_nuclear_norm(p, n, q):
    start = factors(p, n, q)
    one, two = project(start)
    curve = Balancing(two)
    path = [start, one, two, *(curve.at(s) for s in (0.0, 0.3, 0.6, 1.0))]
    assert all((x.M - start.M).abs().max() < 1e-12 for x in path)
    sizes = [squares(x) for x in path]
    assert all(later <= earlier + 1e-12 for earlier, later in zip(sizes, sizes[1:], strict=False))
    end = curve.end.framed(curve.end.Q, start.v)
    assert squares(end) == pytest.approx(2 * float(torch.linalg.svdvals(start.M).sum()), rel=1e-12)
    torch.testing.assert_close(end.W2.T @ end.W2, end.W1 @ end.W1.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(end.W1, path[-1].W1, rtol=0, atol=1e-10)


def test_turning_keeps_product_and_squares_and_meets_the_common_frame():
    one, other = (Balancing(project(factors(3, 4, 5, s))[1]).end for s in (0, 2))
    E = common_frame(one, other)
    v = torch.zeros(3, 1, dtype=torch.float64)
    curve = Turning(other, E, v)
    for s in (0.0, 0.2, 0.5, 1.0):
        x = curve.at(s)
        torch.testing.assert_close(x.M, curve.at(0.0).M, rtol=0, atol=1e-12)
        assert squares(x) == pytest.approx(squares(curve.at(0.0)), rel=1e-12)
    along = Moving(one.framed(one.Q, v), curve.at(1.0), E)
    torch.testing.assert_close(along.at(0.0).W2, one.framed(one.Q, v).W2, rtol=0, atol=1e-10)
    torch.testing.assert_close(along.at(1.0).W1, curve.at(1.0).W1, rtol=0, atol=1e-10)
    for s in (0.25, 0.5):
        nuclear = float(torch.linalg.svdvals(along.at(s).M).sum())
        assert squares(along.at(s)) == pytest.approx(2 * nuclear, rel=1e-12)


def test_bernstein_coefficients_give_the_product_on_a_cubic():
    control = tuple(factors(2, 3, 4, s) for s in range(0, 8, 2))
    coefs = [torch.stack([c * (p.W2 @ q.W1) for c, p, q in terms]).sum(0) for terms in coefficients(control)]
    curve = im.Curve(tuple({"W2": f.W2, "W1": f.W1} for f in control))
    product = im.Curve(tuple({"M": M} for M in coefs))
    for t in (0.1, 0.4, 0.9):
        torch.testing.assert_close(product.at(t)["M"], curve.at(t)["W2"] @ curve.at(t)["W1"])


def test_a_frame_of_the_same_orientation_is_reached_without_a_spare_unit():
    v = torch.zeros(3, 1, dtype=torch.float64)
    for seed in range(4):
        one, other = (Balancing(project(factors(3, 3, 5, s))[1]).end for s in (seed, seed + 10))
        flip = one.Q @ one.U.T, other.Q @ other.U.T
        if torch.linalg.det(flip[0]) * torch.linalg.det(flip[1]) < 0:
            with pytest.raises(im.UnsupportedError, match="det W2 is positive at one end"):
                common_frame(one, other)
            mirror = torch.diag(torch.tensor([-1.0, 1, 1], dtype=torch.float64))
            other = Balanced(other.U, other.S, other.Vh, mirror @ other.Q)
        curve = Turning(other, common_frame(one, other), v)
        steps = [curve.at(float(s)).W1 for s in torch.linspace(0, 1, 201)]
        jumps = [float((p - q).abs().max()) for p, q in zip(steps, steps[1:], strict=False)]
        assert max(jumps) < 0.2
        assert torch.linalg.svdvals(curve.at(0.37).W2).min() > 1e-3


# -- ridge


SHAPES = [[5, 4, 3], [5, 6, 3], [3, 4, 5], [3, 4, 3]]


# every two of widths, bias and kappa meet
@pytest.mark.parametrize(
    ("widths", "bias", "kappa"),
    [(w, bias, (1e-3, 3e-2)[(i + bias) % 2]) for i, w in enumerate(SHAPES) for bias in (True, False)],
    ids=str,
)
def test_with_ridge_the_excess_between_trained_ends_is_within_the_tolerance(widths, bias, kappa):
    widths = [widths[0], widths[1] + bias, widths[2]]
    problem = linear(widths, bias=bias, penalty=im.Ridge(kappa))
    a, b = trained(problem, problem.a), trained(problem, problem.b)
    connection = im.connect(problem.objective, a, b, DeepLinear())
    top = max(problem.objective.loss(a), problem.objective.loss(b))
    assert connection.outcome.ok
    assert equal(connection.path.end, b)
    assert connection.stats["excess_bound"] <= 1e-6 * top
    assert excess(problem.objective, connection) <= min(1e-6, connection.stats["excess_bound"] / top + 1e-13)
    certificate = im.certify(problem.objective, connection.path)
    assert certificate.proved
    assert certificate.excess <= 0.01 * top
    assert len(connection.path) <= 32


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_linear_convolutional_networks_with_ridge(loss):
    problem = linear([1, 4], module=two_layer_convolutional(), shape=(1, 6, 6), loss=loss, penalty=im.Ridge(1e-2), n=12)
    connection = im.connect(problem.objective, problem.a, problem.b, DeepLinear())
    assert connection.stats["construction"] == "balanced factors"
    assert excess(problem.objective, connection) <= 1e-6
    assert im.certify(problem.objective, connection.path, gap=0.05).proved


def test_a_smaller_tolerance_makes_more_segments_and_is_kept():
    problem = linear([5, 4, 3], penalty=im.Ridge(3e-2), bias=False)
    a, b = trained(problem, problem.a), trained(problem, problem.b)
    top = max(problem.objective.loss(a), problem.objective.loss(b))
    counts = []
    for tolerance in (1e-2, 1e-5, 1e-9):
        connection = im.connect(problem.objective, a, b, DeepLinear(tolerance=tolerance))
        assert excess(problem.objective, connection) <= tolerance
        assert connection.stats["excess_bound"] <= tolerance * top
        counts.append(len(connection.path))
    assert counts == sorted(counts)
    assert counts[0] < counts[2]
    short = im.connect(problem.objective, a, b, DeepLinear(tolerance=1e-9, max_segments=10))
    assert short.outcome is im.Outcome.BUDGET_EXHAUSTED
    assert len(short.path) <= 18


def test_products_that_pass_zero_and_ends_without_weights():
    """Balanced factors have an infinite derivative where a singular value vanishes."""
    problem = linear([3, 4, 3], penalty=im.Ridge(0.1), bias=False)
    a = trained(problem, problem.a)
    b = {"0.weight": -a["0.weight"], "1.weight": a["1.weight"]}
    zero = {k: torch.zeros_like(v) for k, v in a.items()}
    for p, q in ((a, b), (a, zero), (zero, b), (zero, zero)):
        connection = im.connect(problem.objective, p, q, DeepLinear())
        assert connection.outcome.ok
        assert excess(problem.objective, connection) <= 1e-6
        assert equal(connection.path.end, q)


def test_hidden_biases_that_ridge_does_not_count_go_to_the_output():
    penalty = im.Ridge(1e-2, ("0.weight", "1.weight"))
    problem = linear([5, 4, 3], penalty=penalty)
    connection = im.connect(problem.objective, problem.a, problem.b, DeepLinear())
    assert connection.stats["segments"][0] == "at A, hidden biases to the output"
    assert not connection.path.segments[0].end["0.bias"].any()
    assert excess(problem.objective, connection) <= 1e-6
    for names in (("0.weight", "1.weight", "1.bias"), ("0.weight",), ("0.weight", "0.bias")):
        problem = linear([5, 4, 3], penalty=im.Ridge(1e-2, names))
        with pytest.raises(im.InputError, match=r"penalty\.names"):
            im.connect(problem.objective, problem.a, problem.b, DeepLinear())
