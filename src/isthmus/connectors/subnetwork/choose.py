"""Choosing the sets I_l and subnetworks xi_l of Theorem 4.1: draws, restarts, and effort where the bound is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from isthmus.connectors.base import Task
from isthmus.connectors.subnetwork.inner import Trained
from isthmus.connectors.subnetwork.train import (
    Draw,
    Start,
    Subnet,
    SubnetTraining,
    best,
    filled,
    narrowed,
    sizes,
    widened,
)
from isthmus.params import Params
from isthmus.stability.dropout.dropped import Dropped
from isthmus.stability.dropout.recall import search_recalled
from isthmus.stability.dropout.search import Sought
from isthmus.structure.chain import Chain
from isthmus.structure.network_units import Units, random_units

_GAIN = 0.95
"""A search or a further training that leaves more than this share of the loss has not helped."""

_MOVES = 8
"""The most layers that a search for the K_l widens: every move costs up to l + 1 trainings."""


@dataclass(frozen=True)
class Options:
    """The fields of ``Subnetwork`` with the defaults filled in; `fractions` by hidden layer."""

    fractions: Mapping[int, float]
    own: bool
    draws: int
    inner: Trained
    slack: float


@dataclass(eq=False)
class Choice:
    """What has been chosen so far at the ends 0 (a) and 1 (b): the sets and the best subnetworks."""

    options: Options
    chain: Chain
    params: tuple[Params, Params]
    training: SubnetTraining
    target: float
    held: list[Units]
    dropped: list[dict[int, Dropped]]
    xi: list[dict[int, Subnet]] = field(default_factory=lambda: [{}, {}])

    @classmethod
    def start(cls, options: Options, task: Task, chain: Chain) -> Choice:
        """The first sets: random, or around the units that a search for half-width networks keeps."""
        widths = {l: chain.widths[l] for l in range(1, chain.L)}
        K = sizes(widths, options.fractions)
        params = (task.a, task.b)
        dropped: list[dict[int, Dropped]] = [{}, {}]
        if options.inner.init == "dropout":
            dropped = [_half_width(options, task, chain, e) for e in (0, 1)]
            held = [{l: filled(d[l].kept[l], widths[l], K[l], task.generator) for l in widths} for d in dropped]
        else:
            first = random_units(widths, K, task.generator)
            held = [first, random_units(widths, K, task.generator) if options.own else dict(first)]
        target = max(task.objective.loss(p) for p in params) + options.slack
        training = SubnetTraining(
            task.objective, chain, options.inner.recipe, task.generator, task.progress, task.memory
        )
        return cls(options, chain, params, training, target, held, dropped)

    # -- the first training of every subnetwork

    def train(self) -> None:
        """The hub, then xi_1 .. xi_{L-1} at both ends, each from all its draws; the best draws are taken."""
        hub = self._hub()
        sets = [{l: self._sets(l, 0) for l in self.held[0]}]
        sets.append({l: self._sets(l, 1) for l in self.held[1]} if self.options.own else sets[0])
        found = [{l: self._fit(l, e, sets[e][l]) for l in self.held[e]} for e in (0, 1)]
        for e in (0, 1):
            self.xi[e][0] = hub
            for l in self.held[e]:
                both = list(zip(found[0][l], found[1][l], strict=not self.options.own))
                i = best(found[e][l]) if self.options.own else best([max(p, key=lambda s: s.loss) for p in both])
                self._put(e, found[e][l][i])

    def _hub(self) -> Subnet:
        e = min((0, 1), key=lambda e: self.dropped[e][1].loss) if self.dropped[0] else 0
        return self._fit(0, e, [torch.arange(self.chain.widths[0])])[0]

    def _sets(self, l: int, e: int) -> list[Tensor]:
        return [self.held[e][l], *(self._fresh(l, e) for _ in range(self.options.draws - 1))]

    def _fresh(self, l: int, e: int) -> Tensor:
        n, K = self.chain.widths[l], len(self.held[e][l])
        return random_units({l: n}, {l: K}, self.training.generator)[l]

    def _fit(self, l: int, e: int, sets: Sequence[Tensor]) -> list[Subnet]:
        """xi_l at the end for each of these sets, restarted from random weights while even the best is far off."""
        what = "training the hub xi_0" if l == 0 else f"training xi_{l} at {'AB'[e]}"
        out: list[Subnet] = []
        for attempt in range(1 if self.training.convex(l) else self.options.inner.attempts):
            draws = [self._draw(l, e, units, t == 0, attempt > 0) for t, units in enumerate(sets)]
            found = self._run(l, e, draws, what + " again" * bool(attempt))
            out = [p if p.loss <= q.loss else q for p, q in zip(out, found, strict=True)] if out else found
            if min(s.loss for s in out) <= 2 * self.target:
                break
        return out

    def _draw(self, l: int, e: int, units: Tensor, first: bool, at_random: bool) -> Draw:
        start = Start(self.chain, self.params[e], l, {**self.held[e], **({l: units} if l else {})})
        if at_random or self.options.inner.init == "random":
            return start.random(self.training.generator)
        return start.dropout(self.dropped[e][max(l, 1)]) if self.dropped[e] and first else start.theta()

    def _run(self, l: int, e: int, draws: Sequence[Draw], what: str, steps: int | None = None) -> list[Subnet]:
        enough = 1 if self.options.own or len(draws) == 1 else None
        steps = steps or self.options.inner.steps(l)
        return self.training.train(
            l, self.params[e], draws, target=self.target, what=what, steps=steps, enough=enough
        )  # fmt: skip

    def _put(self, e: int, subnet: Subnet) -> None:
        """Take a subnetwork; a hub that the ends share is replaced at both."""
        shared = subnet.l == 0 and self.shared
        for end in (0, 1) if shared else (e,):
            self.xi[end][subnet.l] = subnet
        if subnet.l:
            self.held[e][subnet.l] = subnet.held

    # -- what limits the bound

    @property
    def shared(self) -> bool:
        """Whether both ends have the same hub."""
        return self.xi[0][0] is self.xi[1][0]

    def limiting(self) -> tuple[int, int, Subnet]:
        """(end, layer, subnetwork) of the largest loss: where the maximum of equation 4 is attained."""
        every = [(e, l, s) for e in (0, 1) for l, s in self.xi[e].items()]
        return max(every, key=lambda row: row[2].loss)

    def spend(self, budget: int) -> None:
        """Up to `budget` further steps, always on the subnetwork that limits the bound.

        If neither of the ways to train it further helps, nothing does within the budget of one training.
        """
        failures: dict[tuple[int, int], int] = {}
        while budget > 0:
            e, l, old = self.limiting()
            tries = failures.get((e, l), 0)
            if old.loss <= self.target or not (draws := self._further(e, old, tries)):
                return
            steps = min(budget, self.options.inner.steps(l))
            found = self._run(l, e, draws, f"training xi_{l}, which limits the path, further", steps)
            budget -= max(1, max(s.steps for s in found))
            new = found[best(found)]
            if not new.loss < _GAIN * old.loss:
                failures[e, l] = 2 if self.training.convex(l) else tries + 1
            if new.loss < old.loss:
                self._put(e, replace(new, steps=old.steps + new.steps))

    def _further(self, e: int, old: Subnet, tries: int) -> list[Draw]:
        """From where it is trained on: from where it is; if that did not help, from new sets (where the ends may
        differ) or, for the hub, from random weights.
        """
        l, elsewhere = old.l, tries == 1 or self.training.convex(old.l)
        if tries > 1 or (elsewhere and l > 0 and not self.options.own):
            return []
        if not elsewhere:
            return [Draw(old.held, old.weights)]
        if l == 0:
            return [self._draw(0, e, old.held, False, True)]
        return [self._draw(l, e, units, False, False) for units in self._sets(l, e)[1:] or [self._fresh(l, e)]]

    def search(self) -> None:
        """Equation 6, greedily: where xi_l limits the bound, let it read more units and the xi below have fewer.

        A quarter of the layer's free units joins I_l. The larger K_l stays if xi_l and all subnetworks below it, after
        training on, are lower than xi_l was; else the search ends.
        """
        for _ in range(_MOVES):
            e, l, old = self.limiting()
            free = self.chain.widths[l] - len(self.held[e][l]) if l else 0
            if old.loss <= self.target or free < 2:
                return
            left = max(1, free - max(1, free // 4))
            held = filled(old.held, self.chain.widths[l], self.chain.widths[l] - left, self.training.generator)
            wider = self._run(l, e, [widened(old, held)], f"training xi_{l} on {len(held)} units")[0]
            changed = [wider]
            for p in range(l):
                if changed[-1].loss > _GAIN * old.loss:
                    return
                below = self.xi[e][p]
                what = f"training xi_{p} with {left} units in layer {l}"
                changed.append(self._run(p, e, [narrowed(below, l, left)], what)[0])
            if changed[-1].loss > _GAIN * old.loss:
                return
            self.held[e][l] = held
            for s in changed:
                self.xi[e][s.l] = replace(s, steps=s.steps + self.xi[e][s.l].steps)

    def rows(self) -> list[dict[str, Any]]:
        """The figures of all subnetworks for ``Connection.stats``."""
        every = [(e, l, s) for e in (0, 1) for l, s in self.xi[e].items() if l or e == 0 or not self.shared]
        return [
            {"layer": l, "end": "both" if l == 0 and self.shared else "ab"[e], "loss": s.loss, "steps": s.steps}
            | {"training": s.ended.word, "held": len(s.held)}
            for e, l, s in sorted(every, key=lambda row: (row[1] > 0, row[0], row[1]))
        ]


def _half_width(options: Options, task: Task, chain: Chain, e: int) -> dict[int, Dropped]:
    """The half-width networks of Theorem 1 of Kuditipudi et al. at the end e."""
    sought = Sought(1 - max(options.fractions.values()), options.inner.masks)
    part, end = task.memory.part(f"dropout{e}"), (task.a, task.b)[e]
    return search_recalled(part, task.objective, chain, end, sought, task.generator, task.progress)
