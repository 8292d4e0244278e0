"""Bounds of the losses of single examples over intervals of t: what a test set says of the population at every t."""

from __future__ import annotations

import torch
from torch import Tensor

from isthmus.certify.affine import Interval
from isthmus.certify.bounds import Bounds, end_losses, unsure
from isthmus.certify.forms import Undecided
from isthmus.certify.kernel import Kernel
from isthmus.certify.widened import without_raw_errors
from isthmus.errors import UnsupportedError
from isthmus.evaluate.band import weights_of
from isthmus.evaluate.everywhere import UpperBand, upper_band
from isthmus.objective import Objective
from isthmus.paths import Path

__all__ = ["everywhere"]


def everywhere(objective: Objective, path: Path, level: float, grid: int, seed: int) -> UpperBand:
    """The upper band of ``population(certified=True)``: `grid` - 1 equal intervals of every segment.

    The intervals do not depend on the examples, nor do the bounds of one example on the others, but for the size of
    what is allowed for rounding: remainders go forward through the moduli of the weights (the model "box").

    Errors: `UnsupportedError` where an operation has no rule, where a bound is not finite, and where examples do not
    weigh the same.
    """
    weights = weights_of(objective)
    if weights is not None and bool(((weights - 1).abs() > 1e-9).any()):
        raise UnsupportedError("certified=True", "examples of which labels are ignored do not weigh the same")
    kernel = Kernel(objective, path)
    columns, marks, extra, ends = [], [], [], []
    for i in range(len(path)):
        with without_raw_errors("its graph"):
            bounds = kernel.forms(i)
            for k in range(grid - 1):
                start, end = k / (grid - 1), (k + 1) / (grid - 1)
                above, maybe = _of_examples(kernel.wide, bounds, start, end)
                columns.append(above)
                marks.append(maybe)
                extra.append(bounds.penalty(start, end))
                ends.append(((i + start) / len(path), (i + end) / len(path)))
    table = torch.tensor(ends, dtype=torch.float64), torch.tensor(extra, dtype=torch.float64)
    return upper_band(torch.stack(columns, 1), torch.stack(marks, 1), table[1], table[0], level, seed)


def _of_examples(objective: Objective, bounds: Bounds, start: float, end: float) -> tuple[Tensor, Tensor]:
    """Per example: the ends of a line above its loss over [start, end], and whether it may be wrong there."""
    several, marks = [], []
    try:
        with torch.no_grad():
            for z, y in bounds.reading.outputs(Interval.between(start, end)):
                form = z.settled()
                several.append(torch.stack(end_losses(objective, form, y), 1).double().cpu())
                marks.append(unsure(objective, form, y).double().cpu())
    except Undecided as e:
        raise UnsupportedError("the path", f"no bound for t from {start:g} to {end:g}: {e}") from None
    found = torch.cat(several)
    if not bool(found.isfinite().all()):
        raise UnsupportedError(
            "the path", f"the bound of an example is not finite for t from {start:g} to {end:g}", "a finer grid may do"
        )
    return found, torch.cat(marks)
