"""What the benchmarks share: data, networks, the loops they compare with, and interleaved timing.

Every script prints ratios of times taken in turns in one process. Run one with ``python benchmarks/<name>.py``; with
``--cpu`` it uses one thread and counts processor seconds, for a machine that others use too; with ``--strict`` it
fails when a target is missed. Data: MNIST if ``isthmus.data.load`` finds it, else Gaussian clusters of the same shape.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

import isthmus as im
from isthmus.paths import Curve, Segment

CPU = "--cpu" in sys.argv
THREADS = 1 if CPU else 2
EXAMPLES = 10_000


def start(question: str) -> None:
    """Print the question and fix the number of threads."""
    torch.set_num_threads(THREADS)
    kind = "processor" if CPU else "wall"
    print(f"{question}\n  torch {torch.__version__}, {THREADS} thread(s), {kind} time, {EXAMPLES} examples", flush=True)


def data(n: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    """n examples [n, 784] with labels 0 to 9."""
    try:
        mnist = im.data.load("mnist")
        return (mnist.x_train[:n].flatten(1).float() - 0.13) / 0.31, mnist.y_train[:n]
    except im.FileError:
        print("  (no MNIST: Gaussian clusters)")
        g = torch.Generator().manual_seed(0)
        y = torch.randint(0, 10, (n,), generator=g)
        return torch.randn(10, 784, generator=g)[y] + 2 * torch.randn(n, 784, generator=g), y


def perceptron(hidden: int = 5, width: int = 500, inputs: int = 784) -> nn.Sequential:
    """inputs - width x hidden - 10, ReLU."""
    widths = [inputs, *[width] * hidden, 10]
    parts = [m for n, k in pairwise(widths) for m in (nn.Linear(n, k), nn.ReLU())]
    return nn.Sequential(*parts[:-1]).eval()


def trained(module: nn.Module, x: Tensor, y: Tensor, seed: int, epochs: int = 3, batch: int = 250) -> im.Params:
    """A few epochs of Adam from a fresh start."""
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.reset_parameters()
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(y)).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(module(x[index]), y[index]).backward()
            optimizer.step()
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def careful(
    module: nn.Module, segment: Segment, ts: Sequence[float], x: Tensor, y: Tensor, batch: int
) -> list[tuple[float, float]]:
    """The careful loop: no gradients, tensors in memory, one pass per point in good batches."""
    out = []
    with torch.no_grad():
        for t in ts:
            params = segment.at(t)
            loss = wrong = 0.0
            for p, q in zip(x.split(batch), y.split(batch), strict=True):
                z = functional_call(module, params, (p,))
                loss += float(F.cross_entropy(z, q, reduction="sum"))
                wrong += float((z.argmax(1) != q).sum())
            out.append((loss / len(y), wrong / len(y)))
    return out


def over_loader(module: nn.Module, segment: Segment, ts: Sequence[float], x: Tensor, y: Tensor) -> list[float]:
    """The careful loop, but over a DataLoader with batch 100."""
    loader = DataLoader(TensorDataset(x, y), batch_size=100)
    out = []
    with torch.no_grad():
        for t in ts:
            params = segment.at(t)
            out.append(sum(float(F.cross_entropy(functional_call(module, params, (p,)), q)) for p, q in loader))
    return out


def published(module: nn.Module, segment: Segment, ts: Sequence[float], x: Tensor, y: Tensor) -> list[float]:
    """The loop of published curve evaluators: a DataLoader, weights made again for each batch, gradients recorded."""
    loader = DataLoader(TensorDataset(x, y), batch_size=100)
    learnt = dict(module.named_parameters())
    ends = [{k: v.clone().requires_grad_(k in learnt) for k, v in segment.at(t).items()} for t in (0, 1)]
    own = Curve(tuple(ends))
    out = []
    for t in ts:
        total = 0.0
        for p, q in loader:
            z = functional_call(module, own.at(t), (p,))
            total += float(F.cross_entropy(z, q).detach())
        out.append(total)
    return out


def good_batch(module: nn.Module, segment: Segment, x: Tensor, y: Tensor) -> int:
    """The batch size with which the careful loop is fastest here."""
    sizes = [b for b in (100, 250, 1000, 2500, 10_000) if b <= len(y)]
    best = {b: min(timed(lambda b=b: careful(module, segment, [0.5], x, y, b)) for _ in range(3)) for b in sizes}
    return min(best, key=lambda b: best[b])


def clock() -> float:
    """Wall seconds, or processor seconds with --cpu."""
    return process_time() if CPU else perf_counter()


def timed(work: Callable[[], object]) -> float:
    """What that costs, in seconds of ``clock``."""
    begin = clock()
    work()
    return clock() - begin


def in_turns(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The times of each, taken in turns after one round that does not count."""
    out: dict[str, list[float]] = {name: [] for name in works}
    for k in range(rounds + 1):
        for name, work in works.items():
            seconds = timed(work)
            if k:
                out[name].append(seconds)
    return out


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The median over the rounds of slow / fast."""
    return median(p / q for p, q in zip(slow, fast, strict=True))


def gflops(n: int = 2048, dtype: torch.dtype = torch.float32) -> float:
    """What a large matrix product reaches now, in GFLOP/s: the machine's measured peak."""
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return 2 * n**3 / min(timed(lambda: a @ b) for _ in range(5)) / 1e9


def report(rows: Sequence[tuple[str, float, float]]) -> None:
    """A table: what, value, target; exits with 1 if a target is missed."""
    for what, value, target in rows:
        print(f"  {what:<66} {value:8.2f}   target {target:g}{'' if value >= target else '   MISSED'}")
    if any(value < target for _, value, target in rows) and "--strict" in sys.argv:
        raise SystemExit(1)


if __name__ == "__main__":
    print(__doc__, *sorted(p.name for p in Path(__file__).parent.glob("*.py")), sep="\n")
