"""Slow, obviously right versions of what the library computes quickly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


def loss_one_by_one(module: nn.Module, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> float:
    """The mean cross-entropy, one example at a time."""
    values = [
        F.cross_entropy(functional_call(module, dict(params), (x[i : i + 1],)), y[i : i + 1]) for i in range(len(y))
    ]
    return float(torch.stack(values).double().mean())


def bezier(control: Sequence[Tensor], t: float) -> Tensor:
    """The Bernstein form."""
    n = len(control) - 1
    return sum(
        (comb(n, i) * t**i * (1 - t) ** (n - i) * c for i, c in enumerate(control)), torch.zeros_like(control[0])
    )


def masked_perceptron(params: Mapping[str, Tensor], x: Tensor, masks: Mapping[int, Tensor], scale: float) -> Tensor:
    """A ReLU perceptron whose hidden layer l has its outputs multiplied by masks[l], and its last layer by `scale`.

    The output bias is not scaled.
    """
    names = [k for k in params if k.endswith("weight")]
    h = x
    for l, name in enumerate(names, start=1):
        bias = params.get(name.replace("weight", "bias"), torch.zeros(1, dtype=x.dtype))
        if l == len(names):
            return scale * h @ params[name].T + bias
        h = F.relu(h @ params[name].T + bias) * masks.get(l, torch.ones(1, dtype=x.dtype))
    raise AssertionError


def polyline_length(points: Sequence[Tensor]) -> float:
    return float(sum((p - q).norm() for p, q in zip(points, points[1:], strict=False)))
