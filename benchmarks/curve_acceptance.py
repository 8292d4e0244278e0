"""What trained curves reach and what they cost, a line for each task, beside the target set for it.

``python benchmarks/curve_acceptance.py [NAME ...] --cpu --pairs FOLDER [--strict]``: FOLDER holds the pairs
``fmnist5x500_v*.safetensors`` and ``fmnist_smallcnn_s*.safetensors``, of the first 10,000 images of Fashion-MNIST.
Names: perceptron, aligned, convolution, step, proof, batchnorm. The largest loss is over 61 points, on all examples,
in float32. Targets in seconds were set on a processor with bfloat16; they are not relaxed on one without it, on which
training the large networks takes about twice as long.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch.nn.functional as F
from common import clock, start
from curve_families import ResNet8
from curve_families import trained as trained_pair
from curves import argument, ours, pair, plain_epoch
from torch import Tensor, nn

import isthmus as im


class SmallCNN(nn.Module):
    """Two convolutions and two layers, 206,922 parameters."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = (nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1))
        self.conv_part = nn.Sequential(*(m for c in convolutions for m in (c, nn.ReLU(), nn.MaxPool2d(2))))
        self.fc_part = nn.Sequential(nn.Linear(1568, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_part(self.conv_part(x).flatten(1))


def row(what: str, value: float, most: float, seconds: float, target: float) -> bool:
    """One line; whether both targets are met."""
    words = [f"{'excess' if most < 1e-3 else 'at most'} {value:.4g} (target {most:g}){' MISSED' * (value > most)}"]
    words += [f"{seconds:.1f} s (target {target:g}){' MISSED' * (seconds > target)}"]
    print(f"  {what}: {', '.join(words)}", flush=True)
    return value <= most and seconds <= target


def measured(
    what: str, objective: im.Objective, ends: tuple[im.Params | str, im.Params | str], method: im.Connector, *aim: float
) -> bool:
    """A line of the loss that a method reaches: `aim` is the largest loss, or an excess below .001, and seconds."""
    begin = clock()
    found = im.connect(objective, *ends, method)
    seconds, most, target = clock() - begin, *aim
    profile = im.profile(objective, found, 61 // len(found.path) + 1)
    return row(what, profile.excess if most < 1e-3 else profile.max, most, seconds, target)


def stored(kind: str) -> tuple[im.Objective, nn.Module, tuple[str, str]]:
    """The objective of a stored pair, its network, and its files."""
    folder = argument("--pairs", ".")
    if kind == "perceptron":
        files = f"{folder}/fmnist5x500_v1.safetensors", f"{folder}/fmnist5x500_v2.safetensors"
        objective, module, _, _ = pair([*files])
        return objective, module, files
    held, module = im.data.load("fashion-mnist"), SmallCNN().eval()
    objective = im.Objective(module, data=(held.x_train[:10_000].float(), held.y_train[:10_000]))
    return objective, module, (f"{folder}/fmnist_smallcnn_s1.safetensors", f"{folder}/fmnist_smallcnn_s2.safetensors")


def of_perceptron() -> list[bool]:
    objective, _, ends = stored("perceptron")
    aims = {10: (0.0071, 12), 20: (0.0014, 20), 40: (1e-6, 30)}
    return [
        measured(f"784-500x5-10, {n} epochs", objective, ends, im.Bezier(recipe=ours(n)), most, seconds)
        for n, (most, seconds) in aims.items()
    ]


def of_aligned() -> list[bool]:
    objective, _, ends = stored("perceptron")
    method = im.Aligned(im.Bezier(recipe=ours(5)))
    return [measured("784-500x5-10, aligned, 5 epochs", objective, ends, method, 0.0035, 6)]


def of_convolution() -> list[bool]:
    objective, _, ends = stored("convolution")
    return [measured("SmallCNN, 20 epochs", objective, ends, im.Bezier(recipe=ours(20)), 1e-6, 35)]


def of_step() -> list[bool]:
    """A step, and the share of what is no step, from the costs of short and longer runs."""
    objective, module, ends = stored("perceptron")
    x, y = objective.data
    assert isinstance(x, Tensor)
    ratios, shares = [], []
    for _ in range(3):
        plain, spent = plain_epoch(module, x, y), {}
        for epochs in (2, 6):
            begin = clock()
            im.connect(objective, *ends, im.Bezier(recipe=ours(epochs)))
            spent[epochs] = clock() - begin
        epoch = (spent[6] - spent[2]) / 4
        ratios.append(epoch / plain)
        rest = spent[2] - 2 * epoch
        shares.append(rest / (rest + 20 * epoch))
    print(f"  step over plain step: {sorted(ratios)[1]:.2f} (target 1.35); share of the rest: {sorted(shares)[1]:.2f}")
    return [sorted(ratios)[1] <= 1.35, sorted(shares)[1] <= 0.15]


def of_proof() -> list[bool]:
    sys.argv.append("--digits")
    objective, _, a, b = pair([])
    curve = im.connect(objective, a, b, im.Bezier(recipe=ours(120)))
    begin = clock()
    proof = im.certify(objective, curve, gap=0.05)
    return [row(f"64-60x4-10, {proof}", proof.bound, 1.05 * im.profile(objective, curve).max, clock() - begin, 3)]


def of_batchnorm() -> list[bool]:
    held = im.data.load("cifar10")
    x, y = F.avg_pool2d(held.x_train[:4000].float(), 2).flatten(1), held.y_train[:4000]
    objective = im.Objective(ResNet8(8, (3, 16, 16)).eval(), data=(x, y))
    one, two = (trained_pair(lambda: ResNet8(8, (3, 16, 16)), x, y, seed, 40) for seed in (1, 2))
    ends = one.state_dict(), two.state_dict()
    print(f"  ResNet-8: ends {objective.loss(ends[0]):.3g}, {objective.loss(ends[1]):.3g}", flush=True)
    return [
        measured(f"ResNet-8, {k} control points, 60 epochs", objective, ends,
                 im.Bezier(bends=k, recipe=replace(ours(60), batch=batch)), 0.2, 60)
        for k, batch in ((5, 128), (7, 128))
    ]  # fmt: skip


TASKS = {
    "perceptron": of_perceptron, "aligned": of_aligned, "convolution": of_convolution, "step": of_step,
    "proof": of_proof, "batchnorm": of_batchnorm,
}  # fmt: skip


def main() -> None:
    start("What do trained curves reach?")
    asked = [v for v in sys.argv[1:] if v in TASKS] or list(TASKS)
    met = [one for name in asked for one in TASKS[name]()]
    if not all(met) and "--strict" in sys.argv:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
