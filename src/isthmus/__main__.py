"""``python -m isthmus`` and the ``isthmus`` command."""

from __future__ import annotations

import os
import sys

from isthmus.errors import MissingExtraError


def main() -> None:
    """Run the command line; say how to install it where its packages are missing."""
    _open_closed()
    try:
        from isthmus.cli import run_app

        code = run_app()
    except ModuleNotFoundError as e:
        if e.name not in ("typer", "rich", "pydantic", "yaml"):
            raise
        print(f"error: {MissingExtraError(e.name, 'cli')}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:  # while something was imported: nothing had begun
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code)


def _open_closed() -> None:
    """Give a stream that was closed (``2>&-``) to no file: else the next one opened gets its number, and its text."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))


if __name__ == "__main__":
    main()
