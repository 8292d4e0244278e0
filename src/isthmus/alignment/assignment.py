"""Assignments of units to units: the best one, and whether it is worth a change."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from isthmus.params import in_range

_GAIN = 1e-10
"""A new assignment must gain more than so much of the mean entry: ties move no unit."""
_ALIKE = "how alike units are"


def is_order(order: Tensor, size: int) -> bool:
    """Whether these are the numbers 0 .. size - 1, each once.

    >>> is_order(torch.tensor([1, 0]), 2), is_order(torch.tensor([1, 1]), 2)
    (True, False)
    """
    return torch.equal(order.sort().values, torch.arange(size))


def assignment(scores: Tensor) -> Tensor:
    """For each row the column of the assignment with the largest sum; the identity where nothing is gained by another.

    >>> assignment(torch.tensor([[0.0, 2.0], [1.0, 0.0]])), assignment(torch.ones(2, 2))
    (tensor([1, 0]), tensor([0, 1]))
    """
    rows = torch.arange(len(scores))
    found = torch.from_numpy(linear_sum_assignment(in_range(scores, _ALIKE).numpy(), maximize=True)[1])
    gain = float((scores[rows, found] - scores.diagonal()).sum())
    return found if gain > _GAIN * float(scores.abs().sum()) / max(len(scores), 1) else rows


def inner_sums(blocks: Tensor) -> Tensor:
    """For each pair of units, given how alike what is inside them is, the sum of the best assignment of that.

    >>> inner_sums(torch.tensor([[[[0.0, 2.0], [1.0, 0.0]]]]))
    tensor([[3.]])
    """
    known = in_range(blocks, _ALIKE).numpy()
    sums = [[float(one[linear_sum_assignment(one, maximize=True)].sum()) for one in row] for row in known]
    return torch.tensor(sums, dtype=blocks.dtype)
