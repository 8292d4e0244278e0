"""Level curves under proof: their premises checked again from the network and the data, their rounding measured.

On a ``LevelCurve`` the features of its last layer, on its data, are affine in t by its closed form. That says
something about a network and its data only if the curve's layers are consecutive layers of that network with those
activations, its data are what the network's data become before them, [x, 1] has full row rank, and nothing after them
moves. The formula is exact in real arithmetic; what floating point makes of it is measured at some points, and `FACTOR`
times the largest difference is added to the bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from isthmus.certify.bounds import unsure
from isthmus.certify.claims import Claim
from isthmus.certify.forms import Form
from isthmus.errors import UnsupportedError
from isthmus.objective import Objective
from isthmus.params import Params, cast
from isthmus.paths import LevelCurve
from isthmus.stability.sublevel import LevelNetwork
from isthmus.structure.activations import reads_flat

POINTS = 33
"""Points at which the outputs are compared with the closed form."""
FACTOR = 8.0
"""The rounding allowed for between these points, over the largest that was seen."""
STRAY = 1e-6
"""The largest difference, relative to the outputs, that passes for rounding in float64; 1e-2 for narrower weights."""
SAME = 1e-9
"""The relative difference up to which two evaluations of the same features count as equal."""


@dataclass(frozen=True, eq=False)
class Level:
    """What was found about a level curve: the claim; the bound on the loss; the largest difference of a loss from that
    of the closed form (`deviation`); the largest relative difference of an output (`drift`); the unsure examples."""

    claim: Claim
    bound: float = 0.0
    deviation: float = 0.0
    drift: float = 0.0
    error: float = 0.0


def level(objective: Objective, segment: LevelCurve) -> Level:
    """The claim on a level curve, under `objective` in float64: "analytic", or "measured" and the failing premise."""
    start = objective.check(cast(segment.start, torch.float64), "path")
    try:
        net = LevelNetwork.of(objective, start)
    except UnsupportedError as e:
        return _refused(str(e))
    problem = next(_problems(net, segment), None)
    return _measured(net, segment) if problem is None else _refused(problem)


def _refused(problem: str) -> Level:
    return Level(Claim("measured", f"a level curve whose premises do not hold: {problem}"))


def _problems(net: LevelNetwork, segment: LevelCurve) -> Iterator[str]:
    """The premises that fail."""
    found = _place(net, segment)
    if isinstance(found, str):
        yield found
        return
    first, top = found
    if net.objective.penalty is not None:
        yield "the loss has a penalty, which is not affine along the curve"
    if top == net.L and not net.objective.convex:
        yield "the loss was not declared convex in the outputs"
    own, x = net.design(cast(segment.start, torch.float64), first).flatten(1), segment.x
    if (gap := _gap(own, x)) > SAME:
        yield f"the data of the curve differ from what layer {first} reads, by {gap:.1e} of their size"
    s = segment.work.solver.singular_values
    if not float(s[-1]) > len(x) * torch.finfo(torch.float64).eps * float(s[0]):
        yield f"[x, 1] has not full row rank: its singular values go from {float(s[0]):.3g} to {float(s[-1]):.3g}"
    if top < net.L:
        A, b = net.chain.read(cast(segment.start, torch.float64)).A, segment.work.F
        ends = [F[-1] @ A[top + 1].flatten(1).T for F in b]
        moved = float((ends[0] - ends[1]).abs().max())
        if moved > SAME * max(float(b[0][-1].abs().max() * A[top + 1].abs().sum(1).max()), 1e-300):
            yield f"the curve ends at layer {top}, but what layer {top + 1} makes of it moves by {moved:.1e}"


def _place(net: LevelNetwork, segment: LevelCurve) -> tuple[int, int] | str:
    """The first and the last of the network's layers that the curve moves, or why they are not its layers."""
    weights = [layer.weight for layer in net.chain.layers]
    if segment.layers[0].weight not in weights:
        return f"{segment.layers[0].weight!r} is no layer of the network"
    first = weights.index(segment.layers[0].weight) + 1
    for l, own in enumerate(segment.layers, start=first):
        if l > net.L or net.chain.layer(l).weight != own.weight:
            return f"{own.weight!r} is not layer {l} of the network"
        layer = net.chain.layer(l)
        if layer.vectors != (() if own.bias is None else (own.bias,)):
            return f"layer {l} has the biases {layer.vectors}, not {own.bias!r}"
        if not reads_flat(layer):
            return f"layer {l} is no linear layer"
        slope = 1.0 if l == net.L else net.activations[l].slope if net.activations[l].plain else None
        if slope != own.slope:
            name = "no activation" if l == net.L else net.activations[l].name
            return f"behind layer {l} the network has {name}, the curve a slope of {own.slope:g}"
    top = first + len(segment.layers) - 1
    if top < net.L and not reads_flat(net.chain.layer(top + 1)):
        return f"layer {top + 1} is no linear layer"
    return first, top


def _gap(own: Tensor, x: Tensor) -> float:
    """The largest distance of a row of `own` from the rows of `x`, over the largest entry; in order where it fits."""
    if own.shape[1] != x.shape[1]:
        return float("inf")
    scale = float(x.abs().max()) or 1.0
    if own.shape == x.shape and (gap := float((own - x).abs().max())) <= SAME * scale:
        return gap / scale
    nearest = torch.cdist(own, x, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    return float((own - x[nearest]).abs().max()) / scale


def _measured(net: LevelNetwork, segment: LevelCurve) -> Level:
    objective, y = net.objective, net.objective.data[1]
    ends = [objective.outputs(_wide(segment, t)) for t in (0.0, 1.0)]
    losses = [_loss(objective, Z) for Z in ends]
    scale = max(float(ends[0].abs().max()), float(ends[1].abs().max()), 1e-300)
    deviation = stray = 0.0
    for k in range(1, POINTS - 1):
        t = k / (POINTS - 1)
        Z, want = objective.outputs(_wide(segment, t)), torch.lerp(ends[0], ends[1], t)
        stray = max(stray, float((Z - want).abs().max()))
        deviation = max(deviation, abs(_loss(objective, Z) - _loss(objective, want)))
    wide = all(v.dtype == torch.float64 for v in segment.origin.values() if v.is_floating_point())
    if not (stray <= (STRAY if wide else 1e-2) * scale and isfinite(deviation) and all(map(isfinite, losses))):
        why = f"a level curve whose outputs stray by {stray / scale:.1e} of their size from its closed form"
        return Level(Claim("measured", why))
    noise = torch.full_like(ends[0], FACTOR * stray + 1e-11 * (1 + scale))
    marks = torch.stack([unsure(objective, Form(Z, None, noise), y) for Z in ends]).amax(0)
    how = "affine in t" if max(losses) > min(losses) or not torch.equal(ends[0], ends[1]) else "constant"
    why = (
        f"the outputs on the data are {how} by the closed form of the level curve; its premises hold, and at {POINTS} "
        f"points the outputs differ from it by at most {stray / scale:.1e} of their size"
    )
    bound = max(losses) + FACTOR * deviation
    return Level(Claim("analytic", why), bound, deviation, stray / scale, float(marks.mean()))


def _wide(segment: LevelCurve, t: float) -> Params:
    return cast(segment.at(t), torch.float64)


def _loss(objective: Objective, outputs: Tensor) -> float:
    return objective.of_outputs([(outputs, objective.data[1])])[0]
