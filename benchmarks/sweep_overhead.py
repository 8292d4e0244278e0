"""What each engine adds to a cell: the seconds per cell of an empty job, and the seconds to start.

``python -m benchmarks.sweep_overhead [COUNT]`` prints a Markdown table.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isthmus.storage import write_json
from isthmus.sweep import Cell, Engine, Job, Local, Ray, Shard, Store, run_cells


@dataclass(frozen=True)
class Empty(Cell):
    n: int

    @property
    def group(self) -> str:
        return "empty"

    @property
    def label(self) -> str:
        return f"nothing, {self.n}"

    def digests(self) -> Mapping[str, str]:
        return {}

    def needs(self) -> tuple[Cell, ...]:
        return ()

    def run(self, job: Job) -> Mapping[str, Any]:
        return {"n": self.n}


def measure(engine: Engine, shard: Shard | None, count: int) -> tuple[float, float, float]:
    """(seconds to the first result, seconds per further cell, seconds per cell that is there)."""
    with tempfile.TemporaryDirectory() as folder:
        store, cells = Store(Path(folder)), [Empty(n) for n in range(count)]
        times: list[float] = []
        begin = time.perf_counter()
        report = run_cells(
            cells, store, engine, shard=shard, progress=lambda what, done, total: times.append(time.perf_counter())
        )
        assert report.computed == count
        results = [t for t in times if t > times[0]][:count]
        started = time.perf_counter()
        run_cells(cells, store, engine, shard=shard)
        found = time.perf_counter() - started
    return results[0] - begin, (results[-1] - results[0]) / (count - 1), found / count


def main() -> None:
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print(f"| engine | first result, s | each further cell, ms | each cell that is there, ms |\n{'| --- ' * 4}|")
    engines = (("this process", Local(), None), ("one shard", Local(), Shard(1, 1)), ("Ray, 2 workers", Ray(2), None))
    for name, engine, shard in engines:
        first, each, found = measure(engine, shard, count)
        print(f"| {name} | {first:.2f} | {1000 * each:.1f} | {1000 * found:.2f} |")
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        for n in range(count):
            write_json(Path(folder) / f"{n}.json", {"n": n})
        each = 1000 * (time.perf_counter() - begin) / count
    print(f"\nOf that, one atomic write with two flushes of the disk: {each:.1f} ms; a cell makes two.")


if __name__ == "__main__":
    main()
