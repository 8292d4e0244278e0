"""A walk through the weights of a chain by the lemmas of Nguyen 2019, one end of a path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isthmus.connectors.moves.units import Label, WeightWalk
from isthmus.connectors.sublevel.columns import (
    Unreachable,
    Vertex,
    full_rank_features,
    independent_units,
    kinks,
    least_squares,
    replace_features,
)
from isthmus.evaluate.level_network import RANK, LevelNetwork, singular_values
from isthmus.params import Params, cast, in_range, share
from isthmus.paths import Curve, LevelCurve, LevelLayer, Segment
from isthmus.paths.full_rank import RowSolver, orthogonal_complement
from isthmus.paths.level_curve import leaky, preimage
from isthmus.structure.activations import design
from isthmus.structure.chain import Weights

__all__ = ["Trail"]

_SLOPE = 0.25
"""Of new units behind which a PReLU has one slope per unit: torch's own."""


class Trail:
    """Vertices in float64 from one point on; `segments` gives them in the type of that point.

    Between some vertices the way is a level curve: ``curves[i]`` says of which layers segment i is.
    """

    def __init__(self, net: LevelNetwork, start: Params, name: str = "") -> None:
        self.net, self.start, self.name = net, start, name
        self.walk = WeightWalk(net.chain, cast(start, torch.float64))
        self.curves: dict[int, range] = {}
        self.conditions: dict[str, float] = {}

    @property
    def params(self) -> Params:
        """The last vertex, in float64."""
        return self.walk.points[-1]

    @property
    def labels(self) -> list[Label]:
        """One per segment."""
        return self.walk.labels

    # -- reading and writing layers

    def columns(self, l: int) -> Tensor:
        """U [d (+ 1), n_l]: layer l with one column per unit, its bias last."""
        now = self.walk.now
        return torch.cat([now.A[l].flatten(1), now.b[l]], 1).T

    def outgoing(self, l: int) -> Tensor:
        """V [n_l, k, p]: the weights of layer l + 1."""
        return self.walk.now.A[l + 1].permute(1, 2, 0)

    def reader(self, l: int) -> Callable[[Tensor], Tensor]:
        """U -> the features of layer l as layer l + 1 reads them, on what enters layer l now."""
        chain, h, like = self.net.chain, self.net.features(self.params, l - 1), self.params

        def read(U: Tensor) -> Tensor:
            params = chain.write(self._rows(l, U), like)
            parts = [chain.through(params, part, l) for part in h.split(self.net.objective.chunk)]
            return design(chain, l + 1, params, in_range(torch.cat(parts), f"features of layer {l}"))

        return read

    def _rows(self, l: int, U: Tensor) -> Weights:
        A = self.walk.now.A[l]
        d = A.shape[1] * A.shape[2]
        return Weights({l: U[:d].T.reshape(A.shape)}, {l: U[d:].T.contiguous()})

    def _write(self, l: int, vertices: Sequence[Vertex]) -> None:
        now = self.walk.now
        for v in vertices:
            rows = self._rows(l, v.U)
            now.A[l], now.b[l] = rows.A[l].contiguous(), rows.b[l]
            now.A[l + 1] = v.V.permute(2, 0, 1).contiguous()
            self._step(f"layer {l}, {v.source}", v.move)

    def _step(self, source: str, move: str) -> None:
        self.walk.step(f"{self.name}{source}", move)

    # -- the lemmas

    def make_features_full(self, l: int, generator: torch.Generator, *, limit: float, demand: bool = True) -> None:
        """Lemma 5.2 for layer l, where its features lack full row rank or are worse conditioned than `limit`."""
        inputs = self.net.design(self.params, l).flatten(1)
        U, bias = self.columns(l), self.net.has_bias(l)
        scale = float((inputs @ U[: inputs.shape[1]]).std()) or 1.0

        def make(m: int) -> Tensor:
            new = kinks(inputs, bias, m, scale, generator)
            return torch.cat([new, new.new_full((len(U) - len(new), m), _SLOPE)])

        try:
            found = full_rank_features(self.reader(l), U, self.outgoing(l), make, limit=limit, demand=demand)
        except Unreachable as e:
            why = "" if bias else "; the layer has no biases, by which samples become independent"
            raise Unreachable(f"layer {l} {self.name.strip(', ') or 'at a'}: {e}{why}") from None
        self._write(l, found)

    def adopt(self, l: int, goal: Trail) -> None:
        """Lemma 5.3 for layer l: take over the layer of `goal`; all layers before it agree."""
        self._write(l, replace_features(self.reader(l), self.columns(l), self.outgoing(l), goal.columns(l)))
        # the very tensors, so that the layers are equal bit for bit
        self.walk.now.A[l], self.walk.now.b[l] = goal.walk.now.A[l], goal.walk.now.b[l]

    def note_condition(self, l: int) -> None:
        """Remember the condition number of what layer l + 1 reads."""
        s = singular_values(self.net.data(self.params, l))
        self.conditions[f"F_{l}"] = float(s[0] / s[-1])

    def make_weights_full(self, k: int) -> None:
        """Lemma 3.4 for the layers above k: W_l, l >= k + 2, get full column rank, and the outputs stay.

        Where W_l has rank r < n_l, layer k + 1 moves on a level curve until the features of layer l - 1 vanish on all
        but r units whose rows of W_l are independent; then the other rows of W_l may change.
        """
        for l in range(k + 2, self.net.L + 1):
            W = self.walk.now.A[l][:, :, 0].T
            s = singular_values(W)
            if float(s[-1]) > 1e2 * RANK * float(s[0]):
                self.conditions[f"W_{l}"] = float(s[0] / s[-1])
                continue
            rank, scale = int((s > 1e2 * RANK * s[0]).sum()), float(s[0]) or 1.0
            held, rest = _independent_rows(W, rank)
            F = self.net.features(self.params, l - 1)
            A = torch.zeros_like(F)
            # W_rest = E W_held
            A[:, held] = F[:, held] + F[:, rest] @ least_squares(W[held].T, W[rest].T).T
            self.level(k, l - 1, A, f"Lemma 3.4: clear the features of {len(rest)} units of layer {l - 1}")
            missing = W.shape[1] - rank
            new = W.clone()
            new[rest[:missing]] = scale * orthogonal_complement(W[held].T).T
            self.walk.now.A[l] = new.T[:, :, None].contiguous()
            self._step(f"Lemma 3.4: full rank for layer {l}", "v")
            s = singular_values(new)
            self.conditions[f"W_{l}"] = float(s[0] / s[-1])

    def level(self, k: int, top: int, A: Tensor, source: str) -> None:
        """Move layer k + 1 along a level curve (a line for top = k + 1 = L) until layer `top` has the features A."""
        W, b, slopes = self._stack(k, top)
        near, h = [], leaky(self.net.data(self.params, k) @ self.columns(k + 1), slopes[0])
        for w, c, slope in zip(W, b, slopes[1:], strict=True):
            near.append(h)
            h = leaky(h @ w + c, slope)
        self.steer(k, preimage(A, W, b, slopes, near), range(k + 1, top + 1), source)

    def steer(self, k: int, P: Tensor, moving: range, source: str) -> None:
        """Give layer k + 1 the pre-activations P, by the least change of its weights, and go there."""
        x, U, now = self.net.data(self.params, k), self.columns(k + 1), self.walk.now
        rows = self._rows(k + 1, U + RowSolver(x).solve(P - x @ U))
        now.A[k + 1], now.b[k + 1] = rows.A[k + 1].contiguous(), rows.b[k + 1]
        self.follow(moving, source)

    def follow(self, moving: range, source: str) -> None:
        """Go on a level curve of some layers to the weights now, or on a line where the curve is one."""
        if len(moving) == 1 and self.slopes(moving) == [1.0]:
            self._step(source, "a" if moving.start == self.net.L else "v")
            return
        self.curves[len(self.labels)] = moving
        self._step(source, "level curve")

    def _stack(self, k: int, top: int) -> tuple[list[Tensor], list[Tensor], list[float]]:
        now = self.walk.now
        W = [now.A[l][:, :, 0].T for l in range(k + 2, top + 1)]
        b = [now.b[l].sum(1) for l in range(k + 2, top + 1)]
        return W, b, self.slopes(range(k + 1, top + 1))

    def slopes(self, layers: range) -> list[float]:
        """The slopes behind some layers; 1 behind the last layer of the network."""
        return [1.0 if l == self.net.L else float(self.net.activations[l].slope or 0.0) for l in layers]

    # -- the result

    def segments(self) -> list[Segment]:
        """The segments in the type of the start, which they start from bit for bit."""
        dtype = next(v.dtype for v in self.start.values() if v.is_floating_point())
        points = [self.start]
        for p in self.walk.points[1:]:
            points.append(share(cast(p, dtype), points[-1]))
        return [self._segment(i, points[i], points[i + 1]) for i in range(len(points) - 1)]

    def _segment(self, i: int, p: Params, q: Params) -> Segment:
        if i not in self.curves:
            return Curve((p, q))
        return self.curve(p, q, self.curves[i])

    def curve(self, p: Params, q: Params, moving: range) -> LevelCurve:
        """The level curve of some layers between two points, on the data as they enter the first of them at `p`."""
        x = self.net.design(cast(p, torch.float64), moving.start).flatten(1)
        layers = []
        for l, slope in zip(moving, self.slopes(moving), strict=True):
            layer = self.net.chain.layer(l)
            layers.append(LevelLayer(layer.weight, layer.vectors[0] if layer.vectors else None, slope))
        return LevelCurve(p, q, x, tuple(layers))


def _independent_rows(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Units whose rows of W span all rows, and the others."""
    order, _ = independent_units(W.T[:, :, None])
    return order[:rank].sort().values, order[rank:].sort().values
