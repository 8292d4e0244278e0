"""A certificate whose bounds over sub-intervals are computed by several workers: the same as without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple
from uuid import uuid4

from isthmus.certify import Certificate
from isthmus.certify.branch import Interval
from isthmus.certify.certify import Wanted, proved
from isthmus.certify.kernel import Kernel
from isthmus.certify.remembered import Remembered, plain
from isthmus.errors import IsthmusError, UnsupportedError
from isthmus.objective import Objective
from isthmus.paths import Path
from isthmus.sweep.base import Engine, Failed, one_thread

__all__ = ["certified_by_intervals"]

AHEAD = 4
"""How many bounds are asked for at a time, for every worker."""


def certified_by_intervals(objective: Objective, path: Path, wanted: Wanted, engine: Engine) -> Certificate:
    """As ``certify`` with one thread, to the last bit.

    The search is that of one process. What it will ask for next, and what it will ask for later unless a larger loss is
    seen, is computed by the workers before. One that is killed is replaced by `engine`, as everywhere.
    """
    with engine.session(), one_thread():
        return proved(objective, path, wanted, _Workers(engine, _Work(objective, path, uuid4().hex)))


@dataclass(frozen=True, eq=False)
class _Work:
    """What all tasks need; workers that see the same `name` again keep what they made of it."""

    objective: Objective
    path: Path
    name: str


class _Task(NamedTuple):
    model: str
    interval: Interval


@dataclass(frozen=True, eq=False)
class _Workers:
    """Bounds from an engine, put where the search looks for them."""

    engine: Engine
    work: _Work

    def __call__(self, known: Remembered, model: str, needed: Sequence[Interval], later: Iterator[Interval]) -> None:
        missing = [part for part in needed if not known.has(model, part)]
        if not missing:
            return
        more = (part for part in later if not known.has(model, part))
        missing += islice(more, max(AHEAD * self.engine.at_once - len(missing), 0))
        tasks = [_Task(model, part) for part in missing]
        for k, found in self.engine.map(_bound, self.work, tasks):
            if isinstance(found, Failed):
                raise IsthmusError(
                    f"segment {missing[k][0]}, t from {missing[k][1]} to {missing[k][2]}: {found.message}"
                )
            if found is not None:
                known.put(model, missing[k], found)


_KERNELS: dict[str, Kernel] = {}
"""The kernel of the path that this process works on: its graph is read once."""


def _bound(work: _Work, task: _Task) -> tuple[float, float, float, str] | None:
    """The bound over one interval; None where there is none, which the search finds out by itself."""
    if work.name not in _KERNELS:
        _KERNELS.clear()
        _KERNELS[work.name] = Kernel(work.objective, work.path)
    try:
        return plain(_KERNELS[work.name].bound(*task.interval, task.model))
    except UnsupportedError:
        return None
