"""What strings say of their levels: of the straight line, and of segments that were looked at when it was higher."""

import pytest
import torch
from torch import nn

import isthmus as im


class Bumps(nn.Module):
    """Along the line from 0 to 1 the output rises twice, higher where few samples are."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x * (torch.exp(-(((self.w - 0.4) / 0.1) ** 2)) + 1.5 * torch.exp(-(((self.w - 0.9) / 0.03) ** 2)) + 0.1)


def test_the_first_level_is_that_of_all_samples_of_the_line():
    objective = im.Objective(Bumps(), "mse", (torch.ones(4, 1), torch.zeros(4, 1)))
    method = im.ConstrainedStringSampling(threshold=0.05, recipe=im.Recipe(steps=20, batch=4), budget=1)
    found = im.connect(objective, {"w": torch.zeros(1)}, {"w": torch.ones(1)}, method)
    line = im.profile(objective, found, method.points)
    assert len(found.path) == 1
    assert found.stats["maximum"] == pytest.approx(line.max, rel=1e-6)
    assert found.stats["level"] >= line.max * (1 - 1e-6)


def small():
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))


def trained(objective, seed):
    torch.manual_seed(seed)
    module = small()
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(objective.data[0]), objective.data[1]).backward()
        optimizer.step()
    return {k: v.detach() for k, v in module.state_dict().items()}


def test_segments_below_a_higher_level_are_looked_at_again():
    torch.manual_seed(0)
    x = torch.randn(30, 2)
    objective = im.Objective(small(), data=(x, (x[:, 0] * x[:, 1] > 0).long()))
    a, b = trained(objective, 0), trained(objective, 1)
    recipe = im.Recipe(steps=200, batch=30, lr=0.02)
    found = im.connect(objective, a, b, im.ConstrainedStringSampling(threshold=0.5, points=3, recipe=recipe))
    assert found.outcome is im.Outcome.CONSTRUCTED
    assert im.profile(objective, found, 41).max <= 0.5 + 1e-6


def test_what_is_sampled_below_but_not_proved_is_not_called_above():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))
    x = torch.randn(20, 2)
    objective = im.Objective(module, data=(x, (x[:, 0] > 0).long()))
    a, b = ({k: 3 * torch.randn_like(v) for k, v in module.state_dict().items()} for _ in range(2))
    above = im.profile(objective, im.connect(objective, a, b), 101).max + 0.002
    recipe = im.Recipe(steps=5, batch=20)
    method = im.StringSampling(threshold=above, certify=True, effort=1, depth=1, recipe=recipe)
    found = im.connect(objective, a, b, method)
    assert not found.outcome.ok
    assert any(label.startswith("sampled below, not proved below") for label in found.labels)
    assert not any(label.startswith("above") for label in found.labels)
