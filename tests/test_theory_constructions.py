"""``im.theory`` on the theorems whose paths are constructed from premises: Shevchenko and Mondelli, Nguyen, Freeman."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.evaluate.level_network import closest_rows
from isthmus.models import mean_field, mean_field_init
from isthmus.stability.dropout.pattern import pattern_stability
from isthmus.theory import Row, Theory
from isthmus.theory.table import CONCLUSION
from tests.problems import Problem, blobs, classify, perceptron, random_params, small_convnet, wide_relu, with_ridge

F64 = torch.float64


def table(problem: Problem, *theorems: str) -> Theory:
    return im.theory(problem.objective, problem.a, problem.b, theorems=theorems)


def one(found: Theory, theorem: str, premise: str, end: str = "") -> Row:
    (row,) = [r for r in found.of(theorem) if r.premise.startswith(premise) and r.end == end]
    return row


def failing(found: Theory) -> list[str]:
    return [r.premise for r in found.rows if r.holds is False]


def conclusion(found: Theory, theorem: str) -> Row:
    return one(found, theorem, CONCLUSION)


def top(problem: Problem) -> float:
    return max(problem.objective.loss(problem.a), problem.objective.loss(problem.b))


def numbers(n: int, widths: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, widths[0], generator=g, dtype=F64), torch.randn(n, widths[-1], generator=g, dtype=F64)


def reaches(problem: Problem, method: im.Connector, bound: float | None, rel: float = 1e-9) -> None:
    """The path of the connector is proved to be at most the bound, which its ends or the halves reach."""
    assert bound is not None
    connection = im.connect(problem.objective, problem.a, problem.b, method)
    certificate = im.certify(problem.objective, connection.path)
    assert certificate.proved
    assert certificate.bound == pytest.approx(bound, rel=rel)
    assert im.profile(problem.objective, connection.path, 11).max <= bound * (1 + 1e-6)


# -- Shevchenko and Mondelli 2020


def averaged(
    widths: tuple[int, ...], activation: str = "tanh", loss: str = "mse", dtype: torch.dtype = F64, **options: Any
) -> Problem:
    net = mean_field(list(widths), activation, seed=0, **options).to(dtype)
    data = numbers(20, widths) if loss == "mse" else blobs(20, widths[:1], widths[-1])
    objective = im.Objective(net, loss, tuple(v.to(dtype) if v.is_floating_point() else v for v in data))  # type: ignore[arg-type]
    return Problem("averaged", objective, mean_field_init(net, "unimodal", 1), mean_field_init(net, "bimodal", 2))


def halves(found: Theory) -> list[float]:
    return [r.measured for r in found.rows if "halved" in r.premise and r.measured is not None]


@pytest.mark.parametrize(
    ("widths", "theorem", "dtype"),
    [
        ((4, 12, 1), "Theorem 1 (B)", F64),
        ((4, 11, 1), "Theorem 1 (B)", torch.float32),
        ((3, 8, 8, 8, 2), "Theorem 2 (B)", F64),
    ],
)
def test_mean_field_networks_fulfil_what_a_pair_shows_and_the_halves_make_the_bound(widths, theorem, dtype):
    problem = averaged(widths, dtype=dtype)
    found = table(problem, theorem)
    assert [r.premise for r in found.rows if r.holds is not True] == []
    assert not any(r.premise.startswith(("time", "max xi", "Lipschitz constant of xi", "max |a|")) for r in found.rows)
    halved = halves(found)
    assert len(halved) == 2 * (len(widths) - 2)
    bound = conclusion(found, theorem).bound
    assert bound is not None
    assert bound == max(top(problem), *halved)
    assert bound > top(problem) or dtype != F64
    known = [pattern_stability(problem.objective, p, widths[1] // 2).dropped_loss for p in (problem.a, problem.b)]
    assert set(known) <= set(halved)
    if dtype == F64:
        reaches(problem, im.MeanField(), bound)


@pytest.mark.parametrize(
    ("problem", "theorem", "fails"),
    [
        (lambda: averaged((4, 12, 2)), "Theorem 1 (B)", ["outputs"]),
        (lambda: averaged((4, 12, 1), "relu"), "Theorem 1 (B)", ["sup |sigma|", "Lipschitz constant of sigma'"]),
        (lambda: averaged((3, 8, 8, 8, 2), loss="cross_entropy"), "Theorem 2 (B)", ["square loss"]),
        (lambda: averaged((3, 8, 6, 8, 2)), "Theorem 2 (B)", ["different hidden widths"]),
        (lambda: averaged((3, 8, 8, 2)), "Theorem 2 (B)", ["layers L + 1"]),
        (lambda: averaged((3, 8, 8, 8, 2), hidden_bias=True), "Theorem 2 (B)", ["layers with bias after the first"]),
    ],
)
def test_each_premise_of_mean_field_networks_fails_by_itself_and_the_halves_remain(problem, theorem, fails):
    problem = problem()
    found = table(problem, theorem)
    assert failing(found) == [*fails, CONCLUSION]
    assert conclusion(found, theorem).bound is None
    number = conclusion(found, theorem).note.partition("still give ")[2].partition(";")[0]
    whole = max(top(problem), *halves(found))
    assert whole <= float(number) <= whole * 1.002


def test_networks_that_are_not_averages_and_penalties_fail_and_a_penalty_leaves_no_number():
    plain = table(classify("plain", perceptron([5, 8, 8, 8, 4], nn.Tanh), (5,)), "Theorem 2 (B)")
    assert one(plain, "Theorem 2 (B)", "largest |N c - 1|").measured == 7.0
    ridge = table(with_ridge(), "Theorem 2 (B)")
    assert one(ridge, "Theorem 2 (B)", "no penalty").holds is False
    assert "still give" not in conclusion(ridge, "Theorem 2 (B)").note
    convolutional = table(classify("convolutional", small_convnet(), (1, 8, 8)), "Theorem 2 (B)")
    assert one(convolutional, "Theorem 2 (B)", "convolutions").measured == 2
    assert "still give" in conclusion(convolutional, "Theorem 2 (B)").note


# -- Nguyen 2019


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


# -- Freeman & Bruna 2017


def linear(widths: tuple[int, ...], *, bias: bool = True, output_bias: bool = True, penalty: Any = None) -> Problem:
    *hidden, m = widths
    layers = [nn.Linear(p, q, bias=bias) for p, q in zip(hidden, hidden[1:], strict=False)]
    module = nn.Sequential(*layers, nn.Linear(hidden[-1], m, bias=bias and output_bias)).double()
    objective = im.Objective(module, "mse", numbers(20, widths), penalty=penalty)
    return Problem("linear", objective, random_params(module, 1), random_params(module, 2))


@pytest.mark.parametrize(
    ("problem", "rel"),
    [
        (lambda: linear((4, 3, 2)), 1e-9),
        (lambda: linear((4, 5, 3, 2), bias=False), 1e-9),
        # curves are certified by intervals, to a hundredth
        (lambda: linear((4, 3, 2), penalty=im.Ridge(1e-2)), 1e-2),
    ],
)
def test_proposition_2_2_holds_and_its_bound_is_the_higher_end(problem, rel):
    problem = problem()
    found = table(problem, "Proposition 2.2")
    assert [r.premise for r in found.rows if r.holds is not True] == []
    assert conclusion(found, "2.2").bound == top(problem)
    reaches(problem, im.DeepLinear(), top(problem), rel)


@pytest.mark.parametrize(
    ("problem", "premise", "holds"),
    [
        (lambda: linear((4, 2, 3, 2)), "units of hidden layer 1", False),
        (lambda: linear((4, 3, 2, 2)), "units of hidden layer 2", False),
        (lambda: linear((3, 3, 4, 2), bias=False), "units of hidden layer 1", True),
        (lambda: linear((4, 3, 5, 3)), "units of hidden layer 1", False),
        (lambda: linear((4, 2, 2), bias=False), "units of hidden layer 1", None),
        (lambda: linear((4, 2, 2), penalty=im.Ridge(1e-2)), "units of hidden layer 1", None),
        (lambda: linear((4, 1, 2)), "units of hidden layer 1", False),
        (lambda: linear((4, 5, 3, 2), penalty=im.Ridge(1e-2)), "layers under ridge", False),
        (lambda: linear((4, 3, 2), penalty=im.L1(1e-2)), "penalty", False),
        (lambda: linear((4, 3, 2), penalty=im.Ridge(1e-2, names=("0.weight", "1.weight"))), "biases", True),
        (lambda: classify("relu", perceptron([5, 9, 4]), (5,)), "operations", False),
        # hidden biases with no output bias to take them up, units for the inputs only
        (lambda: linear((2, 3, 3, 4), output_bias=False), "layers wide for inputs only", False),
    ],
)
def test_the_premises_of_proposition_2_2_are_those_of_its_connector(problem, premise, holds):
    problem = problem()
    found = table(problem, "Proposition 2.2")
    row, last = one(found, "2.2", premise), conclusion(found, "2.2")
    assert row.holds is holds
    assert last.holds is holds
    assert (last.bound is not None) == (holds is True)
    if holds is False:
        assert failing(found) == [row.premise, last.premise]  # and no other is blamed
        with pytest.raises(im.IsthmusError):
            im.connect(problem.objective, problem.a, problem.b, im.DeepLinear())


def sparse(m: int = 8, *, penalty: Any = None, widths: tuple[int, ...] = (), **options: Any) -> Problem:
    widths = widths or (3, m, 2)
    module = perceptron(list(widths), options.get("activation", nn.ReLU)).double()
    loss = options.get("loss", "mse")
    objective = im.Objective(module, loss, numbers(20, widths), penalty=penalty)
    return Problem("sparse", objective, random_params(module, 1), random_params(module, 2))


def test_theorem_2_4_holds_for_two_layer_relu_networks_and_leaves_the_bound_to_the_path():
    for penalty, kappa in ((None, 0.0), (im.L1(1e-2, names=("2.weight",)), 1e-2)):
        found = table(sparse(penalty=penalty), "Theorem 2.4")
        assert conclusion(found, "2.4").holds is True
        assert conclusion(found, "2.4").bound is None
        assert one(found, "2.4", "kappa").measured == kappa


@pytest.mark.parametrize(
    ("problem", "premise", "why"),
    [
        (lambda: sparse(widths=(3, 6, 6, 2)), "layers", ""),
        (lambda: sparse(activation=nn.Tanh), "operations", "about ReLU networks"),
        (lambda: sparse(penalty=im.Ridge(1e-2)), "kappa", "expected l1 on the second layer"),
        (lambda: sparse(1), "hidden units m", ""),
        (lambda: sparse(loss=lambda z, y: (z - y).sin().sum(1)), "loss convex", ""),
    ],
)
def test_each_premise_of_theorem_2_4_fails_by_itself(problem, premise, why):
    problem = problem()
    found = table(problem, "Theorem 2.4")
    assert failing(found) == [one(found, "2.4", premise).premise, CONCLUSION]
    assert why in one(found, "2.4", premise).note
    with pytest.raises(im.IsthmusError):
        im.connect(
            problem.objective,
            problem.a,
            problem.b,
            im.TwoLayerReLU(units=1, attempts=0, recipe=im.Recipe(lr=1e-2, steps=1)),
        )


# -- all


def test_tables_are_plain_values_and_repeat():
    problem = wide_relu()
    found, again = (table(problem, "2020", "Nguyen 2019", "Freeman") for _ in range(2))
    assert found == again
    assert [Row(**row) for row in json.loads(json.dumps(found.to_dict()))["rows"]] == list(found.rows)
    assert all(r.measured is None or r.measured == r.measured for r in found.rows)


# -- Nguyen 2019 without biases


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
