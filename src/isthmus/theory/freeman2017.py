"""Proposition 2.2 (repaired) and Theorem 2.4 of Freeman & Bruna 2017 on a pair of networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from isthmus.connectors.deep_linear.method import linear_chain, ridge_names
from isthmus.connectors.deep_linear.one_layer import Sizes, clear_biases
from isthmus.connectors.deep_linear.two_factors import TwoFactors
from isthmus.connectors.two_layer_relu.compression import TwoLayers, two_layer_chain
from isthmus.errors import InputError, UnsupportedError
from isthmus.objective import Objective
from isthmus.params import Params, cast
from isthmus.structure.chain import Chain
from isthmus.theory.table import MeasuredPair, Row, conclusion, convex

PAPER = "Freeman & Bruna 2017"


T = TypeVar("T")


def proposition_2_2(pair: MeasuredPair) -> list[Row]:
    """Linear networks, as repaired: wide hidden layers, and no penalty or two layers with ridge."""
    name = f"{PAPER}, Proposition 2.2"
    rows = [_convex(pair, name)]
    wide, (a, b) = pair.objective.cast(torch.float64), (cast(p, torch.float64) for p in pair.params)
    chain, why = _tried(lambda: linear_chain(wide))
    rows.append(Row(name, "operations", needed="linear", holds=chain is not None, note=why))
    counted, why = _tried(lambda: ridge_names(wide, pair.chain))
    rows.append(Row(name, "penalty", needed="none, or ridge on all weights", holds=counted is not None, note=why))
    if chain is not None and counted is not None:
        rows += _widths(name, chain, wide, (a, b), counted)
    note = "false as printed (ridge on three layers, or no unit to spare), here as repaired; path: DeepLinear()"
    return [*rows, conclusion(name, rows, pair.top, note)]


def _ridge(name: str, L: int) -> Row:
    note = "" if L == 2 else "with ridge, level sets of deeper networks need not be connected"
    return Row(name, "layers under ridge", "", L, "2", L == 2, None, note)


def _two_layers(name: str, chain: Chain, wide: Objective, ends: tuple[Params, Params], counted: set[str]) -> list[Row]:
    build, why = _tried(lambda: TwoFactors(chain, wide, ends, counted, 1e-6, 2000))
    row = Row(name, "biases", needed="as the penalty allows", holds=build is not None, note=why)
    return [row] if build is None else [row, _two_factors(name, build)]


def _units(name: str, chain: Chain, sizes: Sizes) -> list[Row]:
    needed = {l: min(sizes.below[l], sizes.above[l]) + 1 for l in range(1, chain.L)}
    n = chain.widths
    return [Row(name, f"units of hidden layer {l}", "", n[l], f">= {need}", n[l] >= need) for l, need in needed.items()]


def _widths(name: str, chain: Chain, wide: Objective, ends: tuple[Params, Params], counted: set[str]) -> list[Row]:
    """How many units each hidden layer needs in the construction that ``DeepLinear`` takes."""
    rows: list[Row] = []
    if counted:
        rows.append(_ridge(name, chain.L))
        if chain.L > 2:
            return rows
    sizes = Sizes.of(chain, ends[0])
    movable = all(clear_biases(chain, wide, p) is not None for p in ends)
    if chain.L == 2 and (counted or sizes.split(movable) is None):
        return [*rows, *_two_layers(name, chain, wide, ends, counted)]
    rows += _units(name, chain, sizes)
    ordered = sizes.split(movable) is not None
    if ordered or all(row.holds for row in rows):
        rows.append(_order(name, ordered, movable))
    return rows


def _order(name: str, ordered: bool, movable: bool) -> Row:
    note = "" if movable else "hidden biases cannot be moved to the output, so outputs count for every layer"
    return Row(name, "layers wide for inputs only", needed="below all others", holds=ordered, note=note)


def _two_factors(name: str, build: TwoFactors) -> Row:
    """min(inputs, outputs) units suffice on one side of det = 0, one more always; the path alone tells the side."""
    factors = build.reading.factors(build.cleared[0])
    n, rank = factors.W2.shape[1], min(factors.M.shape)
    holds = None if n == rank else n > rank
    note = "without a unit to spare: same side of det = 0, or a singular product of no larger loss" if n == rank else ""
    return Row(name, "units of hidden layer 1", "", n, f">= {rank + 1}", holds, None, note)


def theorem_2_4(pair: MeasuredPair) -> list[Row]:
    """Two-layer ReLU networks with an l1 penalty on the second layer, or none."""
    name = f"{PAPER}, Theorem 2.4"
    rows, L, m = [_convex(pair, name)], pair.chain.L, pair.chain.widths[1]
    rows.append(Row(name, "layers", "", L, "2", L == 2))
    if L == 2:
        chain, why = _tried(lambda: two_layer_chain(pair.objective))
        rows.append(Row(name, "operations", needed="ReLU, pooling, a linear end", holds=chain is not None, note=why))
        if chain is not None:
            problem, why = _tried(lambda: TwoLayers(pair.objective))
            kappa, needed = None if problem is None else problem.kappa, "none, or l1 on the second layer"
            rows.append(Row(name, "kappa of the penalty", "", kappa, needed, problem is not None, None, why))
        rows.append(Row(name, "hidden units m", "", m, ">= 2", m >= 2))
    note = "epsilon of equation 10 has e(n), which takes training; path and bound: TwoLayerReLU()"
    return [*rows, conclusion(name, rows, None, note)]


def _convex(pair: MeasuredPair, name: str) -> Row:
    """The loss; the penalty is a matter of each theorem."""
    if pair.chain.L < 2:
        raise UnsupportedError("the network", "it has no hidden layer")
    return convex(name, pair.objective.convex)


def _tried(make: Callable[[], T]) -> tuple[T | None, str]:
    """What a connector's check gives, or why it refuses."""
    try:
        return make(), ""
    except (InputError, UnsupportedError) as e:
        return None, str(e)
