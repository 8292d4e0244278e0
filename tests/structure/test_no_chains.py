"""What is no chain of layers is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus as im
from isthmus.structure.chain import chain_of
from tests.architectures import noise
from tests.structure.models import Lambda, between, between_convs


class Scaled(nn.Module):
    """One number for each feature."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x * self.gain)


class Beside(nn.Module):
    """A layer whose result nothing reads but the shape of another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gain = nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.layer(x) + z * self.gain


def convolutions(f: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), Lambda(f), nn.Linear(2 * 36, 3), nn.Flatten())


X, IMAGE = noise(3, 4), noise(3, 3, 8, 8)
NO_CHAINS: dict[str, tuple[Callable[[], nn.Module], Tensor | tuple[Tensor, ...], str]] = {
    "no layer": (Scaled, X, "the network: it has no linear or convolutional layer"),
    "two inputs": (Beside, (X, X[:, :3]), "the network: it has 2 inputs, not one"),
    "nothing at all": (lambda: nn.Sequential(nn.Identity()), X, "not the last operation of a chain"),
    "positions": (lambda: between(nn.ReLU()), noise(3, 5, 4), "a linear layer that runs over positions"),
    "groups": (
        lambda: between_convs(nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2)), IMAGE, "a grouped convolution has no full"
    ),
    "a reshape": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Lambda(lambda x: x.view(-1, 2, 2, 6, 6)), nn.Conv3d(2, 3, 2)),
        IMAGE, "a reshape other than flattening each example",
    ),
    "softmax": (
        lambda: between(nn.Softmax(1)), X, r"units of '0.weight': they cannot be treated one by one \(softmax"
    ),
    "another order": (
        lambda: between(Lambda(lambda x: x.flip(1))), X, "they are not exactly the units that '2.weight' reads"
    ),
    "a running sum": (lambda: between(Lambda(lambda x: x.cumsum(1))), X, r"'2.weight' reads \(operation aten.cumsum"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_CHAINS)
def test_what_is_no_chain_is_refused_by_name(name: str) -> None:
    make, x, message = NO_CHAINS[name]
    objective = im.Objective(make().double().eval(), lambda z, y: z.flatten(1).square().mean(1), (x, torch.zeros(3)))
    with pytest.raises(im.UnsupportedError, match=message):
        chain_of(objective.program, objective.structure)
