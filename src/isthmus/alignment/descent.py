"""Permutations with a large inner product of two networks: built forwards, mixed (Frank-Wolfe), and by ascent."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from isthmus.alignment.assignment import assignment
from isthmus.alignment.overlap import Doubly, Orders, Overlap
from isthmus.params import Params
from isthmus.structure import Group

STEPS = 200
"""Steps of Frank-Wolfe, at most."""
_STILL = 1e-6
"""It ends at a step shorter than that."""


@dataclass(eq=False)
class UnitSearch:
    """A renumbering in the making. `orders`: so far; `b`: the second network under them."""

    overlap: Overlap
    orders: dict[str, Tensor] = field(init=False)
    b: Params = field(init=False)
    assignments: int = 0
    sweeps: int = 0
    converged: bool = True
    trace: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.orders = {g.name: torch.arange(g.size) for g in self.overlap.structure.groups}
        self.b = self.overlap.b

    @property
    def similarity(self) -> float:
        """The inner product with the first network."""
        return self.overlap.value(self.b)

    def begin(self, orders: Orders) -> None:
        """Go on from these."""
        self.orders = dict(orders)
        self.b = self.overlap.permuted(orders)

    def forward(self) -> None:
        """Group by group, each on those tensors only whose other groups are matched already.

        The next group is always the one with the largest share of its entries in such tensors. Groups that stand on one
        axis together, as heads and what is inside them, wait for one another; they are matched by Frank-Wolfe steps.
        Where the groups are numbered in the second network plays no part, unless scores are equal.
        """
        open_, closed = {g.name: g for g in self.overlap.structure.groups}, set[str]()
        while open_:
            ready = {name: self._ready(g, closed) for name, g in open_.items()}
            best = max(ready, key=lambda name: self._share(open_[name], ready[name]))
            if ready[best] or not (stuck := self._waiting(closed)):
                self.take(best, self._solved(open_[best], ready[best]))
                stuck = {best}
            else:
                self._mix(stuck)
            closed |= stuck
            open_ = {name: g for name, g in open_.items() if name not in stuck}

    def _share(self, group: Group, names: Collection[str]) -> float:
        entries = [sum(self.overlap.a[n].numel() for n in some) for some in (names, self.overlap.tensors(group))]
        return entries[0] / (entries[1] or 1)

    def _waiting(self, closed: Collection[str]) -> set[str]:
        """The open groups of the tensor that has the fewest of them, and those that share tensors with these; empty
        where no tensor has several."""
        left = [{g for g, _ in several} - set(closed) for several in self.overlap.of.values()]
        found = min((some for some in left if len(some) > 1), key=len, default=set[str]())
        while more := set().union(*(some for some in left if some & found)) - found:
            found |= more
        return found

    def _mix(self, names: Collection[str]) -> None:
        """Renumber some groups together, the others as they are."""
        part = UnitSearch(self.overlap.among(names, self.b))
        part.barycentre(lambda step: None)
        self.assignments += part.assignments
        for name, order in part.orders.items():
            self.take(name, order)

    def _ready(self, group: Group, closed: Collection[str]) -> list[str]:
        """The tensors of a group whose other groups are closed, and which hold it on one axis."""
        twice = self.overlap.twice(group)
        known = {*closed, group.name}
        return [
            name
            for name in self.overlap.tensors(group)
            if name not in twice and all(other in known for other, _ in self.overlap.of[name])
        ]

    def match(self, name: str, scores: Tensor, ties: float) -> None:
        """Renumber a group by given scores, and by that of its weights, in units of the largest, times `ties`."""
        group = self.overlap.structure.group(name)
        own = self.overlap.gram(group, self.b)
        self.assignments += 1
        self.take(name, assignment(scores + ties * own / (float(own.abs().max()) or 1.0)))

    def climb(self, sweeps: int, tell: Callable[[int], None], names: Collection[str] | None = None) -> None:
        """Match group after group (or some) against the first network, the others held, until none gains.

        Never downwards.
        """
        groups = {g.name: g for g in self.overlap.structure.groups if names is None or g.name in names}
        waiting = set(groups)
        self.trace.append(self.similarity)
        while waiting and self.sweeps < sweeps:
            for name in [name for name in groups if name in waiting]:
                waiting.discard(name)
                if self._improve(groups[name]):
                    waiting |= self._touched(groups[name]) & groups.keys()
            self.sweeps += 1
            self.trace.append(self.similarity)
            tell(self.sweeps)
        self.converged = not waiting

    def _touched(self, group: Group) -> set[str]:
        """The groups whose scores change when this one is renumbered."""
        twice = self.overlap.twice(group)
        own = {group.name} if twice else set[str]()
        return own | {o for name in self.overlap.tensors(group) for o, _ in self.overlap.of[name] if o != group.name}

    def _improve(self, group: Group) -> bool:
        order = self._solved(group)
        if torch.equal(order, torch.arange(group.size)):
            return False
        names, kept = self.overlap.tensors(group), (self.orders, self.b)
        before = self.overlap.value(self.b, names)
        self.take(group.name, order)
        # where the group is on two axes of a tensor its scores are those of one axis moved and the other not
        if self.overlap.twice(group) and not self.overlap.value(self.b, names) > before:
            self.orders, self.b = kept
            return False
        return True

    def _solved(self, group: Group, names: Collection[str] | None = None) -> Tensor:
        self.assignments += 1
        return assignment(self.overlap.gram(group, self.b, names))

    def take(self, group: str, order: Tensor) -> None:
        """Renumber a group."""
        self.b = self.overlap.permuted({group: order}, self.b)
        self.orders = {**self.orders, group: self.orders[group][order]}

    def barycentre(self, tell: Callable[[int], None]) -> None:
        """Frank-Wolfe from the mean of all permutations: all groups at once, then the nearest permutations."""
        overlap = self.overlap
        doubly = {k: torch.full((len(v), len(v)), 1 / len(v), dtype=torch.float64) for k, v in self.orders.items()}
        value = overlap.value_at(doubly)
        for step in range(STEPS):
            slopes = overlap.slopes(doubly)
            vertex = {k: assignment(v) for k, v in slopes.items()}
            self.assignments += len(vertex)
            length, value = _best_step(overlap, doubly, vertex, slopes, value)
            doubly = {k: _towards(v, vertex[k], length) for k, v in doubly.items()}
            tell(step + 1)
            if length < _STILL:
                break
        self.assignments += len(doubly)
        self.begin({k: assignment(v) for k, v in doubly.items()})


def _towards(matrix: Tensor, order: Tensor, length: float) -> Tensor:
    """(1 - length) matrix + length times the permutation."""
    out = (1 - length) * matrix
    out[torch.arange(len(order)), order] += length
    return out


def _best_step(overlap: Overlap, doubly: Doubly, vertex: Orders, slopes: Doubly, value: float) -> tuple[float, float]:
    """How far towards the vertex the inner product is largest, and what it is there.

    Along the way it is a polynomial, of which the value and the slope at 0, the value at 1, and as many values between
    as its degree asks for are known.
    """
    degree = max(overlap.degree(), 1)
    first = sum(
        float(g[torch.arange(len(o)), o].sum()) - float((g * doubly[k]).sum())
        for k, o in vertex.items()
        for g in (slopes[k],)
    )
    at_vertex = overlap.value(overlap.permuted(vertex))
    inner = [(i + 1) / (degree - 1) for i in range(degree - 2)]
    values = [overlap.value_at({k: _towards(v, vertex[k], t) for k, v in doubly.items()}) for t in inner]
    places, known = np.array([*inner, 1.0]), np.array([*values, at_vertex])
    powers = np.arange(2, degree + 1)
    higher = np.linalg.lstsq(places[:, None] ** powers, known - value - first * places, rcond=None)[0]
    curve = np.polynomial.Polynomial([value, first, *(higher if degree > 1 else [])])
    turns = [float(r.real) for r in np.atleast_1d(curve.deriv().roots()) if abs(r.imag) < 1e-9 and 0 < r.real < 1]
    best = max([0.0, 1.0, *turns], key=lambda t: float(curve(t)))
    return best, float(curve(best))
