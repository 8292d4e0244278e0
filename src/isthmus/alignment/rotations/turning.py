"""The three ways in which units turn: by any rotation, by a phase in a plane, or into another order."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from isthmus.alignment.assignment import assignment, inner_sums
from isthmus.alignment.rotations.frame import Turn

_GAIN = 1e-10
"""A rotation must gain more than so much of the largest inner product: where any will do, none is made."""


def best(turn: Turn, grams: Tensor) -> Tensor:
    """The matrices with the largest inner product with `grams`, [keys..., units, units]; the identity at no gain."""
    if turn.kind == "rotation":
        return polar(grams, turn.centred)
    return phases(grams) if turn.kind == "phase" else orders(grams)


def reach(turn: Turn, grams: Tensor) -> Tensor:
    """What ``best`` reaches for each pair of keys, [a, b]; `grams`: [a, b, other keys, units, units]."""
    if turn.kind == "rotation":
        return torch.linalg.svdvals(grams).sum((-2, -1))
    if turn.kind == "phase":
        return torch.hypot(*_along(grams)).sum(-1)
    return torch.stack([inner_sums(one) for one in grams.unbind(2)]).sum(0)


def drawn(turn: Turn, generator: torch.Generator) -> Tensor:
    """One of each key at random; orders of neighbouring keys are never the same."""
    random = torch.randn(*turn.shape, generator=generator, dtype=torch.float64)
    if turn.kind == "phase":
        return _phase(*_along(random))
    if turn.kind == "order":
        base = random.reshape(-1)[: turn.size].argsort()
        keys = torch.arange(1, 1 + prod(n for _, n in turn.keys))[:, None]
        shifts = (base.argsort() + keys) % turn.size
        return torch.eye(turn.size, dtype=torch.float64)[base[shifts]].reshape(turn.shape)
    return _orthogonal(random, turn.centred)


def _orthogonal(drawn: Tensor, centred: bool) -> Tensor:
    """The nearest orthogonal matrix, which keeps the vector of ones where only such commute."""
    if centred:
        ones = torch.full(drawn.shape[-2:], 1 / drawn.shape[-1], dtype=drawn.dtype)
        eye = torch.eye(drawn.shape[-1], dtype=drawn.dtype)
        drawn = (eye - ones) @ drawn @ (eye - ones) + ones
    u, _, v = torch.linalg.svd(drawn)
    return u @ v


def polar(grams: Tensor, centred: bool) -> Tensor:
    """The orthogonal matrices Q with the largest <Q, gram>; the identity where nothing is gained.

    `centred`: among those that keep the vector of ones.

    >>> polar(torch.tensor([[0.0, 2.0], [-1.0, 0.0]]), False)
    tensor([[ 0.,  1.],
            [-1.,  0.]])
    """
    n = grams.shape[-1]
    eye = torch.eye(n, dtype=grams.dtype)
    ones = torch.full((n, n), 1 / n, dtype=grams.dtype)
    if centred:
        grams = (eye - ones) @ grams @ (eye - ones)
    size = torch.linalg.matrix_norm(grams, keepdim=True)
    # a direction that nothing has an entry in stays where it is
    solved = grams + _GAIN * size * eye + (size + 1) * ones if centred else grams + _GAIN * size * eye
    u, _, v = torch.linalg.svd(solved)
    return _gaining(grams, u @ v)


def phases(grams: Tensor) -> Tensor:
    """The rotations of planes with the largest inner product: the polar factors among those without a reflection.

    >>> phases(torch.tensor([[0.0, -2.0], [1.0, 0.0]]))
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """
    return _gaining(grams, _phase(*_along(grams)))


def orders(grams: Tensor) -> Tensor:
    """The permutation matrices with the largest inner product.

    >>> orders(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    tensor([[0., 1.],
            [1., 0.]])
    """
    eye = torch.eye(grams.shape[-1], dtype=grams.dtype)
    return torch.stack([eye[assignment(one)] for one in grams.reshape(-1, *eye.shape)]).reshape(grams.shape)


def _along(grams: Tensor) -> tuple[Tensor, Tensor]:
    """The inner products with the rotations by 0 and by a right angle."""
    return grams[..., 0, 0] + grams[..., 1, 1], grams[..., 1, 0] - grams[..., 0, 1]


def _phase(along: Tensor, across: Tensor) -> Tensor:
    """The rotation towards a point of the plane; none towards the origin."""
    size = torch.hypot(along, across)
    cos, sin = torch.where(size > 0, along / size, 1.0), torch.where(size > 0, across / size, 0.0)
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def _gaining(grams: Tensor, found: Tensor) -> Tensor:
    """What was found, where it gains more than rounding."""
    eye = torch.eye(grams.shape[-1], dtype=grams.dtype)
    gain = (grams * (found - eye)).sum((-2, -1), keepdim=True)
    return torch.where(gain > _GAIN * torch.linalg.matrix_norm(grams, keepdim=True), found, eye)
