"""The quantities of noise stability on one batch of examples after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from isthmus.stability.noise.jacobian import Jacobian, Layered, spectral_norms

_BASIS = 16
"""Lanczos vectors held per example."""

_Table = dict[int, Tensor]
_Pairs = dict[tuple[int, int], Tensor]


@dataclass(eq=False)
class Piece:
    """What was found on some examples; each tensor has the examples on its last axis but for the smoothness by time."""

    output_norm: Tensor
    layer_cushion: _Table = field(default_factory=dict)
    activation_contraction: _Table = field(default_factory=dict)
    interlayer_cushion: _Pairs = field(default_factory=dict)
    jacobian_norm: _Pairs = field(default_factory=dict)
    smoothness_draws: _Pairs = field(default_factory=dict)
    smoothness_times: _Pairs = field(default_factory=dict)
    concentration: _Table = field(default_factory=dict)
    column_share: _Table = field(default_factory=dict)
    accuracy: float = 0.0

    @staticmethod
    def joined(pieces: Sequence[Piece]) -> Piece:
        """The same over the examples of all pieces."""

        def cat(name: str) -> dict:
            tables = [getattr(piece, name) for piece in pieces]
            return {k: torch.cat([t[k] for t in tables], -1) for k in tables[0]}

        names = ("layer_cushion", "activation_contraction", "interlayer_cushion", "jacobian_norm")
        first = pieces[0]
        return Piece(
            output_norm=torch.cat([piece.output_norm for piece in pieces]),
            **{name: cat(name) for name in (*names, "smoothness_draws", "concentration")},
            smoothness_times={
                k: torch.stack([piece.smoothness_times[k] for piece in pieces]).min(0).values
                for k in first.smoothness_times
            },
            column_share=first.column_share,
            accuracy=max(piece.accuracy for piece in pieces),
        )


def _norm(x: Tensor) -> Tensor:
    """The Euclidean norm of every example."""
    return x.flatten(1).norm(dim=1)


def _ratio(top: Tensor, bottom: Tensor, empty: float) -> Tensor:
    """top / bottom, and `empty` where both are zero: the inequality then holds for every constant."""
    return torch.where((top == 0) & (bottom == 0), torch.full_like(top, empty), top / bottom)


@dataclass(frozen=True, eq=False)
class Work:
    """The measurement of one network; `kept` holds delta of Algorithm 1 per draw and hidden layer."""

    net: Layered
    kept: Sequence[Mapping[int, Tensor]]
    times: Sequence[float]
    tolerance: float
    seed: int
    progress: Callable[[str, int, int], None]

    @property
    def d(self) -> int:
        """The number of layers."""
        return self.net.d

    def chunk(self, one: Tensor, memory: int, bytes_each: int) -> int:
        """How many examples fit in `memory` bytes: Lanczos vectors of the larger pairs, and the saved passes."""
        with torch.no_grad():
            sizes = [v.numel() for v in self.net.onward(self.net.apply(one, 1), 1, self.d)]
        largest = sorted([self.net.apply(one, 1).numel(), *sizes])[-2]
        each = (_BASIS + 8) * largest * one.element_size() + (self.d + 4) * bytes_each
        return max(1, memory // each)

    def measure(self, x: Tensor, k: int, total: int) -> Piece:
        """Everything on the examples `x`, batch k of `total`."""
        pairs = [(i, j) for i in range(1, self.d) for j in range(i + 1, self.d + 1)]
        steps = len(pairs) + len(self.kept)
        done = k * steps

        def count() -> None:
            nonlocal done
            done += 1
            self.progress("measuring noise stability", done, total * steps)

        pre, act = self._forward(x)
        out = Piece(output_norm=_norm(pre[self.d]))
        self._layers(out, pre, act)
        for i in range(1, self.d + 1):
            out.interlayer_cushion[i, i] = torch.ones_like(out.output_norm)
            out.jacobian_norm[i, i] = torch.ones_like(out.output_norm)
        for i, j in pairs:
            self._pair(out, pre, i, j)
            count()
        self._smoothness(out, pre, act, count)
        return out

    def _forward(self, x: Tensor) -> tuple[_Table, _Table]:
        """x^i for i = 1..d, and phi(x^i) for i = 0..d-1."""
        pre, act = {}, {0: x}
        with torch.no_grad():
            for i in range(1, self.d + 1):
                pre[i] = self.net.apply(act[i - 1], i)
                if i < self.d:
                    act[i] = self.net.phi(pre[i], i)
        return pre, act

    def _layers(self, out: Piece, pre: _Table, act: _Table) -> None:
        for i in range(1, self.d + 1):
            columns = self.net.column_squares(act[i - 1], i)
            out.layer_cushion[i] = _ratio(_norm(pre[i]), columns.sum().sqrt() * _norm(act[i - 1]), inf)
            if i > 1:
                out.column_share[i] = (columns / columns.sum()).sqrt()
            if i < self.d:
                out.activation_contraction[i] = _ratio(_norm(pre[i]), _norm(act[i]), 0.0)
                out.concentration[i] = torch.zeros_like(out.output_norm)

    def _pair(self, out: Piece, pre: _Table, i: int, j: int) -> None:
        jacobian = Jacobian(lambda z: self.net.onward(z, i, j)[-1], pre[i])
        value, error = spectral_norms(jacobian, pre[i], tolerance=self.tolerance, seed=self.seed, basis=_BASIS)
        out.jacobian_norm[i, j] = value
        out.interlayer_cushion[i, j] = _ratio(_norm(pre[j]), value * _norm(pre[i]), inf)
        out.accuracy = max(out.accuracy, float(error.max()))

    def _smoothness(self, out: Piece, pre: _Table, act: _Table, count: Callable[[], None]) -> None:
        jacobians = {i: Jacobian(lambda z, i=i: self.net.onward(z, i, self.d), pre[i]) for i in range(2, self.d)}
        by_draw: dict[tuple[int, int], list[Tensor]] = {}
        for delta in self.kept:
            # [2 inequalities, times, examples] for each pair of layers
            found = [self._noisy(out, pre, act, jacobians, delta, t) for t in self.times]
            for key in found[0]:
                by_draw.setdefault(key, []).append(torch.stack([f[key] for f in found], 1))
            count()
        for key, rows in by_draw.items():
            rho = torch.stack(rows)
            out.smoothness_draws[key] = rho.amin((1, 2))
            out.smoothness_times[key] = rho.amin(3)

    @torch.no_grad()
    def _noisy(
        self,
        out: Piece,
        pre: _Table,
        act: _Table,
        jacobians: dict[int, Jacobian],
        delta: Mapping[int, Tensor],
        t: float,
    ) -> _Pairs:
        """rho of both inequalities of Definition 3, [2, examples], at one draw and one t."""
        rho: _Pairs = {}
        h = act[1]
        for i in range(2, self.d + 1):
            units = h.reshape(len(h), self.net.widths[i - 1], -1)
            spread = _ratio(units.norm(dim=2).amax(1), _norm(h), 0.0) * units.shape[1] ** 0.5
            out.concentration[i - 1] = torch.maximum(out.concentration[i - 1], spread)
            # scaling the columns of A_i is scaling the units that it reads
            noised = (units * (t + (1 - t) * delta[i - 1])[:, None]).reshape(h.shape)
            z = self.net.apply(noised, i)
            if i == self.d:
                break
            both = [self._gaps(pre, jacobians[i], v, i) for v in (z, self.net.apply(h, i))]
            rho |= {(i, j): torch.stack([both[0][j], both[1][j]]) for j in both[0]}
            h = self.net.phi(z, i)
        return rho

    def _gaps(self, pre: _Table, jacobian: Jacobian, z: Tensor, i: int) -> _Table:
        """The largest rho with ||M(z) - x^j - J (z - x^i)|| <= ||z - x^i|| ||x^j|| / (rho ||x^i||), for j > i.

        Where no unit is switched M is affine, and what is left of the difference is rounding: it counts as zero.
        """
        step = z - pre[i]
        linear, exact = jacobian.push(step), self.net.onward(z, i, self.d)
        out = {}
        for j in range(i + 1, self.d + 1):
            there = exact[j - i - 1]
            gap = _norm(there - pre[j] - linear[j - i - 1])
            rounding = 16 * torch.finfo(z.dtype).eps * (_norm(there) + _norm(pre[j]))
            gap = torch.where(gap <= rounding, 0.0, gap)
            out[j] = _ratio(_norm(step) * _norm(pre[j]), _norm(pre[i]) * gap, inf)
        return out
