"""What of a network may be rotated, with where its units are in the tensors and in the values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from isthmus.alignment.rotations.experts import experts
from isthmus.alignment.rotations.follow import Follow, NoRotation
from isthmus.alignment.rotations.frame import Gain, Placed, Rotatable, Turn
from isthmus.alignment.rotations.guesses import inside, phases
from isthmus.program.program import Program
from isthmus.structure import Group, Structure
from isthmus.structure import axes as ax
from isthmus.structure.axes import Axis
from isthmus.structure.propagation import Propagation
from isthmus.structure.rules import RULES
from isthmus.structure.taps import atoms_of


def frame_of(program: Program, structure: Structure) -> tuple[Rotatable, dict[str, str]]:
    """What of a network may be rotated; for every other group why it may not.

    Rotated are units that weights make and read, which are added, averaged, multiplied by what holds none of them,
    normed as a whole, and contracted with each other: a residual stream, queries with keys, values. A gain between is
    moved into the weights that read it; where it cannot be, it is `carried`, and only equal gains commute.
    """
    walk = Propagation(program, structure.shapes)
    walk.run(RULES)
    atoms = atoms_of(walk, structure)
    turns, gains, refused = [], [], {}
    for group in structure.groups:
        if group.name not in atoms:
            continue
        follow = Follow(walk, atoms[group.name])
        try:
            follow.run()
            turns.append(_turn(walk, group, atoms, follow))
            gains += [Gain(group.name, g.gain, g.bias, tuple(g.readers), g.carried) for g in follow.gains]
        except NoRotation as why:
            refused[group.name] = str(why)
    turned = {t.group for t in turns}
    guesses = [*inside(structure, turned), *phases(structure, turns)]
    turned |= {t.group for guess in guesses for t in guess.turns}
    guesses += experts(structure, turned, program.tied)
    return Rotatable(structure, tuple(turns), tuple(gains), program.tied, tuple(guesses)), refused


def _turn(walk: Propagation, group: Group, atoms: Mapping[str, Axis], follow: Follow) -> Turn:
    """The group with what stands beside its units everywhere, and where each of them is."""
    atom, names = follow.atom, {axis: name for name, axis in atoms.items()}
    gains, first = {g.gain for g in follow.gains}, walk.program.tied
    held = [(m.tensor, m.dim, walk.weights[first.get(m.tensor, m.tensor)][m.dim]) for m in group.members]
    held = [one for one in held if first.get(one[0], one[0]) not in gains]
    keys = _keys(walk, follow, [axis for *_, axis in held])
    seen = [one for one in _axes(walk, follow.seen) if {atom, *keys} <= set(ax.labels(one[2]))]
    sizes = tuple((names.get(k, ""), k.size) for k in keys)
    return Turn(
        group.name, atom.size, _held(held, atom, keys), sizes, follow.centred, _held(seen, atom, keys)
    )  # fmt: skip


def _axes(walk: Propagation, values: Iterable[str]) -> list[tuple[str, int, Axis]]:
    return [(name, d, axis) for name in values for d, axis in enumerate(walk.values[name].axes)]


def _held(several: Sequence[tuple[str, int, Axis]], atom: Axis, keys: Sequence[Axis]) -> tuple[Placed, ...]:
    return tuple(Placed(name, (dim,), _places(axis, atom, keys)) for name, dim, axis in several)


def _keys(walk: Propagation, follow: Follow, axes: Sequence[Axis]) -> list[Axis]:
    """The atoms that stand beside the units in every tensor and every value that holds them."""
    beside = [_beside(axis, follow.atom) for axis in axes]
    values = [part for name in follow.states if name in walk.values for part in follow.parts(walk.values[name])]
    beside += [list(ax.leaves(ax.total(value.axes))) for value in values]
    return [leaf for leaf in beside[0] if all(leaf in several for several in beside)]


def _beside(axis: Axis, atom: Axis) -> list[Axis]:
    """The other atoms that name the positions of this one on an axis."""
    labels = ax.labels(axis)
    here = labels[atom] >= 0
    return [other for other, units in labels.items() if other is not atom and bool((units[here] >= 0).all())]


def _places(axis: Axis, atom: Axis, keys: Sequence[Axis]) -> Tensor:
    """The positions of each unit of the atom under each key, [keys..., units, block]."""
    labels = ax.labels(axis)
    at = torch.nonzero(labels[atom] >= 0).reshape(-1)
    rank = torch.zeros_like(at)
    for one in (*keys, atom):
        rank = rank * one.size + labels[one][at]
    return at[rank.argsort(stable=True)].reshape(*(k.size for k in keys), atom.size, -1)
