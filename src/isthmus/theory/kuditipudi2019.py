"""Theorems 1 to 4 of Kuditipudi et al. 2019 on a pair of networks."""

from __future__ import annotations

from math import isfinite

from isthmus.errors import UnsupportedError
from isthmus.theory.table import MeasuredPair, Row, conclusion, convex

PAPER = "Kuditipudi et al. 2019"
_SAMPLED = ("interlayer", "sqrt(h_i)")
"""Conditions that are measured on examples."""


def convex_rows(pair: MeasuredPair, theorem: str) -> list[Row]:
    """What the theorems on chains of layers share: the loss is convex in the outputs, and there is no penalty."""
    if pair.chain.L < 2:
        raise UnsupportedError("the network", "it has no hidden layer")
    penalty = pair.objective.penalty
    rows = [convex(theorem, pair.objective.convex)]
    if penalty is not None:
        rows.append(Row(theorem, "no penalty on the weights", needed="none", holds=False, note=repr(penalty)))
    return rows


def theorem_1(pair: MeasuredPair) -> list[Row]:
    """max(L(a), L(b)) + epsilon for epsilon-dropout stable ends."""
    name = f"{PAPER}, Theorem 1"
    rows = convex_rows(pair, name)
    for e, end in enumerate("ab"):
        s = pair.dropout(e)
        note = f"best of {s.masks} subsets per layer; limited by entry layer {s.limited_by.entry}"
        if pair.objective.penalty is not None:
            note += f", whose penalty is {s.limited_by.penalty:.4g}"
        holds = isfinite(s.epsilon)
        rows.append(
            Row(name, "dropout stability epsilon", end, s.epsilon, "finite; it enters the bound", holds, None, note)
        )
    epsilon = max(0.0, *(pair.dropout(e).epsilon for e in (0, 1)))
    return [*rows, conclusion(name, rows, pair.top + epsilon, "path: Dropout()")]


def theorem_2(pair: MeasuredPair) -> list[Row]:
    """Noise stability, at dropout probability 1/2."""
    name = f"{PAPER}, Theorem 2"
    rows = [*convex_rows(pair, name), *_noise_rows(pair, name)]
    note = "the theorem adds O(epsilon) to the larger loss and names no constant; path: NoiseDropout()"
    return [*rows, conclusion(name, rows, None, note)]


def theorem_3(pair: MeasuredPair) -> list[Row]:
    """Noise stability, and a narrow network theta*."""
    name = f"{PAPER}, Theorem 3"
    rows = [*convex_rows(pair, name), *_noise_rows(pair, name)]
    p = pair.noise(0).p
    rows.append(
        Row(
            name, "narrow network theta* of low loss", "", min(int(p / 1.5 * n) for n in pair.chain.widths[1:-1]),
            "p >= 1.5 max h*_l / n_l", None, None,
            f"measured: the width that p = {p:g} leaves it; Narrow() trains one and reports its loss",
        )
    )  # fmt: skip
    note = "the theorem adds O(epsilon) and names no constant; path: Narrow()"
    return [*rows, conclusion(name, rows, None, note)]


def _noise_rows(pair: MeasuredPair, name: str) -> list[Row]:
    sample = "" if pair.all_used else f"; over the first {pair.few.num_examples} examples only"
    rows = []
    for e, end in enumerate("ab"):
        n = pair.noise(e)
        rows.append(
            Row(
                name,
                "noise stability epsilon (Definition 4)",
                end,
                n.epsilon,
                "small",
                None,
                None,
                f"p = {n.p:g}{sample}",
            )
        )
        rows += [
            Row(name, c.name, end, c.value, c.needed, c.holds, None, sample.strip("; ") * c.name.startswith(_SAMPLED))
            for c in n.conditions
        ]
    return rows


def theorem_4(pair: MeasuredPair) -> list[Row]:
    """A statement about networks that exist; no pair has premises to check."""
    note = (
        "it constructs two-layer networks of any width that no path of low loss joins: counterexamples.disconnected()"
    )
    return [Row(f"{PAPER}, Theorem 4", "none: it says nothing about a given pair", note=note)]
