"""What the tests of string sampling share: pairs of networks, and a checkpoint whose process dies."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

import isthmus as im
from isthmus import pipeline as runs
from isthmus.storage.methods import connector_from
from isthmus.training.fit import Recipe
from tests.mortal import Killed as Killed
from tests.mortal import Mortal as Mortal
from tests.mortal import to_the_end

LEVEL = 1e-3


def sigmoids() -> nn.Sequential:
    return im.models.mlp((1, 4, 4, 1), activation="sigmoid").double()


@cache
def quadratic(level: float = LEVEL, seed: int = 102) -> tuple[im.Objective, im.Params, im.Params]:
    """Two 1-4-4-1 networks that fit a quadratic just below the level."""
    x = torch.linspace(0, 1, 64, dtype=torch.float64)[:, None]
    data = (x, 0.5 * x**2 + 0.25 * x + 0.1)
    recipe = Recipe(lr=0.01, steps=20000, batch=64, check=20, schedule="constant")
    a, b = (
        runs.train(im.models.seeded(sigmoids, seed + k), data, recipe, seed=k, loss="mse", target=level).params
        for k in (0, 1)
    )
    return im.Objective(sigmoids(), "mse", data), a, b


def quick(**options: Any) -> im.StringSampling:
    known = {"threshold": LEVEL, "lr": 0.01, "batch": 16, "check": 10, "steps": 3000}
    return connector_from({"name": "StringSampling"} | known | options)  # type: ignore[return-value]


def highest(objective: im.Objective, path: im.Path, points: int = 201) -> float:
    """The largest loss on a dense grid, evaluated point by point."""
    return max(objective.loss(s.at(k / (points - 1))) for s in path.segments for k in range(points))


def with_deaths(memory: Mortal, *args: Any, **options: Any) -> im.Connection:
    """``connect``, started again whenever it died."""
    return to_the_end(lambda: im.connect(*args, memory=memory, **options))
