"""Isthmus: are two trained networks connected by a low-loss path? Construct it, measure it, prove it."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from isthmus.version import __version__ as __version__

if TYPE_CHECKING:
    from isthmus.api import *  # noqa: F403


class _Package(ModuleType):
    """This package, in which three names are functions although submodules have them too."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Python binds a submodule here when it is first imported
        if not (name in ("certify", "theory", "verdict") and isinstance(value, ModuleType)):
            ModuleType.__setattr__(self, name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """A public name, all of which stand in ``isthmus.api``."""
    # a name with an underscore is one of Python's own, or of nobody
    value = None if name.startswith("_") else getattr(import_module("isthmus.api"), name, None)
    if value is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return ["__version__", *sorted(name for name in vars(import_module("isthmus.api")) if not name.startswith("_"))]
