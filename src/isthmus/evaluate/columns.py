"""The losses of every example at many points of a path, kept while the path is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

BLOCK = 2048
"""Examples that are widened to float64 at a time."""
LEAST = 1 << 26
"""Bytes that losses may always take: few examples at a time, which `memory` may stand for, are no reason to leave
them out."""


@dataclass(eq=False)
class Columns:
    """One column of losses per point, in their own precision, and what the errors add up to.

    `room`: the bytes that the losses may take; when they would take more, all are forgotten, and `full` says so.
    `errors`: per point their sum. `whole`: every error was 0 or 1. `shares`: every error was in [0, 1].
    """

    room: float = inf
    losses: list[Tensor] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    whole: bool = True
    shares: bool = True
    full: bool = False
    _open: dict[float, list[tuple[Tensor, Tensor | None]]] = field(default_factory=dict)
    _bytes: int = 0

    @classmethod
    def of(cls, memory: int) -> Columns:
        """For data whose forward passes may take so many bytes."""
        return cls(max(memory, LEAST))

    def add(self, ts: Sequence[float], losses: Tensor, errors: Tensor | None) -> None:
        """The next examples at `ts`, points of the segment that is measured."""
        held = losses.detach().cpu(), None if errors is None else errors.detach().cpu()
        self._bytes += held[0].numel() * held[0].element_size() * len(ts)
        if self._bytes > self.room:
            self.full = True
            self.losses.clear()
            self._open.clear()
        for t in () if self.full else ts:
            self._open.setdefault(t, []).append(held)

    def close(self, ts: Sequence[float]) -> None:
        """The segment is measured: its columns in the order of `ts`."""
        for t in () if self.full or not self._open else ts:
            losses, errors = zip(*self._open[t], strict=True)
            self.losses.append(losses[0] if len(losses) == 1 else torch.cat(losses))
            self._add_errors([e for e in errors if e is not None])
        self._open.clear()

    def _add_errors(self, parts: list[Tensor]) -> None:
        if parts:
            self.errors.append(sum(float(e.double().sum()) for e in parts))
            self.whole &= all(bool(((e == 0) | (e == 1)).all()) for e in parts)
            self.shares &= all(bool(((e >= 0) & (e <= 1)).all()) for e in parts)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Some examples after the other: which they are, and their losses [n, points] in float64."""
        for i in range(0, len(self.losses[0]), BLOCK):
            index = slice(i, i + BLOCK)
            yield index, torch.stack([c[index].double() for c in self.losses], 1)
