"""
A path on which the loss does not rise: 1e-14
=============================================

Nguyen 2019 proves for wide networks that every sublevel set of the loss is connected: between two networks there is a
path on which the loss never exceeds the larger end's. :class:`isthmus.Sublevel` walks the proof: straight segments on
which the outputs stay as they are, and a level curve on which they are affine in t. What is left over the larger end is
rounding.
"""

import torch
from matplotlib import pyplot
from torch import nn

import isthmus as im

# %%
# The network
# -----------
# For N samples of any kind a first layer of 2N units is wide enough (Theorem 5.1), if the layers above get narrower
# and are leaky ReLU.

N = 80
digits = im.data.load("digits").flat()
x, y = digits.x_train[:N].double(), digits.y_train[:N]


def trained(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 2 * N), nn.LeakyReLU(0.2), nn.Linear(2 * N, 24), nn.LeakyReLU(0.2), nn.Linear(24, 10)]
    network = nn.Sequential(*layers).double()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval()


a, b = trained(0), trained(1)
objective = im.Objective(a, "cross_entropy", (x, y))

# %%
# The straight line rises
# -----------------------

line = im.profile(objective, im.connect(objective, a, b, im.Linear()))
connection = im.connect(objective, a, b, im.Sublevel(), seed=0)
path = im.profile(objective, connection, 31)

_, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
line.plot(axes[0]).set_title("the straight line")
path.plot(axes[1]).set_title("the path of the theorem")

# %%
# What each segment does, and what of it is proved
# ------------------------------------------------

certificate = im.certify(objective, connection)
for label, segment in zip(connection.labels, certificate.segments, strict=True):
    print(f"{segment.claim:<10} {label}")

# %%
# The proof allows for all rounding:

answer = certificate.excess
print(f"answer: {answer:.3g}, proved for all t; the straight line has {line.excess:.3g}")

assert certificate.proved
assert abs(path.excess) < 1e-14 < line.excess
assert answer < 1e-9
pyplot.show()
