"""Whether what a file holds fits in memory, asked before it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from isthmus.errors import FileError
from isthmus.storage.files import PathLike

__all__ = ["available", "check_room"]

_MEMORY, _OWN, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_FILES = {True: ("memory.limit_in_bytes", "memory.usage_in_bytes"), False: ("memory.max", "memory.current")}
"""The limit and the use of a control group, of the first version of the interface and of the second."""


def check_room(path: PathLike, needed: int) -> None:
    """Refuse a file whose tensors, of so many bytes, do not fit in memory; where that cannot be told, nothing."""
    there = available()
    if there is not None and needed > there:
        why = f"needs {needed:,} bytes of memory, {there:,} are available"
        raise FileError(path, why, "free some, or use a machine with more")


def available() -> int | None:
    """Bytes that may be taken: of the system's (swap included), and of each control group's that this process is in."""
    with suppress(OSError, ValueError):
        known = _numbers(_MEMORY)
        if "MemAvailable" in known:
            return max(0, min([1024 * (known["MemAvailable"] + known.get("SwapFree", 0)), *_left_in_groups()]))
    return None


def _left_in_groups() -> Iterator[int]:
    for line in _OWN.read_text().splitlines() if _OWN.exists() else ():
        number, kinds, place = line.split(":", 2)
        first = "memory" in kinds.split(",")
        if not first and number != "0":
            continue
        own = (_GROUPS / "memory" if first else _GROUPS) / place[1:]
        for group in (own, *own.parents):
            # no limit is the word max, or in the first version a number that no machine has
            with suppress(OSError, ValueError):
                limit, used = (int((group / name).read_text()) for name in _FILES[first])
                yield limit - used + _of_files(group)


def _of_files(group: Path) -> int:
    """Bytes of a group that are copies of files, and go where room is needed."""
    known = _numbers(group / "memory.stat")
    return sum(known.get(f"total_{kind}", known.get(kind, 0)) for kind in ("active_file", "inactive_file"))


def _numbers(file: Path) -> dict[str, int]:
    """The lines of a name and a number."""
    return {name: int(n) for name, n in re.findall(r"^(\w+):?\s+(\d+)", file.read_text(), re.MULTILINE)}
