"""The steps of ``Auto``, in the order of their cost, and what each bought."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf, nan
from typing import Any

import torch
from torch import nn

from isthmus.certify import certify
from isthmus.connectors.aligned import Aligned
from isthmus.connectors.auto.check import GRID, EndLosses, LevelReading, check, price, usual
from isthmus.connectors.base import Connection, Connector, Outcome, Task, describe, needs_convex
from isthmus.connectors.curves.losses import FEW
from isthmus.connectors.curves.method import Bezier
from isthmus.connectors.deep_linear.method import DeepLinear
from isthmus.connectors.dropout import Dropout
from isthmus.connectors.linear import Linear
from isthmus.connectors.mean_field import MeanField
from isthmus.connectors.renormalised import Renormalised
from isthmus.connectors.sublevel import Sublevel
from isthmus.connectors.subnetwork.inner import Trained
from isthmus.connectors.subnetwork.method import Subnetwork
from isthmus.errors import InputError, UnsupportedError
from isthmus.evaluate.batchnorm import statistics
from isthmus.structure.chain import Chain, chain_of
from isthmus.training.memory import recalled

SHARE = 0.05
"""The excess where none is asked for, in units of the larger end."""
_NEAR = 4.0
"""Repaired statistics are tried on a line that is at most so many times the asked excess above the larger end."""
_ROUNDS: tuple[tuple[float, tuple[tuple[int, int], ...]], ...] = (
    (30.0, ((4, 8), (4, 20), (4, 60))),
    (150.0, ((4, 16), (4, 60))),
    (1500.0, ((4, 20), (4, 60))),
    (inf, ((4, 28), (4, 80))),
)
"""(bends, epochs) of the curves, by how many times the asked excess the middle of the line is above the larger end."""
_LAST = (5, 120)
"""Of the last curve, which has more epochs where the budget allows them."""
_LOOKS = 80
"""Points at which a training of curves looks at the loss of up to ``FEW`` examples, at most about."""
_WIDE = 500
"""Units of a layer from which halves that are chosen beforehand are worth a look."""
_BACKWARD = 3
"""Passes over its examples that a step of training counts as."""


@dataclass(frozen=True, eq=False)
class _Found:
    """A path with what was seen of it, the method that made it, and the excess that is left."""

    connection: Connection
    reading: LevelReading
    method: Connector
    excess: float


@dataclass(eq=False)
class Ladder:
    """What was tried until now; `best` is the path with the lowest maximum that is known of it."""

    task: Task
    ends: EndLosses
    asked: float | None
    budget: float
    seed: int
    tried: list[dict[str, Any]] = field(default_factory=list)
    best: _Found | None = None
    more: str = ""

    @classmethod
    def start(cls, task: Task, ends: EndLosses, asked: float | None, budget: float) -> Ladder:
        """Each step has random numbers of its own, so that none depends on those before it."""
        return cls(task, ends, asked, budget, int(torch.randint(2**31, (), generator=task.generator)))

    @property
    def spent(self) -> float:
        """Passes over the data."""
        return self.ends.passes + sum(row["passes"] for row in self.tried)

    @property
    def left(self) -> float:
        """Of the budget."""
        return max(0.0, self.budget - self.spent)

    @property
    def reached(self) -> bool:
        """Whether the last path is low enough."""
        return self.best is not None and self.best.reading.reached

    def top(self, policy: str) -> float:
        """The larger end."""
        return max(self.ends.under(policy))

    def allowed(self, policy: str) -> float:
        """The asked excess, above the larger end under that policy of BatchNorm."""
        return SHARE * abs(self.top(policy)) if self.asked is None else self.asked

    def level(self, policy: str) -> float:
        """What the loss may reach."""
        return self.top(policy) + self.allowed(policy)

    def climb(self) -> Connection:
        """All steps in turn, until one reaches the level."""
        for _ in self._steps():
            if self.reached:
                break
        return self._connection()

    def _steps(self) -> Iterator[None]:
        if usual(self.task.objective) == "recompute":
            self._attempt(Linear(), bn="interpolate")  # which costs half as much to look at
            yield
        line = self._attempt(Linear())
        yield
        examples = min(1000, self.examples) / self.examples
        aligned = self._aligned(2 * examples)
        yield
        renumbered = aligned is not None and (line is None or aligned.middle < line.middle)
        lower = aligned if renumbered else line
        if renumbered and aligned is not None:
            self._renormalised(aligned, 5 * examples)
            yield
        yield from self._constructions()
        yield from self._curves(inf if lower is None else lower.middle, renumbered)
        self._subnetworks()
        yield

    # -- the steps

    def _aligned(self, passes: float) -> LevelReading | None:
        try:
            groups = self.task.objective.structure.groups
        except (InputError, UnsupportedError) as e:
            self._skip(Aligned(Linear()), str(e))
            return None
        if not groups:
            self._skip(Aligned(Linear()), "the network has no hidden units that could be renumbered")
            return None
        return self._attempt(Aligned(Linear()), passes)

    def _renormalised(self, line: LevelReading, passes: float) -> None:
        method, policy = Aligned(Renormalised()), usual(self.task.objective)
        times = self._times(line.middle)
        if policy == "recompute":
            self._skip(method, "on the line statistics are computed again at every point as it is")
        elif not times <= _NEAR:
            why = f"the middle of the line is {times:.3g} times the asked excess above the larger end"
            self._skip(method, f"{why}, and repaired statistics take a part of that away")
        else:
            self._attempt(method, passes)

    def _times(self, middle: float) -> float:
        """By how many times the asked excess a loss on a line is above the larger end."""
        policy = usual(self.task.objective)
        allowed, above = self.allowed(policy), middle - self.top(policy)
        return above / allowed if allowed > 0 else inf

    def _constructions(self) -> Iterator[None]:
        """Those that cost little, where their premises hold."""
        try:
            chain = self._chain()
        except (InputError, UnsupportedError) as e:
            self._skip(DeepLinear(), str(e))
            return
        layers, n = chain.L - 1, self.examples
        self._attempt(DeepLinear())
        yield
        widest, narrowest = (how(chain.widths[1:-1], default=0) for how in (max, min))
        if max(widest / 2, chain.widths[0] + 1) >= n:
            self._attempt(Sublevel(prove=False))
            yield
        else:
            self._skip(Sublevel(), f"no layer has 2N = {2 * n} units, nor the data so many dimensions as examples")
        if narrowest >= _WIDE:
            self._attempt(MeanField(), 2 * layers)
            yield
        else:
            why = f"a layer has {narrowest} units, and what halving one costs falls only as their number grows"
            self._skip(MeanField(), why)
        if any(isinstance(part, nn.Dropout) and part.p for part in self.task.objective.skeleton.modules()):
            method = Dropout()
            self._attempt(method, method.masks * layers)
            yield
        else:
            self._skip(Dropout(), "the network has no dropout, without which few are stable")

    def _chain(self) -> Chain:
        objective = self.task.objective
        if not objective.convex:
            raise UnsupportedError("constructions", "the loss was not declared convex in the outputs")
        return chain_of(objective.program, objective.structure)

    def _curves(self, middle: float, renumbered: bool) -> Iterator[None]:
        """Curves that stop at the level, each longer than the one before; the last as long as the budget allows."""
        level = self.level(usual(self.task.objective))
        times = self._times(middle)
        rounds = next((several for most, several in _ROUNDS if times <= most), _ROUNDS[-1][1])
        for bends, epochs in (*rounds, (_LAST[0], max(_LAST[1], self._fitting()))):
            curve = Bezier(bends, replace(Bezier().recipe, epochs=max(1, min(epochs, self._fitting()))), target=level)
            method = Aligned(curve) if renumbered else curve
            if self._is_complex:
                self._skip(method, "a trained curve needs real weights, and these are complex")
                return
            if self._fitting() < 1:
                self.more = self.more or _name(replace(curve, recipe=replace(curve.recipe, epochs=epochs)))
                self._skip(method, f"of the budget {self.left:.0f} passes are left")
                return
            if self._attempt(method, 2 * min(1000, self.examples) / self.examples if renumbered else 0.0) is None:
                return
            yield

    @property
    def _is_complex(self) -> bool:
        return any(v.is_complex() for v in self.task.objective.skeleton.parameters())

    def _fitting(self) -> int:
        """Epochs of a curve for which the budget does, with looking and, if there is room for it, the final check."""
        each = price(usual(self.task.objective))
        last, looking = each * GRID, each * _LOOKS * min(1.0, FEW / self.examples)
        several = [int((self.left - looking - rest) / _BACKWARD) for rest in (last, 0)]
        return next((n for n in several if n >= 1), 0)

    def _subnetworks(self) -> None:
        """The last resort of chains: a few trainings of networks of half the width."""
        method = Subnetwork()
        try:
            chain = self._chain()
        except (InputError, UnsupportedError) as e:
            self._skip(method, str(e))
            return
        recipe = method.inner.recipe if isinstance(method.inner, Trained) else Trained().recipe
        passes = (2 * chain.L - 1) * self._passes_of(recipe.steps, recipe.batch)
        if passes > self.left:
            self._skip(method, f"its trainings may take {passes:.0f} passes, and {self.left:.0f} are left")
            return
        self._attempt(method)

    # -- one step

    @property
    def examples(self) -> int:
        """N, and 1 where only numbers can be had."""
        return max(1, self.task.objective.num_examples)

    def _passes_of(self, steps: int, batch: int) -> float:
        return _BACKWARD * steps * min(batch, self.examples) / self.examples

    def _attempt(self, method: Connector, passes: float = 0.0, bn: str | None = None) -> LevelReading | None:
        """Make the path, look at it, and note both.

        `passes`: of making it, where its stats do not count them. `bn`: what becomes of statistics, if not the usual.
        """
        number = len(self.tried)
        if passes + 1 > self.left:
            self._skip(method, f"of the budget {self.left:.3g} passes are left")
            self.more = self.more or _name(method)
            return None
        task = replace(
            self.task,
            generator=torch.Generator().manual_seed(self.seed + number),
            memory=self.task.memory.part(f"try{number}"),
        )
        try:
            if needs_convex(method) and not task.objective.convex:
                raise UnsupportedError("the loss", "it was not declared convex in the outputs")
            found = method.find(task)
            found = replace(found, path=replace(found.path, bn=bn or self._policy(method)))
            _, values = recalled(task.memory.part("check"), lambda: ({}, self._read(found, method).values()))
        except (InputError, UnsupportedError) as e:
            self._skip(method, str(e))
            return None
        reading = LevelReading(**values)
        self._note(method, found, reading, passes)
        return reading

    def _policy(self, method: Connector) -> str | None:
        """What becomes of statistics on its path; None is the default of ``profile``."""
        policy = method.statistics or usual(self.task.objective)
        return policy if statistics(self.task.objective) and policy != "recompute" else None

    def _read(self, found: Connection, method: Connector) -> LevelReading:
        policy = found.path.bn or usual(self.task.objective)
        level = self.level(policy)
        known = found.stats.get("max")
        if known is not None and not known <= level:  # a curve that knows by itself that it is too high
            return LevelReading(known, found.stats["t"], False, 0, 0.0, nan)
        if not found.outcome.ok:
            return LevelReading(inf, nan, False, 0, 0.0, nan)
        if needs_convex(method):
            return self._proved(found, level)
        objective = self.task.objective
        seen = check(objective, found.path, self.ends.under(policy), level, self.left)
        higher = known is not None and known > seen.max  # between the points of the grid
        return replace(seen, max=known, t=found.stats["t"]) if higher else seen

    def _proved(self, found: Connection, level: float) -> LevelReading:
        """By the exact claims of a certificate: about four passes for each segment."""
        if 4 * len(found.path) > self.left:
            why = f"a proof takes about {4 * len(found.path)} passes, and {self.left:.0f} are left"
            raise UnsupportedError("the budget", why)
        proof = certify(self.task.objective, found.path, budget=0)
        t, top = proof.witness
        bound = proof.bound if proof.proved else inf
        return LevelReading(top, t, bound <= level, 0, 4.0 * len(found.path), nan, None if bound <= level else bound)

    def _note(self, method: Connector, found: Connection, reading: LevelReading, passes: float) -> None:
        policy = found.path.bn or usual(self.task.objective)
        steps, looks = found.cost.gradient_steps or 0, found.cost.evaluations or 0
        evaluations = passes + looks + reading.passes
        trained = self._passes_of(steps, self._batch(method)) if steps else 0.0
        excess = reading.max - self.top(policy)
        self.tried.append({
            "method": _name(method) + f", {policy}d statistics" * (policy == "interpolate" and not method.statistics),
            "max": reading.max, "t": reading.t, "excess": excess, "reached": reading.reached,
            "gradient_steps": steps, "evaluations": evaluations, "passes": evaluations + trained,
            "said": self._said(reading, found, excess, policy),
        })  # fmt: skip
        self.task.progress(f"{_name(method)}: excess {excess:.3g}", round(self.spent), round(self.budget))
        if self.best is None or reading.reached or not self.best.excess <= excess:
            self.best = _Found(found, reading, method, excess)

    def _batch(self, method: Connector) -> int:
        inner = method.inner if isinstance(method, Aligned | Subnetwork) else method
        return inner.recipe.batch if isinstance(inner, Bezier | Trained) else 1

    def _said(self, reading: LevelReading, found: Connection, excess: float, policy: str) -> str:
        """What the step bought, in words."""
        if reading.reached:
            how = f"at {reading.points} points" if reading.points else "proved"
            return f"reached: at most {reading.max:.4g} of {self.level(policy):.4g}, {how}"
        if reading.rise is not None:
            return f"at most {reading.max:.4g} at its points, but it may rise to {reading.rise:.4g} between them"
        if not found.outcome.ok and not found.outcome == Outcome.BUDGET_EXHAUSTED:
            return f"not made: {found.message}"
        if reading.max <= self.level(policy):
            return f"at most {reading.max:.4g} at {reading.points} points, then the budget ended"
        before = "" if self.best is None else f", after {self.best.excess:.4g}"
        return f"{reading.max:.4g} at t = {reading.t:.4g}: {excess:.4g} above the larger end{before}"

    def _skip(self, method: Connector, why: str) -> None:
        empty = {"max": None, "t": None, "excess": None, "reached": False}
        empty |= {"gradient_steps": 0, "evaluations": 0.0, "passes": 0.0}
        self.tried.append({"method": _name(method), **empty, "said": f"skipped: {why}"})

    # -- the answer

    def _connection(self) -> Connection:
        best = self.best
        assert best is not None  # noqa: S101 - the line is never refused
        policy = best.connection.path.bn or usual(self.task.objective)
        own = {
            "found": describe(best.method), "level": self.level(policy), "asked": self.allowed(policy),
            "ends": list(self.ends.under(policy)), "max": best.reading.max, "excess": best.excess,
            "passes": self.spent, "budget": self.budget, "tried": self.tried,
            "gradient_steps": sum(row["gradient_steps"] for row in self.tried),
            "evaluations": round(self.ends.passes + sum(row["evaluations"] for row in self.tried)),
        }  # fmt: skip
        outcome = Outcome.CONSTRUCTED if self.reached else Outcome.BUDGET_EXHAUSTED
        why = {} if self.reached else {"why": self._why(best)}
        kept = {k: v for k, v in best.connection.stats.items() if k in ("segments", "alignment", "statistics")}
        return replace(best.connection, outcome=outcome, stats={**kept, **own, **why})

    def _why(self, best: _Found) -> str:
        left = f"{self.spent:.0f} of {self.budget:.0f} passes"
        policy = best.connection.path.bn or usual(self.task.objective)
        low = best.reading.max <= self.level(policy)  # as far as it was looked at
        seen = f" at {best.reading.points} points" if low and best.reading.points else ""
        # a path that is too high was looked at until a point showed it
        found = f"{_name(best.method)} is {'' if low else 'at least '}{best.excess:.4g} above the larger end{seen}"
        said = f"the asked excess was not reached in {left}: {found}"
        if not self.more:
            last = self.tried[-1]
            return f"{said}; nothing is left to try ({last['method']} {last['said']})"
        return f"{said}; the next step would be {self.more} (a larger budget)"


def _name(method: Connector) -> str:
    """A method as a row of the table has it."""
    if isinstance(method, Aligned):
        return f"Aligned({_name(method.inner)})"
    name = type(method).__name__
    return f"{name}(bends={method.bends}, epochs={method.recipe.epochs})" if isinstance(method, Bezier) else name
