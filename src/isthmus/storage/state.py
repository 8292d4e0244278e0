"""The state of long work in a folder, from which the same work goes on after it was killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from isthmus.connectors.base import Connector, lasting
from isthmus.errors import FileError, InputError
from isthmus.objective import Objective
from isthmus.objective.described import bound
from isthmus.params import Params
from isthmus.storage.files import make_folder, remove_file, sweep_temporaries
from isthmus.storage.tensors import digest, read_metadata, read_tensors, save_tensors
from isthmus.training.memory import Memory, State
from isthmus.version import __version__

ENDING = "state.safetensors"
"""How the names of all files of a ``FolderMemory`` end."""


@dataclass
class _Shared:
    """What the parts of one memory have in common: when something was saved last, and whether the folder is its own."""

    last: float = field(default_factory=time.monotonic)
    checked: bool = False


@final
@dataclass(frozen=True)
class FolderMemory(Memory):
    """State in one safetensors file per part, each replaced whole, bound to one configuration (its `owner`).

    Due when `seconds` have passed since anything was saved or, if given, after every so many `steps`. A file that
    is damaged, or of other versions of this library or torch, counts as none: that part of the work starts again.
    Errors: ``FileError`` when the first state is asked for, and the folder holds the state of another owner.
    """

    folder: Path
    owner: str
    seconds: float = 10.0
    steps: int | None = None
    names: tuple[str, ...] = ()
    shared: _Shared = field(default_factory=_Shared)

    def part(self, name: str) -> FolderMemory:
        """The memory of a piece; its file is named after the pieces that it is in."""
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InputError("part", expected="letters, digits, - and _", got=repr(name))
        return FolderMemory(self.folder, self.owner, self.seconds, self.steps, (*self.names, name), self.shared)

    @property
    def path(self) -> Path:
        """The file of this part."""
        return self.folder / ".".join((*self.names, ENDING))

    def due(self, step: int) -> bool:
        """Whether the state after that step shall be saved."""
        if self.steps is not None:
            return step % self.steps == 0
        return time.monotonic() - self.shared.last >= self.seconds

    def save(self, tensors: Params, values: Mapping[str, Any]) -> None:
        """Replace what was kept, atomically."""
        text = json.dumps(values)  # with Infinity and NaN, which only this class reads
        make_folder(self.folder)
        seal = self._seal(tensors, text)
        save_tensors(tensors, self.path, {"values": text, "seal": seal, "owner": self.owner})
        self.shared.last = time.monotonic()

    def load(self) -> State | None:
        """What was kept last, or None. Tensors are copied: kernels may add in another order on mapped memory."""
        if not self.shared.checked:
            self.check()
        if not self.path.exists():
            return None
        with suppress(FileError, ValueError, KeyError):
            tensors, metadata = read_tensors(self.path)
            if metadata["seal"] == self._seal(tensors, metadata["values"]):
                return {k: v.clone() for k, v in tensors.items()}, json.loads(metadata["values"])
        return None

    def check(self) -> None:
        """Refuse a folder that holds the state of other work, which saving here would mix with this one's."""
        if any(owner != self.owner for owner in self._owners().values()):
            raise FileError(
                self.folder,
                "holds the state of another search (other networks, data, method or seed)",
                "give its arguments to go on with it, or take another folder, or remove it",
            )
        self.shared.checked = True

    def begun(self) -> bool:
        """Whether the folder holds a state of this work."""
        return any(part.load() is not None for part in self._parts())

    def remove(self) -> None:
        """The work is done: remove its files, and the folder if nothing else is in it."""
        for path, owner in self._owners().items():
            if owner == self.owner:
                remove_file(path)
        with suppress(FileError):  # there may be no folder
            sweep_temporaries(self.folder)  # of a process that was killed while it saved
        with suppress(OSError):
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{ENDING}")) if self.folder.is_dir() else []

    def _parts(self) -> Iterator[FolderMemory]:
        for path in self._files():
            names = tuple(path.name.removesuffix(ENDING).split(".")[:-1])
            yield FolderMemory(self.folder, self.owner, self.seconds, self.steps, names, self.shared)

    def _owners(self) -> dict[Path, str]:
        """The files that say whose they are."""
        owners = {}
        for path in self._files():
            with suppress(FileError, KeyError):
                owners[path] = read_metadata(path)["owner"]
        return owners

    def _seal(self, tensors: Params, text: str) -> str:
        parts = (self.owner, *self.names, __version__, torch.__version__, digest(tensors), text)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def memory_in(
    folder: str | os.PathLike[str],
    objective: Objective,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    method: Connector,
    *,
    test: Objective | None = None,
    seed: int = 0,
    seconds: float = 10.0,
) -> FolderMemory:
    """Where ``connect`` with these arguments keeps the state of its work: in `folder`, bound to all that decides it."""
    sets = [objective, *([test] if test is not None and method.judged else [])]
    known = {
        "ends": [a, b],
        "method": lasting(method),
        "code": method.digests(),
        "seed": seed,
        **bound(*sets),
    }
    return memory_for(folder, known, seconds=seconds)


def memory_for(
    folder: str | os.PathLike[str], known: Mapping[str, Any], *, seconds: float = 10.0, steps: int | None = None
) -> FolderMemory:
    """Where work keeps its state in `folder`, bound to all that decides it: plain values, and parameters."""
    owner = hashlib.sha256(json.dumps(_digested(known), sort_keys=True).encode()).hexdigest()
    return FolderMemory(Path(folder), owner, seconds, steps)


def _digested(value: Any) -> Any:
    """The value with parameters as their digests."""
    if isinstance(value, Mapping):
        tensors = value and all(isinstance(v, Tensor) for v in value.values())
        return digest(value) if tensors else {k: _digested(v) for k, v in value.items()}
    return [_digested(v) for v in value] if isinstance(value, list | tuple) else value
