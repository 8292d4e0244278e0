"""Paths of two factors W2 W1 on which ridge does not rise: through balanced factorisations (W2^T W2 = W1 W1^T).

Every curve here is a function of s in [0, 1]. It is laid down as cubic Bezier curves, as many as a bound asks for: on
a cubic the product, the squares of the ridge and so the outputs are polynomials of degree 6, whose Bernstein
coefficients contain them, and the loss is convex in the product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import comb, inf

import torch
from torch import Tensor

from isthmus.errors import UnsupportedError
from isthmus.paths.full_rank import FullRank, orthogonal_complement

RANK = 1e-10
"""Singular values below this part of the largest count as zero."""
_NARROWEST = 2.0**-40
"""Pieces of a curve are not made narrower."""


@dataclass(frozen=True, eq=False)
class Factors:
    """W2 [p, n], W1 [n, q] and what is added to their product: v (the output bias; any shape)."""

    W2: Tensor
    W1: Tensor
    v: Tensor

    @property
    def M(self) -> Tensor:
        """The product [p, q]."""
        return self.W2 @ self.W1

    def plus(self, terms: list[tuple[float, Factors]]) -> Factors:
        """self + the sum of c * other."""
        parts = []
        for name in ("W2", "W1", "v"):
            parts.append(getattr(self, name) + sum(c * getattr(other, name) for c, other in terms))
        return Factors(*parts)


Move = Callable[[float], Factors]
Control = tuple[Factors, ...]
_Judge = Callable[[Control], float]
"""The largest value on a Bezier curve: a bound."""


@dataclass(frozen=True, eq=False)
class Balanced:
    """A balanced pair: W2 = U S^(1/2) Q^T and W1 = Q S^(1/2) Vh for the thin decomposition U S Vh of rank r.

    Q [n, r] has orthonormal columns: the frame of the hidden units.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    Q: Tensor

    @property
    def side(self) -> Tensor:
        """U or V: the singular vectors on the smaller side of the product."""
        return self.U if self.U.shape[0] <= self.Vh.shape[1] else self.Vh.T

    def framed(self, Q: Tensor, v: Tensor) -> Factors:
        """The pair in another frame: the same product and the same squares."""
        root = self.S.sqrt()
        return Factors((self.U * root) @ Q.T, (Q * root) @ self.Vh, v)


def project(start: Factors) -> tuple[Factors, Factors]:
    """W1 on the row space of W2, then W2 on the column space of W1: the product stays, both shrink or stay."""
    rows = _range(start.W2.T)
    one = Factors(start.W2, rows @ (rows.T @ start.W1), start.v)
    columns = _range(one.W1)
    return one, Factors((one.W2 @ columns) @ columns.T, one.W1, start.v)


class Balancing:
    """The curve (W2 G^-s, G^s W1) to a balanced pair, from projected factors; ridge falls along it.

    G = A^-1 # B, the geometric mean, squared for A = W1 W1^T and B = W2^T W2 on the r-dimensional space that both live
    in. The squares of (W2 G^-s, G^s W1) are convex in s and least at s = 1 (a geodesic of the positive matrices).
    """

    def __init__(self, start: Factors) -> None:
        self.start = start
        H = self.H = _range(start.W1)
        self.X, self.Y = H.T @ start.W1, start.W2 @ H
        R = torch.linalg.qr(self.X.T)[1]  # A = R^T R
        _, D, V = torch.linalg.svd(self.Y @ R.T, full_matrices=False)
        F = torch.linalg.solve_triangular(R, V.T, upper=True) if len(R) else V.T
        powers, self.axes = torch.linalg.eigh((F * D) @ F.T)  # G^2
        self.powers = powers.clamp_min(torch.finfo(powers.dtype).tiny)

    def at(self, s: float) -> Factors:
        """The pair at s in [0, 1]."""
        turn, power = self.axes, self.powers.pow(s / 2)
        left = ((self.Y @ turn) / power) @ turn.T
        right = (turn * power) @ (turn.T @ self.X)
        return Factors(left @ self.H.T, self.H @ right, self.start.v)

    @cached_property
    def end(self) -> Balanced:
        """The balanced pair at s = 1."""
        r = len(self.X)
        U, S, Vh = torch.linalg.svd(self.start.M, full_matrices=False)
        U, S, Vh = U[:, :r], S[:r], Vh[:r]
        frame = self.at(1.0).W1 @ Vh.T / S.sqrt()
        left, _, right = torch.linalg.svd(frame, full_matrices=False)
        return Balanced(U, S, Vh, left @ right)


class OppositeSides(UnsupportedError):
    """Two pairs without a unit to spare, on both sides of det = 0: every path between them makes a factor singular."""

    def __init__(self, n: int, factor: str, found: str = "") -> None:
        super().__init__(
            "the hidden width",
            f"it is {n}, the smaller of the ranks that inputs and outputs allow, and det {factor} is positive at one "
            f"end and negative at the other: every path between them passes a singular {factor}{found}",
            f"Proposition 2.2 needs one unit more, {n + 1}",
        )
        self.n, self.factor = n, factor


def own_frame(pair: Balanced) -> Tensor:
    """E [n, min(p, q)], orthonormal, in which the pair is already."""
    side = pair.side
    return torch.cat([pair.Q, orthogonal_complement(pair.Q)], 1)[:, : len(side)] @ _completed(side).T


def common_frame(one: Balanced, other: Balanced) -> Tensor:
    """E [n, min(p, q)], orthonormal, in which both pairs can be put; it begins where the first pair is.

    Where n = min(p, q) and both products have rank n, the frames of the pairs lie in one of the two halves of O(n)
    each; `OppositeSides` where these differ.
    """
    n = len(one.Q)
    by_rows = one.U.shape[0] <= one.Vh.shape[1]
    sides, E = [one.side, other.side], own_frame(one)
    if E.shape[1] < n or len(other.S) < n:
        return E
    if len(one.S) < n:  # the first pair may turn either way
        wanted = torch.linalg.det(other.Q @ _completed(sides[1]).T)
        return E if float(torch.linalg.det(E) * wanted) > 0 else _mirrored(one, sides[0])
    signs = [float(torch.linalg.det(x.Q @ _completed(side).T)) for x, side in zip((one, other), sides, strict=True)]
    if signs[0] * signs[1] < 0:
        raise OppositeSides(n, "W2" if by_rows else "W1")
    return E


class Turning:
    """The curve along which the frame turns from Q to E U (E V where p > q): product and squares stay."""

    def __init__(self, pair: Balanced, E: Tensor, v: Tensor) -> None:
        self.pair, self.v = pair, v
        self.goal = E @ pair.side
        n, r = pair.Q.shape
        self.square = r == n
        first = slice(0, r - 1) if self.square else slice(0, r)
        self.path = FullRank(pair.Q[:, first], self.goal[:, first]) if r > self.square else None

    def at(self, s: float) -> Factors:
        """The pair at s in [0, 1]."""
        if s in (0, 1):
            return self.pair.framed(self.goal if s else self.pair.Q, self.v)
        if self.path is None:
            return self.pair.framed(self.pair.Q, self.v)
        Q = self.path.at(s)
        if self.square:  # the last column is the one that keeps the determinant
            last = orthogonal_complement(Q)
            Q = torch.cat([Q, last], 1)
            if float(torch.linalg.det(Q) * torch.linalg.det(self.pair.Q)) < 0:
                Q = torch.cat([Q[:, :-1], -last], 1)
        return self.pair.framed(Q, self.v)


class Moving:
    """The curve over M(s) = (1-s) M0 + s M1, with the balanced factors of M(s) in the frame E.

    Ridge is 2 ||M||_*, which is convex, as is the loss. Where p <= q: W2 = (M M^T)^(1/4) E^T, which is continuous in M
    without any choice of singular vectors.
    """

    def __init__(self, start: Factors, end: Factors, E: Tensor) -> None:
        self.M, self.v, self.E = (start.M, end.M), (start.v, end.v), E

    def at(self, s: float) -> Factors:
        """The pair at s in [0, 1]."""
        U, S, Vh = torch.linalg.svd(torch.lerp(*self.M, s), full_matrices=False)
        pair = Balanced(U, S, Vh, self.E)
        return pair.framed(self.E @ pair.side, torch.lerp(*self.v, s))


def lay(
    curve: Move, start: Factors, end: Factors, judge: _Judge, limit: float, most: int
) -> tuple[list[Control], float]:
    """Cubic Bezier curves along `curve`, halved until each is at most `limit` by `judge`; and the largest bound.

    Each goes through four points of its piece. Pieces that are as narrow as can be, and those beyond `most`, are taken
    with the bound that they have.
    """
    out: list[Control] = []
    worst, waiting = -inf, [(0.0, 1.0, start, end)]
    while waiting:
        s0, s1, p0, p3 = waiting.pop()
        h = s1 - s0
        q1, q2 = curve(s0 + h / 3), curve(s0 + 2 * h / 3)
        zero = p0.plus([(-1.0, p0)])
        p1 = zero.plus([(-5 / 6, p0), (3.0, q1), (-1.5, q2), (1 / 3, p3)])
        p2 = zero.plus([(1 / 3, p0), (-1.5, q1), (3.0, q2), (-5 / 6, p3)])
        bound = judge((p0, p1, p2, p3))
        if bound <= limit or h <= _NARROWEST or len(out) + len(waiting) + 1 >= most:
            out.append((p0, p1, p2, p3))
            worst = max(worst, bound)
        else:
            middle = curve((s0 + s1) / 2)
            waiting += [((s0 + s1) / 2, s1, middle, p3), (s0, (s0 + s1) / 2, p0, middle)]
    return out, worst


def coefficients(control: Control) -> list[list[tuple[float, Factors, Factors]]]:
    """The Bernstein coefficients of a product of two entries of a Bezier curve, as weighted pairs of control points.

    For degree n there are 2n + 1; entry i holds the (weight, first, second) whose weighted products add up to it.
    """
    n = len(control) - 1
    out = []
    for i in range(2 * n + 1):
        ways = range(max(0, i - n), min(n, i) + 1)
        out.append([(comb(n, j) * comb(n, i - j) / comb(2 * n, i), control[j], control[i - j]) for j in ways])
    return out


def _range(M: Tensor) -> Tensor:
    """Orthonormal columns that span the columns of M."""
    U, s, _ = torch.linalg.svd(M, full_matrices=False)
    return U[:, s > RANK * s.max()] if s.numel() and float(s.max()) > 0 else U[:, :0]


def _completed(side: Tensor) -> Tensor:
    return torch.cat([side, orthogonal_complement(side)], 1)


def _mirrored(pair: Balanced, side: Tensor) -> Tensor:
    """The other half of O(n): one direction that the pair does not use is turned round."""
    full = torch.cat([pair.Q, orthogonal_complement(pair.Q)], 1)
    full[:, -1] = -full[:, -1]
    return full[:, : len(side)] @ _completed(side).T
