"""Level curves under proof: their premises checked again from the network and the data, their rounding measured.

On a ``LevelCurve`` the features of its last layer, on its data, are affine in t by its closed form. That says
something about a network and its data only if the curve's layers are consecutive layers of that network with those
activations, its data are what the network's data become before them, [x, 1] has full row rank, and nothing after them
moves.

The bound has two parts. **In real arithmetic**, for the closed form on the features that the network's data have
before any rounding: [x, 1] has full row rank also when these features are as far from the curve's own data as roundings
in the layers below can put them (affine forms; Weyl's inequality), so that the curve exists and the features of its
last layer run on the line between those of both ends. If that is the last layer of the network, the loss is at most the
larger one at both ends of that line, which affine forms bound; else they bound what the layers above and the loss make
of the whole line. No point is sampled for this part, and where an operation or the loss has no rule for affine forms
nothing is claimed. What is assumed is that singular values round by less than N ulps of the largest. **In floating
point**, for the points that ``LevelCurve.at`` computes: at `POINTS` of them the outputs are compared with the closed
form, and `FACTOR` times the largest difference of a loss is added. That this covers the points between is an
assumption; a bound from norms alone multiplies |W^+| / slope over the layers, and exceeds what is seen by seven powers
of ten for three layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, nan

import torch
from torch import Tensor

from isthmus.certify.affine import Interval, Reading, line
from isthmus.certify.bounds import Bound, bound_of_outputs, unsure
from isthmus.certify.claims import Claim
from isthmus.certify.forms import Form
from isthmus.errors import UnsupportedError
from isthmus.evaluate.chain import loss_of_outputs
from isthmus.evaluate.level_network import LevelNetwork
from isthmus.objective import Objective
from isthmus.params import Params, cast
from isthmus.paths import LevelCurve
from isthmus.paths.level_curve import LevelLayer
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
    of the closed form (`deviation`); the largest relative difference of an output (`drift`); the unsure examples.

    `exact`: the bound of the closed form in real arithmetic, which `bound` is never below. `slack`: the loss is nowhere
    further above the chord of the losses evaluated at the ends.
    """

    claim: Claim
    bound: float = 0.0
    deviation: float = 0.0
    drift: float = 0.0
    error: float = 0.0
    exact: float = 0.0
    slack: float = 0.0


def level(objective: Objective, segment: LevelCurve) -> Level:
    """The claim on a level curve, under `objective` in float64: "analytic", or "measured" and the failing premise."""
    start = objective.check(cast(segment.start, torch.float64), "path")
    try:
        net = LevelNetwork.of(objective, start)
        problem = next(_problems(net, segment), None)
        return _measured(net, segment, _exact(net, segment)) if problem is None else _refused(problem)
    except UnsupportedError as e:
        return _refused(str(e))


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
    # by Weyl's inequality no singular value is off by more than the norm of what separates both matrices
    away = gap * float(x.abs().max()) * own.numel() ** 0.5 + _radius(net, segment, first)
    if not float(s[-1]) > len(x) * torch.finfo(torch.float64).eps * float(s[0]) + away:
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
        if problem := _misfit(net, l, own):
            return problem
    top = first + len(segment.layers) - 1
    if top < net.L and not reads_flat(net.chain.layer(top + 1)):
        return f"layer {top + 1} is no linear layer"
    return first, top


def _misfit(net: LevelNetwork, l: int, own: LevelLayer) -> str:
    """Why layer l of the network is not that layer of a curve; nothing where it is."""
    if l > net.L or net.chain.layer(l).weight != own.weight:
        return f"{own.weight!r} is not layer {l} of the network"
    layer = net.chain.layer(l)
    if layer.vectors != (() if own.bias is None else (own.bias,)):
        return f"layer {l} has the biases {layer.vectors}, not {own.bias!r}"
    if not reads_flat(layer):
        return f"layer {l} is no linear layer"
    if l == net.L:
        slope, name = 1.0, "no activation"
    else:
        slope, name = net.activations[l].slope if net.activations[l].plain else None, net.activations[l].name
    return "" if slope == own.slope else f"behind layer {l} the network has {name}, the curve a slope of {own.slope:g}"


def _gap(own: Tensor, x: Tensor) -> float:
    """The largest distance of a row of `own` from the rows of `x`, over the largest entry; in order where it fits."""
    if own.shape[1] != x.shape[1]:
        return float("inf")
    scale = float(x.abs().max()) or 1.0
    if own.shape == x.shape and (gap := float((own - x).abs().max())) <= SAME * scale:
        return gap / scale
    nearest = torch.cdist(own, x, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    return float((own - x[nearest]).abs().max()) / scale


def _reading(net: LevelNetwork, params: Params, layer: int) -> Reading:
    """The network cut open below a layer."""
    point = cast(params, torch.float64)
    return Reading(net.objective, net.objective.program, (point, point), 0, {net.chain.layer(layer).weight})


def _radius(net: LevelNetwork, segment: LevelCurve, first: int) -> float:
    """How far what layer `first` reads may be from what the same weights give in real arithmetic, in Frobenius norm."""
    if first == 1:
        return 0.0
    total = 0.0
    for (form,) in _reading(net, segment.origin, first).entering():
        radius = form.settled().radius
        total += 0.0 if radius is None else float(radius.norm())  # their squares may underflow
    return total


def _exact(net: LevelNetwork, segment: LevelCurve) -> list[Bound]:
    """Bounds on the loss of the closed form: one on the whole of it, or, where it is convex in t, one for each end."""
    names = [layer.weight for layer in net.chain.layers]
    top, ends = names.index(segment.layers[-1].weight) + 1, (segment.origin, segment.goal)
    with torch.no_grad():
        if top < net.L:
            first, last = (_reading(net, p, top + 1) for p in ends)
            found = [bound_of_outputs(net.objective, first.along(last, *sorted((segment.lo, segment.hi))))]
        else:
            found = [bound_of_outputs(net.objective, _mixed(net, ends, s)) for s in (segment.lo, segment.hi)]
    if not all(isfinite(b.loss) for b in found):
        raise UnsupportedError("the loss", "the rounding of its closed form has no finite bound")
    return found


def _mixed(net: LevelNetwork, ends: tuple[Params, Params], s: float) -> Iterator[tuple[Form, Tensor]]:
    """The outputs (1 - s) z + s z' between those of two networks."""
    pair = [Reading(net.objective, net.objective.program, (p, p), 0) for p in (cast(p, torch.float64) for p in ends)]
    whole = Interval.between(0.0, 1.0)
    for (first, y), (last, _) in zip(*(r.outputs(whole) for r in pair), strict=True):
        yield line(first, last, s, s), y


def _measured(net: LevelNetwork, segment: LevelCurve, closed: list[Bound]) -> Level:
    objective = net.objective
    ends = [objective.outputs(_wide(segment, t)) for t in (0.0, 1.0)]
    scale = float(torch.stack(ends).abs().max()) or 1.0
    losses = [loss_of_outputs(objective, Z) for Z in ends]
    stray, deviation = _strays(objective, segment, ends) if all(map(isfinite, losses)) else (nan, nan)
    if not stray <= (1e-2 if _narrow(segment) else STRAY) * scale:
        why = f"a level curve whose outputs stray by {stray / scale:.1e} of their size from its closed form"
        return Level(Claim("measured", why))
    why = _in_words(ends, stray / scale)
    exact, noise = max(b.loss for b in closed), FACTOR * deviation
    above = max(b.loss - v for b, v in zip(closed, losses if len(closed) == 2 else [min(losses)], strict=True))
    error = _error(objective, ends, closed, FACTOR * stray + 1e-11 * (1 + scale))
    return Level(
        Claim("analytic", why), max(*losses, exact) + noise, deviation, stray / scale, error, exact, above + noise
    )


def _in_words(ends: list[Tensor], drift: float) -> str:
    how = "constant" if torch.equal(*ends) else "affine in t"
    return (
        f"the outputs on the data are {how} by the closed form of the level curve; its premises hold, and at {POINTS} "
        f"points the outputs differ from it by at most {drift:.1e} of their size"
    )


def _narrow(segment: LevelCurve) -> bool:
    return any(v.dtype != torch.float64 for v in segment.origin.values() if v.is_floating_point())


def _error(objective: Objective, ends: list[Tensor], closed: list[Bound], noise: float) -> float:
    """A bound on the error rate: of the closed form, and of the outputs at the ends within some noise."""
    marks = [unsure(objective, Form(Z, None, torch.full_like(Z, noise)), objective.data[1]) for Z in ends]
    return float(torch.stack([*marks, *(b.unsure for b in closed if b.unsure is not None)]).amax(0).mean())


def _strays(objective: Objective, segment: LevelCurve, ends: list[Tensor]) -> tuple[float, float]:
    """How far outputs, and a loss, are from the closed form at any of the points; NaN where any is not finite."""
    strays, deviations = [0.0], [0.0]
    for k in range(1, POINTS - 1):
        t = k / (POINTS - 1)
        Z, want = objective.outputs(_wide(segment, t)), torch.lerp(ends[0], ends[1], t)
        strays.append(float((Z - want).abs().max()))
        deviations.append(abs(loss_of_outputs(objective, Z) - loss_of_outputs(objective, want)))
    known = all(map(isfinite, (*strays, *deviations)))  # a maximum may pass over NaN
    return (max(strays), max(deviations)) if known else (nan, nan)


def _wide(segment: LevelCurve, t: float) -> Params:
    return cast(segment.at(t), torch.float64)
