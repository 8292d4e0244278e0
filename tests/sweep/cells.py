"""Small cells for the tests of the runner, and a process that runs them and may be killed."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from isthmus import pipeline as runs
from isthmus.errors import InputError
from isthmus.models import seeded
from isthmus.storage import digest, save_params
from isthmus.sweep import Cell, Job, Local, Ray, Shard, Store, run_cells
from isthmus.training.fit import Recipe
from tests.problems import blobs

LONG = os.environ.get("ISTHMUS_LONG_TESTS") == "1"


@dataclass(frozen=True)
class Square(Cell):
    """n * n after a pause; leaves a mark in `log` when it starts and one when it ends."""

    n: int
    seconds: float = 0.0
    log: str = ""
    data: str = "none"

    page: ClassVar[str] = "squares"

    @property
    def label(self) -> str:
        return f"square of {self.n}"

    def digests(self) -> Mapping[str, str]:
        return {"data": self.data}

    def run(self, job: Job) -> Mapping[str, Any]:
        self._mark("start")
        time.sleep(self.seconds)
        self._mark("end")
        if self.n < 0:
            raise InputError("n", expected="a number >= 0", got=self.n)
        return {"square": self.n**2}

    def _mark(self, what: str) -> None:
        if self.log:
            (Path(self.log) / f"{self.n}.{what}.{os.getpid()}.{secrets.token_hex(4)}").touch()


@dataclass(frozen=True)
class Total(Cell):
    """The sum of squares that other cells computed."""

    parts: tuple[Square, ...]

    page: ClassVar[str] = "totals"

    @property
    def label(self) -> str:
        return f"sum of {len(self.parts)}"

    def run(self, job: Job) -> Mapping[str, Any]:
        return {"sum": sum(job.load(p).result["square"] for p in self.parts)}


@dataclass(frozen=True)
class Training(Cell):
    """A training with dropout, BatchNorm and momentum, long enough to be killed in."""

    optimizer: str = "adam"
    steps: int = 400
    pause: float = 0.0
    every: int = 7

    page: ClassVar[str] = "trainings"

    @property
    def label(self) -> str:
        return f"{self.optimizer}, {self.steps} steps"

    def run(self, job: Job) -> Mapping[str, Any]:
        def make() -> nn.Module:
            return nn.Sequential(
                nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4)
            ).double()

        def progress(what: str, done: int, total: int) -> None:
            time.sleep(self.pause)

        fitted = runs.train(
            seeded(make, 3), blobs(90, (5,), 4),
            Recipe(self.optimizer, lr=0.02, steps=self.steps, batch=32),  # type: ignore[arg-type]
            seed=5, memory=job.memory(steps=self.every), progress=progress,
        )  # fmt: skip
        save_params(fitted.params, job.folder / "params.safetensors")
        return {"loss": fitted.loss, "steps": fitted.steps, "params": digest(fitted.params)}


def results(root: Path) -> dict[str, bytes]:
    """Every file of every finished cell, except the records, by its place."""
    files = (f for f in sorted(root.rglob("*")) if f.is_file() and f.name != "record.json" and ".locks" not in f.parts)
    return {str(f.relative_to(root)): f.read_bytes() for f in files}


def temporaries(root: Path) -> list[Path]:
    return [f for f in root.rglob(".*") if f.name != ".locks" and ".locks" not in f.parts]


def forked(work: Callable[[], object]) -> int:
    """Do `work` in a child process; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        os._exit(0)
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as e:
        print(f"child: {type(e).__name__}: {e}", file=sys.stderr)
        os._exit(1)


def ended(pid: int, timeout: float = 120) -> int:
    """The exit code of a child, once it has ended; minus the signal that killed it."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"the child {pid} did not end in {timeout} s")


def squares(count: int, seconds: float, log: Path) -> list[Square]:
    log.mkdir(exist_ok=True)
    return [Square(n, seconds, str(log)) for n in range(count)]


def running(log: Path) -> list[int]:
    """The processes that have begun a square and not ended it."""

    def marked(what: str) -> set[tuple[str, int]]:
        names = [m.name.split(".") for m in log.glob(f"*.{what}.*")]
        return {(n, int(pid)) for n, _, pid, _ in names}

    begun = marked("start") - marked("end")
    return [pid for _, pid in begun if Path(f"/proc/{pid}").exists()]


def shard(root: Path, cells: list[Square], index: int, count: int) -> None:
    report = run_cells(cells, Store(root), Local(), shard=Shard(index, count))
    assert report.ok, report.failed


def main() -> None:
    """``python -m tests.sweep.cells ROOT COUNT SECONDS LOG``: a driver on Ray that a test may kill."""
    root, count, seconds, log = sys.argv[1:]
    report = run_cells(squares(int(count), float(seconds), Path(log)), Store(Path(root)), Ray(2, retries=10))
    print(f"computed {report.computed} found {report.found}")
    sys.exit(0 if report.ok else 1)


if __name__ == "__main__":
    main()
