"""The results folder: ``<root>/<group>/<content key>/result.json``, written once, whole, and never edited.

Beside it stand the further files of the cell and record.json: what may differ between two runs of the same cell
(seconds, machine, versions). A folder without result.json is unfinished; it may hold a state.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isthmus.errors import FileError, InputError, IsthmusError, MissingExtraError
from isthmus.params import Params
from isthmus.seal import SEAL, is_whole
from isthmus.storage import FolderMemory as FolderMemory
from isthmus.storage import make_folder, read_json, read_sealed, write_sealed
from isthmus.storage.files import disk_error, plain, remove_file, sweep_temporaries
from isthmus.storage.state import ENDING
from isthmus.sweep.cells import Cell, identity, key_of
from isthmus.version import __version__

_FORMAT = 1


class BusyError(IsthmusError):
    """Another process is doing the cell."""


@dataclass(frozen=True)
class Stored:
    """A finished cell: what ``run`` returned, and the record of how it was computed."""

    key: str
    folder: Path
    result: Mapping[str, Any]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Store:
    """A folder of results. The same cell with the same data has the same place in it, whoever computes it."""

    root: Path

    def folder(self, cell: Cell, key: str | None = None) -> Path:
        """Where the cell's files are, or will be."""
        group = cell.group
        if not group or group.startswith(".") or group != os.path.basename(group):
            raise InputError("group", expected="a plain folder name", got=repr(group), instead="'my-experiment'")
        return self.root / group / (key or key_of(identity(cell)))

    def find(self, cell: Cell) -> Stored | None:
        """The finished cell, or None. Errors: ``FileError`` for a damaged file and for one of another cell."""
        known = identity(cell)
        key = key_of(known)
        folder = self.folder(cell, key)
        file = folder / "result.json"
        if not file.exists():
            return None
        document = read_json(file)
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise FileError(file, "is not a result of this version", "move its folder away")
        if document.get("key") != key or {k: document.get(k) for k in known} != known:
            raise FileError(file, "holds another configuration under the same key", "move its folder away")
        _check_whole(file, document, known)
        record = folder / "record.json"
        kept = read_sealed(record) if record.exists() else {}
        held = document["result"]
        if not isinstance(held, dict):
            raise FileError(file, f"holds {type(held).__name__}, not named values", "move its folder away")
        return Stored(key, folder, held, kept)

    def load(self, cell: Cell) -> Stored:
        """The finished cell. Errors: ``FileError`` when it is not finished."""
        found = self.find(cell)
        if found is None:
            raise FileError(self.folder(cell), f"has no result yet ({cell.label})", "run the cell first")
        return found

    def write(self, cell: Cell, result: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Finish a cell: its record, then its result. Call it inside ``claim``. Refuses to write a second time."""
        known = identity(cell)
        key = key_of(known)
        folder = self.folder(cell, key)
        if (folder / "result.json").exists():
            raise FileError(folder / "result.json", "is there already, and results are never edited")
        values = plain(result, "result")
        if not isinstance(values, dict):
            raise InputError("result", expected="named values", got=type(result).__name__)
        make_folder(folder)
        write_sealed(folder / "record.json", record)
        for state in folder.glob(f"*{ENDING}"):
            remove_file(state)
        write_sealed(folder / "result.json", {"format": _FORMAT, "key": key, **known, "result": values})

    @contextmanager
    def claim(self, cell: Cell, *, wait: bool) -> Iterator[None]:
        """Hold the cell's lock, which the death of a process frees. Errors: ``BusyError`` unless `wait`."""
        try:
            from filelock import FileLock, Timeout
        except ImportError as e:
            raise MissingExtraError("filelock", "cli") from e
        folder = self.folder(cell)
        file = _lock_of(folder)
        if not file.parent.is_dir():
            make_folder(file.parent)
        lock = FileLock(file)
        try:
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except Timeout:
                raise BusyError(f"another process is doing {cell.label}") from None
            except OSError as e:
                raise FileError(lock.lock_file, *disk_error(e, Path(lock.lock_file))) from e
            _clear(folder)
            yield
        finally:  # an interrupt may come anywhere: what is held is given back
            if lock.is_locked:
                try:
                    _clear(folder)
                finally:
                    with suppress(OSError):
                        os.unlink(lock.lock_file)  # whoever waits for it sees that, and makes a new one
                    lock.release()

    def tidy(self, cell: Cell) -> None:
        """Remove what a killed process left: of an unfinished cell all but its state, else temporaries and the lock."""
        folder = self.folder(cell)
        with suppress(BusyError, OSError, FileError):
            if (folder / "result.json").exists():
                sweep_temporaries(folder)
                if not _lock_of(folder).exists():
                    return
            with self.claim(cell, wait=False):
                pass


def _lock_of(folder: Path) -> Path:
    return folder.parent / ".locks" / folder.name


def _check_whole(file: Path, document: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    if not is_whole(document) or document.keys() != {*known, "format", "key", "result", SEAL}:
        raise FileError(file, "is damaged: its values do not match their digest", "move its folder away")


def _clear(folder: Path) -> None:
    """Of an unfinished cell, keep nothing but the state: its other files come again with its result."""
    if not folder.is_dir() or (folder / "result.json").exists():
        return
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif not entry.name.endswith(ENDING):
            with suppress(OSError):
                entry.unlink()
    with suppress(OSError):
        folder.rmdir()  # only when it is empty


@dataclass(frozen=True)
class Job:
    """What a running cell may use: its own folder, the results it needs, and the device that it works on.

    `given`: what ``run_cells`` was given for all its cells, for what is no plain value.
    """

    store: Store
    key: str
    folder: Path
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - cannot change
    given: Any = None

    def put(self, params: Params) -> Params:
        """The parameters on the cell's device."""
        return {k: v.to(self.device) for k, v in params.items()}

    def load(self, need: Cell) -> Stored:
        """A finished cell that the running one declared in ``needs``."""
        return self.store.load(need)

    def memory(self, name: str = "work", *, seconds: float = 10.0, steps: int | None = None) -> FolderMemory:
        """A place for the state of long work inside the cell; removed when the cell is finished."""
        return FolderMemory(self.folder, self.key, seconds, steps).part(name)


def record_of(seconds: float | None, processor: float | None, engine: str, device: torch.device) -> dict[str, Any]:
    """How a cell was computed: what may differ from run to run. `processor`: seconds of processor time. None where they
    are not known."""
    return {
        "format": _FORMAT,
        "seconds": seconds,
        "processor_seconds": processor,
        "engine": engine,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "isthmus": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
