"""By how much the function of one parameter dictionary differs from that of another, in float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from isthmus.objective import Objective
from isthmus.params import Params, cast, in_dtype, moves


def change(objective: Objective, b: Params, target: Params, examples: int, enough: float) -> float:
    """max |f(b) - f(target)| / max |f(b)| on the first examples.

    Where it is more than `enough` in the module, its traced program is asked, which computes in float64 throughout:
    some modules, such as Llama's norms, go through float32 whatever they are given.
    """
    few, ends = objective.part(slice(0, examples)).cast(torch.float64), [cast(p, torch.float64) for p in (b, target)]
    error = _apart(*(few.outputs(p) for p in ends))
    if error <= enough:
        return error
    x = [in_dtype(v, torch.float64) if moves(v) else v for v in _inputs(objective, examples)]
    with torch.no_grad():
        return _apart(*(tree_leaves(objective.program.run(p, *x))[0] for p in ends))


def _inputs(objective: Objective, examples: int) -> list[Tensor]:
    parts = [tree_leaves(x) for x, _ in objective.source.first(min(examples, objective.num_examples)).chunks(examples)]
    return [torch.cat(several) for several in zip(*parts, strict=True)]


def _apart(want: Tensor, have: Tensor) -> float:
    return float((want - have).abs().max()) / (float(want.abs().max()) or 1.0)
