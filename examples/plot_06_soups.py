"""
A soup that must not be cooked, and one that may
================================================

The mean of the weights of several networks ("model soup") costs one network and may be as good as their ensemble. It
may also be worthless. :func:`isthmus.check` measures first, and says go or no-go.
"""

import copy

import torch
from matplotlib import pyplot
from torch import nn

import isthmus as im

digits = im.data.load("digits").flat()
x, y = digits.x_train, digits.y_train


def train(network: nn.Module, seed: int, epochs: int, rate: float) -> nn.Module:
    torch.manual_seed(seed)
    network = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval()


def fresh(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))


# %%
# Three networks from three starts
# --------------------------------
# Each is good, and their mean is not.

strangers = [train(fresh(seed), seed, epochs=15, rate=2e-3) for seed in range(3)]
objective = im.Objective(strangers[0], "cross_entropy", (x, y))
held_out = objective.on((digits.x_test, digits.y_test))
refused = im.check(objective, strangers, test=held_out)
print(refused.why)
refused.plot()

# %%
# Three networks tuned from one
# -----------------------------
# The first of them, trained on with a small rate in three orders of the batches.

tuned = [train(strangers[0], seed, epochs=5, rate=5e-4) for seed in range(3, 6)]
allowed = im.check(objective, tuned, test=held_out, base=strangers[0])
print(allowed.why)
allowed.plot()

# %%
# Cook
# ----
# :func:`isthmus.merge` measures again, and would not average the strangers.

soup = im.merge(objective, tuned, "average")
weights = [one.state_dict() for one in strangers]
mean = {name: torch.stack([one[name] for one in weights]).mean(0) for name in weights[0]}
answer = objective.loss(mean) / objective.loss(soup.params)
print(f"answer: {answer:.3g}, the loss of the refused soup over that of the allowed one")

assert not refused.go
assert allowed.go
assert answer > 10
pyplot.show()
