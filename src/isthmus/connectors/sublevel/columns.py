"""Moving the features of one layer while what the next layer computes stays the same (Nguyen 2019, Lemmas 4.3 to 5.3).

A layer of n units is a matrix U [d, n], one column per unit (its bias included); ``read(U)`` gives its features
F [rows, n, k] as the next layer reads them: rows = N and k = 1 in a perceptron, k = the positions of a channel where a
linear layer reads a convolution. The next layer's weights are V [n, k, p], and F V is summed over units and positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.linalg import qr
from torch import Tensor

from isthmus.errors import InputError, IsthmusError
from isthmus.evaluate.level_network import RANK, singular_values
from isthmus.paths.full_rank import RowSolver
from isthmus.structure.network_units import complement, places

__all__ = [
    "Unreachable",
    "Vertex",
    "full_rank_features",
    "independent_units",
    "kinks",
    "least_squares",
    "move_onto",
    "multiply",
    "replace_features",
    "shifts",
]

_Read = Callable[[Tensor], Tensor]
_DELTA = 0.01
"""How far from a sample the kink of a new unit lies, in the scale of the pre-activations."""
_DRAWS = 8
"""So many times as many new units are drawn as there is room for, where that is little; the most independent stay."""


class Unreachable(IsthmusError):
    """A premise that turned out not to hold at this point, with its numbers."""


@dataclass(frozen=True, eq=False)
class Vertex:
    """Where a straight segment leads: the layer U, the next layer's weights V, and the lemma and the move it is of."""

    U: Tensor
    V: Tensor
    source: str
    move: str


def multiply(F: Tensor, V: Tensor) -> Tensor:
    """F V [rows, p], summed over units and their positions."""
    return F.flatten(1) @ V.flatten(0, 1)


def independent_units(F: Tensor, tol: float = RANK) -> tuple[Tensor, int]:
    """(all units, the most independent first; how many of them span the columns of all).

    By pivoted QR for one column per unit; else greedily, the unit that has most left outside the span so far.

    >>> independent_units(torch.tensor([[[1.0], [2.0], [0.0]], [[0.0], [0.0], [1.0]]]))
    (tensor([1, 2, 0]), 2)
    """
    n = F.shape[1]
    if F.shape[2] == 1:
        found: Any = qr(F[:, :, 0].cpu().numpy(), mode="r", pivoting=True)
        pivots = abs(found[0].diagonal())
        return torch.as_tensor(found[1]).long().to(F.device), int((pivots > tol * pivots[:1]).sum())
    left, order, count = F.clone(), [], 0
    scale = float(F.flatten(0, 1).square().sum().sqrt())
    while len(order) < n:
        size = left.square().sum((0, 2))
        size[order] = -1.0
        unit = int(size.argmax())
        if float(size[unit]) > (tol * scale) ** 2 and count == len(order):
            Q, s, _ = torch.linalg.svd(left[:, unit], full_matrices=False)
            Q = Q[:, s > tol * scale]
            left = left - torch.einsum("rq,sq,snk->rnk", Q, Q, left)
            count += 1
        order.append(unit)
    return torch.tensor(order, device=F.device), count


def move_onto(F: Tensor, V: Tensor, units: Tensor) -> Tensor:
    """Lemma 4.3: outgoing weights with the same F V on some `units` alone; all others get zero.

    V_I + E V_rest, where F_I E = F_rest: the columns of `units` must span all. The line from V to it keeps F V, and at
    its end the features of the other units do not matter.

    >>> F = torch.tensor([[[1.0], [2.0]]])
    >>> move_onto(F, torch.tensor([[[1.0]], [[1.0]]]), torch.tensor([1])).flatten()
    tensor([0.0000, 1.5000])
    """
    rest = complement(F.shape[1], units)
    kept, moved = F[:, units].flatten(1), multiply(F[:, rest], V[rest])
    out = torch.zeros_like(V)
    out[units] = V[units] + least_squares(kept, moved).view(len(units), *V.shape[1:])
    return out


def least_squares(F: Tensor, B: Tensor) -> Tensor:
    """A solution X of F X = B, which must have one; of least norm where the columns of F are dependent."""
    if F.shape[1] == 0:
        return B.new_zeros(0, B.shape[1])
    if F.shape[0] < F.shape[1]:
        return _truncated(F, B)
    Q, R = torch.linalg.qr(F)
    pivots = R.diagonal().abs()
    if not float(pivots.min()) > RANK * float(pivots.max()):
        return _truncated(F, B)
    X = torch.linalg.solve_triangular(R, Q.T @ B, upper=True)
    # one step of refinement
    return X + torch.linalg.solve_triangular(R, Q.T @ (B - F @ X), upper=True)


def _truncated(F: Tensor, B: Tensor) -> Tensor:
    return torch.linalg.lstsq(F.cpu(), B.cpu(), rcond=RANK, driver="gelsd").solution.to(F.device)


def shifts(v: Tensor, delta: float) -> Tensor:
    """Lemma 4.4: numbers b_1..b_n for which the vectors sigma(v + b_i 1) span R^n, under Assumption 2.2.

    b_i = delta - v_i puts the kink of sigma (or its bend at 0) just below entry i, so that for ReLU and delta below the
    gaps of v the vectors are triangular in the order of v. Errors: entries of v that are equal.

    >>> torch.relu(torch.tensor([0.0, 1.0])[:, None] + shifts(torch.tensor([0.0, 1.0]), 0.5))
    tensor([[0.5000, 0.0000],
            [1.5000, 0.5000]])
    """
    if len(v.unique()) < len(v):
        raise InputError("v", expected="distinct entries", got=f"{len(v.unique())} values in {len(v)} entries")
    return delta - v


def kinks(D: Tensor, bias: bool, count: int, scale: float, generator: torch.Generator) -> Tensor:
    """`count` new units [d (+ 1), count] on inputs D [rows, d], each with its kink at one of them.

    Directions are Gaussian, of pre-activations with standard deviation `scale`; the kinks go through all inputs in
    random order. Without biases the direction is turned until its pre-activation at that input is nearly 0.
    """
    rows, d = D.shape
    w = torch.randn(d, count, generator=generator, dtype=torch.float64).to(D)
    seen = D @ w
    spread = seen.std(0, correction=0)
    apart = spread > rows * torch.finfo(seen.dtype).eps * seen.abs().amax(0)  # one input has no spread but by rounding
    w = w * (scale / torch.where(apart, spread, w.norm(dim=0)))
    at = torch.cat([torch.randperm(rows, generator=generator) for _ in range(-(-count // rows))])[:count].to(D.device)
    z = (D[at] * w.T).sum(1)
    delta = _DELTA * scale
    if bias:
        return torch.cat([w, (delta - z)[None]])
    size = D[at].square().sum(1).clamp_min(1e-300)
    return w + D[at].T * ((delta - z) / size)


def full_rank_features(
    read: _Read, U: Tensor, V: Tensor, make: Callable[[int], Tensor], *, limit: float, demand: bool = True
) -> list[Vertex]:
    """Lemma 5.2: at most two segments, on which F V stays, to a layer whose features have full row rank.

    The units that the span does not need lose their outgoing weights (Lemma 4.3) and are replaced by ``make(m)``
    [d, m]; where there is room for few, by those of several draws that have most outside the span. Nothing happens
    where the rank is full and the condition number at most `limit`, or larger but without room for better features.
    `demand` False: as much rank as there are units. Errors: ``Unreachable`` when full rank is not reached.
    """
    F = read(U)
    s, rows = singular_values(F.flatten(1)), len(F)
    full = _rank(s) == rows
    if full and float(s[0]) <= limit * float(s[-1]):
        return []
    order, rank = independent_units(F)
    free = order[rank:]
    if full and len(free) * F.shape[2] < rows:
        return []
    if not len(free):
        if not demand:
            return []
        raise Unreachable(f"the features have rank {_rank(s)} of {rows}, and no unit is to spare")
    empty = move_onto(F, V, order[:rank])
    new = _chosen(read, U, F[:, order[:rank]], free, make)
    if demand and _rank(singular_values(read(new).flatten(1))) < rows:
        raise Unreachable(f"{len(free)} new units leave the rank of the features below {rows}: are inputs equal?")
    out = [Vertex(new, empty, "Lemma 5.2: new features", "b")]
    if not torch.equal(empty, V):
        out.insert(0, Vertex(U, empty, f"Lemma 4.3: outgoing weights onto {rank} units", "v"))
    return out


def _rank(s: Tensor) -> int:
    return int((s > RANK * s[:1]).sum())


def _chosen(read: _Read, U: Tensor, span: Tensor, free: Tensor, make: Callable[[int], Tensor]) -> Tensor:
    """U with new units at the places `free`."""
    rows, m = len(span), len(free)
    draws, features = [], []
    for _ in range(1 if m * span.shape[2] >= 2 * rows else _DRAWS):
        new = U.clone()
        new[:, free] = make(m)
        draws.append(new[:, free])
        features.append(read(new)[:, free])
    if len(draws) > 1:
        G = torch.cat(features, 1)
        Q = torch.linalg.qr(span.flatten(1))[0]
        left = (G.flatten(1) - Q @ (Q.T @ G.flatten(1))).view_as(G)
        draws = [torch.cat(draws, 1)[:, independent_units(left)[0][:m]]]
    new = U.clone()
    new[:, free] = draws[0]
    return new


def replace_features(read: _Read, U: Tensor, V: Tensor, goal: Tensor) -> list[Vertex]:
    """Lemma 5.3: six straight segments from (U, V) to (goal, some V), on which F V stays.

    I: units that span the features of U. I': units of `goal` of full row rank, as many as find room outside I. Onto I
    (v); columns I' of the goal into places outside I, their own where these are free (b); onto these (v); the goal
    into all other places (b); outgoing weights to I', equal units by now (m); the goal into what is left (b).

    Errors: ``Unreachable`` when the units outside I do not suffice for features of full row rank.
    """
    if torch.equal(U, goal):
        return []
    F, G = read(U), read(goal)
    Z = multiply(F, V)
    order, rank = independent_units(F)
    held, free = order[:rank], complement(F.shape[1], order[:rank])
    chosen, needed = independent_units(G)
    if needed > len(free):
        raise Unreachable(f"{needed} units are needed for features of full rank, {len(free)} are to spare")
    chosen = chosen[: len(free)].sort().values
    at = places(chosen, free)
    span = G[:, chosen].flatten(1)
    solver = RowSolver(span) if len(span) <= span.shape[1] else None
    if solver is None or _rank(solver.singular_values) < len(G):
        raise Unreachable(f"{len(chosen)} units of the goal have no features of full row rank {len(G)}")
    first = move_onto(F, V, held)
    copied = U.clone()
    copied[:, at] = goal[:, chosen]
    second = torch.zeros_like(V)
    second[at] = solver.solve(Z).view(len(chosen), *V.shape[1:])
    mixed = goal.clone()
    mixed[:, at] = copied[:, at]
    third = torch.zeros_like(V)
    third[chosen] = second[at]
    return [
        Vertex(U, first, f"Lemma 4.3: outgoing weights onto {rank} units", "v"),
        Vertex(copied, first, f"Lemma 5.3: copy {len(chosen)} units of the goal", "b"),
        Vertex(copied, second, f"Lemma 4.3: outgoing weights onto {len(chosen)} units", "v"),
        Vertex(mixed, second, "Lemma 5.3: write the goal elsewhere", "b"),
        Vertex(mixed, third, "Lemma 5.3: hand over outgoing weights", "m"),
        Vertex(goal, third, "Lemma 5.3: write the goal", "b"),
    ]
