"""Files that are written whole or not at all: text, JSON, CSV. Tensors are in ``storage.tensors``.

A write goes to a temporary name beside the target, is flushed to the disk, and only then takes the target's
name: whoever reads the target finds the old content or the new, whatever kills the writer in between. Every
failure of the disk becomes one ``FileError`` that names the path, what happened and what to do.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from isthmus.errors import FileError, InputError
from isthmus.seal import SEAL, is_whole, sealed

__all__ = [
    "atomic_write",
    "check_regular",
    "copy_file",
    "disk_error",
    "one_line",
    "plain",
    "read_json",
    "read_sealed",
    "remove_file",
    "sweep_temporaries",
    "write_csv",
    "write_json",
    "write_sealed",
    "write_text",
]

PathLike = str | Path

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""How code fails on a document that is not what it takes it for; OverflowError is among them."""

# ".<name>.<pid>.<host><random>.tmp": the process and the machine that write it
_TEMPORARY = re.compile(r"\..+\.(\d+)\.([0-9a-f]{8})[0-9a-f]{8}\.tmp", re.DOTALL)
_ABANDONED = 24 * 3600  # seconds after which an untouched temporary of another machine counts as dead


def atomic_write(path: PathLike, write: Callable[[Path], None], *, size: int | None = None) -> None:
    """Call `write` with a temporary path in the same folder, flush what it wrote, and rename that to `path`.

    The file gets the permissions that the umask gives to a new file. If anything raises, the temporary and
    whatever `write` left beside it are removed and the old file stays as it was. `size` (bytes) is what the
    message says is needed when the disk is full. A link is followed: the file it points to is replaced.
    What killed writers left in the folder is removed (``sweep_temporaries``).
    """
    target = Path(os.path.realpath(path))
    # a folder of our own: what `write` leaves beside its file (a library's own temporary) is removed with it
    name = f".{target.name[:40]}.{os.getpid()}.{_host()}{secrets.token_hex(4)}.tmp"
    scratch = target.parent / name
    replaced = False
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        os.mkdir(scratch)
        with suppress(FileError):  # a folder that may be written to but not listed
            sweep_temporaries(target.parent)
        temporary = scratch / "new"
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = temporary.stat().st_mode & 0o777  # 0o666 less the umask, which cannot be read without setting it
        write(temporary)
        os.chmod(temporary, mode)
        _flush(temporary)
        os.replace(temporary, target)
        replaced = True
        _flush(target.parent)
    except OSError as error:
        why, instead = disk_error(error, target, size)
        if replaced:
            why = f"was written, but its folder could not be flushed ({why}): after a power cut it may be the old file"
        raise FileError(path, why, instead) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some network file systems cannot flush a folder; they order the rename themselves
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


def check_regular(path: PathLike) -> int:
    """The size of the regular file at `path`; devices and pipes, which could block, are refused."""
    info = os.stat(path)
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(info.st_mode):
        raise FileError(path, "is a device or a pipe, not a file", "give the path of a file")
    return info.st_size


def one_line(value: object, limit: int = 160) -> str:
    """The first line of a text or an error, short and printable: messages may quote hostile files.

    >>> one_line("a\\tb\\nc"), one_line("x" * 99, limit=8)
    ('a?b', 'xxxxx...')
    """
    text = next(iter(str(value).splitlines()), "") or type(value).__name__
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def disk_error(error: OSError, path: Path, size: int | None = None) -> tuple[str, str]:
    """What went wrong with the file at `path`, and what to do about it, as the two halves of a message.

    >>> disk_error(FileNotFoundError(errno.ENOENT, ""), Path("/no/such/file"))
    ('there is no folder /no/such', 'check the name, or create it')
    """
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            reason = os.strerror(error.errno).lower()
            needs = f", {size:,} bytes are needed" if size is not None else ""
            return f"{reason}{needs}{_free(path)}", "free some space, or write to another disk"
        case errno.ENOENT if not path.parent.is_dir():
            return f"there is no folder {path.parent}", "check the name, or create it"
        case errno.ENOENT:
            return "there is no such file", "check the name"
        case errno.EEXIST:
            return "there is a file of that name", "give the name of a folder, or move the file away"
        case errno.ENOTDIR:
            return f"{path.parent} is not a folder", "check the name"
        case errno.EISDIR:
            return "is a folder, not a file", "add a file name"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{os.strerror(error.errno).lower()}", "use a place that you may read and write"
        case _:
            return str(error.strerror or error).lower(), "check the disk"


def _free(path: Path) -> str:
    try:
        return f", {shutil.disk_usage(path.parent).free:,} are free"
    except OSError:
        return ""


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def sweep_temporaries(folder: PathLike) -> list[Path]:
    """Remove the temporaries in `folder` that a killed ``atomic_write`` left, and return them.

    One whose process runs on this machine is kept; one of another machine (a shared disk) is removed when
    nothing touched it for a day. Only names that ``atomic_write`` makes are considered.
    """
    swept = []
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise FileError(folder, *disk_error(error, Path(folder) / "x")) from error
    for entry in entries:
        made = _TEMPORARY.fullmatch(entry.name)
        if made and entry.is_dir(follow_symlinks=False) and _is_dead(int(made[1]), made[2], Path(entry.path)):
            shutil.rmtree(entry.path, ignore_errors=True)
            swept.append(Path(entry.path))
    return swept


def _is_dead(pid: int, host: str, path: Path) -> bool:
    try:
        if host != _host():
            touched = max(p.stat().st_mtime for p in (path, *path.iterdir()))
            return time.time() - touched > _ABANDONED
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False  # somebody else's process, or the temporary has just gone
    return False


def make_folder(path: PathLike) -> Path:
    """The folder, made with its parents if it is not there. Errors: ``FileError`` when nothing can be written to it."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise FileError(folder, *disk_error(error, folder)) from error


@contextmanager
def results_folder(path: PathLike) -> Iterator[Path]:
    """``make_folder`` before the work; it goes again, with all that was made for it, where that fails before anything
    was written to it."""
    made = [one for one in (Path(path), *Path(path).parents) if not os.path.lexists(one)]
    folder = make_folder(path)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            for one in made:
                one.rmdir()
        raise


def remove_file(path: PathLike) -> None:
    """Remove the file, if it is there. Errors: ``FileError`` where that may not be."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise FileError(path, *disk_error(error, Path(path))) from error


def write_text(path: PathLike, text: str) -> None:
    """Write `text` in UTF-8, atomically, with its line ends as they are."""
    data = text.encode("utf-8", errors="backslashreplace")
    atomic_write(path, lambda temporary: _write_bytes(temporary, data), size=len(data))


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def copy_file(source: PathLike, path: PathLike) -> None:
    """Copy a file, whole or not at all. Errors: ``FileError`` where one cannot be read, or the other not written."""
    try:
        size = check_regular(source)
    except OSError as error:
        raise FileError(source, *disk_error(error, Path(source))) from error
    atomic_write(path, lambda temporary: _copy_bytes(source, temporary), size=size)


def _copy_bytes(source: PathLike, path: Path) -> None:
    shutil.copyfile(source, path)


def plain(value: Any, what: str = "value", *, nonfinite: bool = False) -> Any:
    """`value` in plain JSON types: tuples, arrays and tensors become lists, numpy's numbers Python's.

    NaN and infinities, which JSON has not, become None, or stay with ``nonfinite=True``. Errors: a key
    that is not a string and a value of any other type, named by where it stands.

    >>> plain({"t": (0.5, float("nan")), "n": np.int64(3)})
    {'t': [0.5, None], 'n': 3}
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int | float):
        return _plain_number(value, nonfinite)
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return plain(value.tolist(), what, nonfinite=nonfinite)
    if isinstance(value, list | tuple):
        return [plain(v, f"{what}[{i}]", nonfinite=nonfinite) for i, v in enumerate(value)]
    if not isinstance(value, Mapping):
        raise InputError(what, expected="a JSON value (a number, string, list, dict or None)", got=type(value).__name__)
    return {_plain_key(k, what): plain(v, f"{what}[{k!r}]", nonfinite=nonfinite) for k, v in value.items()}


def _plain_number(value: float, nonfinite: bool) -> float | None:
    if isinstance(value, int):
        return int(value)
    return float(value) if nonfinite or math.isfinite(value) else None


def _plain_key(key: Any, what: str) -> str:
    if not isinstance(key, str):
        raise InputError(what, expected="keys that are strings", got=repr(key))
    return str(key)


def write_json(path: PathLike, value: Any) -> None:
    """Write `value` as JSON (see ``plain``; NaN and infinities become null), atomically, one item a line."""
    _write_json(path, plain(value))


def _write_json(path: PathLike, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: PathLike) -> Any:
    """Read JSON strictly: no duplicate key, no NaN or infinity, nothing after the value. Errors: ``FileError``."""
    try:
        check_regular(path)
        return strict_json(Path(path).read_bytes())
    except OSError as error:
        raise FileError(path, *disk_error(error, Path(path))) from error
    except UNREADABLE as error:
        raise FileError(path, f"is not valid JSON ({one_line(error)})", "write it again") from error


def write_sealed(path: PathLike, document: Mapping[str, Any]) -> None:
    """``write_json`` of named values, with the digest of them all."""
    _write_json(path, sealed(plain(document)))


def read_sealed(path: PathLike) -> dict[str, Any]:
    """``read_json`` of what ``write_sealed`` wrote. Errors: ``FileError`` also where the digest is not theirs."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise FileError(path, f"holds {type(document).__name__}, not named values", "make it again")
    if not is_whole(document):
        raise FileError(path, "was changed or damaged: its values do not match their digest", "make it again")
    return {k: v for k, v in document.items() if k != SEAL}


def strict_json(data: bytes | str, limit: float = math.inf) -> Any:
    """Parse JSON; refuse, as ValueError, duplicate keys, numbers no float holds, and more than `limit` objects.

    >>> strict_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key 'a' occurs twice
    """
    seen = 0

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal seen
        seen += 1
        if seen > limit:
            raise ValueError(f"more than {limit:,} objects")
        out = dict(items)
        if len(out) < len(items):
            twice, _ = Counter(k for k, _ in items).most_common(1)[0]
            raise ValueError(f"the key {twice!r} occurs twice")
        return out

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text} is not a finite number")
        return value

    text = data.decode("utf-8") if isinstance(data, bytes) else data
    value = json.loads(text, object_pairs_hook=pairs, parse_float=number, parse_constant=number, parse_int=whole)
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()  # half a pair of surrogates is no text, and no name of a file
    return value


def whole(text: str) -> int:
    """A whole number; one too large for a float, which would overflow wherever they meet, is a ValueError."""
    if len(text) > 300:
        raise ValueError(f"the whole number {one_line(text, 30)} has over 300 digits")
    return int(text)


def write_csv(path: PathLike, columns: Mapping[str, Sequence[Any] | Tensor | np.ndarray]) -> None:
    """Write columns of equal length under their names, atomically; floats in full, NaN as nan, None as nothing.

    Errors: columns of different lengths, and a column that is not one-dimensional.
    """
    data = {name: list(_column(name, values)) for name, values in columns.items()}
    lengths = {name: len(values) for name, values in data.items()}
    if len(set(lengths.values())) > 1:
        raise InputError("columns", expected="columns of one length", got=lengths)
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(data)
    rows.writerows(zip(*data.values(), strict=True))
    write_text(path, out.getvalue())


def _column(name: str, values: Any) -> Iterable[Any]:
    if isinstance(values, (Tensor, np.ndarray)):
        if values.ndim != 1:
            raise InputError(f"columns[{name!r}]", expected="one dimension", got=tuple(values.shape))
        return values.tolist()
    if isinstance(values, str):
        raise InputError(f"columns[{name!r}]", expected="a sequence of values", got="a string")
    return values
