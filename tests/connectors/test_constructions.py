"""Segment counts, vertices and bounds of the constructions of Kuditipudi et al. and Nguyen, Brechet, Mondelli."""

import re
from dataclasses import replace

import pytest
import torch

import isthmus as im
from isthmus.connectors.moves.units import Label, WeightWalk, join
from isthmus.structure.chain import chain_of
from isthmus.structure.network_units import complement
from isthmus.training.fit import Recipe, fit
from tests.problems import classify, odd_widths, perceptron, small_convnet, two_layers

WIDTHS = [[5, 9, 4], [5, 8, 6, 4], [5, 7, 3, 11, 6, 4], [5, 6, 6, 6, 6, 6, 4]]
deep = pytest.mark.parametrize("widths", WIDTHS, ids=str)
biases = pytest.mark.parametrize("bias", [True, False])


def connect(widths, method, *, bias=True, seed=0):
    problem = classify("chain", perceptron(widths, bias=bias), (widths[0],))
    return problem, im.connect(problem.objective, problem.a, problem.b, method, seed=seed)


@deep
@biases
def test_dropout_has_8L_minus_4_segments(widths, bias):
    L = len(widths) - 1
    problem, connection = connect(widths, im.Dropout(masks=2), bias=bias)
    assert len(connection.path) == 8 * L - 4
    sources = [s.split(",")[0] for s in connection.stats["segments"]]
    assert sources.count("Lemma 1 at A") == sources.count("Lemma 1 at B") == 4 * L - 6
    assert (sources.count("Lemma 2"), sources.count("Lemma 4")) == (3, 5)
    assert im.certify(problem.objective, connection.path).proved


@deep
def test_dropout_through_every_vertex_has_5L_minus_8_segments_per_end(widths):
    L = len(widths) - 1
    _, connection = connect(widths, im.Dropout(masks=2, every_vertex=True))
    per_end = 5 * L - 8 if L > 2 else 2
    assert len(connection.path) == 2 * per_end + 8


@deep
@biases
def test_subnetwork_has_4L_minus_1_segments(widths, bias):
    L = len(widths) - 1
    problem, connection = connect(widths, im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=20))), bias=bias)
    assert len(connection.path) == 4 * L - 1
    certificate = im.certify(problem.objective, connection.path)
    assert certificate.proved
    assert certificate.counts == {"convex": 2 * L, "unchanged": 2 * L - 1}


@deep
def test_the_moves_named_by_the_labels_are_the_claims(widths):
    for method in (im.Dropout(masks=2), im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=20)))):
        problem, connection = connect(widths, method)
        certificate = im.certify(problem.objective, connection.path)
        for label, proof in zip(connection.stats["segments"], certificate.segments, strict=True):
            move = re.search(r"\((\w)\)$", label)
            assert move is not None
            assert proof.claim == ("convex" if move[1] == "a" else "unchanged")


@deep
def test_the_loss_of_every_theta_i_is_met_on_the_path(widths):
    problem, connection = connect(widths, im.Dropout(masks=4, every_vertex=True))
    losses = [problem.objective.loss(p) for p in connection.path.knots]
    for end in "ab":
        for row in connection.stats["dropped"][end]:
            assert min(abs(v - row["loss"]) for v in losses) < 1e-10
            assert all(k <= widths[int(j)] // 2 for j, k in row["kept"].items() if widths[int(j)] > 1)
    bound = max(row["loss"] for end in "ab" for row in connection.stats["dropped"][end])
    ends = max(losses[0], losses[-1])
    assert max(losses) <= max(bound, ends) + 1e-12


@deep
def test_dropped_networks_are_theta_itself_with_units_left_out(widths):
    """At the vertex theta_1 all dropped units are zero, and the kept rows are those of the end."""
    problem, connection = connect(widths, im.Dropout(masks=2, scale="none"))
    L = len(widths) - 1
    chain = chain_of(problem.objective.program, problem.objective.structure)
    for vertex, end in (
        (connection.path.knots[4 * L - 6], problem.a),
        (connection.path.knots[4 * L - 6 + 8], problem.b),
    ):
        small, theta = chain.read(vertex), chain.read(end)
        alive = {l: (small.A[l].flatten(1) != 0).any(1) for l in range(1, L)}
        for l in range(1, L):
            assert int(alive[l].sum()) <= widths[l] // 2
            columns = alive[l - 1] if l > 1 else torch.ones(widths[0], dtype=torch.bool)
            torch.testing.assert_close(small.A[l][alive[l]][:, columns], theta.A[l][alive[l]][:, columns])
            assert not bool(small.A[l][:, ~columns].any())
        torch.testing.assert_close(small.b[L], theta.b[L])


@deep
def test_the_trained_losses_of_the_subnetworks_are_the_knots_of_the_path(widths):
    problem, connection = connect(widths, im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=40))))
    losses = [problem.objective.loss(p) for p in connection.path.knots]
    for row in connection.stats["subnetworks"]:
        assert min(abs(v - row["loss"]) for v in losses) < 1e-10
    assert connection.stats["limited_by"]["loss"] == max(r["loss"] for r in connection.stats["subnetworks"])
    top = max(losses[0], losses[-1], connection.stats["limited_by"]["loss"])
    assert max(losses) <= top + 1e-12


@pytest.fixture(scope="module")
def trained():
    """A problem whose ends have a low loss, so that the subnetworks have to be trained."""
    problem = classify("trained", perceptron([5, 20, 20, 4]), (5,))
    ends = []
    for end in (problem.a, problem.b):
        recipe = Recipe(lr=0.01, batch=24, steps=2000, check=10)
        g = torch.Generator().manual_seed(0)
        fitted = fit(problem.objective.batch_loss, problem.objective.loss, end, 24, recipe, generator=g, target=0.01)
        ends.append(fitted.params)
    return replace(problem, a=ends[0], b=ends[1])


def join_trained(problem, method, **options):
    return im.connect(problem.objective, problem.a, problem.b, method, **options)


def test_training_lowers_the_path(trained):
    short = join_trained(trained, im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=1), init="random")))
    long = join_trained(trained, im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=2000, batch=24), init="random")))
    heights = [im.profile(trained.objective, c.path, 2).max for c in (short, long)]
    assert heights[1] < heights[0] / 20


def test_subnetwork_stops_at_the_larger_end(trained):
    connection = join_trained(trained, im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=4000, batch=24))))
    certificate = im.certify(trained.objective, connection.path)
    assert certificate.excess - certificate.slack < 1e-12
    assert certificate.slack < 1e-10
    assert all(r["steps"] < 4000 for r in connection.stats["subnetworks"])
    assert all(r["training"] == "done" for r in connection.stats["subnetworks"])


def rows_in_use(chain, point):
    return [int((A.flatten(1) != 0).any(1).sum()) for A in chain.read(point).A.values()]


def test_what_is_neither_live_nor_written_is_cleared():
    """At a vertex where a subnetwork was written, the rows of all other units are zero."""
    problem, connection = connect([5, 10, 10, 10, 4], im.Dropout(masks=1, keep=0.3))
    chain = chain_of(problem.objective.program, problem.objective.structure)
    for i, k in ((2, 2), (1, 6)):  # the knots where theta_2 and theta_1 stand beside the network before
        assert f"write theta_{i} into" in connection.stats["segments"][k - 1]
        assert rows_in_use(chain, connection.path.knots[k])[i:3] == [6] * (3 - i)
    problem, connection = connect([5, 9, 11, 7, 4], im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=5))))
    chain = chain_of(problem.objective.program, problem.objective.structure)
    assert "write xi_0" in connection.stats["segments"][5]
    assert rows_in_use(chain, connection.path.knots[6])[1:3] == [10, 6]


@pytest.mark.parametrize("fraction", [0.5, 0.7])
def test_the_fraction_of_held_units_is_respected(fraction):
    problem, connection = connect(
        [5, 10, 10, 4], im.Subnetwork(fraction=fraction, inner=im.Trained(recipe=im.Recipe(steps=20)))
    )
    chain = chain_of(problem.objective.program, problem.objective.structure)
    first_switch = chain.read(connection.path.knots[1]).A[chain.L]
    assert int((first_switch.flatten(2) != 0).any(2).any(0).sum()) == round(fraction * 10)
    assert im.certify(problem.objective, connection.path).proved


def test_divergence_is_an_outcome_and_leaves_a_usable_path(trained):
    method = im.Subnetwork(inner=im.Trained(recipe=im.Recipe(optimizer="sgd", lr=1e200, steps=200, batch=24)))
    connection = join_trained(trained, method)
    assert connection.outcome is im.Outcome.NOT_FINITE
    assert not connection.outcome.ok
    assert "not finite" in str(connection.outcome)
    assert im.certify(trained.objective, connection.path).proved
    with pytest.raises(im.OutcomeError, match="not finite"):
        join_trained(trained, method, throw=True)


def test_convolutional_networks_with_batchnorm_and_flatten():
    problem = classify("convolutional", small_convnet(), (1, 8, 8))
    for method, count in ((im.Dropout(masks=2), 28), (im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=20))), 15)):
        connection = im.connect(problem.objective, problem.a, problem.b, method)
        assert len(connection.path) == count
        assert im.certify(problem.objective, connection.path).proved


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: im.Dropout(keep=0.6), r"keep: expected a number in \(0, 1/2\]"),
        (lambda: im.Dropout(masks=0), "masks: expected a whole number"),
        (lambda: im.Dropout(scale="best"), "'output', 'each', 'layer', 'none'"),  # type: ignore[arg-type]
        (lambda: im.Subnetwork(fraction=0.4), r"fraction: expected a number in \[1/2, 1\)"),
        (lambda: im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=0))), "steps: expected a whole number"),
        (lambda: im.Subnetwork(inner=im.Trained(recipe=im.Recipe(lr=-1))), "lr: expected a positive number"),
        (lambda: im.Recipe(optimizer="adagrad"), "'adam', 'sgd' or 'lbfgs'"),  # type: ignore[arg-type]
        (lambda: im.Trained(init="zeros"), "'theta', 'random' or 'dropout'"),  # type: ignore[arg-type]
        (lambda: im.Subnetwork(slack=-1), "slack: expected"),
        (lambda: im.Subnetwork(inner=im.Trained(attempts=0)), "attempts: expected"),
        (lambda: im.Subnetwork(inner=im.Trained(hub_steps=0)), "hub_steps: expected"),
    ],
)
def test_bad_fields_are_refused_at_once(make, message):
    with pytest.raises(im.InputError, match=message):
        make()


def test_networks_the_theorems_do_not_cover_are_refused_by_name():
    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.out = (torch.nn.Linear(5, n).double() for n in (5, 5, 4))

        def forward(self, x):
            h = self.one(x).relu()
            return self.out(h + self.two(h).relu())

    problem = classify("residual", Residual(), (5,))  # type: ignore[arg-type]
    for method in (im.Dropout(), im.Subnetwork()):
        with pytest.raises(
            im.UnsupportedError, match=f"not a chain of layers.*while connecting with {type(method).__name__}"
        ):
            im.connect(problem.objective, problem.a, problem.b, method)
    assert len(im.connect(problem.objective, problem.a, problem.b, im.Linear()).path) == 1


def test_a_network_without_hidden_layer_is_refused():
    flat = classify("flat", perceptron([5, 4]), (5,))
    with pytest.raises(im.InputError, match=r"at least one hidden layer.*Linear"):
        im.connect(flat.objective, flat.a, flat.b, im.Dropout())


def test_outputs_after_the_last_layer_are_refused():
    module = perceptron([5, 6, 4]).append(torch.nn.LogSoftmax(1))
    problem = classify("log softmax", module, (5,))
    with pytest.raises(im.UnsupportedError, match="return the raw outputs"):
        im.connect(problem.objective, problem.a, problem.b, im.Dropout())


def test_any_permutation_of_live_units_by_five_segments():
    """Lemma 4, for every pair of live sets and every order, with all layers moving at once."""
    problem = odd_widths()
    chain = chain_of(problem.objective.program, problem.objective.structure)
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        walk = WeightWalk(chain, problem.a)
        live = {l: torch.randperm(chain.widths[l], generator=g)[: chain.widths[l] // 2] for l in range(1, chain.L)}
        to = {l: torch.randperm(chain.widths[l], generator=g)[: chain.widths[l] // 2] for l in live}
        A, b = walk.now.A, walk.now.b
        for l in live:
            walk.zero_rows(l, complement(chain.widths[l], live[l]))
            columns = torch.zeros_like(A[l + 1])
            columns[:, live[l]] = A[l + 1][:, live[l]]
            A[l + 1] = columns
        walk.step("start", "b")
        before = problem.objective.outputs(walk.points[-1])
        walk.permute_live(live, to, "Lemma 4")
        assert len(walk.labels) == 6
        torch.testing.assert_close(problem.objective.outputs(walk.points[-1]), before, rtol=1e-12, atol=1e-12)
        for l in live:
            assert not bool(walk.now.A[l][complement(chain.widths[l], to[l])].any())
            torch.testing.assert_close(
                walk.now.b[l][to[l]], b[l].new_tensor(chain.read(problem.a).b[l][live[l]].tolist())
            )
        path = im.Path.through(walk.points[1:])
        assert all(s.claim == "unchanged" for s in im.certify(problem.objective, path).segments)


def test_walks_that_do_not_meet_are_an_error():
    problem = two_layers()
    chain = chain_of(problem.objective.program, problem.objective.structure)
    with pytest.raises(im.IsthmusError, match="do not meet"):
        join(WeightWalk(chain, problem.a), WeightWalk(chain, problem.b))
    assert str(Label("Lemma 2, switch", "a")) == "Lemma 2, switch (a)"


def test_connect_checks_its_arguments():
    problem, other = two_layers(), odd_widths()
    with pytest.raises(im.InputError, match=r"a connector such as im.Dropout\(\), got the class Linear"):
        im.connect(problem.objective, problem.a, problem.b, im.Linear)  # type: ignore[arg-type]
    with pytest.raises(im.InputError, match=r"^b: expected only the keys"):
        im.connect(problem.objective, problem.a, other.b)
    with pytest.raises(im.InputError, match=r"a\['0.weight'\]: expected shape \(9, 5\), got \(7, 5\)"):
        im.connect(problem.objective, {**problem.a, "0.weight": other.a["0.weight"]}, problem.b)
    with pytest.raises(im.InputError, match=r"expected the key\(s\) 0.bias"):
        im.connect(problem.objective, problem.a, {k: v for k, v in problem.b.items() if k != "0.bias"})
