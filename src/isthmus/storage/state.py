"""The state of long work in one file, from which the same work goes on after it was killed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from isthmus.errors import FileError
from isthmus.params import Params
from isthmus.storage.files import make_folder
from isthmus.storage.tensors import digest, read_metadata, read_tensors, save_tensors
from isthmus.training.memory import Memory


@dataclass
class FileCheckpoint(Memory):
    """State in one safetensors file: replaced whole, bound to one configuration, read without running anything.

    Saved when `seconds` have passed since the last time or, if given, after every so many `steps`. A file that is
    damaged, or of other versions of this library or torch, counts as none: the work then starts again.
    """

    path: Path
    owner: str
    seconds: float = 10.0
    steps: int | None = None
    last: float = field(default_factory=time.monotonic)

    def part(self, name: str) -> FileCheckpoint:
        """The memory of a piece of this work, in a file beside this one."""
        path = self.path.with_name(f"{name}.{self.path.name}")
        return FileCheckpoint(path, self.owner, self.seconds, self.steps, self.last)

    def due(self, step: int) -> bool:
        """Whether the state after that step shall be saved."""
        if self.steps is not None:
            return step % self.steps == 0
        return time.monotonic() - self.last >= self.seconds

    def save(self, tensors: Params, values: Mapping[str, Any]) -> None:
        """Replace what was kept, atomically."""
        text = json.dumps(values, allow_nan=False)
        make_folder(self.path.parent)
        seal = self._seal(tensors, text)
        save_tensors(tensors, self.path, {"values": text, "seal": seal, "owner": self.owner})
        self.last = time.monotonic()

    def load(self) -> tuple[Params, dict[str, Any]] | None:
        """What was kept last, or None."""
        if not self.path.exists():
            return None
        with suppress(FileError, ValueError, KeyError):
            tensors, metadata = read_tensors(self.path)
            if metadata["seal"] == self._seal(tensors, metadata["values"]):
                return tensors, json.loads(metadata["values"])
        return None

    def foreign(self) -> bool:
        """Whether the file says that it is the state of other work, which saving here would destroy."""
        return self._owner() not in (None, self.owner)

    def remove(self) -> None:
        """The work is done."""
        if self._owner() == self.owner:
            self.path.unlink()

    def _owner(self) -> str | None:
        """Whose state the file says it is; None where there is no file or it says nothing."""
        if not self.path.exists():
            return None
        with suppress(FileError):
            return read_metadata(self.path).get("owner")
        return None

    def _seal(self, tensors: Params, text: str) -> str:
        parts = (self.owner, version("isthmus"), torch.__version__, digest(tensors), text)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
