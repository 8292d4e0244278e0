"""Memory of a sweep against the number of its cells, and of a profile against the size of the network.

    python -m tests.long.memory

Each measurement is a process of its own. "held": what the process holds that is not a page of a file (RssAnon), at its
largest, above what it held before the work; sampled every 5 ms.
"""

from __future__ import annotations

import multiprocessing
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


def perceptron(width: int) -> tuple[im.Objective, im.Params, float]:
    """An objective, the weights of a perceptron, and their megabytes."""
    module = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    size = sum(p.numel() * p.element_size() for p in module.parameters()) / 2**20
    objective = im.Objective(module, data=(torch.randn(100, 64), torch.randint(10, (100,))))
    a = {k: v.clone() for k, v in module.state_dict().items()}
    objective.loss(a)
    return objective, a, size


def profile(width: int) -> tuple[float, float]:
    """Megabytes of a perceptron's weights, and what measuring a line takes when both ends are there."""
    objective, a, size = perceptron(width)
    path = im.connect(objective, a, {k: v + 0.01 for k, v in a.items()}, im.Linear()).path
    found: list[float] = []
    with largest(found):
        im.profile(objective, path, num_points=5)
    return size, found[0]


def stored(segments: int) -> tuple[float, float, float]:
    """Megabytes of a perceptron's weights, of a file of a path of so many lines, and what measuring that takes."""
    objective, a, size = perceptron(2000)

    def write(file: Path) -> None:
        path = im.Path.through([{k: v + 0.01 * i for k, v in a.items()} for i in range(segments + 1)])
        im.save(im.Connection(path, path.end, im.Outcome.CONSTRUCTED, {}), file)

    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "path.safetensors"
        # another process, whose memory is not taken again by this one
        writer = multiprocessing.get_context("fork").Process(target=write, args=(file,))
        writer.start()
        writer.join()
        of_file = file.stat().st_size / 2**20
        with largest(found):
            im.profile(objective, file, num_points=3)
    return size, of_file, found[0]


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        print(eval(sys.argv[1]))
        return
    sweeps = [f"sweep({n})" for n in (100, 1000, 10000)]
    profiles = [f"profile({n})" for n in (2000, 4000, 8000)]
    for work in [*sweeps, *profiles, *(f"stored({n})" for n in (4, 16, 64))]:
        run = subprocess.run([sys.executable, "-m", "tests.long.memory", work], capture_output=True, text=True)
        print(work, run.stdout.strip() or run.stderr[-300:], flush=True)


if __name__ == "__main__":
    main()
