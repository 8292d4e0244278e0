"""A job as a value: a frozen dataclass of plain values, and the key under which its result is kept."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

from isthmus.errors import InputError

if TYPE_CHECKING:
    from isthmus.sweep.store import Job


class Cell(ABC):
    """One job: a frozen dataclass whose result is a pure function of its fields and of the data they name.

    A subclass has `run`, and the rest follows from its fields: what one of them reads is read by the job, and a field
    that is a job, or that has `needs` of its own, is done before. `schema` is a number to raise when the meaning of a
    result changes: old results are then computed anew.
    """

    schema: ClassVar[int] = 1
    page: ClassVar[str] = ""
    """The folder that the results of its kind share: a plain name."""
    what: ClassVar[str] = ""
    """What it does, as its label says."""

    @property
    def group(self) -> str:
        """The folder of its result: `page`."""
        return self.page

    @property
    def label(self) -> str:
        """What a person calls it; ``--only`` searches here. `what`, labels of fields, and what is not the default."""
        parts = []
        for entry in fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            if hasattr(value, "label"):
                parts.append(value.label.removeprefix("train "))
            elif isinstance(value, str | int | float) and value != entry.default:
                parts.append(f"{entry.name} {value:.3g}" if isinstance(value, float) else f"{entry.name} {value}")
        return f"{self.what or type(self).__name__} {', '.join(parts)}"

    def digests(self) -> Mapping[str, str]:
        """The digest of everything it reads beside its fields: data sets, files, code."""
        found: dict[str, str] = {}
        for value in self._values():
            for name, read in value.digests().items() if hasattr(value, "digests") else ():
                while found.setdefault(name, read) != read:
                    name += "'"  # another one of the same name
        return found

    def needs(self) -> tuple[Cell, ...]:
        """The cells whose results it reads; they are done first, once for all that need them."""
        found: list[Cell] = []
        for value in self._values():
            if isinstance(value, Cell):
                found.append(value)
            elif hasattr(value, "needs"):
                found += value.needs()
        return tuple(dict.fromkeys(found))

    @property
    def like(self) -> Cell | None:
        """A cell that takes as long at most, and can be timed by short runs on networks that are hardly trained.

        None where what it needs decides how long it takes.
        """
        return self

    def _values(self) -> list[Any]:
        """The values of the fields, those of tuples one by one."""
        found: list[Any] = []
        for entry in fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            found += value if isinstance(value, tuple) else (value,)
        return found

    @abstractmethod
    def run(self, job: Job) -> Mapping[str, Any]:
        """The result in JSON values; further files go into ``job.folder``.

        Both must be the same bytes on every call: no times, no names of machines.
        """


def canonical(value: Any, what: str = "config") -> Any:
    """A configuration as plain JSON values, in which every dataclass says its name.

    >>> from isthmus.connectors import Linear
    >>> canonical({"method": Linear(), "widths": (2, 3)})
    {'method': {'is': 'Linear'}, 'widths': [2, 3]}
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float | Path):
        return _plain(value, what)
    if is_dataclass(value) and not isinstance(value, type):
        return {"is": type(value).__name__, **_fields(value, what)}
    if isinstance(value, list | tuple):
        return [canonical(v, f"{what}[{i}]") for i, v in enumerate(value)]
    if _has_names(value):
        return {k: canonical(v, f"{what}[{k!r}]") for k, v in value.items()}
    raise InputError(what, expected="plain values, dataclasses of them", got=type(value).__name__)


def _plain(value: float | Path, what: str) -> float | str:
    if isinstance(value, Path):
        return str(value)
    if not isfinite(value):
        raise InputError(what, expected="a finite number", got=value)
    return value


def _has_names(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping) and all(isinstance(k, str) for k in value)


def _fields(value: Any, what: str) -> dict[str, Any]:
    given = {f.name: getattr(value, f.name) for f in fields(value) if not _is_unused(f, value)}
    return {k: canonical(v, f"{what}.{k}") for k, v in given.items()}


def _is_unused(entry: Field[Any], value: Any) -> bool:
    """Whether a field that came later (metadata "later") has its default: results from before keep their keys."""
    return bool(entry.metadata.get("later")) and getattr(value, entry.name) == entry.default


def identity(cell: Cell) -> dict[str, Any]:
    """All that a result depends on: what its key is made from, and what is stored beside it."""
    return {"cell": canonical(cell), "data": dict(sorted(cell.digests().items())), "schema": cell.schema}


def key_of(known: Mapping[str, Any]) -> str:
    """The content key: the SHA-256 of the canonical JSON of an ``identity``."""
    return hashlib.sha256(
        json.dumps(known, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


def with_needs(cells: Iterable[Cell]) -> list[Cell]:
    """The cells and all that they need, each once, needs first."""
    equal: dict[Cell, list[Cell]] = {}  # 1, 1.0 and True are equal, and the keys of cells with them are not
    out: list[Cell] = []

    def visit(cell: Cell) -> None:
        known = equal.setdefault(cell, [])
        if any(one is cell or text_of(one) == text_of(cell) for one in known):
            return
        for need in cell.needs():
            visit(need)
        known.append(cell)
        out.append(cell)

    for cell in cells:
        visit(cell)
    return out


def text_of(value: Any) -> str:
    """``canonical`` as a text: another one for what keys tell apart."""
    return json.dumps(canonical(value), sort_keys=True)
