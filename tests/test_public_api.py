"""The public names and how they are called are those in ``public_api.txt``; what changes there is meant to change.

Renew the file with ``python -m tests.test_public_api`` and look at the difference: a stable name that goes, or that is
called in another way, needs the steps of docs/compatibility.md.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cached_property
from pathlib import Path
from textwrap import fill
from types import FunctionType, ModuleType
from typing import Any

from isthmus import api

STORED = Path(__file__).with_name("public_api.txt")
SPACES = {"": api, "models.": api.models, "data.": api.data, "counterexamples.": api.counterexamples}


class _Bare(str):
    """An annotation, which is text already, without its quotes."""

    def __repr__(self) -> str:
        return str(self)


def public() -> dict[str, Any]:
    """Every public name but those of modules; what a package imports from elsewhere is not its own."""
    found = {}
    for space, module in SPACES.items():
        names = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        found |= {space + name: value for name, value in names.items() if not isinstance(value, ModuleType)}
    return found


def called(function: Any) -> str:
    """How something is called, as its source has it."""
    signature = inspect.signature(function)
    bare = [
        p.replace(annotation=_Bare(p.annotation) if isinstance(p.annotation, str) else p.annotation)
        for p in signature.parameters.values()
    ]
    returned = signature.return_annotation
    returned = _Bare(returned) if isinstance(returned, str) else returned
    text = str(signature.replace(parameters=bare, return_annotation=returned))
    # a default that is a function or an object is known by its name
    return re.sub(r"<(?:function )?(?:\w+\.)*(\w+|<lambda>)(?: object)?(?: at 0x[0-9a-f]+)?>", r"\1", text)


def members(kind: type) -> Iterator[str]:
    """The public methods and properties that a class has from the package, but for those of a public base."""
    bases = set(filter(inspect.isclass, public().values())) & set(kind.__mro__[1:])
    known = {name for base in bases for name in vars(base)}
    own: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("isthmus"):
            own |= vars(base)
    for name, value in sorted(own.items()):
        if name.startswith("_") or name in known:
            continue
        if isinstance(value, property | cached_property):
            yield f".{name}"
        elif isinstance(value, FunctionType | classmethod | staticmethod):
            yield f".{name}{called(getattr(kind, name))}"


def described(value: Any) -> list[str]:
    """What stands behind a name: how it is called, or what a constant holds."""
    if inspect.isclass(value) and issubclass(value, Enum):
        return [" = " + " | ".join(value.__members__)]
    if inspect.isclass(value) and issubclass(value, BaseException):
        return [" is " + " and ".join(base.__name__ for base in value.__bases__)]
    if inspect.isclass(value):
        return [called(value), *members(value)]
    if inspect.isfunction(value):
        return [called(value)]
    if isinstance(value, Mapping | frozenset):
        return [" = {" + ", ".join(sorted(map(str, value))) + "}"]
    if isinstance(value, tuple | list):
        return [" = (" + ", ".join(v.__name__ if inspect.isclass(v) else v.name for v in value) + ")"]
    return [f" = {value}"]


def listed() -> str:
    """The whole file: one paragraph for each name."""
    lines = []
    for name, value in sorted(public().items(), key=lambda item: (item[0].lower(), item[0])):
        if name != "PROVISIONAL":
            mark = "provisional" if name in api.PROVISIONAL else "stable"
            first, *more = described(value)
            lines += [f"{mark} {name}{first}", *(f"    {line}" for line in more)]
    return "".join(f"{wrapped(line)}\n" for line in lines)


def wrapped(line: str) -> str:
    """A long line in several, so that a difference shows what differs."""
    return fill(line, 120, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)


def test_the_public_names_are_those_that_are_stored():
    now, stored = listed().splitlines(), STORED.read_text().splitlines()
    new, gone = [line for line in now if line not in stored], [line for line in stored if line not in now]
    said = "if that is meant: python -m tests.test_public_api, and look at the difference"
    assert now == stored, "\n".join(["", *(f"- {line}" for line in gone), *(f"+ {line}" for line in new), said])


def test_what_is_provisional_is_public():
    assert api.PROVISIONAL <= set(public())


if __name__ == "__main__":
    STORED.write_text(listed())
