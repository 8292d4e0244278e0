"""Pages of which a part is done."""

from __future__ import annotations

from contextlib import suppress

from isthmus.errors import InputError
from isthmus.experiments.page import Experiment
from isthmus.experiments.tables import Row
from isthmus.sweep import Store


def rows_of_each_kind(page: Experiment, store: Store) -> dict[type, list[Row]]:
    """The rows of the jobs of each kind alone; what is found and drawn from them ends in a refusal at worst."""
    cells, rows = page.cells("smoke"), {}
    for kind in dict.fromkeys(map(type, cells)):
        rows[kind] = page.table(store, [c for c in cells if type(c) is kind])
        page.findings(rows[kind])
        for draw in page.figures.values():
            with suppress(InputError):  # nothing to draw
                draw(rows[kind])
    return rows
