"""Where the threshold of a string comes from, and how the maximum of a segment is compared with it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import exp, log

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.strings.threshold import Threshold
from isthmus.pipeline import train
from isthmus.training.fit import Recipe
from tests.connectors.strings.strings import LEVEL, highest, quadratic, quick
from tests.problems import perceptron, random_params


def test_a_rise_between_two_samples_is_found():
    """1 - k (w - c)^2 has its top between the samples, all of which are below the threshold."""
    module = nn.Linear(1, 1, bias=False).double()
    data = (torch.ones(1, 1).double(), torch.zeros(1, 1).double())
    objective = im.Objective(module, lambda out, y: 1 - (out[:, 0] - 0.37).square(), data)
    line = im.Curve(({"weight": torch.zeros(1, 1).double()}, {"weight": torch.ones(1, 1).double()}))
    limit = Threshold(objective, "loss", 0.99, 5)
    assert max(objective.loss(line.at(k / 4)) for k in range(5)) < 0.99
    assert limit.scan(line).max > 0.99
    assert limit.at(1.5).scan(line).samples == 5


def test_the_perplexity_is_a_threshold_on_exp_of_the_loss():
    objective, a, b = quadratic()
    by_loss = im.connect(objective, a, b, quick(alpha=1.0))
    connection = im.connect(objective, a, b, quick(threshold=exp(LEVEL), quantity="perplexity", alpha=1.0))
    assert connection.outcome.ok
    assert highest(objective, connection.path) <= log(exp(LEVEL))
    assert len(connection.path) == len(by_loss.path)


def one_weight(loss, targets, **options):
    """One example with the input 1, so that the output is the weight."""
    x = torch.ones(len(targets), 1, dtype=torch.float64)
    return im.Objective(nn.Linear(1, 1, bias=False).double(), loss, (x, targets), **options)


def weight(value):
    return {"weight": torch.tensor([[float(value)]], dtype=torch.float64)}


@pytest.mark.parametrize("kind", [im.StringSampling, im.ConstrainedStringSampling])
@pytest.mark.parametrize("quantity", ["loss", "perplexity"])
def test_an_excess_is_measured_from_the_larger_end(kind, quantity):
    objective = one_weight("mse", torch.zeros(1, 1, dtype=torch.float64))
    ends = weight(1.0), weight(-1.5)
    connection = im.connect(objective, *ends, kind(excess=0.25, quantity=quantity))
    larger = 2.25 if quantity == "loss" else exp(2.25)
    assert connection.stats["threshold"]["value"] == pytest.approx(larger + 0.25, rel=1e-15)
    assert connection.stats["threshold_from"] == f"0.25 above the larger end, {larger:.4g}"
    default = im.connect(objective, *ends, kind(quantity=quantity)).stats
    assert default["threshold"]["value"] == pytest.approx(1.1 * larger, rel=1e-15)
    assert f"threshold: {quantity} at most {1.1 * larger:.4g}, the default, 1.1 times" in default["notes"][0]
    given = im.connect(objective, *ends, kind(threshold=3 * larger, quantity=quantity)).stats
    assert given["threshold_from"] == "as given"
    assert len(given["notes"]) == 1  # on the straight line alone


@cache
def without_errors() -> tuple[im.Objective, im.Params, im.Params]:
    x = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    data = (x, (x[:, 0].abs() > 0.5).long())
    objective = im.Objective(perceptron([1, 6, 2], nn.Tanh).double(), data=data)
    recipe = Recipe(lr=0.03, steps=4000, batch=200, check=20, schedule="constant")
    a, b = (
        train(im.models.seeded(lambda: perceptron([1, 6, 2], nn.Tanh).double(), seed), data, recipe,
              seed=seed, target=1e-2).params
        for seed in (1, 2)
    )  # fmt: skip
    return objective, a, b


@pytest.mark.parametrize("kind", [im.StringSampling, im.ConstrainedStringSampling])
def test_ends_without_errors_have_a_default_and_may_have_a_threshold_of_zero(kind):
    """Between two networks without errors the straight line has some; a string of beads has none."""
    objective, a, b = without_errors()
    assert objective.error(a) == objective.error(b) == 0
    assert max(im.profile(objective, im.Path.through([a, b])).error) > 0.01
    method = kind(quantity="error", recipe=Recipe(lr=0.03, batch=200, check=20, steps=1000))
    connection = im.connect(objective, a, b, method)
    assert connection.outcome.ok
    assert connection.stats["threshold"]["value"] == 0.01
    assert connection.stats["threshold_from"] == "the default, 0.01 above two ends without errors"
    assert max(im.profile(objective, connection.path).error) <= 0.01
    none = im.connect(objective, a, b, replace(method, threshold=0.0))
    assert none.outcome.ok or kind is im.ConstrainedStringSampling
    assert none.outcome.ok == (max(im.profile(objective, none.path).error) == 0)
    few = objective.subset(40)
    assert (
        im.connect(few, a, b, replace(method, recipe=replace(method.recipe, steps=20))).stats["threshold"]["value"]
        == 1 / 40
    )


def test_a_line_that_is_below_from_the_start_is_said_with_a_harder_task():
    """A language model's losses are large and differ little: 1.1 times the larger end is above all of the line."""
    tokens = torch.randint(7, (64,), generator=torch.Generator().manual_seed(0))
    x, y = tokens.view(16, 4), torch.roll(tokens, 1).view(16, 4)[:, 0]
    module = nn.Sequential(nn.Embedding(7, 5), nn.Flatten(), nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 7)).double()
    objective = im.Objective(module, data=(x, y))
    a, b = ({k: 0.3 * v for k, v in random_params(module, seed).items()} for seed in (1, 2))
    easy = im.connect(objective, a, b, im.StringSampling())
    assert len(easy.path) == 1
    assert "the straight line was already below the threshold" in easy.stats["notes"][1]
    harder = im.connect(objective, a, b, im.StringSampling(always=True))
    assert len(harder.path) == 2
    assert len(harder.stats["notes"]) == 1


def test_the_harder_task_lies_between_the_larger_end_and_the_line():
    objective = one_weight(lambda z, y: 2 - (z - y).square().sum(1) / 2, torch.zeros(1, 1, dtype=torch.float64))
    ends = weight(-0.5), weight(0.5)  # 1.875 at the ends, 2 in the middle, 2.0625 by default
    notes = im.connect(objective, *ends, im.StringSampling()).stats["notes"]
    assert notes[1].endswith("it rises from 1.875 at the larger end to 2; a harder task: excess=0.062")
    harder = im.connect(objective, *ends, im.StringSampling(excess=0.062, recipe=im.Recipe(steps=5)))
    assert len(harder.path) > 1 or not harder.outcome.ok
    flat = im.connect(objective, weight(0.5), weight(1.0), im.StringSampling()).stats["notes"]
    assert flat[1].endswith("never rises above the larger end, so no threshold for these ends asks for more")


@pytest.mark.parametrize("kind", [im.StringSampling, im.ConstrainedStringSampling])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.0, "excess": 0.1}, "threshold, excess: expected one of them, or none, got 1.0 and 0.1"),
        ({"excess": -0.1}, "excess: expected a finite number >= 0"),
        ({"excess": float("nan")}, "excess: expected a finite number >= 0"),
        ({"excess": float("inf")}, "excess: expected a finite number >= 0"),
        ({"threshold": float("nan"), "quantity": "error"}, "threshold: expected a number >= 0"),
        ({"threshold": 0.0}, "threshold: expected a number > 0"),
    ],
)
def test_what_no_excess_can_be(kind, options, words):
    with pytest.raises(im.InputError, match=words):
        kind(**options)


def test_ends_of_no_use_are_refused_in_one_line():
    zero = torch.zeros(1, 1, dtype=torch.float64)
    for loss, number in ((lambda z, y: z.sum(1) - 3, "-"), (lambda z, y: z.sum(1).log(), "inf")):
        objective = one_weight(loss, zero)
        with pytest.raises(im.InputError, match=f"ends: expected a loss that is finite and not negative, got {number}"):
            im.connect(objective, weight(-1), weight(-2), im.StringSampling())
    exact = one_weight("mse", zero)
    with pytest.raises(im.InputError, match=r"the larger end has 0\), got 0, the default.*write excess=0.01"):
        im.connect(exact, weight(0), weight(0), im.StringSampling())
    assert im.connect(exact, weight(0), weight(0), im.StringSampling(excess=0.01)).outcome.ok
