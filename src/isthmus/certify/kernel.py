"""A path under proof: its losses, its claims and its bounds, each computed once, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from math import inf, isfinite

import torch
from torch import Tensor

from isthmus.certify.affine import Interval, Reading
from isthmus.certify.analytic import Level, level
from isthmus.certify.bounds import Bound, Bounds
from isthmus.certify.claims import Claim, claim
from isthmus.certify.polynomials import Polynomials, degree_of
from isthmus.certify.widened import TROUBLE, evaluation, first_line, flushes, without_raw_errors
from isthmus.errors import InputError, IsthmusError, UnsupportedError
from isthmus.evaluate.batchnorm import statistics
from isthmus.evaluate.profile import profile
from isthmus.objective import Objective
from isthmus.objective.data import arguments, rows
from isthmus.objective.matching import check_own
from isthmus.objective.source import Held
from isthmus.params import Params, cast, check_moves, equal, nonfinite
from isthmus.paths import Curve, LevelCurve, Path, Segment
from isthmus.program.export import Program
from isthmus.structure import Structure
from isthmus.structure.liveness import changed_tensors, cleared, live_units

READINGS = 4
"""Segments whose constant values are kept at a time, together within the objective's memory."""
ROUNDED = 1e-12
"""The relative difference of a sample from a bound that is never taken for a contradiction."""
SAME_GRAPH = 1e-6
"""The difference of outputs, relative to the largest, up to which a graph is taken for that of its module."""


class Kernel:
    """A path under proof. A point that two segments share is evaluated, and bounded, once."""

    def __init__(self, objective: Objective, path: Path, model: str = "box") -> None:
        for segment in path.segments:
            control = segment.control if isinstance(segment, Curve) else (segment.start, segment.end)
            check_moves(control, objective.idle, "path")
        check_own(path.start, objective.check(path.start, "path"))
        self.objective, self.path, self.model = objective, path, model
        self.evaluation = evaluation(objective, path.start)
        self.wide = self.evaluation.objective
        self.obstacle = self.evaluation.problem
        if flushes():
            self.obstacle = (
                "denormal numbers are taken for zero here, so that no rounding is known; write "
                "torch.set_flush_denormal(False) before the first operation"
            )
        self._losses: dict[int, tuple[Params, float]] = {}
        self._points: dict[int, tuple[Params, Bound]] = {}
        self._levels: dict[int, tuple[LevelCurve, Level]] = {}
        self._defined: dict[int, tuple[Segment, bool]] = {}
        self.bounds = lru_cache(READINGS)(self._make_bounds)
        self._curve = lru_cache(READINGS)(self._make_curve)

    @property
    def dtype(self) -> str:
        """The type that everything is evaluated in."""
        return str(self.wide.dtype).removeprefix("torch.")

    # -- points

    def control(self, i: int) -> tuple[Params, ...]:
        """The control points of segment i; a point that it shares with the one before is the same object."""
        segment = self.path.segments[i]
        control = segment.control if isinstance(segment, Curve) else (segment.start, segment.end)
        return control if i == 0 else (self._end(i - 1), *control[1:])

    def _end(self, i: int) -> Params:
        segment = self.path.segments[i]
        return segment.control[-1] if isinstance(segment, Curve) else segment.end

    def segment(self, i: int) -> Segment:
        """Segment i on the widened control points, so that its points round as float64 does."""
        return self._curve(i) if isinstance(self.path.segments[i], Curve) else self.path.segments[i]

    def _make_curve(self, i: int) -> Curve:
        return Curve(tuple(self.evaluation.params(p) for p in self.control(i)))

    def point(self, i: int, t: float) -> Params:
        """The point at t on segment i."""
        return self.evaluation.params(self.segment(i).at(t))

    def loss_at(self, params: Params) -> float:
        """The loss at a point as it is evaluated, remembered by identity."""
        if id(params) not in self._losses:  # the pair keeps the point alive, so its id stays its own
            self._losses[id(params)] = (params, self.wide.loss(self.evaluation.params(params)))
        return self._losses[id(params)][1]

    def ends(self, i: int) -> tuple[float, float]:
        """The losses at both ends of segment i."""
        control = self.control(i)
        losses = (self.loss_at(control[0]), self.loss_at(control[-1]))
        if not all(isfinite(v) for v in losses):
            raise InputError(f"path, segment {i}", expected="a finite loss at its ends", got=losses)
        return losses

    def loss(self, i: int, t: float) -> float:
        """The loss at t on segment i."""
        return self.wide.loss(self.point(i, t))

    # -- claims

    @cached_property
    def structure(self) -> Structure | None:
        """The units of the network, where they are known; zero weights do not silence what is infinite."""
        if nonfinite(self.path.start):
            return None
        try:
            return self.objective.structure
        except (*TROUBLE, UnsupportedError):
            return None

    def units(self, segment: Segment) -> Structure | None:
        """The units, where those that nothing reads have a value all along the segment: 0 times what overflows, or has
        none, is no number."""
        structure = self.structure
        if structure is None or not isinstance(segment, Curve):
            return None
        if id(segment) not in self._defined:
            self._defined[id(segment)] = (segment, self._is_defined(segment, structure))
        return structure if self._defined[id(segment)][1] else None

    def _is_defined(self, segment: Curve, structure: Structure) -> bool:
        """Whether forms of all units are finite on the whole segment, where weights of dead ones are to be left out."""
        control = [cast(p, torch.float64) for p in segment.control]
        simple = cleared(control, live_units(control, structure), structure)
        if not changed_tensors(control) or all(map(equal, simple, control)):
            return True
        quick = self._at_once is not None and self._has_values(control, *self._at_once)
        return quick or self._has_values(control, self.wide)

    @cached_property
    def _at_once(self) -> tuple[Objective, Tensor] | None:
        """All examples as one, with inputs that are as uncertain as the data are spread."""
        x = self.wide.data[0]
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return None
        low, high = x.amin(0, keepdim=True), x.amax(0, keepdim=True)
        one = self.wide.part(slice(0, 1))
        one.source = Held((low + high) / 2, one.data[1], one.source.batch)
        return one, high.double() - low.double()

    def _has_values(self, control: Sequence[Params], objective: Objective, spread: Tensor | None = None) -> bool:
        """Whether forms of all values are finite on the whole segment: what is not stays until the outputs."""
        try:
            with without_raw_errors("its graph"), torch.no_grad():
                reading = Reading(objective, self.program, control, 0, spread=spread)
                outputs = reading.outputs(Interval.between(0.0, 1.0))
                return all(bool(z.settled().size().isfinite().all()) for z, _ in outputs)
        except UnsupportedError:
            return False

    @cached_property
    def program(self) -> Program:
        """The network's graph, which computes in whatever type it is given."""
        try:
            return self.objective.program
        except (*TROUBLE, IsthmusError) as e:
            raise UnsupportedError("the network's graph", f"it could not be read: {first_line(e)}") from None

    def claim(self, segment: Segment) -> Claim:
        """Why the loss cannot rise on this segment; "measured" where no exact reason is known."""
        if self.obstacle:
            return Claim("measured", self.obstacle)
        if isinstance(segment, LevelCurve):
            return self.level(segment).claim
        if not isinstance(segment, Curve):
            return Claim("measured", f"no claim is known for segments of type {type(segment).__name__}")
        try:
            with without_raw_errors("the network's graph"):
                found = claim(segment.control, self.program, self.units(segment), self.objective.convex)
        except UnsupportedError as e:
            return Claim("measured", str(e))
        if found.kind == "unchanged" and self.wide.penalty is not None:
            found = replace(found, kind="convex", why=found.why + "; the penalty is convex in the weights")
        if self.evaluation.widened:
            found = replace(found, why=found.why + "; what the module computes in narrower types was taken in float64")
        if statistics(self.objective):
            found = replace(found, why=found.why + "; running statistics are those of the path, not computed again")
        return found

    def level(self, segment: LevelCurve) -> Level:
        """What holds on a level curve, found out once."""
        if id(segment) not in self._levels:
            try:
                with without_raw_errors("the level curve"):
                    found = level(self.wide, segment)
            except UnsupportedError as e:
                found = Level(Claim("measured", str(e)))
            self._levels[id(segment)] = (segment, found)
        return self._levels[id(segment)][1]

    # -- bounds

    def bound(self, i: int, start: float, end: float, model: str = "") -> Bound:
        """A bound on the loss of segment i over [start, end], by affine forms; `model`: default that of the kernel."""
        with without_raw_errors("its graph"):
            return self.bounds(i).over(start, end, followed=(model or self.model) == "chord")

    def _make_bounds(self, i: int) -> Bounds | Polynomials:
        found = self.forms(i)
        degree = degree_of(found)
        return Polynomials(found, degree) if degree else found

    def forms(self, i: int) -> Bounds:
        """Bounds of segment i by affine forms, whatever else there may be for it."""
        if self.obstacle or not isinstance(self.path.segments[i], Curve):
            raise UnsupportedError("its graph", self.obstacle or "affine forms are about Bezier curves alone")
        control = [cast(p, torch.float64) for p in self.control(i)]
        structure = self.units(self.path.segments[i])
        simple = None if structure is None else cleared(control, live_units(control, structure), structure)
        return Bounds(self.wide, self.program, control, simple, self.wide.memory // READINGS)

    def bound_at(self, params: Params) -> Bound:
        """A bound on the loss at a point, its rounding included; remembered by identity."""
        if id(params) not in self._points:
            with without_raw_errors("its graph"):
                point = cast(params, torch.float64)
                found = Bounds(self.wide, self.program, (point, point), None, 0).over(0.0, 1.0)
            self._points[id(params)] = (params, found)
        return self._points[id(params)][1]

    def exact(self, i: int, found: Claim) -> list[Bound]:
        """Bounds at points of segment i, the largest of which bounds the loss on it by an exact claim.

        Where nothing changes one point will do. Where weights of equal units were added up, and the sums rounded, it is
        the network with these sums that is bounded, over all that they may be.
        """
        control = self.control(i)
        if found.lost:
            points = list(zip(control, found.points, strict=True))[: 1 if found.kind == "unchanged" else None]
            several = [self._bound_near(p, q, found) for p, q in points]
        elif found.kind == "unchanged":
            several = [self.bound_at(next((p for p in control if id(p) in self._points), control[0]))]
        else:
            several = [self.bound_at(p) for p in control]
        if not all(isfinite(b.loss) for b in several):
            raise UnsupportedError("its graph", "the rounding of the loss at a control point has no finite bound")
        return several

    def _bound_near(self, point: Params, summed: Params, found: Claim) -> Bound:
        with without_raw_errors("its graph"):
            p, q = (cast(v, torch.float64) for v in (point, summed))
            return Bounds(self.wide, self.program, (p, p), (q, q), 0, found.lost).over(0.0, 1.0)

    # -- contradictions

    def confront(self, params: Params, value: float, bound: float, where: str) -> None:
        """Refuse a bound that the loss evaluated at a point contradicts by more than rounding explains.

        Errors: ``UnsupportedError`` where the graph is not that of the module; otherwise an internal error.
        """
        if value <= bound * (1 + ROUNDED):
            return
        own = self.bound_at(params)
        rounding = 2 * max(own.loss - own.estimate, 0.0) if isfinite(own.loss) else inf
        if value <= bound + rounding + ROUNDED * abs(bound):
            return
        if (stray := self.stray(params)) > SAME_GRAPH:
            raise UnsupportedError(
                "its graph", f"its outputs {where} differ from those of the module, by {stray:.1e} of their size"
            )
        cause = "" if self.wide.named_loss else ", or the loss is not convex in the outputs, though declared so"
        raise IsthmusError(
            f"internal error{cause}: the loss {where} is {value!r}, above the bound {bound!r} that was derived for it; "
            "please report it, with the network and the path"
        )

    def stray(self, params: Params) -> float:
        """How far the outputs of the graph are from those of the module at a point, relative to the largest."""
        point, (x, y) = self.wide.check(self.evaluation.params(params)), self.wide.data
        away = size = 0.0
        with torch.no_grad():
            for k in range(0, len(y), self.wide.chunk):
                part = rows(x, slice(k, k + self.wide.chunk))
                positional, named = arguments(part)
                z, graph = self.wide.forward(point, part), self.program.run(point, *positional, *named.values())
                away, size = max(away, float((z - graph).abs().max())), max(size, float(z.abs().max()))
        return away / size if size else away

    def samples(self, i: int, num_points: int) -> list[tuple[float, float, float]]:
        """(t, loss, error rate) at so many points of segment i."""
        if self.evaluation.widened:
            at = [k / (num_points - 1) for k in range(num_points)]
            return [(t, *self.wide.measure(self.point(i, t))) for t in at]
        found = profile(self.wide, Path((self.segment(i),)), num_points, bn="interpolate")
        return list(zip(found.t.tolist(), found.loss.tolist(), found.error.tolist(), strict=True))
