"""The work list of Dynamic String Sampling: beads and segments, one piece of work at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from isthmus.certify import certify
from isthmus.connectors.base import Connection, Outcome, Task
from isthmus.connectors.strings.beads import Goal, TrainedBead
from isthmus.connectors.strings.common import Tools
from isthmus.errors import UnsupportedError
from isthmus.params import Params, distance, lerp, norm
from isthmus.paths import Curve, Path

if TYPE_CHECKING:
    from isthmus.connectors.strings.sampling import StringSampling

_BELOW = {"below", "proved"}
"""The states of a segment with which nothing is left to do: it is below the threshold."""

_NOISE = 0.1
"""The distance, in lengths of its segment, at which a bead that failed starts anew."""

PERSISTS = 0.8
"""The part of the excess over the threshold that is left where a maximum persists; it falls to far less elsewhere."""


@dataclass(eq=False)
class _Bead:
    """A point of the string: its value, at which depth it was put in, and what its training took."""

    params: Params
    value: float
    depth: int
    steps: int = 0
    training: str = "an end"


@dataclass
class _Span:
    """A segment that was met: the beads at its ends (by number), its length, and what was seen on it.

    `chain` holds (depth, length, maximum) of the segments it came from by halving, and its own. `state`: "new" (not
    looked at yet), "open" (above the threshold), "halved", "below", "proved", or why nothing more is done: "failed",
    "persistent", "deep".
    """

    left: int
    right: int
    depth: int
    length: float
    chain: list[list[float]] = field(default_factory=list)
    state: str = "new"
    max: float | None = None
    t: float = 0.5
    samples: int = 0
    spacing: float = 1.0
    bound: float | None = None


class StringSearch:
    """The work list: beads, spans, and one piece of work at a time."""

    def __init__(self, method: StringSampling, task: Task) -> None:
        # one seed per depth: what becomes of a bead does not depend on when its turn is
        self.seeds = [int(torch.randint(2**62, (), generator=task.generator)) for _ in range(method.depth)]
        self.tools = Tools.of(method, task, self.seeds[0])
        self.method, self.progress = method, task.progress
        self.limit, self.trainer = self.tools.limit, self.tools.trainer
        self.beads = [_Bead(p, self.limit.of(p), 0) for p in (task.a, task.b)]
        self.order = [0, 1]
        self.spans = [_Span(0, 1, 0, distance(task.a, task.b))]
        self.pending: list[TrainedBead] = []
        self.attempt = self.lost = 0

    def step(self) -> bool:
        """Look at one new segment, or train the beads of the next group; False when nothing is left to do."""
        fresh = next((s for s in self.spans if s.state == "new"), None)
        if fresh is not None:
            self._look(fresh)
            return True
        group = self._group()
        if not group or (self.spent >= self.method.budget and not self.pending):
            return False
        self._insert(group)
        return True

    # -- looking at a segment

    def _look(self, span: _Span) -> None:
        left, right = self.beads[span.left].params, self.beads[span.right].params
        curve = Curve((left, right))
        seen = self.tools.scan(curve, self.limit)
        span.max, span.t, span.samples, span.spacing = seen.max, seen.t, seen.samples, seen.spacing
        span.chain = [*span.chain, [span.depth, span.length, seen.max]]
        done = sum(s.state != "new" for s in self.spans)
        self.progress("looking at segments", done, len(self.spans))
        if seen.max <= self.limit.value and not (self.method.always and span.depth == 0):
            span.state = "below"
            if not self.method.certify or self._prove(span, curve):
                return
        span.state = "open"
        if max(self.beads[span.left].value, self.beads[span.right].value) > self.limit.value:
            span.state = "failed"
        elif self._persists(span):
            span.state = "persistent"
        elif span.depth >= self.method.depth:
            span.state = "deep"

    def _prove(self, span: _Span, curve: Curve) -> bool:
        goal, top = self.limit.loss, self.limit.objective.loss
        seen = max(top(p) for p in (curve.start, curve.at(span.t), curve.end))
        gap = (goal - seen) / seen if seen > 0 else 1.0

        def prove() -> dict[str, Any]:
            proof = certify(self.limit.objective, Path((curve,)), max(gap, 1e-6), budget=self.method.effort)
            return {"proved": proof.proved, "bound": proof.bound}

        proof = self.tools.once("proof", curve, goal, prove)
        if not proof["proved"]:
            raise UnsupportedError(
                type(self.limit.objective.skeleton).__name__,
                "the loss on a segment can only be measured for this network, not bounded",
                "write certify=False",
            )
        span.bound = self.limit.value * proof["bound"] / goal if self.limit.quantity == "loss" else None
        if proof["bound"] <= goal:
            span.state = "proved"
        return proof["bound"] <= goal

    def _persists(self, span: _Span) -> bool:
        """Whether most of the excess of `patience` generations ago is still there."""
        if len(span.chain) <= self.method.patience:
            return False
        now, then = (span.chain[i][2] - self.limit.value for i in (-1, -1 - self.method.patience))
        return now > 0 and now >= PERSISTS * then  # both may be infinite

    # -- putting beads

    @property
    def spent(self) -> int:
        """Gradient steps so far."""
        return self.lost + sum(b.steps for b in self.beads) + sum(b.steps for b in self.pending)

    def _group(self) -> list[_Span]:
        """The open segments that come next: all of the least depth, or the first on the way from a to b."""
        place = {bead: i for i, bead in enumerate(self.order)}
        waiting = sorted((s for s in self.spans if s.state == "open"), key=lambda s: place[s.left])
        if self.method.order == "depth":
            return waiting[:1]
        least = min((s.depth for s in waiting), default=0)
        return [s for s in waiting if s.depth == least]

    def _insert(self, group: list[_Span]) -> None:
        """Train the beads of a group, or once more those that failed; when that is over, put them into the string."""
        method, limit, depth = self.method, self.limit.value, group[0].depth
        part = self.tools.next_part("training")
        rows = [i for i in range(len(group)) if not self.pending or self.pending[i].value > limit]
        steps = min(method.recipe.steps, -(-(method.budget - self.spent) // len(rows)))
        what = f"training beads at depth {depth + 1}"
        goal = Goal(method.alpha * limit, steps, self.seeds[depth], part, self.progress, what)
        self._take(rows, self.trainer.train([self._start(group[i]) for i in rows], goal))
        self.attempt += 1
        good = all(found.value <= limit for found in self.pending)
        if good or self.attempt >= method.attempts or self.spent >= method.budget:
            self._settle(group)

    def _take(self, rows: list[int], trained: list[TrainedBead]) -> None:
        """The beads of the group; of one that was trained once more the better."""
        if not self.attempt:
            self.pending = trained
            return
        for i, found in zip(rows, trained, strict=True):
            best = min(self.pending[i], found, key=lambda x: x.value)
            self.pending[i] = replace(best, steps=self.pending[i].steps + found.steps)

    def _settle(self, group: list[_Span]) -> None:
        for span, found in zip(group, self.pending, strict=True):
            if found.value <= self.limit.value or self.attempt >= self.method.attempts:
                self._halve(span, found)
            else:  # the budget cut its training short: the segment stays open
                self.lost += found.steps
        self.pending, self.attempt = [], 0

    def _start(self, span: _Span) -> Params:
        """Where the bead of a segment starts: on it, and after a failure beside it."""
        left, right = self.beads[span.left].params, self.beads[span.right].params
        above = (span.max or 0) > self.limit.value  # else it could not be proved: any place shortens it
        t = min(max(span.t, 0.1), 0.9) if self.method.position == "maximum" and above else 0.5
        point = lerp(left, right, t)
        if not self.attempt:
            return point
        return beside(point, left, right, self.seeds[span.depth] + self.attempt, self.trainer.objective.parameter_names)

    def _halve(self, span: _Span, found: TrainedBead) -> None:
        number = len(self.beads)
        self.beads.append(_Bead(found.params, found.value, span.depth + 1, found.steps, found.ended.word))
        self.order.insert(self.order.index(span.left) + 1, number)
        span.state = "halved"
        for left, right in ((span.left, number), (number, span.right)):
            length = distance(self.beads[left].params, self.beads[right].params)
            self.spans.append(_Span(left, right, span.depth + 1, length, span.chain))

    # -- the result

    def connection(self) -> Connection:
        """The string as it is, with what was seen."""
        now = {s.left: s for s in self.spans if s.state != "halved"}
        spans = [now[i] for i in self.order[:-1]]
        path = Path.through([self.beads[i].params for i in self.order])
        states = {s.state for s in spans}
        if states <= _BELOW:
            outcome = Outcome.CONSTRUCTED
        elif "persistent" in states:
            outcome = Outcome.SUSPECTED_DISCONNECTION
        else:
            outcome = Outcome.BEAD_FAILED if "failed" in states else Outcome.BUDGET_EXHAUSTED
        labels = [self._label(s) for s in spans]
        return Connection(path, self.beads[1].params, outcome, self._stats(spans, path) | {"segments": labels})

    def _label(self, span: _Span) -> str:
        """What was seen of a segment, against the threshold."""
        limit = self.limit.value
        low = span.max is not None and span.max <= limit
        words = {"below": "sampled below", "proved": "proved below", "failed": "above, beside a bead that failed,"}
        said = words.get(span.state, "sampled below, not proved below" if low else "above")
        return f"{said} {limit:.4g} (max {span.max:.4g}, depth {span.depth})"

    def _stats(self, spans: list[_Span], path: Path) -> dict[str, Any]:
        top, string = _highest(spans), _said([self.beads[i] for i in self.order])
        stats = self.tools.stats(path, string["values"], top) | string
        stats["sampling"]["largest_spacing"] = max(s.spacing for s in spans)
        stats |= {
            "gradient_steps": self.spent,
            "evaluations": sum(s.samples for s in self.spans),
            "maximum": top,
            "rounds": self._rounds(),
        }
        if self.method.certify:
            stats["bounds"] = [s.bound for s in spans]
        persistent = [s for s in spans if s.state == "persistent"]
        return stats | ({"evidence": _evidence(persistent)} if persistent else {})

    def _rounds(self) -> list[dict[str, Any]]:
        return [self._round(depth) for depth in range(1 + max(s.depth for s in self.spans))]

    def _round(self, depth: int) -> dict[str, Any]:
        """At one depth: beads, their steps, segments looked at, those above the threshold, the largest value."""
        spans = [s for s in self.spans if s.depth == depth]
        beads = [b for b in self.beads[2:] if b.depth == depth]
        above = [s for s in spans if s.state not in _BELOW]
        row = {"depth": depth, "beads": len(beads), "steps": sum(b.steps for b in beads), "segments": len(spans)}
        return row | {"above": len(above), "maximum": _highest(spans)}


def _said(beads: Sequence[_Bead]) -> dict[str, Any]:
    born = [b.depth for b in beads]
    values, trainings = [b.value for b in beads], [b.training for b in beads]
    return {"depth": max(born), "values": values, "born": born, "trainings": trainings}


def _highest(spans: Sequence[_Span]) -> float:
    return max(s.max or 0.0 for s in spans)


def _evidence(spans: Sequence[_Span]) -> list[dict[str, Any]]:
    """The segments that were halved on the way to the highest of these, and what was seen on them."""
    worst = max(spans, key=lambda s: s.max or 0.0)
    return [{"depth": depth, "length": length, "maximum": top} for depth, length, top in worst.chain]


def beside(point: Params, left: Params, right: Params, seed: int, names: Sequence[str]) -> Params:
    """A point near `point`, ``_NOISE`` times the distance of its neighbours away in a random direction.

    Units that are equal in the middle between two permutations stay equal in training; noise tells them apart.
    """
    generator = torch.Generator().manual_seed(seed)
    moved = [k for k in point if k in set(names)]
    noise = {k: torch.randn(point[k].shape, generator=generator, dtype=torch.float64).to(point[k]) for k in moved}
    size = _NOISE * distance(left, right) / norm(noise)
    return point | {k: point[k] + size * v for k, v in noise.items()}
