"""A loss and the same loss less a constant, negative then, are measured and trained alike."""

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.training.fit import Ended, fit
from isthmus.training.recipe import Recipe
from tests.connectors.subnetwork.sparse import regression

SHIFT = 10.0


def pair(shift):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x = torch.randn(2500, 2, dtype=torch.float64)  # more than are screened
    a = {k: 3 * torch.randn_like(v) for k, v in module.state_dict().items()}
    y = torch.func.functional_call(module, a, x).argmax(1)
    order = torch.arange(6).roll(2)  # b computes what a does, and the line between them has a barrier
    b = {k: v[order] if k.startswith("0") else v for k, v in a.items()} | {"2.weight": a["2.weight"][:, order]}

    def loss(outputs, labels):
        return nn.functional.cross_entropy(outputs, labels, reduction="none") - shift

    return im.Objective(module, loss, (x, y)), a, b


@pytest.mark.parametrize(
    "method",
    [
        im.AutoNEB(cycles=((15, 3), (15, 2), (15, 2)), recipe=Recipe("sgd", 0.02, batch=128)),
        im.Bezier(recipe=Recipe(lr=None, epochs=2, batch=128), focus=1),
    ],
)
def test_maxima_that_are_taken_are_measured_on_all_examples(method):
    for shift in (0.0, SHIFT):
        objective, a, b = pair(shift)
        found = im.connect(objective, a, b, method, seed=1)
        assert len(found.stats["history"]) > 1
        assert all(row["confirmed"] for row in found.stats["history"][1:])
        assert found.stats["max"] == pytest.approx(im.profile(objective, found, 61).max, abs=2e-3)


def trained(shift, recipe):
    """A square, 1 at its least, less the shift."""

    def loss(p, _=None):
        return (p["w"] - 1).square().sum() + 1 - shift

    start = {"w": torch.zeros(1, dtype=torch.float64)}
    options = {"generator": torch.Generator(), "target": -1e9}
    return fit(loss, lambda p: float(loss(p)), start, 4, recipe, **options)


def test_training_by_lbfgs_ends_by_itself():
    plain, less = (trained(shift, Recipe("lbfgs", steps=50)) for shift in (0.0, SHIFT))
    assert plain.ended is less.ended is Ended.STALLED
    assert plain.steps == less.steps


def test_the_rate_falls_where_the_loss_does_not():
    # with a rate of 1 each step goes as far beyond the minimum as it was before it
    recipe = Recipe("sgd", 1.0, steps=200, momentum=0.0, schedule="plateau", gamma=0.1, check=1)
    for shift in (0.0, SHIFT):
        assert trained(shift, recipe).loss == pytest.approx(1 - shift, abs=1e-3)


def test_an_oracle_is_trained_below_minus_one():
    problem = regression(kappa=1e-2)
    x, y = problem.objective.data
    method = im.TwoLayerReLU(units=2, attempts=0, recipe=Recipe(lr=1e-2, steps=60))
    found = []
    for shift in (0.0, SHIFT):

        def loss(outputs, y, shift=shift):
            return (outputs - y).square().mean(1) - shift

        less = im.Objective(problem.objective.skeleton, loss, (x, y), penalty=problem.objective.penalty, convex=True)
        found.append(im.connect(less, problem.a, problem.b, method).stats["theorem"]["e(n)"] + shift)
    assert found[1] == pytest.approx(found[0], rel=0.05)
