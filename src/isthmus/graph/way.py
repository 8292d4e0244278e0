"""Paths one after the other, where some of them end at renumbered networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from isthmus.alignment import Renumbering
from isthmus.connectors import Connection, Outcome
from isthmus.errors import InputError, UnsupportedError
from isthmus.objective import Objective
from isthmus.params import Params, equal
from isthmus.paths import Path


@dataclass(frozen=True, eq=False)
class Step:
    """A path from the network called `a` to that called `b`, walked so or back.

    `moved`: it ends at another network that computes what `b` does; `aligned`: the one that its alignment makes of `b`.
    """

    found: Connection
    a: str
    b: str
    forward: bool
    moved: bool
    aligned: bool


def is_aligned(objective: Objective, found: Connection, b: Params) -> bool:
    """Whether a connection ends at b renumbered by the permutations that it holds, entry by entry."""
    if not found.tensors or any(not name.startswith("permutation/") for name in found.tensors):
        return False
    return equal(Renumbering.of(objective, found.tensors).apply(b), found.target)


def in_a_row(steps: Sequence[Step], objective: Objective | None) -> Connection:
    """The steps as one connection, each with its units numbered as the one before leaves them.

    Errors: ``UnsupportedError`` where a step that goes on ends at a network that is no alignment of its own,
    ``InputError`` where a step must be renumbered and there is no `objective`.
    """
    pieces: list[Path] = []
    now: Renumbering | None = None
    last = steps[-1]
    for step in steps:
        ends_there = step is last and step.forward and now is None
        own = _alignment(step, objective) if step.moved and not ends_there else None
        after = _then(own, now)
        pieces.append(_piece(step, now if step.forward else after))
        now = after
    path = reduce(add, pieces)
    held = last.found.tensors if last.forward else {}
    tensors = held if now is None else now.tensors
    return Connection(path, path.end, Outcome.CONSTRUCTED, {"segments": _labels(steps)}, tensors=tensors)


def _then(first: Renumbering | None, second: Renumbering | None) -> Renumbering | None:
    """One after the other; None changes nothing."""
    return first.then(second) if first and second else first or second


def _piece(step: Step, how: Renumbering | None) -> Path:
    """The path of a step as it is walked, renumbered."""
    path = step.found.path if step.forward else step.found.path.reversed()
    return path if how is None else path.map(how.apply)


def _alignment(step: Step, objective: Objective | None) -> Renumbering:
    """What makes the end of the step of the network there, or the other way round for a step back."""
    if not step.aligned:
        raise UnsupportedError(
            f"the path from {step.a} to {step.b}",
            f"it ends at a permutation of {step.b} that it does not hold, where the next one does not start",
            "make the graph by a method whose paths end at the networks, Bezier(), or at renumbered ones, Aligned(...)",
        )
    if objective is None:
        expected = "the one that the graph was made with, to renumber networks by its structure"
        raise InputError("objective", expected=expected, got=None, instead="graph.path(i, j, objective)")
    found = Renumbering.of(objective, step.found.tensors)
    return found if step.forward else found.inverse()


def _labels(steps: Sequence[Step]) -> list[str]:
    """Of the segments, with the networks between which they lie."""
    out = []
    for step in steps:
        own = step.found.labels or ("",) * len(step.found.path)
        way = f"{step.a} to {step.b}" if step.forward else f"{step.b} to {step.a}"
        out += [f"{way}: {label}".removesuffix(": ") for label in (own if step.forward else own[::-1])]
    return out
