"""The exported graphs of one module, each made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from isthmus.errors import UnsupportedError
from isthmus.program.export import Program, trace


@dataclass(eq=False)
class Programs:
    """Shared by the objectives that one module has on different data."""

    known: dict[Any, Program | UnsupportedError] = field(default_factory=dict)

    def of(self, dtype: torch.dtype, example: tuple[Any, Any], make: Callable[[], nn.Module]) -> Program:
        """The graph for examples of that shape. ``UnsupportedError`` when it cannot be exported."""
        key = (dtype, *((v.shape[1:], v.dtype) for v in tree_flatten(example)[0]))
        if key not in self.known:
            try:
                self.known[key] = trace(make(), *example)
            except UnsupportedError as e:
                self.known[key] = e
        found = self.known[key]
        if isinstance(found, UnsupportedError):
            raise found.with_traceback(None)
        return found
