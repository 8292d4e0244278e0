"""One exception family. Every message says what was expected, what was got, and what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class IsthmusError(Exception):
    """Base of every error that Isthmus raises on purpose. Travels between processes with its context."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the message: the constructors of subclasses take its parts."""
        return _rebuilt, (type(self), self.args, getattr(self, "__notes__", []))

    def __str__(self) -> str:
        """The message, followed by the context that was added on the way up."""
        return "; ".join([super().__str__(), *getattr(self, "__notes__", [])])


def _rebuilt(kind: type[IsthmusError], args: tuple[Any, ...], notes: list[str]) -> IsthmusError:
    error = kind.__new__(kind)
    error.args = args
    for note in notes:
        error.add_note(note)
    return error


class InputError(IsthmusError, ValueError):
    """A value that cannot be used: wrong key, shape, dtype, range, or not finite.

    >>> raise InputError("keep", expected="a number in (0, 1)", got=1.5, instead="keep=0.5")
    Traceback (most recent call last):
    isthmus.errors.InputError: keep: expected a number in (0, 1), got 1.5; write keep=0.5
    """

    def __init__(self, what: str, *, expected: str, got: object, instead: str = "") -> None:
        super().__init__(f"{what}: expected {expected}, got {got}" + (f"; write {instead}" if instead else ""))


class UnsupportedError(IsthmusError):
    """A part of the user's network that no rule covers; names the operation or parameter and where it stands."""

    def __init__(self, what: str, why: str, instead: str = "") -> None:
        super().__init__(f"{what}: {why}" + (f"; {instead}" if instead else ""))


class FileError(IsthmusError):
    """A file that is missing, damaged, hostile, or not what its name says."""

    def __init__(self, path: str | Path, why: str, instead: str = "") -> None:
        super().__init__(f"{path}: {why}" + (f"; {instead}" if instead else ""))


class CheckpointError(FileError):
    """A checkpoint that cannot be used, or would not be safe to read."""


class IsthmusWarning(UserWarning):
    """Something that was done, and that the user may not have meant."""


class MissingExtraError(IsthmusError, ImportError):
    """An optional dependency is not installed; the message holds the install line."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}, which is not installed: pip install 'isthmus[{extra}]'")


class OutcomeError(IsthmusError):
    """Raised by ``connect(..., throw=True)`` when the method did not succeed."""
