"""The kernel: why the loss cannot rise on a segment, derived from its control points and the network alone.

It trusts nobody: no label, no sample, no connector. Two facts are used, both properties of real arithmetic:

1. Units without a path of nonzero weights to the output, at any control point, are dead on the whole segment, and
   units whose incoming weights agree at all control points (after equal units before them are merged) compute the
   same function all along it, so that only the sum of their outgoing weights matters.
2. What is left of the change is followed through the exported graph: a value is constant, affine in the control
   points, or neither.

If the output is constant, the loss is constant ("unchanged"). If it is affine and the loss is convex in the
outputs, the loss on the segment is at most its maximum over the control points ("convex"): each output is the
same convex combination of the outputs at the control points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.params import Params
from isthmus.program import Node, Program, Ref
from isthmus.structure.units import Group, Member, Structure

CONSTANT, AFFINE, NEITHER = 0, 1, 2

# operations that are affine in their tensor arguments jointly
_JOINTLY_AFFINE = {
    "aten.add.Tensor", "aten.sub.Tensor", "aten.neg.default", "aten.cat.default", "aten.stack.default",
    "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.flatten.using_ints",
    "aten.permute.default", "aten.transpose.int", "aten.t.default", "aten.unsqueeze.default", "aten.squeeze.dim",
    "aten.squeeze.default", "aten.squeeze.dims", "aten.expand.default", "aten.contiguous.default",
    "aten.clone.default", "aten.alias.default", "aten.detach.default", "aten.dropout.default",
    "aten.mean.dim", "aten.sum.dim_IntList", "aten.avg_pool1d.default", "aten.avg_pool2d.default",
    "aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.slice.Tensor", "aten.select.int",
    "aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default", "aten.unbind.int",
}  # fmt: skip
# operations that are bilinear in their first two tensor arguments and affine in a third
_BILINEAR = {
    "aten.linear.default", "aten.conv1d.default", "aten.conv2d.default", "aten.conv2d.padding",
    "aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mul.Tensor",
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """`kind`: "unchanged", "convex", or "measured" (nothing could be proved); `why` in words."""

    kind: str
    why: str


def claim(control: Sequence[Params], program: Program, structure: Structure | None, convex: bool) -> Claim:
    """The strongest claim that holds for the Bezier curve with these control points (a line has two)."""
    effective = {k: any(p[k] is not v and not torch.equal(p[k], v) for p in control[1:]) for k, v in control[0].items()}
    changed = {k for k, differs in effective.items() if differs and control[0][k].is_floating_point()}
    if not changed:
        return Claim("unchanged", "all control points are equal")
    moved = changed
    if structure is not None:
        moved = _effective_changes(control, changed, structure)
    level, culprit = _follow(program, moved)
    spared = f"; {_names(changed - moved)} changed only at dead or equal units" if changed - moved else ""
    if level == CONSTANT:
        return Claim("unchanged", f"the outputs do not depend on what changed ({_names(changed)}): dead or equal units")
    if level == AFFINE and convex:
        return Claim("convex", f"the outputs are affine in t ({_names(moved)} changed{spared})")
    if level == AFFINE:
        return Claim("measured", "the outputs are affine in t, but the loss was not declared convex in them")
    return Claim("measured", f"{_names(moved)} changed, and {culprit} makes the outputs nonlinear in t")


def _names(names: set[str]) -> str:
    some = sorted(names)
    return ", ".join(some[:4]) + (f" and {len(some) - 4} more" if len(some) > 4 else "")


# -- 1. dead and equal units


def _effective_changes(control: Sequence[Params], changed: set[str], structure: Structure) -> set[str]:
    """The changed tensors whose change can reach the output."""
    live = live_units(control, structure)
    points = [_without_dead(p, live, structure) for p in control]
    left = {k for k in changed if any(not torch.equal(p[k], points[0][k]) for p in points[1:])}
    if not left:
        return left
    points = _merge_equal(points, live, structure)
    return {k for k in left if any(not torch.equal(p[k], points[0][k]) for p in points[1:])}


def cleared(control: Sequence[Params], structure: Structure) -> list[Params]:
    """The control points of the same functions with the incoming weights of dead units set to zero."""
    live = live_units(control, structure)
    return [_without_dead(p, live, structure) for p in control]


def live_units(control: Sequence[Params], structure: Structure) -> dict[str, Tensor]:
    """For each group a boolean per unit: False where no control point has a nonzero path to the output.

    The least fixed point: a unit is live if some nonzero outgoing weight enters a live row. Units that cannot be
    treated one by one (mixed by a normalisation, say) count as live.
    """
    device = next(iter(control[0].values())).device
    live = {g.name: torch.full((g.size,), not _separable(g), device=device) for g in structure.groups}
    nonzero = {
        m.tensor: torch.stack([p[m.tensor] != 0 for p in control]).any(0)
        for g in structure.groups
        for m in g.members
        if m.role == "out"
    }
    for _ in range(sum(g.size for g in structure.groups) + 1):
        before = {k: int(v.sum()) for k, v in live.items()}
        for group in reversed(structure.groups):
            if not _separable(group):
                continue
            for m in (m for m in group.members if m.role == "out"):
                reaching = nonzero[m.tensor] & _rows_live(m.tensor, nonzero[m.tensor].shape, live, structure)
                by_position = reaching.movedim(m.dim, 0).flatten(1).any(1)
                live[group.name] = live[group.name] | by_position[m.index.to(device)].any(1)
        if before == {k: int(v.sum()) for k, v in live.items()}:
            break
    return live


def _separable(group: Group) -> bool:
    return group.separable and any(m.role == "out" for m in group.members)


def _incoming(structure: Structure, tensor: str) -> list[tuple[Group, Member]]:
    return [(g, m) for g in structure.groups for m in g.members if m.tensor == tensor and m.role == "in"]


def _rows_live(tensor: str, shape: torch.Size, live: dict[str, Tensor], structure: Structure) -> Tensor:
    """A mask of `shape` (broadcastable): False on the incoming weights of dead units."""
    device = next(iter(live.values())).device
    mask = torch.ones((1,) * len(shape), dtype=torch.bool, device=device)
    for group, m in _incoming(structure, tensor):
        positions = torch.ones(shape[m.dim], dtype=torch.bool, device=device)
        positions[m.index.to(device).flatten()] = live[group.name].repeat_interleave(m.index.shape[1])
        mask = mask & positions.view([-1 if d == m.dim else 1 for d in range(len(shape))])
    return mask


def _without_dead(params: Params, live: dict[str, Tensor], structure: Structure) -> Params:
    """`params` with the incoming weights of dead units set to zero: the same function."""
    out = dict(params)
    for name in {m.tensor for g in structure.groups for m in g.members if m.role == "in"}:
        mask = _rows_live(name, params[name].shape, live, structure)
        if not bool(mask.all()):
            out[name] = torch.where(mask, params[name], torch.zeros_like(params[name]))
    return out


def _merge_equal(points: list[Params], live: dict[str, Tensor], structure: Structure) -> list[Params]:
    """The same functions, with the outgoing weights of equal units added up on the first of them.

    Groups are visited in the order of the graph, so that rows are compared after the columns before them were
    merged. Sums of two float32 numbers are exact in float64; in float64, a sum that rounds could only make equal
    units look different, or leave a difference below one rounding, which the certificate's slack covers.
    """
    points = [{k: v.double() if v.is_floating_point() else v for k, v in p.items()} for p in points]
    for group in structure.groups:
        if not _separable(group):
            continue
        classes = _classes(points, group, live[group.name])
        for units in classes:
            for p in points:
                for m in (m for m in group.members if m.role == "out"):
                    index = m.index.to(p[m.tensor].device)
                    moved = p[m.tensor].movedim(m.dim, 0).clone()
                    moved[index[units[0]]] = moved[index[units]].sum(0)
                    moved[index[units[1:]].flatten()] = 0
                    p[m.tensor] = moved.movedim(0, m.dim)
    return points


def _classes(points: list[Params], group: Group, live: Tensor) -> list[Tensor]:
    """The sets of two or more live units whose incoming weights agree at every control point."""
    rows = []
    for p in points:
        for m in (m for m in group.members if m.role == "in"):
            rows.append(p[m.tensor].movedim(m.dim, 0)[m.index.to(live.device)].flatten(1))
    if not rows:
        return []
    _, which = torch.unique(torch.cat(rows, 1), dim=0, return_inverse=True)
    which = torch.where(live, which, -1)
    counts = torch.bincount(which[live], minlength=1)
    return [(which == c).nonzero().flatten() for c in (counts > 1).nonzero().flatten().tolist()]


# -- 2. following the change through the graph


def _follow(program: Program, moved: set[str]) -> tuple[int, str]:
    """How the output depends on t when the tensors `moved` are affine in t, and the operation to blame."""
    level: dict[str, int] = {k: AFFINE if name in moved else CONSTANT for k, name in program.tensors.items()}
    culprit = ""
    for node in program.nodes:
        level[node.name] = _level(node, level)
        if level[node.name] == NEITHER and not culprit:
            culprit = node.where or node.op
    return max((level.get(r.name, CONSTANT) for r in program.outputs), default=CONSTANT), culprit


def _level(node: Node, level: dict[str, int]) -> int:
    def of(value: Any) -> int:
        if isinstance(value, Ref):
            return level.get(value.name, CONSTANT)
        return max(map(of, value), default=CONSTANT) if isinstance(value, list | tuple) else CONSTANT

    args = [of(v) for v in node.args]
    everything = max([*args, *(of(v) for v in node.kwargs.values())], default=CONSTANT)
    if everything in (CONSTANT, NEITHER):
        return everything
    if node.op in _JOINTLY_AFFINE or node.op.startswith("_operator.getitem") or node.op == "getitem":
        return AFFINE
    if node.op in _BILINEAR:
        return AFFINE if args[0] + args[1] <= AFFINE else NEITHER
    if node.op == "aten.div.Tensor":
        return AFFINE if args[1] == CONSTANT else NEITHER
    if node.op == "aten.addmm.default":
        return AFFINE if args[1] + args[2] <= AFFINE else NEITHER
    if node.op == "aten.batch_norm.default":  # (x - mean) / sqrt(var + eps) * weight + bias, statistics fixed
        x, weight, _, mean, var = args[:5]
        return AFFINE if var == CONSTANT and max(x, mean) + weight <= AFFINE else NEITHER
    return NEITHER
