"""A network on some of its units (Kuditipudi et al. 2019, Definition 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from isthmus.params import Params
from isthmus.structure.chain import Chain, Weights
from isthmus.structure.network_units import Units


@dataclass(frozen=True, eq=False)
class Dropped:
    """theta_i of Definition 1: the network that keeps the units `kept` in layers `entry` .. L-1.

    Kept units of layer j have their outgoing weights multiplied by `factors[j]` (n_j / |kept_j|, or 1, or the best),
    those of the last hidden layer also by `scale`; biases stay. `loss` is the loss of this network, penalty left out.
    `separates`: the loss falls up to the largest scale that is searched, where every example is right, so that no
    finite one is optimal; False where there is no error rate.
    `trace`: the losses of all subsets that were tried, in order; empty if only the best were computed exactly.
    """

    entry: int
    kept: Units
    factors: dict[int, float]
    scale: float
    loss: float
    separates: bool
    trace: tuple[float, ...] = ()

    def layers(self, theta: Weights, L: int) -> Weights:
        """Its weights in compact form: the rows of layer `entry` and all that follows, kept units only."""
        i = self.entry
        A = {i: theta.A[i][self.kept[i]]}
        b = {i: theta.b[i][self.kept[i]]}
        for j in range(i + 1, L):
            A[j] = theta.A[j][self.kept[j]][:, self.kept[j - 1]] * self.factors[j - 1]
            b[j] = theta.b[j][self.kept[j]]
        A[L] = theta.A[L][:, self.kept[L - 1]] * (self.factors[L - 1] * self.scale)
        b[L] = theta.b[L]
        return Weights(A, b)

    def vertex(self, chain: Chain, params: Params) -> Params:
        """theta_i at full size: dropped units of layers `entry` .. L-1 have rows, columns and biases of zero."""
        theta, small = chain.read(params), self.layers(chain.read(params), chain.L)
        A, b = {}, {}
        for j in small.A:
            rows = self.kept.get(j, torch.arange(chain.widths[j]))
            columns = torch.arange(chain.widths[j - 1]) if j == self.entry else self.kept[j - 1]
            A[j], b[j] = torch.zeros_like(theta.A[j]), torch.zeros_like(theta.b[j])
            A[j][rows.unsqueeze(1), columns.unsqueeze(0)] = small.A[j]
            b[j][rows] = small.b[j]
        return chain.write(Weights(A, b), params)
