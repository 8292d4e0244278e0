"""What the user's own code defines, a network or data: ``MODULE:FACTORY`` or ``path/to/file.py:FACTORY``."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import nn

from isthmus.errors import InputError
from isthmus.objective.functions import digest_of


class _AsItIs(SourceFileLoader):
    """Compiles a file as it is now: what was compiled before is taken for it by the second and the size alone."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Let the user's file import its neighbours, as it could when run by itself; nothing is written beside them."""
    written = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.dont_write_bytecode = written
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _import_file(file: Path, what: str) -> ModuleType:
    if not file.is_file():
        raise InputError(what, expected="a Python file", got=f"no file {file}")
    name = f"_isthmus_user_{file.stem}"
    loader = _AsItIs(name, str(file)) if file.suffix == ".py" else None
    loading = importlib.util.spec_from_file_location(name, file, loader=loader)
    if loading is None or loading.loader is None:
        raise InputError(what, expected="a Python file, *.py", got=str(file))
    module = importlib.util.module_from_spec(loading)
    # dataclasses look the module of a class up by name while the class is made
    sys.modules[loading.name] = module
    try:
        with _on_path(file.resolve().parent):
            loading.loader.exec_module(module)
    except BaseException:
        del sys.modules[loading.name]
        raise
    return module


def _import(where: str, what: str, known: Collection[str]) -> ModuleType:
    """The user's module or file; whatever its code raises becomes an InputError."""
    is_file = where.endswith(".py") or "/" in where or "\\" in where
    if not is_file and not re.fullmatch(r"\w+(\.\w+)*", where):
        kind, _, spec = what.partition(" ")
        raise InputError(kind, expected=f"one of {', '.join(known)}, or MODULE:FACTORY", got=spec)
    try:
        return _import_file(Path(where), what) if is_file else importlib.import_module(where)
    except InputError:
        raise
    except (Exception, SystemExit) as exc:  # the user's code may raise anything
        raise _no_import(where, what, known, exc) from exc


def _no_import(where: str, what: str, known: Collection[str], exc: BaseException) -> InputError:
    if isinstance(exc, ModuleNotFoundError) and exc.name and f"{where}.".startswith(f"{exc.name}."):
        return InputError(
            what,
            expected=f"one of {', '.join(known)}, or an installed module",
            got=f"no module named {exc.name!r}",
            instead="the path of its file, FILE.py:FACTORY",
        )
    return InputError(what, expected=f"{where} to import without an error", got=f"{type(exc).__name__}: {exc}")


def from_code(spec: str, known: Collection[str]) -> nn.Module:
    """Import MODULE or FILE, take FACTORY from it, and call it unless it is a network already.

    `known`: the names that are no modules, for messages. Errors: ``InputError`` for whatever that code raises.
    """
    found = made_by_code(spec, "model", "the network", known, is_made=lambda v: isinstance(v, nn.Module))
    if not isinstance(found, nn.Module):
        raise InputError(f"model {spec!r}", expected="a torch.nn.Module", got=type(found).__name__)
    return found


def made_by_code(
    spec: str, kind: str, made: str, known: Collection[str], is_made: Callable[[Any], bool] = lambda v: False
) -> Any:
    """What FACTORY of MODULE or FILE gives, called without arguments if it can be called and not `is_made` already.

    `kind`, `made`: what it is, for messages. Errors: ``InputError`` for whatever that code raises.
    """
    factory, what = spec.rpartition(":")[2], f"{kind} {spec!r}"
    found = _named(spec, what, known)
    if is_made(found) or not callable(found):
        return found
    try:
        return found()
    except (Exception, SystemExit) as exc:  # the user's code may raise anything
        expected = f"{factory}() to build {made} without arguments"
        raise InputError(what, expected=expected, got=f"{type(exc).__name__}: {exc}") from exc


def digest_of_code(spec: str, known: Collection[str]) -> str:
    """The digest of what FACTORY of MODULE or FILE does, with all that it reads of the user's code (``digest_of``).

    Where that cannot be told, it is that of the file alone. Errors: as ``from_code``.
    """
    found = _named(spec, f"model {spec!r}", known)
    if id(found) not in _TOLD:
        _TOLD[id(found)] = found, _digest(found)
    return _TOLD[id(found)][1]


_TOLD: dict[int, tuple[Any, str]] = {}
"""What was found and its digest; held, so that no other gets its id. A module that is read again makes others."""


def _digest(found: Any) -> str:
    told = copy.deepcopy(found).to("meta") if isinstance(found, nn.Module) else found
    file = getattr(sys.modules.get(getattr(found, "__module__", "")), "__file__", None)
    return digest_of(told) or sha256(Path(file).read_bytes() if file else b"").hexdigest()


def _named(spec: str, what: str, known: Collection[str]) -> Any:
    """What has the name FACTORY in MODULE or FILE."""
    where, _, factory = spec.rpartition(":")
    found: Any = _import(where, what, known)
    names = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
    try:
        for part in factory.split("."):
            found = getattr(found, part)
    except AttributeError:
        expected = f"a name that {where} defines ({', '.join(names[:8])})"
        raise InputError(what, expected=expected, got=repr(factory)) from None
    return found
