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


@dataclass(eq=False)
class Programs:
    """Shared by the objectives that one module has on different data. `seconds`: how long making them took."""

    known: dict[Any, Program | UnsupportedError] = field(default_factory=dict)
    seconds: float = 0.0

    def of(self, dtype: torch.dtype, example: tuple[Any, Any], make: Callable[[], nn.Module]) -> Program:
        """The graph for examples of that shape. ``UnsupportedError`` when it cannot be exported."""
        key = (dtype, *((v.shape[1:], v.dtype) for v in tree_flatten(example)[0]))
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
