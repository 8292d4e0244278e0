"""Both ends count: every row and every bound of ``im.theory``, measured anew at each end, in both orders of the ends.

The ends are very different, so that a table that leaves one out, or takes one for the other, says something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import isfinite
from typing import Any

import pytest
import torch

import isthmus as im
from isthmus.evaluate.chain import losses_of
from isthmus.models import mean_field, mean_field_init
from isthmus.params import Params
from isthmus.premises.memorisation import memorisation, separability
from isthmus.stability.dropout.pattern import without
from isthmus.structure.chain import chain_of
from isthmus.theory import Row, Theory
from isthmus.theory.table import CONCLUSION, cells
from isthmus.training.fit import Recipe, fit
from tests.problems import Problem, classify, perceptron, random_params

F64 = torch.float64
MASKS, DRAWS, STEPS, EXAMPLES = 3, 2, 30, 10


def table(objective: im.Objective, ends: Sequence[Params], *theorems: str, **options: Any) -> Theory:
    given = {"masks": MASKS, "draws": DRAWS, "steps": STEPS, "examples": EXAMPLES} | options
    return im.theory(objective, *ends, theorems=theorems, **given)


def orders(problem: Problem) -> Iterator[tuple[Params, Params]]:
    """The ends, and the ends exchanged."""
    yield problem.a, problem.b
    yield problem.b, problem.a


def measured(found: Theory, theorem: str, premise: str, end: str) -> list[float]:
    """The numbers of the rows of one end, in order."""
    rows = [r for r in found.of(theorem) if r.premise.startswith(premise) and r.end == end]
    assert all(r.measured is not None for r in rows)
    return [r.measured for r in rows if r.measured is not None]


def conclusion(found: Theory, theorem: str) -> Row:
    (row,) = [r for r in found.of(theorem) if r.premise == CONCLUSION]
    return row


def trained(objective: im.Objective, start: Params, target: float = 1e-2, steps: int = 300) -> Params:
    recipe, g = Recipe(lr=0.01, batch=objective.num_examples, steps=steps), torch.Generator().manual_seed(0)
    fitted = fit(
        objective.batch_loss, objective.loss, start, objective.num_examples, recipe, generator=g, target=target
    )
    return fitted.params


@cache
def uneven(widths: tuple[int, ...], scale: float = 3.0) -> Problem:
    """A trained network, whose halves are bad, and a large random one of high loss."""
    problem = classify(str(widths), perceptron(list(widths)), (5,))
    high = {k: scale * v if k == f"{2 * len(widths) - 4}.weight" else v for k, v in problem.b.items()}
    return Problem(problem.name, problem.objective, trained(problem.objective, problem.a), high)


def tells_apart(right: list[float], wrong: Sequence[list[float]]) -> None:
    """In one of the orders at least every wrong formula gives another number than the right one."""
    for values in wrong:
        assert max(abs(p - q) for p, q in zip(right, values, strict=True)) > 1e-3


# -- dropout stability: Theorem 1 of Kuditipudi et al., Corollary 4.2 of Nguyen et al.


@pytest.mark.parametrize("theorem", ["2019, Theorem 1", "Corollary 4.2"])
def test_dropout_stability_of_either_end_makes_the_bound(theorem):
    problem = uneven((5, 6, 6, 4))
    bounds: list[float] = []
    one_sided: list[list[float]] = [[], [], [], [], []]
    for ends in orders(problem):
        found = table(problem.objective, ends, theorem)
        stable = [im.dropout_stability(problem.objective, p, masks=MASKS) for p in ends]
        epsilons, losses = [s.epsilon for s in stable], [s.loss for s in stable]
        for e, end in enumerate("ab"):
            assert measured(found, theorem, "dropout stability", end) == [epsilons[e]]
        bound = conclusion(found, theorem).bound
        assert bound == pytest.approx(max(losses) + max(epsilons), rel=1e-12)
        assert bound is not None
        bounds.append(bound)
        wrong = [max(losses) + epsilons[0], max(losses) + epsilons[1], losses[0] + max(epsilons)]
        wrong += [losses[1] + max(epsilons), max(p + q for p, q in zip(losses, epsilons, strict=True))]
        for values, value in zip(one_sided, wrong, strict=True):
            values.append(value)
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-12)
    tells_apart(bounds, one_sided)


# -- subnetworks: Theorem 4.1


def test_subnetworks_of_either_end_make_the_bound_of_theorem_4_1():
    """With few steps the rest makes it, with a layer of 5 units the hub, of which the lower serves both ends."""
    bounds: list[float] = []
    one_sided: list[list[float]] = [[] for _ in range(7)]
    for widths, scale, steps in (((5, 20, 20, 4), 3.0, 1), ((5, 6, 6, 4), 0.05, 30), ((5, 5, 4), 0.05, 1)):
        problem = uneven(widths, scale)
        for ends in orders(problem):
            found = table(problem.objective, ends, "Theorem 4.1", steps=steps)
            losses = [problem.objective.loss(p) for p in ends]
            Q = [
                im.subnetwork_bounds(
                    problem.objective, p, draws=DRAWS, recipe=Recipe(steps=steps), target=max(losses)
                )
                for p in ends
            ]  # fmt: skip
            for e, end in enumerate("ab"):
                assert measured(found, "Theorem 4.1", "loss Q_", end) == [row.loss for row in Q[e].layers]
            hubs = [q.at(0).loss for q in Q]
            rest = [max(row.loss for row in q.layers if row.layer) for q in Q]
            bound = conclusion(found, "Theorem 4.1").bound
            assert bound == pytest.approx(max(*losses, min(hubs), *rest), rel=1e-12)
            assert bound is not None
            bounds.append(bound)
            wrong = [max(*losses, min(hubs), rest[0]), max(*losses, min(hubs), rest[1])]
            wrong += [max(*losses, hubs[0], *rest), max(*losses, hubs[1], *rest), max(*losses, *hubs, *rest)]
            wrong += [max(losses[0], min(hubs), *rest), max(losses[1], min(hubs), *rest)]
            for values, value in zip(one_sided, wrong, strict=True):
                values.append(value)
    tells_apart(bounds, one_sided)


# -- memorising subnetworks: Corollary 4.3


def bent(seed: int, objective: im.Objective, raised: float) -> Params:
    """Features in general position below, kinks among the data above them, and the best output layer, raised."""
    p = random_params(objective.skeleton, seed) | {
        "0.bias": torch.full((4,), 50.0, dtype=F64),
        "2.bias": torch.full((16,), 500.0, dtype=F64),
    }
    chain = chain_of(objective.program, objective.structure)
    h = chain.features(p, objective.data[0], 2, 100)  # type: ignore[arg-type]
    z = h @ p["4.weight"].T
    g = torch.Generator().manual_seed(seed)
    at = torch.rand(8, generator=g, dtype=F64)
    low, high = z.min(0).values, z.max(0).values
    p["4.bias"] = -(low + at * (high - low))
    f = chain.features(p, objective.data[0], 3, 100)  # type: ignore[arg-type]
    F = torch.cat([f, torch.ones_like(f[:, :1])], 1)
    best = torch.linalg.lstsq(F, objective.data[1], driver="gelsd").solution
    p["6.weight"], p["6.bias"] = best[:-1].T.contiguous(), best[-1] + raised
    return p


@cache
def memorising() -> Problem:
    g = torch.Generator().manual_seed(3)
    t = torch.linspace(-1, 1, 8, dtype=F64)
    x = torch.stack([t, t**2, t**3], 1)
    y = torch.rand(8, 1, generator=g, dtype=F64) * 2 - 1
    objective = im.Objective(perceptron([3, 4, 16, 8, 1]).double(), "mse", (x, y))
    return Problem("memorising", objective, bent(1, objective, 0.0), bent(2, objective, 0.1))


def test_the_output_layers_of_either_end_make_the_bound_of_corollary_4_3():
    problem = memorising()
    bounds: list[float] = []
    one_sided: list[list[float]] = [[], [], [], []]
    for ends in orders(problem):
        found = table(problem.objective, ends, "Corollary 4.3")
        assert [r.premise for r in found.rows if r.holds is not True] == []
        losses = [problem.objective.loss(p) for p in ends]
        options: Any = {"draws": DRAWS, "recipe": Recipe(steps=STEPS), "target": max(losses)}
        Q = [im.subnetwork_bounds(problem.objective, p, **options).at(3).loss for p in ends]
        excess = [max(0.0, q - own) for q, own in zip(Q, losses, strict=True)]
        for e, end in enumerate("ab"):
            lie = memorisation(problem.objective, ends[e])
            assert measured(found, "Corollary 4.3", "(A1-b)", end) == [pytest.approx(excess[e], rel=1e-12)]
            assert measured(found, "Corollary 4.3", "(A2)", end) == [lie.features[2].most_on_hyperplane]
            assert measured(found, "Corollary 4.3", "(A3)", end) == [lie.features[1].coinciding]
        bound = conclusion(found, "Corollary 4.3").bound
        assert bound == pytest.approx(max(losses) + max(excess), rel=1e-12)
        assert bound is not None
        bounds.append(bound)
        wrong = [max(losses) + excess[0], max(losses) + excess[1], losses[0] + max(excess), losses[1] + max(excess)]
        for values, value in zip(one_sided, wrong, strict=True):
            values.append(value)
    tells_apart(bounds, one_sided)


def flattened() -> Problem:
    """9 points that are in general position in 8 units of layer 2 of a, and lie in a space of dimension 3 in b."""
    x = torch.rand(9, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    objective = im.Objective(perceptron([8, 8, 16, 16, 1]).double(), "mse", (x, x[:, :1]))
    a = random_params(objective.skeleton, 1)
    a |= {"0.bias": torch.full((8,), 50.0, dtype=F64), "2.bias": torch.full((16,), 500.0, dtype=F64)}
    W = a["2.weight"]
    return Problem("flattened", objective, a, a | {"2.weight": W[:, :3] @ W[:3]})


@pytest.mark.parametrize("premise", ["(A2)", "(A3)"])
def test_an_assumption_of_corollary_4_3_that_fails_at_one_end_fails_at_that_end(premise):
    problem = flattened()
    off = problem.a | {"0.bias": torch.full((8,), -1e9, dtype=F64)}
    good, bad = problem.a, problem.b if premise == "(A2)" else off
    for e, ends in enumerate(((good, bad), (bad, good))):
        found = table(problem.objective, ends, "Corollary 4.3")
        failing = {(r.premise[:4], r.end) for r in found.rows if r.holds is False and r.end}
        assert (premise, "ba"[e]) in failing
        assert not [end for _, end in failing if end == "ab"[e]]
        assert conclusion(found, "Corollary 4.3").bound is None
    alone = table(problem.objective, (good, good), "Corollary 4.3")
    assert conclusion(alone, "Corollary 4.3").bound is not None
    assert not [r for r in alone.rows if r.vacuous]


def test_general_position_of_few_points_is_said_to_be_vacuous():
    """8 points in R^8: any hyperplane holds at most 8 of them, whatever they are."""
    problem = memorising()
    found = table(problem.objective, (problem.a, problem.b), "Corollary 4.3")
    rows = [r for r in found.rows if r.premise.startswith("(A2)")]
    assert [(r.holds, r.vacuous) for r in rows] == 2 * [(True, "N = 8 <= d = 8")]
    assert [cells(r)[5] for r in rows] == 2 * ["vacuous: N = 8 <= d = 8"]
    assert found.to_markdown().count("| vacuous: N = 8 <= d = 8 |") == 2


# -- what enters no bound: rows of either end


def test_noise_stability_is_told_of_each_end():
    problem = uneven((5, 9, 6, 4))
    few = problem.objective.subset(EXAMPLES)
    for ends in orders(problem):
        found = table(problem.objective, ends, "2019, Theorem 2", "2019, Theorem 3")
        (narrow,) = [r for r in found.of("2019, Theorem 3") if r.premise.startswith("narrow network theta*")]
        assert (narrow.end, narrow.measured, narrow.holds) == ("", int(0.5 / 1.5 * 6), None)
        for e, end in enumerate("ab"):
            n = im.noise_stability(few, ends[e], draws=DRAWS, tolerance=1e-2)
            for theorem in ("2019, Theorem 2", "2019, Theorem 3"):
                (row,) = [r for r in found.of(theorem) if r.premise.startswith("noise stability") and r.end == end]
                assert row.measured == (n.epsilon if isfinite(n.epsilon) else None)
                own = [r for r in found.of(theorem) if r.end == end and not r.premise.startswith("noise")]
                assert [(r.premise, r.measured, r.holds) for r in own] == [
                    (c.name, c.value, c.holds) for c in n.conditions
                ]


def test_separability_is_told_of_each_end():
    problem = classify("wide", perceptron([5, 40, 4]), (5,))
    for ends in ((problem.a, problem.b), (problem.b, problem.a)):
        found = table(problem.objective, ends, "Corollary 4.4")
        for e, end in enumerate("ab"):
            own = separability(problem.objective, ends[e])
            assert measured(found, "Corollary 4.4", "layer", end) == [own[l].margin for l in range(2)]
        assert conclusion(found, "Corollary 4.4").bound == max(map(problem.objective.loss, ends))


# -- Shevchenko and Mondelli


@pytest.mark.parametrize("widths", [(4, 12, 1), (3, 8, 8, 8, 2)])
def test_halves_of_either_end_make_the_bound_of_mean_field_networks(widths):
    net = mean_field(list(widths), "tanh", seed=0).double()
    g = torch.Generator().manual_seed(0)
    data = tuple(torch.randn(20, n, generator=g, dtype=F64) for n in (widths[0], widths[-1]))
    objective = im.Objective(net, "mse", data)  # type: ignore[arg-type]
    a = mean_field_init(net, "unimodal", 1)
    b = {k: 3 * v for k, v in mean_field_init(net, "bimodal", 2).items()}
    L, theorem = len(widths) - 1, f"Theorem {1 if len(widths) == 3 else 2} (B)"
    chain = chain_of(objective.program, objective.structure)
    kept = {l: torch.arange(widths[l] // 2) for l in range(1, L)}
    largest = []
    for ends in ((a, b), (b, a)):
        found = table(objective, ends, theorem)
        halved = [[losses_of(objective, chain, without(chain, p, kept, i))[0] for i in range(1, L)] for p in ends]
        for e, end in enumerate("ab"):
            assert measured(found, theorem, "loss with", end) == halved[e]
        assert conclusion(found, theorem).bound == max(*map(objective.loss, ends), *halved[0], *halved[1])
        largest = [max(objective.loss(p), *h) for p, h in zip(ends, halved, strict=True)]
    assert abs(largest[0] - largest[1]) > 1e-2


# -- bounds that are the larger end's loss


def nguyen(widths: list[int], **options: Any) -> Problem:
    module = perceptron(widths, lambda: torch.nn.LeakyReLU(0.2), **options).double()
    g = torch.Generator().manual_seed(0)
    objective = im.Objective(module, data=(torch.randn(6, widths[0], generator=g, dtype=F64), torch.arange(6) % 3))
    return Problem("nguyen", objective, random_params(module, 1), random_params(module, 2))


def deep_linear() -> Problem:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).double()
    g = torch.Generator().manual_seed(0)
    objective = im.Objective(module, "mse", tuple(torch.randn(20, n, generator=g, dtype=F64) for n in (4, 2)))  # type: ignore[arg-type]
    return Problem("linear", objective, random_params(module, 1), random_params(module, 2))


@pytest.mark.parametrize(
    ("theorem", "make"),
    [
        ("Theorem 3.2", lambda: nguyen([6, 5, 4, 3])),
        ("Theorem 5.1", lambda: nguyen([3, 12, 5, 3])),
        ("Theorem 6.1", lambda: nguyen([3, 12, 12, 3])),
        ("Proposition 2.2", deep_linear),
        ("Corollary 4.4", lambda: classify("wide", perceptron([5, 40, 4]), (5,))),
    ],
)
def test_the_higher_end_is_the_bound_whichever_it_is(theorem: str, make: Callable[[], Problem]):
    problem = make()
    losses = [problem.objective.loss(p) for p in (problem.a, problem.b)]
    assert abs(losses[0] - losses[1]) > 1e-3
    for ends in orders(problem):
        assert conclusion(table(problem.objective, ends, theorem), theorem).bound == max(losses)


def test_ranks_are_told_of_the_end_that_has_them():
    problem = nguyen([3, 12, 12, 3])
    flat = problem.b | {"2.weight": torch.zeros(12, 12, dtype=F64), "0.weight": torch.zeros(12, 3, dtype=F64)}
    for e, ends in enumerate(((problem.a, flat), (flat, problem.a))):
        note = conclusion(table(problem.objective, ends, "Theorem 6.1"), "Theorem 6.1").note
        good, bad = "ab"[e], "ba"[e]
        assert f"Property 3.1 at {good}: yes" in note
        assert f"Property 3.1 at {bad}: no" in note
        assert f"rank of F_2 at {good}: 6, N = 6" in note
        assert f"rank of F_2 at {bad}: 1, N = 6" in note
