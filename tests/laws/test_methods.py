"""The exam of every method: the same laws over METHODS x PROBLEMS, in float64 and in float32."""

from __future__ import annotations

import pytest
import torch

import isthmus as im
from isthmus.params import cast, equal
from tests.problems import PROBLEMS, Problem, perceptron

QUICK: dict[type, im.Connector] = {
    im.Dropout: im.Dropout(masks=3),
    im.NoiseDropout: im.NoiseDropout(draws=3),
    im.Narrow: im.Narrow(draws=3, steps=30, batch=8),
    im.Subnetwork: im.Subnetwork(steps=30, batch=8),
}
CONSTRUCTIVE = (im.Dropout, im.NoiseDropout, im.Narrow, im.Subnetwork)

cases = pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)
methods = pytest.mark.parametrize("kind", im.METHODS, ids=lambda kind: kind.__name__)


def quick(kind: type[im.Connector]) -> im.Connector:
    return QUICK.get(kind) or kind()


def connect(problem: Problem, kind: type[im.Connector], seed: int = 0) -> im.Connection:
    return im.connect(problem.objective, problem.a, problem.b, quick(kind), seed=seed)


@cases
@methods
def test_ends_are_exact_and_nothing_of_the_users_is_written(make, kind):
    problem = make()
    a, b = ({k: v.clone() for k, v in p.items()} for p in (problem.a, problem.b))
    state = torch.random.get_rng_state()
    connection = connect(problem, kind)
    im.certify(problem.objective, connection.path)
    assert torch.equal(torch.random.get_rng_state(), state), "something drew from torch's global generator"
    assert equal(problem.a, a)
    assert equal(problem.b, b)
    assert equal(connection.path.start, a)
    assert equal(connection.path.end, connection.target)
    torch.testing.assert_close(
        problem.objective.outputs(connection.target), problem.objective.outputs(b), rtol=1e-12, atol=1e-12
    )


@methods
def test_training_on_does_not_move_the_ends_of_a_path(kind):
    """A state_dict shares memory with its module."""
    problem = PROBLEMS[0]()
    module = perceptron([5, 9, 4]).double()
    module.load_state_dict(problem.a)
    connection = im.connect(problem.objective, dict(module.named_parameters()), problem.b, quick(kind))
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert equal(connection.path.start, problem.a)
    assert not any(v.requires_grad for v in connection.path.start.values())


@cases
@methods
def test_the_same_seed_gives_the_same_path_and_labels_fit(make, kind):
    one, two = connect(make(), kind), connect(make(), kind)
    assert all(equal(p, q) for p, q in zip(one.path.knots, two.path.knots, strict=True))
    assert len(one.stats["segments"]) == len(one.path)
    assert one.stats["seed"] == 0
    assert one.stats["method"]["name"] == kind.__name__


@cases
@methods
def test_the_certificate_is_never_exceeded(make, kind):
    problem = make()
    connection = connect(problem, kind)
    certificate = im.certify(problem.objective, connection.path)
    for segment, proof in zip(connection.path.segments, certificate.segments, strict=True):
        if proof.claim == "measured":
            continue
        # random points as well as a grid, so that no grid is special
        t = torch.cat([torch.linspace(0, 1, 20), torch.rand(20, generator=torch.Generator().manual_seed(3))])
        worst = max(problem.objective.loss(segment.at(float(s))) for s in t)
        assert worst <= proof.bound * (1 + 1e-12)
    if kind in CONSTRUCTIVE:
        assert certificate.proved, [certificate.segments[i].why for i in certificate.unproved()]
        assert certificate.bound >= im.profile(problem.objective, connection.path, 5).max


@cases
@pytest.mark.parametrize("kind", CONSTRUCTIVE, ids=lambda kind: kind.__name__)
def test_outputs_do_not_move_where_they_are_claimed_unchanged(make, kind):
    problem = make()
    connection = connect(problem, kind)
    program, structure = problem.objective.program, problem.objective.structure
    from isthmus.certify.claims import claim

    curves = [s for s in connection.path.segments if isinstance(s, im.Curve)]
    unchanged = [s for s in curves if claim(s.control, program, structure, convex=True).kind == "unchanged"]
    assert len(unchanged) >= len(connection.path) // 3
    for segment in unchanged:
        start = problem.objective.outputs(segment.start)
        for t in (0.25, 0.5, 0.9, 1.0):
            moved = (problem.objective.outputs(segment.at(t)) - start).abs().max()
            assert moved <= 1e-12 * start.abs().max()


@cases
@methods
def test_float32_paths_are_exact_at_the_ends_and_proved_too(make, kind):
    problem = make()
    objective = problem.objective.cast(torch.float32)
    # the data of the cast objective are float32, the certificate widens them again
    a, b = cast(problem.a, torch.float32), cast(problem.b, torch.float32)
    connection = im.connect(objective, a, b, quick(kind))
    assert equal(connection.path.start, a)
    assert equal(connection.path.end, b)
    if kind in CONSTRUCTIVE:
        certificate = im.certify(objective, connection.path)
        assert certificate.proved, [certificate.segments[i].why for i in certificate.unproved()]
        assert im.profile(objective, connection.path, 5).max <= certificate.bound * (1 + 1e-5)


@cases
@methods
def test_saved_and_loaded_connections_are_equal(make, kind, tmp_path):
    connection = connect(make(), kind)
    im.save(connection, tmp_path / "path.safetensors")
    again = im.load_connection(tmp_path / "path.safetensors")
    assert all(equal(p, q) for p, q in zip(connection.path.knots, again.path.knots, strict=True))
    assert equal(connection.target, again.target)
    assert again.outcome is connection.outcome
    assert again.stats["segments"] == connection.stats["segments"]


@methods
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_ends_that_are_not_finite_are_refused_by_name(kind, value):
    problem = PROBLEMS[0]()
    bad = dict(problem.b) | {"2.bias": torch.full_like(problem.b["2.bias"], value)}
    with pytest.raises(im.InputError, match=r"b\['2.bias'\].*4 entries"):
        im.connect(problem.objective, problem.a, bad, quick(kind))


@methods
def test_a_path_from_a_point_to_itself_stays_connected(kind):
    problem = PROBLEMS[1]()
    connection = im.connect(problem.objective, problem.a, problem.a, quick(kind))
    assert equal(connection.path.end, problem.a)
