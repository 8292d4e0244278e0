"""The command as it was typed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextvars import ContextVar

TYPED: ContextVar[Sequence[str]] = ContextVar("TYPED", default=())
"""The arguments of the command that runs."""


def command() -> str:
    """The command as the user typed it."""
    return "isthmus " + shlex.join(TYPED.get())
