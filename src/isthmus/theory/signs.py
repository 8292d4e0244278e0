"""Why two networks of two layers may not be connected: the signs of their output weights."""

from __future__ import annotations

from isthmus.errors import UnsupportedError
from isthmus.theory.table import MeasuredPair, Row

NAME = "Signs of the output weights"
PREMISE = "positive output weights"
ZERO = "every path meets an output weight of 0"


def sign_argument(pair: MeasuredPair) -> list[Row]:
    """f(x) = sum_j v_j s(w_j . x) + c, one output: if the numbers of v_j > 0 differ, some v_j is 0 on every path.

    There the network is one with a unit less, so the largest loss on the path is at least the smallest loss L* of
    those. A lower bound, and only a wall where L* is above both ends: an overparametrised network has none. L* is
    known where nothing is left but a constant (one unit, "mse"); for few parameters ``separated`` proves the wall
    itself, and ``counterexamples.disconnected`` has a data set on which L* is proved for any number of units.
    """
    chain = pair.chain
    if chain.L != 2:
        raise UnsupportedError("the network", f"the argument is about two layers, and this has {chain.L}")
    outputs = [chain.read(p).A[2] for p in pair.params]
    outs, units, entries = outputs[0].shape
    if (outs, entries) != (1, 1):
        raise UnsupportedError("the output layer", "the argument needs one output and one weight of it for each unit")
    found = [int((v > 0).sum()) for v in outputs]
    differ = found[0] != found[1]
    rows = [Row(NAME, PREMISE, end, n, "different at a and b", differ) for end, n in zip("ab", found, strict=True)]
    if not differ:
        return [*rows, Row(NAME, ZERO, holds=None, note="as many at both ends: the argument says nothing")]
    least = _least(pair) if units == 1 else None
    known = "not known here; see separated for few parameters" if least is None else "that of the best constant"
    note = (
        f"measured: the loss that every path reaches, the smallest of a network with {units - 1} hidden units ({known})"
    )
    return [*rows, Row(NAME, ZERO, measured=least, holds=True, note=note)]


def _least(pair: MeasuredPair) -> float | None:
    """The smallest loss of a constant, 0 where the output has no bias; None for other losses than "mse"."""
    objective = pair.objective
    if objective.named_loss != "mse":
        return None
    y = objective.data[1].double()
    bias = pair.chain.layer(2).vectors
    return float((y - y.mean() if bias else y).square().mean())
