"""What is claimed of a path, against the loss along it, computed point by point in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import inf, isfinite, isnan
from typing import Any

import torch

import isthmus as im
from isthmus.certify import Certificate
from isthmus.params import Params
from isthmus.paths import Curve, LevelCurve, Segment
from tests.long.odd import Odd, in_float64

POINTS, PER_SEGMENT = 201, 9
ROUNDING = 1e-13
"""By how much the plain loop may be above a bound, as a share of the losses of the segment."""
Level = tuple[float, range]
"""A loss that a method states, and the segments that it is about."""


def tolerance(odd: Odd) -> float:
    """How far a loss may be from the truth, which has float64 for float32."""
    return 1e-7 if odd.dtype == torch.float64 else 2e-3


def near(have: float, want: float, share: float) -> bool:
    return have == want or (isnan(have) and isnan(want)) or abs(have - want) <= share * max(1.0, abs(want))


def point(segment: Segment, t: float) -> Params:
    """De Casteljau in float64; a level curve has no other form than its own."""
    if isinstance(segment, LevelCurve):
        return segment.at(t)
    assert isinstance(segment, Curve)
    points = [in_float64(p) for p in segment.control]
    while len(points) > 1:
        points = [{k: _between(p[k], q[k], t) for k in p} for p, q in pairwise(points)]
    return points[0]


def _between(p: torch.Tensor, q: torch.Tensor, t: float) -> torch.Tensor:
    return (1 - t) * p + t * q if p.is_floating_point() and not torch.equal(p, q) else p


def dense(odd: Odd, path: im.Path) -> list[list[float]]:
    """The losses of each segment; NaN is above every bound and level."""
    per = max(PER_SEGMENT, POINTS // len(path))
    losses = [[odd.truth(point(s, j / (per - 1))) for j in range(per)] for s in path.segments]
    return [[inf if isnan(v) else v for v in row] for row in losses]


def of_ends(odd: Odd, found: im.Connection) -> Iterator[str]:
    """Segments have labels, the path begins at a, its target has the loss of b; what was measured of them is so."""
    tol, start = tolerance(odd), found.path.start
    if len(found.labels) != len(found.path):
        yield f"{len(found.labels)} labels of {len(found.path)} segments"
    if any(not torch.equal(v, start[k]) for k, v in odd.a.items() if v.is_floating_point() and k in start):
        yield "the path does not begin at a"
    a, b, target = (odd.truth(p) for p in (odd.a, odd.b, found.target))
    if not near(target, b, 10 * tol):
        yield f"target: {target}, b: {b}"
    if not odd.has_statistics:  # which a method may compute again
        yield from _of_stats(odd, found, (a, target))


def _of_stats(odd: Odd, found: im.Connection, ends: tuple[float, float]) -> Iterator[str]:
    stats = found.stats
    told = [("an end", said, true) for said, true in zip(stats.get("ends", ends), ends, strict=True)]
    if "max" in stats and "t" in stats:
        i, t = found.path.locate(stats["t"])
        told.append((f"max at {stats['t']}", stats["max"], odd.truth(point(found.path.segments[i], t))))
    for what, said, true in told:
        if not near(said, true, 20 * tolerance(odd)):
            yield f"stats: {what} {said}, truth {true}"


def of_level(odd: Odd, found: im.Connection, method: str, losses: Sequence[Sequence[float]]) -> Iterator[str]:
    """No point is above the level that the method states."""
    if method not in LEVELS or (odd.case.options.get("penalty") is not None and method in OF_THE_LOSS):
        return
    stated = LEVELS[method](odd, found)
    if stated is None:
        return
    level, where = stated
    top = max((max(losses[i]) for i in where), default=-inf)
    if top > level + 10 * tolerance(odd) * max(1.0, abs(level)):
        yield f"level {level}, truth {top}"


def of_profile(odd: Odd, measured: im.Profile, path: im.Path) -> Iterator[str]:
    """Its losses are those of the loop; where huge weights cancel, the precision of the module tells nothing."""
    for t, i, said in zip(measured.t.tolist(), measured.segment.tolist(), measured.loss.tolist(), strict=True):
        segment, local = path.segments[i], min(1.0, max(0.0, t * len(path) - i))
        true, tol = odd.truth(point(segment, local)), tolerance(odd)
        if not near(said, true, tol) and near(odd.rounded(segment.at(local)), true, tol):
            yield f"profile: {said} at {t}, truth {true}"


def of_certificate(odd: Odd, found: Certificate, path: im.Path, losses: Sequence[Sequence[float]]) -> Iterator[str]:
    """No point is above a bound that is claimed, and outputs that are claimed not to move do not."""
    for segment, row in zip(found.segments, losses, strict=True):
        if segment.claim == "measured":
            continue
        allowed = ROUNDING * max((abs(v) for v in row if isfinite(v)), default=0.0)
        if max(row) > segment.bound + allowed:
            said, over = f"{segment.claim}, segment {segment.index}: {segment.bound}", max(row) - segment.bound
            yield f"bound ({said}), truth {max(row)}, {over:.2g} more"
        if segment.claim == "unchanged":
            yield from _of_outputs(odd, path.segments[segment.index], segment.index)


def _of_outputs(odd: Odd, segment: Segment, index: int) -> Iterator[str]:
    first, *others = (odd.outputs(point(segment, t)) for t in (0, 0.3, 0.5, 1))
    moved = max(float((v - first).abs().max()) for v in others)
    if not moved <= 1e-8 * max(1.0, float(first.abs().max())):
        yield f"outputs of segment {index}, claimed to be unchanged, move by {moved:.3g}"


def of_verdict(verdict: im.Verdict, losses: Sequence[Sequence[float]]) -> Iterator[str]:
    top = max(map(max, losses))
    if verdict.how == "proved" and not top < verdict.level:
        yield f"verdict: proved below {verdict.level}, truth {top}"


OF_THE_LOSS = frozenset({"Dropout", "MeanField", "Subnetwork", "Narrow", "NoiseDropout"})
"""What states a level for the loss without a penalty."""


def _ends(odd: Odd) -> tuple[float, float]:
    return odd.truth(odd.a), odd.truth(odd.b)


def _rows(key: str) -> Callable[[Odd, im.Connection], Level]:
    """The largest of the ends and of the losses in rows of the stats."""

    def level(odd: Odd, found: im.Connection) -> Level:
        rows = found.stats[key]
        listed = [*rows["a"], *rows["b"]] if isinstance(rows, Mapping) else rows
        return max(*_ends(odd), *(row["loss"] for row in listed)), range(len(found.path))

    return level


def _between_networks(odd: Odd, found: im.Connection) -> Level:
    """That of the networks next to the ends, and of a narrow one, for what lies between them."""
    path, stats = found.path, found.stats
    own = [stats["network"]["loss"]] if "network" in stats else []
    return max(odd.truth(path.knots[1]), odd.truth(path.knots[-2]), *own), range(1, len(path) - 1)


def _deep_linear(odd: Odd, found: im.Connection) -> Level:
    bound = found.stats.get("bound")
    return max(_ends(odd)) if bound is None else bound, range(len(found.path))


def _sublevel(odd: Odd, found: im.Connection) -> Level | None:
    allowed = found.stats.get("allowed")
    if not found.outcome.ok or allowed is None:
        return None
    return max(_ends(odd)) + allowed, range(len(found.path))


def _two_layers(odd: Odd, found: im.Connection) -> Level | None:
    theorem: Mapping[str, Any] = found.stats["theorem"]
    stated = [theorem["bound"]] if theorem["bound"] is not None else []
    stated += [max(*_ends(odd), theorem["epsilon"])] if theorem["epsilon"] is not None else []
    return (min(stated), range(len(found.path))) if stated else None


LEVELS: dict[str, Callable[[Odd, im.Connection], Level | None]] = {
    "Dropout": _rows("dropped"),
    "MeanField": _rows("halved"),
    "Subnetwork": _rows("subnetworks"),
    "Narrow": _between_networks,
    "NoiseDropout": _between_networks,
    "DeepLinear": _deep_linear,
    "Sublevel": _sublevel,
    "TwoLayerReLU": _two_layers,
}
"""Of the methods that state one; a largest sample, which others give, is none."""
