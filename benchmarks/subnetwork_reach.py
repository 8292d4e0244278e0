"""How low, and in how much processor time, is the path of Theorem 4.1 between two Fashion-MNIST perceptrons?

A pair 784-500x5-10 is trained on the first 10,000 images to zero training error (SGD 0.005, momentum 0.95, Nesterov,
batch 100); its training is not counted. Published elastic bands reach a maximum training loss of 0.007 in 168 and of
0.0014 in 706 processor seconds on such a pair. With ``--pair DIR`` the pair is kept there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import process_time

import common
import torch
from torch import Tensor

import isthmus as im
from isthmus.models import by_name, seeded
from isthmus.params import Params
from isthmus.pipeline import train
from isthmus.training.fit import Recipe

MODEL = "mlp:784-500x5-10"
RECIPE = Recipe("sgd", lr=0.005, momentum=0.95, batch=100, schedule="constant", steps=12_100)
TARGETS = {1: 4e-4, 2: 2e-4}
"""The loss at which each network's training stops; by then no training image is misclassified."""

RUNS = (
    ("max loss 0.007", im.Subnetwork(slack=5e-3, inner=im.Trained(recipe=im.Recipe(lr=1e-3))), 0.007, 168.0),
    ("max loss 0.0014", im.Subnetwork(slack=1e-3, inner=im.Trained(recipe=im.Recipe(lr=1e-3))), 0.0014, 700.0),
    ("defaults: the larger end's loss", im.Subnetwork(), 0.0014, 700.0),
)


def pair(x: Tensor, y: Tensor) -> list[Params]:
    folder = Path(sys.argv[sys.argv.index("--pair") + 1]) if "--pair" in sys.argv else None
    ends = []
    for seed, target in TARGETS.items():
        file = folder / f"p{seed}.safetensors" if folder else None
        if file is not None and file.is_file():
            ends.append(im.load_params(file))
            continue
        module = seeded(lambda: by_name(MODEL), seed)
        ends.append(train(module, (x, y), RECIPE, seed=seed, target=target).params)
        if file is not None:
            im.save_params(ends[-1], file, {})
    return ends


def main() -> None:
    common.start(f"Path of Theorem 4.1 between two {MODEL}")
    torch.set_num_threads(1)
    data = im.data.load("fashion-mnist")
    x, y = data.x_train[: common.EXAMPLES].flatten(1), data.y_train[: common.EXAMPLES]
    a, b = pair(x, y)
    objective = im.Objective(by_name(MODEL), data=(x, y))
    line = im.profile(objective, im.connect(objective, a, b).path, 61).max
    print(f"  ends {objective.loss(a):.6f} {objective.loss(b):.6f}, straight line {line:.4f}", flush=True)
    rows = []
    for what, method, height, seconds in RUNS:
        begin = process_time()
        connection = im.connect(objective, a, b, method)
        used = process_time() - begin
        profile = im.profile(objective, connection.path, 3)
        begin = process_time()
        certificate = im.certify(objective, connection.path)
        proof = process_time() - begin
        limit = connection.stats["limited_by"]
        print(
            f"  {what}: {used:.1f} s, measured {profile.max:.6f}, proved {certificate.bound:.6f} in {proof:.1f} s,"
            f" limited by xi_{limit['layer']} at {limit['end']} ({limit['loss']:.6f} after {limit['steps']} steps)",
            flush=True,
        )
        rows += [(f"{what}: times below {height:g}", height / certificate.bound, 1.0)]
        rows += [(f"{what}: times faster than {seconds:g} s", seconds / used, 1.0)]
    common.report(rows)


if __name__ == "__main__":
    main()
