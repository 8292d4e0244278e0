"""What the tests of string sampling share: pairs of networks, and a checkpoint whose process dies."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import isthmus as im
from isthmus import pipeline as runs
from isthmus.training.fit import Recipe
from isthmus.training.memory import Memory

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
    return im.StringSampling(**{"threshold": LEVEL, "lr": 0.01, "batch": 16, "check": 10, "steps": 3000} | options)


def highest(objective: im.Objective, path: im.Path, points: int = 201) -> float:
    """The largest loss on a dense grid, evaluated point by point."""
    return max(objective.loss(s.at(k / (points - 1))) for s in path.segments for k in range(points))


class Killed(BaseException):
    """The process is gone."""


class Mortal(Memory):
    """Keeps a state as a file would, and dies after a random number of questions whether it is due."""

    def __init__(self, seed: int, lives: tuple[int, int] = (3, 60)) -> None:
        self.random = random.Random(seed)
        self.lives = lives
        self.kept: tuple[dict[str, Tensor], str] | None = None
        self.deaths = 0
        self.left = self.random.randint(*lives)

    def part(self, name: str) -> Mortal:
        raise AssertionError(name)

    def due(self, step: int) -> bool:
        self.left -= 1
        if self.left <= 0:
            self.left = self.random.randint(*self.lives)
            self.deaths += 1
            raise Killed
        return self.random.random() < 0.5

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.kept = {k: v.detach().clone() for k, v in tensors.items()}, json.dumps(values, allow_nan=False)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return (
            None if self.kept is None else ({k: v.clone() for k, v in self.kept[0].items()}, json.loads(self.kept[1]))
        )


def with_deaths(checkpoint: Mortal, *args: Any, **options: Any) -> im.Connection:
    """``connect``, started again whenever it died."""
    while True:
        try:
            return im.connect(*args, memory=checkpoint, **options)
        except Killed:
            continue
