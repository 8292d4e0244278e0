"""
Two perceptrons, by every method
================================

Two networks of one architecture, trained on the same digits from different seeds: by which path are they connected,
and how high does the loss rise on it? :func:`isthmus.compare` runs every method whose premises hold on this pair,
with training that fits into one budget, and says of the others why they do not apply.
"""

import torch
from matplotlib import pyplot
from torch import nn

import isthmus as im

# %%
# The networks
# ------------
# Perceptrons 64-40-40-10 with ReLU. Any training will do.

digits = im.data.load("digits").flat()
x, y = digits.x_train, digits.y_train


def perceptron(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(60):
        for batch in torch.randperm(len(y)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval()


a, b = perceptron(0), perceptron(1)

# %%
# The objective
# -------------
# A module, a loss and data. The module only says how outputs are computed: the weights come from ``a`` and ``b``.

objective = im.Objective(a, "cross_entropy", (x, y))
held_out = objective.on((digits.x_test, digits.y_test))

# %%
# The straight line
# -----------------
# It is the baseline of every question about two networks, and here it leads over a barrier.

line = im.profile(objective, im.connect(objective, a, b, im.Linear()), test=held_out)
line.plot()

# %%
# Every method
# ------------
# The budget is in passes over the training data. Filled marks are paths whose height is proved for all t.

comparison = im.compare(objective, a, b, budget=100, test=held_out)
_, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
comparison.plot(axes).set_ylim(0, 10)

# %%
# The table, the lowest first; *bound* is what :func:`isthmus.certify` proves of the whole path.

comparison

# %%
# The lowest path
# ---------------
# Of the lowest paths ``best`` is the one that cost least. Here it is a trained curve to a network that computes what b
# does, with its hidden units renumbered. Its excess is its largest loss minus the larger end's.

best = comparison.best
im.profile(objective, best.connection, test=held_out).plot().set_title(best.method)
answer = best.excess
print(f"answer: {answer:.4g}, the excess of {best.method}; the straight line has {line.excess:.4g}")

assert answer < 0.01 < line.excess
assert best.bound is not None
assert best.bound < 1.05 * best.max
pyplot.show()
