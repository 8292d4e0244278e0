"""The search for half networks, against full-size networks with masks."""

from functools import cache
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar

import isthmus as im
from isthmus.objective.losses import cross_entropy
from isthmus.stability.dropout.search import Sought, search
from isthmus.structure.chain import chain_of
from tests.problems import blobs, classify, perceptron, random_params
from tests.slow_twins import masked_perceptron


@pytest.fixture
def problem():
    return classify("search", perceptron([5, 9, 7, 8, 4]), (5,))


def found(problem, scale="output", keep=0.5, masks=3, seed=0):
    chain = chain_of(problem.objective.program, problem.objective.structure)
    g = torch.Generator().manual_seed(seed)
    return search(problem.objective, chain, problem.a, Sought(keep, masks, scale), g)


@pytest.mark.parametrize("scale", ["output", "layer", "none"])
def test_losses_are_those_of_the_masked_network(problem, scale):
    x, y = problem.objective.data
    for i, dropped in found(problem, scale).items():
        masks = {}
        for j, kept in dropped.kept.items():
            masks[j] = torch.zeros([9, 7, 8][j - 1], dtype=torch.float64)
            masks[j][kept] = len(masks[j]) / len(kept) if scale != "none" else 1.0
            assert dropped.factors[j] == float(masks[j].max())
        assert set(masks) == set(range(i, 4))

        def loss(s, masks=masks):
            return float(cross_entropy(masked_perceptron(problem.a, x, masks, float(s)), y).mean())

        assert dropped.loss == pytest.approx(loss(dropped.scale), rel=1e-12)
        if scale == "output":
            brent: Any = minimize_scalar(loss, bracket=(0, 1))
            assert dropped.loss <= brent.fun + 1e-8
        else:
            assert dropped.scale == 1.0


def test_more_masks_never_hurt(problem):
    few, many = found(problem, masks=2), found(problem, masks=40)
    assert all(many[i].loss <= few[i].loss for i in few if i == 1)
    assert sum(many[i].loss for i in few) < sum(few[i].loss for i in few)


def test_at_most_the_kept_fraction_rounded_down(problem):
    for dropped in found(problem, keep=0.3).values():
        assert all(len(kept) == max(1, int(0.3 * [9, 7, 8][j - 1])) for j, kept in dropped.kept.items())


def test_a_subnetwork_that_separates_the_data_is_reported():
    """With one class the loss falls for ever as the scale grows: the search stops at its bound and says so."""
    problem = classify("separable", perceptron([5, 8, 4]), (5,))
    x, _ = problem.objective.data
    assert isinstance(x, torch.Tensor)
    y = torch.zeros(len(x), dtype=torch.int64)
    a = {k: v.abs() for k, v in problem.a.items()}
    a["2.weight"] = torch.cat([a["2.weight"][:1] + 1, -a["2.weight"][1:]])
    objective = problem.objective.on((x.abs(), y))
    connection = im.connect(objective, a, problem.b, im.Dropout(masks=1))
    assert connection.stats["dropped"]["a"][0]["separates_data"]
    assert im.certify(objective, connection.path).proved


@cache
def by_chance(widths: tuple[int, ...], seed: int) -> tuple[im.Objective, im.Params, Any]:
    """A small network, and what chance finds in it."""
    problem = classify(f"small {seed}", perceptron(list(widths)), (5,))
    params = random_params(problem.objective.skeleton, 50 + seed)
    return problem.objective, params, im.dropout_stability(problem.objective, params, masks=400, seed=seed)


@pytest.mark.parametrize("widths", [[5, 4, 4], [5, 8, 4], [5, 6, 6, 4], [5, 4, 5, 4, 4]], ids=str)
@pytest.mark.parametrize("by", ["magnitude", "greedy", "gates"])
def test_on_small_networks_a_search_never_loses_to_chance_at_the_same_price(widths, by):
    for seed in range(3):
        objective, params, chance = by_chance(tuple(widths), seed)
        found = im.dropout_stability(objective, params, masks=400, seed=seed + 10, search=by)
        for one, other in zip(found.layers, chance.layers, strict=True):
            assert one.loss <= other.loss + 1e-12
            assert len(one.trace) == len(other.trace) == 400


def test_what_does_not_separate_is_not_said_to():
    """A constant output, squares, whose best scale is finite, losses without an error, and labels that are wrong."""
    x, y = blobs(9, (2,), 3)
    wide, narrow = perceptron([2, 4, 3]).double(), perceptron([2, 1, 3]).double()
    far = 1e4 + torch.randn(9, 3).double()
    dead = {k: torch.zeros_like(v) for k, v in wide.state_dict().items()}
    faint = {k: 0.01 * v for k, v in random_params(wide, 3).items()}
    for module, loss, target, params in (
        (narrow, "cross_entropy", y, random_params(narrow, 1)),
        (wide, "mse", far, {k: 0.1 * v for k, v in random_params(wide, 2).items()}),
        (wide, torch.nn.HuberLoss(), far, dead),
        (wide, "cross_entropy", y, faint),
    ):
        (layer,) = im.dropout_stability(im.Objective(module, loss, (x, target)), params, masks=3).layers
        assert not layer.separates


def test_errors_of_the_users_own_see_targets_in_the_precision_of_the_outputs():
    net, y = perceptron([3, 8, 3]).float(), torch.eye(3)[[0, 1, 2, 0]]

    def error(outputs, y):
        return (torch.einsum("nc,nc->n", outputs, y) < outputs.amax(1)).float()

    objective = im.Objective(net, data=(torch.randn(4, 3), y), error=error)
    (layer,) = im.dropout_stability(objective, dict(net.state_dict()), masks=5).layers
    assert 0 <= layer.error <= 1
