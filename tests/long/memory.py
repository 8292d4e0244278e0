"""Memory of a sweep against the number of its cells, and of a profile against the size of the network.

    python -m tests.long.memory

Each measurement is a process of its own. "held": what the process holds that is not a page of a file (RssAnon), at its
largest, above what it held before the work; sampled every 5 ms.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import isthmus as im
from benchmarks.sweep_overhead import Empty
from isthmus.sweep import Local, Store, run_cells


def held() -> float:
    """Megabytes of this process that are not pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@contextmanager
def largest(found: list[float]) -> Iterator[None]:
    """Put the largest number of megabytes held inside, above what was held before, into `found`."""
    before, done = held(), threading.Event()
    found.append(0.0)

    def watch() -> None:
        while not done.wait(0.005):
            found[0] = max(found[0], held() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def sweep(count: int) -> float:
    """Megabytes that a sweep of so many empty cells takes."""
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder, largest(found):
        run_cells([Empty(n) for n in range(count)], Store(Path(folder)), Local())
    return found[0]


def profile(width: int) -> tuple[float, float]:
    """Megabytes of a perceptron's weights, and what measuring a line takes when both ends are there."""
    module = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    size = sum(p.numel() * p.element_size() for p in module.parameters()) / 2**20
    a = {k: v.clone() for k, v in module.state_dict().items()}
    b = {k: v + 0.01 for k, v in a.items()}
    objective = im.Objective(module, data=(torch.randn(100, 64), torch.randint(10, (100,))))
    objective.loss(a)
    path = im.connect(objective, a, b, im.Linear()).path
    found: list[float] = []
    with largest(found):
        im.profile(objective, path, num_points=5)
    return size, found[0]


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        print(eval(sys.argv[1]))
        return
    for work in ("sweep(100)", "sweep(1000)", "sweep(10000)", "profile(2000)", "profile(4000)", "profile(8000)"):
        run = subprocess.run([sys.executable, "-m", "tests.long.memory", work], capture_output=True, text=True)
        print(work, run.stdout.strip() or run.stderr[-300:], flush=True)


if __name__ == "__main__":
    main()
