"""Linear algebra of exact paths: solutions of least norm, and paths of matrices that keep full rank."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from scipy.linalg import schur
from torch import Tensor

from isthmus.errors import InputError

__all__ = ["FullRank", "RowSolver", "left_divide", "ones_column"]


def ones_column(x: Tensor, bias: bool) -> Tensor:
    """[x, 1] for a layer with biases, x itself for one without."""
    return torch.cat([x, x.new_ones(len(x), 1)], 1) if bias else x


def left_divide(B: Tensor, W: Tensor) -> Tensor:
    """B W^+ for W [m, n] of full column rank: the matrix of least norm whose product with W is B.

    >>> left_divide(torch.tensor([[6.0]]), torch.tensor([[3.0], [0.0]]))
    tensor([[2., 0.]])
    """
    Q, R = torch.linalg.qr(W)
    return torch.linalg.solve_triangular(R, B, upper=True, left=False) @ Q.T


class RowSolver:
    """Solutions U of least norm of M U = B, for M [N, n] of full row rank, all by one QR factorisation of M^T.

    One step of refinement makes the residual that of the rounding of M U, whatever the condition number. Costs
    2 N^2 n operations, and N n numbers of memory. Errors: fewer columns than rows.

    >>> RowSolver(torch.tensor([[3.0, 4.0]])).solve(torch.tensor([[25.0]])).flatten()
    tensor([3., 4.])
    """

    def __init__(self, M: Tensor) -> None:
        if M.shape[0] > M.shape[1]:
            raise InputError("M", expected="at least as many columns as rows", got=tuple(M.shape))
        self.M = M
        self.Q, self.R = torch.linalg.qr(M.T)

    def solve(self, B: Tensor) -> Tensor:
        """U [n, p] for B [N, p]."""
        U = self._once(B)
        return U + self._once(B - self.M @ U)

    def _once(self, B: Tensor) -> Tensor:
        return self.Q @ torch.linalg.solve_triangular(self.R.T, B, upper=False)

    @cached_property
    def singular_values(self) -> Tensor:
        """The singular values of M, descending."""
        return torch.linalg.svdvals(self.R)

    @property
    def condition(self) -> float:
        """The largest over the smallest singular value of M; infinite where that is zero."""
        s = self.singular_values
        return float(s[0] / s[-1]) if float(s[-1]) > 0 else float("inf")


class FullRank:
    """A path W(t) from W0 to W1 [m, n], m > n, of full column rank (Proposition 3.5; Evard and Jafari 1994).

    With the polar forms W_i = Q_i S_i it is W(t) = exp(t log R) Q_0 ((1-t) S_0 + t S_1), where the rotation R takes Q_0
    to Q_1 inside the span of both (the -1 eigenvalues of R are paired to rotations by pi). All singular values stay
    between the least and the largest of both ends; a straight line may lose rank (W1 = -W0). Equal ends, for which
    m = n will do too, give a path that stays. Errors: shapes that differ, m <= n, an end that has not full rank.

    >>> W = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    >>> FullRank(W, -W).at(0.5).abs().max().item()
    1.0
    """

    def __init__(self, W0: Tensor, W1: Tensor) -> None:
        if W0.shape != W1.shape or W0.dim() != 2:
            raise InputError("W1", expected=f"a matrix of shape {tuple(W0.shape)}", got=tuple(W1.shape))
        m, n = W0.shape
        self.ends = (W0, W1)
        self.still = torch.equal(W0, W1)
        self.singular_values = (torch.linalg.svdvals(W0), torch.linalg.svdvals(W1))
        for name, s in zip(("W0", "W1"), self.singular_values, strict=True):
            if m < n or not float(s[-1]) > m * torch.finfo(s.dtype).eps * float(s[0]):
                got = f"singular values from {s[0]:.3g} to {s[-1]:.3g}, {m} x {n}"
                raise InputError(name, expected="full column rank", got=got)
        if not self.still:
            if m == n:
                raise InputError("W0", expected="more rows than columns, or equal ends", got=tuple(W0.shape))
            self._prepare()

    @property
    def smallest(self) -> float:
        """No singular value of W(t) is smaller, for any t."""
        return float(min(s[-1] for s in self.singular_values))

    @property
    def largest(self) -> float:
        """No singular value of W(t) is larger, for any t."""
        return float(max(s[0] for s in self.singular_values))

    def at(self, t: float) -> Tensor:
        """W(t); at 0 and 1 the ends themselves."""
        if t == 0 or self.still:
            return self.ends[0]
        if t == 1:
            return self.ends[1]
        turned = self._Z.clone()
        cos, sin = (t * self._angles).cos(), (t * self._angles).sin()
        first, second = self._Z[:, self._pairs[0]], self._Z[:, self._pairs[1]]
        turned[:, self._pairs[0]] = first * cos + second * sin
        turned[:, self._pairs[1]] = second * cos - first * sin
        return self._span @ (turned @ self._q) @ torch.lerp(*self._S, t)

    def _prepare(self) -> None:
        (Q0, S0), (Q1, S1) = (_polar(W) for W in self.ends)
        # n-dimensional spaces turn into each other within their sum, of dimension at most 2n
        self._span = torch.linalg.qr(torch.cat([Q0, Q1], 1))[0]
        q0, q1 = self._span.T @ Q0, self._span.T @ Q1
        c0, c1 = orthogonal_complement(q0), orthogonal_complement(q1)
        U, _, Vh = torch.linalg.svd(c1.T @ c0)
        c1 = c1 @ U @ Vh
        if float(torch.linalg.det(torch.cat([q0, c0], 1)) * torch.linalg.det(torch.cat([q1, c1], 1))) < 0:
            U[:, -1] = -U[:, -1]
            c1 = orthogonal_complement(q1) @ U @ Vh
        rotation = torch.cat([q1, c1], 1) @ torch.cat([q0, c0], 1).T
        Z, pairs, angles = _planes(rotation)
        self._Z, self._q, self._S = Z, Z.T @ q0, (S0, S1)
        self._pairs = tuple(torch.tensor([p[i] for p in pairs], dtype=torch.int64, device=Z.device) for i in (0, 1))
        self._angles = torch.tensor(angles, dtype=Z.dtype, device=Z.device)


def _polar(W: Tensor) -> tuple[Tensor, Tensor]:
    """W = Q S with orthonormal columns in Q and S symmetric, positive definite."""
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    return U @ Vh, (Vh.T * s) @ Vh


def orthogonal_complement(q: Tensor) -> Tensor:
    """Orthonormal columns that complete those of q to a basis."""
    return torch.linalg.qr(q, mode="complete")[0][:, q.shape[1] :]


def _planes(rotation: Tensor) -> tuple[Tensor, list[tuple[int, int]], list[float]]:
    """A rotation as turns in planes: an orthonormal basis Z, pairs of its columns, and an angle for each pair."""
    found: Any = schur(rotation.cpu().numpy(), output="real")
    T, Z = found
    pairs, angles, halves, i = [], [], [], 0
    while i < len(T):
        if i + 1 < len(T) and T[i + 1, i] != 0:
            pairs.append((i, i + 1))
            angles.append(float(torch.atan2(torch.tensor(T[i + 1, i]), torch.tensor(T[i, i]))))
            i += 2
            continue
        if T[i, i] < 0:
            halves.append(i)
        i += 1
    # the determinant is 1, so that the eigenvalues -1 come in pairs
    pairs += list(zip(halves[::2], halves[1::2], strict=True))
    angles += [torch.pi] * (len(halves) // 2)
    return torch.as_tensor(Z).to(rotation), pairs, angles
