"""Connections in one safetensors file, each distinct tensor once; nothing in the file is code.

Format 1, or 2 where a level curve is among the segments. Tensors "t/000000", ... One metadata entry, "isthmus", holds
JSON: ``format``, ``version``, ``manifest`` (JSON text), ``tensors`` (the digest of the tensors) and ``digest`` (SHA-256
over version, tensors and manifest), so that a flipped bit anywhere that could change what is loaded is found. The
manifest: ``names`` of the parameters; ``points``, rows of tensor numbers in the order of ``names``; ``segments``, each
a kind with the numbers of its control points, and for a level curve also ``x``, the number of its data tensor,
``layers`` ([weight, bias, slope] each) and ``span`` (lo, hi); ``target``, a point; the name of the ``outcome``;
``tensors``, the numbers of those that the method found beside the path, where there are any; ``stats``; the version of
``isthmus`` that wrote it. NaN and infinities in ``stats`` are written as Python's json module writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

from isthmus.connectors.base import Connection, Outcome
from isthmus.device import device_of
from isthmus.errors import FileError, InputError, IsthmusError, UnsupportedError
from isthmus.kinds import check_kinds
from isthmus.params import Params, check_like
from isthmus.paths import Curve, LevelCurve, LevelLayer, Path, Segment
from isthmus.storage.files import UNREADABLE, PathLike, disk_error, one_line, plain, whole
from isthmus.storage.tensors import combine, digest, digest_of, read_metadata, read_tensors, save_tensors, sniff
from isthmus.version import __version__

__all__ = ["key_of", "load_connection", "open_manifest", "path_digest", "read_header", "save"]

_FORMAT = "isthmus connection"
_VERSIONS = (1, 2)
_CELLS = 4_000_000  # control points times parameters: what building the path may cost, some seconds
_AGAIN = "copy it again, or make the path again"


@dataclass(frozen=True)
class _Kind:
    """How one class of segments is written: as points, with further entries, and made from both."""

    segment: type[Segment]
    points: Callable[[Any], tuple[Params, ...]]
    make: Callable[[tuple[Params, ...], Mapping[str, Any], Mapping[str, Tensor]], Segment]
    more: Callable[[Any, _Store], dict[str, Any]] = lambda segment, store: {}


def _write_level(curve: LevelCurve, store: _Store) -> dict[str, Any]:
    layers = [[layer.weight, layer.bias, layer.slope] for layer in curve.layers]
    return {"x": store.tensor(curve.x), "layers": layers, "span": [curve.lo, curve.hi]}


def _make_level(control: tuple[Params, ...], written: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LevelCurve:
    origin, goal = control
    layers = tuple(LevelLayer(str(w), None if b is None else str(b), float(s)) for w, b, s in written["layers"])
    lo, hi = (float(s) for s in written["span"])
    return LevelCurve(origin, goal, tensors[key_of(_index(written["x"]))], layers, lo, hi)


@dataclass
class _Store:
    """Numbers tensors and points as they are met: by object first, then by content."""

    names: list[str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    objects: dict[int, int] = field(default_factory=dict)
    contents: dict[str, int] = field(default_factory=dict)
    points: dict[tuple[int, ...], int] = field(default_factory=dict)

    def point(self, params: Mapping[str, Tensor]) -> int:
        row = tuple(self.tensor(params[name]) for name in self.names)
        return self.points.setdefault(row, len(self.points))

    def beside(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The entry of tensors that are in no point."""
        return {"tensors": {name: self.tensor(v) for name, v in tensors.items()}} if tensors else {}

    def tensor(self, tensor: Tensor) -> int:
        if id(tensor) not in self.objects:
            content = digest_of(tensor)
            number = self.contents.setdefault(content, len(self.contents))
            self.objects[id(tensor)] = number
            if (key := key_of(number)) not in self.tensors:
                self.tensors[key], self.digests[key] = tensor, content
        return self.objects[id(tensor)]


_KINDS = {
    "curve": _Kind(Curve, lambda curve: curve.control, lambda control, written, tensors: Curve(control)),
    "level": _Kind(LevelCurve, lambda curve: (curve.origin, curve.goal), _make_level, _write_level),
}


def key_of(number: int) -> str:
    """The name of a tensor in the file."""
    return f"t/{number:06d}"


def save(connection: Connection | Path, path: PathLike) -> None:
    """Write a connection to one file, atomically; ``load_connection`` gives it back bit for bit.

    `connection`: the connection, or a path alone. `path`: the file.

    A path alone is written as a connection that was made by no method, with its end as the target.

    Tensors shared by points of the path, or equal in dtype, shape and bytes, are written once. The same
    connection gives the same bytes. Costs one pass of SHA-256 over the distinct tensors.

    Errors: ``UnsupportedError`` for a segment with no form in the file, ``InputError`` for stats that are not
    JSON values, ``FileError`` for a full disk and for a path too large to be read again.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save(Path.through([{"w": torch.zeros(1)}, {"w": torch.ones(1)}]), f"{folder}/path.safetensors")
    ...     load_connection(f"{folder}/path.safetensors").path.at(0.5)["w"]
    tensor([0.5000])
    """
    check_kinds(save, locals())
    if isinstance(connection, Path):
        connection = Connection(connection, connection.end, Outcome.CONSTRUCTED)
    store = _Store(list(connection.path.start))
    check_like(connection.target, connection.path.end, "target")
    segments = []
    for i, segment in enumerate(connection.path.segments):
        kind = next((name for name, kind in _KINDS.items() if type(segment) is kind.segment), None)
        if kind is None:
            raise UnsupportedError(f"segment {i}", f"a {type(segment).__name__} has no form in the file format")
        control = [store.point(p) for p in _KINDS[kind].points(segment)]
        segments.append({"kind": kind, "control": control, **_KINDS[kind].more(segment, store)})
    manifest = {
        "isthmus": __version__,
        "outcome": connection.outcome.name,
        "stats": plain(connection.stats, "stats", nonfinite=True),
        "names": store.names,
        "segments": segments,
        "target": store.point(connection.target),
        "points": [list(row) for row in store.points],
    }
    manifest |= store.beside(connection.tensors)
    if (cells := _cells(manifest)) > _CELLS:
        why = f"the path has {cells:,} control points times parameters, a file may have {_CELLS:,}"
        raise FileError(path, why, "save it in parts, or with fewer control points")
    text = json.dumps(manifest, separators=(",", ":"))
    tensors = combine(store.digests)
    # a reader that knows version 1 alone reads what it can, and names what it cannot
    number = _VERSIONS[any(s["kind"] != "curve" for s in segments)]
    header = {"format": _FORMAT, "version": number, "digest": _seal(number, tensors, text), "tensors": tensors}
    save_tensors(store.tensors, path, {"isthmus": json.dumps(header | {"manifest": text}, separators=(",", ":"))})


def load_connection(path: PathLike, device: str | torch.device = "cpu") -> Connection:
    """Read a connection that ``save`` wrote; tensors that points of the path share are the same objects again.

    `path`: the file.

    Tensors arrive on `device`. Memory: the distinct tensors once. Errors: ``FileError`` for a file that is
    missing, damaged (every byte that matters is under a digest), of another kind (the message says which),
    or written by a newer version of the format.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save(Path.through([{"w": torch.zeros(1)}, {"w": torch.ones(1)}]), f"{folder}/path.safetensors")
    ...     load_connection(f"{folder}/path.safetensors").target
    {'w': tensor([1.])}
    """
    check_kinds(load_connection, locals())
    where = device_of(str(device), "device")
    manifest, expected = open_manifest(path)
    tensors, _ = read_tensors(path)
    if digest(tensors) != expected:
        raise FileError(path, "is damaged: its tensors do not match their digest", _AGAIN)
    return _build(path, manifest, {k: v.to(where) for k, v in tensors.items()})


def read_header(path: PathLike) -> dict[str, Any]:
    """What a saved connection says about itself, without reading its tensors.

    Keys: "format", "version", "isthmus" (the version that wrote it), "outcome" (a name), "stats", "names" of
    the parameters, "segments", "target", "points" and the "digest" of the whole. Errors: as ``load_connection``,
    except damaged tensors, which are not read.
    """
    return open_manifest(path)[0]


def path_digest(path: PathLike) -> str:
    """What tells the path in a file of ``save`` from others, whatever its stats say. Errors: as ``read_header``."""
    manifest, tensors = open_manifest(path)
    known = [manifest.get(key) for key in ("names", "points", "segments")]
    return hashlib.sha256(json.dumps([*known, tensors]).encode()).hexdigest()


def open_manifest(path: PathLike) -> tuple[dict[str, Any], str]:
    """The checked manifest, and the digest that the tensors must have."""
    try:
        found = sniff(path)
    except OSError as error:
        raise FileError(path, *disk_error(error, File(path))) from error
    if "safetensors" not in found:
        raise FileError(path, f"is {found}, not a saved connection", _advice(found))
    metadata = read_metadata(path)
    if "isthmus" not in metadata:
        raise FileError(path, "is a safetensors file, but not a saved connection", "read it with load_params")
    try:
        header = json.loads(metadata["isthmus"], parse_int=whole)
        _check_header(path, header)
        manifest = json.loads(header["manifest"], parse_int=whole)
        return {key: header[key] for key in ("format", "version", "digest")} | manifest, header["tensors"]
    except IsthmusError:
        raise
    except UNREADABLE as error:
        raise FileError(path, "is damaged: its manifest cannot be read", _AGAIN) from error


def _advice(found: str) -> str:
    return "read it with load_params" if "zip" in found or "pickle" in found else "give a file that save wrote"


def _seal(format_version: int, tensors: str, manifest: str) -> str:
    return hashlib.sha256(f"{format_version}\n{tensors}\n{manifest}".encode()).hexdigest()


def _cells(manifest: Mapping[str, Any]) -> int:
    return sum(len(s["control"]) for s in manifest["segments"]) * max(len(manifest["names"]), 1)


def policy_of(manifest: Mapping[str, Any]) -> str | None:
    """What becomes of BatchNorm's statistics on the path, as its file says."""
    held = manifest["stats"].get("bn") if isinstance(manifest["stats"], dict) else None
    return held if isinstance(held, str) else None


def _build(path: PathLike, manifest: Mapping[str, Any], tensors: Params) -> Connection:
    """The connection that a manifest describes. The digest was right, so a fault here is not an accident."""
    try:
        if _cells(manifest) > _CELLS:
            raise ValueError(f"more than {_CELLS:,} control points times parameters")
        beside = {str(name): _index(number) for name, number in manifest.get("tensors", {}).items()}
        points = _points(
            manifest["names"], manifest["points"], tensors, _data(manifest["segments"]) | set(beside.values())
        )
        segments = []
        for i, written in enumerate(manifest["segments"]):
            if written["kind"] not in _KINDS:
                why = (
                    f"segment {i} is of the kind {one_line(written['kind'])!r}, this isthmus knows {', '.join(_KINDS)}"
                )
                raise FileError(path, why, "install a newer isthmus")
            control = tuple(points[_index(number)] for number in written["control"])
            segments.append(_KINDS[written["kind"]].make(control, written, tensors))
        if not isinstance(manifest["stats"], dict):
            raise TypeError("stats are not a dictionary")
        target = points[_index(manifest["target"])]
        found = Path(tuple(segments), policy_of(manifest))
        more = {name: tensors[key_of(number)] for name, number in beside.items()}
        return Connection(found, target, Outcome[manifest["outcome"]], manifest["stats"], tensors=more)
    except FileError:
        raise
    except (InputError, *UNREADABLE) as error:
        raise FileError(
            path, f"does not describe a path ({type(error).__name__}: {one_line(error)})", _AGAIN
        ) from error


def _data(segments: list[Mapping[str, Any]]) -> set[int]:
    """The numbers of the tensors that belong to segments."""
    return {_index(s["x"]) for s in segments if "x" in s}


def _check_header(path: PathLike, header: dict[str, Any]) -> None:
    if header["format"] != _FORMAT:
        why = f"is {one_line(header['format'])!r}, not a saved connection"
        raise FileError(path, why, "read it with what wrote it")
    if type(header["version"]) is not int or header["version"] not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        why = f"is in version {one_line(header['version'])} of the format, this isthmus reads versions {known}"
        raise FileError(path, why, "install a newer isthmus")
    if header["digest"] != _seal(header["version"], header["tensors"], header["manifest"]):
        raise FileError(path, "is damaged: its manifest does not match its digest", _AGAIN)


def _points(names: list[str], rows: list[list[int]], tensors: Params, data: set[int]) -> list[Params]:
    """Each point once; `data` are the numbers of tensors that belong to segments.

    One tensor under two names is copied: no two parameters of a network share memory.
    """
    _check_use(names, rows, tensors, data)
    owner: dict[int, str] = {}
    made: dict[tuple[int, str], Tensor] = {}
    for row in rows:
        for name, number in zip(names, row, strict=True):
            tensor = tensors[key_of(number)]
            if owner.setdefault(number, name) != name and (number, name) not in made:
                tensor = tensor.clone()
            made.setdefault((number, name), tensor)
    return [{name: made[number, name] for name, number in zip(names, row, strict=True)} for row in rows]


def _check_use(names: list[str], rows: list[list[int]], tensors: Params, data: set[int]) -> None:
    if len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError("names are not distinct strings")
    used = {_index(number) for number in chain.from_iterable(rows)} | data
    if {key_of(number) for number in used} != set(tensors):
        raise ValueError("points use tensors that are not there, or there are tensors that no point uses")


def _index(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"expected a number of a point or tensor, got {number!r}")
    return number
