"""Four ways to measure a segment at many points, from one evaluation in all to one per point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from isthmus.evaluate.network import Network, weights
from isthmus.evaluate.plan import Plan, combine
from isthmus.objective import Objective
from isthmus.objective.criterion import Each
from isthmus.params import Params, in_dtype
from isthmus.paths import Curve, Segment
from isthmus.program.export import Program

Tick = Callable[[], None]
"""Called once per point that is done."""
Pair = tuple[float, float]
"""The mean loss without penalty, and the error rate."""


class Owner(Protocol):
    """The engine, as the routes see it."""

    objective: Objective

    @property
    def network(self) -> Network:
        """What it runs."""
        ...

    def known(self, params: Params) -> Tensor | None:
        """The outputs at `params`, if they are at hand."""

    def remember(self, params: Params, outputs: Tensor) -> None:
        """Keep the outputs at the end of a segment."""

    def each(self, ts: Sequence[float]) -> Each | None:
        """What gets the losses of the examples at these t, if anything does; block by block of the data."""


class Route(ABC):
    """A way to measure one segment."""

    kind: ClassVar[str]

    @abstractmethod
    def pairs(self, ts: list[float], tick: Tick) -> list[Pair]:
        """The loss without penalty and the error rate at every t."""


@dataclass(frozen=True, eq=False)
class Unchanged(Route):
    """The outputs are those at the start, all along the curve."""

    engine: Owner
    curve: Curve
    _outputs: list[Tensor] = field(default_factory=list)
    kind = "unchanged"

    def pairs(self, ts: list[float], tick: Tick) -> list[Pair]:
        """One evaluation, at the start."""
        if not self._outputs:
            outputs = self.engine.known(self.curve.start)
            self._outputs.append(self.engine.network.outputs(self.curve.start) if outputs is None else outputs)
            self.engine.remember(self.curve.end, self._outputs[0])
        for _ in ts:
            tick()
        return [_mean(self.engine, self._outputs[0], ts)] * len(ts)


@dataclass(frozen=True, eq=False)
class Affine(Route):
    """The outputs at t are the combination of those at the control points that the weights are.

    `apart`: for each control point its outputs, or the weights to compute them with; empty: all together, what they
    share computed once.
    """

    engine: Owner
    curve: Curve
    inner: Curve
    program: Program
    plan: Plan
    apart: list[Params | Tensor]
    _outputs: list[Tensor] = field(default_factory=list)
    kind = "affine"

    def pairs(self, ts: list[float], tick: Tick) -> list[Pair]:
        """One evaluation per control point; then only losses."""
        if not self._outputs:
            run = self.engine.network.run
            apart = [p if isinstance(p, Tensor) else run(p) for p in self.apart]
            self._outputs.extend(apart or self._joint())
            self.engine.remember(self.curve.end, self._outputs[-1])
        out = []
        for t in ts:
            out.append(_mean(self.engine, combine(self._outputs, t), [t]))
            tick()
        return out

    def _joint(self) -> list[Tensor]:
        once = Once(self.engine.network, self.inner, self.program, self.plan)
        parts = [once.values(part)[self.plan.output] for part in self.engine.network.slices()]
        return [in_dtype(torch.cat(p), self.engine.objective.dtype) for p in zip(*parts, strict=True)]


@dataclass(frozen=True, eq=False)
class General(Route):
    """What does not depend on t once per block of data, the rest at every t.

    All points of one block before the next block, so that what is kept fits in memory; inside, all chunks of one point
    before the next point, so that the weights at t are made once.
    """

    engine: Owner
    curve: Curve
    inner: Curve
    program: Program
    plan: Plan
    _kept: list[dict[str, Any]] = field(default_factory=list)
    kind = "general"

    def pairs(self, ts: list[float], tick: Tick) -> list[Pair]:
        """What moves, at every t."""
        network, objective = self.engine.network, self.engine.objective
        blocks = self._blocks()
        sums = [(0.0, 0.0)] * len(ts)
        ends: list[Tensor] = []
        for block in blocks:
            chunks = list(network.slices(block))
            kept = self._once(chunks, len(blocks) == 1)
            for k, t in enumerate(ts):
                outputs = self._outputs(t, chunks, kept)
                if t == 1:
                    ends.extend(part := list(outputs))
                    outputs = iter(part)
                mean = objective.of_outputs(_with_targets(objective, outputs, chunks), self.engine.each([t]))
                share = (block.stop - block.start) / objective.num_examples
                sums[k] = tuple(s + share * m for s, m in zip(sums[k], mean, strict=True)) if len(blocks) > 1 else mean
                if block is blocks[-1]:
                    tick()
        if sum(map(len, ends)) == objective.num_examples:
            self.engine.remember(self.curve.end, torch.cat(ends))
        return sums

    def _blocks(self) -> list[slice]:
        network, objective = self.engine.network, self.engine.objective
        each = self.plan.bytes_held(self.program, network.dtype.itemsize, len(self.inner.control) - 1)
        rows = max(network.chunk, objective.memory // each // network.chunk * network.chunk if each else 1 << 60)
        n = objective.num_examples
        return [slice(i, min(i + rows, n)) for i in range(0, n, rows)]

    def _once(self, chunks: list[slice], keep: bool) -> list[dict[str, Any]]:
        """The values that do not depend on t; kept from call to call when all data are one block."""
        if self._kept:
            return self._kept
        once = Once(self.engine.network, self.inner, self.program, self.plan)
        found = [once.values(part) for part in chunks]
        if keep:
            self._kept.extend(found)
        return found

    def _outputs(self, t: float, chunks: list[slice], kept: list[dict[str, Any]]) -> Iterator[Tensor]:
        network, plan = self.engine.network, self.plan
        point = weights(self.program, network.cast(self.inner.at(t)))
        for held in kept:
            env = held | point | {k: combine(held[k], t) for k in plan.mixed}
            network.stage(self.program, plan.each, env)
            yield in_dtype(env[plan.output], self.engine.objective.dtype)


@dataclass(frozen=True, eq=False)
class Plain(Route):
    """The module at every point: the route that needs nothing but the module."""

    engine: Owner
    segment: Segment
    kind = "plain"

    def pairs(self, ts: list[float], tick: Tick) -> list[Pair]:
        """One pass over the data for every t."""
        network, objective = self.engine.network, self.engine.objective
        out = []
        chunks = list(network.slices())
        for t in ts:
            point = self.segment.at(t)
            if not isinstance(self.segment, Curve):  # the control points of a curve have been checked
                point = objective.check(point, "path")
            point = network.cast(point)
            outputs = (network.forward(point, part) for part in chunks)
            out.append(objective.of_outputs(_with_targets(objective, outputs, chunks), self.engine.each([t])))
            del point, outputs  # before the next one is made
            tick()
        return out


@dataclass(frozen=True, eq=False)
class ByValue(Route):
    """The objective at every point: the route for data that are not in memory, and for objectives without any."""

    engine: Owner
    segment: Segment
    kind = "plain"

    def pairs(self, ts: list[float], tick: Tick) -> list[Pair]:
        """One pass over the data for every t."""
        out, objective = [], self.engine.objective
        for t in ts:
            out.append(objective.means(objective.check(self.segment.at(t), "path"), self.engine.each([t])))
            tick()
        return out


@dataclass(frozen=True, eq=False)
class Once:
    """The values that do not depend on t, for some examples: held ones as they are, mixed ones per control point."""

    network: Network
    inner: Curve
    program: Program
    plan: Plan
    _weights: list[dict[str, Tensor]] = field(default_factory=list)

    def values(self, part: slice) -> dict[str, Any]:
        """All that `plan.each` reads besides the weights at t, or the outputs at the control points."""
        if not self._weights:
            self._weights.extend(weights(self.program, self.network.cast(p)) for p in self.inner.control)
        env = self.network.env(self.program, part)
        constants = set(env) - set(self.program.inputs)
        env |= self._weights[0]
        self.network.stage(self.program, self.plan.fixed, env)
        kept = {k: env[k] for k in (*constants, *self.plan.held)}
        mixed: dict[str, list[Any]] = {k: [] for k in self.plan.mixed}
        for own in self._weights if self.plan.mixed else ():
            env = kept | own
            self.network.stage(self.program, self.plan.ends, env)
            for k in mixed:
                mixed[k].append(env[k])
        return kept | mixed


@dataclass(frozen=True, eq=False)
class Penalty:
    """The penalty along a segment; `rest` is that of the tensors that do not move, `moving` holds the others."""

    objective: Objective
    moving: Segment
    names: tuple[str, ...]
    rest: float

    @classmethod
    def along(cls, objective: Objective, segment: Segment) -> Penalty:
        """Split into the tensors that all control points share and the others."""
        penalty, names = objective.penalty, objective.parameter_names
        if penalty is None:
            return cls(objective, segment, (), 0.0)
        if not isinstance(segment, Curve):
            return cls(objective, segment, names, 0.0)
        control = [objective.check(p, "path") for p in segment.control]
        names = names if penalty.names is None else penalty.names
        moving = _moving(segment, names)
        fixed = replace(penalty, names=tuple(k for k in names if k not in moving))
        few = Curve(tuple({k: p[k] for k in moving} for p in control))
        return cls(objective, few, moving, float(fixed(control[0], names)))

    def at(self, t: float) -> float:
        """The penalty at t."""
        if self.objective.penalty is None or not self.names:
            return self.rest
        point = self.moving.at(t)
        if not isinstance(self.moving, Curve):
            return self.objective.penalty_of(self.objective.check(point, "path"))
        return self.rest + float(replace(self.objective.penalty, names=self.names)(point, self.names))


def _moving(curve: Curve, names: Iterable[str]) -> tuple[str, ...]:
    """The tensors that are not one and the same at all control points."""
    return tuple(k for k in names if any(p[k] is not q[k] for p, q in pairwise(curve.control)))


def _mean(engine: Owner, outputs: Tensor, ts: Sequence[float]) -> Pair:
    """Loss and error of outputs that are at hand, those at `ts`; the losses make a few temporaries of their size."""
    n = len(outputs)
    rows = max(1, engine.objective.memory // (8 * max(1, outputs[:1].numel() * outputs.element_size())))
    parts = [slice(i, min(i + rows, n)) for i in range(0, n, rows)]
    pairs = _with_targets(engine.objective, (outputs[p] for p in parts), parts)
    return engine.objective.of_outputs(pairs, engine.each(ts))


def _with_targets(
    objective: Objective, outputs: Iterable[Tensor], parts: list[slice]
) -> Iterator[tuple[Tensor, Tensor]]:
    y = objective.data[1]
    return ((out, y[part]) for out, part in zip(outputs, parts, strict=True))
