"""
Two adapters of one model
=========================

LoRA writes a change of low rank beside the weights of a model. Two adapters that were trained apart can be merged and
joined by a straight line, through changes of twice the rank; or their factors can move, and the rank stays what it
was (:func:`isthmus.low_rank_path`).

Needs peft: ``pip install peft``.
"""

import copy
from pathlib import Path
from tempfile import mkdtemp

import torch
from matplotlib import pyplot
from peft import LoraConfig, get_peft_model
from torch import nn

import isthmus as im

# %%
# A base, and two adapters
# ------------------------
# The base has learnt the digits 0 to 4. Each adapter of rank 2 learns all ten, from its own seed.

digits = im.data.load("digits").flat()
x, y = digits.x_train, digits.y_train


def train(network: nn.Module, which: torch.Tensor, epochs: int, rate: float) -> nn.Module:
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], rate)
    for _ in range(epochs):
        for batch in which[torch.randperm(len(which))].split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval()


folder = Path(mkdtemp())
torch.manual_seed(0)
base = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
train(base, torch.arange(len(y))[y < 5], epochs=20, rate=2e-3)


def adapter(seed: int) -> Path:
    """The folder that peft writes."""
    torch.manual_seed(seed)
    settings = LoraConfig(r=2, lora_alpha=4, target_modules=["0", "2", "4"])
    tuned = get_peft_model(copy.deepcopy(base), settings)
    train(tuned, torch.arange(len(y)), epochs=40, rate=5e-3)
    tuned.save_pretrained(str(folder / str(seed)))
    return folder / str(seed)


# %%
# The folders are read as networks with the adapters merged.

im.save_params(base.state_dict(), folder / "base.safetensors")
one, two = (im.load_params(adapter(seed), base=folder / "base.safetensors", like=base) for seed in (1, 2))

# %%
# Three paths
# -----------
# The line between the merged weights; the factors in a straight line as they are; and brought in one frame first, as
# B G and inverse(G) A are the same adapter for every G. On these two, of different seeds, the path of low rank is
# higher than the line of the merged weights, and the common frame makes it less so.

objective = im.Objective(base, "cross_entropy", (x, y))
paths = {
    "merged weights": im.Path.through([one, two]),
    "factors as they are": im.low_rank_path(base.state_dict(), one, two, align=False),
    "factors in one frame": im.low_rank_path(base.state_dict(), one, two),
}
profiles = {name: im.profile(objective, path) for name, path in paths.items()}

_, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
for ax, (name, profile) in zip(axes, profiles.items(), strict=True):
    profile.plot(ax).set(title=name, ylim=(0, 2))

# %%
# The rank of the change in the middle of each path, of the second layer:

start = base.state_dict()["2.weight"]
ranks = [int(torch.linalg.matrix_rank(path.at(0.5)["2.weight"] - start, rtol=1e-4)) for path in paths.values()]
print(f"ranks in the middle: {ranks}")

# %%
# Who stands leaving adapters out
# -------------------------------

im.adapter_stability(objective, base, one)

# %%
# What the common frame is worth:

answer = profiles["factors in one frame"].excess / profiles["factors as they are"].excess
print(f"answer: {answer:.3g}, the excess of the factors in one frame over that of the factors as they are")

assert ranks == [4, 2, 2]
assert answer < 1
pyplot.show()
