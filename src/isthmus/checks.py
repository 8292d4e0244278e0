"""What the fields of methods and recipes have in common: choices, whole numbers, ranges."""

from __future__ import annotations

from functools import cache
from math import inf, isfinite
from numbers import Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from isthmus.errors import InputError


def check_choices(method: Any) -> None:
    """Refuse a value that is not among those of a field typed ``Literal``."""
    for name, choices in _choices(type(method)).items():
        value = getattr(method, name)
        if value not in choices:
            *most, last = (repr(c) for c in choices)
            expected = f"{', '.join(most)} or {last}" if len(most) < 3 else f"one of {', '.join(most)}, {last}"
            raise InputError(name, expected=expected, got=repr(value))


def check_whole(method: Any, *names: str, least: int = 1) -> None:
    """Refuse what is no whole number >= `least`; None is left to the method."""
    for name in names:
        refuse_unless_whole(name, getattr(method, name), least)


def refuse_unless_whole(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is neither None nor a whole number >= `least`.

    >>> refuse_unless_whole("points", float("inf"))
    Traceback (most recent call last):
    isthmus.errors.InputError: points: expected a whole number >= 1, got inf
    """
    if value is not None and not _is_whole(value, least):
        raise InputError(name, expected=f"a whole number >= {least}", got=repr(value))


def _is_whole(value: Any, least: int) -> bool:
    """Of any library; one that no float holds is whole too."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return value >= least if isinstance(value, int) else float(value) % 1 == 0 and float(value) >= least


def check_several(method: Any, name: str) -> None:
    """Refuse what is neither a whole number >= 1 nor several of them; None is left to the method."""
    value = getattr(method, name)
    several = value if isinstance(value, list | tuple) else (value,)
    if value is not None and not (several and all(_is_whole(n, 1) for n in several)):
        raise InputError(name, expected="whole numbers >= 1", got=value)


def check_at_least_zero(method: Any, *names: str) -> None:
    """Refuse what is no finite number >= 0."""
    for name in names:
        if not 0 <= getattr(method, name) < inf:
            raise InputError(name, expected="a number >= 0", got=getattr(method, name))


def refuse_not_finite(what: str, value: Any, expected: str = "a finite number") -> None:
    """Refuse a number that is NaN or infinite; anything else passes.

    >>> refuse_not_finite("--until", float("nan"))
    Traceback (most recent call last):
    isthmus.errors.InputError: --until: expected a finite number, got nan
    """
    if isinstance(value, float) and not isfinite(value):
        raise InputError(what, expected=expected, got=f"{value:g}")


def check_loss(what: str, loss: float) -> None:
    """Refuse a network whose loss is NaN or infinite: nothing that is measured of it would say anything."""
    refuse_not_finite(what, loss, "a network whose loss on these data is finite")


@cache
def _choices(kind: type) -> dict[str, tuple[Any, ...]]:
    return {name: get_args(hint) for name, hint in get_type_hints(kind).items() if get_origin(hint) is Literal}
