"""The values on which units are seen: those that the weights of these units read or make, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.structure.taps import taps


class Mixer(nn.Module):
    """Layers across tokens, whose inputs and outputs have the channels on another axis, then across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 6), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 4)
        self.wide, self.narrow, self.head = nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.down(torch.relu(self.up(self.norm(h).transpose(1, 2)))).transpose(1, 2)
        return self.head((h + self.narrow(torch.relu(self.wide(h)))).mean(1))


@pytest.mark.parametrize(
    ("moment", "seen"),
    [
        ("after", {"embed": [("add", 2), ("mean", 1)], "up": [("relu", 2)], "wide": [("relu_1", 2)]}),
        ("before", {"embed": [("linear", 2), ("linear_4", 2)], "up": [("linear_1", 2)], "wide": [("linear_3", 2)]}),
    ],
)
def test_units_are_seen_where_their_own_weights_read_and_make_them(moment, seen):
    objective = im.Objective(Mixer(), data=(torch.zeros(4, 4, 3), torch.tensor([0, 1, 0, 1])))
    found = taps(objective.program, objective.structure, moment)
    assert {group: [(tap.value, tap.dim) for tap in several] for group, several in found.items()} == seen
    for several in found.values():
        for tap in several:
            assert tap.index.flatten().tolist() == list(range(len(tap.index)))
            assert not tap.others
