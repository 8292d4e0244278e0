"""Where in a program the values of hidden units can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from isthmus.program.program import Program
from isthmus.structure import axes as ax
from isthmus.structure.axes import Axis
from isthmus.structure.propagation import Propagation, Role, Value
from isthmus.structure.rules import RULES
from isthmus.structure.units import Group, Structure

Moment = Literal["after", "before"]


@dataclass(frozen=True, eq=False)
class Tap:
    """A value of a program with units on its axis `dim`: unit u has the positions ``index[u]``.

    `others`: where the units of other groups are on that axis, as heads and what is inside each of them.
    """

    value: str
    dim: int
    index: Tensor
    others: Mapping[str, Tensor] = field(default_factory=dict)


def taps(program: Program, structure: Structure, moment: Moment = "after") -> dict[str, tuple[Tap, ...]]:
    """For each group of a structure the values that show its units.

    "after": what the weights read that read these units, after nonlinearities and normalisations. "before": what the
    weights make that make them. A group that has no such value is seen in those of the other kind, else in any value
    that holds its units; one that no value shows, and one that the program does not have (a structure written by hand),
    has no taps.
    """
    walk = Propagation(program, structure.shapes)
    walk.run(RULES)
    atoms = atoms_of(walk, structure)
    found = {group: _places(walk, atom, moment) for group, atom in atoms.items()}
    return {
        group: tuple(_tap(*place, axis, group, atoms) for place, axis in several.items())
        for group, several in found.items()
        if several
    }


def _places(walk: Propagation, atom: Axis, moment: Moment) -> dict[tuple[str, int], Axis]:
    """The values, each with an axis of it, on which an atom is seen."""
    first, then = ("out", "in") if moment == "after" else ("in", "out")
    names = _shown(walk, atom, first) or _shown(walk, atom, then) or list(walk.values)
    return {(name, dim): axis for name in names for dim, axis in _axes(walk.values.get(name), atom)}


def atoms_of(walk: Propagation, structure: Structure) -> dict[str, Axis]:
    """What the groups of a structure are in a walk; those that it does not have are left out."""
    wanted = {group.name: group for group in structure.groups}
    return {g.name: ax.find(atom) for g, atom in walk.groups() if g.name in wanted and _same(g, wanted[g.name])}


def _same(one: Group, other: Group) -> bool:
    held, wanted = ({(m.tensor, m.dim): m.index for m in g.members} for g in (one, other))
    return held.keys() == wanted.keys() and all(torch.equal(v, wanted[k]) for k, v in held.items())


def _shown(walk: Propagation, atom: Axis, role: Role) -> list[str]:
    """The values that weights with this role for the atom read, or make."""
    names: list[str] = []
    for node, axis, used in walk.readers:
        if used == role and holds(axis, atom):
            names += node.refs() if role == "out" else [node.name]
    return [name for name in names if _axes(walk.values.get(name), atom)]


def _axes(value: Value | None, atom: Axis) -> list[tuple[int, Axis]]:
    """The axes of a value that hold the atom, by itself or among others."""
    return [] if value is None else [(d, axis) for d, axis in enumerate(value.axes) if holds(axis, atom)]


def holds(axis: Axis, atom: Axis) -> bool:
    """Whether an atom is part of an axis."""
    return any(leaf is atom for leaf in ax.leaves(axis))


def _tap(value: str, dim: int, axis: Axis, group: str, atoms: Mapping[str, Axis]) -> Tap:
    index = ax.positions(axis, atoms[group])
    others = {k: ax.positions(axis, v) for k, v in atoms.items() if k != group and holds(axis, v)}
    return Tap(value, dim, index, {k: v for k, v in others.items() if bool(torch.isin(v, index).any())})
