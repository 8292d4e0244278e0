"""What a paper says in words, as data: on which rows it is checked, and the number that decides it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from isthmus.errors import InputError
from isthmus.experiments.tables import Row


class Finding(NamedTuple):
    """What a paper says in words, whether it holds here (None: not measured), and the numbers that decide it.

    >>> print(Finding("the line is high", True, "1.5 against 0.1"))
    holds: the line is high (1.5 against 0.1)
    """

    statement: str
    holds: bool | None
    measured: str

    def __str__(self) -> str:
        return f"{_VERDICTS[self.holds]}: {self.statement} ({self.measured})"


_VERDICTS = {True: "holds", False: "FAILS", None: "not measured"}
Rows = Sequence[Row]


@dataclass(frozen=True)
class Claim:
    """What is said of some rows, and the number or the condition that decides it; without rows it is not measured.

    `rows`: which ones it is about; `per`: columns, for one finding for each of their values that occur, which `text`
    may name in braces; `needs`: rows without a value in these columns do not count. Either `value`, a number of a row
    (a column, or a function; None: does not count), is at most `at_most` or at least `at_least` in every row, and
    `says` is a format of the ``value`` that decides, the entries of its row, and the ``count`` of rows or of their
    pairs, or a function of all rows; or `judge` says of the rows together whether it holds (None: not measured), and
    what was measured.

    A statement about a range is not measured unless the range was reached: `over` is a column with its lowest and its
    highest value, both of which must occur (an infinite end need not), and rows outside do not count; `every` is a
    column with the values that must all occur, or a function of the rows that says which. One number in the range that
    is not within the bounds is enough for a statement to fail.

    >>> low = Claim("{task}: low", lambda r: "loss" in r, ("task",), "loss", at_most=1, says="{value} at {N}")
    >>> for finding in low.findings([{"task": "a", "loss": 2, "N": 5}, {"task": "a", "loss": 0, "N": 7}]):
    ...     print(finding)
    FAILS: a: low (2 at 5)
    >>> print(Claim("low", lambda r: "loss" in r, value="loss", at_most=1).findings([])[0])
    not measured: low (no results)
    >>> wide = Claim("low to N = 9", lambda r: "loss" in r, value="loss", at_most=1, over=("N", 5, 9))
    >>> print(wide.findings([{"loss": 0, "N": 5}, {"loss": 0, "N": 7}])[0])
    not measured: low to N = 9 (0; N up to 7, not 9)
    """

    text: str
    rows: Callable[[Row], bool]
    per: tuple[str, ...] = ()
    value: str | Callable[[Row], float | None] | None = None
    at_most: float | None = None
    at_least: float | None = None
    judge: Callable[[list[Row]], tuple[bool | None, str]] | None = None
    says: str | Callable[[list[Row]], str] = "{value:.3g}"
    needs: tuple[str, ...] = ()
    over: tuple[str, float, float] | None = None
    every: tuple[str, Sequence[Any] | Callable[[list[Row]], Sequence[Any]]] | None = None

    def __post_init__(self) -> None:
        if self.at_most is not None and self.at_least is not None:  # one number decides
            raise InputError("at_most, at_least", expected="one of them", got=(self.at_most, self.at_least))

    def findings(self, rows: Rows) -> list[Finding]:
        """One; with `per` one for each group."""
        groups: dict[tuple[Any, ...], list[Row]] = {} if self.per else {(): []}
        for row in rows:
            if self.rows(row):
                groups.setdefault(tuple(row[name] for name in self.per), []).append(row)
        return [self._finding(dict(zip(self.per, key, strict=True)), group) for key, group in groups.items()]

    def _finding(self, group: Row, rows: list[Row]) -> Finding:
        text = self.text.format_map(group)
        rows = [row for row in rows if self._counts(row)]
        if not rows:
            return Finding(text, *_NOTHING)
        holds, measured = self._by_number(rows) if self.judge is None else self.judge(rows)
        refuted = holds is False and self.judge is None
        missing = self._missing(rows)
        return Finding(text, holds, measured) if refuted or not missing else Finding(text, None, measured + missing)

    def _counts(self, row: Row) -> bool:
        """Whether a row has what is needed, and lies in the range."""
        if any(row.get(name) is None for name in self.needs):
            return False
        if self.over is None:
            return True
        column, low, high = self.over
        value = row.get(column)
        return value is not None and low <= value <= high

    def _missing(self, rows: list[Row]) -> str:
        """What of the range and of the values asked for does not occur, for people; nothing if all is there."""
        out = "" if self.over is None else _outside([row[self.over[0]] for row in rows], *self.over)
        if self.every is not None:
            column, asked = self.every
            values, there = asked(rows) if callable(asked) else asked, {row.get(column) for row in rows}
            absent = [str(v) for v in values if v not in there]
            out += f"; without {column} {', '.join(absent)}" if absent else ""
        return out

    def _by_number(self, rows: list[Row]) -> tuple[bool | None, str]:
        """The largest number decides, or with `at_least` the smallest."""
        numbers = [(self._number(row), row) for row in rows]
        known = [(number, row) for number, row in numbers if number is not None]
        if not known:
            return _NOTHING
        sign = 1 if self.at_least is None else -1
        number, worst = max(known, key=lambda found: (found[0] != found[0], sign * found[0]))  # NaN decides
        if callable(self.says):
            return self._good(number), self.says(rows)
        count = sum(row.get("pairs", 1) for _, row in known)
        return self._good(number), self.says.format_map({**worst, "value": number, "count": count})

    def _number(self, row: Row) -> float | None:
        if callable(self.value):
            return self.value(row)
        return row.get(self.value) if self.value else None

    def _good(self, number: float) -> bool:
        """Whether the number that decides is within the bounds; NaN is not."""
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return bool(low <= number <= high)


def _outside(known: Sequence[float], column: str, low: float, high: float) -> str:
    """Which end of a range the known values do not reach, for people."""
    out = ""
    if -math.inf < low < min(known):
        out += f"; {column} down to {min(known):g}, not {low:g}"
    if max(known) < high < math.inf:
        out += f"; {column} up to {max(known):g}, not {high:g}"
    return out


_NOTHING = (None, "no results")
