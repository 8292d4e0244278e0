"""``python -m isthmus`` and the ``isthmus`` command."""

from __future__ import annotations

import sys

from isthmus.errors import MissingExtraError


def main() -> None:
    """Run the command line; say how to install it where its packages are missing."""
    try:
        from isthmus.cli import run_app
    except ModuleNotFoundError as e:
        if e.name not in ("typer", "rich", "pydantic", "yaml"):
            raise
        print(f"error: {MissingExtraError(e.name, 'cli')}", file=sys.stderr)
        sys.exit(2)
    sys.exit(run_app())


if __name__ == "__main__":
    main()
