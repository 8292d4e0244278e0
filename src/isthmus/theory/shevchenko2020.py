"""Theorems 1 (B) and 2 (B) of Shevchenko and Mondelli 2020 on a pair of networks."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch

from isthmus.errors import UnsupportedError
from isthmus.evaluate.chain import losses_of
from isthmus.premises.mean_field import multilayer_premises, two_layer_premises
from isthmus.stability.dropout.pattern import without
from isthmus.stability.noise.measure import Condition
from isthmus.theory.kuditipudi2019 import convex_rows
from isthmus.theory.table import MeasuredPair, Row, conclusion, rounded_up, rows_of

PAPER = "Shevchenko and Mondelli 2020"
_TRAINING = ("time T", "max xi", "Lipschitz constant of xi", "max |a| at the start", "movement of the first and last")
"""Conditions on the training, which two networks do not show."""


def theorem_1(pair: MeasuredPair) -> list[Row]:
    """Two layers: the losses of the halved networks, which training by mean-field SGD keeps low."""
    if pair.chain.L != 2:
        raise UnsupportedError("the network", f"Theorem 1 is about one hidden layer, and this has {pair.chain.L - 1}")
    return _halved(pair, "Theorem 1 (B)", two_layer_premises(pair.objective, time=1.0), "(A1), (A4)")


def theorem_2(pair: MeasuredPair) -> list[Row]:
    """More layers: those of the networks whose layers i to L-1 are halved, for every i."""
    if pair.chain.L <= 2:
        raise UnsupportedError("the network", f"Theorem 2 is about several hidden layers, this has {pair.chain.L - 1}")
    return _halved(pair, "Theorem 2 (B)", multilayer_premises(pair.objective, time=1.0), "(4.3), (B1), (B4)")


def _layers(i: int, L: int) -> str:
    return "layer 1" if L == 2 else f"layers {i} to {L - 1}"


def _halved(pair: MeasuredPair, theorem: str, conditions: Sequence[Condition], training: str) -> list[Row]:
    """The premises that a pair shows, and the losses that make the bound; layers 1..L have weights, the paper's L+1."""
    name, chain, L = f"{PAPER}, {theorem}", pair.chain, pair.chain.L
    rows = convex_rows(pair, name)
    rows += rows_of(name, [c for c in conditions if not c.name.startswith(_TRAINING)])
    kept = {l: torch.arange(chain.widths[l] // 2) for l in range(1, L)}
    largest = pair.top
    for e, end in enumerate("ab"):
        for i in range(1, L):
            loss = losses_of(pair.objective, chain, without(chain, pair.params[e], kept, i))[0]
            largest = max(largest, loss)
            rows.append(
                Row(name, f"loss with {_layers(i, L)} halved", end, loss, "finite; it enters the bound", isfinite(loss))
            )
    note = f"{training} and T are about the training, and only make the change small"
    if not all(row.holds for row in rows) and pair.objective.penalty is None and isfinite(largest):
        note += f"; without the other premises the halves of these networks still give {rounded_up(largest)}"
    return [*rows, conclusion(name, rows, largest, f"{note}; path: MeanField()")]
