"""What a search computes, each number once: also where it was killed in between, and goes on from a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from isthmus.certify.bounds import Bound
from isthmus.certify.branch import Interval
from isthmus.certify.cost import Rate
from isthmus.certify.kernel import Kernel
from isthmus.errors import UnsupportedError
from isthmus.objective.described import bound as described
from isthmus.training.memory import Memory


def plain(found: Bound) -> tuple[float, float, float, str]:
    """What is kept of a bound."""
    return found.loss, found.error, found.estimate, found.why


class Remembered:
    """Bounds of a path over sub-intervals, losses and costs, kept by a memory; numbers come back to the last bit.

    None of them depends on the gap that is asked for, nor on the budget.
    """

    def __init__(self, kernel: Kernel, memory: Memory) -> None:
        kept = memory.load()
        self.kernel, self.memory, self.computed = kernel, memory, 0
        self.values: dict[str, dict[str, Any]] = {} if kept is None else kept[1]

    def bound(self, model: str) -> Callable[[int, float, float], Bound]:
        """The bounds of one model."""

        def of(i: int, start: float, end: float) -> Bound:
            loss, error, estimate, why = self._known(model, (i, start, end), lambda: self._bound(i, start, end, model))
            return Bound(loss, error, estimate, why=why)

        return of

    def _bound(self, i: int, start: float, end: float, model: str) -> tuple[float, float, float, str]:
        return plain(self.kernel.bound(i, start, end, model))

    def has(self, model: str, interval: Interval) -> bool:
        """Whether the bound over an interval is known."""
        return repr(interval) in self.values.get(model, {})

    def put(self, model: str, interval: Interval, found: tuple[float, float, float, str]) -> None:
        """Remember a bound that was computed elsewhere, from the same objective and path."""
        self._known(model, interval, lambda: found)

    def loss(self, i: int, t: float) -> float:
        """The loss at t on segment i."""
        return float(self._known("losses", (i, t), lambda: self.kernel.loss(i, t)))

    def rates(self, models: Sequence[str], count: Callable[[], Sequence[Rate]]) -> list[Rate]:
        """What bounds of these models cost, counted together: the first one computes what the others share."""

        def counted() -> list[tuple[int, int, int]]:
            return [(r.measuring, r.once, r.each) for r in count()]

        return [Rate(*v) for v in self._known("rates", tuple(models), counted)]

    def save(self) -> None:
        """Keep what there is, if there is more than before."""
        if self.computed:
            self.memory.save({}, self.values)

    def _known(self, kind: str, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        values, name = self.values.setdefault(kind, {}), repr(key)
        if name not in values:
            values[name] = compute()
            self.computed += 1
            if self.memory.due(self.computed):
                self.save()
        return values[name]


def decides(kernel: Kernel, num_points: int) -> dict[str, Any]:
    """All that such numbers depend on, as plain values and parameters.

    Modules of one name may compute different things: what this one does is in its graph.
    """
    control = [list(kernel.control(i)) for i in range(len(kernel.path))]
    try:
        program = kernel.program
    except UnsupportedError:
        graph, constants = [], {}
    else:
        graph = [f"{n.name} = {n.op} {n.args} {dict(n.kwargs)}" for n in program.nodes]
        constants = dict(program.constants)
    own = {"certify": num_points, "control": control, "graph": graph, "constants": [constants]}
    return own | described(kernel.objective)
