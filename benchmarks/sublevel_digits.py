"""How far does float64 carry the exact paths of Nguyen 2019, against the number of samples N and the depth?

The first N of scikit-learn's digits (x / 16 minus the mean; more samples: Gaussian ones of 64 inputs), perceptrons
with biases and 10 outputs, random ends (He) and ends trained by Adam. By N: Theorem 5.1 on 64 - 2N - 24 - 12 - 10,
leaky ReLU of slope 0.2; Theorem 6.1 on 64 - 2N - 2N - 10, ReLU; ``descend`` on 64 - 32 - N - 10 from a layer of rank 5.
By depth and slope: Theorem 5.1 at N = 40 with more layers, slopes from 0.5 to 0.01. By closeness: Theorem 5.1 at N = 40
with every second sample a copy of the one before, moved by eps. Columns of the Markdown table: outcome, condition
number of F_1, largest drift of an output over the largest output, decimal digits lost, largest norm over that of the
ends, excess measured and excess proved over the larger of 1 and the higher end's loss (nothing where some segment is
only measured), segments, processor seconds to connect and to certify.

    python benchmarks/sublevel_digits.py [--large]
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.models import seeded
from isthmus.pipeline import train
from isthmus.training.fit import Recipe

SAMPLES = (40, 100, 200, 400)
LARGE = (500, 1000, 2000)
DEPTHS = ((24, 12), (32, 24, 18, 12), (36, 32, 28, 24, 20, 16, 12))
SLOPES = (0.5, 0.2, 0.05, 0.01)
CLOSE = (1e-3, 1e-5, 1e-7, 1e-9)
COLUMNS = (
    *("path", "outcome", "cond F_1", "drift", "digits lost", "growth", "excess", "proved", "segments"),
    *("connect, s", "certify, s"),
)


def network(widths: Sequence[int], slope: float | None) -> nn.Sequential:
    """Leaky ReLU with that slope, or ReLU."""
    parts: list[nn.Module] = []
    for n, m in pairwise(widths):
        parts += [nn.Linear(n, m), nn.ReLU() if slope is None else nn.LeakyReLU(slope)]
    return nn.Sequential(*parts[:-1]).double()


def digits(n: int) -> tuple[Tensor, Tensor]:
    """The first n digits as rows of mean zero; Gaussian samples where there are not so many."""
    data = im.data.load("digits").flat()
    assert data.x_test is not None
    assert data.y_test is not None
    x, y = torch.cat([data.x_train, data.x_test]).double(), torch.cat([data.y_train, data.y_test])
    if n > len(x):
        return torch.randn(n, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(n) % 10
    return x[:n] - x[:n].mean(0), y[:n]


def ends(widths: Sequence[int], slope: float | None, data: tuple[Tensor, Tensor], steps: int) -> list[im.Params]:
    """Two networks, He's random weights or trained ones."""
    out = []
    for seed in (1, 2):
        module = seeded(lambda: network(widths, slope), seed)
        if steps:
            recipe = Recipe(optimizer="adam", lr=1e-3, batch=64, steps=steps)
            out.append(train(module, data, recipe, seed=seed, target=1e-6).params)
            continue
        g = torch.Generator().manual_seed(seed)
        scale = {k: (2 / v[0].numel()) ** 0.5 if v.dim() > 1 else 0.3 for k, v in module.state_dict().items()}
        draw = {k: torch.randn(v.shape, generator=g, dtype=torch.float64) for k, v in module.state_dict().items()}
        out.append({k: v * scale[k] for k, v in draw.items()})
    return out


def line(*cells: object) -> None:
    """One line of the table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def row(name: str, objective: im.Objective, work: im.Connection, seconds: float) -> None:
    """The line of one construction, certified here."""
    s = work.stats
    if s["theorem"] is None:
        line(name, work.outcome.name, s["premises"][0], *[""] * (len(COLUMNS) - 3))
        return
    begin = time.process_time()
    first, last = (objective.loss(p) for p in (work.path.start, work.path.end))
    top = max(1.0, first, last)
    c = im.certify(objective, work.path)
    took = time.process_time() - begin
    conditions = s["conditions"]["b"] if "b" in s["conditions"] else s["conditions"]
    rise = max(0.0, s["excess"] if "excess" in s else s["rise"]) / top
    reached = f", loss {first:.2g} to {last:.1e}" if "loss" in s else ""
    line(
        name + reached, work.outcome.name, f"{max(v for k, v in conditions.items() if k.startswith('F')):.1e}",
        f"{s['drift']:.1e}", f"{s['digits_lost']:.1f}", f"{s['growth']:.2g}", f"{rise:.1e}",
        f"{c.excess / top:.1e}" if c.proved else "", len(work.path), f"{seconds:.1f}", f"{took:.1f}",
    )  # fmt: skip


def connected(
    name: str, widths: Sequence[int], slope: float | None, data: tuple[Tensor, Tensor], steps: int, theorem: str
) -> None:
    a, b = ends(widths, slope, data, steps)
    objective = im.Objective(network(widths, slope), data=data)
    _ = objective.structure
    begin = time.process_time()
    work = im.connect(objective, a, b, im.Sublevel(theorem=theorem, prove=False))
    row(name, objective, work, time.process_time() - begin)


def descended(n: int) -> None:
    x, y = digits(n)
    widths = (64, 32, n, 10)
    a = ends(widths, 0.2, (x, y), 0)[0]
    for k in ("2.weight", "2.bias"):
        a[k] = a[k][torch.arange(n) % 5]
    targets = torch.nn.functional.one_hot(y, 10).double()
    objective = im.Objective(network(widths, 0.2), "mse", (x, targets))
    _ = objective.structure
    begin = time.process_time()
    low = im.descend(objective, a, 1e-20, prove=False)
    row(f"descend, N = {n}, from rank 5", objective, low, time.process_time() - begin)


def paired(n: int, eps: float) -> tuple[Tensor, Tensor]:
    """The first n / 2 digits, each with a copy moved by a vector of length eps."""
    x, y = digits(n // 2)
    away = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([x, x + eps * away / away.norm(dim=1, keepdim=True)]), torch.cat([y, y])


def main(large: bool) -> None:
    torch.set_num_threads(1)
    line(*COLUMNS)
    line(*["---"] * len(COLUMNS))
    for n in SAMPLES:
        for kind, steps in (("random", 0), ("trained", 400)):
            connected(f"5.1, N = {n}, {kind}", (64, 2 * n, 24, 12, 10), 0.2, digits(n), steps, "5.1")
            connected(f"6.1, N = {n}, {kind}", (64, 2 * n, 2 * n, 10), None, digits(n), steps, "6.1")
        descended(n)
    for widths in DEPTHS:
        for slope in SLOPES:
            name = f"5.1, N = 40, {len(widths) + 2} layers, slope {slope}"
            connected(name, (64, 80, *widths, 10), slope, digits(40), 0, "5.1")
    for eps in CLOSE:
        connected(f"5.1, N = 40, pairs {eps:g} apart", (64, 80, 24, 12, 10), 0.2, paired(40, eps), 0, "5.1")
    for n in LARGE if large else ():
        connected(f"5.1, N = {n}, random", (64, 2 * n, 24, 12, 10), 0.2, digits(n), 0, "5.1")
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"memory of the process so far: {memory:.2f} GB", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main("--large" in sys.argv)
