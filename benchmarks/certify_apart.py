"""Certificates of the line between two networks trained independently, through families where proofs are dear.

``python benchmarks/certify_apart.py [NAME ...] [--gap 0.01] [--budget 30]``, on one thread, on the digits that come
with the library. Printed: the larger loss of the ends, the largest of a profile of 61 points with interpolated
statistics, the bound, sub-intervals, the cost in profiles as counted and as processor seconds over those of the
profile, and where it did not do, what the certificate says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from certify_families import option, show, vgg
from curve_families import Recurrent, ResNet8, Transformer, resnet_20, task, trained
from torch import nn

import isthmus as im


def layer_norm() -> nn.Module:
    """The perceptron of the digits with LayerNorm before each ReLU."""
    sizes, layers = [64, 60, 60, 60, 60], list[nn.Module]()
    for n, m in pairwise(sizes):
        layers += [nn.Linear(n, m), nn.LayerNorm(m), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(60, 10))


@dataclass(frozen=True)
class Family:
    make: Callable[[], nn.Module]
    examples: int
    epochs: int


FAMILIES = {
    "LayerNorm": Family(layer_norm, 600, 40),
    "LSTM": Family(lambda: Recurrent(32), 40, 60),
    "VGG-BN": Family(vgg, 40, 10),
    "ResNet-8": Family(lambda: ResNet8(8), 40, 10),
    "ViT": Family(Transformer, 40, 30),
    "ResNet-20": Family(resnet_20, 20, 10),
}


def main() -> None:
    torch.set_num_threads(1)
    gap, budget = option("--gap", 0.01), option("--budget", 30)
    asked = [v for v in sys.argv[1:] if v in FAMILIES]
    x, y, loss = task("")
    for name in asked or FAMILIES:
        family = FAMILIES[name]
        a, b = (trained(family.make, x[:1200], y[:1200], seed, family.epochs) for seed in (1, 2))
        few = (x[: family.examples], y[: family.examples])
        objective = im.Objective(a, loss, few)
        path = im.connect(objective, a, b, im.Linear()).path
        show(name, objective, path, objective, gap, budget)


if __name__ == "__main__":
    main()
