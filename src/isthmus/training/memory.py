"""State that survives a kill: the named parts of long work, each kept whole or not at all.

Work that can be killed is written as if it could not: it does the same steps in the same order, and each step that
takes long first asks its part of the memory for what it gave the last time. What a step draws from a generator is kept
with its result, so that the steps after it draw what they would have drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, final

import torch

from isthmus.params import Params

State = tuple[Params, dict[str, Any]]
"""Tensors, and plain values; numbers among these may be infinite or NaN."""


class Memory(ABC):
    """Where one piece of work keeps its state; `part` gives the place of a piece inside it."""

    @abstractmethod
    def part(self, name: str) -> Memory:
        """The memory of a piece of this work; the same name, the same memory."""

    @abstractmethod
    def due(self, step: int) -> bool:
        """Whether the state after that step shall be saved."""

    @abstractmethod
    def save(self, tensors: Params, values: Mapping[str, Any]) -> None:
        """Replace what was kept in this part: whole or not at all."""

    @abstractmethod
    def load(self) -> State | None:
        """What was kept in this part last, in memory of torch's own, or None."""


@final
class _Forget(Memory):
    """Keeps nothing."""

    def part(self, name: str) -> Memory:
        return self

    def due(self, step: int) -> bool:
        return False

    def save(self, tensors: Params, values: Mapping[str, Any]) -> None:
        return

    def load(self) -> State | None:
        return None


forget: Memory = _Forget()
"""The memory of work that starts again when it is killed."""


def recalled(memory: Memory, compute: Callable[[], State], generator: torch.Generator | None = None) -> State:
    """What `compute` gives, or what it gave before this work was killed.

    A `generator` that `compute` draws from is afterwards where it was then.

    >>> recalled(forget, lambda: ({}, {"loss": 0.5}))[1]
    {'loss': 0.5}
    """
    kept = memory.load()
    if kept is not None:
        tensors, values = kept
        state = tensors.pop(_GENERATOR, None)
        if generator is not None and state is not None:
            generator.set_state(state)
        return tensors, values
    tensors, values = compute()
    own = {} if generator is None else {_GENERATOR: generator.get_state()}
    memory.save({**tensors, **own}, values)
    return tensors, values


_GENERATOR = "generator"
