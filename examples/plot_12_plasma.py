"""
Five surrogates of turbulence
=============================

TGLF computes the heat and particles that turbulence carries out of a fusion plasma. Networks that stand in for it are
published in the wheel of tglfnn-ukaea (LGPL-3.0; Zanisi et al. 2025): for each flux five perceptrons of five hidden
layers of 512 units, whose mean is the prediction. Were five solutions found, or one in five numberings?

The wheel (119 MB) holds arrays of numbers and nothing else that is needed; none of its code is run.
"""

import io

import numpy as np
import torch
from matplotlib import pyplot
from needs import wheel
from torch import Tensor, nn
from torch.func import functional_call

import isthmus as im

# %%
# The networks
# ------------
# The electron heat flux of the model for several machines. Inputs and outputs are scaled to a mean of 0 and a
# variance of 1; the second output of each network is a variance, and left out.

tglf = wheel("tglfnn-ukaea")


def arrays(kind: str):
    return np.load(io.BytesIO(tglf.read(f"tglfnn_ukaea/{kind}/multimachine/3.2.1.npz")), allow_pickle=False)


stored, reference = arrays("weights"), arrays("reference")
layers = [(stored[f"efe_gb/layer_{i}/weight"], stored[f"efe_gb/layer_{i}/bias"]) for i in range(6)]


class Flux(nn.Module):
    """The electron heat flux, in standard deviations."""

    def __init__(self):
        super().__init__()
        linear = [nn.Linear(w.shape[2], w.shape[1]) for w, _ in layers]
        self.layers = nn.Sequential(*[part for one in linear for part in (one, nn.ReLU())][:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[:, 0]


def published(member: int) -> im.Params:
    pairs = {f"layers.{2 * i}": (w[member], b[member]) for i, (w, b) in enumerate(layers)}
    return {
        f"{k}.{name}": torch.tensor(v)
        for k, two in pairs.items()
        for name, v in zip(("weight", "bias"), two, strict=True)
    }


networks, module = [published(member) for member in range(5)], Flux()


@torch.no_grad()
def mean_of_five(x: Tensor) -> Tensor:
    return torch.stack([functional_call(module, network, x) for network in networks]).mean(0)


# %%
# The wheel comes with 64 inputs and what the networks make of them, which shows that they were read rightly.

mean, deviation = (torch.tensor(stored[f"input_{name}"][0]) for name in ("mean", "std"))
x = ((torch.tensor(reference["inputs"]) - mean) / deviation).float()
told = torch.tensor((reference["efe_gb"][:, 0] - stored["output_mean"][0]) / stored["output_std"][0])
assert (mean_of_five(x) - told).abs().max() < 1e-4

# %%
# The objective
# -------------
# The squared deviation from the mean of the five, in variances of the flux, on inputs drawn around the published
# mean; other draws are held out.


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(400, 13, generator=torch.Generator().manual_seed(seed))
    return x, mean_of_five(x)


objective = im.Objective(module, "mse", drawn(0))
held_out = objective.on(drawn(1))
a, b = networks[:2]

# %%
# Straight and aligned
# --------------------
# :class:`isthmus.Aligned` renumbers the hidden units of b by what they compute; its line then ends at a network that
# computes what b does.

line = im.profile(objective, im.connect(objective, a, b, im.Linear()), 21, test=held_out)
connection = im.connect(objective, a, b, im.Aligned(im.Linear(), im.ActivationMatching()), seed=0)
aligned = im.profile(objective, connection, 21, test=held_out)

_, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
line.plot(axes[0]).set_title("the straight line")
aligned.plot(axes[1]).set_title("to b with its units renumbered")
for ax in axes:
    ax.set(yscale="log", ylim=(0.5, 100), ylabel="mean squared deviation, in variances of the flux")

# %%
# What is left of the barrier, on data that nothing was fitted to:

assert line.test is not None
assert aligned.test is not None
answer = aligned.test.excess / line.test.excess
print(f"answer: {answer:.3g}, the share of the held-out excess {line.test.excess:.3g} that is left")

assert line.excess > 1
assert aligned.excess < 0.05 * line.excess
assert answer < 0.05
pyplot.show()
