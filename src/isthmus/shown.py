"""How results show themselves to people: one line, a table in a notebook, a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from html import escape
from math import isfinite, nan
from statistics import stdev
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")

LIMIT = 200
"""The longest line."""
_LONGEST = 40  # of one part of a line
_SEVERAL = 4  # parts of a sequence that are shown one by one

_DTYPES = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


def one_line(cls: type[T]) -> type[T]:
    """Give a dataclass a ``repr`` of one line, however much it holds (a class decorator).

    >>> import torch
    >>> from dataclasses import dataclass
    >>> @one_line
    ... @dataclass
    ... class Found:
    ...     weight: Tensor
    ...     losses: tuple[float, ...]
    >>> Found(torch.zeros(60, 64), (0.25,) * 100)
    Found(weight=f32[60, 64], losses=100 x float)
    """
    cls.__repr__ = of_fields  # type: ignore[method-assign]
    return cls


def of_fields(self: Any) -> str:
    """The line of a dataclass: its fields, as ``brief`` has them."""
    return line(self, *(f"{f.name}={brief(getattr(self, f.name))}" for f in fields(self) if f.repr))


def line(value: object, *parts: str) -> str:
    """The name of the value's class with these parts in brackets, without empty ones and those that have no room."""
    name, kept = type(value).__name__, [part for part in parts if part]
    whole = f"{name}({', '.join(kept)})"
    while len(whole) > LIMIT and kept:
        kept.pop()
        whole = f"{name}({', '.join([*kept, '...'])})"
    return whole


def upward(value: float, digits: int = 4) -> float:
    """`value` rounded up to so many significant digits: what is printed of a bound must still be one.

    >>> upward(0.00259312), upward(0.25)
    (0.002594, 0.25)
    """
    return _rounded(value, digits, ROUND_CEILING)


def downward(value: float, digits: int = 4) -> float:
    """`value` rounded down to so many significant digits: for what is never below.

    >>> downward(0.00259392), downward(-0.25001)
    (0.002593, -0.2501)
    """
    return _rounded(value, digits, ROUND_FLOOR)


def largest(values: Iterable[float]) -> float:
    """The largest of some numbers, NaN if one is: Python's ``max`` may pass over it.

    >>> largest([2.0, float("nan"), 1.0]), largest([2.0, 1.0])
    (nan, 2.0)
    """
    return max(values, key=lambda value: (value != value, value))


def deviation(values: Sequence[float]) -> float:
    """One standard deviation of some numbers; NaN of fewer than two, and where one is not finite.

    >>> deviation([0.0, 2.0, 4.0]), deviation([1.0]), deviation([1.0, float("nan")])
    (2.0, nan, nan)
    """
    return stdev(values) if len(values) > 1 and all(map(isfinite, values)) else nan


def _rounded(value: float, digits: int, way: str) -> float:
    return float(Context(prec=digits, rounding=way).create_decimal(value)) if isfinite(value) else value


def brief(value: object) -> str:
    """A value in a few words: tensors by type and shape, parameters by their number, long sequences by their length.

    >>> import torch
    >>> brief(torch.zeros(60, 64)), brief({"w": torch.zeros(2, 3)}), brief([1, 2]), brief(range(9))
    ('f32[60, 64]', '6 numbers in 1 tensor', '[1, 2]', '9 x int')
    """
    return next(say for kind, say in _SAID if isinstance(value, kind))(value)


def _other(value: object) -> str:
    # a dataclass may hold anything: only its own line, if it has one, is sure to be short
    own_line = not is_dataclass(value) or type(value).__repr__ is of_fields
    text = repr(value) if own_line else f"{type(value).__name__}(...)"
    return text if len(text) <= _LONGEST and "\n" not in text else _cut(value, text)


def _cut(value: object, text: str) -> str:
    return f"{text[: _LONGEST - 4]!s}...'" if isinstance(value, str) else f"{type(value).__name__}(...)"


def _float(value: float) -> str:
    exact = repr(value)
    return exact if len(exact) <= 10 else f"{value:.6g}"


def _tensor(value: Tensor) -> str:
    kind = str(value.dtype).removeprefix("torch.")
    word = kind.rstrip("0123456789")
    return f"{_DTYPES.get(word, word)}{kind[len(word) :]}{list(value.shape)}"


def _mapping(value: Mapping[Any, Any]) -> str:
    if value and all(isinstance(v, Tensor) for v in value.values()):
        return f"{count(value):,} numbers in {plural(len(value), 'tensor')}"
    text = "{" + ", ".join(f"{k!r}: {brief(v)}" for k, v in list(value.items())[:_SEVERAL]) + "}"
    return text if len(value) <= _SEVERAL and len(text) <= 2 * _LONGEST else f"{len(value)} entries"


def _sequence(value: Sequence[Any]) -> str:
    left, right = "()" if isinstance(value, tuple) else "[]"
    text = left + ", ".join(brief(v) for v in value[:_SEVERAL]) + right
    if len(value) <= _SEVERAL and len(text) <= 2 * _LONGEST:
        return text
    names = {type(v).__name__ for v in value}
    return f"{len(value)} x {names.pop()}" if len(names) == 1 else f"{len(value)} entries"


_SAID: tuple[tuple[type, Callable[[Any], str]], ...] = (
    (Tensor, _tensor), (float, _float), (Mapping, _mapping), (str, _other), (Sequence, _sequence), (object, _other),
)  # fmt: skip


def count(params: Mapping[str, Tensor]) -> int:
    """How many numbers the tensors hold."""
    return sum(v.numel() for v in params.values())


def plural(n: int, word: str) -> str:
    """A number with its noun.

    >>> plural(1, "segment"), plural(1200, "parameter")
    ('1 segment', '1,200 parameters')
    """
    return f"{n:,} {word}" + "s" * (n != 1)


def table(heading: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", most: int = 40) -> str:
    """Rows as an HTML table for a notebook; everything is escaped, and of many rows the first `most` are shown.

    >>> table(["loss"], [[0.25]], "a < b")
    '<table><caption>a &lt; b</caption><thead><tr><th>loss</th></tr></thead><tbody><tr><td>0.25</td></tr></tbody>\
</table>'
    """
    rows = list(rows)
    head = "".join(f"<th>{escape(text)}</th>" for text in heading)
    body = "".join("<tr>" + "".join(f"<td>{escape(_cell(v))}</td>" for v in row) + "</tr>" for row in rows[:most])
    if len(rows) > most:
        body += f'<tr><td colspan="{len(heading)}">and {len(rows) - most:,} more</td></tr>'
    caption = f"<caption>{escape(title)}</caption>" * bool(title)
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    """A value as a cell of a table: numbers in four digits, nothing for what is not there.

    >>> _cell(0.123456), _cell(None), _cell(True), _cell("a")
    ('0.1235', '', 'yes', 'a')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw(value: object, ax: Any, **options: Any) -> Any:
    """The picture of a result on `ax`, axes or several (default: new ones); `options`: of its ``plot``.

    Errors: ``MissingExtraError``.
    """
    # upwards, and only when a picture is asked for: drawing knows all results, and results know no drawing
    from isthmus.plot.results import draw as on_axes

    return on_axes(value, ax, **options)
