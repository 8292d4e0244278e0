"""``im.theory`` on the theorems of Nguyen 2019: sublevel sets, with biases and without."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.evaluate.level_network import closest_rows
from isthmus.theory.table import CONCLUSION
from tests.problems import Problem, blobs, classify, perceptron, random_params, small_convnet
from tests.theory_tables import F64, conclusion, failing, one, reaches, table, top


def level(
    widths: tuple[int, ...], n: int = 6, activation: Any = lambda: nn.LeakyReLU(0.2), *, bias: bool = True,
    dtype: torch.dtype = F64,
) -> Problem:  # fmt: skip
    module = perceptron(list(widths), activation, bias=bias).to(dtype)
    x, y = blobs(n, widths[:1], widths[-1])
    objective = im.Objective(module, data=(x.to(dtype), y))
    return Problem("level", objective, random_params(module, 1, dtype), random_params(module, 2, dtype))


HOLD = [
    ("3.2", (6, 5, 4, 3), lambda: nn.LeakyReLU(0.2)),
    ("5.1", (3, 12, 5, 3), lambda: nn.LeakyReLU(0.2)),
    ("6.1", (3, 12, 12, 3), nn.ReLU),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("number", "widths", "activation"), HOLD)
def test_the_three_theorems_hold_and_the_higher_end_is_the_bound(number, widths, activation, bias):
    problem = level(widths, activation=activation, bias=bias)
    found = table(problem, f"Theorem {number}")
    assert conclusion(found, number).holds is True
    assert conclusion(found, number).bound == top(problem)
    assert "Property 3.1 at a: yes; Property 3.1 at b: yes" in conclusion(found, number).note
    reaches(problem, im.Sublevel(number), top(problem))


@pytest.mark.parametrize(
    ("number", "problem", "fails"),
    [
        ("3.2", lambda: level((4, 6, 4, 3)), ["rank of [X, 1]"]),
        ("3.2", lambda: level((6, 4, 5, 3)), ["n_1"]),
        ("3.2", lambda: level((6, 5, 4, 3), activation=nn.ReLU), 2 * ["Assumption 2.1: slope of relu, layer"]),
        ("5.1", lambda: level((3, 11, 5, 3)), ["n_1"]),
        ("5.1", lambda: level((3, 12, 3, 3)), ["n_2"]),
        ("5.1", lambda: level((3, 12, 5, 3), activation=nn.ReLU), ["Assumption 2.1"]),
        ("6.1", lambda: level((3, 12, 11, 3)), ["n_2"]),
        ("6.1", lambda: level((3, 12, 12, 3), activation=nn.Identity), 2 * ["Assumption 2.2 for"]),
        ("6.1", lambda: twice(level((3, 12, 12, 3), 3)), ["least distance of two samples"]),
    ],
)
def test_each_premise_of_nguyen_2019_fails_by_itself(number, problem, fails):
    found = table(problem(), f"Theorem {number}")
    short = failing(found)
    assert len(short) == len(fails) + 1
    assert all(s.startswith(f) for s, f in zip(short, [*fails, CONCLUSION], strict=True))
    assert conclusion(found, number).bound is None


def twice(problem: Problem) -> Problem:
    x, y = problem.objective.data
    return Problem("twice", problem.objective.on((torch.cat([x, x]), torch.cat([y, y]))), problem.a, problem.b)  # type: ignore[list-item]


def test_ranks_at_the_ends_are_told_and_do_not_break_the_theorem():
    problem = level((3, 12, 12, 3), activation=nn.ReLU, dtype=torch.float32)
    b = problem.b | {"2.weight": torch.zeros(12, 12), "0.weight": torch.zeros(12, 3)}
    found = table(Problem("flat", problem.objective, problem.a, b), "Theorem 5.1", "Theorem 6.1")
    note = conclusion(found, "6.1").note
    assert "Property 3.1 at a: yes; Property 3.1 at b: no" in note
    assert "rank of F_2 at b: 1, N = 6" in note
    assert conclusion(found, "6.1").holds is True


def test_convolutional_networks_are_measured_and_batch_norm_is_refused():
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).double()
    objective = im.Objective(module, data=blobs(6, (1, 4, 4), 3))
    problem = Problem("conv", objective, random_params(module, 1), random_params(module, 2))
    found = table(problem, "Theorem 6.1")
    # 3 channels of 4 positions count as 12 = 2N units
    assert (one(found, "6.1", "n_1").measured, one(found, "6.1", "n_1").needed) == (3, ">= 4 units for 6 rows")
    normalised = table(classify("convolutional", small_convnet(), (1, 8, 8)), "Theorem 6.1")
    assert "not applicable" in normalised.rows[0].note


def test_the_least_distance_in_blocks_is_the_one_of_all_pairs():
    x = torch.randn(41, 7, generator=torch.Generator().manual_seed(0), dtype=F64)
    for rows in (x, torch.cat([x, x[3:4]]), torch.cat([x, x[3:4] + 1e-11])):
        for chunk in (7, 10, 40):
            assert closest_rows(rows, chunk) == pytest.approx(float(torch.pdist(rows).min()), rel=1e-9, abs=0)


# -- without biases


def unbiased(change: Callable[[torch.Tensor], None], widths: tuple[int, ...], activation: Any) -> Problem:
    """12 samples in R^6 with `change`, and layers without biases."""
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    change(x)
    module = perceptron(list(widths), activation, bias=False).double()
    objective = im.Objective(module, data=(x, torch.arange(12) % 3))
    return Problem("unbiased", objective, random_params(module, 1), random_params(module, 2))


def leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


def nothing(x: torch.Tensor) -> None:
    """Leave the samples as they are."""


def zero(x: torch.Tensor) -> None:
    x[4] = 0


def double(x: torch.Tensor) -> None:
    x[5] = 2 * x[2]


def opposite(x: torch.Tensor) -> None:
    x[5] = -x[2]


@pytest.mark.parametrize(
    ("change", "activation", "widths", "rank"),
    [
        (nothing, nn.ReLU, (6, 24, 24, 3), 12),
        (zero, nn.ReLU, (6, 24, 24, 3), 11),
        (zero, leaky, (6, 24, 9, 3), 11),
        (zero, nn.Tanh, (6, 24, 3), 11),
        (zero, nn.Sigmoid, (6, 24, 24, 3), 12),
        (double, nn.ReLU, (6, 24, 24, 3), 11),
        (double, leaky, (6, 24, 9, 3), 11),
        (double, nn.Tanh, (6, 24, 3), 12),
        (opposite, nn.ReLU, (6, 24, 24, 3), 12),
        (opposite, leaky, (6, 24, 9, 3), 12),
        (opposite, nn.Tanh, (6, 24, 24, 3), 11),
    ],
)
def test_layers_without_biases_are_judged_by_the_rank_that_their_weights_reach(change, activation, widths, rank):
    """Lemma 5.2 moves biases: where samples are zero or proportional, no theorem covers a layer that has none."""
    problem = unbiased(change, widths, activation)
    number = "5.1" if widths[2] == 9 else "6.1"
    row = one(found := table(problem, f"Theorem {number}"), number, "Lemma 5.2 moves biases")
    assert (row.measured, row.needed, row.holds) == (rank, "N = 12", rank == 12)
    assert (conclusion(found, number).bound == top(problem)) if rank == 12 else conclusion(found, number).bound is None
    if rank == 12:
        reaches(problem, im.Sublevel(number), top(problem))
        return
    connection = im.connect(problem.objective, problem.a, problem.b, im.Sublevel())
    assert connection.outcome is im.Outcome.PREMISE_FAILS
    why = "Lemma 5.2 moves biases, and this layer has none: rank of F_1: 11, needed N = 12"
    assert any(text.endswith(why) for text in connection.stats["premises"])
    offered = connection.stats["largest_subproblem"]
    assert offered["examples"] < 12
    fewer = Problem("fewer", problem.objective.subset(offered["examples"]), problem.a, problem.b)
    assert im.connect(fewer.objective, fewer.a, fewer.b, im.Sublevel()).outcome.ok
    # a point whose loss can still fall is asked for the same: Theorem 4.2
    descent = im.descend(problem.objective, problem.a, 1e-3)
    assert any(why in text for text in descent.stats["premises"])


@pytest.mark.parametrize("change", [nothing, zero, double])
def test_one_bias_in_the_first_layer_is_enough(change):
    problem = unbiased(change, (6, 24, 24, 3), nn.ReLU)
    layers = list(problem.objective.skeleton.children())
    module = nn.Sequential(nn.Linear(6, 24), *layers[1:]).to_empty(device="cpu").double()
    objective = im.Objective(module, data=problem.objective.data)
    biased = Problem("biased", objective, random_params(module, 1), random_params(module, 2))
    assert conclusion(table(biased, "Theorem 6.1"), "6.1").bound == top(biased)
    reaches(biased, im.Sublevel("6.1"), top(biased))
