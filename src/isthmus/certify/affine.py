"""The third reading of a network's graph: affine forms in t, through every operation, for all examples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import comb
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from isthmus.certify.forms import UNIT, Form, Refused
from isthmus.certify.made import number
from isthmus.certify.origins import Origin
from isthmus.certify.rules import apply
from isthmus.errors import UnsupportedError
from isthmus.objective import Objective
from isthmus.objective.data import arguments, rows
from isthmus.params import Params
from isthmus.program.export import Node, Program
from isthmus.program.program import interpret, last_reads
from isthmus.structure.liveness import changed_tensors

NARROWEST = 2.0**-24
"""Sub-intervals are not made narrower: the rounding of the weights would then be a part of what they move."""

CACHED = 1 << 23
"""Bytes of activations of a plain pass over one chunk: so many that large weights are not read for few examples."""


@dataclass(frozen=True)
class Interval:
    """The t within `half` of `middle`: s = (t - middle) / half."""

    middle: float
    half: float

    @classmethod
    def between(cls, start: float, end: float) -> Interval:
        """Contains start and end, whatever was rounded."""
        middle = start + (end - start) / 2
        return cls(middle, max(end - middle, middle - start) * (1 + 4 * UNIT))


class Motion:
    """One tensor on a Bezier curve, as a form over an interval.

    A line W0 + t (W1 - W0) has the form (W at the middle, half (W1 - W0)), and errs by the rounding of the middle: at
    most 2 u t |W1 - W0| + u |W|, that is (2 / half + 3) ulps of its size. On narrow intervals that is far more than
    what was rounded, which is then computed: often nothing, with weights of float32.
    A curve of degree n is its Taylor polynomial at the middle, sum_k a_k s^k: a_0 + a_2 / 2, a_1 and a_2 are centre,
    slope and bend, and a higher power of s is put into centre or slope for one half, the other half bounding what is
    left; s^3 = 3 s / 4 + (4 s^3 - 3 s) / 4.
    """

    def __init__(self, control: Sequence[Tensor]) -> None:
        self.differences = [list(control)]
        self._norms: dict[tuple[str, int], float] = {}
        for _ in control[1:]:
            last = self.differences[-1]
            self.differences.append([q - p for p, q in pairwise(last)])
        self.largest = torch.stack(list(control)).abs().amax(0) if len(control) > 2 else torch.zeros(())

    def norms(self, interval: Interval, norm: Callable[[Tensor], float]) -> tuple[float, float]:
        """Bounds of the norm of the tensor at the middle of `interval`, and of how far it moves away from there.

        A norm is convex: on a line it is below chords, and on part of a curve at most that of its control points.
        Around the middle the curve is sum_k a_k s^k with a_k = C(n, k) h^k (a curve through the k-th differences).
        """
        n, h = len(self.differences) - 1, interval.half
        largest = [
            self._known(("difference", k), lambda k=k: max(map(norm, self.differences[k]))) for k in range(1, n + 1)
        ]
        moved = [comb(n, k) * h**k * largest[k - 1] for k in range(1, n + 1)]
        part = min(int(interval.middle * PARTS), PARTS - 1)
        if n == 1:
            left, right = (self._known(("point", k), lambda k=k: norm(self._at(k / PARTS))) for k in (part, part + 1))
            share = interval.middle * PARTS - part
            return ((1 - share) * left + share * right) * NORMS, sum(moved) * NORMS
        largest = self._known(("part", part), lambda: max(map(norm, _part(self.differences[0], part))))
        return (largest + sum(moved[1:])) * NORMS, sum(moved) * NORMS

    def _known(self, key: tuple[str, int], compute: Callable[[], float]) -> float:
        if key not in self._norms:
            self._norms[key] = compute()
        return self._norms[key]

    def _at(self, t: float) -> Tensor:
        return _bernstein(self.differences[0], t)

    def at(self, t: float) -> Form:
        """The tensor at t, and by how much its entries may be off."""
        control = self.differences[0]
        largest = torch.stack(list(control)).abs().amax(0)
        off = largest.mul_((4 * len(control) + 8) * UNIT).add_((4 * len(control) + 8) * 2.0**-1064)
        return Form(self._at(t), None, torch.zeros_like(off) if t in (0.0, 1.0) else off)

    def over(self, interval: Interval) -> Form:
        """The form of the tensor on `interval`."""
        n, t, h = len(self.differences) - 1, interval.middle, interval.half
        if n == 1:
            (start, end), (step,) = self.differences
            narrow = _narrow(start, end, step, t, h) if h < NARROW_LINE else None
            return narrow or Form(torch.add(start, step, alpha=t), step * h, None, 4 / h + 8)
        terms = [_bernstein(self.differences[k], t) * (comb(n, k) * h**k) for k in range(n + 1)]
        centre, slope, bend = terms[0] + terms[2] / 2, terms[1].clone(), terms[2]
        # every term a_k errs by at most (2 n + 6) 2^k h^k C(n, k) (u max |control| + 2^-1074)
        errors = (4 * n + 12) * (1 + 2 * h) ** n
        radius = (self.largest * (errors * UNIT)).add_(errors * 2.0**-1064)
        for k in range(3, n + 1):
            share = 0.75 if k == 3 else 0.5
            (slope if k % 2 else centre).add_(terms[k], alpha=share)
            radius.add_(terms[k].abs(), alpha=1 - share)
        return Form(centre, slope, radius, 8, bend)


def _narrow(start: Tensor, end: Tensor, step: Tensor, t: float, h: float) -> Form | None:
    """A line over t +- h with what its middle was rounded by; None where that overflows."""
    product = step * t
    centre = start + product
    # the sum itself loses an ulp of the centre at most, and t is at most 1
    off = _lost_in_sum(end, -start, step).abs_().add_(_lost_in_product(step, t, product).abs_()).mul_(1 + 8 * UNIT)
    slope = step * h
    if not bool(off.isfinite().all()):
        return None
    if bool((off <= (centre.abs() + slope.abs()).mul_(8 * UNIT)).all()):
        return Form(centre, slope, None, 16)
    return Form(centre, slope, off, 8)


def _lost_in_sum(p: Tensor, q: Tensor, total: Tensor) -> Tensor:
    """p + q - fl(p + q), exactly (Knuth)."""
    second = total - p
    return (p - (total - second)) + (q - second)


def _lost_in_product(p: Tensor, t: float, product: Tensor) -> Tensor:
    """p t - fl(p t), exactly but for underflow (Dekker): halves of 26 bits have products that do not round."""
    high = p * SPLITTER
    high = high - (high - p)
    low = p - high
    upper = t * SPLITTER
    upper = upper - (upper - t)
    lower = t - upper
    return ((high * upper - product) + high * lower + low * upper) + low * lower


SPLITTER = 2.0**27 + 1
"""Times a number of 53 bits, its upper 26 bits are what is left when the rest is taken away (Veltkamp)."""
NARROW_LINE = 2.0**-9
"""Half the width below which the rounding of points of a line is computed."""
PARTS = 4
"""Parts of a curve, each of which has its own bound of norms."""
NORMS = 1 + 1e-12
"""For the rounding of control points of parts, and of sums of norms."""


def _part(control: Sequence[Tensor], part: int) -> list[Tensor]:
    """The control points of a part of a Bezier curve."""
    n, start, end = len(control) - 1, part / PARTS, (part + 1) / PARTS
    return [_blossom(control, [start] * (n - i) + [end] * i) for i in range(n + 1)]


def _blossom(control: Sequence[Tensor], at: Sequence[float]) -> Tensor:
    level = list(control)
    for t in at:
        level = [torch.lerp(p, q, t) for p, q in pairwise(level)]
    return level[0]


def _bernstein(points: Sequence[Tensor], t: float) -> Tensor:
    """The Bezier curve of these points at t, by the scheme of de Casteljau."""
    return _blossom(points, [t] * (len(points) - 1))


class Reading:
    """The outputs of a network on a data set, as forms over any interval of one Bezier segment.

    What does not depend on t is computed once per chunk of examples and kept while that needs less than `memory`
    bytes. `moving`: the tensors to be taken for moving ones, instead of those whose control points differ. `uncertain`:
    by how much the entries of tensors that do not move may be off; `spread`: those of the inputs. Errors:
    `UnsupportedError` names an operation without a rule.
    """

    def __init__(
        self,
        objective: Objective,
        program: Program,
        control: Sequence[Params],
        memory: int,
        moving: Collection[str] | None = None,
        uncertain: Mapping[str, Tensor] | None = None,
        spread: Tensor | None = None,
    ) -> None:
        moving = changed_tensors(control) if moving is None else moving
        self.spread = spread
        _refuse_complex(control[0])
        self.objective, self.program, self.control, uncertain = objective, program, control, uncertain or {}
        self.motions: dict[str, Motion] = {}
        self.fixed: dict[str, Any] = {k: _value(v) for k, v in program.constants.items()}
        for place, name in program.tensors.items():
            if name in moving:
                self.motions[place] = Motion([p[name].double() for p in control])
            else:
                self.fixed[place] = _value(control[0][name], uncertain.get(name))
        self.before, self.after, varying = _parted(program, set(self.motions))
        output = program.outputs[0].name
        self.needed = {output, *(r for node in self.after for r in node.refs())} - varying
        self.drop = last_reads(self.after, keep={output})
        self.kept: dict[int, dict[str, Any]] = {}
        self.room = memory

    def outputs(self, interval: Interval, followed: bool = False) -> Iterator[tuple[Form, Tensor]]:
        """The forms of the outputs and the targets, chunk by chunk; `followed`: remainders can be followed back."""
        moving = {place: motion.over(interval) for place, motion in self.motions.items()}
        for place, v in moving.items() if followed else ():
            v.origin, v.norm = Origin(), partial(self.motions[place].norms, interval)
        for i, (x, y) in enumerate(self._chunks()):
            z = self._run(self._prefix(i, x) | moving)
            if len(z.centre) != len(y):
                raise UnsupportedError("the network's graph", f"{len(y)} examples give {len(z.centre)} outputs")
            yield z, y

    def entering(self) -> Iterator[list[Form]]:
        """Chunk by chunk, what does not depend on t and is read by what does, weights left out."""
        for i, (x, _) in enumerate(self._chunks()):
            yield [v for k, v in self._prefix(i, x).items() if self._enters(k, v)]

    def along(self, other: Reading, start: float, end: float) -> Iterator[tuple[Form, Tensor]]:
        """The outputs while what ``entering`` gives runs over s in [start, end] on the line from here to `other`.

        `other`: a reading of the same tensors as moving ones at another point; those stay as they are here.
        """
        moving = {place: Form(motion.differences[0][0]) for place, motion in self.motions.items()}
        for i, (x, y) in enumerate(self._chunks()):
            first, last = self._prefix(i, x), other._prefix(i, x)
            mixed = {k: line(v, last[k], start, end) if self._enters(k, v) else v for k, v in first.items()}
            yield self._run(mixed | moving), y

    def _enters(self, name: str, value: Any) -> bool:
        return name not in self.fixed and isinstance(value, Form) and value.dropped is None

    def _run(self, values: dict[str, Any]) -> Form:
        interpret(self.after, apply, values, self.drop)
        out = values[self.program.outputs[0].name]
        if out.dropped is not None:
            raise UnsupportedError("the outputs", "entries of -infinity have no bound")
        return out

    def _prefix(self, i: int, x: Any) -> dict[str, Any]:
        """The values that do not depend on t, for chunk i: those that what depends on t reads."""
        if i in self.kept:
            return dict(self.kept[i])
        positional, named = arguments(x)
        places = self.program.inputs
        rest = dict(zip(places[len(positional) :], named.values(), strict=False))
        given = dict(zip(places, positional, strict=False)) | rest | {k: named[k] for k in places if k in named}
        values = dict(self.fixed) | {k: _value(v, self.spread) for k, v in given.items()}
        interpret(self.before, apply, values)
        values = {k: v for k, v in values.items() if k in self.needed}
        size = sum(_bytes(v) for k, v in values.items() if k not in self.fixed)
        if size <= self.room:
            self.room -= size
            self.kept[i] = values
        return dict(values)

    def _chunks(self) -> Iterator[tuple[Any, Tensor]]:
        x, y = self.objective.data
        size = self.chunk
        for i in range(0, len(y), size):
            yield rows(x, slice(i, i + size)), y[i : i + size]

    @property
    def chunk(self) -> int:
        """Examples per pass: few enough for the processor's cache, and for the memory, which holds about eight
        tensors (a form and the terms of a product) for each activation of a plain pass."""
        objective = self.objective
        cached = max(16, CACHED // objective.bytes_each)
        return max(1, min(objective.num_examples, cached, objective.memory // (8 * objective.bytes_each)))


def line(p: Form, q: Form, start: float, end: float) -> Form:
    """(1 - s) p + s q for s in [start, end] within [0, 1], of two constants.

    >>> p, q = (Form(torch.tensor([v], dtype=torch.float64)) for v in (0.0, 4.0))
    >>> x = line(p, q, 0.5, 1.0)
    >>> float(x.centre), float(x.slope)
    (3.0, 1.0)
    """
    p, q = p.settled(), q.settled()
    step = q.centre - p.centre
    centre = torch.add(p.centre, step, alpha=(start + end) / 2)
    radius = torch.maximum(p.size(), q.size()).mul_(16 * UNIT)  # of step, centre and slope
    held = [r for r in (p.radius, q.radius) if r is not None]
    if held:
        radius = radius + torch.stack(held).amax(0)
    return Form(centre, step * ((end - start) / 2), radius, 8)


def _parted(program: Program, varying: set[str]) -> tuple[list[Node], list[Node], set[str]]:
    """The nodes that do not depend on the values in `varying`, those that do, and all values that do."""
    before, after = [], []
    for node in program.needed:
        if varying.intersection(node.refs()):
            varying.add(node.name)
            after.append(node)
        else:
            before.append(node)
    return before, after, varying


def _refuse_complex(params: Params) -> None:
    if any(v.is_complex() for v in params.values()):
        raise UnsupportedError("complex weights", "they have no rule for affine forms")


def _value(v: Tensor, off: Tensor | None = None) -> Any:
    if v.is_complex():
        raise UnsupportedError("a complex tensor", "it has no rule for affine forms")
    if off is not None:
        return Form(v.double(), None, off)
    try:
        return number(v) if v.is_floating_point() else v
    except Refused as e:
        raise UnsupportedError("the network's constants", str(e)) from None


def _bytes(value: Any) -> int:
    total = 0
    for leaf in tree_flatten(value)[0]:
        for part in leaf.parts() if isinstance(leaf, Form) else (leaf,):
            total += part.numel() * part.element_size() if isinstance(part, Tensor) else 0
    return total
