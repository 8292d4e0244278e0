"""Paths of a linear network on which one layer changes at a time: the outputs are affine in t on every segment.

All layers but one are brought to the common form scale [I, 0] on hub units 0 .. D_l - 1 of hidden layer l, whose other
units are dead, by moves that leave the outputs as they are. Hidden layers above layer j + 1 take their form from the
layer above them (D_l counts outputs), those below it from the layer below (D_l counts inputs); layer j + 1 is free, and
its straight segment is a straight segment of the network's linear map. Kernel entries count: a unit that feeds k_l of
them stands for k_l outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from isthmus.connectors.deep_linear.exchange import to_hub
from isthmus.errors import IsthmusError
from isthmus.objective import Objective
from isthmus.objective.data import single
from isthmus.params import Params, equal
from isthmus.structure.chain import Chain, Weights


@dataclass(frozen=True)
class Sizes:
    """What each hidden layer's units must stand for, from below and from above: n_l must be larger than one of them."""

    widths: tuple[int, ...]
    below: Mapping[int, int]
    above: Mapping[int, int]

    @classmethod
    def of(cls, chain: Chain, params: Params) -> Sizes:
        """The sizes of a chain."""
        kernel = {l: A.shape[2] for l, A in chain.read(params).A.items()}
        hidden = range(1, chain.L)
        below = {l: chain.widths[0] * prod(kernel[k] for k in range(1, l + 1)) for l in hidden}
        above = {l: chain.widths[-1] * prod(kernel[k] for k in range(l + 1, chain.L + 1)) for l in hidden}
        return cls(chain.widths, below, above)

    def split(self, from_below: bool) -> int | None:
        """The number j of hidden layers that take their form from below, the fewest that will do; None if none will.

        j > 0 is for networks whose hidden biases can be moved to the output (`from_below`).
        """
        for j in range(len(self.widths) - 1 if from_below else 1):
            if all(self.widths[l] > (n if l <= j else self.above[l]) for l, n in self.below.items()):
                return j
        return None

    def too_narrow(self) -> str:
        """The hidden layer that stands in the way, in words."""
        for l, n in self.below.items():
            need = min(n, self.above[l]) + 1
            if self.widths[l] < need:
                return f"hidden layer {l} has {self.widths[l]} units; the construction needs {need}"
        return "layers that are wide enough for the outputs stand below layers that are wide enough for the inputs"


def clear_biases(chain: Chain, objective: Objective, params: Params) -> Params | None:
    """`params` with zero hidden biases and what they added to the outputs in the output bias; None if it has none."""
    theta = chain.read(params)
    if not any(theta.b[l].numel() and bool(theta.b[l].any()) for l in range(1, chain.L)):
        return params
    x = single(objective.data[0])[:1]
    added = objective.forward(params, torch.zeros_like(x))
    if not theta.b[chain.L].numel() or added.dim() != 2:
        return None
    now = theta.copy()
    for l in range(1, chain.L):
        now.b[l] = torch.zeros_like(now.b[l])
    now.b[chain.L] = added[0].unsqueeze(1)
    return chain.write(now, params)


def one_layer_path(
    chain: Chain, objective: Objective, ends: tuple[Params, Params], j: int
) -> tuple[list[Params], list[str]]:
    """The vertices from one end to the other, all in float64, and a label for each segment."""
    reads = [chain.read(p) for p in ends]
    scales = {l: _scale([r.A[l] for r in reads]) for l in range(1, chain.L + 1)}
    there, back = (_walk(chain, objective, end, j, scales) for end in ends)
    middle = f"layer {j + 1}" + " and biases" * any(v.numel() for v in reads[0].b.values())
    (first, words), (last, words_back) = (zip(*side, strict=True) for side in (there, back))
    labels = [*(f"at A, {what}" for what in words[1:]), f"{middle}, straight from A to B"]
    labels += [f"at B, {what}, backwards" for what in words_back[:0:-1]]
    return [*first, *reversed(last)], labels


def _walk(
    chain: Chain, objective: Objective, end: Params, j: int, scales: Mapping[int, float]
) -> list[tuple[Params, str]]:
    """From one end to the common form: the points, and what each move did."""
    cleared = end if j == 0 else clear_biases(chain, objective, end)
    if cleared is None:
        raise IsthmusError("internal error: biases that cannot be cleared; please report it")
    walk = [(end, "the end")]
    for point, what in _to_common_form(chain, cleared, j, scales):
        if not equal(point, walk[-1][0]):
            walk.append((point, what))
    return walk


def _scale(weights: list[Tensor]) -> float:
    """The root mean square of a column of this layer at the ends: the size of the common form."""
    sizes = [float(A.square().sum() / A.shape[1]) ** 0.5 for A in weights]
    return max(sizes) or 1.0


def _to_common_form(chain: Chain, start: Params, j: int, scales: Mapping[int, float]) -> Iterator[tuple[Params, str]]:
    """The points after each move, the cleared start first."""
    yield start, "hidden biases to the output"
    now, point = chain.read(start).copy(), start
    hub = {chain.L: chain.widths[-1], 0: chain.widths[0]}
    for l in [*range(chain.L - 1, j, -1), *range(1, j + 1)]:
        side = _Above(now, l, hub[l + 1]) if l > j else _Below(now, l, hub[l - 1])
        for pair in to_hub(*side.read(), scales[l + 1 if l > j else l]):
            side.write(pair.V, pair.W)
            point = chain.write(now, point)
            yield point, f"hidden layer {l}: {pair.what}"
        hub[l] = side.size


class _Above:
    """Hidden layer l between V, the layer above (rows of its hub units), and W, its own rows with their biases."""

    def __init__(self, now: Weights, l: int, rows: int) -> None:
        self.now, self.l, self.rows = now, l, rows
        self.n, self.k = now.A[l + 1].shape[1:]
        self.size = rows * self.k

    def read(self) -> tuple[Tensor, Tensor]:
        """V [rows * k, n] and W [n, rest]."""
        V = self.now.A[self.l + 1][: self.rows].transpose(1, 2).reshape(self.size, self.n)
        return V, torch.cat([self.now.A[self.l].flatten(1), self.now.b[self.l]], 1)

    def write(self, V: Tensor, W: Tensor) -> None:
        """Put them back; rows of dead units of the layer above are zero."""
        above, own = self.now.A[self.l + 1], self.now.A[self.l]
        new = torch.zeros_like(above)
        new[: self.rows] = V.view(self.rows, self.k, self.n).transpose(1, 2)
        biases = self.now.b[self.l].shape[1]
        self.now.A[self.l + 1] = new
        self.now.A[self.l] = W[:, : W.shape[1] - biases].reshape(own.shape)
        self.now.b[self.l] = W[:, W.shape[1] - biases :]


class _Below:
    """Hidden layer l between V, its own rows (columns of hub units below, transposed), and W, the layer above."""

    def __init__(self, now: Weights, l: int, columns: int) -> None:
        self.now, self.l, self.columns = now, l, columns
        self.n, _, self.k = now.A[l].shape
        self.size = columns * self.k

    def read(self) -> tuple[Tensor, Tensor]:
        """V [columns * k, n] and W [n, rest]."""
        V = self.now.A[self.l][:, : self.columns].reshape(self.n, self.size).T
        return V, self.now.A[self.l + 1].transpose(0, 1).flatten(1)

    def write(self, V: Tensor, W: Tensor) -> None:
        """Put them back; columns of dead units of the layer below are zero."""
        own, above = self.now.A[self.l], self.now.A[self.l + 1]
        new = torch.zeros_like(own)
        new[:, : self.columns] = V.T.reshape(self.n, self.columns, self.k)
        self.now.A[self.l] = new
        self.now.A[self.l + 1] = W.view(self.n, above.shape[0], above.shape[2]).transpose(0, 1).contiguous()
