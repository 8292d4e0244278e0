"""Tensors in safetensors files: written in a stream and atomically, read without mmap, with a digest.

The same tensors always give the same bytes. Reading trusts nothing: the header is bounded and checked before
a tensor is read, and tensors are read one at a time with ``pread`` (a file that shrinks under an open mmap
kills the process).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from isthmus.errors import FileError, InputError, IsthmusError
from isthmus.params import Params
from isthmus.storage.files import (
    UNREADABLE,
    PathLike,
    atomic_write,
    check_regular,
    disk_error,
    one_line,
    strict_json,
)
from isthmus.storage.room import check_room

__all__ = ["digest", "digest_of", "one_by_one", "read_metadata", "read_tensors", "save_tensors", "sniff"]

_HEADER_BYTES = 20_000_000
_HEADER_KEYS = 150_000

_SURROGATE = re.compile("[\ud800-\udfff]")

# the formats that safetensors has a code for and torch can read back
_CODES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.bool: "BOOL"},
    **{torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.complex64: "C64"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"},
}


def _check(name: Any, tensor: Any) -> None:
    """Refuse what a safetensors file cannot hold."""
    what = f"tensors[{name!r}]"
    if not isinstance(name, str) or name == "__metadata__":
        raise InputError(what, expected="a string other than '__metadata__' as the name", got=repr(name))
    if not _is_text(name):
        raise InputError(what, expected="a name in Unicode text", got="half a surrogate pair")
    _check_values(what, tensor)


def _check_values(what: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(what, expected="a torch.Tensor", got=type(tensor).__name__)
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        kind = "a meta tensor, which has no values" if tensor.is_meta else str(tensor.layout)
        raise InputError(what, expected="a dense tensor with values", got=kind, instead="tensor.to_dense()")
    if tensor.dtype not in _CODES:
        raise InputError(what, expected="a format that safetensors can hold", got=tensor.dtype)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not _SURROGATE.search(value)


def _bytes(tensor: Tensor) -> memoryview:
    """The entries in row-major order; only a tensor that is not contiguous on the CPU is copied for it."""
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return dense.reshape(-1).view(torch.uint8).numpy().data


def digest_of(tensor: Tensor) -> str:
    """The SHA-256 of one tensor's dtype, shape and bytes."""
    hashed = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    hashed.update(_bytes(tensor))
    return hashed.hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 over the sorted names with each tensor's dtype, shape and bytes.

    The same entries give the same digest, whatever the order, the strides or the device.

    >>> w = torch.arange(6.0).reshape(2, 3)
    >>> digest({"w": w, "b": w}) == digest({"b": w, "w": w.T.clone().T})
    True
    """
    return combine({name: digest_of(tensor) for name, tensor in tensors.items()})


def combine(digests: Mapping[str, str]) -> str:
    """The digest of named tensors from their own digests."""
    # JSON keeps the names apart whatever characters they hold
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def save_tensors(tensors: Mapping[str, Tensor], path: PathLike, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; one tensor at a time is in memory beside the arguments.

    Tensors may be of any strides, share memory or live on a device; each is written in full. Errors:
    ``InputError`` for what the format cannot hold; ``FileError`` for a full disk, and for a header over
    20 MB or 150,000 names, which would not be read again.
    """
    for name, tensor in tensors.items():
        _check(name, tensor)
    if odd := [k for k, v in metadata.items() if not _is_text(k) or not _is_text(v)]:
        raise InputError(f"metadata[{odd[0]!r}]", expected="Unicode text under a text", got=repr(metadata[odd[0]]))
    # wide formats first keeps every tensor aligned, as the format asks
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        entries[name] = {"dtype": _CODES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    # the reader's own checks, before anything is written: what is kept can be read again
    _check_length(path, len(header))
    _parsed(path, header)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as out:
            out.write(len(header).to_bytes(8, "little"))
            out.write(header)
            for name in order:
                out.write(_bytes(tensors[name]))
        with readable(path), safe_open(temporary, framework="pt", backend="pread"):
            pass

    atomic_write(path, write, size=8 + len(header) + end)


@contextmanager
def readable(path: PathLike) -> Iterator[None]:
    """Turn every way in which reading can fail into a ``FileError`` about `path`."""
    try:
        yield
    except IsthmusError:
        raise
    except OSError as error:
        raise FileError(path, *disk_error(error, Path(path))) from error
    except (SafetensorError, RuntimeError, MemoryError, *UNREADABLE) as error:
        raise FileError(
            path, f"is not a whole safetensors file ({one_line(error)})", "copy or download it again"
        ) from error


def _header(path: PathLike) -> dict[str, Any]:
    """The parsed header, after the checks that bound what reading it can cost."""
    size = check_regular(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise FileError(path, f"is {sniff(path)}, not a whole safetensors file", "copy or download it again")
        _check_length(path, length)
        return _parsed(path, file.read(length))


def _check_length(path: PathLike, length: int) -> None:
    if length > _HEADER_BYTES:
        raise FileError(path, f"has a header of {length:,} bytes, {_HEADER_BYTES:,} are allowed", "split the file")


def _parsed(path: PathLike, data: bytes) -> dict[str, Any]:
    try:
        header = strict_json(data, limit=_HEADER_KEYS + 2)
    except UNREADABLE as error:
        raise FileError(path, f"has a damaged header ({one_line(error)})", "copy or download it again") from error
    if not isinstance(header, dict) or not all(isinstance(v, dict) for v in header.values()):
        raise FileError(path, "has a header that names no tensors", "copy or download it again")
    if len(header) > _HEADER_KEYS:
        raise FileError(path, f"names {len(header):,} tensors, {_HEADER_KEYS:,} are allowed", "split the file")
    if not all(isinstance(v, str) for v in header.get("__metadata__", {}).values()):
        raise FileError(path, "has metadata that are not strings", "copy or download it again")
    return header


def read_metadata(path: PathLike) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors. Errors: ``FileError``."""
    with readable(path):
        return dict(_header(path).get("__metadata__", {}))


def read_tensors(path: PathLike) -> tuple[Params, dict[str, str]]:
    """The tensors (on the CPU) and the metadata of a safetensors file.

    Read one tensor at a time and never through mmap, so that memory is the tensors once. Nothing is
    checked against a digest here. Errors: ``FileError`` for a file that is missing, damaged, not a
    safetensors file, larger than memory, or whose header is over 20 MB or 150,000 names.
    """
    with readable(path):
        header = _header(path)
        check_room(path, os.path.getsize(path))
        with safe_open(path, framework="pt", device="cpu", backend="pread") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        return tensors, dict(header.get("__metadata__", {}))


@contextmanager
def one_by_one(path: PathLike) -> Iterator[Callable[[str], Tensor]]:
    """A function that reads the tensor of a name from a safetensors file. Errors: as ``read_tensors``."""
    with readable(path):
        _header(path)
        with safe_open(path, framework="pt", device="cpu", backend="pread") as file:
            yield file.get_tensor


_BEGINNINGS = {
    b"PK\x03\x04": "a zip archive (a torch checkpoint, or NumPy's npz)",
    b"\x80": "a Python pickle (perhaps an old torch checkpoint)",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer (the file itself was not fetched: git lfs pull)",
    b"<": "an HTML or XML page",
    b"{": "JSON text",
    b"[": "JSON text",
}


def sniff(path: PathLike) -> str:
    """What a file seems to be, judged by its first bytes: a phrase for messages."""
    if os.path.isdir(path):
        return "a folder"
    size = check_regular(path)
    with open(path, "rb") as file:
        first = file.read(24)
    if not first:
        return "an empty file"
    if first[8:9] == b"{":
        length = int.from_bytes(first[:8], "little")
        if length <= size - 8:
            return "a safetensors file"
        if length < 2**40:
            return "a truncated safetensors file"
    if size < 8:
        return f"a file of {len(first)} bytes"
    return next((kind for start, kind in _BEGINNINGS.items() if first.startswith(start)), "no format that is known")
