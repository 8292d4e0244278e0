"""The loss and the error at many points of a segment, computing what changes, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from isthmus.evaluate.columns import Columns
from isthmus.evaluate.network import Network, may_idle, size
from isthmus.evaluate.plan import plan_for
from isthmus.evaluate.routes import Affine, ByValue, General, Penalty, Plain, Route, Tick, Unchanged
from isthmus.objective import Objective
from isthmus.objective.criterion import Each
from isthmus.params import Params, check_moves, equal, moves, nonfinite, nonfinite_on
from isthmus.paths import Curve, Segment
from isthmus.paths.on_demand import Between
from isthmus.program.export import Program
from isthmus.structure import Structure
from isthmus.structure.liveness import changed_tensors, effective_changes, live_units

WORTH_READING = 0.1
"""The graph is read for less than idle or unmoved weights only where this share of all products can be saved."""


class Engine:
    """Measures segments of one objective, one after the other; what one of them ends with serves the next.

    For each segment it finds out what the change of weights can reach, and computes

    - one evaluation, if only dead or equal units change: the outputs do not depend on t;
    - the outputs at the control points, if they are affine in t (only the last affine layer changes, say): those at t
      are the same combination of them as the weights are;
    - else, once per part of the data, what lies below the changed layers, and the first changed products at the control
      points; at each t these are interpolated and the rest is run. Without a program (a module that cannot be
      exported, a segment that is no `Curve`, weights that are not finite) the module is run at each t.

    Dead units are left out of the products where that pays. Numbers equal those of ``objective.measure`` at the point
    up to rounding. `dtype` runs the network in another precision; losses and penalties stay in the objective's.
    Values that are kept from point to point stay below ``objective.memory`` bytes. `columns` gets the losses of every
    example at every point.

    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> line = Engine(objective).prepare(Curve(({"weight": torch.eye(2)}, {"weight": -torch.eye(2)})))
    >>> line.kind, line.measure([0.0, 0.5, 1.0])[1]
    ('affine', [0.0, 0.5, 1.0])
    """

    def __init__(self, objective: Objective, dtype: torch.dtype | None = None, columns: Columns | None = None) -> None:
        self.objective = objective
        self.columns = columns
        self.dtype = dtype
        self._network: Network | None = None
        self._last: tuple[Params, Tensor] | None = None

    @property
    def network(self) -> Network:
        """The objective's network, made when it is first run here."""
        if self._network is None:
            self._network = Network(self.objective, self.dtype)
        return self._network

    def prepare(self, segment: Segment, points: int = 61) -> Prepared:
        """What can be computed once for all points of `segment`, when about so many will be asked for."""
        return Prepared(self._route(segment, points), Penalty.along(self.objective, segment))

    def _route(self, segment: Segment, points: int) -> Route:
        if isinstance(segment, Between):
            check_moves(segment.control, self.objective.idle, "path")
            if not self.objective.in_memory:
                return ByValue(self, segment)
            if self._little_to_save(segment.control, changed_tensors(segment.control)):
                return Plain(self, segment)
            segment = segment.loaded()
        if not isinstance(segment, Curve):
            self.objective.check_path((segment.start, segment.end))
            return Plain(self, segment) if self.objective.in_memory else ByValue(self, segment)
        control = self.objective.check_path(segment.control)
        curve, moved = Curve(control), changed_tensors(control)
        if not self.objective.in_memory:
            return ByValue(self, curve)
        if nonfinite_on(control) is not None or self._little_to_save(control, moved):
            return Plain(self, curve)
        program = self.network.program(control[0])
        return Plain(self, curve) if program is None else self._planned(curve, moved, program, points)

    def _little_to_save(self, control: Sequence[Mapping[str, Tensor]], moved: set[str]) -> bool:
        """Whether all weights move and few products could be saved: those that read the inputs themselves.

        Reading the graph of such a network takes longer than many passes.
        """
        if not all(k in moved for k, v in control[0].items() if v.is_floating_point()):
            return False
        if not any(map(moves, tree_leaves(self.objective.data[0]))):
            return True
        return not may_idle(control) and self.network.first_products(control[0]) < WORTH_READING

    def _planned(self, curve: Curve, moved: set[str], program: Program, points: int) -> Route:
        """What the graph of the network and its units tell about the change from the first control point."""
        control = curve.control
        structure, small = self._units(program, control), control
        if structure is not None:
            live = live_units(control, structure)
            moved = effective_changes(control, moved, live, structure, program) if moved else moved
            small = self.network.without_dead(control, structure, live)
        plan = plan_for(program, moved, points, len(control) - 1)
        if plan.kind == "unchanged":
            return Unchanged(self, curve)
        # what changes idly may be held still, so it is computed once
        inner = Curve(tuple({k: v if k in moved else small[0][k] for k, v in p.items()} for p in small))
        if plan.kind == "general":
            return General(self, curve, inner, program, plan)
        return Affine(self, curve, inner, program, plan, self._apart(control, structure, size(small[0])))

    def _units(self, program: Program, control: tuple[Params, ...]) -> Structure | None:
        """The units, where there are some that may be left out: zero weights do not silence what is infinite."""
        structure = None if nonfinite(control[0]) else self.network.structure(control)
        if structure is None or not structure.groups:
            return None
        return structure if self.network.has_values(program, control) else None

    def _apart(self, control: tuple[Params, ...], structure: Structure | None, joint: int) -> list[Params | Tensor]:
        """For each control point its outputs if they are known, or its weights without the units dead there.

        Nothing when evaluating all together, at the cost of one pass with `joint` weights, is not dearer.
        """
        out: list[Params | Tensor] = []
        for p in control:
            known = self.known(p)
            small = p if structure is None or known is not None else self.network.without_dead((p,), structure)[0]
            out.append(small if known is None else known)
        return out if sum(size(p) for p in out if not isinstance(p, Tensor)) < joint else []

    def each(self, ts: Sequence[float]) -> Each | None:
        """What gets the losses of the examples at these t of the segment that is measured."""
        return None if self.columns is None else partial(self.columns.add, ts)

    def known(self, params: Params) -> Tensor | None:
        """The outputs at `params`, if the last segment ended there."""
        return self._last[1] if self._last is not None and equal(self._last[0], params) else None

    def remember(self, params: Params, outputs: Tensor) -> None:
        """Keep the outputs at the end of a segment for the next one."""
        if outputs.numel() * outputs.element_size() <= self.objective.memory:
            self._last = (params, outputs)


@dataclass(frozen=True, eq=False)
class Prepared:
    """One segment, ready to be measured at any t; `kind` says how: "unchanged", "affine", "general" or "plain"."""

    route: Route
    penalty: Penalty

    @property
    def kind(self) -> str:
        """How the outputs depend on t, as far as it could be found out."""
        return self.route.kind

    def measure(self, ts: list[float], tick: Tick = lambda: None) -> tuple[list[float], list[float]]:
        """The losses, penalty included, and the error rates at the points `ts`, in that order."""
        with torch.no_grad():
            pairs = self.route.pairs(ts, tick)
            return [loss + self.penalty.at(t) for t, (loss, _) in zip(ts, pairs, strict=True)], [e for _, e in pairs]
