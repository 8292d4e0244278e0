"""Ways to choose the units that stay: random subsets, and searches that look at the network.

A search has a budget of T evaluations of the small network on all examples, and pays for everything from it: passes
through the whole network count 1 / keep^2 times (that many more products), gradients three times a forward
pass, and both only for the examples they see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from math import comb, floor, inf, prod

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.structure.network_units import Units, kept_count, random_units

Scores = dict[int, Tensor]
"""For each hidden layer, one number per unit, float64 on the CPU; the highest stay."""


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a word that is none of the choices."""
    if value not in (known := tuple(choices)):
        raise InputError(what, expected=f"one of {', '.join(map(repr, known))}", got=repr(value))


def rescaling(n: int, kept: int) -> float:
    """n / kept, what the outgoing weights of the kept units are multiplied by; 1 where none is kept.

    >>> rescaling(6, 3), rescaling(1, 0)
    (2.0, 1.0)
    """
    return n / kept if kept else 1.0


def random_subsets(widths: Mapping[int, int], keep: float, generator: torch.Generator) -> Units:
    """A uniformly random subset of floor(keep * n) units of every layer, ascending."""
    return random_units(widths, {j: kept_count(n, keep) for j, n in widths.items()}, generator)


@dataclass(frozen=True)
class Trial:
    """A subset that was evaluated: its best output scale, and its loss with it (infinite for NaN)."""

    kept: Units
    scale: float
    loss: float


@dataclass(eq=False)
class Budget:
    """What a search may do for one entry layer, and what is left to do it with.

    `evaluate` gives (scale, loss) of subsets on all examples; `slopes(kept, scale, index)` the derivative of the loss
    on some examples in the membership (0 or 1) of every unit, kept or not; `strengths(index)` how strongly each unit
    speaks to the next layer. `trace` has one loss per evaluation, infinity for one that was spent otherwise; `seen` are
    the subsets that were evaluated.
    """

    widths: Mapping[int, int]
    keep: float
    total: int
    num_examples: int
    generator: torch.Generator
    evaluate: Callable[[Sequence[Units]], list[tuple[float, float]]]
    slopes: Callable[[Units, float, Tensor], Scores]
    strengths: Callable[[Tensor], Scores]
    trace: list[float] = field(default_factory=list)
    best: Trial = field(default=Trial({}, 1.0, inf))
    debt: float = 0.0
    seen: set[bytes] = field(default_factory=set)

    @property
    def left(self) -> int:
        """How many subsets may still be evaluated."""
        return self.total - len(self.trace) - (self.debt > 0)

    @property
    def sizes(self) -> dict[int, int]:
        """How many units stay in each layer."""
        return {j: kept_count(n, self.keep) for j, n in self.widths.items()}

    def measure(self, subsets: Sequence[Units]) -> list[Trial]:
        """Evaluate some subsets, each at the price of 1."""
        found = [
            Trial(kept, scale, loss if loss == loss else inf)
            for kept, (scale, loss) in zip(subsets, self.evaluate(subsets), strict=True)
        ]
        self.trace += [trial.loss for trial in found]
        self.seen.update(map(_key, subsets))
        for trial in found:
            if not self.best.kept or trial.loss < self.best.loss:
                self.best = trial
        return found

    @property
    def subsets(self) -> int:
        """How many there are."""
        return prod(comb(self.widths[j], k) for j, k in self.sizes.items())

    def measure_all(self) -> bool:
        """Evaluate every subset that there is, if the budget pays for that; says whether it did."""
        if self.subsets > self.left:
            return False
        each = [combinations(range(self.widths[j]), k) for j, k in self.sizes.items()]
        chosen = [[torch.tensor(units, dtype=torch.int64) for units in choices] for choices in each]
        self.measure([dict(zip(self.sizes, kept, strict=True)) for kept in product(*chosen)])
        return True

    def examples(self, share: float, passes: int) -> int:
        """How many examples a share of the whole budget takes through so many passes; one evaluation is reserved."""
        price = passes / (self.keep**2 * self.num_examples)
        return floor(max(0.0, min(share * self.total, self.left - 1.0)) / price + 1e-9)

    def sample(self, n: int, passes: int) -> Tensor:
        """n random examples (all if there are no more), paid for so many passes."""
        N = self.num_examples
        index = torch.randint(N, (n,), generator=self.generator) if n < N else torch.arange(N)
        self.debt += passes * len(index) / (self.keep**2 * N)
        self.trace += [inf] * floor(self.debt)
        self.debt -= floor(self.debt)
        return index

    def noise(self, n: int) -> Tensor:
        """Standard Gumbel numbers: added to scores, they draw units with probability proportional to exp(score)."""
        u = torch.rand(n, generator=self.generator, dtype=torch.float64)
        return -(-u.clamp(1e-300, 1 - 1e-16).log()).log()

    def top(self, scores: Scores, temperature: float = 0.0) -> Units:
        """The units of the highest scores, after adding that much noise."""
        out = {}
        for j, k in self.sizes.items():
            v = scores[j] + temperature * self.noise(len(scores[j])) if temperature else scores[j]
            out[j] = v.argsort(descending=True, stable=True)[:k].sort().values
        return out


_Search = Callable[[Budget, Scores | None], Scores | None]
"""Spends a budget; takes the scores that the search left at the next deeper entry layer, and returns its own."""


def _by_chance(budget: Budget, before: Scores | None = None) -> None:
    """All evaluations on uniformly random subsets: the search of the paper."""
    budget.measure([random_subsets(budget.widths, budget.keep, budget.generator) for _ in range(budget.left)])


def _by_magnitude(budget: Budget, before: Scores | None = None) -> None:
    """Units ranked by activation norm times outgoing norm, perturbed by noise that grows from none to large.

    Can lose to chance on networks trained with dropout, where strong units do the same work many times over.
    """
    if budget.measure_all():
        return
    scores = _ranked(budget)
    budget.measure(_around(budget, scores, budget.left))


def _by_exchange(budget: Budget, before: Scores | None = None) -> None:
    """Local search: from the best of some perturbed rankings, exchange units that the gradient proposes."""
    if _few(budget):
        return
    budget.measure(_around(budget, _ranked(budget), max(1, budget.left // 8)))
    _exchange(budget)


_STEP = 0.3
"""Step of a score, whose spread is 1 at the start, for a gradient of typical size; falls to a tenth of it."""
_MOMENTUM = 0.9
FEWEST, MOST = 32, 512
"""Examples per gradient, about 200 gradients being made in between."""


def _by_gates(budget: Budget, before: Scores | None = None) -> Scores | None:
    """Half the budget trains scores by gradients on few examples at a time, the rest exchanges units.

    Each step keeps the units of the highest scores and moves all scores, those of dropped units too, against the
    derivative of the loss in the unit's membership (straight-through, as Ramanujan et al. 2020 do for single weights),
    so units enter and leave as the sums of many noisy derivatives say. It starts from the ranking by magnitude, deeper
    layers from the scores they had at the entry layer before. Of few subsets there is too little to learn: it tries
    them all where the budget pays for that, else it exchanges units from the best of some random ones.
    """
    if _few(budget):
        return before
    scores = _ranked(budget) | (before or {})
    start = budget.measure([budget.top(scores)])[0]
    examples = budget.examples(0.5, passes=3)
    batch = min(budget.num_examples, max(FEWEST, min(MOST, examples // 200)))
    steps = examples // batch
    speed = {j: torch.zeros_like(v) for j, v in scores.items()}
    for t in range(steps):
        slopes = budget.slopes(budget.top(scores), start.scale, budget.sample(batch, passes=3))
        for j, g in slopes.items():
            size = g.norm() / len(g) ** 0.5
            speed[j] = _MOMENTUM * speed[j] + (1 - _MOMENTUM) * (g / size if size > 0 else g)
            scores[j] = scores[j] - _STEP * (1 - 0.9 * t / steps) * speed[j]
    if budget.left > 0:
        budget.measure([budget.top(scores)])
    _exchange(budget)
    return scores


_FEW = 10**9
"""Where there are no more subsets (some 15 units in each of two layers), gradients were measured not to pay."""
_CHANCE = 0.3
"""The part of the budget that then goes to random subsets first."""


def _few(budget: Budget) -> bool:
    """Search among few subsets; says whether they are."""
    if budget.subsets > _FEW:
        return False
    if not budget.measure_all():
        budget.measure(_elsewhere(budget, max(1, floor(_CHANCE * budget.left))))
        _exchange(budget, together=4)
    return True


SEARCHES: dict[str, _Search] = {
    "random": _by_chance,
    "magnitude": _by_magnitude,
    "greedy": _by_exchange,
    "gates": _by_gates,
}
"""Every search by its name."""


def _ranked(budget: Budget) -> Scores:
    """The logarithm of each unit's strength, centred and scaled to unit spread within its layer."""
    n = min(budget.num_examples, budget.examples(0.05, passes=1))
    if n < 1:
        return {j: budget.noise(width) for j, width in budget.widths.items()}
    out = {}
    for j, v in budget.strengths(budget.sample(n, passes=1)).items():
        # a unit that is silent on these examples is worth little, not infinitely little
        v = v.clamp(min=float(v.max()) * 1e-4).log() if float(v.max()) > 0 else torch.zeros_like(v)
        out[j] = (v - v.mean()) / max(float(v.std(correction=0)), 1e-12)
    return out


def _around(budget: Budget, scores: Scores, n: int) -> list[Units]:
    return [budget.top(scores, temperature=1.5 * k / n) for k in range(n)]


def _exchange(budget: Budget, together: int = 8) -> None:
    """Hill climbing from the best subset: evaluate some exchanges at once, go to the best if it is better.

    As many units leave as enter in each layer, drawn with noise by the derivative of the loss in their membership,
    which is computed anew at every move. After a round without success the exchanges halve in size. No subset is
    evaluated twice; where no new one is found nearby, the climb starts again at random.
    """
    now, sizes = budget.best, budget.sizes
    free = {j: min(k, budget.widths[j] - k) for j, k in sizes.items()}
    free = {j: n for j, n in free.items() if n > 0}
    most = largest = max(1, sum(free.values()) // 10)
    slopes: Scores | None = None
    while budget.left > 0 and free:
        if slopes is None:
            slopes = _slopes_at(budget, now)
        proposals = _nearby(budget, now.kept, free, most, slopes, min(together, budget.left))
        if not proposals:
            again = budget.measure(_elsewhere(budget, min(together, budget.left)))
            now, slopes, most = min(again, key=lambda trial: trial.loss), None, largest
            continue
        best = min(budget.measure(proposals), key=lambda trial: trial.loss)
        if best.loss < now.loss:
            now, slopes = best, None
        else:
            most = max(1, most // 2)


def _slopes_at(budget: Budget, now: Trial) -> Scores | None:
    """The derivative of the loss in every unit's membership, of mean size 1; None where the budget has no room."""
    n = min(budget.examples(0.1, passes=3), 256)
    if n < min(16, budget.num_examples):
        return None
    found = budget.slopes(now.kept, now.scale, budget.sample(n, passes=3))
    return {j: g / max(float(g.abs().mean()), 1e-300) for j, g in found.items()}


_TRIES = 16
"""So many draws per proposal, and for a place to start again, are made before nothing new is said to be there."""


def _nearby(
    budget: Budget, kept: Units, free: Mapping[int, int], most: int, slopes: Scores | None, wanted: int
) -> list[Units]:
    """Up to `wanted` subsets that differ in at most `most` exchanges and were not evaluated yet."""
    out: dict[bytes, Units] = {}
    layers = list(free)
    for _ in range(_TRIES * wanted):
        if len(out) == wanted:
            break
        count = int(torch.randint(1, most + 1, (1,), generator=budget.generator))
        where = torch.randint(len(layers), (count,), generator=budget.generator)
        counts = torch.bincount(where, minlength=len(layers)).tolist()
        new = dict(kept)
        for j, c in zip(layers, counts, strict=True):
            new[j] = _swapped(budget, j, kept[j], min(c, free[j]), None if slopes is None else slopes[j])
        if _key(new) not in budget.seen:
            out.setdefault(_key(new), new)
    return list(out.values())


def _elsewhere(budget: Budget, wanted: int) -> list[Units]:
    """Random subsets, as far as they are found different from one another and not evaluated yet."""
    out: dict[bytes, Units] = {}
    for _ in range(_TRIES * wanted):
        if len(out) == wanted:
            break
        new = random_subsets(budget.widths, budget.keep, budget.generator)
        if _key(new) not in budget.seen or not out:
            out.setdefault(_key(new), new)
    return list(out.values())


def _key(kept: Units) -> bytes:
    return b"".join(kept[j].cpu().numpy().tobytes() for j in sorted(kept))


def _swapped(budget: Budget, j: int, kept: Tensor, count: int, slope: Tensor | None) -> Tensor:
    """Exchange `count` units: those whose presence raises the loss leave, those that would lower it enter."""
    n = budget.widths[j]
    inside = torch.zeros(n, dtype=torch.bool)
    inside[kept] = True
    gain = torch.zeros(n, dtype=torch.float64) if slope is None else slope
    leave = (gain + budget.noise(n)).masked_fill(~inside, -inf).argsort(descending=True)[:count]
    enter = (budget.noise(n) - gain).masked_fill(inside, -inf).argsort(descending=True)[:count]
    inside[leave], inside[enter] = False, True
    return inside.nonzero().flatten()
