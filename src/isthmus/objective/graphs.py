"""The exported graphs of one module, each made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from isthmus.errors import UnsupportedError
from isthmus.program.export import Program, trace
from isthmus.structure import Structure, derive_structure, structure_of_traced

Example = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a forward pass, by place and by name."""


@dataclass(eq=False)
class Programs:
    """Shared by the objectives that one module has on different data. `seconds`: how long making the graphs took."""

    known: dict[Any, Program | UnsupportedError] = field(default_factory=dict)
    structures: dict[Any, Structure] = field(default_factory=dict)
    seconds: float = 0.0

    def of(self, dtype: torch.dtype, example: Example, make: Callable[[], nn.Module]) -> Program:
        """The graph for examples of that shape. ``UnsupportedError`` when it cannot be exported."""
        key = _key(dtype, example)
        if key not in self.known:
            begin = perf_counter()
            try:
                self.known[key] = trace(make(), *example)
            except UnsupportedError as e:
                self.known[key] = e
            self.seconds += perf_counter() - begin
        found = self.known[key]
        if isinstance(found, UnsupportedError):
            raise found.with_traceback(None)
        return found

    def structure(self, dtype: torch.dtype, example: Example, make: Callable[[], nn.Module]) -> Structure:
        """The hidden units, from the graph for examples of that shape where it holds for any number of them."""
        key = _key(dtype, example)
        if key not in self.structures:
            program = self._for_any_number(dtype, example, make)
            self.structures[key] = (
                derive_structure(make(), *example)
                if program is None
                else structure_of_traced(make(), *example, program)
            )
        return self.structures[key]

    def _for_any_number(self, dtype: torch.dtype, example: Example, make: Callable[[], nn.Module]) -> Program | None:
        """The graph where torch proved that one trace holds for any number of examples."""
        try:
            program = self.of(dtype, example, make)
        except UnsupportedError:  # units do not depend on the number of examples
            return None
        return None if program.compared else program


def _key(dtype: torch.dtype, example: Example) -> Any:
    return (dtype, *((v.shape[1:], v.dtype) for v in tree_flatten(example)[0]))
