"""
Two transformers, aligned
=========================

A transformer has many numberings of one function: of the units in its MLPs, of its heads, and of the channels of the
residual stream that all layers share. :func:`isthmus.align` derives them from the module, also from one that it has
never seen.
"""

import torch
from matplotlib import pyplot
from torch import nn

import isthmus as im

# %%
# The network
# -----------
# A digit is a text of eight words, its rows. One layer of attention, one MLP, residuals and LayerNorm around both.


class Transformer(nn.Module):
    """Reads eight rows of eight pixels."""

    def __init__(self, width: int = 32, heads: int = 4, inner: int = 128):
        super().__init__()
        self.heads = heads
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(0.1 * torch.randn(8, width))
        self.norm_one, self.norm_two, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.last = nn.Linear(width, inner), nn.Linear(inner, width), nn.Linear(width, 10)

    def forward(self, x):
        h = self.embed(x) + self.place
        z = self.norm_one(h)
        q, k, v = (f(z).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        h = h + self.out(seen.transpose(1, 2).flatten(2))
        h = h + self.down(nn.functional.gelu(self.up(self.norm_two(h))))
        return self.last(self.norm(h).mean(1))


digits = im.data.load("digits")
x, y = digits.x_train.reshape(-1, 8, 8), digits.y_train


def trained(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = Transformer()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(15):
        for batch in torch.randperm(len(y)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval()


a, b = trained(0), trained(1)

# %%
# What may be renumbered
# ----------------------
# Read off the graph of the module: no list of layers is given.

objective = im.Objective(a, "cross_entropy", (x, y))
for group in objective.structure.groups:
    print(f"{group.name}: {group.size}")

# %%
# The alignment
# -------------
# The aligned network computes what b does, to rounding.

found = im.align(objective, a, b, im.ActivationMatching())
print(found)

# %%
# Before and after
# ----------------
# Networks this narrow keep a barrier, as their units are no longer the same ones. A trained curve from the aligned
# network goes on from there.

lines = im.aligned_lines(objective, [a, b], found)
_, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
found.plot(axes[0])
lines.plot(axes[1])

# %%
# How much of the excess the alignment leaves:

answer = lines.after.max / lines.before.max
print(f"answer: {answer:.3g}, the share of the excess {lines.before.max:.3g} that is left")

assert found.function_error < 1e-12
assert answer < 0.9
pyplot.show()
