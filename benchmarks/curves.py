"""How low trained curves are and what they cost: 784-500x5-10, 10,000 images; published recipe, and ours, in one run.

``python benchmarks/curves.py [A.safetensors B.safetensors] [--epochs 20] [--cpu]``; without files two networks are
trained on MNIST, with files the data are the first 10,000 images of Fashion-MNIST. The largest loss is over 61 points,
on all examples, in float32.
"""

from __future__ import annotations

import sys
from time import perf_counter, process_time

import torch
import torch.nn.functional as F
from common import CPU, data, perceptron, start, trained
from torch import Tensor

import isthmus as im

METHODS = {
    "Bezier, focus 3, Adam": lambda epochs: im.Bezier(recipe=ours(epochs)),
    "Bezier, focus 1, Adam": lambda epochs: im.Bezier(focus=1, recipe=ours(epochs)),
    "Bezier, focus 1, SGD (the published recipe)": lambda epochs: im.Bezier(focus=1, recipe=published(epochs)),
    "PolyChain, focus 3, Adam": lambda epochs: im.PolyChain(recipe=ours(epochs)),
}


def ours(epochs: int) -> im.Recipe:
    return im.Recipe(lr=None, epochs=epochs, batch=128, precision="auto")


def published(epochs: int) -> im.Recipe:
    return im.Recipe("sgd", lr=0.02, epochs=epochs, batch=128, momentum=0.9)


def pair(files: list[str]) -> tuple[im.Objective, im.Params | str, im.Params | str]:
    if not files:
        x, y = data()
        ends = [trained(perceptron(), x, y, seed, epochs=6) for seed in (1, 2)]
        return im.Objective(perceptron(), data=(x, y)), ends[0], ends[1]
    held = im.data.load("fashion-mnist")
    x, y = held.x_train[:10_000].flatten(1).float(), held.y_train[:10_000]
    return im.Objective(perceptron(), data=(x, y)), files[0], files[1]


def plain_epoch(x: Tensor, y: Tensor) -> float:
    """Seconds of an epoch of training one network by the obvious loop, the best of two."""
    module = perceptron()
    optimizer = torch.optim.Adam(module.parameters(), 1e-3, fused=True)
    times = []
    for _ in range(2):
        begin = clock()
        for index in torch.randperm(len(y)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(module(x[index]), y[index]).backward()
            optimizer.step()
        times.append(clock() - begin)
    return min(times)


def clock() -> float:
    return process_time() if CPU else perf_counter()


def main() -> None:
    start("How low are trained curves, and what do they cost?")
    epochs = int(sys.argv[sys.argv.index("--epochs") + 1]) if "--epochs" in sys.argv else 20
    objective, a, b = pair([v for v in sys.argv[1:] if v.endswith(".safetensors")])
    x, y = objective.data
    assert isinstance(x, Tensor)
    print(f"  straight line: {im.profile(objective, im.connect(objective, a, b)).max:.4g}")
    for name, method in METHODS.items():
        epoch = plain_epoch(x, y)
        begin = clock()
        found = im.connect(objective, a, b, method(epochs))
        seconds = clock() - begin
        top = im.profile(objective, found, 61).max
        steps = found.cost.gradient_steps or 0
        share = seconds / (steps / (len(y) // 128) * epoch)
        print(
            f"  {name}: {steps} steps in {found.info.precision}, at most {top:.4g} (ends {max(found.info.ends):.4g}),"
            f" {seconds:.1f} s, {share:.2f} x as many epochs of plain training",
            flush=True,
        )


if __name__ == "__main__":
    main()
