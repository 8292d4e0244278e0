"""The cheapest way to an asked excess."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from isthmus.checks import check_loss
from isthmus.connectors.auto.check import EndLosses
from isthmus.connectors.auto.ladder import Ladder
from isthmus.connectors.base import About, Connection, Connector, Task
from isthmus.errors import InputError
from isthmus.kinds import check_fields


@dataclass(frozen=True)
class Auto(Connector):
    """The cheapest way to an asked excess: what costs little is tried first, the first path that is low enough is it.

    In this order: the straight line; the line to b with its units renumbered (``Aligned``, Ainsworth et al. 2022);
    that line with repaired statistics (``Renormalised``), where it is near enough; constructions whose premises hold
    and that cost little; a trained curve that stops at the level (``Bezier``, Garipov et al. 2018, in the numbering
    whose line is lower, the longer the further that line is above the level); longer curves with more bends; trained
    subnetworks (``Subnetwork``). A step whose premises fail, or whose work exceeds the budget, is skipped.

    `excess`: how far above the larger end the loss may rise, in units of the loss; default: 5 % of the larger end, as
    the target of trained curves. A path is left at its first point above that; the middle is the first. It is accepted
    after a grid of at least 33 points, all on all examples, if the loss is not estimated to rise between them
    (``refine.Samples``), and a construction by its proof. `budget`: passes over the data for all steps together; a step
    of training counts as three passes over its batch.

    ``connection.info.tried`` has a row for each step: what it reached and cost, or why it was skipped. Where nothing
    reached the excess, the outcome is BUDGET_EXHAUSTED, the path the lowest that was found, and
    ``connection.message`` says what would be next. BatchNorm's statistics on the path are those of the method that made
    it; the line is looked at with interpolated ones first, at half the cost.

    When to use: first, for any module and any loss. Cost: one pass to reject a line, some 35 to accept it. Errors:
    ``InputError`` for ends whose loss is not finite.
    """

    excess: float | None = None
    budget: float = 600.0

    about = About(
        makes="the path of the cheapest method that reaches the asked excess",
        reference="Garipov et al. 2018, Ainsworth et al. 2022, Jordan et al. 2022",
        needs="any module",
        cost="one pass for each line that is too high, some 35 for one that is not, then curves, up to `budget`",
        convex=False,
        grows=("budget",),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.excess is not None and not 0 <= self.excess < inf:
            raise InputError(
                "excess", expected="a number >= 0, above the larger end, in units of the loss", got=self.excess
            )
        if not 3 <= self.budget < inf:
            expected = "a number of passes over the data >= 3, for both ends and a point"
            raise InputError("budget", expected=expected, got=self.budget)

    def find(self, task: Task) -> Connection:
        """One step after the other, until one reaches the excess."""
        ends = EndLosses(task.objective, task.a, task.b)
        for name, loss in zip("ab", ends.under("none"), strict=True):
            check_loss(name, loss)
        return Ladder.start(task, ends, self.excess, self.budget).climb()
