"""``certify``: a bound on the loss over the whole continuous path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from math import isfinite, isnan

import torch
from torch import Tensor

from isthmus.certify.analytic import Level, level
from isthmus.certify.bounds import Bound, Bounds, unsure
from isthmus.certify.branch import Search, search
from isthmus.certify.certificate import Certificate, SegmentCertificate
from isthmus.certify.claims import Claim, claim
from isthmus.certify.cost import in_proportion
from isthmus.certify.forms import Form
from isthmus.errors import InputError, IsthmusError, UnsupportedError
from isthmus.evaluate.profile import profile
from isthmus.examples import rows
from isthmus.objective import Objective
from isthmus.params import Params, cast, nonfinite
from isthmus.paths import Curve, LevelCurve, Path, Segment
from isthmus.structure import Structure
from isthmus.structure.liveness import cleared, live_units

BUDGET = 400
"""Sub-intervals whose bounds an experiment may compute, where it does not say otherwise."""
READINGS = 4
"""Segments whose constant values are kept at a time, together within the objective's memory."""


def certify(
    objective: Objective,
    path: Path,
    gap: float = 0.01,
    *,
    budget: int | None = None,
    labels: Sequence[str] = (),
    num_points: int = 61,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Certificate:
    """Bound the loss over the continuous `path`, deriving every claim from the control points alone.

    A segment on which the outputs provably do not change, or are affine in t under a convex loss, is bounded by
    the loss at its control points ("unchanged", "convex"). Any other Bezier segment is cut into sub-intervals of t, and
    affine forms in t go through the network ("bounded"); the sub-interval with the largest bound, on whichever segment,
    is split until bound <= (1 + gap) * (largest loss seen), or bound - (largest loss seen) <= 1e-9, or `budget`
    bounds were computed. On a ``LevelCurve`` the outputs are affine in t by its closed form ("analytic"): its premises
    are checked again, roundings in the layers below and above it are bounded, and those of the curve's own points are
    measured at 33 of them. A network with an operation that has no rule, a loss not declared convex, or a segment of
    another kind, is sampled at `num_points` points and "measured". Everything is evaluated in float64, on the widened
    weights. `labels` are copied to the segments for reading, never used.

    Cost: one pass over the data per control point, `num_points` per measured segment, about six to thirty per
    sub-interval (a line between two small trained networks takes 30 to 80 sub-intervals, deep ones thousands).
    ``budget=None`` allows as many sub-intervals as cost ten times the operations of a profile with `num_points`
    points; they are counted, not timed, so the same call gives the same certificate. Where that is not enough,
    ``certificate.close`` is False, and ``certificate.summary`` says how far the bound is from the largest loss seen
    and which budget is expected to do. ``budget=0`` makes the exact claims only.

    Errors: a path that holds NaN or infinities, or on which the loss is not finite, gets no certificate.

    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> path = Path.through([{"weight": torch.eye(2)}, {"weight": -torch.eye(2)}])
    >>> c = certify(objective, path)
    >>> c.proved, c.segments[0].claim, round(c.bound, 4), round(c.excess, 9)
    (True, 'convex', 1.3133, 0.0)
    """
    if not gap > 0:
        raise InputError("gap", expected="a number > 0", got=gap)
    if budget is not None and budget < 0:
        raise InputError("budget", expected="a number of sub-intervals >= 0", got=budget)
    if labels and len(labels) != len(path):
        raise InputError("labels", expected=f"one per segment ({len(path)})", got=len(labels))
    for i, point in enumerate(path.knots):
        if (name := nonfinite(point)) is not None:
            raise InputError(f"path, knot {i}", expected="finite weights", got=f"NaN or infinities in {name!r}")
    kernel = Kernel(objective, path)
    found = []
    for i, segment in enumerate(path.segments):
        found.append((kernel.claim(segment), kernel.ends(i)))
        progress("certifying", i + 1, len(path))
    open_ = [i for i, (c, _) in enumerate(found) if c.kind == "measured"]
    numerical = [i for i in open_ if isinstance(path.segments[i], Curve)] if budget != 0 else []
    bound = cache(kernel.bound)  # what is bounded to count its cost need not be bounded again
    if budget is None:
        budget = in_proportion(kernel, numerical, bound, num_points, READINGS) if numerical else 0
    result = search(
        numerical, bound, kernel.loss, kernel.ends,
        best=max(max(ends) for _, ends in found), gap=gap, budget=budget, progress=progress,
    )  # fmt: skip
    segments = []
    for i, (c, _) in enumerate(found):
        if i in result.pieces:
            row = _bounded(kernel, i, c, result)
        elif c.kind == "analytic":
            row = _analytic(kernel, i, c)
        elif c.kind == "measured":
            why = f"{c.why}; {result.refused[i]}" if i in result.refused else c.why
            row = _measured(kernel, i, why, num_points)
        else:
            row = _exact(kernel, i, c)
        segments.append(row if not labels else _labelled(row, str(labels[i])))
    exact = ("unchanged", "convex", "analytic")
    slack = max([kernel.slack(s.bound) for s in segments if s.claim in exact], default=0.0)
    if result.pieces:
        slack = max(slack, _rounding(kernel, result))
    ends = (kernel.ends(0)[0], kernel.ends(len(path) - 1)[1])
    return Certificate(tuple(segments), ends, "float64", slack, gap, result.evaluations, budget, result.spent)


@dataclass(frozen=True)
class Point:
    """The loss at a point, and per example whether its label may not be the largest output there (NaN: undefined)."""

    loss: float
    unsure: Tensor


class Kernel:
    """A path under proof: its losses and claims, each computed once, in float64."""

    def __init__(self, objective: Objective, path: Path) -> None:
        self.objective, self.path, self.wide = objective, path, objective.cast(torch.float64)
        self.known: dict[int, tuple[Params, Point]] = {}
        self.levels: dict[int, tuple[LevelCurve, Level]] = {}
        self.bounds = lru_cache(READINGS)(self._make_bounds)

    def control(self, i: int) -> tuple[Params, ...]:
        """The control points of segment i; a point that it shares with the one before is the same object."""
        segment = self.path.segments[i]
        control = segment.control if isinstance(segment, Curve) else (segment.start, segment.end)
        return control if i == 0 else (self._end(i - 1), *control[1:])

    def _end(self, i: int) -> Params:
        segment = self.path.segments[i]
        return segment.control[-1] if isinstance(segment, Curve) else segment.end

    def point(self, params: Params) -> Point:
        """The loss and the unsure examples at a point, remembered by identity."""
        if id(params) not in self.known:  # the pair keeps the point alive, so its id stays its own
            self.known[id(params)] = (params, evaluate(self.wide, params))
        return self.known[id(params)][1]

    def ends(self, i: int) -> tuple[float, float]:
        """The losses at both ends of segment i."""
        control = self.control(i)
        losses = (self.point(control[0]).loss, self.point(control[-1]).loss)
        if not all(isfinite(v) for v in losses):
            raise InputError(f"path, segment {i}", expected="a finite loss at its ends", got=losses)
        return losses

    def loss(self, i: int, t: float) -> float:
        """The loss at t on segment i."""
        return self.wide.loss(cast(self.path.segments[i].at(t), torch.float64))

    def slack(self, bound: float) -> float:
        """The rounding allowed for in losses that were evaluated at control points."""
        return 256 * torch.finfo(torch.float64).eps * max(1.0, bound)

    @cached_property
    def structure(self) -> Structure | None:
        """The units of the network, where they are known."""
        try:
            return self.objective.structure
        except UnsupportedError:
            return None

    def claim(self, segment: Segment) -> Claim:
        """Why the loss cannot rise on this segment; "measured" where no exact reason is known."""
        if isinstance(segment, LevelCurve):
            return self.level(segment).claim
        if not isinstance(segment, Curve):
            return Claim("measured", f"no claim is known for segments of type {type(segment).__name__}")
        try:
            program = self.objective.program
        except IsthmusError as e:
            return Claim("measured", f"the network's graph could not be read: {e}")
        found = claim(segment.control, program, self.structure, self.objective.convex)
        if found.kind == "unchanged" and self.wide.penalty is not None:
            return Claim("convex", found.why + "; the penalty is convex in the weights")
        return found

    def level(self, segment: LevelCurve) -> Level:
        """What holds on a level curve, found out once."""
        if id(segment) not in self.levels:
            self.levels[id(segment)] = (segment, level(self.wide, segment))
        return self.levels[id(segment)][1]

    def bound(self, i: int, start: float, end: float) -> Bound:
        """A bound on the loss of segment i over [start, end], by affine forms."""
        return self.bounds(i).over(start, end)

    def _make_bounds(self, i: int) -> Bounds:
        try:
            program = self.wide.program
        except IsthmusError as e:
            raise UnsupportedError("the network's graph", str(e)) from e
        control = [cast(p, torch.float64) for p in self.control(i)]
        structure = self.structure
        simple = None if structure is None else cleared(control, live_units(control, structure), structure)
        return Bounds(self.wide, program, control, simple, self.wide.memory // READINGS)


def evaluate(objective: Objective, params: Params) -> Point:
    """The loss at a point and the unsure examples: those whose margin is not above what rounding may have moved."""
    wide, marks = objective.check(cast(params, objective.dtype)), []
    x, y = objective.data

    def outputs() -> Iterator[tuple[Tensor, Tensor]]:
        for k in range(0, len(y), objective.chunk):
            index = slice(k, k + objective.chunk)
            z, labels = objective.forward(wide, rows(x, index)), y[index]
            noise = z.abs().flatten(1).amax(1).add_(1).mul_(1e-11).view(-1, *(1,) * (z.dim() - 1)).expand_as(z)
            marks.append(unsure(objective, Form(z, None, noise.contiguous()), labels))
            yield z, labels

    with torch.no_grad():
        loss, _ = objective.of_outputs(outputs())
    return Point(loss + objective.penalty_of(wide), torch.cat(marks))


def _exact(kernel: Kernel, i: int, found: Claim) -> SegmentCertificate:
    """The bound of a segment on which the outputs do not change, or are affine: the largest at its control points.

    An example that is right at every control point, by a margin, is right all along: its margins are affine there.
    """
    points = [kernel.point(p) for p in kernel.control(i)]
    losses = [p.loss for p in points]
    if not all(isfinite(v) for v in losses):
        raise InputError(f"path, segment {i}", expected="a finite loss at its control points", got=losses)
    error = float(torch.stack([p.unsure for p in points]).amax(0).mean())
    ends = kernel.ends(i)
    at = float(ends[1] > ends[0])
    bound = max(losses) + kernel.slack(max(losses))
    deviation = max(losses) - min(losses)
    return SegmentCertificate(i, found.kind, bound, found.why, deviation, "", at, max(ends), _defined(error))


def _analytic(kernel: Kernel, i: int, found: Claim) -> SegmentCertificate:
    """The bound of a level curve: the larger end, and what rounding may add."""
    segment = kernel.path.segments[i]
    assert isinstance(segment, LevelCurve)  # noqa: S101
    known, ends = kernel.level(segment), kernel.ends(i)
    bound, at = max(known.bound, *ends), float(ends[1] > ends[0])
    bound += kernel.slack(bound)
    return SegmentCertificate(
        i, "analytic", bound, found.why, known.deviation, "", at, max(ends), _defined(known.error)
    )


def _bounded(kernel: Kernel, i: int, found: Claim, result: Search) -> SegmentCertificate:
    pieces, sample, ends = result.pieces[i], result.samples[i], kernel.ends(i)
    return SegmentCertificate(
        i,
        "bounded",
        max(p.bound for p in pieces),
        f"{found.why}; bounded by affine forms in t on {len(pieces)} sub-intervals",
        abs(ends[1] - ends[0]),
        "",
        sample.t,
        sample.value,
        _defined(max(p.error for p in pieces)),
        tuple((p.start, p.end, p.bound) for p in pieces),
    )


def _measured(kernel: Kernel, i: int, why: str, num_points: int) -> SegmentCertificate:
    sampled = profile(kernel.wide, Path((kernel.path.segments[i],)), num_points)
    if not isfinite(sampled.max):
        raise InputError(f"path, segment {i}", expected="a finite loss", got=sampled.max)
    ends, at = kernel.ends(i), float(sampled.t[sampled.loss.argmax()])
    return SegmentCertificate(i, "measured", sampled.max, why, abs(ends[1] - ends[0]), "", at, sampled.max)


def _labelled(row: SegmentCertificate, label: str) -> SegmentCertificate:
    return SegmentCertificate(**{**vars(row), "label": label})


def _defined(error: float) -> float | None:
    return None if isnan(error) else error


def _rounding(kernel: Kernel, result: Search) -> float:
    """What rounding adds to a bound: the forms of the best sample, on a segment that stays there, less its loss."""
    sample = max(result.samples.values(), key=lambda s: s.value)
    point = cast(kernel.path.segments[sample.segment].at(sample.t), torch.float64)
    still = Bounds(kernel.wide, kernel.wide.program, (point, point), None, 0)
    return max(still.over(0.0, 1.0).loss - sample.value, 0.0)
