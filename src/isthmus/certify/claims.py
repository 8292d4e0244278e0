"""The kernel: why the loss cannot rise on a segment, derived from its control points and the network alone.

It trusts nobody: no label, no sample, no connector. What a change can reach is derived in ``structure/liveness.py``,
from properties of real arithmetic alone: dead units, equal units, and how each value depends on t.

If the output is constant, the loss is constant ("unchanged"). If it is affine and the loss is convex in the
outputs, the loss on the segment is at most its maximum over the control points ("convex"): each output is the
same convex combination of the outputs at the control points. How high the loss is at a control point is another
question, which affine forms answer (``bounds.py``): its evaluation rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from isthmus.params import Params
from isthmus.program.export import Program
from isthmus.structure.liveness import AFFINE, CONSTANT, changed_tensors, effective, levels, live_units
from isthmus.structure.units import Structure


@dataclass(frozen=True)
class Claim:
    """`kind`: "unchanged", "convex", or "measured" (nothing could be proved); `why` in words.

    `points`: the control points of the networks that the claim is about, and `lost`: by how much their entries may be
    off. Both are empty unless weights of equal units were added up and the sums were rounded.
    """

    kind: str
    why: str
    points: Sequence[Params] = field(default=(), repr=False)
    lost: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


def claim(control: Sequence[Params], program: Program, structure: Structure | None, convex: bool) -> Claim:
    """The strongest claim that holds for the Bezier curve with these control points (a line has two)."""
    changed = changed_tensors(control)
    if not changed:
        return Claim("unchanged", "all control points are equal")
    moved, points, lost = changed, control, {}
    if structure is not None:
        moved, points, lost = effective(control, changed, live_units(control, structure), structure, program)
    own = {"points": points, "lost": lost} if lost else {}
    level, culprit = levels(program, moved)
    output = max((level.get(r.name, CONSTANT) for r in program.outputs), default=CONSTANT)
    spared = f"; {_names(changed - moved)} changed only at dead or equal units" if changed - moved else ""
    if output == CONSTANT:
        return Claim(
            "unchanged", f"the outputs do not depend on what changed ({_names(changed)}): dead or equal units", **own
        )
    if output == AFFINE and convex:
        return Claim("convex", f"the outputs are affine in t ({_names(moved)} changed{spared})", **own)
    if output == AFFINE:
        return Claim("measured", "the outputs are affine in t, but the loss was not declared convex in them")
    return Claim("measured", f"{_names(moved)} changed, and {culprit} makes the outputs nonlinear in t")


def _names(names: set[str]) -> str:
    some = sorted(names)
    return ", ".join(some[:4]) + (f" and {len(some) - 4} more" if len(some) > 4 else "")
