"""How long work says how far it is."""

from collections.abc import Callable

__all__ = ["Progress", "no_progress"]

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)`` during long work."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""
