"""Paths of a linear network of two layers on which loss and ridge do not rise: from factors to weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from isthmus.connectors.deep_linear.balanced import (
    Balanced,
    Balancing,
    Control,
    Factors,
    Move,
    Moving,
    OppositeSides,
    Turning,
    coefficients,
    common_frame,
    lay,
    own_frame,
    project,
)
from isthmus.connectors.deep_linear.one_layer import clear_biases
from isthmus.connectors.deep_linear.singular import balanced_at, lowest_singular
from isthmus.errors import InputError, UnsupportedError
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.structure.chain import Chain, Weights

_FLOOR = 1e-9
"""The excess that is allowed where both ends have loss zero."""


@dataclass(frozen=True, eq=False)
class _Reading:
    """How the weights of a chain of two layers are two matrices; kernel entries count as inputs and outputs.

    W2 [n_2 k_2, n_1]; W1 [n_1, n_0 k_1], with the hidden bias as a last column where `bias`.
    """

    chain: Chain
    bias: bool

    def factors(self, params: Params) -> Factors:
        """The matrices of `params`."""
        theta = self.chain.read(params)
        W1 = torch.cat([theta.A[1].flatten(1), theta.b[1]], 1) if self.bias else theta.A[1].flatten(1)
        return Factors(theta.A[2].transpose(1, 2).flatten(0, 1), W1, theta.b[2])

    def params(self, factors: Factors, like: Params) -> Params:
        """`like` with these matrices put in; without `bias` the hidden bias stays as it is."""
        theta = self.chain.read(like)
        outputs, n, k = theta.A[2].shape
        columns = theta.A[1][0].numel()
        hidden = factors.W1[:, columns:] if self.bias else theta.b[1]
        A = {
            1: factors.W1[:, :columns].reshape(theta.A[1].shape),
            2: factors.W2.view(outputs, k, n).transpose(1, 2).contiguous(),
        }
        return self.chain.write(Weights(A, {1: hidden, 2: factors.v}), like)


@dataclass(eq=False)
class TwoFactors:
    """The construction: both ends to balanced factors in one frame, then along the segment of products.

    `penalised` names the parameters that ridge counts (none: no penalty). Curves are halved until the loss on each is
    at most the larger end's + `allowed`, within `most` segments.
    """

    chain: Chain
    objective: Objective
    ends: tuple[Params, Params]
    penalised: set[str]
    tolerance: float
    most: int
    report: Callable[[int], None] = lambda done: None
    controls: list[tuple[Params, ...]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    bound: float = 0.0

    def __post_init__(self) -> None:
        self.cleared = self._cleared()
        self.reading = _Reading(self.chain, self.cleared is self.ends and bool(self.chain.layer(1).vectors))
        self.top = self.bound = max(self.objective.loss(p) for p in self.ends)
        self.allowed = self.tolerance * self.top if self.top > 0 else _FLOOR
        self.written: dict[int, tuple[Factors, Params]] = {}

    def _cleared(self) -> tuple[Params, Params]:
        """The ends, with hidden biases moved to the output where no penalty counts either."""
        hidden, output = (set(layer.vectors) for layer in self.chain.layers)
        if not hidden or hidden <= self.penalised:
            return self.ends
        moved = [clear_biases(self.chain, self.objective, p) for p in self.ends]
        if moved[0] is not None and moved[1] is not None and not output & self.penalised:
            return moved[0], moved[1]
        if not self.penalised:
            return self.ends
        raise InputError(
            "penalty.names",
            expected=f"the hidden bias {min(hidden)!r} too, or an output bias that it does not count either",
            got=repr(self.objective.penalty),
        )

    @cached_property
    def kappa(self) -> float:
        """The weight of ridge."""
        return self.objective.penalty.kappa if self.objective.penalty is not None else 0.0

    def build(self) -> None:
        """Fill `controls` (Bezier control points, first to last), `labels` and `bound`."""
        pairs = [self.reading.factors(p) for p in self.cleared]
        n, rank = pairs[0].W2.shape[1], min(pairs[0].M.shape)
        if n < rank:
            why = f"{n} units are fewer than min(inputs, outputs) = {rank}, which Proposition 2.2 asks for"
            raise UnsupportedError("the hidden width", why)
        projected = [project(p) for p in pairs]
        balancing = [Balancing(two) for _, two in projected]
        one, other = (curve.end for curve in balancing)
        starts = [one.framed(one.Q, pairs[0].v), other.framed(other.Q, pairs[1].v)]
        for k, params in enumerate(self.cleared):
            self.written[id(pairs[k])] = (pairs[k], params)
            if k == 1:
                self._between(one, other, starts)
            first, end = len(self.controls), "AB"[k]
            self._straight(self.ends[k], params, f"at {end}, hidden biases to the output")
            points = [pairs[k], *projected[k]]
            self._straight(self._at(points[0]), self._at(points[1]), f"at {end}, W1 onto the row space of W2")
            self._straight(self._at(points[1]), self._at(points[2]), f"at {end}, W2 onto the column space of W1")
            self._curve(f"at {end}, balance the factors", balancing[k].at, points[2], starts[k])
            if k == 1:
                self._turn_round(first)

    def _turn_round(self, first: int) -> None:
        """Go through what was laid down from `first` on in the other direction."""
        self.controls[first:] = [c[::-1] for c in reversed(self.controls[first:])]
        self.labels[first:] = [f"{label}, backwards" for label in reversed(self.labels[first:])]

    def _between(self, one: Balanced, other: Balanced, starts: list[Factors]) -> None:
        """From balanced factors to balanced factors, along products; through a singular one where they must."""
        try:
            E = common_frame(one, other)
        except OppositeSides as e:
            self._through_singular(one, other, starts, e)
            return
        turning = Turning(other, E, starts[1].v)
        home = turning.at(1.0)
        self._curve("from A to B, along the products", Moving(starts[0], home, E).at, starts[0], home)
        first = len(self.controls)
        self._curve("at B, turn the frame", turning.at, starts[1], home)
        self._turn_round(first)

    def _through_singular(self, one: Balanced, other: Balanced, starts: list[Factors], why: OppositeSides) -> None:
        """Along products to one of lower rank, whose frame may turn to the other side, and on.

        Loss and ridge are convex in the product, so that one of no larger loss is all that this takes.
        """
        middle, lowest = lowest_singular(self.value, starts, self.top)
        if lowest > self.top:
            found = f", and the lowest that was found has a loss of {lowest:.6g}, above the larger end's {self.top:.6g}"
            raise OppositeSides(why.n, why.factor, found) from None
        frames = [own_frame(one), own_frame(other)]
        pair = balanced_at(middle, frames[0])
        turning = Turning(pair, frames[1], middle.v)
        there, back = turning.at(0.0), turning.at(1.0)
        rank = len(pair.S)
        self._curve(f"from A to a product of rank {rank}", Moving(starts[0], there, frames[0]).at, starts[0], there)
        if rank:
            self._curve("turn its frame to the other side of det = 0", turning.at, there, back)
        else:
            back = there
        self._curve(f"from the product of rank {rank} to B", Moving(back, starts[1], frames[1]).at, back, starts[1])

    def _at(self, factors: Factors) -> Params:
        """The weights of a pair; the same object for the same pair, so that segments join."""
        if id(factors) not in self.written:
            self.written[id(factors)] = (factors, self.reading.params(factors, self.cleared[0]))
        return self.written[id(factors)][1]

    def _straight(self, start: Params, end: Params, label: str) -> None:
        if start is not end:
            self.controls.append((start, end))
            self.labels.append(label)

    def _curve(self, label: str, curve: Move, start: Factors, end: Factors) -> None:
        most = max(1, self.most - len(self.controls) - 8)
        pieces, bound = lay(curve, start, end, self._largest, self.top + self.allowed, most)
        self.bound = max(self.bound, bound)
        for i, control in enumerate(pieces, start=1):
            self.controls.append(tuple(self._at(p) for p in control))
            self.labels.append(f"{label}, {i} of {len(pieces)}")
        self.report(len(self.controls))

    def value(self, factors: Factors) -> Tensor:
        """Loss and ridge of factors, with gradients."""
        params = self.reading.params(factors, self.cleared[0])
        return self.objective.batch_loss(params, torch.arange(self.objective.num_examples, device=factors.v.device))

    def _largest(self, control: Control) -> float:
        """A bound on loss + ridge on a Bezier curve of factors: the largest Bernstein coefficient."""
        values = []
        for terms in coefficients(control):
            M = sum((c * (p.W2 @ q.W1) for c, p, q in terms), torch.zeros_like(control[0].M))
            v = sum((c * p.v for c, p, _ in terms), torch.zeros_like(control[0].v))
            squares = sum(c * self._squares(p, q) for c, p, q in terms)
            values.append(self._loss(M, v) + self.kappa * squares)
        return max(values)

    def _squares(self, p: Factors, q: Factors) -> float:
        """The inner product of the weights that ridge counts."""
        counted = float((p.W2 * q.W2).sum() + (p.W1 * q.W1).sum()) if self.penalised else 0.0
        return counted + (float((p.v * q.v).sum()) if set(self.chain.layer(2).vectors) & self.penalised else 0.0)

    def _loss(self, M: Tensor, v: Tensor) -> float:
        """The loss of a linear map, without penalty: as the product with a part of the identity."""
        p, q = M.shape
        n = self.chain.widths[1]
        eye = torch.eye(n).to(M)
        if p <= q:
            pair = Factors(eye[:p], torch.cat([M, M.new_zeros(n - p, q)]), v)
        else:
            pair = Factors(torch.cat([M, M.new_zeros(p, n - q)], 1), eye[:, :q], v)
        return float(self.objective.losses(self.reading.params(pair, self.cleared[0])).mean())
