"""
A residual network, before and after recomputing
================================================

The running statistics of BatchNorm belong to the weights they were made with. Between two networks, statistics that
were averaged like weights are those of no network, and the loss there is higher than it has to be. The library
computes them again at every point unless it is asked not to.
"""

import copy

import torch
from matplotlib import pyplot
from torch import nn
from torch.nn.functional import avg_pool2d, cross_entropy, relu

import isthmus as im

# %%
# The networks
# ------------
# A small ResNet on the digits. Both networks begin at one set of weights, and are trained at a high rate on different
# orders of the batches.


class Block(nn.Module):
    """Two convolutions with BatchNorm, and a way around them."""

    def __init__(self, channels: int):
        super().__init__()
        self.one, self.two = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm_one, self.norm_two = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        return relu(x + self.norm_two(self.two(relu(self.norm_one(self.one(x))))))


class ResNet(nn.Module):
    """Two blocks of 8 channels."""

    def __init__(self, channels: int = 8):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.blocks, self.last = nn.Sequential(Block(channels), Block(channels)), nn.Linear(channels, 10)

    def forward(self, x):
        x = avg_pool2d(relu(self.norm(self.first(x))), 2)
        return self.last(self.blocks(x).mean((2, 3)))


digits = im.data.load("digits")
x, y = digits.x_train.reshape(-1, 1, 8, 8), digits.y_train


def train(network: nn.Module, seed: int, epochs: int, rate: float) -> nn.Module:
    torch.manual_seed(seed)
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, 12 * epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(128):
            optimizer.zero_grad()
            cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


torch.manual_seed(0)
start = ResNet()
a, b = (train(copy.deepcopy(start), seed, epochs=8, rate=5e-2) for seed in (1, 2))

# %%
# The line between them
# ---------------------
# The same 17 networks, measured with statistics that are interpolated like the weights, and with statistics that are
# computed again from the training data at every point.

objective = im.Objective(a, "cross_entropy", (x, y))
line = im.connect(objective, a, b, im.Linear())
before = im.profile(objective, line, 17, bn="interpolate")
after = im.profile(objective, line, 17, bn="recompute")

_, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
before.plot(axes[0]).set_title("statistics interpolated")
after.plot(axes[1]).set_title("statistics recomputed")
for ax in axes:
    ax.set(yscale="linear", ylim=(0, 1.1 * before.max))

# %%
# How much of the excess over the larger end was a matter of the statistics alone:

answer = after.excess / before.excess
print(f"answer: {answer:.3g}, the share of the excess that is left: {before.excess:.3g} -> {after.excess:.3g}")

assert before.excess > 0.5
assert answer < 0.5
pyplot.show()
