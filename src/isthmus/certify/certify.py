"""``certify``: a bound on the loss over the whole continuous path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import torch

from isthmus.certify.claims import Claim, claim
from isthmus.errors import InputError, IsthmusError, UnsupportedError
from isthmus.evaluate.profile import profile
from isthmus.objective import Objective
from isthmus.params import Params, nonfinite
from isthmus.paths import Curve, Path, Segment


@dataclass(frozen=True)
class SegmentCertificate:
    """What holds on one segment: the claim, the bound on the loss there, and why.

    `claim`: "unchanged" | "convex" | "measured"; with "measured" the bound is only the largest sample.
    `deviation`: how far the loss at the control points strays from the first one, as evaluated; on an unchanged
    segment it is the rounding noise.
    """

    index: int
    claim: str
    bound: float
    why: str
    deviation: float
    label: str = ""


@dataclass(frozen=True)
class Certificate:
    """max_t L(t) <= `bound`, where every segment's claim is other than "measured" (then `proved` is True).

    The statement is about the function in real arithmetic, evaluated at the control points in `dtype`; `slack` is
    the allowance for the rounding of those evaluations that every bound includes.
    """

    segments: tuple[SegmentCertificate, ...]
    ends: tuple[float, float]
    dtype: str
    slack: float
    gap: float

    @property
    def bound(self) -> float:
        """The bound for the whole path."""
        return max(s.bound for s in self.segments)

    @property
    def excess(self) -> float:
        """bound - max(L(0), L(1))."""
        return self.bound - max(self.ends)

    @property
    def proved(self) -> bool:
        """Whether every segment is proved; one that is only measured makes it False."""
        return all(s.claim != "measured" for s in self.segments)

    @property
    def counts(self) -> dict[str, int]:
        """How many segments have each claim."""
        return dict(Counter(s.claim for s in self.segments))

    def unproved(self) -> list[int]:
        """The numbers of the segments that are only measured, counted from 0."""
        return [s.index for s in self.segments if s.claim == "measured"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in certificate.json."""
        return {
            "format": 1,
            "bound": self.bound,
            "excess": self.excess,
            "proved": self.proved,
            "ends": list(self.ends),
            "dtype": self.dtype,
            "slack": self.slack,
            "gap": self.gap,
            "counts": self.counts,
            "segments": [asdict(s) for s in self.segments],
        }


def certify(
    objective: Objective,
    path: Path,
    gap: float = 0.01,
    *,
    labels: Sequence[str] = (),
    num_points: int = 61,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Certificate:
    """Bound the loss over the continuous `path`, deriving every claim from the control points alone.

    A segment on which the outputs provably do not change, or are affine in t under a convex loss, is bounded by
    the loss at its control points; any other is sampled at `num_points` points and reported as "measured".
    Evaluation is in float64, on the widened weights. `gap` is the relative gap between bound and best sample at
    which a numerical bound may stop; exact claims have no gap. `labels` are copied to the segments for reading,
    never used. Cost: one pass over the data per control point, `num_points` per measured segment.

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
    if labels and len(labels) != len(path):
        raise InputError("labels", expected=f"one per segment ({len(path)})", got=len(labels))
    for i, point in enumerate(path.knots):
        if (name := nonfinite(point)) is not None:
            raise InputError(f"path, knot {i}", expected="finite weights", got=f"NaN or infinities in {name!r}")
    wide = objective.cast(torch.float64)
    known: dict[int, tuple[Params, float]] = {}

    def loss(point: Params) -> float:
        if id(point) not in known:  # the pair keeps the point alive, so its id stays its own
            known[id(point)] = (point, wide.loss(point))
        return known[id(point)][1]

    rows = []
    for i, segment in enumerate(path.segments):
        # control points shared by two segments are the same point of the path: evaluate them once
        control = _control(segment)
        if i and control[0] is not (last := _control(path.segments[i - 1])[-1]):
            known.setdefault(id(control[0]), (control[0], loss(last)))
        losses = [loss(p) for p in control]
        if not all(isfinite(v) for v in losses):
            raise InputError(f"path, segment {i}", expected="a finite loss at its control points", got=losses)
        found = _claim(objective, segment, control)
        bound = max(losses)
        if found.kind == "measured":
            sampled = profile(wide, Path((segment,)), num_points)
            if not isfinite(sampled.max):
                raise InputError(f"path, segment {i}", expected="a finite loss", got=sampled.max)
            bound = sampled.max
        elif found.kind == "unchanged" and wide.penalty is not None:
            found = Claim("convex", found.why + "; the penalty is convex in the weights")
        rows.append((i, found, bound, max(losses) - min(losses)))
        progress("certifying", i + 1, len(path))
    allowance = 256 * torch.finfo(torch.float64).eps
    slack = allowance * max(1.0, *(bound for _, _, bound, _ in rows))
    segments = tuple(
        SegmentCertificate(
            i, c.kind, bound + (0 if c.kind == "measured" else slack), c.why, deviation, str(_at(labels, i))
        )
        for i, c, bound, deviation in rows
    )
    ends = (loss(_control(path.segments[0])[0]), loss(_control(path.segments[-1])[-1]))
    return Certificate(segments, ends, "float64", slack, gap)


def _at(labels: Sequence[str], i: int) -> str:
    return labels[i] if labels else ""


def _control(segment: Segment) -> tuple[Params, ...]:
    return segment.control if isinstance(segment, Curve) else (segment.start, segment.end)


def _claim(objective: Objective, segment: Segment, control: tuple[Params, ...]) -> Claim:
    if not isinstance(segment, Curve):
        return Claim("measured", f"no claim is known for segments of type {type(segment).__name__}")
    try:
        program = objective.program
    except IsthmusError as e:
        return Claim("measured", f"the network's graph could not be read: {e}")
    try:
        structure = objective.structure
    except UnsupportedError:
        structure = None
    return claim(control, program, structure, objective.convex)
