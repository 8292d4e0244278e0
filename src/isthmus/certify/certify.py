"""``certify``: a bound on the loss over the whole continuous path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite, isnan

import torch

from isthmus.certify.branch import Interval, Search, SearchTask, search
from isthmus.certify.certificate import NO_BOUND, Certificate, SegmentCertificate
from isthmus.certify.claims import Claim
from isthmus.certify.cost import PROFILES
from isthmus.certify.kernel import Kernel
from isthmus.certify.model import MODELS, NOTHING, BoundPlan, plan
from isthmus.certify.remembered import Remembered, decides
from isthmus.errors import InputError, UnsupportedError
from isthmus.evaluate.profile import check_points
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.params import nonfinite_on
from isthmus.paths import Curve, HasPath, LevelCurve, Path, path_of
from isthmus.training.memory import Memory, forget, memory_of

NARROWER = 6
"""How often a sixteenth of a sub-interval is taken to find out what makes its bound dear."""
BUDGET = 100.0
"""What the proofs of an experiment may cost, in profiles, where it does not say otherwise."""


Elsewhere = Callable[[Remembered, str, Sequence[Interval], Iterator[Interval]], None]
"""Puts bounds of a model into what is remembered: over these intervals, and over some that may be asked for later."""


@dataclass(frozen=True)
class Wanted:
    """The options of ``certify``."""

    gap: float
    model: str
    budget: float | None
    labels: Sequence[str]
    num_points: int
    memory: Memory | os.PathLike[str] | str
    progress: Callable[[str, int, int], None]


def certify(
    objective: Objective,
    path: Path | HasPath,
    gap: float = 0.01,
    *,
    model: str = "auto",
    budget: float | None = None,
    labels: Sequence[str] = (),
    num_points: int = 61,
    memory: Memory | os.PathLike[str] | str = forget,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Certificate:
    """Bound the loss over the continuous `path`, deriving every claim from the control points alone.

    **What is proved** is about the network in real arithmetic: the loss of the function that the module's operations
    define, with the weights of the path, widened to float64, as exact numbers (an RMSNorm without an eps: with that of
    either type). It is computed in float64, and the bound allows for every rounding and underflow on the way, also for
    that of the losses that an exact claim rests on. Assumed are IEEE arithmetic with denormal numbers; torch's
    elementary functions to 1e-13; a loss given as a function to 1e-12, and that it is convex where it was declared so;
    see "analytic" for level curves. Nothing is said about the rounding of a computation in a narrower type, whether of
    the user's (float32 on another machine) or inside the module: casts and float32 constants in a forward pass are
    taken in float64. Where a value overflows, or may not be defined (a logarithm of what may be negative, a variance
    that may be below 0), there is no bound, also where a later operation is bounded: of no point of an interval that
    has one is the loss, as float64 computes it, NaN or infinite. A choice (``topk``, ``sort``, ``argmax``, a
    comparison) is followed on intervals on which it comes out the same; a segment on which it changes has no bound.

    A segment on which the outputs provably do not change, or are affine in t under a convex loss, is bounded by the
    loss at its control points, which affine forms bound ("unchanged", "convex"). Any other Bezier segment is cut into
    sub-intervals of t, and affine forms in t go through the network ("bounded"); where the outputs are polynomials in t
    of degree 16 or less, as those of linear networks are, their Bernstein coefficients are bounded instead, for which
    the network is evaluated at as many points and one more, whatever the gap. The sub-interval with the largest
    bound, on whichever segment, is split until bound <= (1 + gap) * (largest loss seen), or bound - (largest loss seen)
    <= 1e-9, or `budget` bounds were computed. On a ``LevelCurve`` the outputs are affine in t by its closed form
    ("analytic"): its premises are checked again, roundings in the layers below and above it are bounded, and those of
    the curve's own points are measured at 33 of them. A network with an operation that has no rule, a loss not declared
    convex, or a segment of another kind, is sampled at `num_points` points and "measured", and `why` names the
    operation; so is a segment with an exact claim whose network has an operation without a rule, because the rounding
    of its losses is then unknown. `labels` (default: those of a connection) are copied to the segments for
    reading, never used.

    `model`: how sub-intervals are bounded, "box" (remainders grow with the moduli of the weights), "chord" (they are
    followed back from the loss, with their signs), or "auto": the one that a trial on one sub-interval promises to cost
    less in all. Both are proofs. What was used, and which operations make a bound dear, is in ``certificate.model`` and
    ``certificate.sources``.

    Cost: about four passes over the data per control point of exact claims, one per end of others, `num_points` per
    measured segment, about six to thirty per sub-interval (a line between two small trained networks takes 10 to 60
    sub-intervals, deep ones hundreds). `budget` is what sub-intervals may cost, in profiles with `num_points` points:
    30 where none is given. Operations are counted, not timed, so the same call gives the same certificate. Where the
    trial expects more than the budget, `progress` says so before it is spent; where it was not enough,
    ``certificate.close`` is False, and ``certificate.summary`` says how far the bound is from the largest loss seen and
    which budget is expected to do. ``budget=0`` makes the exact claims only.

    `memory`: a folder (or a ``Memory`` of this call alone), from which the same call goes on after it was killed, to
    the same certificate; also one with a larger `budget`, or another `gap`. With it, Ctrl-C ends the search, and the
    certificate says what was proved until then: ``certificate.stopped``.

    Errors: a path that holds NaN or infinities, or on which the loss is not finite, gets no certificate; nor does one
    along which integer tensors change that the outputs depend on. Every loss that is evaluated on the way is compared
    with its bound; one that is above it by more than rounding explains is an internal error.

    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> path = Path.through([{"weight": torch.eye(2)}, {"weight": -torch.eye(2)}])
    >>> c = certify(objective, path)
    >>> c.proved, c.segments[0].claim, round(c.bound, 4), round(c.excess, 9)
    (True, 'convex', 1.3133, 0.0)
    """
    check_kinds(certify, locals())
    return proved(objective, path, Wanted(gap, model, budget, labels, num_points, memory, progress))


def proved(
    objective: Objective, path: Path | HasPath, wanted: Wanted, elsewhere: Elsewhere | None = None
) -> Certificate:
    """The certificate of ``certify``; `elsewhere` may compute bounds before they are asked for."""
    gap, num_points, memory, progress = wanted.gap, wanted.num_points, wanted.memory, wanted.progress
    labels = wanted.labels or getattr(path, "labels", ())
    path = path_of(path)
    check_search(gap, wanted.budget, num_points)
    _check(path, wanted.model, labels)
    kernel = Kernel(objective, path)
    found = []
    for i, segment in enumerate(path.segments):
        found.append(kernel.claim(segment))
        kernel.ends(i)  # refuses losses that are not finite
        progress("certifying", i + 1, len(path))
    numerical = _numerical(kernel, found) if wanted.budget != 0 else []
    profiles = _profiles(numerical, wanted.budget)
    known = Remembered(kernel, memory_of(memory, lambda: decides(kernel, num_points)))
    try:
        ways, result = _searched(known, numerical, wanted, profiles, elsewhere)
    finally:
        known.save()
    if result.interrupted and (memory is forget or not result.pieces):
        raise KeyboardInterrupt
    rows, slacks = zip(*(_row(kernel, i, c, result, num_points) for i, c in enumerate(found)), strict=True)
    segments = tuple(map(_labelled, rows, labels or [""] * len(rows)))
    ends = (kernel.ends(0)[0], kernel.ends(len(path) - 1)[1])
    slack = max(*slacks, _rounding(kernel, result))
    return Certificate(
        segments, ends, kernel.dtype, slack, gap, result.evaluations, profiles, result.spent,
        ways.rate.profiles(result.evaluations), ways.model, ways.predicted, _sources(kernel, result),
        result.interrupted,
    )  # fmt: skip


def _searched(
    known: Remembered, numerical: Sequence[int], wanted: Wanted, profiles: float, elsewhere: Elsewhere | None
) -> tuple[BoundPlan, Search]:
    """Bounds over sub-intervals, by the model that a trial promises to cost less."""
    kernel, gap, progress = known.kernel, wanted.gap, wanted.progress
    best = max(max(kernel.ends(i)) for i in range(len(kernel.path)))
    ways = plan(known, numerical, wanted.model, gap, best, wanted.num_points) if numerical else NOTHING
    allowed = ways.rate.bounds(profiles)
    if ways.predicted > profiles:
        progress(f"bounding ({ways.foreseen(profiles, gap)})", 0, allowed)
    ahead = None if elsewhere is None else partial(elsewhere, known, ways.model)
    asked = SearchTask(ways.bound, known.loss, kernel.ends, partial(confront, kernel), ahead)
    return ways, search(numerical, asked, best=best, gap=gap, budget=allowed, first=ways.first, progress=progress)


def _profiles(numerical: Sequence[int], budget: float | None) -> float:
    """What bounds over sub-intervals may cost, where there are any."""
    if not numerical:
        return 0.0
    return PROFILES if budget is None else budget


def _sources(kernel: Kernel, result: Search) -> dict[str, float]:
    """How much of the distance of the worst sub-interval's bound comes from which operation, the dearest first."""
    pieces = [piece for several in result.pieces.values() for piece in several]
    if not pieces:
        return {}
    worst = max(pieces, key=lambda p: p.bound)
    middle, half = (worst.start + worst.end) / 2, (worst.end - worst.start) / 2
    for _ in range(NARROWER):
        shares = kernel.bound(worst.segment, middle - half, middle + half, "chord").shares
        total = sum(shares.values())
        if 0 < total < inf:
            ordered = sorted(shares.items(), key=lambda kv: -kv[1])
            return {name: value / total for name, value in ordered}
        half /= 16  # where a bound is useless its parts are not known
    return {}


def _numerical(kernel: Kernel, found: Sequence[Claim]) -> list[int]:
    """The segments that affine forms may bound: Bezier curves without an exact claim."""
    several = enumerate(zip(kernel.path.segments, found, strict=True))
    return [i for i, (s, c) in several if c.kind == "measured" and isinstance(s, Curve) and not kernel.obstacle]


def check_search(gap: float, budget: float | None, num_points: int) -> None:
    """Refuse what no search for bounds can be asked."""
    if not 0 < gap < inf:
        raise InputError("gap", expected="a number > 0", got=gap)
    if budget is not None and not 0 <= budget < inf:
        raise InputError("budget", expected="a number of profiles >= 0", got=budget)
    check_points(num_points)


def _check(path: Path, model: str, labels: Sequence[str]) -> None:
    if model not in ("auto", *MODELS):
        raise InputError("model", expected=" or ".join(("auto", *MODELS)), got=model)
    if labels and len(labels) != len(path):
        raise InputError("labels", expected=f"one per segment ({len(path)})", got=len(labels))
    if (bad := nonfinite_on(path.knots)) is not None:
        raise InputError(f"path, knot {bad[0]}", expected="finite weights", got=f"NaN or infinities in {bad[1]!r}")


def _row(kernel: Kernel, i: int, found: Claim, result: Search, num_points: int) -> tuple[SegmentCertificate, float]:
    """What holds on segment i, and what its bound allows for rounding; measured where nothing else can be said."""
    why = f"{found.why}{NO_BOUND}{result.refused[i]}" if i in result.refused else found.why
    try:
        if i in result.pieces:
            return _bounded(kernel, i, found, result), 0.0
        if found.kind == "analytic":
            return _analytic(kernel, i, found)
        if found.kind != "measured":
            return _exact(kernel, i, found)
    except UnsupportedError as e:
        why = f"{why}, but what rounding does to the loss is not bounded: {e}"
    return _measured(kernel, i, why, num_points), 0.0


def _exact(kernel: Kernel, i: int, found: Claim) -> tuple[SegmentCertificate, float]:
    """The bound of a segment on which the outputs do not change, or are affine: the largest at its control points.

    An example that is right at every control point, by a margin, is right all along: its margins are affine there.
    """
    several, control = kernel.exact(i, found), kernel.control(i)
    losses = [kernel.loss_at(p) for p in control]
    if not all(isfinite(v) for v in losses):
        raise InputError(f"path, segment {i}", expected="a finite loss at its control points", got=losses)
    above = [b.loss for b in several] * (1 if len(several) == len(losses) else len(losses))
    bound = max(above)
    for k, (p, v) in enumerate(zip(control, losses, strict=True)):
        kernel.confront(p, v, bound, f"at control point {k} of segment {i}")
    slack = max(b - v for b, v in zip(above, losses, strict=True))
    wrong = torch.stack([b.unsure for b in several if b.unsure is not None]).amax(0)
    ends, deviation = kernel.ends(i), max(losses) - min(losses)
    at, bound, error = float(ends[1] > ends[0]), max(bound, *losses), _defined(float(wrong.mean()))
    return SegmentCertificate(i, found.kind, bound, found.why, deviation, "", at, max(ends), error), slack


def _analytic(kernel: Kernel, i: int, found: Claim) -> tuple[SegmentCertificate, float]:
    """The bound of a level curve: that of its closed form, and what the rounding of its points may add."""
    segment = kernel.path.segments[i]
    assert isinstance(segment, LevelCurve)  # noqa: S101
    known, ends = kernel.level(segment), kernel.ends(i)
    for k, (p, v) in enumerate(zip(kernel.control(i), ends, strict=True)):
        kernel.confront(p, v, known.bound, f"at end {k} of segment {i}")
    bound, at = max(known.bound, *ends), float(ends[1] > ends[0])
    row = SegmentCertificate(i, "analytic", bound, found.why, known.deviation, "", at, max(ends), _defined(known.error))
    return row, known.slack


def _bounded(kernel: Kernel, i: int, found: Claim, result: Search) -> SegmentCertificate:
    """The bound of a segment that was cut: the largest of its pieces, none of which a sample contradicts."""
    pieces, sample, ends = result.pieces[i], result.samples[i], kernel.ends(i)
    for t, value in ((0.0, ends[0]), (1.0, ends[1]), (sample.t, sample.value)):
        for piece in pieces:
            if piece.start <= t <= piece.end:
                confront(kernel, i, t, value, piece.bound)
    return SegmentCertificate(
        i,
        "bounded",
        max(sample.value, *(p.bound for p in pieces)),
        f"{found.why}; bounded by {kernel.bounds(i).means} on {len(pieces)} sub-intervals",
        abs(ends[1] - ends[0]),
        "",
        sample.t,
        sample.value,
        _defined(max(p.error for p in pieces)),
        tuple((p.start, p.end, p.bound) for p in pieces),
    )


def confront(kernel: Kernel, i: int, t: float, value: float, bound: float) -> None:
    """Refuse a bound that the loss evaluated at t on segment i contradicts (``Kernel.confront``)."""
    if not isfinite(value):
        raise InputError(f"path, segment {i}", expected="a finite loss", got=value)
    if value > bound:
        kernel.confront(kernel.point(i, t), value, bound, f"at t = {t} on segment {i}")


def _measured(kernel: Kernel, i: int, why: str, num_points: int) -> SegmentCertificate:
    samples = kernel.samples(i, num_points)
    for _, value, _ in samples:
        if not isfinite(value):
            raise InputError(f"path, segment {i}", expected="a finite loss", got=value)
    at, top, _ = max(samples, key=lambda s: s[1])
    ends = kernel.ends(i)
    return SegmentCertificate(i, "measured", top, why, abs(ends[1] - ends[0]), "", at, top)


def _labelled(row: SegmentCertificate, label: str) -> SegmentCertificate:
    return replace(row, label=str(label))


def _defined(error: float) -> float | None:
    return None if isnan(error) else error


def _rounding(kernel: Kernel, result: Search) -> float:
    """What rounding adds to a bound: the forms of the best sample, on a segment that stays there, less its loss."""
    if not result.pieces:
        return 0.0
    sample = max((result.samples[i] for i in result.pieces), key=lambda s: s.value)
    still = kernel.bound_at(kernel.point(sample.segment, sample.t))
    return max(still.loss - sample.value, 0.0)
