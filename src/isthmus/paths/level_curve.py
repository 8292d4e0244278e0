"""Curves in weight space along which the outputs on given data are affine in t, in closed form (Nguyen 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.params import Params, cast, check_like, distance, share
from isthmus.paths.full_rank import FullRank, RowSolver, left_divide, ones_column
from isthmus.paths.segment import Segment, check_t
from isthmus.shown import one_line

__all__ = ["LevelCurve", "LevelLayer", "leaky", "preimage"]


@one_line
@dataclass(frozen=True)
class LevelLayer:
    """One linear layer of a level curve: the names of its tensors, and the activation behind it.

    The activation is z for z >= 0 and `slope` z for z < 0, slope > 0 (LeakyReLU; 1 where there is none).

    `weight`, `bias`: the names of its tensors; None without a bias.
    """

    weight: str
    bias: str | None
    slope: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.slope < float("inf"):
            raise InputError("slope", expected="a number > 0, for an activation with an inverse", got=self.slope)


def leaky(z: Tensor, slope: float) -> Tensor:
    """z where z >= 0, slope z elsewhere."""
    return z if slope == 1 else torch.where(z >= 0, z, slope * z)


def _unleaky(z: Tensor, slope: float) -> Tensor:
    """The inverse of ``leaky``.

    >>> _unleaky(leaky(torch.tensor([-2.0, 3.0]), 0.25), 0.25)
    tensor([-2.,  3.])
    """
    return z if slope == 1 else torch.where(z >= 0, z, z / slope)


def preimage(
    A: Tensor, W: Sequence[Tensor], b: Sequence[Tensor], slopes: Sequence[float], near: Sequence[Tensor] | None = None
) -> Tensor:
    """The map h of Lemma 3.3 up to its last step: pre-activations of layer 1 that give the outputs A at layer k.

    A [N, n_k]; for the layers 2..k: W [n_{l-1}, n_l] of full column rank and b [n_l]; `slopes` of the layers 1..k;
    returns sigma^{-1}(B_1) [N, n_1]. Down from layer k, B_{l-1} = F_{l-1} + (sigma^{-1}(B_l) - 1 b_l^T - F_{l-1} W_l)
    W_l^+ is, of all that layer l maps to B_l, the features nearest to `near`, F_1..F_{k-1} (the paper has F = 0, which
    loses digits: the whole of B passes through W^+, not its change alone).

    >>> W, b = torch.tensor([[2.0], [0.0]]), torch.tensor([1.0])
    >>> preimage(torch.tensor([[5.0]]), [W], [b], [0.1, 1.0])
    tensor([[2., 0.]])
    """
    B = _unleaky(A, slopes[-1])
    for l in reversed(range(len(W))):
        R = B.new_zeros(len(B), len(W[l])) if near is None else near[l]
        B = _unleaky(R + left_divide(B - b[l] - R @ W[l], W[l]), slopes[l])
    return B


@final
@one_line
@dataclass(frozen=True, eq=False)
class LevelCurve(Segment):
    """A curve on which the features of layer k on the data `x` are (1 - s) F_k + s F_k', s from `lo` to `hi`.

    `origin` and `goal` (s = 0 and 1) differ in nothing but `layers`, the layers 1..k of a perceptron that `x` [N, n_0]
    enters; F and F' are its features there. Layers 2..k follow full-rank paths and straight lines (biases), and
    layer 1 follows with them: (1-s) U + s U' + [x, 1]^+ (sigma^{-1}(B_1) - [x, 1] ((1-s) U + s U')) with B_1 from
    ``preimage``, near the interpolated features. In real arithmetic this is exact all along and meets both ends. If
    layer k is the last one, the outputs are affine in s, and a convex loss is at most the larger end's.

    Needs rank [x, 1] = N and n_1 > ... > n_k (or layers that do not move). Points are computed in float64 and rounded
    to the type of the ends. Costs one QR factorisation of [x, 1] and one pass over the data per point. Errors: other
    tensors that differ, shapes that do not fit, layers without full rank. Source: Nguyen 2019, Theorem 3.2, with
    the recursion of Lemma 3.3 applied to changes, which keeps digits.

    >>> point = lambda w, v: {"w": torch.tensor([[w], [0.0]]).double(), "v": torch.tensor([[v, 1.0]]).double()}
    >>> layers = (LevelLayer("w", None, 0.5), LevelLayer("v", None))
    >>> curve = LevelCurve(point(1.0, 2.0), point(4.0, -1.0), torch.ones(1, 1), layers)
    >>> round(curve.outputs(curve.at(0.5)).item(), 9), curve.affine(0.5).item()
    (-1.0, -1.0)
    """

    origin: Params
    goal: Params
    x: Tensor
    layers: tuple[LevelLayer, ...]
    lo: float = 0.0
    hi: float = 1.0
    _shared: _Work | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_like(self.goal, self.origin, "goal")
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "goal", share(self.goal, self.origin))
        if self.x.dtype != torch.float64 or self.x.requires_grad:
            object.__setattr__(self, "x", self.x.detach().double())
        for name, s in (("lo", self.lo), ("hi", self.hi)):
            if not 0 <= s <= 1:
                raise InputError(name, expected="a number in [0, 1]", got=s)
        if self.lo == self.hi:
            raise InputError("hi", expected="another number than lo", got=self.hi)
        if self._shared is None:
            _check_layers(self.origin, self.goal, self.x, self.layers)
            work = _Work(self.origin, self.goal, self.x, self.layers)
            _ = work.ranks  # made now, so that a layer without full rank is refused here
            object.__setattr__(self, "_shared", work)

    @property
    def work(self) -> _Work:
        """What all parts of one curve share: features, factorisations, full-rank paths; made when first needed."""
        assert self._shared is not None  # noqa: S101
        return self._shared

    def at(self, t: float) -> Params:
        """The point at t."""
        check_t(t)
        s = self.hi if t == 1 else self.lo + (self.hi - self.lo) * t
        if s in (0, 1):
            return dict(self.goal if s else self.origin)
        return self.work.point(s)

    @property
    def start(self) -> Params:
        """The point at t = 0."""
        return self._ends[0]

    @property
    def end(self) -> Params:
        """The point at t = 1."""
        return self._ends[1]

    @property
    def length(self) -> float:
        """The length of a chain of chords, doubled in number from 32 until it changes by less than 0.1 percent."""
        return self._length

    @cached_property
    def _ends(self) -> tuple[Params, Params]:
        return self.at(0.0), self.at(1.0)

    @cached_property
    def _length(self) -> float:
        n, before, points = 32, 0.0, [self.at(k / 32) for k in range(33)]
        while True:
            chords = sum(distance(p, q) for p, q in pairwise(points))
            if n >= 512 or abs(chords - before) <= 1e-3 * chords:
                return chords
            before, n = chords, 2 * n
            points = [points[k // 2] if k % 2 == 0 else self.at(k / n) for k in range(n + 1)]

    def reversed(self) -> LevelCurve:
        """The same curve from `hi` to `lo`."""
        return replace(self, lo=self.hi, hi=self.lo)

    def split(self, t: float) -> tuple[LevelCurve, LevelCurve]:
        """Two parts of the same curve."""
        if not 0 < t < 1:
            raise InputError("t", expected="a number strictly between 0 and 1", got=t)
        middle = self.lo + (self.hi - self.lo) * t
        if middle in (self.lo, self.hi):
            raise InputError("t", expected="a number that splits the curve in floating point", got=t)
        return replace(self, hi=middle), replace(self, lo=middle)

    def outputs(self, params: Mapping[str, Tensor]) -> Tensor:
        """The features of layer k on `x` with the layers of `params`, [N, n_k] in float64."""
        W, b = self.work.read(params)
        return self.work.features(W, b)[-1]

    def affine(self, t: float) -> Tensor:
        """What the features of layer k at t are in real arithmetic, [N, n_k]."""
        s = self.hi if t == 1 else self.lo + (self.hi - self.lo) * t
        return torch.lerp(self.work.F[0][-1], self.work.F[1][-1], s)


def _check_layers(origin: Params, goal: Params, x: Tensor, layers: Sequence[LevelLayer]) -> None:
    names = [n for layer in layers for n in (layer.weight, layer.bias) if n is not None]
    if not layers or len(set(names)) < len(names) or not set(names) <= set(origin):
        raise InputError("layers", expected=f"distinct names among {sorted(origin)}", got=names)
    _check_goal(origin, goal, names)
    _check_shapes(origin, x.shape[1] if x.dim() == 2 else None, layers)
    _check_x(x, layers)


def _check_goal(origin: Params, goal: Params, names: Sequence[str]) -> None:
    if moved := [k for k, v in goal.items() if v is not origin[k] and k not in names]:
        raise InputError("goal", expected="the tensors of origin outside the layers", got=f"another {moved[0]!r}")


def _check_shapes(origin: Params, width: int | None, layers: Sequence[LevelLayer]) -> None:
    """Each layer must read what the one before gives, the first `width` features."""
    for layer in layers:
        shape = tuple(origin[layer.weight].shape)
        if len(shape) != 2 or shape[1] != width:
            raise InputError(f"origin[{layer.weight!r}]", expected=f"a matrix that reads {width} features", got=shape)
        width = shape[0]
        if layer.bias is not None and tuple(origin[layer.bias].shape) != (width,):
            raise InputError(f"origin[{layer.bias!r}]", expected=f"shape ({width},)", got=origin[layer.bias].shape)


def _check_x(x: Tensor, layers: Sequence[LevelLayer]) -> None:
    columns = x.shape[1] + (layers[0].bias is not None)
    if not 0 < len(x) <= columns:
        raise InputError("x", expected=f"1 to {columns} examples, the columns of [x, 1]", got=len(x))
    if not bool(x.isfinite().all()):
        raise InputError("x", expected="finite numbers", got="NaN or infinities")


@dataclass(eq=False)
class _Work:
    """The parts of a level curve that do not depend on t. Weights as in the paper: W_l [n_{l-1}, n_l], l = 1..k."""

    origin: Params
    goal: Params
    x: Tensor
    layers: tuple[LevelLayer, ...]

    def read(self, params: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """W_l and b_l in float64; zeros for a missing bias."""
        wide = cast({n: params[n] for layer in self.layers for n in (layer.weight, layer.bias) if n}, torch.float64)
        W = [wide[layer.weight].T for layer in self.layers]
        none = self.x.new_zeros(())
        b = [none.expand(w.shape[1]) if q.bias is None else wide[q.bias] for w, q in zip(W, self.layers, strict=True)]
        return W, b

    def features(self, W: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
        """F_1..F_k."""
        out = [self.x]
        for w, c, layer in zip(W, b, self.layers, strict=True):
            out.append(leaky(out[-1] @ w + c, layer.slope))
        return out[1:]

    @cached_property
    def ends(self) -> tuple[tuple[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]:
        return self.read(self.origin), self.read(self.goal)

    @cached_property
    def F(self) -> tuple[list[Tensor], list[Tensor]]:
        """The features of both ends."""
        first, last = (self.features(W, b) for W, b in self.ends)
        return first, last

    @cached_property
    def ranks(self) -> list[FullRank]:
        """The paths of W_2..W_k."""
        return [FullRank(p, q) for p, q in zip(self.ends[0][0][1:], self.ends[1][0][1:], strict=True)]

    @cached_property
    def solver(self) -> RowSolver:
        """[x, 1]^+, or x^+ where layer 1 has no bias."""
        return RowSolver(ones_column(self.x, self.layers[0].bias is not None))

    def point(self, s: float) -> Params:
        """The point at s. Layers 2..k are rounded to the type of the ends first, so that layer 1 makes up for it."""
        dtype = self.origin[self.layers[0].weight].dtype
        b0, b1 = (b for _, b in self.ends)
        W = [rank.at(s).to(dtype) for rank in self.ranks]
        b = [torch.lerp(p, q, s).to(dtype) for p, q in zip(b0[1:], b1[1:], strict=True)]
        F = [torch.lerp(p, q, s) for p, q in zip(*self.F, strict=True)]
        slopes = [layer.slope for layer in self.layers]
        B = preimage(F[-1], [w.double() for w in W], [c.double() for c in b], slopes, F[:-1])
        U0, U1 = (torch.cat([w[0], c[0][None]])[: self.solver.M.shape[1]] for w, c in self.ends)
        U = torch.lerp(U0, U1, s)
        U = U + self.solver.solve(B - self.solver.M @ U)
        n = self.x.shape[1]
        return self._with([U[:n].to(dtype), *W], [U[-1].to(dtype), *b])

    def _with(self, W: Sequence[Tensor], b: Sequence[Tensor]) -> Params:
        """The parameters with these weights and, where a layer has one, biases."""
        out = dict(self.origin)
        for layer, w, c in zip(self.layers, W, b, strict=True):
            out[layer.weight] = w.T.contiguous()
            if layer.bias is not None:
                out[layer.bias] = c.contiguous()
        return share(out, self.origin)
