"""Weights so large that something in between is infinite: a path all the same, or an error that says it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.params import Params
from isthmus.stability.dropout.scales import best_scales
from tests.laws.test_methods import QUICK
from tests.problems import perceptron, random_params


def problem(module: nn.Module, scale: float, loss: str = "mse") -> tuple[im.Objective, Params, Params]:
    module = module.double()
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, n, generator=g, dtype=torch.float64) for n in (3, 2))
    objective = im.Objective(module, loss, (x, y if loss == "mse" else torch.tensor([0, 1, 0, 1])))
    a, b = ({k: v * scale for k, v in random_params(module, seed).items()} for seed in (1, 2))
    return objective, a, b


SHALLOW, DEEP = (lambda: perceptron([3, 6, 2])), (lambda: perceptron([3, 10, 10, 2], lambda: nn.LeakyReLU(0.2)))
LINEAR = lambda: nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
TOLD: list[tuple[Any, Callable[[], nn.Module], float]] = [
    (im.Aligned(), SHALLOW, 1e160),
    (im.Aligned(), DEEP, 1e100),
    (im.Aligned(matching=im.WeightMatching()), SHALLOW, 1e160),
    (im.Aligned(matching=im.RotationMatching()), SHALLOW, 1e160),
    (im.Sublevel(), DEEP, 1e160),
    (im.DeepLinear(), LINEAR, 1e160),
    (QUICK[im.TwoLayerReLU], SHALLOW, 1e160),
]


@pytest.mark.parametrize(("method", "make", "scale"), TOLD)
def test_an_overflow_is_told(method, make, scale):
    objective, a, b = problem(make(), scale)
    with pytest.raises(im.InputError, match="an overflow"):
        im.connect(objective, a, b, method)


@pytest.mark.parametrize("scale", [1e100, 1e160])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("method", [im.Dropout(masks=2), im.Dropout(masks=2, scale="each"), im.MeanField()])
def test_a_construction_meets(method, loss, scale):
    objective, a, b = problem(SHALLOW(), scale, loss)
    assert im.connect(objective, a, b, method).outcome is im.Outcome.CONSTRUCTED


def test_strings_do_not_square_what_is_too_large():
    objective, a, b = problem(DEEP(), 1e100, "cross_entropy")
    assert max(map(objective.loss, (a, b))) > 1e290
    im.connect(objective, a, b, QUICK[im.StringSampling])


def test_no_best_factor_of_infinite_outputs():
    objective, *_ = problem(SHALLOW(), 1.0)
    z = torch.ones(2, 4, 2, dtype=torch.float64)
    z[0] = torch.inf
    found = best_scales(objective, z, torch.zeros(2), 10.0)[0]
    assert float(found[0]) == 1.0
    assert float(found[1]) == pytest.approx(float(objective.data[1].mean()))


def test_searches_and_conditions_tell_it_too():
    objective, a, b = problem(DEEP(), 1e160)
    for call in (
        lambda: im.align(objective, a, b),
        lambda: im.align_many(objective, [a, b], im.WeightMatching()),
        lambda: im.descend(objective, a),
        lambda: im.sublevel_conditions(objective, a),
    ):
        with pytest.raises(im.InputError, match="an overflow"):
            call()
