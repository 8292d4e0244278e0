"""Methods from names and plain values, and back: for the command line, sweep files and run records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from math import isfinite
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from isthmus.alignment import MATCHINGS, ActivationMatching, Given, Matching, RotationMatching, WeightMatching
from isthmus.connectors import METHODS, Trained
from isthmus.connectors.base import Connector
from isthmus.connectors.base import describe as connector_to_dict
from isthmus.errors import InputError

__all__ = ["connector_from", "connector_to_dict", "matching_from", "options_of"]

SHORT: Mapping[type[Matching], str] = {
    ActivationMatching: "activations",
    WeightMatching: "weights",
    RotationMatching: "rotations",
    Given: "given",
}
"""What people type for a matching."""


def connector_from(entry: str | Mapping[str, Any], what: str = "method") -> Connector:
    """The method that a name says, or the ``name`` and options of a mapping; ``connector_to_dict`` is the way back.

    An option of a value inside the method (``lr`` of its recipe, ``masks`` of a method that it wraps) may stand in
    the mapping of that value or beside the method's own options. Errors: ``InputError``, which begins with `what`, for
    a name, an option or a value that is not known.

    >>> connector_from({"name": "dropout", "masks": 3}).masks
    3
    """
    options = {"name": entry} if isinstance(entry, str) else dict(entry)
    _renew(options)
    return _from(options, {m.__name__: m for m in METHODS}, what)


def matching_from(entry: str | Mapping[str, Any], what: str = "matching") -> Matching:
    """As ``connector_from``, for the ways to match units; "weights" is ``WeightMatching``, and so on.

    >>> matching_from({"name": "weights", "start": "identity"}).start
    'identity'
    """
    options = {"name": entry} if isinstance(entry, str) else dict(entry)
    return _from(options, {SHORT[m]: m for m in MATCHINGS} | {m.__name__: m for m in MATCHINGS}, what)


def _from(options: dict[str, Any], kinds: Mapping[str, type], what: str) -> Any:
    name = options.pop("name", None)
    return _made(_chosen(name, kinds, what), options, f"{what}, {name}", None)


def _renew(options: dict[str, Any]) -> None:
    """Take over how older files say how the subnetworks of ``Subnetwork`` are made, and by what if they are trained."""
    names = {"trained": "Trained", "memorise": "Memorised", "separate": "Separated"}
    xi = options.get("xi")
    made = names.get(xi) if isinstance(xi, str) else None
    if made is None:
        return
    del options["xi"]
    options["inner"] = made
    if made != "Trained":
        for name in _flat(Trained()):
            options.pop(name, None)


def options_of(kind: type[Connector]) -> dict[str, Any]:
    """All options that the command line takes for a method, those of values inside it too, with their defaults."""
    return _flat(kind())


def _flat(value: Any) -> dict[str, Any]:
    own = {f.name: getattr(value, f.name) for f in fields(value)}
    inner = [v for v in own.values() if is_dataclass(v)]
    named = {k: type(v).__name__ if is_dataclass(v) else v for k, v in own.items()}
    return {k: v for one in inner for k, v in _flat(one).items()} | named


def _chosen(name: Any, kinds: Mapping[str, type], what: str) -> type:
    by_name = {k.lower(): kind for k, kind in kinds.items()}
    if not isinstance(name, str) or name.lower() not in by_name:
        raise InputError(what, expected=f"one of {', '.join(kinds)}", got=repr(name))
    return by_name[name.lower()]


def _made(kind: type, options: Mapping[str, Any], what: str, base: Any) -> Any:
    """A dataclass from options; what is not given is as in `base`, else the default."""
    own = {f.name: f for f in fields(kind)}
    hints = get_type_hints(kind)
    values = {} if base is None else {name: getattr(base, name) for name in own}
    left = dict(options)
    for name, field in own.items():
        usual = values.get(name, None if field.default is MISSING else field.default)
        kinds = _kinds(hints[name])
        if kinds:
            values[name] = _inner(kinds, left.pop(name, None), left, f"{what}, {name}", usual)
        elif name in left:
            values[name] = _read(hints[name], left.pop(name), f"{what}, {name}")
    if left:
        raise InputError(what, expected=f"options among {sorted({*own, *_known(values)})}", got=sorted(left))
    return kind(**values)


def _inner(kinds: Mapping[str, type], given: Any, left: dict[str, Any], what: str, usual: Any) -> Any:
    """A value inside a method; its options are taken from `given`, and from those that are `left` beside it."""
    options = _given(kinds, given, what)
    name = options.pop("name", type(usual).__name__)
    kind = _chosen(name, kinds, what)
    base = usual if type(usual) is kind else kind()
    for key in [k for k in left if k in _flat(base)]:
        if key in options:
            raise InputError(what, expected=f"{key} once", got=f"it inside {what.rpartition(', ')[2]} and beside it")
        options[key] = left.pop(key)
    return _made(kind, options, what, base) if options else base


def _given(kinds: Mapping[str, type], given: Any, what: str) -> dict[str, Any]:
    if not (given is None or isinstance(given, str | Mapping)):
        raise InputError(what, expected=f"one of {', '.join(kinds)}, or its options", got=repr(given))
    return {"name": given} if isinstance(given, str) else dict(given or {})


def _known(values: Mapping[str, Any]) -> set[str]:
    return {k for v in values.values() if is_dataclass(v) for k in _flat(v)}


def _kinds(hint: Any) -> dict[str, type]:
    """The dataclasses that a field may hold, by name; all methods, or matchings, where it may hold one."""
    parts = get_args(hint) or (hint,)
    for base, known in ((Connector, METHODS), (Matching, MATCHINGS)):
        if base in parts:
            return {m.__name__: m for m in known}
    return {p.__name__: p for p in parts if isinstance(p, type) and is_dataclass(p)}


def _read(hint: Any, value: Any, what: str) -> Any:
    """A plain value as a field of that type holds it; texts that are numbers count, as YAML reads 1e-3 as a text."""
    whole = get_origin(hint) in (tuple, Literal, Mapping) or not get_args(hint)
    options = (hint,) if whole else get_args(hint)
    for option in options:
        found = _as(option, value)
        if found is not MISSING:
            return found
    raise InputError(what, expected=" or ".join(map(_words, options)), got=repr(value))


def _as(hint: Any, value: Any) -> Any:
    """The value in that type, or MISSING where it is of another."""
    if get_origin(hint) is Literal:
        return value if value in get_args(hint) else MISSING
    if get_origin(hint) is Mapping:
        return value if isinstance(value, Mapping) else MISSING
    if get_origin(hint) is not None:
        return _sequence(hint, value)
    if hint is NoneType:
        return None if value is None else MISSING
    if hint in (int, float):
        return _number(hint, value)
    return value if isinstance(value, hint) else MISSING


def _number(kind: type, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return MISSING
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return MISSING
    if not isfinite(number):
        return MISSING
    if kind is int:
        return int(number) if number.is_integer() else MISSING
    return number


def _sequence(hint: Any, value: Any) -> Any:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        return MISSING
    entries = [_as(get_args(hint)[0], v) for v in value]
    return MISSING if MISSING in entries else tuple(entries)


def _words(hint: Any) -> str:
    names = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false", NoneType: "null"}
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is Mapping:
        return "a mapping"
    return "a list" if get_origin(hint) is not None else names.get(hint, getattr(hint, "__name__", str(hint)))
