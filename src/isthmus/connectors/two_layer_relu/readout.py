"""The best last layer on fixed features with an l1 penalty: a convex problem, solved to a known gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from isthmus.params import in_range

_PATIENCE = 50
"""Steps between two checks of the gap."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights A [O, f] and b [O] of a last layer, their value (loss + penalty), and how far it is from the least.

    `gap`: value - gap is a lower bound on the least value (squared loss: Fenchel duality); None where not known.
    """

    A: Tensor
    b: Tensor
    value: float
    gap: float | None


class Readout:
    """min over A [O, f], b [O] of mean loss(Z A^T + b, y) + kappa ||A||_1, for features Z [N, f] in float64.

    `losses(outputs, y)` gives one convex loss per example; with `squared` it is the mean over the O outputs of the
    squared error, and the problem is solved from the second moments of Z alone: by FISTA with restarts, whose support
    and signs are then solved for exactly. `bias`: "none" (b stays as it starts), "free", or "penalised" (kappa counts
    it). Any other loss is minimised by FISTA with backtracking, without a gap.

    >>> Z = torch.eye(2, dtype=torch.float64)
    >>> y = torch.tensor([[3.0], [0.1]], dtype=torch.float64)
    >>> readout = Readout(Z, y, lambda z, y: (z - y).square().mean(1), 0.5, "none", squared=True)
    >>> found = readout.solve()
    >>> found.A, round(found.value, 6), found.gap < 1e-9
    (tensor([[2.5000, 0.0000]], dtype=torch.float64), 1.38, True)
    """

    def __init__(
        self,
        Z: Tensor,
        y: Tensor,
        losses: Callable[[Tensor, Tensor], Tensor],
        kappa: float,
        bias: str,
        *,
        squared: bool,
        outputs: int | None = None,
    ) -> None:
        self.Z, self.y, self.losses, self.kappa, self.bias, self.squared = Z, y, losses, kappa, bias, squared
        self.O = outputs or y.shape[1]
        self.gram = _Gram(Z, y, bias) if squared else None

    def value(self, A: Tensor, b: Tensor) -> float:
        """Loss + penalty of a last layer."""
        return float(self._smooth(A, b) + self.kappa * self._norm(A, b))

    def solve(
        self,
        start: tuple[Tensor, Tensor] | None = None,
        columns: Tensor | None = None,
        *,
        steps: int | None = None,
        tolerance: float | None = None,
    ) -> Solution:
        """The best last layer on the features `columns` (bool [f]; default all), never worse than `start`.

        Stops when the gap (or, without one, the progress of 50 steps) is below `tolerance` times the value, or after
        `steps` steps (defaults: 1e-9 and 20000 for squared loss; 1e-6 and 2000 for others, whose least value need not
        be attained).
        """
        f = self.Z.shape[1]
        columns = torch.ones(f, dtype=torch.bool, device=self.Z.device) if columns is None else columns
        A, b = (self.Z.new_zeros(self.O, f), self.Z.new_zeros(self.O)) if start is None else start
        A = torch.where(columns, A, torch.zeros_like(A))
        if self.gram is not None:
            found = self._solve_squared(self.gram, A, b, columns, steps or 20000, tolerance or 1e-9)
        else:
            found = self._solve_convex(A, b, columns, steps or 2000, tolerance or 1e-6)
        before = self.value(A, b)
        return found if found.value <= before else Solution(A, b, before, None)

    def _smooth(self, A: Tensor, b: Tensor, Z: Tensor | None = None) -> Tensor:
        return self.losses((self.Z if Z is None else Z) @ A.T + b, self.y).mean()

    def _norm(self, A: Tensor, b: Tensor) -> Tensor:
        return A.abs().sum() + (b.abs().sum() if self.bias == "penalised" else 0.0)

    # -- squared loss, from second moments

    def _solve_squared(
        self, gram: _Gram, A: Tensor, b: Tensor, columns: Tensor, steps: int, tolerance: float
    ) -> Solution:
        moments = gram.on(columns, b if self.bias == "none" else None)
        W = torch.cat([A[:, columns], b[:, None]], 1) if self.bias == "penalised" else A[:, columns]
        penalty = self.kappa * self.O
        if penalty == 0:
            G = in_range(moments.G, "squares of the features")
            W, gap = (torch.linalg.pinv(G, hermitian=True) @ moments.C).T, 0.0
        else:
            W = _lasso(moments, W, penalty, steps, tolerance)
            gap = moments.gap(W, penalty) / self.O
        out = torch.zeros_like(A)
        out[:, columns] = W[:, : int(columns.sum())]
        if self.bias == "penalised":
            b = W[:, -1]
        elif self.bias == "free":
            b = gram.y_mean - out @ gram.z_mean
        return Solution(out, b, self.value(out, b), max(gap, 0.0))

    # -- any convex loss

    def _solve_convex(self, A: Tensor, b: Tensor, columns: Tensor, steps: int, tolerance: float) -> Solution:
        Z = self.Z[:, columns]
        now = point = (A[:, columns], b)
        size, momentum = 1.0, 1.0
        value = last = float(self._smooth(*now, Z) + self.kappa * self._norm(*now))
        for step in range(1, steps + 1):
            leaves = [v.detach().requires_grad_() for v in point]
            smooth = self._smooth(leaves[0], leaves[1], Z)
            grads = list(torch.autograd.grad(smooth, leaves))
            if self.bias == "none":
                grads[1] = torch.zeros_like(b)
            new, reached, size = self._step(Z, point, grads, float(smooth.detach()), 1.1 * size)
            if reached > value:  # restart: from the last point, without momentum
                if momentum == 1.0:
                    break
                point, momentum = now, 1.0
                continue
            after = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = [q + (momentum - 1) / after * (q - p) for p, q in zip(now, new, strict=True)]
            now, point, momentum, value = new, (ahead[0], ahead[1]), after, reached
            if step % _PATIENCE == 0:
                if last - value <= tolerance * abs(last):
                    break
                last = value
        out = torch.zeros_like(A)
        out[:, columns] = now[0]
        return Solution(out, now[1], value, None)

    def _step(
        self, Z: Tensor, point: tuple[Tensor, Tensor], grads: list[Tensor], smooth: float, size: float
    ) -> tuple[tuple[Tensor, Tensor], float, float]:
        """A proximal step, halved until the quadratic model is above the loss; with the value there and its length."""
        while True:
            A, b = (p - size * g for p, g in zip(point, grads, strict=True))
            A = _shrink(A, size * self.kappa)
            if self.bias == "penalised":
                b = _shrink(b, size * self.kappa)
            moves = [q - p for p, q in zip(point, (A, b), strict=True)]
            slopes = [float((g * d).sum() + d.square().sum() / (2 * size)) for g, d in zip(grads, moves, strict=True)]
            reached = float(self._smooth(A, b, Z))
            if reached <= smooth + sum(slopes) + 1e-12 * abs(smooth) or size < 1e-15:
                return (A, b), reached + self.kappa * float(self._norm(A, b)), size
            size /= 2


@dataclass(frozen=True, eq=False)
class _Moments:
    """G = Z^T Z / N [f, f], C = Z^T y / N [f, O] and s = sum(y^2) / N [O]: all that squared error knows of the data."""

    G: Tensor
    C: Tensor
    s: Tensor

    def gap(self, W: Tensor, penalty: float) -> float:
        """How far loss + penalty ||W||_1 is from the dual value of the scaled residuals, summed over the outputs.

        For the residual r = y - Z w of an output, nu = c 2 r / N with c <= 1 such that |Z^T nu| <= penalty is feasible,
        and its dual value is nu y - N |nu|^2 / 4.
        """
        if not W.shape[1]:  # no feature is left, and nothing to choose
            return 0.0
        cross, square = (W * self.C.T).sum(1), (W @ self.G * W).sum(1)
        rr, ry = self.s - 2 * cross + square, self.s - cross
        pull = 2 * (self.C.T - W @ self.G).abs().amax(1)
        c = (penalty / pull.clamp_min(1e-300)).clamp_max(1.0)
        return float(((1 + c**2) * rr - 2 * c * ry + penalty * W.abs().sum(1)).sum())

    def value(self, W: Tensor, penalty: float) -> float:
        """Loss + penalty ||W||_1, summed over the outputs."""
        return float((W @ self.G * W).sum() - 2 * (W * self.C.T).sum() + self.s.sum() + penalty * W.abs().sum())


class _Gram:
    """The second moments of features and targets, centred where the bias is free."""

    def __init__(self, Z: Tensor, y: Tensor, bias: str) -> None:
        self.z_mean, self.y_mean = Z.mean(0), y.mean(0)
        self.extra = bias == "penalised"
        if bias == "free":
            Z, y = Z - self.z_mean, y - self.y_mean
        elif self.extra:
            Z = torch.cat([Z, Z.new_ones(len(Z), 1)], 1)
        self.Z, self.y = Z, y
        self.G, self.C = Z.T @ Z / len(Z), Z.T @ y / len(Z)

    def on(self, columns: Tensor, b: Tensor | None) -> _Moments:
        """The moments of some features, the targets less a fixed bias."""
        if self.extra:
            columns = torch.cat([columns, columns.new_ones(1)])
        C, s = self.C, self.y.square().mean(0)
        if b is not None:
            C = C - self.Z.mean(0)[:, None] * b
            s = (self.y - b).square().mean(0)
        return _Moments(self.G[columns][:, columns], C[columns], s)


def _lasso(moments: _Moments, W: Tensor, penalty: float, steps: int, tolerance: float) -> Tensor:
    """The least of loss + penalty ||W||_1 over W [O, f]: FISTA with restarts, each output with its own momentum."""
    if W.shape[1] == 0:
        return W
    size = 0.5 / max(float(torch.linalg.eigvalsh(moments.G)[-1]), 1e-300)
    now, point, momentum = W, W, 1.0
    for step in range(1, steps + 1):
        new = _shrink(point + 2 * size * (moments.C.T - point @ moments.G), size * penalty)
        if float(((point - new) * (new - now)).sum()) > 0:  # the momentum points uphill
            momentum = 1.0
        after = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        point, now, momentum = new + (momentum - 1) / after * (new - now), new, after
        if step % _PATIENCE == 0:
            exact = _polish(moments, now, penalty)
            if moments.value(exact, penalty) < moments.value(now, penalty):
                now = point = exact
                momentum = 1.0
            if moments.gap(now, penalty) <= tolerance * moments.value(now, penalty):
                break
    return now


def _polish(moments: _Moments, W: Tensor, penalty: float) -> Tensor:
    """The stationary point with the support and signs of W, where it has these signs; else W, output by output."""
    out = W.clone()
    for o, row in enumerate(W):
        support = row != 0
        signs = row[support].sign()
        if len(signs):
            target = moments.C[support, o] - penalty / 2 * signs
            G = moments.G[support][:, support].cpu()
            found = torch.linalg.lstsq(G, target[:, None].cpu(), driver="gelsd").solution[:, 0].to(out)
            if bool((found.sign() == signs).all()):
                out[o, support] = found
    return out


def _shrink(W: Tensor, by: float) -> Tensor:
    return functional.softshrink(W, by)
