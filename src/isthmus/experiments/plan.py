"""What is left of an experiment, and how long it would take here: from short runs of one cell of each kind."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from isthmus.device import device_of
from isthmus.errors import IsthmusError
from isthmus.experiments.jobs import Problem
from isthmus.experiments.tables import Row
from isthmus.sweep import Cell, Local, Store, run_cells, with_needs
from isthmus.training.progress import Progress, no_progress

_BRIEF = 2
"""Steps of the trainings that a cell is made from."""
_CLEAR = 0.5
"""Seconds by which a run must be longer, so that what it has more of is told from everything else."""
_SOME = 256
"""Examples that are timed in place of twice as many or more, at least a batch."""
_COUNTS = ("hub_steps", "looks_from", "every")
"""Numbers of steps beside those of a recipe."""


def plan(cells: Sequence[Cell], store: Store, device: str = "auto", progress: Progress = no_progress) -> list[Row]:
    """One row for each kind of cell that is missing: how many, passes over the data, hours for all of them at most.

    A kind is what one cell is made of but for its seed. One of them, or what is ``like`` it, is run on few examples and
    for a few steps, on networks trained as briefly, in a folder that is thrown away; then for more and more steps, with
    more checks, and on twice as many examples, until it is clear what a step, a check and an example cost. Hours are
    those at most: trainings that reach their target end sooner. Of a search of strings one bead is timed. On a CPU
    what counts is the smaller of elapsed and processor time, so that other work on the machine does not. A kind that
    cannot be timed here has no hours, which do not count in the sum, but the reason.
    """
    whole = with_needs(cells)
    groups: dict[Any, list[Cell]] = {}
    kinds: Counter[Any] = Counter()
    for cell in whole:
        kind = _kind(cell)
        kinds[kind] += 1
        if not _is_there(cell, store):
            groups.setdefault(kind, []).append(cell)
    rows: list[Row] = []
    for i, (kind, group) in enumerate(groups.items()):
        progress("timing", i, len(groups))
        rows.append(_row(group, kinds[kind], device))
    hours = sum(row["hours"] or 0.0 for row in rows)
    return [*rows, {"cell": "all", "cells": len(whole), "missing": sum(map(len, groups.values())), "hours": hours}]


def _is_there(cell: Cell, store: Store) -> bool:
    try:
        return store.find(cell) is not None
    except IsthmusError:  # what it is made from cannot be read, which its row says
        return False


def _row(group: Sequence[Cell], of_kind: int, device: str) -> Row:
    cell = group[0]
    timed = cell.like
    recipe = _longest(timed or cell)
    passes = None if recipe is None else _passes(cell, recipe)
    row: Row = {"cell": cell.label, "cells": of_kind, "missing": len(group), "passes": passes}
    try:
        if timed is None:
            raise IsthmusError("only the cells that it needs tell")
        seconds = _whole(timed, device)
    except IsthmusError as e:
        return row | {"seconds each": None, "hours": None, "cannot be timed": str(e)}
    return row | {"seconds each": seconds, "hours": seconds * len(group) / 3600}


def _whole(cell: Cell, device: str) -> float:
    """How long the cell would run at most."""
    recipe = _longest(cell)
    steps = _draws(cell) if recipe is None else recipe.steps
    size = _size(cell)
    some = max(_SOME, getattr(recipe, "batch", 0))
    few = None if size is None or size.examples < 2 * some else size.part(some)
    with TemporaryDirectory() as folder:
        timed = _Timed(cell, Store(Path(folder)), device, recipe is None)
        times = _times(timed, steps, few)
        begin, step, check = times[1], _slope(times), 0.0
        if hasattr(recipe, "check"):
            check = _check(timed, times, few) * _checks(recipe, size)
        if size is not None and few is not None:
            twice = timed.seconds(1, size=size.part(2 * some))
            begin += max(0.0, twice - begin) / some * (size.examples - some)
            check *= size.examples / some
            step *= size.examples / some if _on_all(recipe) else 1.0
    return begin + step * (steps - 1) + check


def _on_all(recipe: Any | None) -> bool:
    """Whether a step is on all examples: that of L-BFGS, and a draw, which is judged on them."""
    return recipe is None or getattr(recipe, "optimizer", "") == "lbfgs"


def _times(timed: _Timed, steps: int, size: _Size | None) -> dict[int, float]:
    """Seconds by the number of steps: more of them until they clearly take longer, or cannot matter."""
    seconds = timed.seconds(1, size=size)
    if seconds < 10 * _CLEAR:  # else what is made at the first use is little of it
        seconds = timed.seconds(1, size=size)
    times, length, factor, more = {1: seconds}, 1, 2, 0.0
    # so many steps of less than _CLEAR / length are to be told from the tenth part of a run
    while length < steps and more < _CLEAR and (steps - 1) * _CLEAR / length > seconds / 10:
        length = min(steps, factor * length)
        times[length] = timed.seconds(length, size=size)
        more = times[length] - seconds
        seconds = times[length]
        factor = 4 if more > _CLEAR / 16 else 16
    return times


def _slope(times: Mapping[int, float]) -> float:
    """What a step more costs, from the two longest runs."""
    if len(times) < 2:
        return 0.0
    (short, before), (longer, after) = sorted(times.items())[-2:]
    return max(0.0, after - before) / (longer - short)


def _check(timed: _Timed, times: Mapping[int, float], size: _Size | None) -> float:
    """What a check costs: each step has one, in place of the last alone. The longest run tells that takes not long."""

    def found(length: int) -> float:
        return max(0.0, timed.seconds(length, check=1, size=size) - times[length]) / (length - 1)

    lengths = sorted(n for n in times if n > 1)
    if not lengths:
        return 0.0
    first = found(lengths[0])
    longer = [n for n in lengths[1:] if first * n < 16 * _CLEAR]
    return found(longer[-1]) if longer else first


def _checks(recipe: Any, size: _Size | None) -> int:
    """How many checks a training has after its steps; by default there is one after a pass over the data."""
    every = recipe.check or (size and max(1, size.examples // recipe.batch))
    return recipe.steps // every if every else 0


@dataclass(frozen=True)
class _Size:
    """How many examples a cell trains on, and how many it tests with."""

    examples: int
    tests: int

    def part(self, examples: int) -> _Size:
        """Fewer of both, in the same proportion."""
        return _Size(examples, -(-self.tests * examples // self.examples))


@dataclass(frozen=True)
class _Timed:
    """A cell of which short runs are timed. What it needs is made once for each size, as briefly as can be."""

    cell: Cell
    store: Store
    device: str
    draws: bool

    def seconds(self, length: int, *, check: int | None = None, size: _Size | None = None) -> float:
        """How long it takes when every training has so many steps, or every search so many draws."""
        steps, draws = (_BRIEF, length) if self.draws else (length, None)
        brief = _Short(steps, draws, check or steps, size).of(self.cell)
        self._run(brief.needs())
        shutil.rmtree(self.store.folder(brief), ignore_errors=True)  # of the same run before
        clocks = _clocks(self.device)
        begin = [clock() for clock in clocks]
        self._run([brief])
        return min(clock() - at for clock, at in zip(clocks, begin, strict=True))

    def _run(self, cells: Sequence[Cell]) -> None:
        report = run_cells(cells, self.store, Local(), device=self.device)
        for label, failed in report.failed.items():
            raise IsthmusError(f"{label}: {failed.message}")


def _clocks(device: str) -> Sequence[Callable[[], float]]:
    """A processor that waits for another device spends no time of its own."""
    here = device_of(device).type == "cpu"
    return (time.perf_counter, time.process_time) if here else (time.perf_counter,)


def shortened(value: Any, steps: int, draws: int | None = None) -> Any:
    """The same cell, recipe or method with at most so many steps in every training, and so many draws if that is said.

    >>> from isthmus.training.fit import Recipe
    >>> shortened(Recipe(steps=4000, check=100), 5) == Recipe(steps=5, check=5)
    True
    """
    return _Short(steps, draws, steps, None).of(value)


@dataclass(frozen=True)
class _Short:
    """What a short form has: steps, draws (None: all), steps between checks, examples (None: all)."""

    steps: int
    draws: int | None
    check: int
    size: _Size | None

    def of(self, value: Any) -> Any:
        """The short form of a cell, a recipe, a method, a problem; other values stay."""
        if isinstance(value, tuple):
            return tuple(self.of(v) for v in value)
        if not is_dataclass(value) or isinstance(value, type):
            return value
        changes = {f.name: self._field(value, f.name) for f in fields(value) if f.init}
        if self.size is not None and isinstance(value, Problem):
            tests = self.size.tests if value.tests is None else min(value.tests, self.size.tests)
            changes |= {"examples": self.size.examples, "tests": tests}
        return replace(value, **changes)

    def _field(self, value: Any, name: str) -> Any:
        old = getattr(value, name)
        if isinstance(old, Cell):  # trained before, as briefly as can be
            return replace(self, steps=_BRIEF, draws=self.draws and 1, check=_BRIEF).of(old)
        if _trains(value) and name == "check":
            return self.check
        limit = self._limit(value, name)
        return self.of(old) if old is None or limit is None else min(old, limit)

    def _limit(self, value: Any, name: str) -> int | None:
        """The most that a number of steps or of draws may be."""
        if name in _COUNTS or (name == "steps" and _trains(value)):
            return self.steps
        return self.draws if name in ("draws", "masks") else None


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


def _size(value: Any) -> _Size | None:
    """Of the problem of named data that a cell is about; None where it has another one."""
    while not isinstance(value, Problem):
        inner = getattr(value, "problem", None)
        if inner is None:
            inner = next((v for f in fields(value) if hasattr(v := getattr(value, f.name), "problem")), None)
        if inner is None:
            return None
        value = inner
    data = value.dataset()
    tests = 0 if data.x_test is None or value.tests == 0 else len(data.x_test)
    return _Size(len(data.x_train), tests)


def _passes(cell: Cell, recipe: Any) -> float | None:
    """How often a training goes over the training examples; None where their number is not known without the data."""
    examples = next((n for v in [*_own(cell), *cell.needs()] if (n := getattr(v, "examples", None))), None)
    if examples is None:
        return None
    whole = getattr(recipe, "optimizer", "") == "lbfgs"  # of which a step is one pass at least
    return float(recipe.steps) if whole else recipe.steps * min(recipe.batch, examples) / examples


def _kind(value: Any) -> Any:
    """What cells have in common that cost the same: all but seeds and levels, also of the cells they are made of."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    named = {f.name: getattr(value, f.name) for f in fields(value)}
    if not isinstance(value, Cell) and not any(isinstance(v, Cell) for v in named.values()):
        return value
    return type(value), tuple(_kind(v) for name, v in named.items() if name not in ("seed", "level", "seeds"))
