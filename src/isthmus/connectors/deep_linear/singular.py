"""Products of less than full rank with a low loss: where a path of two factors may cross det = 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from isthmus.connectors.deep_linear.balanced import RANK, Balanced, Factors

_Value = Callable[[Factors], Tensor]

_PLACES = 9
"""So many products on the line between both ends are cut to the lower rank, to start from."""
_STEPS = 500
"""Iterations of each descent."""


def lowest_singular(value: _Value, ends: Sequence[Factors], enough: float) -> tuple[Factors, float]:
    """Factors through one hidden unit less than those of `ends`, of the lowest loss that is found, and that loss.

    `value` is a loss that is convex in the product, with ridge; each descent (L-BFGS in the factors) starts from the
    best approximation of lower rank of a product between the ends, the last one from zero. The first that is below
    `enough` ends the search. For the square loss such a descent finds the optimum from almost every start.
    """
    found: list[tuple[float, Factors]] = []
    for start in _starts(ends):
        found.append(_descended(value, start))
        if found[-1][0] < enough:
            break
    lowest, factors = min(found, key=lambda x: x[0])
    return factors, lowest


def balanced_at(factors: Factors, E: Tensor) -> Balanced:
    """The balanced pair of the product, in the frame E."""
    U, S, Vh = torch.linalg.svd(factors.M, full_matrices=False)
    r = min(int((S > RANK * S[:1]).sum()), factors.W2.shape[1] - 1) if float(S.max()) > 0 else 0
    pair = Balanced(U[:, :r], S[:r], Vh[:r], E)
    return Balanced(pair.U, pair.S, pair.Vh, E @ pair.side)


def _starts(ends: Sequence[Factors]) -> Iterator[Factors]:
    (one, other), n = ends, ends[0].W2.shape[1]
    for k in range(_PLACES):
        t = k / (_PLACES - 1)
        U, S, Vh = torch.linalg.svd(torch.lerp(one.M, other.M, t), full_matrices=False)
        root, W2, W1 = S[: n - 1].sqrt(), torch.zeros_like(one.W2), torch.zeros_like(one.W1)
        W2[:, : n - 1], W1[: n - 1] = U[:, : n - 1] * root, root[:, None] * Vh[: n - 1]
        yield Factors(W2, W1, torch.lerp(one.v, other.v, t))
    yield Factors(torch.zeros_like(one.W2), torch.zeros_like(one.W1), one.v)


def _descended(value: _Value, start: Factors) -> tuple[float, Factors]:
    """Down from `start`; its last hidden unit stays silent, so that the rank stays below n."""
    n = start.W2.shape[1]
    free = [start.W2[:, : n - 1], start.W1[: n - 1], start.v]
    leaves = [x.detach().clone().requires_grad_() for x in free]

    def factors() -> Factors:
        P, Q, v = leaves
        silent = torch.zeros_like(start.W2[:, :1]), torch.zeros_like(start.W1[:1])
        return Factors(torch.cat([P, silent[0]], 1), torch.cat([Q, silent[1]]), v)

    solver = torch.optim.LBFGS(
        leaves, max_iter=_STEPS, tolerance_grad=1e-12, tolerance_change=1e-300,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        solver.zero_grad()
        loss = value(factors())
        loss.backward()
        return loss

    if any(x.numel() for x in leaves):
        with torch.enable_grad():
            solver.step(closure)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        end = factors()
        end = Factors(end.W2.detach(), end.W1.detach(), end.v.detach())
        reached, first = float(value(end)), float(value(start))
    return (reached, end) if reached <= first else (first, start)
