"""State that survives a kill: the named parts of long work, each kept whole or not at all.

Work that can be killed is written as if it could not: it does the same steps in the same order, and each step that
takes long first asks its part of the memory for what it gave the last time. What a step draws from a generator is kept
with its result, so that the steps after it draw what they would have drawn.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@final
@dataclass(frozen=True)
class Beside(Memory):
    """A memory that also keeps what stands beside the work: `give` says what that is, `take` puts it back."""

    inner: Memory
    give: Callable[[], State]
    take: Callable[[Params, dict[str, Any]], None]

    def part(self, name: str) -> Memory:
        """A part of the inner memory, with nothing beside it."""
        return self.inner.part(name)

    def due(self, step: int) -> bool:
        """As the inner memory says."""
        return self.inner.due(step)

    def save(self, tensors: Params, values: Mapping[str, Any]) -> None:
        """Both states, whole or not at all."""
        more, facts = self.give()
        self.inner.save({**tensors, **named("beside", more)}, {**values, "beside": facts})

    def load(self) -> State | None:
        """The state of the work; what stands beside it is put back."""
        kept = self.inner.load()
        if kept is None:
            return None
        tensors, values = kept
        more = taken(tensors, "beside")
        self.take(more, values["beside"])
        own = {k: v for k, v in tensors.items() if not k.startswith("beside/")}
        return own, {k: v for k, v in values.items() if k != "beside"}


def memory_of(
    given: Memory | os.PathLike[str] | str, known: Callable[[], Mapping[str, Any]], steps: int | None = None
) -> Memory:
    """A memory as it is, or that in a folder, for the work that is decided by what `known` gives.

    These are plain values and parameters. `steps`: between two times that it is due, in place of some seconds.
    """
    if isinstance(given, Memory):
        return given
    # upwards, and only for a folder, as for the checkpoints of an objective
    from isthmus.storage.state import memory_for

    return memory_for(given, known(), steps=steps)


def named(prefix: str, tensors: Params) -> Params:
    """The tensors under names that begin with the prefix, so that several groups fit into one state."""
    return {f"{prefix}/{k}": v for k, v in tensors.items()}


def taken(tensors: Params, prefix: str) -> Params:
    """The group that was ``named`` so.

    >>> one = torch.ones(1)
    >>> taken({**named("a", {"w": one}), **named("b", {"w": -one})}, "b")
    {'w': tensor([-1.])}
    """
    return {k.removeprefix(f"{prefix}/"): v for k, v in tensors.items() if k.startswith(f"{prefix}/")}


def recalled(memory: Memory, compute: Callable[[], State], generator: torch.Generator | None = None) -> State:
    """What `compute` gives, or what it gave before this work was killed.

    A `generator` that `compute` draws from is afterwards where it was then.

    >>> recalled(forget, lambda: ({}, {"loss": 0.5}))[1]
    {'loss': 0.5}
    """
    whole = memory
    if generator is not None:
        whole = Beside(memory, lambda: ({"state": generator.get_state()}, {}), lambda t, _: _set(generator, t["state"]))
    kept = whole.load()
    if kept is None:
        kept = compute()
        whole.save(*kept)
    return kept


def _set(generator: torch.Generator, state: torch.Tensor) -> None:
    generator.set_state(state)
