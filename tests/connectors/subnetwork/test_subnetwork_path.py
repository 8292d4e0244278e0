"""The construction of Theorem 4.1 from given subnetworks: counts, vertices, moves, refusals."""

from itertools import pairwise

import pytest
import torch

import isthmus as im
from isthmus.certify.claims import claim
from isthmus.connectors.subnetwork.path import build
from isthmus.connectors.subnetwork.train import Start
from isthmus.params import cast, equal
from isthmus.structure.chain import Weights, chain_of
from isthmus.structure.network_units import random_units
from tests.problems import classify, convolutional, perceptron

WIDTHS = [[5, 9, 4], [5, 8, 6, 4], [5, 7, 3, 11, 6, 4], [5, 6, 6, 6, 6, 6, 4]]


def chain_problem(widths, bias):
    return classify("chain", perceptron(widths, bias=bias), (widths[0],))


def at_random(problem, how, seed=0):
    """Sets and random subnetworks for both ends: the same sets, own sets, or own sets of own sizes."""
    chain = chain_of(problem.objective.program, problem.objective.structure)
    g = torch.Generator().manual_seed(seed)
    widths = {l: chain.widths[l] for l in range(1, chain.L)}
    K = {l: -(-n // 2) for l, n in widths.items()}
    # more than half is held at a in the odd layers and at b in the even ones, so that neither hub fits the other end
    more = [{l: min(n - 1, K[l] + (l + e) % 2) for l, n in widths.items()} for e in (0, 1)]
    held = [random_units(widths, more[e] if how == "sizes" else K, g) for e in (0, 1)]
    if how == "same":
        held[1] = held[0]
    hub = Start(chain, problem.a, 0, held[0]).random(g).weights
    xi = []
    for e, params in enumerate((problem.a, problem.b)):
        first = Start(chain, params, 0, held[e]).random(g).weights if how == "sizes" else hub
        xi.append({0: first} | {l: Start(chain, params, l, held[e]).random(g).weights for l in widths})
    return chain, held, xi


COUNTS = {"same": -1, "own": 3, "sizes": 5}
hows = pytest.mark.parametrize("how", COUNTS)


def check(problem, how, seed=0):
    chain, held, xi = at_random(problem, how, seed)
    objective = problem.objective
    path, labels = build(chain, held[0], held[1], problem.a, problem.b, xi)
    assert len(path) == len(labels) == 4 * chain.L + COUNTS[how]
    assert equal(path.start, problem.a)
    assert equal(path.end, problem.b)
    certificate = im.certify(objective, path)
    assert certificate.proved
    # the loss of every subnetwork, computed from the definition in equation 3, is met, and nothing is above them
    want = [objective.loss(problem.a), objective.loss(problem.b)]
    y = objective.data[1]
    for e, params in enumerate((problem.a, problem.b)):
        for l, weights in xi[e].items():
            h = chain.features(params, objective.data[0], l, 24)
            h = h[:, held[e][l]] if l else h
            small = chain.write(weights, params)
            want.append(float(objective.example_losses(chain.forward(small, h, l + 1), y).mean()))
    knots = [objective.loss(p) for p in path.knots]
    for value in want:
        assert min(abs(value - v) for v in knots) < 1e-12 * max(1, value)
    assert max(knots) == pytest.approx(max(want), rel=1e-12)
    dense = max(objective.loss(s.at(t)) for s in path.segments for t in torch.linspace(0, 1, 7).tolist())
    assert dense <= max(want) * (1 + 1e-12)
    assert certificate.bound == pytest.approx(max(want), rel=1e-9)
    return path, labels, certificate


# every two of widths, bias and kind of sets meet
@pytest.mark.parametrize(
    ("widths", "bias", "how"),
    [(w, (i + j) % 2 == 0, how) for i, w in enumerate(WIDTHS) for j, how in enumerate(COUNTS)],
    ids=str,
)
def test_any_subnetworks_make_a_path_no_higher_than_the_highest_of_them(widths, bias, how):
    if how == "sizes" and len(widths) == 3:
        widths = [5, 10, 4]
    check(chain_problem(widths, bias), how)


@hows
def test_the_same_for_convolutions_batchnorm_and_flattening(how):
    check(convolutional(), how)


@hows
def test_every_segment_makes_the_move_that_its_label_names(how):
    problem = chain_problem([5, 12, 11, 10, 4], True)
    path, labels, certificate = check(problem, how, seed=3)
    objective = problem.objective
    for segment, label, proof in zip(path.segments, labels, certificate.segments, strict=True):
        assert isinstance(segment, im.Curve)
        found = claim(segment.control, objective.program, objective.structure, convex=True)
        assert found.kind == proof.claim == ("convex" if label.endswith("(a)") else "unchanged"), label
        if label.endswith("(a)"):
            moved = {k for k in segment.start if not torch.equal(segment.start[k], segment.end[k])}
            assert moved <= {"6.weight", "6.bias"}
        else:
            before = objective.outputs(segment.start)
            for t in (0.3, 0.7, 1.0):
                assert float((objective.outputs(segment.at(t)) - before).abs().max()) < 1e-12 * float(
                    before.abs().max()
                )
    switches = [l for l in labels if l.endswith("(a)")]
    assert len(switches) == 2 * 4 + (how == "sizes")  # 2L, and one between the hubs


def test_hubs_that_differ_are_switched_even_with_the_same_sets():
    problem = chain_problem([5, 8, 6, 4], True)
    chain, held, xi = at_random(problem, "same")
    xi[1][0] = Weights({p: 2 * A for p, A in xi[1][0].A.items()}, xi[1][0].b)
    path, labels = build(chain, held[0], held[1], problem.a, problem.b, xi)
    assert len(path) == 4 * chain.L + 5
    assert sum("from the hub of A to that of B" in label for label in labels) == 1
    assert im.certify(problem.objective, path).proved


def test_a_copy_of_the_hub_is_the_same_hub():
    problem = chain_problem([5, 8, 6, 4], True)
    chain, held, xi = at_random(problem, "same")
    xi[1][0] = Weights({p: A.clone() for p, A in xi[0][0].A.items()}, dict(xi[0][0].b))
    assert len(build(chain, held[0], held[1], problem.a, problem.b, xi)[0]) == 4 * chain.L - 1


@hows
def test_float32_paths_are_proved_too(how):
    problem = chain_problem([5, 8, 9, 4], True)
    chain, held, xi = at_random(problem, how)
    a, b = cast(problem.a, torch.float32), cast(problem.b, torch.float32)
    small = [
        {l: Weights(*({p: v.float() for p, v in part.items()} for part in (w.A, w.b))) for l, w in end.items()}
        for end in xi
    ]
    path, _ = build(chain, held[0], held[1], a, b, small)
    objective = problem.objective.cast(torch.float32)
    assert all(v.dtype == torch.float32 for p in path.knots for v in p.values())
    certificate = im.certify(objective, path)
    assert certificate.proved
    assert max(objective.loss(p) for p in path.knots) <= certificate.bound * (1 + 1e-5)


def test_nothing_is_written_to():
    problem = chain_problem([5, 8, 6, 4], True)
    chain, held, xi = at_random(problem, "own")
    before = [{l: w.A[chain.L].clone() for l, w in end.items()} for end in xi]
    build(chain, held[0], held[1], problem.a, problem.b, xi)
    assert equal(problem.a, chain_problem([5, 8, 6, 4], True).a)
    for end, old in zip(xi, before, strict=True):
        assert all(torch.equal(w.A[chain.L], old[l]) for l, w in end.items())


def test_counters_of_batchnorm_may_differ():
    """Networks that were trained for different numbers of steps."""
    problem = convolutional()
    name = next(k for k in problem.b if k.endswith("num_batches_tracked"))
    b = problem.b | {name: torch.tensor(7)}
    for method in (
        im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=5))),
        im.Subnetwork(subsets="own", inner=im.Trained(recipe=im.Recipe(steps=5))),
        im.Dropout(masks=2),
    ):
        connection = im.connect(problem.objective, problem.a, b, method)
        assert int(connection.path.start[name]) == 0
        assert int(connection.path.end[name]) == 7
        assert im.certify(problem.objective, connection.path).proved
        assert all(p[name].dtype == torch.int64 for p, _ in pairwise(connection.path.knots))


def test_sets_and_subnetworks_of_the_wrong_size_are_refused():
    problem = chain_problem([5, 8, 6, 4], True)
    chain, held, xi = at_random(problem, "own")

    def make(held_a=held[0], xi=xi):
        return build(chain, held_a, held[1], problem.a, problem.b, xi)

    with pytest.raises(im.InputError, match="I_2 at A: expected 3 to 6 units, got 2"):
        make(held[0] | {2: torch.tensor([0, 1])})
    with pytest.raises(im.InputError, match="I_2 at A: expected 3 to 6 units, got 7"):
        make(held[0] | {2: torch.arange(7)})
    with pytest.raises(im.InputError, match="ascending order"):
        make(held[0] | {2: torch.tensor([2, 1, 0])})
    with pytest.raises(im.InputError, match=r"xi_0 at A, layer 2: expected shape \(2, 4"):
        make(held[0] | {2: torch.tensor([0, 1, 2, 3])})
