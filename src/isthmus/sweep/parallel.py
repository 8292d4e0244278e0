"""Profile and certificate of one big path, as tasks of one segment on one chunk of the data.

The sums over the chunks are added in the order of the chunks, in float64, so the answer depends on the size of a
chunk but not on the engine, nor on the number of workers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from isthmus.certify import Certificate, certify
from isthmus.certify.certificate import SegmentCertificate
from isthmus.certify.certify import Wanted
from isthmus.certify.model import MODELS
from isthmus.certify.widened import evaluation
from isthmus.checks import refuse_unless_whole
from isthmus.errors import InputError, IsthmusError
from isthmus.evaluate import Profile, profile
from isthmus.evaluate.batchnorm import POLICIES, applied, segments_under
from isthmus.kinds import check_kind
from isthmus.objective import Objective
from isthmus.paths import Curve, Path, Segment
from isthmus.sweep.base import Engine, Failed, one_thread
from isthmus.sweep.intervals import certified_by_intervals
from isthmus.sweep.local import Local
from isthmus.training.memory import Memory, forget
from isthmus.training.progress import Progress, no_progress

_EXACT = {"unchanged", "convex"}


@dataclass(eq=False)
class _Shared:
    """What all tasks need."""

    objective: Objective
    path: Path
    chunk: int
    options: dict[str, Any]

    def part(self, c: int) -> Objective:
        """The objective on chunk c of the data."""
        return self.objective.part(slice(c * self.chunk, (c + 1) * self.chunk))

    @property
    def weights(self) -> list[float]:
        """The share of each chunk in the mean."""
        n = self.objective.num_examples
        return [(min(i + self.chunk, n) - i) / n for i in range(0, n, self.chunk)]


def profile_in_parallel(
    objective: Objective,
    path: Path,
    num_points: int = 61,
    *,
    test: Objective | None = None,
    bn: str | None = None,
    engine: Engine | None = None,
    chunk: int = 8192,
    progress: Progress = no_progress,
) -> Profile:
    """As ``profile``, by (segment x `chunk` examples) on `engine`; the same bits from every engine.

    Agrees with ``profile`` up to the rounding of sums in another order. Where statistics are computed again, a task is
    a whole segment, as they belong to all examples.

    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> path = Path.through([{"weight": torch.eye(2)}, {"weight": -torch.eye(2)}])
    >>> profile_in_parallel(objective, path, num_points=3, chunk=1).error.tolist()
    [0.0, 0.5, 1.0]
    """
    bn = bn or path.bn or POLICIES[0]
    policy = applied(objective, bn)
    if policy == "recompute":
        one = max(_check(chunk), objective.num_examples)
        shared = _Shared(objective, path, one, {"num_points": num_points, "bn": bn, "test": test})
        return _measured(shared, policy, engine, progress)
    path = Path(tuple(segments_under(objective, path, bn)[0]))
    options, engine = {"num_points": num_points, "bn": "interpolate"}, engine or Local()
    with engine.session():
        own, *more = [
            _measured(_Shared(o, path, _check(chunk), options), policy, engine, progress)
            for o in (objective, test)
            if o
        ]
    return replace(own, test=more[0]) if more else own


def _measured(shared: _Shared, policy: str, engine: Engine | None, progress: Progress) -> Profile:
    """The profile of all segments, with that of the test data where a task measures them too."""
    table = _run(_profile_task, shared, range(len(shared.path)), engine, "measuring", progress)
    parts = [table[i] for i in range(len(shared.path))]
    tests = [[p.test for p in several if p.test is not None] for several in parts]
    n, test = shared.options["num_points"], shared.options.get("test")
    found = _joined(parts, shared.weights, n, policy)
    return found if test is None else replace(found, test=_joined(tests, shared.weights, n, policy))


def _joined(parts: Sequence[Sequence[Profile]], weights: Sequence[float], num_points: int, bn: str) -> Profile:
    """One profile from those of the segments, each given chunk by chunk."""
    n, t, segment = len(parts), [], []
    losses, errors = [], []
    for i, chunks in enumerate(parts):
        first = min(i, 1)  # a segment starts where the one before ends
        places = chunks[0].t[first:]
        t += [(i + float(u)) / n for u in places]
        segment += [i] * len(places)
        losses.append(_mean(weights, [p.loss for p in chunks])[first:])
        errors.append(_mean(weights, [p.error for p in chunks])[first:])
    at = torch.tensor(t, dtype=torch.float64)
    return Profile(at, torch.tensor(segment), torch.cat(losses), torch.cat(errors), num_points, bn=bn)


def certify_in_parallel(
    objective: Objective,
    path: Path,
    gap: float = 0.01,
    *,
    model: str = "box",
    labels: Sequence[str] = (),
    budget: float | None = None,
    num_points: int = 61,
    engine: Engine | None = None,
    chunk: int = 8192,
    memory: Memory | os.PathLike[str] | str = forget,
    progress: Progress = no_progress,
) -> Certificate:
    """As ``certify``, by (segment x `chunk` examples) on `engine`; the same bits from every engine.

    With `model` "chord", by sub-intervals of t over all data: the same bits as from ``certify(model="chord")`` with one
    thread, `memory` included. The rest of this is about "box", which has no use for a memory.

    L(t) is the mean of the chunks' losses L_c(t), weighted by their sizes, so the weighted mean of bounds on them
    is a bound on it, whatever claim each rests on. On a straight segment whose claims are exact ("unchanged",
    "convex") the loss is at most its larger end, which loses nothing; numerical bounds are added up sub-interval
    by sub-interval. One chunk that is only measured makes the segment measured. `budget` is for each task, in
    profiles of its part; that of the certificate is the largest. Where numerical bounds are added, the loss of all
    data is sampled at `num_points`, as the largest samples of the chunks need not be at one t.
    """
    _check_wanted(path, labels, model, memory)
    if model == "chord":
        wanted = Wanted(gap, model, budget, labels, num_points, memory, progress)
        return certified_by_intervals(objective, path, wanted, engine or Local())
    # sums over chunks do not depend on how they were cut where every example has a bound of its own
    options = {"gap": gap, "model": "box", "budget": budget, "num_points": num_points}
    shared, engine = _Shared(objective, path, _check(chunk), options), engine or Local()
    with engine.session():
        table = _run(_certify_task, shared, range(len(path)), engine, "certifying", progress)
        parts = [table[i] for i in range(len(path))]
        open_ = [i for i, several in enumerate(parts) if not _is_exact(several)]
        known = evaluation(objective, path.start)  # a widened module does not travel between processes
        where = objective if known.widened else known.objective
        wide = _Shared(where, path, chunk, {"num_points": num_points, "bn": "interpolate"})
        sampled = _run(_profile_task, wide, open_, engine, "measuring", progress)
    rows = [_of_all(s, parts[i], shared.weights, sampled.get(i)) for i, s in enumerate(path.segments)]
    return _certificate(_named(rows, labels), parts, shared.weights, gap)


def _named(rows: Sequence[SegmentCertificate], labels: Sequence[str]) -> list[SegmentCertificate]:
    named = zip(rows, labels or [""] * len(rows), strict=True)
    return [replace(row, index=i, label=str(label)) for i, (row, label) in enumerate(named)]


def _check_wanted(path: Path, labels: Sequence[str], model: str, memory: object) -> None:
    if labels and len(labels) != len(path):
        raise InputError("labels", expected=f"one per segment ({len(path)})", got=len(labels))
    if model not in MODELS or (model == "box" and memory is not forget):
        raise InputError("model, memory", expected="box without a memory, or chord", got=(model, memory))


def _certificate(
    segments: Sequence[SegmentCertificate],
    parts: Sequence[Sequence[Certificate]],
    weights: Sequence[float],
    gap: float,
) -> Certificate:
    ends = (_ends(parts[0], weights)[0], _ends(parts[-1], weights)[1])
    tasks = list(chain.from_iterable(parts))
    slack = max(c.slack for c in tasks) + _allowance(len(weights), max(ends))
    evaluations, allowed = sum(c.evaluations for c in tasks), max(c.budget for c in tasks)
    spent = any(c.spent for c in tasks)
    cost = sum(c.cost * w for several in parts for c, w in zip(several, weights, strict=True))
    dear = max(tasks, key=lambda c: c.cost)
    predicted = max(c.predicted for c in tasks)
    return Certificate(
        tuple(segments), ends, "float64", slack, gap, evaluations, allowed, spent, cost, dear.model, predicted,
        dear.sources,
    )  # fmt: skip


def _is_exact(parts: Sequence[Certificate]) -> bool:
    return all(c.segments[0].claim in ("unchanged", "convex", "analytic") for c in parts)


def _of_all(
    segment: Segment, parts: Sequence[Certificate], weights: Sequence[float], sampled: list[Profile] | None
) -> SegmentCertificate:
    """The segment on all data: proved where it is on every chunk; the largest of the losses sampled on all data."""
    measured = next((c.segments[0] for c in parts if c.segments[0].claim == "measured"), None)
    row = _proved(segment, parts, weights) if measured is None else measured
    if sampled is not None:
        samples = _mean(weights, [p.loss for p in sampled])
        row = replace(row, witness=float(sampled[0].t[samples.argmax()]), value=float(samples.max()))
    return row if measured is None else replace(row, bound=row.value, error_bound=None, intervals=())


def _check(chunk: int) -> int:
    check_kind(chunk, int, "chunk")
    refuse_unless_whole("chunk", chunk)
    return chunk


def _run(
    task: Callable[[_Shared, tuple[int, int]], Any],
    shared: _Shared,
    segments: Sequence[int],
    engine: Engine | None,
    what: str,
    progress: Progress,
) -> dict[int, list[Any]]:
    """For each segment, the results of its chunks in their order."""
    chunks = len(shared.weights)
    items = [(i, c) for i in segments for c in range(chunks)]
    results: dict[tuple[int, int], Any] = {}
    with one_thread():
        for k, found in (engine or Local()).map(task, shared, items):
            if isinstance(found, Failed):
                raise IsthmusError(f"segment {items[k][0]}, chunk {items[k][1]}: {found.message}")
            results[items[k]] = found
            progress(what, len(results), len(items))
    return {i: [results[i, c] for c in range(chunks)] for i in segments}


def _profile_task(shared: _Shared, item: tuple[int, int]) -> Profile:
    i, c = item
    return profile(shared.part(c), Path((shared.path.segments[i],)), **shared.options)


def _certify_task(shared: _Shared, item: tuple[int, int]) -> Certificate:
    i, c = item
    return certify(shared.part(c), Path((shared.path.segments[i],)), **shared.options)


def _mean(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """The weighted sum, added from the first to the last."""
    total = torch.zeros_like(values[0])
    for w, v in zip(weights, values, strict=True):
        total = total + w * v
    return total


def _sum(weights: Sequence[float], values: Sequence[float]) -> float:
    return float(_mean(weights, [torch.tensor(v, dtype=torch.float64) for v in values]))


def _ends(parts: Sequence[Certificate], weights: Sequence[float]) -> tuple[float, float]:
    """The losses at both ends, on all data."""
    a, b = (_sum(weights, [c.ends[e] for c in parts]) for e in (0, 1))
    return a, b


def _allowance(chunks: int, value: float) -> float:
    """What adding up the chunks may round away."""
    return 4 * chunks * torch.finfo(torch.float64).eps * max(1.0, abs(value))


def _proved(segment: Segment, parts: Sequence[Certificate], weights: Sequence[float]) -> SegmentCertificate:
    """The segment on all data, from its proofs on the chunks."""
    own = [c.segments[0] for c in parts]
    a, b = ends = _ends(parts, weights)
    bound, intervals = _bound(segment, parts, own, weights)
    exact = {s.claim for s in own} <= _EXACT
    weakest = max(own, key=lambda s: ("unchanged", "convex", "analytic", "bounded").index(s.claim))
    return replace(
        weakest,
        bound=bound + _allowance(len(own), bound),
        deviation=abs(b - a) if exact else _sum(weights, [s.deviation for s in own]),
        witness=float(b > a),
        value=max(ends),
        error_bound=_error_bound(own, weights),
        intervals=tuple((start, end, v + _allowance(len(own), v)) for start, end, v in intervals),
        why=re.sub(r"on \d+ sub-intervals$", f"on {len(intervals)} sub-intervals", weakest.why),
    )


def _bound(
    segment: Segment, parts: Sequence[Certificate], own: Sequence[SegmentCertificate], weights: Sequence[float]
) -> tuple[float, tuple[tuple[float, float, float], ...]]:
    claims = {s.claim for s in own}
    top = max(_ends(parts, weights))
    if claims <= _EXACT:
        if isinstance(segment, Curve) and len(segment.control) == 2:
            return top + max(c.slack for c in parts), ()
        return _sum(weights, [s.bound for s in own]), ()
    if claims == {"analytic"}:  # no chunk's loss is further above the chord of its ends
        return top + _sum(weights, [c.slack for c in parts]), ()
    intervals = _refined(own, weights)
    return max(v for _, _, v in intervals), intervals


def _error_bound(own: Sequence[SegmentCertificate], weights: Sequence[float]) -> float | None:
    errors = [s.error_bound for s in own if s.error_bound is not None]
    return min(1.0, _sum(weights, errors) + _allowance(len(own), 1.0)) if len(errors) == len(own) else None


def _refined(own: Sequence[SegmentCertificate], weights: Sequence[float]) -> tuple[tuple[float, float, float], ...]:
    """The sub-intervals on which no chunk's bound changes, with the weighted mean of the bounds there."""
    pieces = [sorted(s.intervals) or [(0.0, 1.0, s.bound)] for s in own]
    cuts = sorted({t for several in pieces for start, end, _ in several for t in (start, end)})
    return tuple((a, b, _sum(weights, [_over(several, a, b) for several in pieces])) for a, b in pairwise(cuts))


def _over(intervals: Sequence[tuple[float, float, float]], a: float, b: float) -> float:
    return max(v for start, end, v in intervals if start <= a and b <= end)
