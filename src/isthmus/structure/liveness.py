"""What a change of weights can reach: dead units, equal units, and the operations between a weight and the output.

Everything here is a property of real arithmetic on a Bezier curve, read off its control points and the graph:

1. A unit without a path of nonzero weights to the output at any control point is dead on the whole curve. Units whose
   incoming weights agree at all control points (after equal units before them are merged) compute the same function
   all along it, so that only the sum of their outgoing weights matters.
2. What is left of the change is followed through the graph: a value is constant, affine in the control points (a value
   at t is then the same combination of its values at the control points as the weights are), or neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from math import inf

import torch
from torch import Tensor

from isthmus.params import Params, moves
from isthmus.program.export import Node, Program
from isthmus.structure.degrees import degree_of
from isthmus.structure.rules import straight_weights
from isthmus.structure.units import Group, Member, Structure

CONSTANT, AFFINE, NEITHER = 0, 1, 2


# -- 1. dead and equal units


def changed_tensors(control: Sequence[Mapping[str, Tensor]]) -> set[str]:
    """The names of the tensors that can move and differ between control points.

    >>> a = {"w": torch.zeros(1), "b": torch.ones(1)}
    >>> changed_tensors([a, {**a, "w": torch.ones(1)}])
    {'w'}
    """
    first = control[0]
    return {
        k for k, v in first.items() if moves(v) and any(p[k] is not v and not torch.equal(p[k], v) for p in control[1:])
    }


def effective_changes(
    control: Sequence[Params], changed: set[str], live: Mapping[str, Tensor], structure: Structure, program: Program
) -> set[str]:
    """The changed tensors whose change can reach the output, given the units that are `live` (see `live_units`).

    Each of the others may be held at its value at any control point, alone or together: the function on the curve
    stays the same (but for the rounding of sums, see ``effective``).
    """
    return effective(control, changed, live, structure, program)[0]


def effective(
    control: Sequence[Params],
    changed: set[str],
    live: Mapping[str, Tensor],
    structure: Structure,
    program: Program,
) -> tuple[set[str], Sequence[Params], Mapping[str, Tensor]]:
    """``effective_changes``, the points in which only these tensors differ, and what their sums lost (``merged``)."""
    points, lost = cleared(control, live, structure), {}
    left = {k for k in changed if any(not torch.equal(p[k], points[0][k]) for p in points[1:])}
    if left:
        points, lost = merged(points, live, structure, program)
        left = {k for k in left if any(not torch.equal(p[k], points[0][k]) for p in points[1:])}
    return left, points, lost


def cleared(control: Sequence[Params], live: Mapping[str, Tensor], structure: Structure) -> list[Params]:
    """The control points of the same functions, with the incoming weights of dead units set to zero."""
    names = {m.tensor for g in structure.groups for m in g.ins}
    masks = {k: _rows_live(k, control[0][k].shape, live, structure) for k in names}
    return [_masked(p, masks) for p in control]


def live_units(control: Sequence[Params], structure: Structure) -> dict[str, Tensor]:
    """For each group a boolean per unit: False where no control point has a nonzero path to the output.

    The least fixed point: a unit is live if some nonzero outgoing weight enters a live row. Units that cannot be
    treated one by one (mixed by a normalisation, say) count as live.

    >>> index = torch.arange(2)[:, None]
    >>> s = Structure((Group("h", 2, (Member("v", 0, "in", index), Member("w", 1, "out", index))),),
    ...               {"v": (2, 1), "w": (1, 2)})
    >>> live_units([{"v": torch.ones(2, 1), "w": torch.tensor([[0.0, 3.0]])}], s)
    {'h': tensor([False,  True])}
    """
    device = next(iter(control[0].values())).device
    live = {g.name: torch.full((g.size,), not separable(g), device=device) for g in structure.groups}
    nonzero = {m.tensor: _ever_nonzero(control, m.tensor) for g in structure.groups for m in g.outs}
    for _ in range(sum(g.size for g in structure.groups) + 1):
        before = _counts(live)
        for group in filter(separable, reversed(structure.groups)):
            for m in group.outs:
                reaching = nonzero[m.tensor] & _rows_live(m.tensor, nonzero[m.tensor].shape, live, structure)
                by_position = reaching.movedim(m.dim, 0).reshape(reaching.shape[m.dim], -1).any(1)
                live[group.name] = live[group.name] | by_position[m.index.to(device)].any(1)
        if before == _counts(live):
            break
    return live


def _counts(live: Mapping[str, Tensor]) -> list[int]:
    return [int(v.sum()) for v in live.values()]


def separable(group: Group) -> bool:
    """Whether units of the group die when their outgoing weights vanish."""
    return group.separable and any(m.role == "out" for m in group.members)


def _ever_nonzero(control: Sequence[Params], name: str) -> Tensor:
    distinct = {id(p[name]): p[name] for p in control}
    return torch.stack([v != 0 for v in distinct.values()]).any(0)


def _incoming(structure: Structure, tensor: str) -> list[tuple[Group, Member]]:
    return [(g, m) for g in structure.groups for m in g.members if m.tensor == tensor and m.role == "in"]


def _rows_live(tensor: str, shape: torch.Size, live: Mapping[str, Tensor], structure: Structure) -> Tensor:
    """A mask of `shape` (broadcastable): False on the incoming weights of dead units."""
    device = next(iter(live.values())).device
    mask = torch.ones((1,) * len(shape), dtype=torch.bool, device=device)
    for group, m in _incoming(structure, tensor):
        positions = torch.ones(shape[m.dim], dtype=torch.bool, device=device)
        positions[m.index.to(device).flatten()] = live[group.name].repeat_interleave(m.index.shape[1])
        mask = mask & positions.view([-1 if d == m.dim else 1 for d in range(len(shape))])
    return mask


def _masked(params: Params, masks: Mapping[str, Tensor]) -> Params:
    """`params` with the incoming weights of dead units set to zero: the same function."""
    out = dict(params)
    for name, mask in masks.items():
        if not bool(mask.all()):
            out[name] = torch.where(mask, params[name], torch.zeros_like(params[name]))
    return out


def merged(
    points: Sequence[Params], live: Mapping[str, Tensor], structure: Structure, program: Program
) -> tuple[list[Params], dict[str, Tensor]]:
    """The `points` (see ``cleared``) with the outgoing weights of equal units added up on the first of them; and, for
    every tensor in which a sum was rounded, by how much no entry is further from its sum, at any of the points.

    Without that rounding these are the same functions. Groups are visited in the order of the graph, so that rows are
    compared after the columns before them were merged; a row with a rounded sum is equal to no row but those that it
    was equal to before. Sums of two float32 numbers of similar size are exact in float64. Units with complex weights
    are left alone, and those of which a function that is not linear reads outgoing weights: squares of weights, or
    products of two of them, do not add up.
    """
    straight = cache(lambda: straight_weights(program, structure.shapes))
    out: list[Params] = [dict(p) for p in points]
    lost: dict[str, Tensor] = {}
    for group in structure.groups:
        if _hands_over(group, points[0]):
            classes = _classes(out, points, lost, group, live[group.name])
            if classes and straight().issuperset(m.tensor for m in group.outs):
                _add_up(out, lost, group, classes)
    return out, lost


def _add_up(points: Sequence[Params], lost: dict[str, Tensor], group: Group, classes: Sequence[Tensor]) -> None:
    """Put the sums of outgoing weights into the `points`, and what is `lost` in them beside it."""
    for p, m in product(points, group.outs):
        p[m.tensor], error = _added(p[m.tensor], m, classes)
        if bool(error.any()):
            lost[m.tensor] = lost[m.tensor] + error if m.tensor in lost else error


def _hands_over(group: Group, params: Params) -> bool:
    """Whether a unit of the group may take over the outgoing weights of one that is equal, if these add up."""
    return separable(group) and not any(params[m.tensor].is_complex() for m in group.members)


def _added(tensor: Tensor, m: Member, classes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The tensor with the entries of equal units added up on the first of them, and what the sums lost."""
    index, moved = m.index.to(tensor.device), tensor.double().movedim(m.dim, 0).clone()
    error = torch.zeros_like(moved)
    for units in classes:
        moved[index[units[0]]], error[index[units[0]]] = _exact_sum(moved[index[units]])
        moved[index[units[1:]].flatten()] = 0
    return moved.movedim(0, m.dim), error.movedim(0, m.dim)


def _exact_sum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over the first axis, and at least what it rounds away: Knuth's error of every addition, 0 if exact."""
    total, lost = rows[0], torch.zeros_like(rows[0])
    for row in rows[1:]:
        following = total + row
        back = following - total
        lost += ((total - (following - back)) + (row - back)).abs()
        total = following
    return total, lost * (1 + 1e-9)


def _classes(
    points: Sequence[Params], before: Sequence[Params], lost: Mapping[str, Tensor], group: Group, live: Tensor
) -> list[Tensor]:
    """The sets of two or more live units whose incoming weights agree at every control point."""
    columns = _rounded(before, lost, group)
    units = live.nonzero().flatten()
    # a few columns rule out nearly all units; whole rows are compared among those that remain
    for width in (2, 8, None):
        if not group.ins or len(units) < 2:
            return []
        which = _equal_rows([*_rows(points, group, units, width), *(column[units] for column in columns)])
        counts = torch.bincount(which)
        if width is None:
            return [units[which == c] for c in (counts > 1).nonzero().flatten().tolist()]
        units = units[counts[which] > 1]
    raise AssertionError


def _rows(points: Sequence[Params], group: Group, units: Tensor, width: int | None) -> list[Tensor]:
    """The incoming weights of some units at all control points; a tensor that these share is looked at once."""
    held = {(id(p[m.tensor]), id(m)): (p[m.tensor], m) for p in points for m in group.ins}
    return [_entries(tensor, m, units, width) for tensor, m in held.values()]


def _rounded(before: Sequence[Params], lost: Mapping[str, Tensor], group: Group) -> list[Tensor]:
    return [_apart(q[m.tensor], lost[m.tensor], m) for q in before for m in group.ins if m.tensor in lost]


def _apart(tensor: Tensor, lost: Tensor, m: Member) -> Tensor:
    """A column that is 0 but in rows with a rounded sum, which are equal only to those that they were equal to."""
    everyone = torch.arange(len(m.index))
    own = _equal_rows([_entries(tensor, m, everyone)])
    return torch.where(_entries(lost, m, everyone).any(1), own + 1, 0)[:, None].double()


def _entries(tensor: Tensor, m: Member, units: Tensor, width: int | None = None) -> Tensor:
    """The entries of some units, a row each; of each position only the first `width`, as whole tensors are large."""
    index = m.index.to(tensor.device)[units.to(tensor.device)]
    rows = tensor.movedim(m.dim, 0)
    return rows.reshape(len(rows), -1)[:, :width][index].flatten(1)


def _equal_rows(parts: list[Tensor]) -> Tensor:
    """For each row the number of its class; rows that are equal throughout share one."""
    wide = max((p.dtype for p in parts), key=lambda d: torch.finfo(d).bits)
    return torch.unique(torch.cat([p.to(wide) for p in parts], 1), dim=0, return_inverse=True)[1]


# -- 2. following the change through the graph


def levels(program: Program, moved: set[str]) -> tuple[dict[str, int], str]:
    """How each value depends on t when the tensors `moved` do; and the first operation that is neither, if any."""
    level: dict[str, int] = {k: AFFINE if name in moved else CONSTANT for k, name in program.tensors.items()}
    culprit = ""
    for node in program.nodes:
        level[node.name] = level_of(node, level)
        if level[node.name] == NEITHER and not culprit:
            culprit = node.where or node.op
    return level, culprit


def level_of(node: Node, level: Mapping[str, int]) -> int:
    """The level of a node's result from those of what it reads."""
    known = {k: inf if v == NEITHER else v for k, v in level.items()}
    return int(min(degree_of(node, known), NEITHER))


def degree(program: Program, moved: set[str]) -> float:
    """The degree of the outputs as polynomials in the tensors `moved`; infinite where they may be none.

    >>> from isthmus.program.export import trace
    >>> program = trace(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), (torch.zeros(1, 2),))
    >>> degree(program, {"0.weight"}), degree(program, {"0.weight", "1.weight"})
    (1, 2)
    """
    known: dict[str, float] = {k: int(name in moved) for k, name in program.tensors.items()}
    for node in program.nodes:
        known[node.name] = degree_of(node, known)
    return max((known.get(r.name, 0) for r in program.outputs), default=0)
