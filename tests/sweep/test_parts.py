"""Losses that are scaled by the whole data set: their parts, cast or certified one by one, keep that scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.sweep.parallel import certify_in_parallel
from tests.problems import perceptron, random_params

LABELS = torch.tensor([0, 1, 2, -100, -100, 0])
SCALED: list[tuple[Any, Tensor]] = [
    (nn.MSELoss(reduction="sum"), torch.linspace(-2, 2, 18).view(6, 3)),
    (nn.CrossEntropyLoss(), LABELS),
    (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0, 2.0])), LABELS),
]


class Cast(nn.Module):
    """Casts on the way, so that a proof runs a widened copy."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron([2, 4, 3])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.float().to(next(self.parameters()).dtype))


def wrong(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs.amax(1) > 0).to(outputs.dtype)


@pytest.mark.parametrize("error", [None, wrong])
@pytest.mark.parametrize("make", [lambda: perceptron([2, 4, 3]), Cast])
@pytest.mark.parametrize(("loss", "y"), SCALED)
def test_no_bound_from_parts_is_below_the_loss(loss, y, make, error):
    module = make()
    x = torch.linspace(-1, 1, 12).view(6, 2)
    objective = im.Objective(module, loss, (x, y), error=error)
    ends = [random_params(module, seed, torch.float32) for seed in (1, 2)]
    path = im.Path.through(ends)
    found = certify_in_parallel(objective, path, chunk=2, budget=3)
    assert found.ends == pytest.approx([objective.loss(p) for p in ends], rel=1e-5)
    assert found.bound >= max(objective.loss(path.at(k / 20)) for k in range(21)) * (1 - 1e-6)
    part, p = objective.part(slice(2, 4)), ends[0]
    assert part.cast(torch.float64).loss({k: v.double() for k, v in p.items()}) == pytest.approx(part.loss(p), rel=1e-5)
