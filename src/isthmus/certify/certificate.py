"""What was proved about a path, as values."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from isthmus.certify.branch import FLOOR


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


@dataclass(frozen=True)
class Certificate:
    """max_t L(t) <= `bound`, where every segment's claim is other than "measured" (then `proved` is True).

    The statement is about the function in real arithmetic, with the weights of the path as exact numbers; it was
    computed in `dtype`, and the bound allows for all rounding on the way, of exact claims too: `slack` is the largest
    such allowance of an exact claim, or at the largest loss of a bounded segment. `goal` is the gap that was asked for;
    `evaluations` bounds over sub-intervals were computed, of the `budget` allowed.
    """

    segments: tuple[SegmentCertificate, ...]
    ends: tuple[float, float]
    dtype: str
    slack: float
    goal: float
    evaluations: int = 0
    budget: int = 0

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
            "counts": self.counts,
            "segments": [
                asdict(s) | {"gap": s.gap, "intervals": [list(piece) for piece in s.intervals]} for s in self.segments
            ],
        }


def reached(bound: float, value: float) -> float:
    """bound / value - 1; losses below the floor of the search count as the floor.

    >>> reached(1.5, 1.0)
    0.5
    """
    return (bound - value) / max(abs(value), FLOOR)
