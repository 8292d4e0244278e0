"""
Proving a whole path
====================

A profile is a grid of points, and says nothing of what lies between them. :func:`isthmus.certify` bounds the loss for
every t: forms in t go through the network, with everything that they leave open and every rounding kept as
remainders.
"""

import torch
from matplotlib import pyplot
from torch import nn

import isthmus as im

# %%
# A trained curve
# ---------------

digits = im.data.load("digits").flat()
x, y = digits.x_train, digits.y_train


def trained(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 60), nn.GELU(), nn.Linear(60, 60), nn.GELU(), nn.Linear(60, 10))
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(40):
        for batch in torch.randperm(len(y)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval()


a, b = trained(0), trained(1)
objective = im.Objective(a, "cross_entropy", (x, y))
curve = im.connect(objective, a, b, im.Bezier(recipe=im.Recipe(lr=None, epochs=60, batch=128, beta2=0.95)), seed=0)

# %%
# Measured and proved
# -------------------
# The bound holds on every sub-interval of t; where the path is hard to bound there are more of them.

profile = im.profile(objective, curve)
certificate = im.certify(objective, curve, gap=0.01)

_, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
profile.plot(axes[0]).set_title("measured at 61 points")
certificate.plot(axes[1]).set_title("proved for all t")
print(certificate.summary)

# %%
# A certificate is checked without trusting who made it, from the path alone. An empty list says that nothing is wrong;
# a claim that was made lower is found.

assert im.verify_certificate(objective, curve, certificate) == []

# %%
# How far the proof is above the largest loss that was seen:

answer = certificate.bound / profile.max - 1
print(f"answer: {answer:.3g}, the gap between proof and measurement, over the measurement")

assert certificate.proved
assert 0 <= answer < 0.011
pyplot.show()
