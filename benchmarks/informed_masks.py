"""Which search finds the best halves of real networks, for the price of the same number of evaluated networks?

For each network and search: the loss of theta_i for each entry layer i (Kuditipudi et al. 2019, Definition 1), three
seeds, and the processor seconds. MNIST and CIFAR-10 are left out where ``isthmus.data.load`` does not find them.
"""

from __future__ import annotations

import sys
from math import exp, log
from time import process_time

import common
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus import pipeline as runs
from isthmus.models import by_name, seeded
from isthmus.stability.dropout.subsets import SEARCHES
from isthmus.training.fit import Recipe

MASKS = (30, 200)
SEEDS = 3
FLOOR = 1e-4
"""Losses below this count as equal."""
DIGITS = "mlp:64-60x4-10"
MNIST = "mlp:784-245x10-10"


def with_dropout(net: nn.Sequential, p: float) -> nn.Sequential:
    """The same modules with dropout after every ReLU."""
    parts = [(q, nn.Dropout(p)) if isinstance(q, nn.ReLU) else (q,) for q in net]
    return nn.Sequential(*(q for pair in parts for q in pair))


def trained(spec: str, x: Tensor, y: Tensor, recipe: Recipe, p: float = 0.0) -> tuple[im.Objective, im.Params]:
    """The objective of the network that `spec` names, and weights trained with dropout p."""
    net = seeded(lambda: by_name(spec, inputs=x.shape[1:], outputs=10), 0)
    assert isinstance(net, nn.Sequential)
    learner = with_dropout(net, p) if p else net
    fitted = runs.train(learner, (x, y), recipe, seed=0, target=0.0 if p else 5e-4)
    params = dict(zip(net.state_dict(), fitted.params.values(), strict=True))
    return im.Objective(net.eval(), data=(x, y)), params


def networks() -> dict[str, tuple[im.Objective, im.Params]]:
    """The networks of the table."""
    digits = im.data.load("digits").flat()
    x, y = digits.x_train.float(), digits.y_train
    recipe = Recipe(lr=2e-3, batch=128, steps=4000)
    out = {f"{DIGITS}, digits": trained(DIGITS, x, y, recipe)}
    out[f"{DIGITS}, digits, trained with dropout 0.25"] = trained(DIGITS, x, y, recipe, 0.25)
    if (found := first(5000, "mnist")) is not None:
        x, y = found
        out[f"{MNIST}, 5000 of MNIST"] = trained(MNIST, x.flatten(1), y, Recipe(lr=1e-3, batch=128, steps=1500))
        recipe = Recipe(lr=2e-3, batch=128, steps=400)
        out["convnet:16, 2000 of MNIST"] = trained("convnet:16", x[:2000], y[:2000], recipe)
    if (found := first(2000, "cifar10")) is not None:
        out["vgg11:8, 2000 of CIFAR-10"] = trained("vgg11:8", *found, Recipe(lr=1e-3, batch=128, steps=1000))
    return out


def first(n: int, name: str) -> tuple[Tensor, Tensor] | None:
    """The first n training images, centred, of a data set; None where it is not found."""
    try:
        data = im.data.load(name)
    except im.FileError:
        print(f"  (no {name}: left out)")
        return None
    x = data.x_train[:n].float()
    return (x - x.mean()) / x.std(), data.y_train[:n]


def main() -> None:
    torch.set_num_threads(common.THREADS)
    wanted = [int(a) for a in sys.argv[1:] if a.isdigit()] or list(MASKS)
    print(f"Informed searches at equal price, T = {wanted} evaluations per entry layer; processor seconds")
    for name, (objective, params) in networks().items():
        print(f"\n{name}: loss {objective.loss(params):.4g}", flush=True)
        for masks in wanted:
            chance = 0.0
            for search in SEARCHES:
                tops = []
                for seed in range(SEEDS):
                    begin = process_time()
                    s = im.dropout_stability(objective, params, masks=masks, search=search, seed=seed)
                    seconds = process_time() - begin
                    tops.append(s.limited_by.loss)
                    losses = " ".join(f"{layer.loss:.4f}" for layer in s.layers)
                    print(f"  T={masks:<4} {search:<10} seed {seed} {seconds:6.1f} s  {losses}", flush=True)
                mean = exp(sum(log(max(v, FLOOR)) for v in tops) / SEEDS)
                chance = mean if search == "random" else chance
                print(
                    f"  T={masks:<4} {search:<10} largest, geometric mean {mean:.4f}: random / this {chance / mean:.1f}"
                )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
