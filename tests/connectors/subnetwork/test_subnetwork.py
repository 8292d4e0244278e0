"""The options of ``Subnetwork``: sets, draws, starts, and effort where the bound is made."""

from functools import cache

import pytest
import torch

import isthmus as im
from isthmus.params import equal
from isthmus.stability.dropout.search import Sought, search
from isthmus.storage.methods import connector_from
from isthmus.structure.chain import chain_of
from isthmus.training.fit import Recipe, fit
from tests.problems import classify, convolutional, perceptron


def trained(widths, bias=True, target=0.02):
    return once_trained(tuple(widths), bias, target)


@cache
def once_trained(widths, bias, target):
    """A problem whose ends have a low loss, so that the subnetworks have to be trained."""
    problem = classify("trained", perceptron(widths, bias=bias), (widths[0],))
    ends = []
    for p in (problem.a, problem.b):
        recipe = Recipe(lr=0.01, batch=24, steps=3000, check=10)
        g = torch.Generator().manual_seed(0)
        ends.append(
            fit(problem.objective.batch_loss, problem.objective.loss, p, 24, recipe, generator=g, target=target)
        )
    return problem.objective, ends[0].params, ends[1].params


@pytest.fixture(scope="module")
def pair():
    return trained([5, 20, 16, 18, 4])


def connect(pair, seed=0, **options):
    objective, a, b = pair
    return im.connect(
        objective,
        a,
        b,
        connector_from({"name": "Subnetwork", "steps": 200, "batch": 24, "lr": 0.005} | options),
        seed=seed,
    )


def judged(pair, connection):
    """The figures in the stats are what the path has: proved, and no lower and no higher."""
    objective, a, b = pair
    certificate = im.certify(objective, connection.path)
    assert certificate.proved
    knots = [objective.loss(p) for p in connection.path.knots]
    rows = connection.stats["subnetworks"]
    for row in rows:
        assert min(abs(row["loss"] - v) for v in knots) < 1e-9
    assert max(knots) == pytest.approx(max(objective.loss(a), objective.loss(b), *(r["loss"] for r in rows)), abs=1e-9)
    assert certificate.bound == pytest.approx(max(knots), rel=1e-9)
    assert connection.stats["limited_by"]["loss"] == max(r["loss"] for r in rows)
    return certificate.bound


@pytest.mark.parametrize("options", [{"subsets": "own"}, {"subsets": "own", "draws": 3}, {"draws": 3}], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_own_sets_and_draws_reach_the_ends(pair, bias, options):
    pair = pair if bias else trained([5, 16, 16, 4], bias=False)
    L = 4 if bias else 3
    connection = connect(pair, steps=150, lr=0.01, **options)
    assert len(connection.path) == 4 * L + (3 if options.get("subsets") == "own" else -1)
    assert judged(pair, connection) < 0.1
    one, again = (connect(pair, steps=20, lr=0.01, **options) for _ in range(2))
    assert equal(one.path.knots[3], again.path.knots[3])


def sets_in_use(connection, objective, end):
    """The units of the last hidden layer that the first switch keeps, at either end."""
    chain = chain_of(objective.program, objective.structure)
    knot = connection.path.knots[1 if end == 0 else -2]
    return (chain.read(knot).A[chain.L].flatten(2) != 0).any(2).any(0).nonzero().flatten().tolist()


def test_same_and_own_sets(pair):
    objective = pair[0]
    same, own = connect(pair, steps=5), connect(pair, steps=5, subsets="own")
    assert sets_in_use(same, objective, 0) == sets_in_use(same, objective, 1)
    assert sets_in_use(own, objective, 0) != sets_in_use(own, objective, 1)


@pytest.mark.parametrize("subsets", ["same", "own"])
def test_more_draws_never_raise_a_convex_bound_and_common_sets_stay_common(pair, subsets):
    """xi_{L-1} is solved to its optimum from each set, so the best of six sets is not worse than the first."""
    objective = pair[0]
    few, many = (connect(pair, steps=5, subsets=subsets, draws=n, effort=0, attempts=1, init="random") for n in (1, 6))
    top = [max(r["loss"] for r in c.stats["subnetworks"] if r["layer"] == 3) for c in (few, many)]
    assert top[1] <= top[0] + 1e-9
    if subsets == "same":
        assert sets_in_use(many, objective, 0) == sets_in_use(many, objective, 1)


def test_one_fraction_per_layer(pair):
    objective = pair[0]
    connection = connect(pair, steps=60, fraction=[0.5, 0.75, 0.9])
    held = {r["layer"]: r["held"] for r in connection.stats["subnetworks"] if r["end"] == "a"}
    assert held == {1: 10, 2: 12, 3: 17}
    assert len(connection.path) == 4 * 4 - 1
    judged(pair, connection)
    assert len(sets_in_use(connection, objective, 0)) == 17
    with pytest.raises(im.InputError, match="3 numbers, one per hidden layer"):
        connect(pair, fraction=(0.5, 0.5))
    assert im.Subnetwork(fraction=[0.5, 0.75]) == im.Subnetwork(fraction=(0.5, 0.75))  # type: ignore[arg-type]


def test_a_search_for_the_fractions_lowers_what_a_hidden_layer_limits():
    """Half of a layer that is too poor: K grows there, at the end that needs it, and the hubs then differ."""
    pair = trained([5, 30, 30, 6, 4], target=4e-3)
    options = {"steps": 150, "effort": 0, "attempts": 1, "lr": 4e-3}
    plain, searched = connect(pair, **options), connect(pair, fraction="search", **options)
    l = plain.stats["limited_by"]["layer"]
    assert l > 0
    held = [[r["held"] for r in c.stats["subnetworks"] if r["layer"] == l] for c in (plain, searched)]
    assert max(held[1]) > max(held[0])
    assert judged(pair, searched) < 0.95 * judged(pair, plain)
    assert len(searched.path) == 4 * 4 + 5


def test_effort_goes_to_the_subnetwork_that_limits_the_bound(pair):
    options = {"steps": 30, "attempts": 1, "init": "random", "hub_steps": 30, "batch": 8}
    plain, more = connect(pair, effort=0, **options), connect(pair, effort=8, **options)
    assert judged(pair, more) < judged(pair, plain)
    steps = [{(r["layer"], r["end"]): r["steps"] for r in c.stats["subnetworks"]} for c in (plain, more)]
    further = {k: steps[1][k] - steps[0][k] for k in steps[0] if steps[1][k] != steps[0][k]}
    limiting = (plain.stats["limited_by"]["layer"], plain.stats["limited_by"]["end"])
    assert limiting in further
    assert 0 < sum(further.values()) <= 8 * 30


def test_subnetworks_that_start_from_half_width_networks_are_never_above_them():
    """Corollary 4.2, as an option: the path is bounded by the dropout-stable networks of both ends."""
    for bias in (True, False):
        objective, a, b = pair = trained([5, 11, 13, 12, 4], bias=bias)
        chain = chain_of(objective.program, objective.structure)
        connection = connect(pair, subsets="own", init="dropout", masks=8, steps=1, lr=1e-9, effort=0, attempts=1)
        g = torch.Generator().manual_seed(0)
        found = [search(objective, chain, p, Sought(0.5, 8), g) for p in (a, b)]
        losses = {(r["layer"], r["end"]): r["loss"] for r in connection.stats["subnetworks"]}
        for e, end in enumerate("ab"):
            for l in range(1, chain.L):
                assert losses[l, end] <= found[e][l].loss + 1e-9
        assert losses[0, "both"] <= min(found[0][1].loss, found[1][1].loss) + 1e-9
        # without steps they are those networks; the convex one is solved all the same
        assert losses[1, "a"] == pytest.approx(found[0][1].loss, rel=1e-3)
        judged(pair, connection)


def test_half_width_networks_fit_where_the_fractions_differ(pair):
    """More units are free in some layers than are kept: the further ones must not change the outputs."""
    objective, a, _ = pair
    chain = chain_of(objective.program, objective.structure)
    options = {"subsets": "own", "init": "dropout", "masks": 4, "fraction": (0.5, 0.7, 0.6), "effort": 0, "attempts": 1}
    connection = connect(pair, steps=1, lr=1e-9, **options)
    g = torch.Generator().manual_seed(0)
    found = search(objective, chain, a, Sought(0.3, 4), g)
    for row in connection.stats["subnetworks"]:
        if row["end"] == "a" and row["layer"] < 3:
            assert row["loss"] == pytest.approx(found[row["layer"]].loss, rel=1e-4)


def test_convolutional_networks_take_all_options():
    problem = convolutional()
    pair = (problem.objective, problem.a, problem.b)
    for options, extra in (({"draws": 2}, -1), ({"subsets": "own", "init": "dropout", "masks": 2, "draws": 2}, 3)):
        connection = connect(pair, steps=20, batch=8, **options)
        assert len(connection.path) == 4 * 4 + extra
        judged(pair, connection)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"fraction": "most"}, "or 'search'"),
        ({"fraction": (0.5, 1.0)}, r"a number in \[1/2, 1\)"),
        ({"subsets": "equal"}, "'same' or 'own'"),
        ({"inner": "guessed"}, "inner: expected one of Trained, Memorised, Separated"),
        ({"init": "dropout"}, "subsets='own'"),
        ({"draws": 0}, "draws: expected a whole number"),
        ({"masks": 1.5}, "masks: expected an integer"),
        ({"effort": -1}, "effort: expected a number >= 0"),
        ({"momentum": 1.0}, "momentum"),
        ({"schedule": "step"}, "schedule: expected 'cosine'"),
    ],
)
def test_bad_options_are_refused_at_once(bad, message):
    with pytest.raises(im.InputError, match=message):
        connector_from({"name": "Subnetwork"} | bad)


def test_with_a_penalty_the_vertex_that_limits_the_path_is_named_with_it(pair):
    """Old rows and those of the subnetwork stand side by side: there the penalty is the largest."""
    plain, a, b = pair
    objective = im.Objective(plain.skeleton, data=plain.data, penalty=im.Ridge(0.05))
    connection = connect((objective, a, b), steps=50)
    found, knots = connection.stats["limited_by"], connection.path.knots
    assert found["loss"] == max(r["loss"] for r in connection.stats["subnetworks"])
    totals = [objective.loss(p) for p in knots]
    assert totals[found["vertex"]] == max(totals)
    point = knots[found["vertex"]]
    assert found["penalty"] == objective.penalty_of(point) > objective.penalty_of(a)
    assert found["vertex_loss"] + found["penalty"] == pytest.approx(max(totals), rel=1e-12)
    assert 0 < found["vertex"] < len(knots) - 1
    assert found["where"] == f"after {connection.stats['segments'][found['vertex'] - 1]}"
    dense = max(objective.loss(s.at(k / 10)) for s in connection.path.segments for k in range(11))
    assert dense <= max(totals) + 1e-12
    assert "penalty" not in connect(pair, steps=50).stats["limited_by"]


def test_the_steps_of_all_networks_are_counted(pair):
    """Of two draws of a layer one is taken; the hub has none to draw, and the last layers are a convex problem."""
    options = {"steps": 4, "hub_steps": 4, "lr": 1e-9, "effort": 0, "attempts": 1}
    one, two = (connect(pair, draws=n, **options) for n in (1, 2))
    assert one.cost.gradient_steps == sum(row["steps"] for row in one.stats["subnetworks"])
    drawn = [row["steps"] for row in two.stats["subnetworks"] if row["layer"] in (1, 2)]
    assert drawn == [4] * 4
    assert two.cost.gradient_steps is not None
    assert two.cost.gradient_steps >= sum(row["steps"] for row in two.stats["subnetworks"]) + sum(drawn)
