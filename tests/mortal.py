"""A memory whose process dies at random moments, and the work that is started again whenever that happens."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from isthmus.training.memory import Memory, State


class Killed(BaseException):
    """The process is gone."""


class Mortal(Memory):
    """Keeps states as files would, and dies after a random number of questions whether one is due.

    `after_saves`: the numbers of saves after which it dies too.
    """

    def __init__(self, seed: int, lives: tuple[int, int] = (3, 60), after_saves: tuple[int, ...] = ()) -> None:
        self.random, self.lives, self.after_saves = random.Random(seed), lives, after_saves
        self.kept: dict[str, tuple[dict[str, Tensor], str]] = {}
        self.deaths = self.saves = 0
        self.left = self.random.randint(*lives)

    def part(self, name: str) -> Memory:
        return _Part(self, name)

    def due(self, step: int) -> bool:
        self.left -= 1
        if self.left <= 0:
            self.left = self.random.randint(*self.lives)
            self.die()
        return self.random.random() < 0.5

    def die(self) -> None:
        self.deaths += 1
        raise Killed

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.put("", tensors, values)

    def load(self) -> State | None:
        return self.get("")

    def put(self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.kept[name] = {k: v.detach().clone() for k, v in tensors.items()}, json.dumps(values)
        self.saves += 1
        if self.saves in self.after_saves:
            self.die()

    def get(self, name: str) -> State | None:
        if name not in self.kept:
            return None
        tensors, values = self.kept[name]
        return {k: v.clone() for k, v in tensors.items()}, json.loads(values)


class _Part(Memory):
    def __init__(self, whole: Mortal, name: str) -> None:
        self.whole, self.name = whole, name

    def part(self, name: str) -> Memory:
        return _Part(self.whole, f"{self.name}.{name}")

    def due(self, step: int) -> bool:
        return self.whole.due(step)

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.whole.put(self.name, tensors, values)

    def load(self) -> State | None:
        return self.whole.get(self.name)


def dead() -> int:
    """The number of a process that has ended."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def to_the_end(work: Callable[[], Any]) -> Any:
    """The work's result; it is started again whenever it died."""
    while True:
        try:
            return work()
        except Killed:
            continue
