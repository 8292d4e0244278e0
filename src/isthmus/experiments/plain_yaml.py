"""YAML that people write, read as plain values: in a sweep file, and after ``--set`` and ``--option``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from types import NoneType
from typing import Any

from isthmus.errors import InputError, MissingExtraError
from isthmus.storage.files import one_line

_VALUES = 100_000
"""Values of one text, its aliases written out."""
_MERGED = "tag:yaml.org,2002:merge"
_DEEPEST = 60
"""Lists and mappings around a value."""


def plain_yaml(text: str) -> Any:
    """The value that a text says: numbers, texts, true, false, null, and lists and mappings of them.

    Time and memory are bounded by the length of the text. Errors, as ``ValueError`` of one line: what is no YAML, dates
    and other values that JSON has not, whole numbers too large for a float, and what is deep or, by its aliases, large.

    >>> plain_yaml("[1e-3, {a: true}]")
    ['1e-3', {'a': True}]
    >>> plain_yaml("2020-99-99")
    Traceback (most recent call last):
    ValueError: month must be in 1..12
    """
    try:
        import yaml
    except ImportError as e:
        raise MissingExtraError(str(e.name), "cli") from e
    try:
        _check_depth(yaml.parse(text, Loader=yaml.SafeLoader))
        _expanded(yaml.compose(text, Loader=yaml.SafeLoader), {})
        value = yaml.safe_load(text)
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ArithmeticError) as e:
        raise ValueError(one_line(" ".join(str(e).split()) or type(e).__name__)) from e
    _check_plain(value)
    return value


def typed_value(option: str, typed: str, text: str) -> Any:
    """The value in what the user typed after an option. Errors: ``InputError`` for what ``plain_yaml`` refuses."""
    try:
        return plain_yaml(text)
    except ValueError as e:
        raise InputError(
            option, expected="KEY=VALUE, the value in YAML", got=f"{one_line(repr(typed), 60)}: {e}"
        ) from e


def _check_depth(events: Any) -> None:
    depth = 0
    for event in events:  # the parser itself does not recurse; what makes values of its events does
        kind = type(event).__name__
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        if depth > _DEEPEST:
            raise ValueError(f"lists and mappings more than {_DEEPEST} deep")


def _expanded(node: Any, known: dict[int, int]) -> int:
    """How many values a YAML node holds with its aliases written out; ValueError for more than a text may have."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _VALUES  # an alias to what is around it never ends
    parts = _parts(node)
    known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    if known[id(node)] > _VALUES:
        raise ValueError(f"more than {_VALUES:,} values")
    return known[id(node)]


def _parts(node: Any) -> list[Any]:
    """The nodes that a node holds, keys among them."""
    if node is None or node.id == "scalar":
        return []
    if node.id == "sequence":
        return list(node.value)
    _check_keys([key for key, _ in node.value])
    return [part for pair in node.value for part in pair]


def _check_keys(keys: Sequence[Any]) -> None:
    """Refuse a key that is given twice: the last one would be taken."""
    seen = set()
    for key in keys:
        if not isinstance(key.value, str) or key.tag == _MERGED:
            continue
        if (key.tag, key.value) in seen:
            raise ValueError(f"the key {key.value!r} twice")
        seen.add((key.tag, key.value))


def _check_plain(value: Any) -> None:
    """Refuse what JSON has not; a value of the size that was checked, and of no great depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str | int | float | NoneType):
                raise ValueError(f"a key that is a {type(key).__name__}")
            _check_plain(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner)
    elif isinstance(value, int):
        if value.bit_length() > 1000:
            raise ValueError("a whole number of over 300 digits")
    elif isinstance(value, date | bytes | set):
        raise ValueError(
            f"a {type(value).__name__}, which is not a number, a text, a list or a mapping; put it in quotes"
        )
