"""Shortening a string without leaving its threshold set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from isthmus.connectors.strings.threshold import Threshold, ThresholdAsked
from isthmus.errors import InputError
from isthmus.evaluate.batchnorm import no_weights, statistics
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.params import Params, distance, equal, lerp
from isthmus.paths import Curve, HasPath, Path, length_of, path_of
from isthmus.shown import one_line
from isthmus.training.progress import Progress, no_progress

_PULLS = (0.5, 0.25, 0.125)
"""Parts of the way that are tried, the largest first."""


@one_line
@dataclass(frozen=True, eq=False)
class Straightened:
    """A shorter path with the same ends, whose every segment is sampled below the threshold.

    `before` and `after` are the normalised lengths, `maximum` the largest value seen on the new path, `passes` the
    sweeps over the beads that were made.

    `path`: the shorter path.
    """

    path: Path
    before: float
    after: float
    maximum: float
    passes: int


def straighten(
    objective: Objective,
    path: Path | HasPath,
    threshold: float,
    *,
    quantity: str = "loss",
    points: int = 21,
    passes: int = 20,
    tol: float = 1e-3,
    progress: Progress = no_progress,
) -> Straightened:
    """Shorten a piecewise-linear path that is below `threshold`, keeping it below (a geodesic of the level set).

    `path`: a path, or a result that has one.

    In each sweep a bead is left out where the straight line between its neighbours stays below; else it is pulled
    towards that line as far as both its segments allow; else its corner is cut. A segment counts as below when
    `points` samples are and none of its intervals is estimated to rise above (``StringSampling``). Stops when a sweep
    gains less than the part `tol` of the length. Nothing is trained; what a certificate said holds no more, so
    certify the new path. BatchNorm's statistics move like weights, and do so on the new path. Cost: at most 9 segments
    of `points` passes over the data per bead and sweep.

    `quantity`: "loss", or what else the threshold is on. `passes`: at most so many sweeps.

    Errors: a path with curved segments or with a segment above the threshold.

    >>> import torch
    >>> objective = Objective(torch.nn.Linear(2, 1, bias=False), "mse", (torch.eye(2), torch.zeros(2, 1)))
    >>> w = [{"weight": torch.tensor([v])} for v in ([1.0, 0.0], [0.0, 0.9], [-1.0, 0.0])]
    >>> found = straighten(objective, Path.through(w), threshold=0.5)
    >>> round(found.before, 3), found.after, len(found.path)
    (1.345, 1.0, 1)
    """
    check_kinds(straighten, locals())
    path = path_of(path)
    ThresholdAsked(quantity, threshold, points=points)
    if passes < 1 or not 0 < tol < 1:
        raise InputError("passes, tol", expected=">= 1 and in (0, 1)", got=(passes, tol))
    limit = Threshold(objective, quantity, threshold, points)
    _check_below(path, limit)
    string = _String(limit, list(path.knots))
    length, done = string.length, 0
    while done < passes and len(string.knots) > 2:
        string.sweep(lambda i, n: progress("straightening", i, n))
        done += 1
        length, before = string.length, length
        if length > (1 - tol) * before:
            break
    after = Path(Path.through(string.knots).segments, "interpolate" if statistics(objective) else None)
    top = max(limit.scan(s).max for s in after.segments)
    lengths = [length_of(p, no_weights(objective))[1] for p in (path, after)]
    return Straightened(after, lengths[0], lengths[1], top, done)


def _check_below(path: Path, limit: Threshold) -> None:
    for i, segment in enumerate(path.segments):
        if not isinstance(segment, Curve) or not segment.is_straight:
            raise InputError("path", expected="straight segments", got=f"segment {i}, which is curved")
        if (top := limit.scan(segment).max) > limit.value:
            raise InputError("path", expected=f"segments below {limit.value:g}", got=f"{top:.6g} on segment {i}")


@dataclass
class _String:
    limit: Threshold
    knots: list[Params]

    @property
    def length(self) -> float:
        return sum(distance(p, q) for p, q in pairwise(self.knots))

    def below(self, *points: Params) -> bool:
        """Whether the straight lines through these points stay in the set."""
        return all(self.limit.scan(Curve((p, q))).max <= self.limit.value for p, q in pairwise(points))

    def sweep(self, progress: Callable[[int, int], None]) -> None:
        i = 1
        while i < len(self.knots) - 1:
            left, here, right = self.knots[i - 1 : i + 2]
            progress(i, len(self.knots) - 1)
            if equal(left, here) or equal(here, right) or self.below(left, right):
                del self.knots[i]
                continue
            self.knots[i : i + 1] = self._pulled(left, here, right) or self._cut(left, here, right) or [here]
            i += 1

    def _pulled(self, left: Params, here: Params, right: Params) -> list[Params]:
        p, q = distance(left, here), distance(here, right)
        goal, old = lerp(left, right, p / (p + q)), p + q
        for part in _PULLS:
            point = lerp(here, goal, part)
            if distance(left, point) + distance(point, right) < old and self.below(left, point, right):
                return [point]
        return []

    def _cut(self, left: Params, here: Params, right: Params) -> list[Params]:
        """Two points on the segments instead of the corner between them; only the line between them is new."""
        for part in _PULLS:
            p, q = lerp(here, left, part), lerp(here, right, part)
            if distance(p, q) < (1 - 1e-6) * (distance(p, here) + distance(here, q)) and self.below(p, q):
                return [p, q]
        return []
