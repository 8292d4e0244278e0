"""Tables as data: which results make a row, and how each of its columns is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from statistics import fmean
from typing import Any, NamedTuple

from isthmus import shown
from isthmus.sweep import Cell, Stored

Row = dict[str, Any]
Done = Sequence[tuple[Cell, Stored]]


@dataclass(frozen=True)
class Entry:
    """A finished job, or one of the parts that its result lists: what columns read.

    >>> from isthmus.sweep import Stored
    >>> from pathlib import Path
    >>> entry = Entry(None, Stored("", Path(), {"loss": {"max": 2.0}}, {"seconds": 3.0}))
    >>> entry["loss.max"], entry["record.seconds"], entry["error?"]
    (2.0, 3.0, None)
    """

    cell: Any
    stored: Stored
    part: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, path: str) -> Any:
        """A value of the part, else of the result; "cell." and "record." lead to those.

        Results hold None for a number that was not finite: it is read as ``number`` does, unless the path ends in "?"
        or leads to the cell, where None says that there is nothing. Errors: ``KeyError`` and ``AttributeError`` where
        there is no such value; None if the path ends in "?".
        """
        found: Any = {**self.stored.result, **self.part, "cell": self.cell, "record": self.stored.record}
        for name in path.removesuffix("?").split("."):
            if isinstance(found, Mapping) and path.endswith("?"):
                found = found.get(name)
            elif found is not None:
                found = found[name] if isinstance(found, Mapping) else getattr(found, name)
        return found if path.endswith("?") or path.startswith("cell.") else number(found)


def number(found: Any) -> Any:
    """What a result holds: NaN in the place of None, a number that was not finite; in lists and mappings too.

    The mappings of a list stay as they are: they are parts of the result.

    >>> number(None), number([1.0, None]), number({"loss": [None]}), number([{"bound": None}])
    (nan, [1.0, nan], {'loss': [nan]}, [{'bound': None}])
    """
    if isinstance(found, Mapping):
        return {name: number(value) for name, value in found.items()}
    if isinstance(found, list):
        return [value if isinstance(value, Mapping) else number(value) for value in found]
    return nan if found is None else found


Reader = str | Callable[[Entry], Any]
"""Where a column finds its value in an entry: a path, or a function."""
Column = Callable[[Sequence[Entry]], Any]
"""What a column makes of the entries of its row."""


def read(entry: Entry, what: Reader) -> Any:
    """What is there in the entry."""
    return entry[what] if isinstance(what, str) else what(entry)


def _values(entries: Sequence[Entry], what: Reader, of: type | None = None) -> list[Any]:
    """What is there in the entries of one kind of job, as far as it is there."""
    found = [read(e, what) for e in entries if of is None or isinstance(e.cell, of)]
    return [v for v in found if v is not None]


def _if_there(what: Reader) -> Reader:
    """Of what an entry may lack: None stays None."""
    return f"{what.removesuffix('?')}?" if isinstance(what, str) else what


class Spread(NamedTuple):
    """A value and its spread, which stands in a column of its own under the first one's name with `mark`."""

    value: float | None
    spread: float | None
    mark: str


def sd(values: Sequence[float]) -> float | None:
    """The standard deviation; None for one value, NaN where one is not finite."""
    return shown.deviation(values) if len(values) > 1 else None


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of the mean, by Student's t; None for one value, NaN where one is not finite.

    >>> round(half_width([1.0, 2.0, 3.0]), 4)
    2.4841
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * shown.deviation(values) / n**0.5


_SPREADS = {"sd": sd, "±": half_width}


def mean(what: Reader, spread: str = "", *, of: type | None = None, scale: float = 1) -> Column:
    """The mean of what is there, and as `spread` in the next column its standard deviation ("sd") or interval ("±").

    NaN where the number of an entry was not finite, which its result stores as none.
    """

    def column(entries: Sequence[Entry]) -> Any:
        values = [scale * v for v in _values(entries, what, of)]
        middle = fmean(values) if values else None
        return Spread(middle, _SPREADS[spread](values), spread) if spread else middle

    return column


def largest(what: Reader, *, scale: float = 1, of_all: bool = False) -> Column:
    """The largest of what is there, NaN where a number was not finite; with `of_all`, for what an entry may lack,
    nothing unless it is there in every entry."""

    def column(entries: Sequence[Entry]) -> Any:
        values = _values(entries, _if_there(what) if of_all else what)
        missing = of_all and len(values) < len(entries)
        return None if missing or not values else scale * shown.largest(values)

    return column


def first(what: Reader) -> Column:
    """What is there in the first entry."""
    return lambda entries: read(entries[0], what)


def count(what: Reader = lambda entry: True) -> Column:
    """In how many entries that is the case."""
    return lambda entries: sum(bool(read(e, what)) for e in entries)


def so_many(what: Reader) -> Column:
    """In how many entries something is there, as "3 of 4"."""
    return lambda entries: f"{len(_values(entries, _if_there(what)))} of {len(entries)}"


@dataclass(frozen=True)
class Table:
    """One row for each group of results.

    `of`: the kinds of jobs; `where`: which of them; `each`: the list in a result, or made of it, whose parts are
    entries of their own; `by`: what the entries of a row have in common, its first columns; `columns`: the others,
    from the row's entries. Columns whose name starts with "." are for figures and claims alone.
    """

    of: type | tuple[type, ...]
    by: Mapping[str, Reader]
    columns: Mapping[str, Column]
    each: str | Callable[[Entry], Sequence[Mapping[str, Any]]] = ""
    where: Callable[[Any], bool] = lambda cell: True

    def entries(self, done: Done) -> list[Entry]:
        """What rows are made of."""
        found = [Entry(cell, stored) for cell, stored in done if isinstance(cell, self.of) and self.where(cell)]
        if not self.each:
            return found
        return [Entry(e.cell, e.stored, part) for e in found for part in read(e, self.each)]

    def rows(self, done: Done) -> list[Row]:
        """One for each group, in the order in which they first occur."""
        groups: dict[tuple[Any, ...], list[Entry]] = {}
        for entry in self.entries(done):
            groups.setdefault(tuple(read(entry, what) for what in self.by.values()), []).append(entry)
        return [dict(zip(self.by, key, strict=True)) | self._columns(group) for key, group in groups.items()]

    def _columns(self, group: Sequence[Entry]) -> Row:
        row: Row = {}
        for name, column in self.columns.items():
            value = column(group)
            if isinstance(value, Spread):
                row[name] = value.value
                row[f"{name.removesuffix(' %')} {value.mark}"] = value.spread
            else:
                row[name] = value
        return row
