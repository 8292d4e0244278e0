"""What was proved about a path, as values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import ceil, inf, isfinite, log2
from typing import TYPE_CHECKING, Any

from isthmus.certify.affine import NARROWEST
from isthmus.certify.branch import FLOOR, close
from isthmus.shown import brief, draw, line, one_line, plural, table, upward

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_BOUND = "; no bound: "
"""What stands in a `why` before the reason why the affine forms bound nothing, which is the last word."""


@one_line
@dataclass(frozen=True)
class SegmentCertificate:
    """What holds on one segment: the claim, the bound on the loss there, and why.

    `claim`: "unchanged" | "convex" | "analytic" | "bounded" | "measured"; with "measured" the bound is only the largest
    sample; with the others it is one in real arithmetic, the rounding of its evaluation included. `deviation`: how far
    the loss at the control points (for a bounded segment: at the ends) strays from the first one, as evaluated; on an
    unchanged segment it is the rounding noise, on an analytic one the largest difference that was measured from the
    loss of the closed form. `witness`: the t in [0, 1] on this segment where the largest loss was seen, and `value`
    that loss. `error_bound`: no more than this fraction of the examples is wrong anywhere on the segment; None where
    that is not known. `intervals`: (start, end, bound) of each sub-interval that the bound was computed on; they cover
    [0, 1].
    """

    index: int
    claim: str
    bound: float
    why: str
    deviation: float
    label: str = ""
    witness: float = 0.0
    value: float = 0.0
    error_bound: float | None = None
    intervals: tuple[tuple[float, float, float], ...] = ()

    @property
    def gap(self) -> float:
        """bound / value - 1, how far the bound can be from the truth."""
        return reached(self.bound, self.value)


SEGMENTS = ("segment", "what it does", "claim", "bound", "largest seen", "why")
"""The headings of the list of segments."""


@dataclass(frozen=True)
class Certificate:
    """max_t L(t) <= `bound`, where every segment's claim is other than "measured" (then `proved` is True).

    A proof may be far from the truth: `close` says whether it came as near as was asked, `summary` says it in words.

    The statement is about the function in real arithmetic, with the weights of the path as exact numbers; it was
    computed in `dtype`, and the bound allows for all rounding on the way, of exact claims too: `slack` is the largest
    such allowance of an exact claim, or at the largest loss of a bounded segment. `goal` is the gap that was asked for;
    `evaluations` bounds over sub-intervals were computed by `model`, at a `cost` of so many profiles, of the `budget`
    allowed, and `spent` says whether the search ended because there was no more of it; `predicted` is what it was
    expected to cost. `sources`: which operations make up the distance of the largest bound from the loss, and by which
    share. `stopped`: whether the search was interrupted; with its `memory` it goes on.

    `segments`: a claim and a bound for each segment of the path. `ends`: the losses at t = 0 and t = 1.
    """

    segments: tuple[SegmentCertificate, ...]
    ends: tuple[float, float]
    dtype: str
    slack: float
    goal: float
    evaluations: int = 0
    budget: float = 0.0
    spent: bool = False
    cost: float = 0.0
    model: str = ""
    predicted: float = 0.0
    sources: Mapping[str, float] = field(default_factory=dict)
    stopped: bool = False

    def __repr__(self) -> str:
        said = "proved" if self.proved else "not proved"
        return line(self, said, f"bound {brief(upward(self.bound))}", plural(len(self.segments), "segment"))

    def plot(self, ax: Axes | None = None, label: str | None = None) -> Axes:
        """The bound along the path, drawn on `ax` (default: new axes), beside what is there. Needs ``isthmus[plot]``.

        `label`: its name in the legend, to tell several on the same axes apart.
        """
        return draw(self, ax, label=label)

    def _repr_html_(self) -> str:
        rows = [(s.index, s.label, s.claim, upward(s.bound), s.value, s.why) for s in self.segments]
        return table(SEGMENTS, rows, self.summary)

    @property
    def bound(self) -> float:
        """The bound for the whole path."""
        return max(s.bound for s in self.segments)

    @property
    def excess(self) -> float:
        """bound - max(L(0), L(1))."""
        return self.bound - max(self.ends)

    @property
    def witness(self) -> tuple[float, float]:
        """(t in [0, 1] on the whole path, the loss there): the largest loss that was seen."""
        top = max(self.segments, key=lambda s: s.value)
        return (top.index + top.witness) / len(self.segments), top.value

    @property
    def gap(self) -> float:
        """bound / (largest loss seen) - 1: the true maximum is between the two."""
        return reached(self.bound, self.witness[1])

    @property
    def error_bound(self) -> float | None:
        """No more than this fraction of the examples is wrong at any point of the path; None where not known."""
        bounds = [s.error_bound for s in self.segments]
        known = [b for b in bounds if b is not None]
        return max(known) if len(known) == len(bounds) else None

    @property
    def proved(self) -> bool:
        """Whether every segment is proved; one that is only measured makes it False."""
        return all(s.claim != "measured" for s in self.segments)

    @property
    def close(self) -> bool:
        """Whether the loss is proved, and the bound within the gap that was asked for."""
        return self.proved and close(self.bound, self.witness[1], self.goal)

    @property
    def expected(self) -> float | None:
        """The budget that is expected to bring the bound within the gap; None where none is needed, or none would do.

        From the sub-intervals so far: the excess of a bound falls about fourfold when its interval is halved. It falls
        faster while a bound is useless, and where the network is smooth, so this is rather too much: 1 to 9 times what
        was needed for networks of ReLU, in trials, and up to 30 times for smooth ones.
        """
        if self.close or not (self.spent or self.stopped):
            return None
        # a claim from the control points stays where it is: nothing of it can be cut
        pieces = [piece for s in self.segments for piece in s.intervals or ((0.0, 0.0, s.bound),)]
        more = 4 / 3 * sum(_parts(*piece, self.witness[1], self.goal) for piece in pieces)
        return (1 + more / self.evaluations) * self.cost if isfinite(more) and self.evaluations else None

    @property
    def summary(self) -> str:
        """What was proved, in one line: how far the bound is from what was measured, and what more would buy."""
        best = self.witness[1]
        if not self.proved:
            n, total = len(self.unproved()), len(self.segments)
            said = f"not proved: {n} of {total} segments {'is' if n == 1 else 'are'} only measured"
            return f"{said}: {self.segments[self.unproved()[0]].why.rpartition(NO_BOUND)[2]}"
        if self.close:
            return f"proved: at most {upward(self.bound):.4g}; the largest loss that its search met is {best:.4g}"
        far = distance_in_words(self.bound, best, self.goal)
        if self.stopped:
            near = "" if self.expected is None else f", of about {_about(self.expected)} that are expected to do"
            return f"proved, but {far}: the search was stopped after {_about(self.cost)} profiles{near}"
        return f"proved, but {far}: {budget_in_words(self.budget if self.spent else None, self.expected, self.goal)}"

    @property
    def counts(self) -> dict[str, int]:
        """How many segments have each claim."""
        return dict(Counter(s.claim for s in self.segments))

    def unproved(self) -> list[int]:
        """The numbers of the segments that are only measured, counted from 0."""
        return [s.index for s in self.segments if s.claim == "measured"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in certificate.json."""
        t, value = self.witness
        return {
            "format": 1,
            "bound": self.bound,
            "excess": self.excess,
            "proved": self.proved,
            "ends": list(self.ends),
            "dtype": self.dtype,
            "slack": self.slack,
            "gap": self.gap,
            "goal": self.goal,
            "witness": {"t": t, "loss": value},
            "error_bound": self.error_bound,
            "evaluations": self.evaluations,
            "budget": self.budget,
            "spent": self.spent,
            "stopped": self.stopped,
            "cost": self.cost,
            "model": self.model,
            "predicted": self.predicted if isfinite(self.predicted) else None,
            "sources": dict(self.sources),
            "close": self.close,
            "expected": self.expected,
            "summary": self.summary,
            "counts": self.counts,
            "segments": [
                asdict(s) | {"gap": s.gap, "intervals": [list(piece) for piece in s.intervals]} for s in self.segments
            ],
        }


def _parts(start: float, end: float, bound: float, best: float, goal: float) -> float:
    """Into how many parts a sub-interval must be cut for its bound to come close; infinite where it is too narrow."""
    if close(bound, best, goal):
        return 0.0
    parts = 2.0 ** ceil(log2((bound - best) / max(goal * abs(best), FLOOR)) / 2)
    return parts if (end - start) / parts >= NARROWEST else inf


def reached(bound: float, value: float) -> float:
    """bound / value - 1; losses below the floor of the search count as the floor.

    >>> reached(1.5, 1.0)
    0.5
    """
    return (bound - value) / max(abs(value), FLOOR)


def distance_in_words(bound: float, best: float, goal: float) -> str:
    """How far a bound is above the largest loss that was measured.

    >>> distance_in_words(94.7, 0.0285, 0.01)
    '3300 times the measured maximum (0.0285)'
    >>> distance_in_words(1.1, 1.0, 0.01), distance_in_words(0.25, 0.0, 0.01)
    ('10 % above the measured maximum (1), where 1 % was asked', '0.25 above the measured maximum (0)')
    """
    if best <= FLOOR:
        return f"{upward(bound - best):.4g} above the measured maximum ({best:.4g})"
    if bound >= 2 * best:
        return f"{_about(bound / best)} times the measured maximum ({best:.4g})"
    return f"{100 * (bound / best - 1):.2g} % above the measured maximum ({best:.4g}), where {100 * goal:g} % was asked"


def budget_in_words(spent: float | None, expected: float | None, goal: float) -> str:
    """Why a bound did not come close: the budget that was `spent` (None: there was some left), and what would do."""
    if spent is None:
        return "a larger budget would not lower it"
    if expected is None:
        return f"the budget of {_about(spent)} profiles was spent, and none is expected to bring it within reach"
    return (
        f"the budget of {_about(spent)} profiles was spent; about {_about(expected)} are expected to bring it within "
        f"{100 * goal:g} % (the excess of a bound falls about fourfold when its interval is halved)"
    )


def _about(value: float) -> str:
    """Two significant digits, without an exponent where that is readable."""
    return f"{float(f'{value:.2g}'):.0f}" if 10 <= value < 1e7 else f"{value:.2g}"
