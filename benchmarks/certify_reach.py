"""How far proofs reach: the line between two 784-500x5-10 networks, to gaps of 10 %, 1 % and 0.1 %, by both models.

``python benchmarks/certify_reach.py A.safetensors B.safetensors [--examples 1000] [--model chord] [--cpu]``, on the
first images of Fashion-MNIST. A profile is 61 passes of the network in float64, timed in the same run.
"""

from __future__ import annotations

import sys

import torch
from common import clock, perceptron, start

import isthmus as im


def main() -> None:
    start("proofs of the line between two perceptrons 784-500x5-10")
    a, b = [v for v in sys.argv[1:] if v.endswith(".safetensors")]
    number = int(sys.argv[sys.argv.index("--examples") + 1]) if "--examples" in sys.argv else 1000
    model = sys.argv[sys.argv.index("--model") + 1] if "--model" in sys.argv else "auto"
    held = im.data.load("fashion-mnist")
    objective = im.Objective(perceptron(), data=(held.x_train[:number].flatten(1).float(), held.y_train[:number]))
    path = im.connect(objective, a, b).path
    wide, middle = objective.cast(torch.float64), {k: v.double() for k, v in path.at(0.5).items()}
    begin = clock()
    for _ in range(5):
        wide.loss(middle)
    profile = 61 * (clock() - begin) / 5
    for gap in (0.1, 0.01, 0.001):
        begin = clock()
        found = im.certify(objective, path, gap, model=model)
        took = clock() - begin
        print(
            f"gap {100 * gap:g} %: {found.model}, {found.evaluations} sub-intervals, bound {found.bound:.5f}, largest "
            f"seen {found.witness[1]:.5f}, close {found.close}, {took:.1f} s = {took / profile:.1f} profiles"
        )


if __name__ == "__main__":
    main()
