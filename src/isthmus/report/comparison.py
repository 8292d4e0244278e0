"""The table of a comparison that is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isthmus.comparison.table import Comparison, ComparisonRow
from isthmus.errors import FileError
from isthmus.report.render import PageTable
from isthmus.storage.files import read_json

FILE = "comparison.json"
_PATHLESS: dict[str, Any] = {"connection": None, "seconds": None}  # which comparison.json does not hold


def read_comparison(folder: Path) -> PageTable | None:
    """What ``Comparison`` shows in a notebook; None where there is none. Errors: ``FileError``."""
    file = folder / FILE
    if not file.is_file():
        return None
    held = read_json(file)
    try:
        rows = tuple(ComparisonRow(**row, **_PATHLESS) for row in held["rows"])
        return PageTable("Every method on the same two networks", *Comparison(rows, held["skipped"]).table())
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise FileError(file, "does not hold a comparison of this version", "compare again") from error
