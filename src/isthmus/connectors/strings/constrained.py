"""Constrained Dynamic String Sampling (Freeman and Bruna 2017, appendix A): all beads go down together."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor

from isthmus.checks import check_at_least_zero, check_choices, check_whole
from isthmus.connectors.base import About, Connection, Connector, Outcome, Task
from isthmus.connectors.strings.beads import Goal, check_recipe
from isthmus.connectors.strings.common import Tools
from isthmus.connectors.strings.search import PERSISTS, beside
from isthmus.connectors.strings.threshold import ThresholdAsked
from isthmus.errors import InputError
from isthmus.kinds import check_fields
from isthmus.params import Params, lerp
from isthmus.paths import Curve, Path
from isthmus.training.fit import Recipe

SOFT = 0.01
"""Nearer to the middle of its neighbours than this part of their distance, a bead feels the hyperplane less."""

_HIGHEST = 1e6
"""In thresholds: the level to start from where the straight line is higher still."""


@dataclass(frozen=True)
class ConstrainedStringSampling(Connector):
    """Appendix A of Freeman and Bruna 2017, corrected: a string with springs that is pulled down level by level.

    It starts as the straight line at the level of its largest value. The level falls by the factor `fall`, down to
    `threshold`, or to `excess` above the larger end; at each level all beads above alpha * level are trained at the
    same time, as one problem with stacked weights where that is faster, on

        F(theta_i) + zeta (|theta_(i-1) - theta_i| + |theta_(i+1) - theta_i|) + kappa |cos of the angle between
        theta_(i-1) - theta_(i+1) and theta_i - (theta_(i-1) + theta_(i+1)) / 2|,

    the neighbours held still: springs, and the pull to the hyperplane equidistant from them (the printed formula has
    a difference for the middle, which depends on the origin). Then every segment that exceeds the level gets a bead
    at its maximum (or half way), until none does.

    When the method does not succeed, the path is the last string that was below its level, the `level` of the stats:
    what the two ends are connected at. ``SUSPECTED_DISCONNECTION``: `patience` insertions at one level have left four
    fifths of the excess.

    `zeta`, `kappa`: the weights of the springs and of the pull. `beads`: at most so many. `quantity`, `on`, `alpha`,
    `position`, `points`, `budget`, `recipe`, `attempts`, `batched`: as in ``StringSampling``.

    When to use: instead of ``StringSampling`` when the string shall stay short and evenly spread, or to see early at
    which level two networks come apart. Cost: more gradient steps, as every bead is moved at every level.
    """

    threshold: float | None = None
    quantity: Literal["loss", "error", "perplexity"] = "loss"
    on: Literal["train", "test"] = "train"
    zeta: float = 1e-4
    kappa: float = 1e-4
    fall: float = 0.7
    position: Literal["maximum", "half"] = "maximum"
    alpha: float = 0.9
    beads: int = 100
    patience: int = 5
    budget: int = 200_000
    points: int = 21
    recipe: Recipe = Recipe(steps=2000)  # noqa: RUF009 - frozen
    attempts: int = 3
    batched: bool | None = None
    excess: float | None = None

    about = About(
        makes="straight segments between beads trained together, each below a threshold",
        reference="Freeman & Bruna 2017, appendix A",
        needs="any module",
        cost="a training of all beads at every level",
        convex=False,
        statistics="interpolate",
        grows=("budget", "beads"),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        ThresholdAsked.of(self)
        check_choices(self)
        check_at_least_zero(self, "zeta", "kappa")
        if not 0 < self.fall < 1:
            raise InputError("fall", expected="a number in (0, 1)", got=self.fall)
        if not 0 < self.alpha <= 1:
            raise InputError("alpha", expected="a number in (0, 1]", got=self.alpha)
        check_whole(self, "beads", "patience", "budget", "attempts")
        check_recipe(self.recipe)

    @property
    def judged(self) -> bool:
        """Whether test data judge the path."""
        return self.on == "test"

    def find(self, task: Task) -> Connection:
        """The string on its way down, to its end."""
        descent = _Descent(self, task)
        while descent.step():
            pass
        return descent.connection()


def pull(weights: Params, rows: list[int], a: Params, b: Params, zeta: float, kappa: float) -> Tensor:
    """The springs and the pull to the hyperplane, summed over the beads `rows`; `weights` is stacked in their order.

    Neighbours are held still, so each bead feels its own terms only.

    >>> a, b = {"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([4.0, 0.0])}
    >>> bead = {"w": torch.tensor([[2.0, 1.5]])}
    >>> float(pull(bead, [0], a, b, zeta=2.0, kappa=1.0))
    10.0
    """
    left, right, across, off, along = (torch.zeros(len(rows)).to(next(iter(weights.values()))) for _ in range(5))
    for name, v in weights.items():
        fixed = v.detach()
        p = torch.cat([a[name][None], fixed[:-1]])[rows]
        q = torch.cat([fixed[1:], b[name][None]])[rows]
        own = v[rows]
        d, n = own - (p + q) / 2, p - q
        left, right = left + _squares(own - p), right + _squares(own - q)
        across, off, along = across + _squares(n), off + _squares(d), along + (n * d).flatten(1).sum(1)
    tiny = torch.finfo(left.dtype).tiny
    springs = (left + tiny).sqrt() + (right + tiny).sqrt()
    cosine = along.abs() / ((across + tiny) * (off + SOFT**2 * across + tiny)).sqrt()
    return zeta * springs.sum() + kappa * cosine.sum()


def _squares(v: Tensor) -> Tensor:
    return v.square().flatten(1).sum(1)


@dataclass
class _State:
    """All plain values that change. `maxima[i]` is what was last seen on segment i, at `places[i]`; None: it moved."""

    level: float
    values: list[float]
    maxima: list[float | None]
    places: list[float]
    reached: float | None = None
    round: int = 0
    attempt: int = 0
    excess: list[float] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    samples: int = 0
    outcome: str = ""

    @property
    def high(self) -> list[int]:
        """The beads above the level."""
        return [i for i, v in enumerate(self.values) if v > self.level]

    @property
    def top(self) -> float:
        """The largest value seen on the segments."""
        return max(v for v in self.maxima if v is not None)


class _Descent:
    """The string on its way down, one piece of work at a time."""

    def __init__(self, method: ConstrainedStringSampling, task: Task) -> None:
        self.seed = int(torch.randint(2**62, (), generator=task.generator))
        self.tools = Tools.of(method, task, self.seed)
        self.method, self.progress = method, task.progress
        self.limit, self.trainer = self.tools.limit, self.tools.trainer
        self.beads = self.best = [task.a, task.b]
        whole = Curve((task.a, task.b))
        line = self.tools.scan(whole, self.limit)
        samples = line.samples
        if line.max > self.limit.value:  # looked at at few places only: its level is that of all samples
            line = self.tools.scan(whole, self.limit.at(inf))
            samples += line.samples
        level = min(max(line.max, self.limit.value), _HIGHEST * (self.limit.value or 1.0))
        self.now = _State(level, [self.limit.of(p) for p in self.beads], [line.max], [line.t], samples=samples)

    def step(self) -> bool:
        """Train the beads, look at one segment, go a level down, or put new beads; False at the end."""
        now, more = self.now, True
        if now.high:
            more = now.steps < self.method.budget and self._train()
        elif None in now.maxima:
            self._look(now.maxima.index(None))
        elif now.top <= now.level:
            self._down()
        else:
            more = now.steps < self.method.budget and self._insert()
        if not more:
            now.outcome = now.outcome or Outcome.BUDGET_EXHAUSTED.name
        return not now.outcome

    def _look(self, i: int) -> None:
        seen = self.tools.scan(Curve((self.beads[i], self.beads[i + 1])), self.limit.at(self.now.level))
        self.now.maxima[i], self.now.places[i] = seen.max, seen.t
        self.now.samples += seen.samples
        self.progress("looking at segments", i + 1, len(self.now.maxima))

    def _down(self) -> None:
        """The whole string is below its level: keep it, and lower the level to what it has or by the factor."""
        now, highest = self.now, self.now.top
        self.best = list(self.beads)
        now.reached = now.level
        path = Path.through(self.best)
        row = {"level": now.reached, "beads": len(self.best) - 2, "normalized_length": self.tools.length(path)}
        now.rows.append(row | {"maximum": highest, "steps": now.steps})
        if now.level <= self.limit.value:
            now.outcome = Outcome.CONSTRUCTED.name
            return
        low = highest <= self.limit.value
        now.level = self.limit.value if low else max(self.limit.value, self.method.fall * min(now.level, highest))
        # what was below a higher level may rise above this one between its samples
        now.maxima = [v if v is not None and v > now.level else None for v in now.maxima]
        now.excess, now.attempt = [], 0

    def _insert(self) -> bool:
        """Every segment above the level gets a bead. False: a maximum persists, or there is no room for more beads."""
        now, method = self.now, self.method
        now.excess.append(now.top - now.level)
        if len(now.excess) > method.patience and now.excess[-1] >= PERSISTS * now.excess[-1 - method.patience]:
            now.outcome = Outcome.SUSPECTED_DISCONNECTION.name
            return False
        before = len(self.beads)
        for i in reversed(range(len(now.maxima))):
            top = now.maxima[i] or 0.0
            if top > now.level and len(self.beads) - 2 < method.beads:
                self._halve(i, top)
        now.attempt = 0
        return len(self.beads) > before

    def _halve(self, i: int, top: float) -> None:
        """A bead on segment i, whose largest value is `top`."""
        now = self.now
        t = min(max(now.places[i], 0.1), 0.9) if self.method.position == "maximum" else 0.5
        point = Curve((self.beads[i], self.beads[i + 1])).at(t)
        value = self.limit.of(point)
        self.beads.insert(i + 1, point)
        now.values.insert(i + 1, value)
        # above the level, both halves are; else they are looked at
        now.maxima[i : i + 1] = [None, None] if value <= now.level else [top, top]
        now.places[i : i + 1] = [0.5, 0.5]

    def _train(self) -> bool:
        """All beads go down to the level together. False: one could not."""
        now, method = self.now, self.method
        a, *starts, b = self.beads
        high, seed = now.high, self.seed + now.round
        if now.attempt:
            for i in high:
                left, right = self.beads[i - 1], self.beads[i + 1]
                names = self.trainer.objective.parameter_names
                starts[i - 1] = beside(lerp(left, right, 0.5), left, right, seed, names)
        steps = min(method.recipe.steps, -(-(method.budget - now.steps) // len(starts)))
        what = f"training {len(starts)} beads to {now.level:.3g}"
        goal = Goal(method.alpha * now.level, steps, seed, self.tools.next_part("training"), self.progress, what)
        trained = self.trainer.train(
            starts, goal, lambda weights, rows: pull(weights, rows, a, b, method.zeta, method.kappa)
        )
        now.round += 1
        now.steps += sum(found.steps for found in trained)
        for i, found in enumerate(trained, start=1):
            if found.steps or i in high:
                self.beads[i], now.values[i] = found.params, found.value
                now.maxima[i - 1] = now.maxima[i] = None
        now.attempt += 1
        if now.high and now.attempt >= method.attempts:
            now.outcome = Outcome.BEAD_FAILED.name
            return False
        return True

    # -- the result

    def connection(self) -> Connection:
        """The last string below its level, with what was seen."""
        now, path = self.now, Path.through(self.best)
        outcome = Outcome[now.outcome]
        level = now.reached if now.reached is not None else float("nan")
        maximum = now.rows[-1]["maximum"] if now.rows else None
        stats = self.tools.stats(path, now.values, inf if maximum is None else maximum) | {
            "level": level,
            "gradient_steps": now.steps,
            "evaluations": now.samples,
            "maximum": maximum,
            "levels": now.rows,
            "segments": [f"sampled below {level:.4g}"] * len(path),
        }
        if not outcome.ok:
            highest = max(v for v in (*now.maxima, *now.values) if v is not None)
            stats["evidence"] = {
                "level_tried": now.level, "beads": len(self.beads) - 2, "highest": highest, "excess": now.excess,
                "bead_values": now.values,
            }  # fmt: skip
        return Connection(path, self.best[-1], outcome, stats)
