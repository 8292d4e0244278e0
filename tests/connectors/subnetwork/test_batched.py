"""Many networks at once: their outputs and their training are those of each alone."""

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.subnetwork.batched import forward_stacked, gather
from isthmus.connectors.subnetwork.train import Start, SubnetTraining, sizes
from isthmus.models import convnet, vgg11
from isthmus.params import stack
from isthmus.structure.chain import chain_of
from isthmus.structure.network_units import random_units
from isthmus.training.fit import Ended, Recipe, fit, fit_together
from isthmus.training.progress import no_progress
from tests.problems import PROBLEMS, classify


def batchnorm_after_linear():
    parts = (nn.Flatten(), nn.Linear(12, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4))
    return classify("linear batchnorm", nn.Sequential(*parts), (3, 2, 2))


def convolution_without_bias_or_pooling():
    return classify("plain convolutions", convnet(3, classes=4, image=8, pool=False, bias=False), (1, 8, 8))


def globally_pooled():
    parts = (nn.Conv2d(2, 5, 3, stride=2, padding="valid"), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return classify("globally pooled", nn.Sequential(*parts, nn.Linear(5, 4)), (2, 9, 9))


def ends_in_a_convolution():
    parts = (nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 2), nn.Flatten())
    return classify("ends in a convolution", nn.Sequential(*parts), (2, 4, 4))


def tiny_vgg():
    return classify("vgg", vgg11(width=2, batch_norm=True, classes=4), (3, 32, 32))


MORE = (batchnorm_after_linear, convolution_without_bias_or_pooling, globally_pooled, ends_in_a_convolution, tiny_vgg)
cases = pytest.mark.parametrize("make", [*PROBLEMS, *MORE], ids=lambda make: make.__name__)


@cases
def test_stacked_outputs_are_those_of_each_network(make):
    problem = make()
    objective = problem.objective
    chain = chain_of(objective.program, objective.structure)
    # networks of the same shapes, with values of their own
    networks = [{k: v * (1 + 0.3 * i) for k, v in (problem.a if i % 2 else problem.b).items()} for i in range(3)]
    for l in range(chain.L):
        h = chain.features(problem.a, objective.data[0], l, 5)
        n = h.shape[1]
        orders = torch.stack([torch.arange(n), torch.arange(n).flip(0), torch.arange(n).roll(1)])
        got = forward_stacked(chain, stack(networks), gather(h, orders), l + 1, 3)
        want = torch.stack([chain.forward(p, h[:, o], l + 1) for p, o in zip(networks, orders, strict=True)])
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12 * float(want.abs().max()))
        assert not torch.allclose(got[0], got[1])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@cases
def test_draws_trained_together_end_where_each_alone_does(make, optimizer):
    problem = make()
    objective = problem.objective
    chain = chain_of(objective.program, objective.structure)
    widths = {p: chain.widths[p] for p in range(1, chain.L)}
    K, g = sizes(widths, dict.fromkeys(widths, 0.5)), torch.Generator().manual_seed(0)
    l = max(0, chain.L - 3)
    recipe = Recipe(optimizer, lr=1e-3, steps=12, batch=7, check=4)
    starts = [
        Start(chain, problem.a, l, random_units(widths, {p: K[p] for p in widths if p >= l}, g)) for _ in range(3)
    ]
    draws = [starts[0].theta(), starts[1].theta(), starts[2].random(g)]

    def train(draws):
        return SubnetTraining(objective, chain, recipe, torch.Generator().manual_seed(1), no_progress).train(
            l, problem.a, draws, target=0.0, what="training"
        )

    for together, draw in zip(train(draws), draws, strict=True):
        alone = train([draw])[0]
        assert together.loss == pytest.approx(alone.loss, rel=1e-9)
        assert together.steps == alone.steps == 12
        for p in alone.weights.A:
            torch.testing.assert_close(together.weights.A[p], alone.weights.A[p], rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(together.weights.b[p], alone.weights.b[p], rtol=1e-6, atol=1e-8)


x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
slopes = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)
scales = torch.tensor([1.0, 1.3, 0.6], dtype=torch.float64)  # so that the losses do not rise and fall together


def batch_loss(p, index):
    return (x[index] * scales * (p["w"] - slopes)).square().mean(0).sum()


def full_losses(p):
    return (x * scales * (p["w"] - slopes)).square().mean(0).tolist()


def start():
    return {"w": torch.zeros(3, dtype=torch.float64)}


def together(recipe, **options):
    g = torch.Generator().manual_seed(0)
    return fit_together(batch_loss, full_losses, start(), 40, recipe, generator=g, **options)


def test_each_problem_keeps_its_own_best_and_stops_when_enough_are_there():
    recipe = Recipe("sgd", lr=0.05, steps=2000, batch=10, momentum=0.0, schedule="constant")
    first = together(recipe, target=1e-6, enough=1)
    every = together(recipe, target=1e-6)
    assert sum(f.loss <= 1e-6 for f in first) == 1
    assert [f.ended is Ended.TARGET for f in first] == [f.loss <= 1e-6 for f in first]
    assert all(f.loss <= 1e-6 for f in every)
    assert first[0].steps < every[0].steps < 2000
    for fitted, slope in zip(every, slopes, strict=True):
        assert float(fitted.params["w"]) == pytest.approx(float(slope), abs=1e-2)


def test_the_best_of_each_problem_is_what_its_own_fit_finds():
    # large steps, so that losses rise and fall and the best checks differ from problem to problem
    recipe = Recipe("sgd", lr=2.5, steps=30, batch=4, check=1, momentum=0.5, schedule="constant")
    for t, found in enumerate(together(recipe)):
        g = torch.Generator().manual_seed(0)
        one = fit(
            lambda p, i, t=t: (x[i] * scales[t] * (p["w"] - slopes[t])).square().mean(),
            lambda p, t=t: float((x * scales[t] * (p["w"] - slopes[t])).square().mean()),
            {"w": torch.zeros((), dtype=torch.float64)},
            40,
            recipe,
            generator=g,
        )
        assert found.loss == pytest.approx(one.loss, rel=1e-12)
        assert float(found.params["w"]) == pytest.approx(float(one.params["w"]), rel=1e-12)
        assert full_losses({"w": found.params["w"].expand(3)})[t] == pytest.approx(found.loss, rel=1e-12)


def test_a_problem_that_diverges_leaves_the_others_alone():
    recipe = Recipe("adam", lr=0.05, steps=400, batch=10)
    g = torch.Generator().manual_seed(0)
    broken = torch.tensor([float("nan"), 0, 0], dtype=torch.float64)
    found = fit_together(batch_loss, full_losses, {"w": broken}, 40, recipe, generator=g)
    assert found[0].ended is Ended.NOT_FINITE
    assert all(f.ended is Ended.BUDGET and f.loss < 1e-3 for f in found[1:])


def test_lbfgs_takes_one_problem_at_a_time():
    with pytest.raises(im.InputError, match="'adam' or 'sgd' for several problems at once"):
        together(Recipe("lbfgs", steps=3))


def test_random_starts_have_neutral_batchnorm_and_the_right_size():
    problem = tiny_vgg()
    chain = chain_of(problem.objective.program, problem.objective.structure)
    widths = {p: chain.widths[p] for p in range(1, chain.L)}
    g = torch.Generator().manual_seed(0)
    held = random_units(widths, sizes(widths, dict.fromkeys(widths, 0.5)), g)
    draw = Start(chain, problem.a, 3, held).random(g)
    assert {p: tuple(A.shape[:2]) for p, A in draw.weights.A.items()} == {
        p: (chain.widths[p] if p == chain.L else chain.widths[p] // 2, chain.widths[p - 1] // 2)
        for p in range(4, chain.L + 1)
    }
    vectors = chain.layer(4).vectors
    ones = [v.endswith((".weight", "running_var")) for v in vectors]
    assert any(ones)
    assert draw.weights.b[4][0].tolist() == [float(v) for v in ones]
