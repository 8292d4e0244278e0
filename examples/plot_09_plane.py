"""
The plane with the path in it
=============================

Three networks span a plane. Through two trained networks and the middle control point of the curve between them it
holds the whole curve, and one sees what the curve goes around.
"""

import torch
from matplotlib import pyplot
from torch import nn

import isthmus as im

digits = im.data.load("digits").flat()
x, y = digits.x_train, digits.y_train


def trained(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10))
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(40):
        for batch in torch.randperm(len(y)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval()


a, b = trained(0), trained(1)
objective = im.Objective(a, "cross_entropy", (x, y))

# %%
# A Bezier curve of three control points
# --------------------------------------

curve = im.connect(objective, a, b, im.Bezier(recipe=im.Recipe(lr=None, epochs=60, batch=128, beta2=0.95)), seed=0)

# %%
# The loss on the plane
# ---------------------
# The corners a and b are the ends of the curve, c is its middle control point. The axes are distances in weight space.
# a lies at the origin, and the dashed straight line to b crosses a ridge.

plane = im.plane(objective, curve, points=25)
_, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
plane.plot(axes)

# %%
# How far the curve is from the plane, over the distance of a and b. It would be more for a curve of more control
# points.

answer = float(plane.off.max() / (plane.corners[1] - plane.corners[0]).norm())
print(f"answer: {answer:.3g}, the distance of the curve from the plane, over that of a and b")

line = im.profile(objective, im.connect(objective, a, b, im.Linear()))
assert answer < 1e-5
assert curve.info.max < 0.05 * line.max
pyplot.show()
