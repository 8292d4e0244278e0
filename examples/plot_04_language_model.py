"""
A language model of Penn Treebank
=================================

An LSTM that predicts the next word, trained twice from different seeds. The line between the two
rises in perplexity; a trained curve does not. No theorem covers recurrent networks: the curve is found by training and
measured on all examples.

Needs Penn Treebank in the folder of ``ISTHMUS_DATA``.
"""

import math

import torch
from matplotlib import pyplot
from torch import nn

import isthmus as im

# %%
# Words
# -----
# Sequences of 8 words, from the 400 most frequent ones; 800 of them, so that this page takes seconds.

text = im.data.load("ptb:V=400,T=8").subset(800, 400)
x, y = text.x_train, text.y_train

# %%
# The networks
# ------------
# Two layers of 48 units, from two seeds.


def train(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = im.models.LanguageModel(400, width=48, layers=2)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(6):
        for batch in torch.randperm(len(y)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval()


a, b = train(0), train(1)

# %%
# The line and a curve
# --------------------
# The loss is the mean over the words; exp(loss) is the perplexity. Texts that were not trained on stand beside.

objective = im.Objective(a, "cross_entropy", (x, y))
held_out = objective.on((text.x_test, text.y_test))
line = im.profile(objective, im.connect(objective, a, b, im.Linear()), 9, test=held_out)
curve = im.connect(objective, a, b, im.Bezier(recipe=im.Recipe(lr=None, epochs=10, batch=50, beta2=0.95)), seed=0)
path = im.profile(objective, curve, 9, test=held_out)

_, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
line.plot(axes[0]).set_title("the straight line")
path.plot(axes[1]).set_title("a trained curve")

# %%
# By what factor the perplexity of the text rises over that of the worse end, on the line and on the curve:

worse = max(float(line.loss[0]), float(line.loss[-1]))
answer = math.exp(path.max - worse)
print(f"answer: {answer:.4g}, the factor on the curve; {math.exp(line.max - worse):.4g} on the line")

assert math.exp(line.max - worse) > 1.2
assert answer < 1.05
pyplot.show()
