"""Walking through weight space by the moves that the constructions are made of.

A unit is *dead* when its outgoing weights are zero: its incoming weights (its row) may then be anything. The moves:

(a) change only the last layer: the outputs are affine in t, the loss is convex;
(b) change only rows of dead units: the outputs do not change;
(m) move outgoing weights (columns) between units with equal rows: the outputs do not change.

These labels are what a construction claims; certificates derive their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.errors import IsthmusError
from isthmus.params import Params, equal, moves
from isthmus.paths import Path
from isthmus.structure.chain import Chain, Weights
from isthmus.structure.network_units import Units, complement, places


@dataclass(frozen=True)
class Label:
    """What one segment is for: its place in the proof, and the move it makes."""

    source: str
    move: str

    def __str__(self) -> str:
        return f"{self.source} ({self.move})"


class WeightWalk:
    """A growing list of vertices, each changed from the one before by one of the moves.

    Between two calls of `step` any number of the editing functions may be used; `step` closes the segment.
    """

    def __init__(self, chain: Chain, start: Params) -> None:
        self.chain = chain
        self.original = chain.read(start)
        self.now = self.original.copy()
        self.points: list[Params] = [start]
        self.labels: list[Label] = []

    @property
    def L(self) -> int:
        """The number of layers."""
        return self.chain.L

    def step(self, source: str, move: str) -> None:
        """Close a segment: everything edited since the last call moves along one straight line."""
        self.points.append(self.chain.write(self.now, self.points[-1]))
        self.labels.append(Label(source, move))

    def put_rows(self, l: int, rows: Tensor, columns: Tensor | None, A: Tensor, b: Tensor) -> None:
        """Set the rows of some units of layer l: `A` [rows, columns, k] at these columns and 0 elsewhere."""
        new = self.now.A[l].clone()
        new[rows] = 0
        if columns is None:
            new[rows] = A
        else:
            new[rows.unsqueeze(1), columns.unsqueeze(0)] = A
        bias = self.now.b[l].clone()
        bias[rows] = b
        self.now.A[l], self.now.b[l] = new, bias

    def zero_rows(self, l: int, rows: Tensor) -> None:
        """Set the incoming weights and biases of some units of layer l to zero."""
        n = self.chain.widths[l - 1]
        self.put_rows(
            l, rows, None, self.now.A[l].new_zeros(len(rows), n, self.now.A[l].shape[2]), self.now.b[l].new_zeros(1)
        )

    def copy_rows(self, l: int, source: Tensor, to: Tensor) -> None:
        """Give the units `to` of layer l the rows of the units `source`."""
        self.put_rows(l, to, None, self.now.A[l][source], self.now.b[l][source])

    def move_columns(self, l: int, source: Tensor, to: Tensor) -> None:
        """Hand the outgoing weights of units `source` of layer l to units `to`, in every row of layer l + 1."""
        new = self.now.A[l + 1].clone()
        moved = new[:, source]
        new[:, source] = 0
        new[:, to] = moved
        self.now.A[l + 1] = new

    def put_output(self, columns: Tensor, A: Tensor, b: Tensor) -> None:
        """Set the last layer: `A` [n_L, columns, k] at these columns and 0 elsewhere, and its biases `b`."""
        new = torch.zeros_like(self.now.A[self.L])
        new[:, columns] = A
        self.now.A[self.L], self.now.b[self.L] = new, b

    def each_layer(self, move: Callable[[int, Tensor, Tensor], None], first: int, source: Units, to: Units) -> None:
        """Apply ``move(l, source, to)`` in the hidden layers from `first` on, skipping units that stay in place."""
        for l in range(first, self.L):
            differ = source[l] != to[l]
            move(l, source[l][differ], to[l][differ])

    def permute_live(self, live: Units, to: Units, source: str, arrive: Weights | None = None) -> None:
        """Lemma 4 of Kuditipudi et al.: bring the units `live` to the places `to`, by five segments.

        At most half of the units of each layer are live, all other rows are dead. All layers move at once.
        `arrive`: the weights to end at, which may differ in rows of dead units (default: those are zero).
        """
        between: Units = {}
        for l in live:
            # units move to places that are not live; the others wait in free ones until theirs is
            moving, dead = live[l] != to[l], complement(self.chain.widths[l], live[l])
            between[l] = to[l].clone()
            between[l][moving] = places(to[l][moving], dead)
        self.each_layer(self.copy_rows, 1, live, between)
        self.step(f"{source}, copy to free units", "b")
        self.each_layer(self.move_columns, 1, live, between)
        self.step(f"{source}, hand over outgoing weights", "m")
        self.each_layer(self.copy_rows, 1, between, to)
        self.step(f"{source}, copy to final units", "b")
        self.each_layer(self.move_columns, 1, between, to)
        self.step(f"{source}, hand over outgoing weights", "m")
        for l in to:
            self.zero_rows(l, complement(self.chain.widths[l], to[l]))
        if arrive is not None:
            self.now = arrive.copy()
        self.step(f"{source}, clear dead units", "b")


def join(there: WeightWalk, back: WeightWalk) -> tuple[Path, list[Label]]:
    """The path along `there` and then `back` in reverse; both walks must have met.

    Integer tensors may differ (``connect`` lets only BatchNorm's counters, which no output depends on).
    """
    counters = {k: v for k, v in back.points[-1].items() if not moves(v)}
    if not equal({**there.points[-1], **counters}, back.points[-1]):
        raise IsthmusError("internal error: the two halves of the construction do not meet; please report it")
    path = Path.through([*there.points, *reversed(back.points[:-1])])
    backwards = [Label(f"{label.source}, backwards", label.move) for label in reversed(back.labels)]
    return path, [*there.labels, *backwards]


def labels_as_text(labels: Sequence[Label]) -> list[str]:
    """For `Connection.stats["segments"]`."""
    return [str(label) for label in labels]
