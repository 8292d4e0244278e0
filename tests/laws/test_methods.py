"""The exam of every method: the same laws over METHODS x PROBLEMS, in float64 and in float32."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch

import isthmus as im
from isthmus.params import cast, equal
from isthmus.theory.signs import NAME as SIGNS
from tests.problems import (
    PROBLEMS,
    Problem,
    deep_linear,
    linear_with_ridge,
    permuted,
    sparse_regression,
    two_layers,
    wide_relu,
    wide_then_narrow,
)

LONG = os.environ.get("ISTHMUS_LONG_TESTS") == "1"
SAMPLES = 20 if LONG else 6
"""Points of a grid and random ones, at which losses are compared with what is proved of a segment."""
QUICK: dict[type, Any] = {
    im.Auto: im.Auto(budget=90),
    im.Bezier: im.Bezier(recipe=im.Recipe(lr=None, steps=20, batch=8)),
    im.PolyChain: im.PolyChain(bends=3, recipe=im.Recipe(lr=None, steps=20, batch=8)),
    im.AutoNEB: im.AutoNEB(cycles=((10, 2), (6, 1)), recipe=im.Recipe(lr=None, batch=8)),
    im.LayerWise: im.LayerWise(moves=2, halvings=1, recipe=im.Recipe(lr=None, steps=12, batch=8)),
    im.Dropout: im.Dropout(masks=3),
    im.NoiseDropout: im.NoiseDropout(draws=3),
    im.Narrow: im.Narrow(draws=3, recipe=im.Recipe(steps=30, batch=8)),
    im.StringSampling: im.StringSampling(depth=2, points=5, attempts=1, recipe=im.Recipe(steps=20, batch=8)),
    im.ConstrainedStringSampling: im.ConstrainedStringSampling(
        beads=2, points=5, attempts=1, recipe=im.Recipe(steps=20, batch=8)
    ),
    im.Subnetwork: im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=30, batch=8))),
    im.TwoLayerReLU: im.TwoLayerReLU(units=4, attempts=0, recipe=im.Recipe(lr=1e-2, steps=30, batch=8)),
}
ONLY: dict[type, tuple[Callable[[], Problem], ...]] = {
    im.DeepLinear: (deep_linear, linear_with_ridge),
    im.TwoLayerReLU: (two_layers, sparse_regression),
}
"""The problems of a method whose premises are special; every other problem it must refuse by name."""
MORE: dict[type, tuple[Callable[[], Problem], ...]] = {
    im.Sublevel: (wide_relu, wide_then_narrow),
    im.Bezier: (permuted,),
    im.PolyChain: (permuted,),
    im.AutoNEB: (permuted,),
    im.LayerWise: (permuted,),
    im.Auto: (permuted,),
}
"""Problems besides those of all, for methods that give the straight line there: wider ones, and ones with a barrier."""
CONSTRUCTIVE = (im.Dropout, im.NoiseDropout, im.Narrow, im.Subnetwork, im.MeanField, im.Sublevel, im.TwoLayerReLU)
PROVED = (*CONSTRUCTIVE, im.DeepLinear)

EXAM = [(make, kind) for kind in im.METHODS for make in (*ONLY.get(kind, PROBLEMS), *MORE.get(kind, ()))]
REFUSED = [(make, kind) for kind, own in ONLY.items() for make in PROBLEMS if make not in own]


def over(pairs: Iterable[tuple[Callable[[], Problem], type]]) -> pytest.MarkDecorator:
    pairs = list(pairs)
    names = [f"{make.__name__}-{kind.__name__}" for make, kind in pairs]
    return pytest.mark.parametrize(("make", "kind"), pairs, ids=names)


def some(pairs: Iterable[tuple[Callable[[], Problem], type]]) -> list[tuple[Callable[[], Problem], type]]:
    """Every other problem of each method, the first ones of these in turn; all of them in the long tests."""
    found: dict[type, list[tuple[Callable[[], Problem], type]]] = {}
    for make, kind in pairs:
        found.setdefault(kind, []).append((make, kind))
    return [pair for i, own in enumerate(found.values()) for pair in (own if LONG or len(own) < 3 else own[i % 2 :: 2])]


exam = over(EXAM)
# what is said there of a path that a method proves nothing of is for the most part the affair of the certificate
proofs = over([*(p for p in EXAM if p[1] in PROVED), *some(p for p in EXAM if p[1] not in PROVED)])
halved = over(some(EXAM))
constructive = over((make, kind) for make, kind in EXAM if kind in CONSTRUCTIVE)
methods = pytest.mark.parametrize("kind", im.METHODS, ids=lambda kind: kind.__name__)


def quick(kind: type[im.Connector]) -> im.Connector:
    return QUICK.get(kind) or kind()


def own_problem(kind: type[im.Connector], i: int = 0) -> Problem:
    """One that the method takes: its i-th, counted from the last again where it has fewer."""
    own = ONLY.get(kind, PROBLEMS)
    return own[min(i, len(own) - 1)]()


def connect(problem: Problem, kind: type[im.Connector], seed: int = 0) -> im.Connection:
    return im.connect(problem.objective, problem.a, problem.b, quick(kind), seed=seed)


@cache
def constructed(make: Callable[[], Problem], kind: type[im.Connector]) -> tuple[Problem, im.Connection]:
    problem = make()
    return problem, connect(problem, kind)


@exam
def test_ends_are_exact_and_nothing_of_the_users_is_written(make, kind):
    problem = make()
    a, b = ({k: v.clone() for k, v in p.items()} for p in (problem.a, problem.b))
    state = torch.random.get_rng_state()
    connection = connect(problem, kind)
    assert torch.equal(torch.random.get_rng_state(), state), "something drew from torch's global generator"
    assert equal(problem.a, a)
    assert equal(problem.b, b)
    assert equal(connection.path.start, a)
    assert equal(connection.path.end, connection.target)
    torch.testing.assert_close(
        problem.objective.outputs(connection.target), problem.objective.outputs(b), rtol=1e-12, atol=1e-12
    )
    again = constructed(make, kind)[1]
    assert all(equal(p, q) for p, q in zip(connection.path.knots, again.path.knots, strict=True)), "another path"


@methods
def test_training_on_does_not_move_the_ends_of_a_path(kind):
    """A state_dict shares memory with its module."""
    problem = own_problem(kind)
    module = problem.objective._materialised()
    module.load_state_dict(problem.a)
    connection = im.connect(problem.objective, dict(module.named_parameters()), problem.b, quick(kind))
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert equal(connection.path.start, problem.a)
    assert not any(v.requires_grad for v in connection.path.start.values())


@methods
def test_every_path_has_its_pictures(kind):
    problem, connection = constructed(ONLY.get(kind, PROBLEMS)[0], kind)
    g = torch.Generator().manual_seed(5)
    c = {k: torch.randn(v.shape, generator=g, dtype=v.dtype) for k, v in problem.a.items()}
    plane = im.plane(problem.objective, problem.a, problem.b, c, connection, points=2)
    assert len(plane.off) >= len(connection.path) + 1
    assert plane.path[-1].tolist() == pytest.approx(plane.frame.place(connection.target)[:2], abs=1e-9)
    figures = pytest.importorskip("matplotlib.figure")
    for value in (plane, connection):
        ax = figures.Figure().add_subplot()
        assert value.plot(ax) is ax
        ax.figure.savefig(io.BytesIO(), format="svg")


@exam
def test_labels_fit(make, kind):
    _, connection = constructed(make, kind)
    assert len(connection.stats["segments"]) == len(connection.path)
    assert connection.stats["seed"] == 0
    assert connection.stats["method"]["name"] == kind.__name__


@proofs
def test_the_certificate_is_never_exceeded(make, kind):
    problem, connection = constructed(make, kind)
    state = torch.random.get_rng_state()
    certificate = im.certify(problem.objective, connection.path)
    assert torch.equal(torch.random.get_rng_state(), state), "something drew from torch's global generator"
    for segment, proof in zip(connection.path.segments, certificate.segments, strict=True):
        if proof.claim == "measured":
            continue
        # random points as well as a grid, so that no grid is special
        t = torch.cat([torch.linspace(0, 1, SAMPLES), torch.rand(SAMPLES, generator=torch.Generator().manual_seed(3))])
        worst = max(problem.objective.loss(segment.at(float(s))) for s in t)
        assert worst <= proof.bound * (1 + 1e-12)
    if kind in PROVED:
        assert certificate.proved, [certificate.segments[i].why for i in certificate.unproved()]
        assert certificate.bound >= im.profile(problem.objective, connection.path, 5, bn="interpolate").max


@constructive
def test_outputs_do_not_move_where_they_are_claimed_unchanged(make, kind):
    problem, connection = constructed(make, kind)
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


@halved
def test_float32_paths_are_exact_at_the_ends_and_proved_too(make, kind):
    problem = make()
    objective = problem.objective.cast(torch.float32)
    # the data of the cast objective are float32, the certificate widens them again
    a, b = cast(problem.a, torch.float32), cast(problem.b, torch.float32)
    connection = im.connect(objective, a, b, quick(kind))
    assert equal(connection.path.start, a)
    assert equal(connection.path.end, connection.target)
    if kind in PROVED:
        certificate = im.certify(objective, connection.path)
        assert certificate.proved, [certificate.segments[i].why for i in certificate.unproved()]
        assert im.profile(objective, connection.path, 5, bn="interpolate").max <= certificate.bound * (1 + 1e-5)


@exam
def test_saved_and_loaded_connections_are_equal(make, kind, tmp_path):
    _, connection = constructed(make, kind)
    im.save(connection, tmp_path / "path.safetensors")
    again = im.load_connection(tmp_path / "path.safetensors")
    assert all(equal(p, q) for p, q in zip(connection.path.knots, again.path.knots, strict=True))
    assert equal(connection.target, again.target)
    assert again.outcome is connection.outcome
    assert again.stats["segments"] == connection.stats["segments"]


@methods
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_ends_that_are_not_finite_are_refused_by_name(kind, value):
    problem = own_problem(kind)
    name = next(reversed(problem.b))
    bad = dict(problem.b) | {name: torch.full_like(problem.b[name], value)}
    with pytest.raises(im.InputError, match=rf"b\['{name}'\].*{problem.b[name].numel()} entries"):
        im.connect(problem.objective, problem.a, bad, quick(kind))


@methods
def test_a_path_from_a_point_to_itself_stays_connected(kind):
    problem = own_problem(kind, 1)
    connection = im.connect(problem.objective, problem.a, problem.a, quick(kind))
    assert equal(connection.path.end, problem.a)


@over(REFUSED)
def test_a_problem_that_a_method_is_not_for_is_refused_by_name(make, kind):
    problem = make()
    with pytest.raises((im.InputError, im.UnsupportedError), match=f"while connecting with {kind.__name__}"):
        connect(problem, kind)


def bent(problem: Problem) -> im.Objective:
    """The same network and data with a loss that is not convex in the outputs."""
    return im.Objective(problem.objective.skeleton, lambda z, y: z.sin().sum(1), problem.objective.data)


@methods
def test_a_loss_that_is_not_convex_is_refused_where_the_bound_rests_on_convexity(kind):
    problem = own_problem(kind)
    assert kind.about.convex == (kind in PROVED)
    assert ("convex in the outputs" in kind.about.premises) == kind.about.convex
    if kind.about.convex:
        with pytest.raises(im.InputError, match=rf"the bound of {kind.__name__} rests, got one not declared convex"):
            im.connect(bent(problem), problem.a, problem.b, quick(kind))
        return
    connection = im.connect(bent(problem), problem.a, problem.b, quick(kind))
    assert equal(connection.path.end, connection.target)
    assert not [s for s in im.certify(bent(problem), connection.path).segments if s.claim == "convex"]


def test_nothing_is_said_of_a_path_under_a_loss_that_is_not_convex():
    problem = two_layers()
    table = im.theory(bent(problem), problem.a, problem.b)
    assert not table.bounds
    for name in dict.fromkeys(row.theorem for row in table.rows):
        if not name.endswith("2019, Theorem 4") and name != SIGNS:
            assert [row.holds for row in table.of(name)] == [False, False]
    for bounds in (im.subnetwork_bounds, im.dropout_bounds):
        with pytest.raises(im.InputError, match=r"the bound of Theorem 4\.1 rests, got one not declared convex"):
            bounds(bent(problem), problem.a)


FIELDS = [
    (kind, field.name)
    for kind in (*im.METHODS, im.Recipe, im.Trained, im.ActivationMatching, im.WeightMatching)
    for field in fields(kind)  # type: ignore[arg-type]
    if field.init
]


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda v: getattr(v, "__name__", v))
def test_a_field_of_another_kind_is_refused_by_name(kind, name):
    with pytest.raises(im.InputError, match=name):
        kind(**{name: object()})


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_that_torch_cannot_hold_is_refused(seed):
    problem = permuted()
    with pytest.raises(im.InputError, match="seed: expected a whole number of at most 64 bits"):
        im.connect(problem.objective, problem.a, problem.b, seed=seed)
