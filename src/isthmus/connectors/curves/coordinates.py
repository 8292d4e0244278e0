"""The tensors of a curve that are trained, as one vector for each control point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import UnsupportedError
from isthmus.objective import Objective
from isthmus.objective.skeleton import ties_of
from isthmus.params import Params, lerp

LEAST = 1e-3
"""No unit of a tensor is smaller than this part of the largest one."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The parameters that differ at the ends `a` and `b`; all other tensors are interpolated, or equal anyway.

    `names`: one for each tensor that is trained. `tied`: the other names of these tensors. `units`: what a step of 1 is
    in the entries of each tensor, 1 where there are none.
    """

    a: Params
    b: Params
    names: tuple[str, ...]
    tied: Mapping[str, str]
    units: Tensor | None = None

    @classmethod
    def between(cls, objective: Objective, a: Params, b: Params) -> Coordinates:
        """Errors: ``UnsupportedError`` for complex parameters."""
        ties = ties_of(objective.skeleton)
        names = tuple(k for k in objective.parameter_names if k not in ties and a[k] is not b[k])
        if any(a[k].is_complex() for k in names):
            raise UnsupportedError("a trained curve", "complex weights", "Linear() or StringSampling()")
        return cls(a, b, names, {k: own for k, own in ties.items() if own in names})

    def in_distances(self) -> Coordinates:
        """The same in units of the root mean square distance of the ends, tensor by tensor."""
        units = [unit.expand(self.a[k].numel()) for k, unit in self.distances.items()]
        return replace(self, units=torch.cat(units)) if units else self

    @cached_property
    def distances(self) -> Params:
        """The root mean square distance of the ends, tensor by tensor, none much smaller than the largest."""
        both = [(self.a[k].detach(), self.b[k].detach()) for k in self.names]
        far = [(q - p).double().square().mean().sqrt() for p, q in both]
        least = LEAST * max(map(float, far), default=1.0)
        return {k: d.clamp(min=least).to(self.a[k].dtype) for k, d in zip(self.names, far, strict=True)}

    def flat(self, params: Params) -> Tensor:
        """The trained tensors of a point as one vector, a copy."""
        vector = torch.cat([params[k].detach().flatten() for k in self.names] or [torch.empty(0)])
        return vector if self.units is None else vector / self.units

    def views(self, vector: Tensor) -> Params:
        """The trained tensors by name, as views of the vector that carry gradients to it."""
        vector = vector if self.units is None else vector * self.units.to(vector.dtype)
        parts = vector.split([self.a[k].numel() for k in self.names])
        out = {k: v.view(self.a[k].shape) for k, v in zip(self.names, parts, strict=True)}
        return out | {k: out[own] for k, own in self.tied.items()}

    def rest(self, t: float) -> Params:
        """The tensors that are not trained, at t."""
        return lerp(*self._rest, t)

    @cached_property
    def _rest(self) -> tuple[Params, Params]:
        trained = {*self.names, *self.tied}
        a, b = ({k: v for k, v in p.items() if k not in trained} for p in (self.a, self.b))
        return a, b

    def point(self, vector: Tensor, t: float) -> Params:
        """All tensors of the point whose trained ones are `vector`, in the order of the ends."""
        found = {**self.rest(t), **self.views(vector)}
        return {k: found[k] for k in self.a}


class _Combine(torch.autograd.Function):
    """sum_i weights[i] points[i] in one pass over each, in another precision if asked; weight 0 gets no gradient.

    The weights add up to 1: the sum is a mean, to which one point after the other is added."""

    @staticmethod
    def forward(ctx: Any, weights: Sequence[float], dtype: torch.dtype, *points: Tensor) -> Tensor:
        ctx.weights, ctx.dtype = weights, points[0].dtype
        (seen, total), *rest = ((w, p) for w, p in zip(weights, points, strict=True) if w)
        for i, (weight, point) in enumerate(rest):
            seen += weight
            total = total.lerp_(point, weight / seen) if i else total.lerp(point, weight / seen)
        return (total if rest else total.clone()).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].to(ctx.dtype)
        needed = zip(ctx.weights, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(grad * w if w and need else None for w, need in needed)


def combine(weights: Sequence[float], points: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The vector sum_i weights[i] points[i] in `dtype`; a point of weight 0 gets no gradient, not one of zeros.

    >>> points = [torch.tensor([v], requires_grad=True) for v in (1.0, 3.0, 5.0)]
    >>> combine([0.5, 0.5, 0.0], points, torch.float64).backward()
    >>> [p.grad for p in points]
    [tensor([0.5000]), tensor([0.5000]), None]
    """
    return _Combine.apply(weights, dtype, *points)
