"""The table of theorems: rows of measured premises, and what they share while they are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import isfinite, isnan
from typing import Any

import torch

from isthmus.analysis.subnetwork_bounds import SubnetworkBounds, subnetwork_bounds
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.premises.memorisation import Memorisation, is_perceptron, memorisation, separability
from isthmus.premises.separability import Separability
from isthmus.premises.sublevel import SublevelConditions, sublevel_conditions
from isthmus.shown import line, one_line, plural, table
from isthmus.stability.dropout.measure import DropoutStability, dropout_stability
from isthmus.stability.noise.measure import Condition, NoiseStability, noise_stability
from isthmus.structure.chain import Chain, chain_of
from isthmus.training.fit import Recipe
from isthmus.training.progress import Progress

_HEADING = ("theorem", "premise", "end", "measured", "needed", "holds", "bound", "note")
CONCLUSION = "the path's loss is bounded"
"""The premise column of the row that says what a theorem gives."""


@one_line
@dataclass(frozen=True)
class Row:
    """One premise of one theorem, or its conclusion.

    `end`: "a", "b" or "" (the pair). `measured`: the number that the premise is about, None where there is none.
    `holds`: True, False, or None: not checkable (the paper names no constant, or nothing was proved either way).
    `bound`: in the row of the conclusion, the bound on the loss along a path between the two networks. `vacuous`: why a
    premise that holds asks nothing of this pair.
    """

    theorem: str
    premise: str
    end: str = ""
    measured: float | None = None
    needed: str = ""
    holds: bool | None = None
    bound: float | None = None
    note: str = ""
    vacuous: str = ""


@dataclass(frozen=True)
class Theory:
    """What ``theory`` returns: `rows`, one group per theorem, the conclusion last in each."""

    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        theorems = {row.theorem for row in self.rows}
        return line(self, plural(len(theorems), "theorem"), plural(len(self.bounds), "bound"))

    def _repr_html_(self) -> str:
        return table(_HEADING, [cells(row) for row in self.rows], repr(self))

    def of(self, theorem: str) -> tuple[Row, ...]:
        """The rows whose theorem's name ends so: ``of("Theorem 4.1")``."""
        return tuple(row for row in self.rows if row.theorem.endswith(theorem))

    @property
    def bounds(self) -> dict[str, float]:
        """The bound that each theorem gives, of those that give one."""
        return {row.theorem: row.bound for row in self.rows if row.bound is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"rows": [asdict(row) for row in self.rows]}

    def to_markdown(self) -> str:
        """The table in Markdown: numbers in four digits, bounds rounded up."""
        lines = [_HEADING, ("---",) * len(_HEADING), *(cells(row) for row in self.rows)]
        return "".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |\n" for line in lines)


def cells(row: Row) -> tuple[str, ...]:
    """A row as text.

    >>> cells(Row("T", "p", "a", 0.123456, "< 1", None, 0.123411))[3:7]
    ('0.1235', '< 1', 'not checkable', '0.1235')
    """
    measured = "" if row.measured is None else f"{row.measured:.4g}"
    bound = "" if row.bound is None else rounded_up(row.bound)
    holds = f"vacuous: {row.vacuous}" if row.vacuous else _word(row.holds)
    return row.theorem, row.premise, row.end, measured, row.needed, holds, bound, row.note


def _word(holds: bool | None) -> str:
    """How a table says it."""
    return {True: "yes", False: "no", None: "not checkable"}[holds]


def rounded_up(value: float) -> str:
    """Four significant digits, rounded up so that a bound stays one."""
    text = f"{value:.4g}"
    if float(text) >= value:
        return text
    digit = int(f"{abs(value):e}".partition("e")[2]) - 3
    return f"{float(text) + 10.0**digit:.4g}"


@dataclass(frozen=True)
class Settings:
    """What the measurements may cost; see ``theory``."""

    masks: int = 50
    draws: int = 5
    steps: int = 500
    examples: int | None = 500
    seed: int = 0


@dataclass(eq=False)
class MeasuredPair:
    """Two networks, and measurements that several theorems need, each made once. Ends are 0 (a) and 1 (b)."""

    objective: Objective
    params: tuple[Params, Params]
    settings: Settings
    progress: Progress
    _dropout: dict[int, DropoutStability] = field(default_factory=dict)
    _noise: dict[int, NoiseStability] = field(default_factory=dict)
    _bounds: dict[int, SubnetworkBounds] = field(default_factory=dict)

    @cached_property
    def chain(self) -> Chain:
        """The network as a chain of layers; ``UnsupportedError`` where it is none."""
        return chain_of(self.objective.program, self.objective.structure)

    @cached_property
    def losses(self) -> tuple[float, float]:
        """L(a) and L(b)."""
        return self.objective.loss(self.params[0]), self.objective.loss(self.params[1])

    @property
    def top(self) -> float:
        """max(L(a), L(b))."""
        return max(self.losses)

    @cached_property
    def few(self) -> Objective:
        """The objective on the first `examples` examples."""
        n = self.objective.num_examples
        return self.objective.subset(min(self.settings.examples or n, n))

    @property
    def all_used(self) -> bool:
        """Whether `few` has all examples."""
        return self.few.num_examples == self.objective.num_examples

    @cached_property
    def sublevel(self) -> SublevelConditions:
        """The premises of Nguyen 2019, with the ranks at both ends for perceptrons: unfolded convolutions are large."""
        return sublevel_conditions(self.objective, *(self.params if is_perceptron(self.chain) else ()))

    def dropout(self, e: int) -> DropoutStability:
        """Definition 1 of Kuditipudi et al. at one end."""
        if e not in self._dropout:
            s = self.settings
            self._dropout[e] = dropout_stability(
                self.objective, self.params[e], masks=s.masks, seed=s.seed, progress=self._named(e)
            )
        return self._dropout[e]

    def noise(self, e: int) -> NoiseStability:
        """Definitions 2 to 4 of Kuditipudi et al. at one end, on the first examples."""
        if e not in self._noise:
            s = self.settings
            self._noise[e] = noise_stability(
                self.few, self.params[e], draws=s.draws, seed=s.seed, tolerance=1e-2, progress=self._named(e)
            )
        return self._noise[e]

    def bounds(self, e: int) -> SubnetworkBounds:
        """Q_l of Nguyen, Brechet, Mondelli at one end."""
        if e not in self._bounds:
            s, recipe = self.settings, Recipe(steps=self.settings.steps)
            self._bounds[e] = subnetwork_bounds(
                self.objective, self.params[e], draws=s.draws, seed=s.seed, recipe=recipe, target=self.top,
                progress=self._named(e),
            )  # fmt: skip
        return self._bounds[e]

    def memorisation(self, e: int) -> Memorisation:
        """(A1), (A2), (A3) at one end."""
        return memorisation(self.objective, self.params[e], seed=self.settings.seed, progress=self._named(e))

    def separability(self, e: int, kind: str, layers: Sequence[int], *, whole: bool = False) -> dict[int, Separability]:
        """Corollary 4.4's assumption at one end; `whole`: for all units of a layer in place of a random set."""
        held = {l: torch.arange(self.chain.widths[l]) for l in range(1, self.chain.L)} if whole else None
        s = self.settings
        return separability(
            self.objective, self.params[e], held, kind=kind, layers=layers, seed=s.seed, progress=self._named(e)
        )

    def _named(self, e: int) -> Progress:
        return lambda what, done, total: self.progress(f"{what} ({'ab'[e]})", done, total)


Premises = Callable[[MeasuredPair], list[Row]]
"""One theorem: its rows for a pair; raises where the network is out of its scope."""


def conclusion(theorem: str, rows: Sequence[Row], bound: float | None, note: str = "") -> Row:
    """The last row of a group: what follows if all premises hold; no bound where one fails or could not be checked."""
    verdicts = [row.holds for row in rows] + [False] * (bound is not None and not isfinite(bound))
    holds = False if False in verdicts else None if None in verdicts else True
    bound = bound if holds else None
    return Row(theorem, CONCLUSION, holds=holds, needed="all of the above", bound=bound, note=note)


def convex(theorem: str, holds: bool) -> Row:
    """The premise of all theorems about a given pair."""
    return Row(theorem, "loss convex in the outputs", needed="convex", holds=holds)


def not_convex(theorem: str) -> list[Row]:
    """What a theorem says of a loss that was not declared convex in the outputs; nothing else is measured."""
    rows = [convex(theorem, False)]
    return [*rows, conclusion(theorem, rows, None)]


def rows_of(theorem: str, conditions: Sequence[Condition]) -> list[Row]:
    """Measured conditions as rows; NaN, for what could not be measured, becomes an empty cell.

    >>> [(r.measured, r.holds) for r in rows_of("T", [Condition("p", float("nan"), "> 0", None)])]
    [(None, None)]
    """
    found = [(c, None if isnan(c.value) else float(c.value)) for c in conditions]
    return [Row(theorem, c.name, "", value, c.needed, c.holds) for c, value in found]
