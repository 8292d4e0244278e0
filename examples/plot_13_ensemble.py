"""
An ensemble along the path
==========================

The networks on a low path are as good as its ends, and they are not the same. Their probabilities averaged make an ensemble for the
price of one curve.
"""

import torch
from matplotlib import pyplot
from torch import nn

import isthmus as im

digits = im.data.load("digits").flat()
x, y = digits.x_train[:400], digits.y_train[:400]


def trained(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(40):
        for batch in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval()


a, b = trained(0), trained(1)
objective = im.Objective(a, "cross_entropy", (x, y))
held_out = objective.on((digits.x_test, digits.y_test))

# %%
# A curve, and five networks on it
# --------------------------------
# The fair comparison is with as many networks that were trained independently.

curve = im.connect(objective, a, b, im.Bezier(recipe=im.Recipe(lr=None, epochs=40, batch=64, beta2=0.95)), seed=0)
independent = [trained(seed) for seed in range(2, 7)]
found = im.ensemble(objective, curve, points=5, test=held_out, independent=independent)
found.plot()

# %%
# All rows, with the negative log-likelihood (NLL), the calibration and the passes that one prediction costs:

found

# %%
# The NLL of the ensemble along the curve, over that of the better end:

ends = [row.test.nll for row in found.rows if row.kind == "member"]
answer = found["probability average"].test.nll / min(ends[0], ends[-1])
print(f"answer: {answer:.3g}, the NLL of the average over that of the better end")

assert answer < 1
pyplot.show()
