"""Check a stored certificate again, from the path alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import inf, isfinite
from typing import Any

import torch

from isthmus.certify.certificate import Certificate, SegmentCertificate, reached
from isthmus.certify.claims import Claim
from isthmus.certify.kernel import Kernel
from isthmus.certify.model import MODELS
from isthmus.errors import InputError, IsthmusError, UnsupportedError
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.paths import HasPath, LevelCurve, Path, path_of
from isthmus.seal import SEAL, is_changed

TOLERANCE = 1e-9
"""Relative difference that two evaluations of the same number may have (another thread count, another chunk size)."""


def verify_certificate(
    objective: Objective,
    path: Path | HasPath,
    certificate: Certificate | Mapping[str, Any],
    *,
    labels: Sequence[str] = (),
    num_points: int = 61,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[str]:
    """What is wrong with `certificate` (itself, or as ``to_dict`` or certificate.json has it); empty if it holds.

    Nothing in it is believed. Every claim is derived anew from the control points, the losses at the ends and at the
    witnesses are evaluated again, and bounded where an exact claim rests on them, every stored sub-interval of a
    bounded segment is bounded once more (they must cover [0, 1]), all that is said of the whole path is made again from
    its segments, and the path is sampled at `num_points` points per segment, none of which may exceed the bound of its
    segment or of its sub-interval. `labels`: those that the segments must have. What cannot be found out from a path is
    taken as it is said: how the search went (`goal`, `budget`, `evaluations`, `spent`, `cost`, `model`, `predicted`,
    `sources`), and why a segment is only measured; in certificate.json it is under a digest, with all else.

    `path`: a path, or a result that has one.

    Cost: one bound per stored sub-interval, which is less than the search took, and a profile.

    Errors: ``InputError`` for a path that does not fit the objective.

    >>> import torch
    >>> from isthmus.certify import certify
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(torch.eye(2), torch.tensor([0, 1])))
    >>> path = Path.through([{"weight": torch.eye(2)}, {"weight": -torch.eye(2)}])
    >>> stored = certify(objective, path).to_dict()
    >>> verify_certificate(objective, path, stored)
    []
    >>> verify_certificate(objective, path, stored | {"bound": 1.0})[0]  # doctest: +ELLIPSIS
    'bound: stored 1.0, but the segments give 1.313...'
    """
    check_kinds(verify_certificate, locals())
    path = path_of(path)
    stored = certificate.to_dict() if isinstance(certificate, Certificate) else certificate
    try:
        return list(_problems(objective, path, stored, labels, num_points, progress))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as e:
        if isinstance(e, IsthmusError):
            raise
        return [f"the certificate is malformed: {type(e).__name__}: {e}"]


def _problems(
    objective: Objective,
    path: Path,
    certificate: Mapping[str, Any],
    labels: Sequence[str],
    num_points: int,
    progress: Callable[[str, int, int], None],
) -> Iterator[str]:
    segments = certificate["segments"]
    kernel = Kernel(objective, path, certificate.get("model") or "box")
    yield from _format(kernel, certificate)
    if [s["index"] for s in segments] != list(range(len(path))):
        yield f"segments: {len(segments)} are stored; the path has {len(path)}, numbered from 0"
        return
    for i, segment in enumerate(segments):
        for problem in _segment(kernel, i, segment):
            yield f"segment {i}: {problem}"
        if labels and segment["label"] != labels[i]:
            yield f"segment {i}: labelled {segment['label']!r}, but the path says {labels[i]!r}"
        progress("verifying", i + 1, len(path))
    yield from _totals(kernel, certificate)
    yield from _slack(kernel, certificate)
    for i, segment in enumerate(segments):
        yield from _samples(kernel, i, segment, num_points)
    yield from _seal(certificate)


def _seal(certificate: Mapping[str, Any]) -> Iterator[str]:
    """Whether the entries are those of which the file's digest was made."""
    if is_changed(certificate):
        yield "it was changed after it was written: its entries do not match their digest"
    if SEAL not in certificate and not _FILED.isdisjoint(certificate):
        yield "it was changed after it was written: its digest is missing"


def _format(kernel: Kernel, certificate: Mapping[str, Any]) -> Iterator[str]:
    if (certificate["format"], certificate["dtype"]) != (1, kernel.dtype):
        yield f"format and dtype: {certificate['format']!r}, {certificate['dtype']!r}; known are 1, {kernel.dtype!r}"
    if kernel.model not in MODELS:
        yield f"model: {kernel.model!r} is not known"


def _samples(kernel: Kernel, i: int, stored: Mapping[str, Any], num_points: int) -> Iterator[str]:
    """The samples on segment i that its bounds contradict."""
    for s, value, error in kernel.samples(i, num_points):
        where, t = f"segment {i}: the ", (i + s) / len(kernel.path)
        bounds = [b for start, end, b in stored["intervals"] if start <= s <= end]
        bound = min([stored["bound"], *bounds])
        if stored["claim"] != "measured" and not _below(value, bound):
            yield where + f"loss at t = {t} is {value}, above the bound {bound}"
        if stored["error_bound"] is not None and not error <= stored["error_bound"] + TOLERANCE:
            yield where + f"error rate at t = {t} is {error}, above the bound {stored['error_bound']}"


def _segment(kernel: Kernel, i: int, stored: Mapping[str, Any]) -> Iterator[str]:
    bound = stored["bound"]
    if not isfinite(bound):
        yield f"the bound {bound} is not a number"
    if not 0 <= stored["witness"] <= 1:
        yield f"the witness t = {stored['witness']} is not in [0, 1]"
        return
    value = kernel.loss(i, stored["witness"])
    if not _same(value, stored["value"]):
        yield f"the loss at its witness t = {stored['witness']} is {value}, not {stored['value']}"
    if not _same(reached(bound, stored["value"]), stored["gap"]):
        yield f"the gap {stored['gap']} is not the one between bound and value"
    rule = _CLAIMS.get(stored["claim"])
    if rule is None:
        yield f"the claim {stored['claim']!r} is not known"
        return
    try:
        yield from rule(kernel, i, stored)
    except UnsupportedError as e:
        yield f"claimed {stored['claim']!r}, but nothing of it can be derived: {e}"


def _deviation(stored: Mapping[str, Any], deviation: float) -> Iterator[str]:
    if not abs(deviation - stored["deviation"]) <= TOLERANCE * max(1.0, abs(deviation)):
        yield f"the deviation is {deviation}, not {stored['deviation']}"


def _rise(kernel: Kernel, i: int) -> float:
    first, last = kernel.ends(i)
    return abs(last - first)


def _control(kernel: Kernel, i: int, stored: Mapping[str, Any]) -> Iterator[str]:
    """An exact claim from the control points."""
    claim, bound, found = stored["claim"], stored["bound"], kernel.claim(kernel.path.segments[i])
    losses = [kernel.loss_at(p) for p in kernel.control(i)]
    if not bound >= max(losses):
        yield f"the bound {bound} is below the loss at a control point, {max(losses)}"
    if found.kind != claim:
        yield f"claimed {claim!r}, but the control points give {found.kind!r} ({found.why})"
    else:
        yield from _why(stored, found, "")
        yield from _exactly(kernel, i, stored, found)
    yield from _deviation(stored, max(losses) - min(losses))


def _closed_form(kernel: Kernel, i: int, stored: Mapping[str, Any]) -> Iterator[str]:
    """A claim on a level curve."""
    segment, bound = kernel.path.segments[i], stored["bound"]
    found = kernel.claim(segment)
    if found.kind != stored["claim"] or not isinstance(segment, LevelCurve):
        yield f"claimed {stored['claim']!r}, but the curve gives {found.kind!r} ({found.why})"
        return
    known = kernel.level(segment)
    yield from _why(stored, found, "")
    if not bound >= known.bound - TOLERANCE * max(1.0, abs(known.bound)) or not bound >= max(kernel.ends(i)):
        yield f"the bound {bound} is below that of the closed form, {known.bound}"
    yield from _error(stored, known.error)
    yield from _deviation(stored, known.deviation)


def _slack(kernel: Kernel, certificate: Mapping[str, Any]) -> Iterator[str]:
    """Whether the allowance for rounding is that of an exact claim, or at the largest loss of a bounded segment."""
    segments = certificate["segments"]
    found = [0.0, *(v for s in segments for v in _allowances(kernel, s))]
    if bounded := [s for s in segments if s["claim"] == "bounded"]:
        top = max(bounded, key=lambda s: s["value"])
        with suppress(UnsupportedError, InputError):  # a witness beyond the ends was named before
            found.append(kernel.bound_at(kernel.point(top["index"], top["witness"])).loss - top["value"])
    have = certificate.get("slack", 0.0)
    if not abs(have - max(found)) <= TOLERANCE * max(1.0, *(abs(s["bound"]) for s in segments)):
        yield f"slack: stored {have}, but rounding allows for {max(found)}"


def _allowances(kernel: Kernel, stored: Mapping[str, Any]) -> list[float]:
    """What an exact claim on a segment allows for rounding."""
    i, segment = stored["index"], kernel.path.segments[stored["index"]]
    with suppress(UnsupportedError):
        if stored["claim"] == "analytic" and isinstance(segment, LevelCurve):
            return [kernel.level(segment).slack]
        if stored["claim"] in ("unchanged", "convex"):
            several, losses = kernel.exact(i, kernel.claim(segment)), [kernel.loss_at(p) for p in kernel.control(i)]
            return [b.loss - v for b, v in zip(several * len(losses), losses, strict=False)]
    return []


_ROUNDING = re.compile(r"\d(\.\d+)?e-\d+")
"""A number in a reason that is the size of rounding: another batch, or another number of workers, gives another one."""


def _why(stored: Mapping[str, Any], found: Claim, more: str) -> Iterator[str]:
    if _ROUNDING.sub("", str(stored["why"])) != _ROUNDING.sub("", f"{found.why}{more}"):
        yield f"why: stored {stored['why']!r}, but the control points give {found.why + more!r}"


def _sampled(kernel: Kernel, i: int, stored: Mapping[str, Any]) -> Iterator[str]:
    found = kernel.claim(kernel.path.segments[i])
    if not _ROUNDING.sub("", str(stored["why"])).startswith(_ROUNDING.sub("", found.why)):
        yield f"why: stored {stored['why']!r}, but the control points give {found.why!r}"
    if not _same(stored["bound"], stored["value"]):
        yield f"measured, but the bound {stored['bound']} is not the largest sample {stored['value']}"
    yield from _deviation(stored, _rise(kernel, i))


def _exactly(kernel: Kernel, i: int, stored: Mapping[str, Any], found: Claim) -> Iterator[str]:
    """Whether an exact claim's bound allows for the rounding of the losses that it rests on."""
    try:
        several = kernel.exact(i, found)
    except UnsupportedError as e:
        yield f"claimed {found.kind!r}, but what rounding does to the loss is not bounded: {e}"
        return
    if not _below(top := max(b.loss for b in several), stored["bound"]):
        yield f"the bound {stored['bound']} is below that of the loss at a control point, {top}"
    marks = torch.stack([b.unsure for b in several if b.unsure is not None]).amax(0)
    yield from _error(stored, float(marks.mean()))


def _intervals(kernel: Kernel, i: int, stored: Mapping[str, Any]) -> Iterator[str]:
    """Whether the sub-intervals cover [0, 1] and none of their bounds is too low."""
    reach, errors, found = 0.0, [], kernel.claim(kernel.path.segments[i])
    yield from _why(stored, found, f"; bounded by {kernel.bounds(i).means} on {len(stored['intervals'])} sub-intervals")
    for start, end, bound in stored["intervals"]:
        if not start == reach < end <= 1:
            yield f"the sub-intervals leave out t from {reach} to {start}, or overlap there"
            return
        reach = end
        if not bound <= stored["bound"]:
            yield f"the sub-interval [{start}, {end}] has the bound {bound}, above the segment's, {stored['bound']}"
        again = kernel.bound(i, start, end)
        errors.append(again.error)
        if not _below(again.loss, bound):
            yield f"on the sub-interval [{start}, {end}] the bound is {again.loss}, not {bound}"
    if reach != 1.0:
        yield f"the sub-intervals leave out t from {reach} to 1"
    yield from _error(stored, max(errors, default=float("nan")))
    yield from _deviation(stored, _rise(kernel, i))


_CLAIMS = {
    "unchanged": _control, "convex": _control, "analytic": _closed_form, "bounded": _intervals, "measured": _sampled,
}  # fmt: skip


def _error(stored: Mapping[str, Any], error: float) -> Iterator[str]:
    have = stored["error_bound"]
    if have is not None and not error <= have + TOLERANCE:
        yield f"the error rate has the bound {error}, not {have}"


def _totals(kernel: Kernel, certificate: Mapping[str, Any]) -> Iterator[str]:
    """Whether what is said of the whole path, in numbers and in words, follows from its segments."""
    own = [_row(s) for s in certificate["segments"]]
    ends = kernel.ends(0)[0], kernel.ends(len(own) - 1)[1]
    if not all(_same(have, value) for have, value in zip(certificate["ends"], ends, strict=True)):
        yield f"ends: stored {certificate['ends']}, but the losses there are {list(ends)}"
    how: dict[str, Any] = {k: certificate[k] for k in _SEARCH if k in certificate}
    if any(not isinstance(v, int | float) or not 0 <= v < inf for v in how.values()):
        yield f"the search: expected finite numbers >= 0, got {how}"
        return
    how = {"slack": 0.0, "goal": 1.0} | how
    said = Certificate(tuple(own), ends, certificate["dtype"], **how).to_dict()
    yield from _differences(certificate, said)


_SEARCH = ("slack", "goal", "evaluations", "budget", "spent", "cost", "stopped")
_TOLD = {"segments", "ends", "dtype", "format", "model", "predicted", "sources"}
"""What is looked at elsewhere, or taken as it is said."""
_FILED = {"objective", "path", "bn"}
"""What a file says too, with a digest of it all."""
_BESIDE = {*_FILED, SEAL}


def _differences(stored: Mapping[str, Any], said: Mapping[str, Any]) -> Iterator[str]:
    """In what a stored certificate differs from that of its segments; what newer versions say too may be missing."""
    for name in stored.keys() & said.keys() - _TOLD:
        if not _agree(stored[name], said[name]):
            yield f"{name}: stored {stored[name]}, but the segments give {said[name]}"
    if strange := stored.keys() - said.keys() - _BESIDE:
        yield f"entries that no certificate has: {sorted(strange)}"
    if missing := {"bound", "excess", "proved", "gap", "witness", "error_bound", "counts"} - stored.keys():
        yield f"the certificate is malformed: it does not say {sorted(missing)}"
    pieces = sum(len(s["intervals"]) for s in said["segments"])
    if pieces > stored.get("evaluations", inf):
        yield f"evaluations: stored {stored['evaluations']}, but there are {pieces} sub-intervals"


def _row(stored: Mapping[str, Any]) -> SegmentCertificate:
    row: dict[str, Any] = {k: stored[k] for k in SegmentCertificate.__dataclass_fields__}
    row["intervals"] = tuple((p, q, b) for p, q, b in row["intervals"])
    return SegmentCertificate(**row)


def _agree(a: Any, b: Any) -> bool:
    """Whether plain values are the same, numbers up to the tolerance."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_agree(a[k], b[k]) for k in a)
    if isinstance(a, bool | str) or isinstance(b, bool | str):
        return type(a) is type(b) and a == b
    return _same(a, b)


def _below(value: float, bound: float) -> bool:
    return value <= bound + TOLERANCE * abs(bound) + TOLERANCE**2


def _same(a: Any, b: Any) -> bool:
    """Whether numbers are the same up to the tolerance; None is the same as None alone."""
    if a is None or b is None:
        return a is b
    return abs(a - b) <= TOLERANCE * max(1.0, abs(a), abs(b))
