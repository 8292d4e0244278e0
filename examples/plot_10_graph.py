"""
A graph of minima, with its tree
================================

How high must one climb from each of several trained networks to each other? :func:`isthmus.minima_graph` joins them
by paths and tries only as many pairs as can matter. The tree shows at which loss networks come together.
"""

from tempfile import mkdtemp

import torch
from matplotlib import pyplot
from torch import nn

import isthmus as im

digits = im.data.load("digits").flat()
x, y = digits.x_train, digits.y_train


def trained(seed: int, epochs: int = 30) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval()


# %%
# Five networks
# -------------
# One of them, ``early``, was trained for only four epochs. The paths are written to a folder; with one that is kept,
# a run that was killed goes on.

networks = {"a": trained(0), "b": trained(1), "c": trained(2), "d": trained(3), "early": trained(4, epochs=4)}
objective = im.Objective(networks["a"], "cross_entropy", (x, y))
curve = im.Bezier(recipe=im.Recipe(lr=None, epochs=30, batch=128, beta2=0.95))
graph = im.minima_graph(objective, networks, curve, folder=mkdtemp())

# %%
# The tree and the matrix of saddles
# ----------------------------------
# A dashed line is a floor: no path between two networks is lower than the larger of their own losses.

graph.plot()

# %%
# The way from one network to another along the tree is a path like any other, and can be measured and proved.

way = graph.way("b", "early", objective)
im.profile(objective, way, 21).plot().set_title("from b to early")

# %%
# How much of the height of the straight lines is left on the tree:

lines = [im.barrier(objective, networks["a"], networks[name], "max").value for name in "bcd"]
answer = max(graph.saddle("a", name) for name in "bcd") / min(lines)
print(f"answer: {answer:.3g}, the highest saddle of the four over their lowest straight line")

assert answer < 0.2
assert len(graph.edges) < 10
pyplot.show()
