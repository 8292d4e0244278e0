"""Which of the values seen in a low precision can matter, and must be computed again in the working precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from isthmus.evaluate.network import Network, evaluate
from isthmus.evaluate.plan import whole
from isthmus.objective import Objective
from isthmus.objective.data import rows
from isthmus.params import Params

SCREENS = ("bf16", "auto")
TIMES = 4.0
"""The margin is this many times the largest difference seen between the two precisions ..."""
SHARE = 1e-3
"""... plus this share of the largest value."""


def has_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies in bfloat16 itself: a fact of the machine, the same on every run.

    Choices that can change a result ask this, and never a clock.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def bf16_pays(objective: Objective, params: Params, by: float = 1.5) -> bool:
    """Whether the network runs at least `by` times faster in bfloat16, measured on some examples at `params`."""
    low, high = Network(objective, torch.bfloat16), Network(objective)
    if (program := high.program(params)) is None or low.program(params) is None:
        return False
    plan = whole(program)
    part = slice(0, min(high.chunk, 512))
    times = {}
    try:
        for net in (high, low):
            point, x = net.cast(params), rows(net.x, part)
            runs = []
            for _ in range(4):
                start = perf_counter()
                with torch.no_grad():
                    evaluate(program, plan, point, x, net.dtype)
                runs.append(perf_counter() - start)
            times[net] = min(runs)
    except (RuntimeError, NotImplementedError):
        return False
    return times[high] > by * times[low]


def margin(low: Tensor, exact: Tensor, confirmed: Tensor) -> float:
    """How far below the best value a screened one may lie and still be suspected, from those known in both."""
    seen = (low - exact)[confirmed].abs()
    return TIMES * float(seen.max()) + SHARE * float(exact[confirmed].abs().max())


def confirm(
    low: Sequence[Tensor], t: Tensor, sure: Tensor, measure: Callable[[list[int]], None], exact: Sequence[Tensor]
) -> tuple[Tensor, list[float]]:
    """Measure again all points at which a quantity, or its height above the chord of its ends, may be largest.

    `low` are the screened quantities, `exact` the same in the working precision, filled in by ``measure(indices)``;
    `sure`: points that are exact already. Returns which points are confirmed, and the margin of each quantity.
    """
    confirmed = sure.clone()
    while True:
        wanted = torch.zeros_like(confirmed)
        wanted[0] = wanted[-1] = True
        margins = []
        for quantity, true in zip(low, exact, strict=True):
            mixed = torch.where(confirmed, true, quantity)
            wanted |= ~mixed.isfinite()
            if bool((confirmed & mixed.isfinite()).any()):
                margins.append(margin(quantity.nan_to_num(), true.nan_to_num(), confirmed))
            else:
                margins.append(0.0)
            for height in (mixed, mixed - ((1 - t) * mixed[0] + t * mixed[-1])):
                wanted[int(height.nan_to_num().argmax())] = True
                best = height[confirmed].nan_to_num().max() if bool(confirmed.any()) else height.max()
                wanted |= height.nan_to_num() >= best - margins[-1]
        fresh = wanted & ~confirmed
        if not bool(fresh.any()):
            return confirmed, margins
        measure(fresh.nonzero().flatten().tolist())
        confirmed |= fresh
