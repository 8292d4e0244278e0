"""What alignment leaves of the barrier between convolutional networks and narrow perceptrons, and what stays provable.

    python benchmarks/alignment_acceptance.py --cpu [PAIR[:EPOCHS] ...] [--keep FOLDER]

Pairs from seeds 0 and 1, Adam 1e-3, batch 128: perceptrons 784-width x3-10 on the first 20,000 images of MNIST, 5
epochs; convolutions 32-64-128-128 with and without BatchNorm, and ResNet-8 of width 16 and 48 (images 16x16), on the
first 8,000 images of CIFAR-10. Epochs are in ``PAIRS``, or given. Excess: the largest training loss at 11 points a
segment minus that of the larger end, on the first 500 examples; with BatchNorm its statistics are computed again at
every point, and are part of the renormalised path. Trained pairs are kept in FOLDER.
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


def pair(name: str) -> Pair:
    """The pair of a name, which may say how many epochs."""
    known, _, given = name.partition(":")
    make, kind, epochs = PAIRS[known]
    return make, kind, int(given or epochs)


def ends(name: str) -> list[im.Params]:
    """The trained pair, from the folder where it is kept."""
    make, kind, epochs = pair(name)
    folder = Path(sys.argv[sys.argv.index("--keep") + 1]) if "--keep" in sys.argv else None
    file = folder / f"{name.replace(':', '-')}.pt" if folder else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
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


ROWS: dict[str, im.Matching] = {
    "weights, forward": im.WeightMatching(),
    "weights, barycentre": im.WeightMatching("barycentre"),
    "activations": im.ActivationMatching(),
}
RESTARTS, POINTS, EVALUATED, PROVED = 10, 11, 500, 200


def lines(name: str) -> None:
    """The excess on the lines of a pair, naive and aligned, as they are and renormalised; eleven descents."""
    make, kind, epochs = pair(name)
    a, b = ends(name)
    module = make().eval()
    objective = im.Objective(module, data=examples(kind))
    few = objective.subset(EVALUATED)
    objective.structure, objective.program  # noqa: B018 - derived once, before the clock starts
    print(f"{name}, {epochs} epochs: losses {few.loss(a):.4f}, {few.loss(b):.4f}", flush=True)

    def excess(method: im.Connector, bn: str | None = None) -> str:
        return f"{im.profile(few, im.connect(objective, a, b, method), POINTS, bn=bn).excess:.4f}"

    print(f"  {'naive':22} excess {excess(im.Linear())}, renormalised {excess(im.Renormalised(), 'interpolate')}")
    for way, matching in ROWS.items():
        begin = clock()
        found = im.align(objective, a, b, matching)
        seconds, order = clock() - begin, im.Given(found.permutations)
        both = (excess(im.Aligned(matching=order)), excess(im.Aligned(im.Renormalised(), order), "interpolate"))
        print(f"  {way:22} excess {both[0]}, renormalised {both[1]}; similarity {found.runs[0].similarity:.2f}, "
              f"{seconds:.2f} s, function {found.function_error:.0e}", flush=True)  # fmt: skip
    begin = clock()
    best = max(run.similarity for run in im.align(objective, a, b, im.WeightMatching("identity", RESTARTS)).runs)
    print(f"  best of {RESTARTS + 1} descents: similarity {best:.2f}, {clock() - begin:.1f} s", flush=True)
    if name == "perceptron-512":
        bent(objective, a, b)
    if name == "perceptron-32":
        proved(objective.subset(PROVED), objective, a, b)


def proved(few: im.Objective, objective: im.Objective, a: im.Params, b: im.Params) -> None:
    """What is proved of the naive line and of the aligned and renormalised path, on a few examples."""
    for way, method in (("naive line", im.Linear()), ("aligned, renormalised", im.Aligned(im.Renormalised()))):
        path = im.connect(objective, a, b, method)
        begin = clock()
        found = im.certify(few, path)
        seconds, top = clock() - begin, float(im.profile(few, path, 41).loss.max())
        told = "proved" if found.proved else "not proved"
        print(
            f"  {way:22} loss at most {found.bound:.3f} ({told}), of 41 points {top:.3f}, {seconds:.1f} s", flush=True
        )


def bent(objective: im.Objective, a: im.Params, b: im.Params) -> None:
    """Sixty steps of a quadratic curve, naive and aligned, on 4,000 examples."""
    curve = im.Bezier(recipe=im.Recipe(lr=1e-3, steps=60, batch=128))
    for way, method in (("curve, naive", curve), ("curve, aligned", im.Aligned(curve))):
        begin = clock()
        path = im.connect(objective, a, b, method)
        seconds, excess = clock() - begin, im.profile(objective.subset(4_000), path, POINTS).excess
        print(f"  {way:22} excess {excess:.4f}, {seconds:.1f} s", flush=True)


def main() -> None:
    start("What does alignment leave of the barrier?")
    keep = sys.argv.index("--keep") + 1 if "--keep" in sys.argv else None
    chosen = [word for k, word in enumerate(sys.argv) if k and k != keep and not word.startswith("--")]
    for name in chosen or PAIRS:
        lines(name)


if __name__ == "__main__":
    main()
