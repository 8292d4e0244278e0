"""Theorems 3.2, 5.1 and 6.1 of Nguyen 2019 on a pair of networks."""

from __future__ import annotations

from isthmus.theory.kuditipudi2019 import convex_rows
from isthmus.theory.table import MeasuredPair, Row, conclusion, rows_of

PAPER = "Nguyen 2019"


def theorem_3_2(pair: MeasuredPair) -> list[Row]:
    """Linearly independent samples, and layers that get narrower."""
    return _level(pair, "3.2", 0)


def theorem_5_1(pair: MeasuredPair) -> list[Row]:
    """A first layer of 2N units, and layers above it that get narrower."""
    return _level(pair, "5.1", 1)


def theorem_6_1(pair: MeasuredPair) -> list[Row]:
    """All hidden layers of 2N units (case 2)."""
    return _level(pair, "6.1", pair.chain.L - 1)


def _level(pair: MeasuredPair, number: str, k: int) -> list[Row]:
    """The theorem in which the features of layer k are the independent data of the layers above."""
    name = f"{PAPER}, Theorem {number}"
    rows = convex_rows(pair, name)
    found = pair.sublevel
    theorem = next(t for t in found.connected if t.level == k)
    rows += rows_of(name, theorem.conditions)
    # neither is a premise on the ends: Lemmas 3.4 and 5.2 repair ranks first, and the path is longer for it
    ends = range(len(found.full_rank))
    notes = [f"Property 3.1 at {'ab'[e]}: {'yes' if found.property_3_1[e] else 'no'}" for e in ends]
    notes += [f"rank of F_{k} at {'ab'[e]}: {found.rank_features[e][k]}, N = {found.examples}" for e in ends if k]
    return [*rows, conclusion(name, rows, pair.top, "; ".join([*notes, f"path: Sublevel({number!r})"]))]
