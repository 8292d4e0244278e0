"""A run as it is stored: the folder of one path, with its result, profile, certificate and path file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isthmus import paths
from isthmus.errors import FileError, InputError
from isthmus.evaluate.batchnorm import POLICIES
from isthmus.pipeline import RECORDED
from isthmus.seal import is_whole
from isthmus.shown import largest
from isthmus.storage.files import one_line, read_json
from isthmus.storage.paths import load_connection, path_digest
from isthmus.stored import differs
from isthmus.verdict import LEVEL, Level

Floats = NDArray[np.float64]
_FORMAT = 1
_BASELINE = "Linear"


@dataclass(frozen=True, eq=False)
class StoredProfile:
    """What profile.json holds: loss and error rate at t, on the training set and, if measured, on a test set.

    `bn`, `tol`, `within` as in ``evaluate.Profile``; `beside`: the training curves under other policies of BatchNorm.
    """

    t: Floats
    segment: NDArray[np.int64]
    train: Mapping[str, Floats]
    test: Mapping[str, Floats] | None
    num_points: int
    bn: str = "none"
    beside: Mapping[str, Mapping[str, Floats]] = field(default_factory=dict)
    tol: float | None = None
    within: float | None = None

    def sets(self) -> list[tuple[str, Mapping[str, Floats]]]:
        """("train", curves) and, if there is one, ("test", curves)."""
        return [("train", self.train), *([("test", self.test)] if self.test is not None else [])]


@dataclass(frozen=True, eq=False)
class StoredRun:
    """One stored path: `label` tells it from the others; `result` and `certificate` are the JSON documents.

    `changed`: the files that do not hold the digest of their values.
    """

    label: str
    folder: Path
    result: Mapping[str, Any]
    profile: StoredProfile | None
    certificate: Mapping[str, Any] | None
    changed: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The name of the connector."""
        return self.result["method"]["name"]

    @property
    def is_baseline(self) -> bool:
        """Whether this is the straight line."""
        return self.method == _BASELINE

    @property
    def ok(self) -> bool:
        """Whether the method succeeded."""
        return self.result["outcome"]["ok"]

    def number(self, key: str) -> float:
        """A number of result.json; NaN when it is null or absent."""
        value = self.result.get(key)
        return nan if value is None else float(value)

    def path(self) -> paths.Path | None:
        """The path itself, read anew from path.safetensors, or None when it was not stored."""
        file = self.folder / "path.safetensors"
        return load_connection(file).path if file.is_file() else None


def read_runs(folder: str | Path) -> tuple[StoredRun, ...]:
    """Every run in `folder` itself and in its subfolders, the straight line first, then by the folder's name.

    Labels are method names; where a method occurs twice, the folder's name is added. Errors: FileError for a folder
    without results and for damaged files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileError(folder, "no such folder", "make results with `isthmus connect ... --out FOLDER`")
    files = [f for f in (folder / "result.json", *sorted(folder.glob("*/result.json"))) if f.is_file()]
    if not files:
        raise FileError(
            folder,
            "holds no result.json, neither itself nor in a subfolder",
            "make results first: `isthmus connect ... --out FOLDER`, or `isthmus demo --out FOLDER`",
        )
    runs = sorted((read_run(f.parent) for f in files), key=lambda r: (not r.is_baseline, str(r.folder)))
    count = Counter(r.method for r in runs)
    return tuple(
        replace(r, label=f"{r.method} ({r.folder.resolve().name})") if count[r.method] > 1 else r for r in runs
    )


def read_run(folder: str | Path) -> StoredRun:
    """The run stored in one folder; profile and certificate are None when their files are absent."""
    folder = Path(folder)
    result = _document(folder / "result.json")
    changed = [] if is_whole(result) else ["result.json"]
    _complete(result, folder)
    profile = certificate = None
    if (folder / "profile.json").is_file():
        held = _document(folder / "profile.json")
        profile = _profile(folder / "profile.json", held, result)
        changed += [] if is_whole(held) else ["profile.json"]
        result |= _measured(folder / "profile.json", profile, held)
    if (folder / "certificate.json").is_file():
        certificate = _document(folder / "certificate.json")
        _check_certificate(folder / "certificate.json", certificate)
        _check_same(folder / "certificate.json", certificate, result)
    return StoredRun(result["method"]["name"], folder, result, profile, certificate, tuple(changed))


def _complete(result: dict[str, Any], folder: Path) -> None:
    """Add what record.json holds, and check it all."""
    if (folder / "record.json").is_file():
        result |= {k: v for k, v in _document(folder / "record.json").items() if k in RECORDED}
    _check_result(folder / "result.json", result)
    path = folder / "path.safetensors"
    if "path" in result and path.is_file() and path_digest(path) != result["path"]:
        raise FileError(path, "is another path than that of result.json", "make the run again")


def _check_same(file: Path, doc: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Refuse a measurement or a proof of another objective or path: one folder is about one."""
    _check(file, doc, "objective", dict)
    if different := differs(result.get("objective") or {}, doc.get("objective")):
        why = f"is about another objective than result.json ({one_line(', '.join(different))})"
        raise FileError(file, why, "measure into a folder of its own, or make the run again")
    if doc.get("path", result.get("path")) != result.get("path"):
        why = "is about another path than result.json"
        raise FileError(file, why, "measure into a folder of its own, or make the run again")


def _document(file: Path) -> dict[str, Any]:
    doc = read_json(file)
    if not isinstance(doc, dict):
        raise FileError(file, f"expected a JSON object, got {type(doc).__name__}")
    if doc.get("format") != _FORMAT:
        raise FileError(file, f"has format {doc.get('format')!r}, this version reads format {_FORMAT}")
    return doc


def _check(file: Path, doc: Mapping[str, Any], key: str, kind: type | tuple[type, ...], needed: bool = False) -> None:
    value = doc.get(key)
    if value is None and not needed:
        return
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        want = kind.__name__ if isinstance(kind, type) else "number"
        raise FileError(file, f"{key}: expected a {want}, got {type(value).__name__}", "make the run again")


def _check_result(file: Path, doc: Mapping[str, Any]) -> None:
    _check(file, doc, "method", dict, needed=True)
    _check(file, doc["method"], "name", str, needed=True)
    _check(file, doc, "outcome", dict, needed=True)
    _check(file, doc["outcome"], "ok", bool, needed=True)
    _check(file, doc["outcome"], "message", str, needed=True)
    _check(file, doc, "seconds", dict)
    _check(file, doc, "proved", bool)
    _check(file, doc, "labels", list)
    _check(file, doc, "objective", dict)
    _check(file, doc.get("objective") or {}, "loss", str)
    _check(file, doc.get("objective") or {}, "examples", int)
    _check(file, doc.get("objective") or {}, "penalty", dict)
    _check(file, doc, "alignment", dict)
    for key in ("reference", "model", "data", "dtype", "command", "version", "torch"):
        _check(file, doc, key, str)
    for key in _NUMBERS:
        _check(file, doc, key, (int, float))
    for key in doc.get("seconds") or {}:
        _check(file, doc["seconds"], key, (int, float))
    _check_population(file, doc)
    _check(file, doc, "verdict", dict)
    try:
        Level.read((doc.get("verdict") or {}).get("asked", LEVEL))
    except InputError as e:
        raise FileError(file, f"verdict: {e}", "make the run again") from e


def _check_population(file: Path, doc: Mapping[str, Any]) -> None:
    """What a test set says of all examples there could be; nothing in files of older versions."""
    _check(file, doc, "population", dict)
    held = doc.get("population") or {}
    _check(file, held, "text", str)
    for key in ("loss", "error"):
        if held.get(key) is not None:
            _floats(file, held, key, 2)


_NUMBERS = (
    *("segments", "length", "normalized_length", "loss_a", "loss_b", "max_loss", "excess", "bound"),
    *("test_error_max", "test_loss_max", "seed"),
)
"""The keys of result.json that hold one number or null."""


def _check_certificate(file: Path, doc: Mapping[str, Any]) -> None:
    if not is_whole(doc):
        raise FileError(file, "was changed or damaged: its values do not match their digest", "certify the path again")
    _check(file, doc, "proved", bool, needed=True)
    _check(file, doc, "dtype", str)
    for key in ("bound", "excess", "slack", "goal", "evaluations", "budget", "expected"):
        _check(file, doc, key, (int, float))
    _check(file, doc, "spent", bool)
    _check(file, doc, "witness", dict)
    for key in ("t", "loss"):
        _check(file, doc.get("witness") or {}, key, (int, float))
    if doc.get("ends") is not None:
        _floats(file, doc, "ends", 2)
    _check(file, doc, "segments", list, needed=True)
    for segment in doc["segments"]:
        if not isinstance(segment, dict):
            raise FileError(file, f"segments: expected objects, got {type(segment).__name__}")
        _check(file, segment, "index", int, needed=True)
        _check(file, segment, "claim", str, needed=True)
        _check(file, segment, "bound", (int, float))
        _check(file, segment, "why", str)
        _check(file, segment, "label", str)


def _check_increasing(file: Path, t: Floats) -> None:
    if len(t) < 2 or not np.all(np.diff(t) >= 0) or t[0] < 0 or t[-1] > 1:
        raise FileError(file, "t: expected at least two increasing numbers in [0, 1]", "measure the path again")


def _profile(file: Path, doc: Mapping[str, Any], result: Mapping[str, Any]) -> StoredProfile:
    _check_same(file, doc, result)
    t = _floats(file, doc, "t")
    _check_increasing(file, t)
    segment = _floats(file, doc, "segment", len(t))
    if not np.isfinite(segment).all():
        raise FileError(file, "segment: expected whole numbers", "measure the path again")
    _check(file, doc, "num_points", int, needed=True)
    _check(file, doc, "test", dict)
    train, *tests = (_curves(file, part, len(t)) for part in (doc, doc.get("test")) if part is not None)
    _check(file, doc, "bn", str)
    for key in ("tol", "within"):
        _check(file, doc, key, (int, float))
    return StoredProfile(
        t, segment.astype(np.int64), train, tests[0] if tests else None, doc["num_points"],
        doc.get("bn") or "none", _beside(file, doc, len(t)), doc.get("tol"), doc.get("within"),
    )  # fmt: skip


def _measured(file: Path, found: StoredProfile, held: Mapping[str, Any]) -> dict[str, Any]:
    """What result.json says of the samples, of those of profile.json: the path may have been measured again since."""
    loss, test = found.train["loss"], found.test or {}
    ends, top = (float(loss[0]), float(loss[-1])), float(loss.max())
    out: dict[str, Any] = {"loss_a": ends[0], "loss_b": ends[1], "max_loss": top, "excess": top - largest(ends)}
    out |= {f"test_{q}_max": float(test[q].max()) if test else None for q in ("loss", "error")}
    tested = held.get("test") or {"population": None}
    if "population" in tested:  # files of older versions do not say
        _check(file, tested, "population", dict)
        out["population"] = _population(file, tested["population"])
        _check_population(file, out)
    return out


def _population(file: Path, band: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What result.json says of a band for the population: intervals for the largest loss and error, and the words."""
    if band is None:
        return None
    _check(file, band, "error", dict)
    error = (band.get("error") or {}).get("highest")
    return {"loss": band.get("highest"), "error": error, "text": band.get("text") or ""}


def _beside(file: Path, doc: Mapping[str, Any], length: int) -> dict[str, dict[str, Floats]]:
    """The curves under other policies; none in files of older versions."""
    _check(file, doc, "beside", dict)
    held = {k: v for k, v in (doc.get("beside") or {}).items() if k in POLICIES}
    for policy in held:
        _check(file, held, policy, dict, needed=True)
    return {policy: _curves(file, part, length) for policy, part in held.items()}


def _curves(file: Path, part: Mapping[str, Any], length: int) -> dict[str, Floats]:
    return {q: _floats(file, part, q, length) for q in ("loss", "error")}


def _floats(file: Path, doc: Mapping[str, Any], key: str, length: int | None = None) -> Floats:
    """A list of numbers, null read as NaN."""
    values: Sequence[Any] | None = doc.get(key)
    if not isinstance(values, list) or not all(v is None or type(v) in (int, float) for v in values):
        raise FileError(file, f"{key}: expected a list of numbers", "measure the path again")
    if length is not None and len(values) != length:
        raise FileError(file, f"{key}: expected {length} numbers, as in t, got {len(values)}", "measure the path again")
    return np.array([nan if v is None else v for v in values], np.float64)
