"""Paths and networks that stay in their files: what is asked for is in memory, and read tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import final
from weakref import finalize

import torch
from safetensors import safe_open
from torch import Tensor

from isthmus.errors import FileError
from isthmus.params import Params, cast, in_dtype
from isthmus.paths import Curve, Path, Segment
from isthmus.paths.on_demand import OnDemand
from isthmus.shown import line, plural
from isthmus.storage.contents import Contents
from isthmus.storage.files import PathLike
from isthmus.storage.paths import key_of, load_connection, open_manifest, policy_of
from isthmus.storage.tensors import combine, digest_of, one_by_one, readable

__all__ = ["StoredCurve", "on_demand", "open_path"]


@final
@dataclass(frozen=True, eq=False)
class StoredCurve(Segment):
    """A ``Curve`` whose control points are in a file: `control` has the names of their tensors there.

    A point costs the memory of one model and of one tensor at every control point, and reading them. The numbers are
    those of the ``Curve``.
    """

    file: PathLike
    control: tuple[dict[str, str], ...]
    device: torch.device

    def __repr__(self) -> str:
        return line(self, plural(len(self.control), "control point"), plural(len(self.control[0]), "tensor"))

    def at(self, t: float) -> Params:
        """The point at t, read again each time; so are `start` and `end`."""
        point: Params = {}
        with one_by_one(self.file) as read:
            for name in self.control[0]:
                held: dict[str, Tensor] = {}  # what control points share is read once
                for keys in self.control:
                    if keys[name] not in held:
                        held[keys[name]] = read(keys[name])
                point |= Curve(tuple({name: held[keys[name]].to(self.device)} for keys in self.control)).at(t)
        return point

    @property
    def length(self) -> float:
        """Needs all control points in memory."""
        return self._loaded().length

    def reversed(self) -> StoredCurve:
        """The same points walked from the end to the start."""
        return replace(self, control=self.control[::-1])

    def split(self, t: float) -> tuple[Curve, Curve]:
        """The parts before and after t, in memory."""
        return self._loaded().split(t)

    def _loaded(self) -> Curve:
        with one_by_one(self.file) as read:
            tensors = {key: read(key).to(self.device) for key in {k for keys in self.control for k in keys.values()}}
        return Curve(tuple({name: tensors[key] for name, key in keys.items()} for keys in self.control))


def open_path(path: PathLike, device: torch.device) -> Path:
    """The path in a file of ``save``, which stays there, its points on a device; one with a level curve is loaded.

    Costs one reading of the file, tensor by tensor, for its digest. Errors: as ``load_connection``.
    """
    manifest, expected = open_manifest(path)
    if any(s["kind"] != "curve" for s in manifest["segments"]):
        return load_connection(path, device).path
    beside = manifest.get("tensors", {}).values()
    numbers = sorted({*(number for row in manifest["points"] for number in row), *beside})
    with one_by_one(path) as read:
        found = combine({key: digest_of(read(key)) for key in map(key_of, numbers)})
    if found != expected:
        raise FileError(path, "is damaged: its tensors do not match their digest", "copy it again")
    points = [dict(zip(manifest["names"], map(key_of, row), strict=True)) for row in manifest["points"]]
    curves = (StoredCurve(path, tuple(points[k] for k in s["control"]), device) for s in manifest["segments"])
    return Path(tuple(curves), policy_of(manifest))


def on_demand(
    params: Mapping[str, Tensor], contents: Contents, dtype: torch.dtype, device: torch.device
) -> Mapping[str, Tensor]:
    """`params`, which were chosen from a checkpoint, in a precision and on a device: to be read again one by one.

    What the checkpoint does not hold in a safetensors file as it is stays in memory.
    """
    held = {_memory(v): k for k, v in contents.tensors_by_file().items()}
    places = {name: (contents.files[k], k) for name, v in params.items() if (k := held.get(_memory(v))) is not None}
    rest = {name: v for name, v in params.items() if name not in places}
    if not places:
        return {k: v.to(device) for k, v in cast(params, dtype).items()}
    files = {file: _Open(file) for file in {f for f, _ in places.values()}}

    def read(name: str) -> Tensor:
        if name in rest:
            return in_dtype(rest[name], dtype).to(device)
        file, key = places[name]
        return in_dtype(files[file].read(key), dtype).to(device)

    return OnDemand(params, read)


class _Open:
    """A safetensors file that is open from now on: another file in its place would not be read.

    One that was written to since is refused: the tensors of several networks would be mixed.
    """

    def __init__(self, path: File) -> None:
        self.path = path
        with readable(path):
            self.watched = os.open(path, os.O_RDONLY)
            finalize(self, os.close, self.watched)
            self.written = self._written()
            self.held = safe_open(path, framework="pt", device="cpu", backend="pread")

    def read(self, key: str) -> Tensor:
        """One tensor. Errors: ``FileError``."""
        with readable(self.path):
            found = self.held.get_tensor(key)
        if self._written() != self.written:
            raise FileError(self.path, "was changed while it was read", "start again once it is whole")
        return found

    def _written(self) -> tuple[int, int]:
        """When, and how much: enough to tell a file in which something was written over."""
        now = os.fstat(self.watched)
        return now.st_mtime_ns, now.st_size


def _memory(v: Tensor) -> tuple[int, torch.Size, torch.dtype]:
    """What a tensor of a checkpoint and a view of the whole of it have in common."""
    return v.data_ptr(), v.shape, v.dtype
