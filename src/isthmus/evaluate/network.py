"""A network as the engine runs it: the nodes of its program where that can be read, else the module itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, inf, log
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from isthmus.errors import IsthmusError, UnsupportedError
from isthmus.evaluate.plan import Plan, Stage, cast_for, whole
from isthmus.objective import Objective
from isthmus.objective.data import Inputs, cast_inputs, rows
from isthmus.objective.skeleton import CountProducts
from isthmus.params import Params, in_dtype, moves
from isthmus.program.export import Program, plain_attention
from isthmus.structure import Structure
from isthmus.structure.liveness import live_units, separable

CACHE = 1 << 25
"""Bytes of activations per forward pass: what a processor's last cache can be hoped to hold of them at a time."""
FEW = 64
"""Examples that one pass takes in any case, where the objective's memory holds them: calls are not free."""

LEFT_OUT = 0.9
"""Dead units are left out when the weights shrink below this fraction; gathering the others is not free."""

ORDINARY = 10.0
"""Entries of weights up to this size are not asked whether units overflow."""

_ROOM = log(1e6)
"""What inputs and sums over units may add to a product of weights."""

# errors by which an operation says that it cannot work on these sizes or types
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, NotImplementedError)


class Network:
    """Runs an objective's module on parts of its data, in `dtype` (default: the objective's)."""

    def __init__(self, objective: Objective, dtype: torch.dtype | None = None) -> None:
        self.objective = objective
        self.dtype = dtype or objective.dtype
        self.x = cast_inputs(objective.data[0], self.dtype)
        self._checked = False
        self._program: Program | None = None
        self._first: float | None = None
        chunk = min(objective.chunk, max(FEW, CACHE // objective.bytes_each))
        parts = ceil(objective.num_examples / chunk)
        self.chunk = ceil(objective.num_examples / parts)

    def program(self, params: Params) -> Program | None:
        """The program, once it was seen to compute what the module does at `params`; None if there is none."""
        if not self._checked:
            self._checked = True
            try:
                program = self.objective.program
                if len(program.inputs) == len(tree_flatten(self.x)[0]) and self._agrees(program, params):
                    self._program = program
            except IsthmusError:
                self._program = None
        return self._program

    def structure(self, control: tuple[Params, ...]) -> Structure | None:
        """The unit structure, if it can be of use: without zeros in a row or a repeated row no unit is idle."""
        if not may_idle(control):
            return None
        try:
            return self.objective.structure
        except UnsupportedError:
            return None

    def first_products(self, params: Mapping[str, Tensor]) -> float:
        """The share of the multiply-adds of a pass in products that read the inputs themselves; counted once."""
        first = self._first
        if first is None:
            x = rows(self.x, slice(0, 4))
            counter = CountProducts(x)
            with torch.no_grad(), plain_attention(), counter:
                self.objective.forward(self.cast(dict(params)), x)
            self._first = first = counter.share
        return first

    def slices(self, block: slice | None = None) -> Iterator[slice]:
        """The examples (of a block) in chunks, in order."""
        start, stop = (0, self.objective.num_examples) if block is None else (block.start, block.stop)
        for i in range(start, stop, self.chunk):
            yield slice(i, min(i + self.chunk, stop))

    def cast(self, params: Params) -> Params:
        """`params` in the precision of this network."""
        if self.dtype == self.objective.dtype:
            return params
        return cast_for(self._program, params, self.dtype)

    def env(self, program: Program, part: slice) -> dict[str, Any]:
        """The inputs and constants of the program for some examples."""
        return _env(program, rows(self.x, part), self.dtype)

    def stage(self, program: Program, stage: Stage, env: dict[str, Any]) -> None:
        """Run the nodes of a stage on `env`."""
        stage.run(env, program.batch, {program.dtype: self.dtype})

    def forward(self, params: Params, part: slice) -> Tensor:
        """The module's outputs for some examples, in the objective's precision; `params` are in the network's."""
        return in_dtype(self.objective.forward(params, rows(self.x, part)), self.objective.dtype)

    def outputs(self, params: Params) -> Tensor:
        """The outputs of all examples at `params`, with idle units left out where that pays."""
        program = self.program(params)
        structure = None if program is None else self.structure((params,))
        if program is None or structure is None or not self.has_values(program, (params,)):
            return self.run(params)
        return self.run(self.without_dead((params,), structure)[0])

    def run(self, params: Params) -> Tensor:
        """The outputs of all examples at `params` as they are (they may be those of a smaller network)."""
        program, params = self.objective.program, self.cast(params)
        plan = whole(program)
        parts = [evaluate(program, plan, params, rows(self.x, part), self.dtype) for part in self.slices()]
        return in_dtype(torch.cat(parts), self.objective.dtype)

    def without_dead(
        self, control: tuple[Params, ...], structure: Structure, live: Mapping[str, Tensor] | None = None
    ) -> tuple[Params, ...]:
        """The control points without the units that are dead at all of them, where leaving them out pays."""
        keep = _alive(structure, live_units(control, structure) if live is None else live)
        if not keep:
            return control
        try:
            small = tuple(structure.select(p, keep) for p in control)
            if size(small[0]) > LEFT_OUT * size(control[0]):
                return control
            return small if all(map(self._same, small, control)) else control
        except (*_REFUSALS, IsthmusError):
            return control

    def has_values(self, program: Program, control: Sequence[Params]) -> bool:
        """Whether the whole network has finite outputs at all control points.

        What a unit computes that nothing reads may still overflow, and zero times that is no number. With weights of
        ordinary size no unit does, and nothing is run; the largest and a few examples are, and all of them with weights
        whose product over the layers may overflow.
        """
        entry = max(map(_largest_entry, control))
        if entry <= ORDINARY:
            return True
        depth = max(2, sum(v.dim() > 1 for v in control[0].values()))
        far = not depth * log(entry) <= log(torch.finfo(self.dtype).max) - _ROOM
        some = [rows(self.x, part) for part in self.slices()] if far else _telling(self.x)
        plan = whole(program)
        found = (evaluate(program, plan, self.cast(p), few, self.dtype) for p in control for few in some)
        try:
            return all(bool(out.isfinite().all()) for out in found)
        except _REFUSALS:
            return False

    def _same(self, small: Params, full: Params) -> bool:
        """Whether the small network computes what the full one does, on a few examples."""
        x, program, dtype = rows(self.objective.data[0], slice(0, 4)), self.objective.program, self.objective.dtype
        plan = whole(program)
        return _close(*(evaluate(program, plan, p, x, dtype) for p in (small, full)))

    def _agrees(self, program: Program, params: Params) -> bool:
        """Whether the program computes what the module does, at two batch sizes other than the traced one.

        One that was put together from several traces is tried at the sizes at which it will run, too.
        """
        plan, n = whole(program), min(5, self.objective.num_examples)
        sizes = {n, max(1, n - 2)}
        if program.compared:
            sizes |= {self.chunk, self.objective.num_examples % self.chunk or n}
        try:
            for k in sizes:
                x = rows(self.objective.data[0], slice(0, k))
                found = evaluate(program, plan, params, x, self.objective.dtype)
                if not _close(found, self.objective.forward(params, x)):
                    return False
        except _REFUSALS:
            return False
        return True


def _alive(structure: Structure, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The units to keep of each group that has dead ones which can be left out, at least one."""
    alive = {g: live[g.name].nonzero().flatten() for g in structure.groups if separable(g)}
    one = torch.zeros(1, dtype=torch.int64)
    return {g.name: v if len(v) else one for g, v in alive.items() if len(v) < g.size}


def evaluate(program: Program, plan: Plan, params: Params, x: Inputs, dtype: torch.dtype) -> Tensor:
    """The output of the program at one point, all its stages run in order."""
    env = _env(program, x, dtype) | weights(program, params)
    for stage in (plan.fixed, plan.ends, plan.each):
        stage.run(env, program.batch, {program.dtype: dtype})
    return env[plan.output]


def weights(program: Program, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `params` under the names that the nodes use."""
    return {place: params[name] for place, name in program.tensors.items()}


def _env(program: Program, x: Inputs, dtype: torch.dtype) -> dict[str, Any]:
    constants = {k: v.to(dtype) if v.dtype == program.dtype else v for k, v in program.constants.items()}
    return constants | dict(zip(program.inputs, tree_flatten(x)[0], strict=True))


def size(params: Mapping[str, Tensor]) -> int:
    """The number of weights that take part in products: a stand-in for the cost of a pass."""
    return sum(v.numel() for v in params.values() if v.dim() > 1)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not bool(b.isfinite().all()):
        return bool(torch.equal(a.isfinite(), b.isfinite()))
    eps = max(torch.finfo(a.dtype).eps, 1e-16)
    return float((a - b).abs().max()) <= 1e3 * eps * max(float(b.abs().max()), 1e-30) + 1e-30


def _largest_entry(params: Params) -> float:
    """The largest size of a weight; infinite for NaN."""
    sizes = (float(v.abs().max()) for v in params.values() if moves(v) and v.numel())
    return max((s if s == s else inf for s in sizes), default=0.0)


def _telling(x: Inputs) -> list[Inputs]:
    """A few examples, and the one with the largest inputs."""
    several = [rows(x, slice(0, 4))]
    if isinstance(x, Tensor) and x.is_floating_point():
        i = int(x.flatten(1).abs().sum(1).argmax())
        several.append(x[i : i + 1])
    return several


def may_idle(control: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether some unit may write or read zeros alone at a control point, or two rows of some matrix start alike."""
    for v in _matrices(control):
        starts = v.flatten(1)[:, :4]
        starts = torch.view_as_real(starts) if v.is_complex() else starts
        if _has_zeros_in_a_row(v == 0) or len(starts.unique(dim=0)) < len(v):
            return True
    return False


def _has_zeros_in_a_row(zero: Tensor) -> bool:
    """Whether there are all along some axis; single ones are drawn with the weights, some among millions."""
    return bool(zero.any()) and any(bool(zero.all(d).any()) for d, n in enumerate(zero.shape) if n > 1)


def _matrices(control: Sequence[Mapping[str, Tensor]]) -> Iterator[Tensor]:
    """Each once, where points share them; one at a time where they are read on demand."""
    for i, point in enumerate(control):
        for name, v in point.items():
            if v.dim() > 1 and not any(isinstance(p, dict) and p[name] is v for p in control[:i]):
                yield v
