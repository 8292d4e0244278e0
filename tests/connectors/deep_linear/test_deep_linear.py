"""Proposition 2.2 of Freeman & Bruna 2017, repaired: exact paths, balanced paths, and what is refused."""

import pytest
import torch
from torch import nn

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
from isthmus.connectors.deep_linear.exchange import to_hub
from isthmus.connectors.deep_linear.method import DeepLinear
from isthmus.params import cast, equal
from tests.problems import Problem, random_params


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(widths, *, bias=True, loss="mse", penalty=None, module=None, shape=None, n=24, seed=0):
    module = module or nn.Sequential(*[nn.Linear(p, q, bias=bias) for p, q in zip(widths, widths[1:], strict=False)])
    module = module.double()
    x = torch.randn(n, *(shape or widths[:1]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = matrix(n, widths[-1], seed + 1) if loss == "mse" else torch.arange(n) % widths[-1]
    objective = im.Objective(module, loss, (x, y), penalty=penalty)
    return Problem("linear", objective, random_params(module, seed + 2), random_params(module, seed + 3))


def trained(problem, params):
    """A local minimum close to `params`, by L-BFGS: ends at which no loss can be given away."""
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    optimizer = torch.optim.LBFGS(leaves.values(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)
    everything = torch.arange(problem.objective.num_examples)

    def closure():
        optimizer.zero_grad()
        loss = problem.objective.batch_loss(leaves, everything)
        loss.backward()
        return loss

    optimizer.step(closure)
    return {k: v.detach() for k, v in leaves.items()}


def excess(objective, connection, points=23):
    """The largest loss on a dense sample, less the larger end's, relative to it."""
    top = max(objective.loss(connection.path.start), objective.loss(connection.path.end))
    t = torch.linspace(0, 1, points).tolist()
    return max(objective.loss(s.at(v)) for s in connection.path.segments for v in t) / top - 1


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


@pytest.mark.parametrize("widths", EXACT, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
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


def two_layer_convolutional():
    return nn.Sequential(nn.Conv2d(1, 11, 3, padding=1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(11 * 9, 4))


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


@pytest.mark.parametrize("widths", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kappa", [1e-3, 3e-2])
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


def mirrored(params):
    """The same function on the other side of det = 0: one hidden unit with all its signs changed."""
    out = {k: v.clone() for k, v in params.items()}
    out["0.weight"][0] *= -1
    out["1.weight"][:, 0] *= -1
    if "0.bias" in out:
        out["0.bias"][0] *= -1
    return out


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
    for seed in range(2, 8):
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
