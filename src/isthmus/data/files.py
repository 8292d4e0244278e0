"""Readers of data files: .npz, idx (MNIST) and the binary CIFAR-10 batches. Every damage is one FileError."""

from __future__ import annotations

import gzip
import struct
import tokenize
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.errors import FileError

Array = np.ndarray[Any, np.dtype[Any]]

LIMIT = 16 * 2**30
"""More bytes than this are refused before they are read: no file of ours is near, a hostile header can claim it."""

_FREE, _RATIO = 2**30, 100
"""Any file may claim the first number of bytes; a larger one may claim its own size times the second."""

CIFAR_RECORD = 1 + 3 * 32 * 32
"""One label byte, then the red, green and blue planes."""

_BROKEN = (
    ValueError,  # numpy: bad magic, bad header, pickled objects, too few bytes
    OSError,
    EOFError,
    KeyError,
    MemoryError,
    OverflowError,
    RuntimeError,  # zipfile: an encrypted member
    NotImplementedError,  # zipfile: an unknown compression
    SyntaxError,
    TypeError,
    AttributeError,
    IndexError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)


def _check_claim(path: Path, count: int) -> None:
    limit = min(LIMIT, max(_FREE, _RATIO * path.stat().st_size))
    if count > limit:
        why = f"claims to hold {count:,} bytes, more than the limit of {limit:,} for a file of its size"
        raise FileError(path, why, "store it without compression, as numpy.savez does")


def read_npz(path: Path) -> dict[str, Array]:
    """All numeric arrays of a .npz file; pickled objects are refused, nothing is executed."""
    try:
        with zipfile.ZipFile(path) as z:
            size = sum(i.file_size for i in z.infolist())
        _check_claim(path, size)
        with np.load(path, allow_pickle=False) as z:
            arrays = {name: np.asarray(z[name]) for name in z.files}
    except _BROKEN as exc:
        why = "holds pickled objects" if "pickle" in str(exc).lower() else f"cannot be read as .npz ({_reason(exc)})"
        raise FileError(path, why, "write it with numpy.savez(file, x_train=..., y_train=...)") from exc
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise FileError(path, f"array {name!r} has dtype {array.dtype}, not numbers")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FileError(path, f"array {name!r} holds NaN or infinities")
    return arrays


def read_idx(path: Path) -> Array:
    """An idx file of unsigned bytes, as MNIST is published, plain or gzipped."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as f:
            zeros, kind, ndim = struct.unpack(">HBB", f.read(4))
            if zeros != 0 or kind != 8 or not 1 <= ndim <= 4:
                raise FileError(path, "is not an idx file of bytes (wrong magic number)")
            shape = struct.unpack(f">{ndim}I", f.read(4 * ndim))
            count = prod(shape)
            _check_claim(path, count)
            # one byte more than wanted also makes gzip check its checksum
            body = f.read(count + 1)
    except _BROKEN as exc:
        raise FileError(path, f"is damaged or cut short ({_reason(exc)})", "fetch it again") from exc
    if len(body) != count:
        held = "more" if len(body) > count else f"{len(body):,}"
        raise FileError(path, f"should hold {count:,} bytes for shape {list(shape)} and holds {held}", "fetch it again")
    return np.frombuffer(body, np.uint8).reshape(shape)


def read_cifar_batch(path: Path) -> tuple[Array, Array]:
    """Images [n, 3, 32, 32] and labels [n] of one file of the binary version of CIFAR-10."""
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise FileError(path, f"cannot be read ({_reason(exc)})") from exc
    if not raw or len(raw) % CIFAR_RECORD:
        raise FileError(path, f"has {len(raw):,} bytes, not a multiple of {CIFAR_RECORD}", "fetch it again")
    records = np.frombuffer(raw, np.uint8).reshape(-1, CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _reason(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:160] if lines else type(exc).__name__
