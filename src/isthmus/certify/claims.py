"""The kernel: why the loss cannot rise on a segment, derived from its control points and the network alone.

It trusts nobody: no label, no sample, no connector. What a change can reach is derived in ``structure/liveness.py``,
from properties of real arithmetic alone: dead units, equal units, and how each value depends on t.

If the output is constant, the loss is constant ("unchanged"). If it is affine and the loss is convex in the
outputs, the loss on the segment is at most its maximum over the control points ("convex"): each output is the
same convex combination of the outputs at the control points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.params import Params
from isthmus.program import Program
from isthmus.structure.liveness import AFFINE, CONSTANT, changed_tensors, effective_changes, levels, live_units
from isthmus.structure.units import Structure


@dataclass(frozen=True)
class Claim:
    """`kind`: "unchanged", "convex", or "measured" (nothing could be proved); `why` in words."""

    kind: str
    why: str


def claim(control: Sequence[Params], program: Program, structure: Structure | None, convex: bool) -> Claim:
    """The strongest claim that holds for the Bezier curve with these control points (a line has two)."""
    changed = changed_tensors(control)
    if not changed:
        return Claim("unchanged", "all control points are equal")
    moved = changed
    if structure is not None:
        moved = effective_changes(control, changed, live_units(control, structure), structure)
    level, culprit = levels(program, moved)
    output = max((level.get(r.name, CONSTANT) for r in program.outputs), default=CONSTANT)
    spared = f"; {_names(changed - moved)} changed only at dead or equal units" if changed - moved else ""
    if output == CONSTANT:
        return Claim("unchanged", f"the outputs do not depend on what changed ({_names(changed)}): dead or equal units")
    if output == AFFINE and convex:
        return Claim("convex", f"the outputs are affine in t ({_names(moved)} changed{spared})")
    if output == AFFINE:
        return Claim("measured", "the outputs are affine in t, but the loss was not declared convex in them")
    return Claim("measured", f"{_names(moved)} changed, and {culprit} makes the outputs nonlinear in t")


def _names(names: set[str]) -> str:
    some = sorted(names)
    return ", ".join(some[:4]) + (f" and {len(some) - 4} more" if len(some) > 4 else "")
