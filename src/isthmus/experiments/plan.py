"""What is left of an experiment, and how long it would take here: from short runs of one cell of each kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from isthmus.device import device_of
from isthmus.errors import IsthmusError
from isthmus.experiments.tables import Row
from isthmus.sweep import Cell, Local, Store, run_cells, with_needs
from isthmus.training.progress import Progress, no_progress

_STEPS = (4, 12)
"""Lengths of the two short trainings whose difference says what a step costs."""
_DRAWS = (1, 3)
"""Of subsets, where a cell draws and does not train."""
_COUNTS = ("hub_steps", "looks_from", "every")
"""Numbers of steps beside those of a recipe."""


def plan(cells: Sequence[Cell], store: Store, device: str = "auto", progress: Progress = no_progress) -> list[Row]:
    """One row for each kind of cell that is missing: how many, passes over the data, hours for all of them at most.

    A kind is what one cell is made of but for its seed. One of them is run twice for a few steps (its networks too,
    trained as briefly), in a folder that is thrown away; what a step costs is taken times the steps that its recipe
    allows. Trainings that reach their target end sooner; a search of strings may take more than one recipe. On a CPU
    what counts is the smaller of elapsed and processor time, so that other work on the machine does not. A kind that
    cannot be run here has no hours, which do not count in the sum, but the reason.
    """
    whole = with_needs(cells)
    groups: dict[Any, list[Cell]] = {}
    for cell in whole:
        if not _is_there(cell, store):
            groups.setdefault(_kind(cell), []).append(cell)
    rows: list[Row] = []
    for i, group in enumerate(groups.values()):
        progress("timing", i, len(groups))
        rows.append(_row(group, device))
    hours = sum(row["hours"] or 0.0 for row in rows)
    return [*rows, {"cell": "all", "cells": len(whole), "missing": sum(map(len, groups.values())), "hours": hours}]


def _is_there(cell: Cell, store: Store) -> bool:
    try:
        return store.find(cell) is not None
    except IsthmusError:  # what it is made from cannot be read, which its row says
        return False


def _row(group: Sequence[Cell], device: str) -> Row:
    cell = group[0]
    recipe = _longest(cell)
    passes = None if recipe is None else _passes(cell, recipe)
    row: Row = {"cell": cell.label, "cells": len(group), "missing": len(group), "passes": passes}
    try:
        seconds = _whole(cell, recipe, device)
    except IsthmusError as e:
        return row | {"seconds each": None, "hours": None, "cannot run": str(e)}
    return row | {"seconds each": seconds, "hours": seconds * len(group) / 3600}


def _whole(cell: Cell, recipe: Any | None, device: str) -> float:
    """How long the cell would run, from two short runs."""
    steps, lengths = (recipe.steps, _STEPS) if recipe else (_draws(cell), _DRAWS)
    short, longer = (_seconds(cell, length, recipe is None, device) for length in lengths)
    each = max(0.0, longer - short) / (lengths[1] - lengths[0])
    return short + each * max(0, steps - lengths[0])


def _seconds(cell: Cell, length: int, draws: bool, device: str) -> float:
    """How long one cell runs when every training in it has so many steps, or every search so many draws."""
    brief = shortened(cell, _STEPS[0] if draws else length, length if draws else None)
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        _run(list(brief.needs()), store, device)
        clocks = _clocks(device)
        begin = [clock() for clock in clocks]
        _run([brief], store, device)
        return min(clock() - at for clock, at in zip(clocks, begin, strict=True))


def _clocks(device: str) -> Sequence[Callable[[], float]]:
    """A processor that waits for another device spends no time of its own."""
    here = device_of(device).type == "cpu"
    return (time.perf_counter, time.process_time) if here else (time.perf_counter,)


def _run(cells: Sequence[Cell], store: Store, device: str) -> None:
    report = run_cells(cells, store, Local(), device=device)
    for label, failed in report.failed.items():
        raise IsthmusError(f"{label}: {failed.message}")


def shortened(value: Any, steps: int, draws: int | None = None) -> Any:
    """The same cell, recipe or method with at most so many steps in every training, and so many draws if that is said.

    >>> from isthmus.training.fit import Recipe
    >>> shortened(Recipe(steps=4000, check=100), 5) == Recipe(steps=5, check=5)
    True
    """
    if not is_dataclass(value) or isinstance(value, type):
        return tuple(shortened(v, steps, draws) for v in value) if isinstance(value, tuple) else value
    changes: dict[str, Any] = {}
    for entry in fields(value):
        if entry.init:
            old = getattr(value, entry.name)
            changes[entry.name] = _cut(entry.name, old, steps, draws, _trains(value))
    return replace(value, **changes)


def _cut(name: str, old: Any, steps: int, draws: int | None, recipe: bool) -> Any:
    """One field of it."""
    if old is not None and (name in _COUNTS or (recipe and name in ("steps", "check"))):
        return min(old, steps)
    if draws is not None and old is not None and name in ("draws", "masks"):
        return min(old, draws)
    return shortened(old, steps, draws)


def _own(value: Any) -> list[Any]:
    """What a dataclass is made of, other cells left out, which are cells of the plan themselves."""
    if not is_dataclass(value) or isinstance(value, type):
        return []
    values = (getattr(value, f.name) for f in fields(value))
    return [v for v in values if not isinstance(v, Cell)]


def _trains(value: Any) -> bool:
    """Whether it says how to train: by so many steps, each on so many examples."""
    return is_dataclass(value) and {"steps", "batch"} <= {f.name for f in fields(value)}


def _longest(value: Any) -> Any | None:
    """The recipe, or another schedule, of the most steps in a cell, or in what it is made of."""
    if _trains(value):
        return value
    found = [r for r in map(_longest, _own(value)) if r is not None]
    return max(found, key=lambda r: r.steps, default=None)


def _draws(cell: Cell) -> int:
    """How many subsets it draws; 1 where it draws none."""
    own = [cell, *_own(cell)]
    counts = [getattr(v, name, None) for v in own for name in ("draws", "masks")]
    return max((n for n in counts if isinstance(n, int)), default=1)


def _passes(cell: Cell, recipe: Any) -> float | None:
    """How often a training goes over the training examples; None where their number is not known without the data."""
    examples = next((n for v in [*_own(cell), *cell.needs()] if (n := getattr(v, "examples", None))), None)
    return None if examples is None else recipe.steps * recipe.batch / examples


def _kind(value: Any) -> Any:
    """What cells have in common that cost the same: all but seeds and levels, also of the cells they are made of."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    named = {f.name: getattr(value, f.name) for f in fields(value)}
    if not isinstance(value, Cell) and not any(isinstance(v, Cell) for v in named.values()):
        return value
    return type(value), tuple(_kind(v) for name, v in named.items() if name not in ("seed", "level", "seeds"))
