"""Pages of which a part is done, or on which numbers are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from typing import Any

from isthmus.errors import InputError
from isthmus.experiments.page import Experiment, done
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


def check_without_each_number(page: Experiment, store: Store, but: tuple[type, ...] = ()) -> None:
    """A number that was not finite, which a result holds as none, is no error and makes nothing hold that did not.

    Tried with a number of each name, told apart by the job's kind and by where it is in the result, positions in lists
    left out; then all figures are drawn with a loss or an error of each list missing. `but`: jobs that are left alone.
    """
    found = done(store, page.cells("smoke"))
    held = {finding.statement for finding in page.findings(page.rows(found)) if finding.holds}
    tried: set[str] = set()
    for i, (cell, stored) in enumerate(found):
        for at in () if isinstance(cell, but) else _floats(stored.result):
            name = ".".join([type(cell).__name__, *(k for k in at if isinstance(k, str) and not k[:1].isdigit())])
            if name not in tried:
                tried.add(name)
                other = [*found[:i], (cell, replace(stored, result=_without(stored.result, at))), *found[i + 1 :]]
                now = {finding.statement for finding in page.findings(page.rows(other)) if finding.holds}
                assert now <= held, (name, now - held)
    assert len(tried) > 20
    thinned = [(c, s if isinstance(c, but) else replace(s, result=_thinned(s.result))) for c, s in found]
    rows = page.rows(thinned)
    for draw in page.figures.values():
        with suppress(InputError):  # nothing to draw
            draw(rows)


Place = tuple[str | int, ...]


def _floats(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where the floats of a result are."""
    if isinstance(value, float):
        yield at
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _floats(part, (*at, name))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from _floats(part, (*at, i))


def _without(result: Any, at: Place) -> Any:
    """A copy with none in one place, as a number that is not finite is stored."""
    copy = deepcopy(result)
    inner = copy
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = None
    return copy


def _thinned(value: Any, name: str = "") -> Any:
    """A copy in which the second of every list of losses or errors is none."""
    if isinstance(value, dict):
        return {key: _thinned(part, key) for key, part in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) > 1 and name in ("loss", "error", "losses", "errors"):
        return [value[0], None, *value[2:]]
    return [_thinned(part) for part in value]
