"""Arguments of the wrong kind are refused where they enter, in the house's words."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from torch import Tensor, nn

from isthmus.errors import InputError

_WORDS = {
    Mapping[str, Tensor]: "a state_dict (tensors by name)",
    Mapping: "a state_dict (tensors by name)",
    nn.Module: "a torch.nn.Module",
    str: "text",
    os.PathLike[str]: "the path of a file",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    NoneType: "None",
}
_NAMES = {
    "Callable": "a function",
    "Sequence": "a sequence",
    "Mapping": "a mapping",
    "HasPath": "a result that has one, such as a Connection",
}


def check_kinds(function: Callable[..., Any], given: Mapping[str, Any], but: Sequence[str] = ()) -> None:
    """Refuse arguments of another kind than the annotations of `function` say; its first statement.

    `given`: its ``locals()``. Numbers may be of any library. Of a sequence all entries are looked at, of a mapping
    its keys. `but`: arguments that the function itself checks, in better words.

    >>> def half(x: float) -> float:
    ...     check_kinds(half, locals())
    ...     return x / 2
    >>> half("1")
    Traceback (most recent call last):
    isthmus.errors.InputError: x: expected a number, got str
    """
    for name, hint in _hints(function).items():
        if name in given and name not in but:
            check_kind(given[name], hint, name)


def check_kind(value: Any, hint: Any, what: str) -> None:
    """Refuse a value that is none of what `hint` says, as an annotation does.

    >>> check_kind([], str | None, "name")
    Traceback (most recent call last):
    isthmus.errors.InputError: name: expected text or None, got list
    """
    if not _fits(value, hint):
        raise InputError(what, expected=_said(hint), got=_got(value, hint))
    if isinstance(value, int) and int in _options(hint) and not -(2**63) <= value < 2**64:
        raise InputError(what, expected="a whole number of at most 64 bits", got=value)


def check_fields(value: Any, *names: str) -> None:
    """Refuse fields of a dataclass that hold another kind than their annotations say; `names`: default all of them.

    Choices (``Literal``) are for ``check_choices``, which says them.
    """
    hints = _annotated(type(value))
    for name in names or [f.name for f in fields(value)]:
        if get_origin(hints[name]) is not Literal:
            check_kind(getattr(value, name), hints[name], name)


_annotated = cache(get_type_hints)


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    one = [name for name, parameter in signature(function).parameters.items() if parameter.kind not in several]
    hints = get_type_hints(function)
    return {name: hints[name] for name in one if name in hints}


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one kind itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    return any(_is(value, option) for option in _options(hint))


def _is(value: Any, kind: Any) -> bool:
    if kind in (int, float, bool):
        return _is_number(value)
    origin = get_origin(kind) or kind
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_args(kind)[1:] == (...,):  # several of one kind: a list does as well as a tuple
        return _is_sequence(value, get_args(kind)[0])
    if origin in _OWN:
        return _OWN[origin](value, *get_args(kind)[:1])
    try:
        return not isinstance(origin, type) or isinstance(value, origin)
    except TypeError:  # a protocol, which cannot be asked
        return True


def _is_function(value: Any, *_: Any) -> bool:
    return callable(value)


def _is_sequence(value: Any, *entries: Any) -> bool:
    several = isinstance(value, Sequence | np.ndarray | Tensor) and not isinstance(value, str)
    return several and all(_fits(entry, inner) for inner in entries for entry in value)


def _is_mapping(value: Any, *keys: Any) -> bool:
    return isinstance(value, Mapping) and all(_fits(key, inner) for inner in keys for key in value)


_OWN: dict[Any, Callable[..., bool]] = {Callable: _is_function, Sequence: _is_sequence, Mapping: _is_mapping}
"""How kinds are recognised that say more than ``isinstance`` can see: their first argument follows the value."""


def _is_number(value: Any) -> bool:
    """Whether it is one number, as an array or a tensor of one entry is too; which ones, functions say themselves."""
    if isinstance(value, str | bytes):
        return False
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False
    return True


def _got(value: Any, hint: Any) -> str:
    """The kind of the value; of a choice that there is not, the value itself."""
    if isinstance(value, str) and any(get_origin(kind) is Literal for kind in _options(hint)):
        return repr(value)
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _said(hint: Any) -> str:
    return _listed([_word(kind) for kind in _options(hint)])


def _listed(words: Sequence[str]) -> str:
    words = list(dict.fromkeys(words))
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _word(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    origin = get_origin(kind) or kind
    name = getattr(origin, "__name__", str(origin))
    if origin is Literal:
        return _listed([repr(choice) for choice in get_args(kind)])
    if get_args(kind) and (origin is Sequence or get_args(kind)[1:] == (...,)):
        return f"a sequence (each entry {_said(get_args(kind)[0])})"
    return _NAMES.get(name, f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")
