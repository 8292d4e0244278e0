"""What alignment leaves of the barrier between convolutional networks and narrow perceptrons, and what stays provable.

    python benchmarks/alignment_acceptance.py --cpu [PAIR ...] [--keep FOLDER]

Pairs from seeds 0 and 1, Adam 1e-3, batch 128: perceptrons 784-width x3-10 on the first 20,000 images of MNIST, 5
epochs; convolutions 32-64-128-128 with and without BatchNorm, and ResNet-8 of width 16 and 48 (images 16x16), on the
first 8,000 images of CIFAR-10. Epochs are in ``PAIRS``. Excess: the largest training loss at 21 points minus that of
the larger end; with BatchNorm its statistics are computed again at every point. Trained pairs are kept in FOLDER.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from alignment_planted import resnet, vgg
from common import clock, data, perceptron, start, trained
from torch import Tensor, nn

import isthmus as im

Pair = tuple[Callable[[], nn.Module], str, int]
PAIRS: dict[str, Pair] = {
    "perceptron-512": (lambda: perceptron(3, 512), "mnist", 5),
    "perceptron-128": (lambda: perceptron(3, 128), "mnist", 5),
    "perceptron-32": (lambda: perceptron(3, 32), "mnist", 5),
    "VGG": (lambda: vgg(bn=False), "cifar", 6),
    "VGG-BN": (lambda: vgg(bn=True), "cifar", 10),
    "ResNet-8": (lambda: resnet(1, 16), "cifar 16x16", 10),
    "ResNet-8x3": (lambda: resnet(1, 48), "cifar 16x16", 4),
}
"""For each pair its module, its data, and the epochs."""


@cache
def examples(kind: str) -> tuple[Tensor, Tensor]:
    """The training data of a pair."""
    if kind == "mnist":
        return data(20_000)
    cifar = im.data.load("cifar10")
    x = cifar.x_train[:8_000]
    return (F.avg_pool2d(x, 2) if "16" in kind else x), cifar.y_train[:8_000]


def ends(name: str) -> list[im.Params]:
    """The trained pair, from the folder where it is kept."""
    make, kind, epochs = PAIRS[name]
    folder = Path(sys.argv[sys.argv.index("--keep") + 1]) if "--keep" in sys.argv else None
    file = folder / f"{name}.pt" if folder else None
    if file and file.exists():
        return torch.load(file)
    found = [fresh(make, kind, seed, epochs) for seed in (0, 1)]
    if file:
        torch.save(found, file)
    return found


def fresh(make: Callable[[], nn.Module], kind: str, seed: int, epochs: int) -> im.Params:
    """A network from its own start."""
    torch.manual_seed(seed)
    return trained(make().train(), *examples(kind), seed, epochs, 128)
