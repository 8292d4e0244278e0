"""Running cells: what is missing is computed, each cell once, by whichever engine."""

from __future__ import annotations

import errno
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from isthmus.device import device_of
from isthmus.errors import InputError, IsthmusError
from isthmus.storage import make_folder
from isthmus.storage.state import ENDING
from isthmus.sweep.cells import Cell, identity, key_of, with_needs
from isthmus.sweep.store import BusyError, Job, Store, record_of
from isthmus.training.progress import Progress, no_progress

Shared = TypeVar("Shared")
Item = TypeVar("Item")

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}


@dataclass(frozen=True)
class Failed:
    """Instead of a result: why there is none. `fatal`: the other items would fail in the same way."""

    message: str
    detail: str = ""
    fatal: bool = False


class Engine(ABC):
    """Where work is done. An engine decides when and where, never what: results do not depend on it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the record of a cell says."""

    @property
    def at_once(self) -> int:
        """How many items it works on at a time."""
        return 1

    def session(self) -> AbstractContextManager[Any]:
        """What is started once for several ``map``; without it each starts and ends its own."""
        return nullcontext()

    @abstractmethod
    def map(
        self,
        function: Callable[[Shared, Item], Any],
        shared: Shared,
        items: Sequence[Item],
        after: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """(i, function(shared, items[i])) for every i, in any order; ``Failed`` where the worker itself was lost.

        `function` is of a module, not local; item i starts when the items ``after[i]``, all before i, are done.
        What `function` raises is raised here. Closing the iterator stops the work.
        """


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` of a list of cells, counted from 1: the task of one job of an array."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise InputError("shard", expected="i/N with 1 <= i <= N", got=f"{self.index}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From ``i/N``.

        >>> Shard.parse("2/8")
        Shard(index=2, count=8)
        """
        index, slash, count = text.partition("/")
        if not slash or not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
            raise InputError("shard", expected="i/N with 1 <= i <= N", got=repr(text), instead="1/4")
        return cls(int(index), int(count))

    def of(self, cells: Sequence[Cell]) -> list[Cell]:
        """Its own cells, starting at another place than the other shards start."""
        return list(cells)[self.index - 1 :: self.count]


@dataclass
class SweepReport:
    """How a run went: the cells asked for with all they need, those that were there, were computed, failed."""

    total: int = 0
    found: int = 0
    computed: int = 0
    failed: dict[str, Failed] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every cell has its result."""
        return self.found + self.computed == self.total

    def note(self, cell: Cell, done: str | Failed) -> None:
        """Count one cell that is "computed" or "found", or has failed. Errors: ``IsthmusError`` if others would too."""
        if not isinstance(done, Failed):
            self.computed += done == "computed"
            self.found += done == "found"
            return
        if done.fatal:
            raise IsthmusError(done.message)
        label = cell.label
        self.failed[label if label not in self.failed else f"{label}, {key_of(identity(cell))}"] = done


@dataclass(frozen=True)
class _Place:
    root: Path
    engine: str
    device: str
    wait: bool
    given: Any = None


def run_cells(
    cells: Sequence[Cell],
    store: Store,
    engine: Engine,
    *,
    device: str = "auto",
    shard: Shard | None = None,
    given: Any = None,
    progress: Progress = no_progress,
    report: SweepReport | None = None,
) -> SweepReport:
    """Compute the missing cells and all that they need; cells that are there are left as they are.

    A cell that fails does not stop the others, except when the disk does not take results any more. May be killed at
    any time and called again, and any number of processes may work on one folder: no cell is done twice. Each cell
    works on the `device` of its worker, "auto" for a GPU where there is one; a cell that was done on another device
    counts as done, and its record says on which. `given`: what the cells find in ``Job.given``, which they name by
    digest. `report`: a fresh one, to read after an interrupt. Errors: ``IsthmusError`` for a disk that fails,
    ``FileError`` for a damaged result or one of another cell.
    """
    make_folder(store.root)
    plan = with_needs(cells if shard is None else shard.of(cells))
    missing = _missing(plan, store)
    for cell in set(plan).difference(missing):
        store.tidy(cell)  # of a process that was killed right after it had renamed its result
    if shard is not None and missing:  # shards that need the same cells start with different ones
        turn = (shard.index - 1) * len(missing) // shard.count
        missing = _missing(with_needs(missing[turn:] + missing[:turn]), store)
    report, root = report or SweepReport(), store.root.absolute()
    report.total, report.found = len(plan), len(plan) - len(missing)
    try:
        for wait in (False, True):  # cells that other processes are doing come last
            progress("cells", report.found + report.computed, report.total)
            missing = _pass(missing, _Place(root, engine.name, device, wait, given), engine, report, progress)
    except BaseException:
        for cell in missing:
            store.tidy(cell)
        raise
    return report


def _missing(cells: Sequence[Cell], store: Store) -> list[Cell]:
    return [c for c in cells if store.find(c) is None]


def _pass(cells: Sequence[Cell], place: _Place, engine: Engine, report: SweepReport, progress: Progress) -> list[Cell]:
    """One pass over the cells; returns those that must wait for other processes."""
    at = {cell: i for i, cell in enumerate(cells)}
    after = [[at[n] for n in cell.needs() if n in at] for cell in cells]
    later: set[int] = set()
    work = engine.map(do, place, cells, after)
    try:
        for i, done in work:
            if done == "busy":
                later.add(i)
            else:
                report.note(cells[i], done)
            progress("cells", report.found + report.computed, report.total)
    finally:
        getattr(work, "close", lambda: None)()
    return [cells[i] for i in sorted(later)]


def do(place: _Place, cell: Cell) -> str | Failed:
    """One cell: "computed", "found", or "busy" when another process is doing it, or one that it needs."""
    try:
        return _do(place, cell)
    except BusyError:
        return "busy"
    except IsthmusError as e:
        return Failed(str(e), fatal=_is_disk(e))
    except OSError as e:
        return Failed(f"{e.filename or 'files'}: {e.strerror or e}", traceback.format_exc(), _is_disk(e))
    except Exception as e:  # a fault in one cell must not end the others
        return Failed(f"{type(e).__name__}: {e}", traceback.format_exc())


def _do(place: _Place, cell: Cell) -> str:
    store = Store(place.root)
    missing = _missing(cell.needs(), store)
    if missing and not place.wait:
        return "busy"
    with one_thread(), store.claim(cell, wait=place.wait):
        if store.find(cell) is not None:
            return "found"
        if missing:
            raise IsthmusError(f"it needs a cell that has no result: {missing[0].label}")
        begin, worked = time.perf_counter(), time.process_time()
        key, device = key_of(identity(cell)), device_of(place.device, "device")
        folder = make_folder(store.folder(cell, key))
        resumed = any(folder.glob(f"*{ENDING}"))  # the time that a killed run took is not known
        result = cell.run(Job(store, key, folder, device, place.given))
        spent = (None, None) if resumed else (time.perf_counter() - begin, time.process_time() - worked)
        store.write(cell, result, record_of(*spent, place.engine, device))
        return "computed"


def _is_disk(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return True
        error = error.__cause__
    return False


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, so that sums do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)
