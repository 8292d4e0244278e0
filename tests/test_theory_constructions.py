"""``im.theory`` on the theorems of Shevchenko and Mondelli 2020 and of Freeman & Bruna 2017."""

import json
from typing import Any

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.models import mean_field, mean_field_init
from isthmus.stability.dropout.pattern import pattern_stability
from isthmus.theory import Row, Theory
from isthmus.theory.table import CONCLUSION
from tests.problems import Problem, blobs, classify, perceptron, random_params, small_convnet, wide_relu, with_ridge
from tests.theory_tables import F64, conclusion, failing, numbers, one, reaches, table, top

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
    assert not any("without a unit to spare" in r.note for r in found.rows)
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
    assert ("without a unit to spare" in row.note) is (holds is None)
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
