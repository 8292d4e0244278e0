"""By how much the function of one parameter dictionary differs from that of another, in float64."""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_leaves

from isthmus.alignment.seen import first, inputs
from isthmus.objective import Objective
from isthmus.params import Params, cast, in_range, moves
from isthmus.shown import largest


def change(objective: Objective, b: Params, target: Params, examples: int) -> float:
    """max |f(b) - f(target)| / max |f(b)| on the first examples, the largest over all outputs."""
    x = inputs(first(objective, examples), torch.float64)
    with torch.no_grad():
        # the program computes in float64 throughout, also where the module itself asks for float32
        runs = (tree_leaves(objective.program.run(cast(p, torch.float64), *x)) for p in (b, target))
        pairs = [(in_range(v, "outputs of b"), w) for v, w in zip(*runs, strict=True) if moves(v)]
    changes = [float((v - w).abs().max()) / (float(v.abs().max()) or 1.0) for v, w in pairs]
    return largest(changes)
