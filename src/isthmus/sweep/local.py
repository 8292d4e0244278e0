"""The engine that is always there: this process, one item after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.sweep.base import Engine, Item, Shared


@dataclass(frozen=True)
class Local(Engine):
    """Work in this process, in order. Needs nothing; a killed run goes on where it was."""

    @property
    def name(self) -> str:
        """What the record of a cell says."""
        return "local"

    def map(
        self,
        function: Callable[[Shared, Item], Any],
        shared: Shared,
        items: Sequence[Item],
        after: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """In the order of `items`, which puts every item behind those it comes after."""
        for i, item in enumerate(items):
            yield i, function(shared, item)
