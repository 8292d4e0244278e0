"""One pass over a program that tells whether the units of a group may be rotated, and what stands in the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from isthmus.alignment.rotations.frame import Reader
from isthmus.program.program import Node, Ref
from isthmus.structure import axes as ax
from isthmus.structure.axes import Axis
from isthmus.structure.propagation import Propagation, Value
from isthmus.structure.taps import holds

_ALLOWED = {("moves", name) for name in ("mean", "sum", "var", "std", "var_mean", "std_mean")}
_ALLOWED |= {("squared", "mean"), ("squared", "sum")}
"""What may be taken over all units: of them, where the vector of ones is kept, and of their squares."""


class NoRotation(Exception):
    """An operation that a rotation does not commute with."""


@dataclass(eq=False)
class Multiplied:
    """A vector of gains met on the way, what is added, and which weights read the result.

    `carried`: something else reads it too.
    """

    gain: str | None
    bias: str | None = None
    readers: list[Reader] = field(default_factory=list)
    carried: bool = False

    @property
    def names(self) -> list[str]:
        """Of its tensors."""
        return [name for name in (self.gain, self.bias) if name is not None]


@dataclass(frozen=True)
class State:
    """What a rotation of the units makes of a value that holds them.

    "moves": it rotates with them; "weight": that of a parameter, which is going to; "gained": it would, without the
    gain; "squared": the sum over the units stays as it is.
    """

    kind: Literal["moves", "weight", "gained", "squared"]
    tensor: str = ""
    by: Multiplied | None = None


_MOVING = State("moves")


class Follow:
    """One pass over the program with the states of the values that hold one atom."""

    def __init__(self, walk: Propagation, atom: Axis) -> None:
        self.walk, self.atom = walk, ax.find(atom)
        self.states: dict[str, State] = {}
        self.gains: list[Multiplied] = []
        self.centred = False
        # for each weight that reads the units, what each of its readings sees; the biases of these
        self.read: dict[str, list[tuple[Multiplied | None, Reader]]] = {}
        self.plain: set[str] = set()
        # the values that weights read
        self.seen: dict[str, None] = {}
        program = walk.program
        self.shapes = {n.name: n.shape for n in program.nodes} | {
            k: tuple(v.shape) for k, v in program.constants.items()
        }

    def run(self) -> None:
        """Raise unless all operations commute."""
        for place, name in self.walk.program.tensors.items():
            if any(self.holds(axis) for axis in self.walk.weights.get(name, ())):
                self.states[place] = State("weight", name)
        for node in self.walk.program.needed:
            if node.kind != "size" and node.name in self.walk.flow.told and self.of(node):
                out = self.step(node)
                if out is not None and self.keeps(node):
                    self.states[node.name] = out
        self.settle()

    def holds(self, axis: Axis) -> bool:
        """Whether the atom is part of an axis."""
        return holds(axis, self.atom)

    def keeps(self, node: Node) -> bool:
        """Whether the result holds the atom; one of several results is asked by itself."""
        value = self.walk.values.get(node.name) or self.walk.views.get(node.name)
        return value is None or bool(self.parts(value))

    def parts(self, value: Value) -> list[Value]:
        """The value, or those of its slices, that hold the atom."""
        return [v for v in value.stack or (value,) if any(map(self.holds, v.axes))]

    # ------------------------------------------------------------------ operations

    def step(self, node: Node) -> State | None:
        """The state of the result."""
        step = _BY_NAME.get(node.base) or _BY_KIND.get(node.kind)
        if step is None:
            raise self.refusal(node)
        return step(self, node)

    def refusal(self, node: Node, why: str = "") -> NoRotation:
        """The operation, and its line."""
        return NoRotation(f"operation {node.op} ({node.where}) {why or 'treats units one by one'}")

    def moved(self, node: Node) -> State:
        """Entries of one value at other places."""
        states = self.of(node)
        if len(states) != 1 or not node.refs() or node.refs()[0] not in self.states:
            raise self.refusal(node)
        return next(iter(states.values()))

    def of(self, node: Node) -> dict[str, State]:
        """The states of the arguments that have one."""
        return {name: self.states[name] for name in node.refs() if name in self.states}

    def linear(self, states: Mapping[str, State]) -> State:
        """Values that are put together: a gain that only some of them have cannot be moved into weights."""
        if any(s.kind == "squared" for s in states.values()):
            raise NoRotation("squares of units are added to something else")
        kinds = {s.by for s in states.values()}
        if len(kinds) == 1 and None not in kinds:
            return next(iter(states.values()))
        for s in states.values():
            self.carry(s)
        return _MOVING

    def carry(self, state: State) -> None:
        """Say that what follows sees the units with their gain."""
        if state.by is not None:
            state.by.carried = True
        if state.kind == "weight":
            self.plain.add(state.tensor)

    def joined(self, node: Node) -> State:
        """Values beside each other."""
        if self.others(node):
            raise self.refusal(node, "puts units beside something else")
        return self.linear(self.of(node))

    def added(self, node: Node) -> State:
        """Values entry by entry; a number, unless 0, that is added to all units keeps rotations that keep the ones."""
        states = self.of(node)
        self.centred |= bool(self.others(node)) or any(isinstance(v, int | float) and v != 0 for v in node.args[:2])
        by, bias = self.biased(list(states.values()))
        if node.base != "add" or by is None:
            if len(node.refs()) == 2:
                self.counted(states.values())
            return self.linear(states)
        by.bias = bias
        return State("gained", by=by)

    def biased(self, states: Sequence[State]) -> tuple[Multiplied | None, str]:
        """A gain without a bias, not read so far, and the vector that is added to it."""
        gained = [s.by for s in states if s.by is not None and self.bare(s.by)]
        vectors = [s.tensor for s in states if s.kind == "weight" and self.vector(s.tensor)]
        return (gained[0], vectors[0]) if len(states) == 2 and gained and vectors else (None, "")

    def counted(self, states: Iterable[State]) -> None:
        """Say that the biases in these values are no longer added once."""
        for by in (s.by for s in states if s.by is not None):
            by.carried |= by.bias is not None

    def bare(self, gain: Multiplied) -> bool:
        """Whether it has no bias, and no weight has read it."""
        return gain.bias is None and all(by is not gain for several in self.read.values() for by, _ in several)

    def others(self, node: Node) -> list[str]:
        """The arguments without a state, but for empty ones (a cache that nothing is in yet)."""
        return [name for name in node.refs() if name not in self.states and self.shapes.get(name) != (0,)]

    def multiplied(self, node: Node) -> State:
        """By what holds no unit, by itself, or by a vector of gains."""
        states, refs = self.of(node), node.refs()
        if len(states) > 1:
            return self.scaled(node, list(states.values()))
        ((name, state),) = states.items()
        if node.base.startswith(("div", "true")) and refs[0] != name:
            raise self.refusal(node)
        if refs.count(name) == 2:
            return self.squares(node, state)
        self.counted([state])
        return state

    def scaled(self, node: Node, states: Sequence[State]) -> State:
        """The units times a vector of gains."""
        weights = [s.tensor for s in states if s.kind == "weight" and self.vector(s.tensor)]
        moving = [s for s in states if s.kind == "moves"]
        if node.base not in ("mul", "multiply") or len(weights) != 1 or len(moving) != 1:
            raise self.refusal(node)
        return self.gained(weights[0], None)

    def vector(self, tensor: str) -> bool:
        """Whether a parameter has one entry for each unit and no others."""
        return prod(self.walk.shapes[tensor]) == self.atom.size

    def gained(self, gain: str | None, bias: str | None) -> State:
        """The state after a gain and a bias that are used nowhere else."""
        by = Multiplied(gain, bias)
        self.gains.append(by)
        return State("gained", by=by)

    def power(self, node: Node) -> State:
        """Squares only."""
        if node.base == "pow" and node.args[1] != 2:
            raise self.refusal(node)
        return self.squares(node, next(iter(self.of(node).values())))

    def squares(self, node: Node, state: State) -> State:
        """Entry by entry: their sum stays as it is."""
        if state.kind != "moves":
            raise self.refusal(node)
        return State("squared")

    def looked_up(self, node: Node) -> State:
        """Rows of an embedding."""
        if node.refs()[1] in self.states:
            raise self.refusal(node)
        return self.linear(self.of(node))

    def normed(self, node: Node) -> State:
        """LayerNorm or RMSNorm over all units and nothing else."""
        a, value = node.named(), node.refs()[0]
        axes, state = self.axes(value), self.states.get(value)
        whole = len(a["normalized_shape"]) == 1 and ax.find(axes[-1]) is self.atom if axes else False
        if not whole or state is None or state.kind in ("squared", "weight"):
            raise self.refusal(node)
        self.carry(state)
        self.centred |= "rms" not in node.base
        gain, bias = (self.parameter(a.get(key)) for key in ("weight", "bias"))
        return self.gained(gain, bias) if gain or bias else _MOVING

    def axes(self, value: str) -> Sequence[Axis]:
        """Those of a value that depends on the input."""
        return self.walk.values[value].axes if value in self.walk.values else ()

    def parameter(self, argument: Any) -> str | None:
        """The name of the parameter that an argument is a view of."""
        if not isinstance(argument, Ref):
            return None
        state = self.states.get(argument.name)
        if state is None or state.kind != "weight":
            raise NoRotation("a function of weights multiplies the units")
        return state.tensor

    def reduced(self, node: Node) -> State | None:
        """A mean, a sum or a spread, over the units or over something else."""
        ((value, state),) = self.of(node).items()
        axes = self.axes(value)
        if not axes:
            raise self.refusal(node)  # a function of weights
        over = [ax.find(axes[d]) for d in _dims(node.named().get("dim"), len(axes))]
        within = [axis for axis in over if self.holds(axis)]
        if set(within) - {self.atom}:
            raise self.refusal(node)
        if not within:
            return self.summed(node, state)
        if (state.kind, node.base) not in _ALLOWED:
            raise self.refusal(node)
        self.centred |= state.kind == "moves"
        return None

    def summed(self, node: Node, state: State) -> State:
        """Over examples' places: what is added to a gain is a bias of the mean, not of the sum."""
        if node.base not in ("mean", "sum") or state.kind == "squared":
            raise self.refusal(node)
        if node.base == "sum":
            self.counted([state])
        return state

    # ------------------------------------------------------------------ products

    def contracted(self, node: Node) -> State | None:
        """A layer or a product: weights read the units or make them, values are contracted with each other."""
        states = list(self.of(node).values())
        values = [s for s in states if s.kind != "weight"]
        if "squared" in (s.kind for s in states):
            raise self.refusal(node)
        if self.reads(node):
            self.reading(node, values, [s.tensor for s in states if s.kind == "weight"])
            return _MOVING
        if values:
            self.between(node, values, weights=len(values) < len(states))
        for s in states:
            self.carry(s)
        return _MOVING

    def reads(self, node: Node) -> bool:
        """Whether a weight sums over the units there."""
        return any(n is node and role == "out" and self.holds(axis) for n, axis, role in self.walk.readers)

    def between(self, node: Node, values: Sequence[State], weights: bool) -> None:
        """A product of values: two with units are summed over these, one with units keeps them."""
        stays = self.keeps(node)
        if weights or (len(values) == 2 and stays):
            raise self.refusal(node)
        if len(values) == 1 and not stays:
            raise self.refusal(node, "sums over units")
        if isinstance(node.named().get("bias"), Ref):
            raise self.refusal(node, "adds a number for each place")

    def reading(self, node: Node, values: Sequence[State], weights: Sequence[str]) -> None:
        """A weight sums over the units of a value."""
        found = [(w, d) for w in weights for d in self.dims_read(w)]
        if len(values) != 1 or len(found) != 1:
            raise self.refusal(node, "reads units in more than one way")
        ((weight, dim),) = found
        if ax.find(self.walk.weights[weight][dim]) is not self.atom:
            self.carry(values[0])
        self.seen |= {name: None for name, s in self.of(node).items() if s is values[0]}
        self.read.setdefault(weight, []).append((values[0].by, Reader(weight, dim, self.bias_of(node))))
        self.plain |= set(weights) - {weight}

    def bias_of(self, node: Node) -> str | None:
        """The parameter that a layer adds."""
        place = node.named().get({"linear": "bias", "addmm": "self"}.get(node.base, ""))
        return self.walk.program.tensors.get(place.name) if isinstance(place, Ref) else None

    def dims_read(self, tensor: str) -> list[int]:
        """The axes of a parameter along which it reads the units."""
        uses = {(d, role) for name, d, axis, role in self.walk.uses if name == tensor and self.holds(axis)}
        return sorted({d for d, role in uses if role == "out"})

    def attended(self, node: Node) -> State | None:
        """Queries with keys, and values, by their last axis."""
        given, states = node.named(), self.of(node)
        names = {given[key].name for key in ("query", "key", "value")}
        for name, state in states.items():
            axes = self.axes(name)
            inside = [d for d, axis in enumerate(axes) if self.holds(axis)]
            if name not in names or inside != [len(axes) - 1] or state.kind not in ("moves", "gained"):
                raise self.refusal(node)
            self.carry(state)
        return _MOVING

    # ------------------------------------------------------------------ the end

    def settle(self) -> None:
        """Which gains go into which weights: each weight reads one gain, and is nothing else."""
        for weight, several in self.read.items():
            self.settle_reader(weight, several)
        used = [name for gain in self.gains for name in gain.names]
        for by in self.gains:
            by.carried |= not by.readers or any(used.count(n) > 1 or n in self.plain for n in by.names)

    def settle_reader(self, weight: str, several: Sequence[tuple[Multiplied | None, Reader]]) -> None:
        """Which gain goes into a weight."""
        sources = {by for by, _ in several}
        if len(sources) > 1 or weight in self.plain:
            for by in sources:
                self.carry(State("gained", by=by))
        elif several[0][0] is not None:
            several[0][0].readers.append(self.reader(several))

    def reader(self, several: Sequence[tuple[Multiplied | None, Reader]]) -> Reader:
        """How a weight reads, with its bias if nothing else uses that."""
        reader = several[0][1]
        plain = len(several) == 1 and len(self.walk.shapes[reader.weight]) == 2
        own = reader.bias is not None and self.walk.program.reads_once(reader.bias)
        return reader if plain and own else Reader(reader.weight, reader.dim, None)


def _dims(dim: Any, rank: int) -> set[int]:
    if dim is None or dim == []:
        return set(range(rank))
    return {d % rank for d in ([dim] if isinstance(dim, int) else dim)}


_Step = Callable[..., State | None]
_BY_NAME: Mapping[str, _Step] = (
    dict.fromkeys(("add", "sub"), Follow.added)
    | dict.fromkeys(("mul", "multiply", "div", "true_divide"), Follow.multiplied)
    | dict.fromkeys(("pow", "square"), Follow.power)
    | dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm"), Follow.normed)
    | {"neg": Follow.moved}
)
_BY_KIND: Mapping[str, _Step] = (
    dict.fromkeys(("identity", "cast", "reshape", "squeeze", "shape", "part", "look up"), Follow.moved)
    | dict.fromkeys(("affine", "convolution", "product"), Follow.contracted)
    | {"join": Follow.joined, "reduce": Follow.reduced, "embedding": Follow.looked_up, "attention": Follow.attended}
)
