"""The table of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from isthmus.connectors import Connection
from isthmus.errors import InputError
from isthmus.shown import brief, draw, line, one_line, plural, table, upward

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TIE = 1e-3
"""Maxima that differ by less than this share of the lowest count as equal."""
HEADING = (
    "method", "max", "excess", "proved bound", "test max", "test error", "length / distance", "passes", "steps",
    "processor s", "verdict",
)  # fmt: skip
"""Of the table for people."""


@one_line
@dataclass(frozen=True)
class ComparisonRow:
    """One method on the pair; None where something was not measured, not proved or not counted.

    `max`, `excess`: of the training loss at the measured points, over the larger end; `bound`: the proved one.
    `test_max`, `test_error`: the largest held-out loss and error. `length`: over the distance of the ends. What making
    the path cost: `passes` over the data (`estimated` as the method's documentation says where it does not count them;
    None for a construction that costs other than evaluations), `gradient_steps`, processor `seconds`, which no file of
    the comparison holds, so that two equal runs give equal bytes. `verdict`: in words; `outcome`: its name; `ok`:
    whether the method succeeded.

    `method`: its name. `connection`: its path, with what the method says of it.
    """

    method: str
    outcome: str
    ok: bool
    max: float
    excess: float
    bound: float | None
    test_max: float | None
    test_error: float | None
    length: float | None
    passes: float | None
    estimated: bool
    gradient_steps: int | None
    verdict: str
    connection: Connection = field(repr=False)
    seconds: float | None = None

    @classmethod
    def of(cls, label: str, result: Mapping[str, Any], connection: Connection) -> ComparisonRow:
        """From what result.json holds."""
        cost, keys = result["cost"], ("bound", "test_loss_max", "test_error_max", "normalized_length")
        bound, test_max, test_error, length = (_known(result.get(key)) for key in keys)
        return cls(
            label, result["outcome"]["name"], result["outcome"]["ok"], _number(result["max_loss"]),
            _number(result["excess"]), bound, test_max, test_error, length, cost["passes"], cost["estimated"],
            cost["gradient_steps"], result["verdict"]["text"], connection, cost["processor_seconds"],
        )  # fmt: skip

    @property
    def cells(self) -> tuple[str, ...]:
        """As text, in the columns of ``HEADING``."""
        bound = None if self.bound is None else upward(self.bound, 6)
        numbers = (self.max, self.excess, bound, self.test_max, self.test_error, self.length)
        steps = "" if self.gradient_steps is None else str(self.gradient_steps)
        shown = ["" if v is None else brief(v) for v in numbers]
        passes = "" if self.passes is None else "about " * self.estimated + f"{self.passes:.0f}"
        seconds = "" if self.seconds is None else f"{self.seconds:.2f}"
        return (self.method, *shown, passes, steps, seconds, self.verdict)

    @property
    def price(self) -> float:
        """The passes; infinite where they are not known."""
        return inf if self.passes is None else self.passes

    def to_dict(self) -> dict[str, Any]:
        """Plain values: all but the connection, and the seconds, which differ between equal runs."""
        return {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in ("connection", "seconds")}


def _known(value: float | None) -> float | None:
    """None for what is not finite, as files have it."""
    return None if value is None or not isfinite(value) else value


def _number(value: float | None) -> float:
    """A loss; what is not finite is the highest."""
    return inf if _known(value) is None else float(value or 0.0)


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` returns: `rows`, one for each method that made a path, and why the others made none, `skipped`.

    `budget`: passes over the data that the training of each method was fitted to, None: its own.
    """

    rows: tuple[ComparisonRow, ...]
    skipped: Mapping[str, str]
    budget: float | None = None

    def __repr__(self) -> str:
        best = [f"best {self.best.method}"] if self.rows else []
        return line(self, plural(len(self.rows), "path"), *best, f"{len(self.skipped)} do not apply")

    @property
    def best(self) -> ComparisonRow:
        """The row with the lowest largest loss; of those within 0.1 % of it the one that cost the fewest passes."""
        if not self.rows:
            raise InputError("methods", expected="one that makes a path for this pair", got=dict(self.skipped))
        lowest = min(row.max for row in self.rows)
        level = lowest + _TIE * abs(lowest) if lowest < inf else inf
        return min((row for row in self.rows if row.max <= level), key=lambda row: (row.price, row.max))

    @property
    def front(self) -> tuple[ComparisonRow, ...]:
        """The rows that no other one beats in both the excess and the passes, the cheapest first (Pareto)."""
        out: list[ComparisonRow] = []
        for row in sorted(self.rows, key=lambda row: (row.price, row.excess)):
            if not out or row.excess < out[-1].excess:
                out.append(row)
        return tuple(out)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The excess against the passes, the front marked, on `ax` (default: new axes). Needs ``isthmus[plot]``."""
        return draw(self, ax)

    def _repr_html_(self) -> str:
        return table(*self.table(), repr(self))

    def table(self) -> tuple[Sequence[str], list[tuple[str, ...]]]:
        """Headings, and a row for each method, those that do not apply last."""
        rows = [row.cells for row in self.rows]
        rows += [(name, *[""] * (len(HEADING) - 2), f"does not apply: {why}") for name, why in self.skipped.items()]
        return HEADING, rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as comparison.json holds them."""
        names = {"best": self.best.method, "front": [row.method for row in self.front]} if self.rows else {}
        rows = [row.to_dict() for row in self.rows]
        return {"format": 1, "budget": self.budget, **names, "rows": rows, "skipped": dict(self.skipped)}
