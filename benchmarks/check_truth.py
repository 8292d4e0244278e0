"""``check`` against what 201 points say: how often it says "go" wrongly, and in how many passes over the data.

``python benchmarks/check_truth.py --cpu``: perceptrons, networks with BatchNorm and small transformers on
digits: independent seeds; twins tuned from one base with small to large rates; low-rank tunings of one base; soups of 3
to 8. The truth: the largest loss at 201 points of each line, and the loss at the mean, on the training and on the
held-out data, against 1.1 times the larger end's.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from common import THREADS, clock
from torch import Tensor, nn

import isthmus as im
from isthmus.params import Params
from isthmus.pipeline import train

LEVEL, POINTS = 1.1, 201
Make = Callable[[], nn.Module]


class Blocks(nn.Module):
    """A pre-norm transformer on the eight rows of a digit."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, width), nn.Linear(width, 10)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x.view(-1, 8, 8))).mean(1))


def perceptron(width: int, depth: int = 2) -> nn.Sequential:
    widths = [64] + [width] * depth
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def normed() -> nn.Sequential:
    convolutions = [nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 24, 3, padding=1, stride=2)]
    parts = [m for c in convolutions for m in (c, nn.BatchNorm2d(c.out_channels), nn.ReLU())]
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10))


MAKES: dict[str, Make] = {
    "perceptron 64": lambda: perceptron(64),
    "perceptron 24x3": lambda: perceptron(24, 3),
    "BatchNorm": normed,
    "transformer": Blocks,
}


@dataclass(frozen=True)
class Case:
    """Networks to be judged, on what they were trained for."""

    name: str
    objective: im.Objective
    test: im.Objective
    models: Sequence[Params]


def tuned(make: Make, data: tuple[Tensor, Tensor], begin: Params | None, seed: int, steps: int, lr: float) -> Params:
    torch.manual_seed(seed)
    module = make()
    if begin is not None:
        module.load_state_dict(begin)
    return train(module, data, im.Recipe(lr=lr, steps=steps, batch=128), seed=seed).params


def low_rank(begin: Params, end: Params, rank: int = 2) -> Params:
    """The base and the best approximation of what was moved by matrices of low rank, as adapters are."""

    def cut(moved: Tensor) -> Tensor:
        if moved.dim() != 2:
            return torch.zeros_like(moved)
        u, s, v = torch.linalg.svd(moved, full_matrices=False)
        return u[:, :rank] * s[:rank] @ v[:rank]

    return {k: v + cut(end[k] - v) if v.is_floating_point() else v for k, v in begin.items()}


def cases() -> Iterator[Case]:
    digits = im.data.load("digits").flat().floating()
    data = digits.x_train, digits.y_train
    for name, make in MAKES.items():
        objective = im.Objective(copy.deepcopy(make()).eval(), data=data)
        test = objective.on((digits.x_test, digits.y_test))
        base = tuned(make, data, None, 0, 150, 3e-3)
        alone = [tuned(make, data, None, seed, 400, 3e-3) for seed in (1, 2, 3)]
        yield Case(f"{name}: independent seeds", objective, test, alone[:2])
        yield Case(f"{name}: independent seeds, 2", objective, test, alone[1:])
        yield Case(f"{name}: soup of 3 seeds", objective, test, alone)
        for lr in (1e-4, 1e-3, 3e-3, 1e-2, 3e-2):
            twins = [tuned(make, data, base, 10 + k, 200, lr) for k in (0, 1)]
            yield Case(f"{name}: twins, rate {lr:g}", objective, test, twins)
            if lr in (1e-3, 1e-2):
                yield Case(f"{name}: low rank, rate {lr:g}", objective, test, [low_rank(base, t) for t in twins])
                count = 3 if lr == 1e-3 else 8
                more = [tuned(make, data, base, 30 + k, 100, lr) for k in range(count)]
                yield Case(f"{name}: soup of {count}, rate {lr:g}", objective, test, more)


def truth(case: Case) -> bool:
    """Whether the networks may be averaged, by 201 points of each line."""
    good = True
    for i, j in combinations(range(len(case.models)), 2):
        path = im.Path.through([case.models[i], case.models[j]])
        found = im.profile(case.objective, path, POINTS, test=case.test)
        assert found.test is not None
        for one in (found, found.test):
            good &= one.max < LEVEL * float(one.loss[[0, -1]].max())
    found = im.merge(case.objective, list(case.models), test=case.test, weights=[1.0] * len(case.models))
    return good and bool(found.ok)


def main() -> None:
    torch.set_num_threads(THREADS)
    print(f"May they be averaged?\n  torch {torch.__version__}, {THREADS} thread(s)", flush=True)
    counts = {"go, rightly": 0, "go, FALSELY": 0, "no-go, rightly": 0, "no-go, too careful": 0}
    passes, slowest = [], 0.0
    for case in cases():
        begin = clock()
        found = im.check(case.objective, list(case.models), test=case.test)
        seconds = clock() - begin
        pairs = len(found.lines)
        right = truth(case)
        word = ("go, " if found.go else "no-go, ") + (
            "rightly" if found.go == right else "FALSELY" if found.go else "too careful"
        )
        counts[word] += 1
        passes.append(found.passes / pairs)
        slowest = max(slowest, seconds)
        again = json.dumps(im.check(case.objective, list(case.models), test=case.test).to_dict())
        same = "" if json.dumps(found.to_dict()) == again else ", TWICE NOT THE SAME"
        top = max(d.profile.max / d.level for line in found.lines.values() for d in line.values())
        after = "" if not found.aligned else f", aligned {'go' if 'they may:' in found.why else 'no-go'}"
        told = f"{top:.3g} x the level, {passes[-1]:.1f} passes a pair, {seconds:.1f} s{same}"
        print(f"  {case.name}: {word}{after}; {told}", flush=True)
    mean = sum(passes) / len(passes)
    print(f"  {counts}; passes per pair {mean:.1f}, at most {max(passes):.1f}; slowest {slowest:.1f} s")


if __name__ == "__main__":
    main()
