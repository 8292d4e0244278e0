"""Which groups of a network may be rotated: every operation on their units is read, in the order of the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from isthmus.alignment.rotations.frame import Frame, Gain, Held, Reader, Turn
from isthmus.program.program import Node, Program, Ref
from isthmus.structure import Group, Structure
from isthmus.structure import axes as ax
from isthmus.structure.axes import Axis
from isthmus.structure.propagation import Propagation, Value
from isthmus.structure.rules import RULES
from isthmus.structure.taps import atoms_of

_MOVES = ("identity", "cast", "reshape", "squeeze", "shape", "part")
_PRODUCTS = ("affine", "convolution", "product")


class _NoRotation(Exception):
    """An operation that a rotation does not commute with."""


@dataclass(eq=False)
class _Multiplied:
    """A vector of gains met on the way, what is added, and which weights read the result."""

    gain: str | None
    bias: str | None = None
    readers: list[Reader] = field(default_factory=list)
    carried: bool = False


@dataclass(frozen=True)
class _State:
    """What a rotation of the units makes of a value that holds them.

    "moves": it rotates with them; "weight": that of a parameter, which is going to; "gained": it would, without the
    gain; "squared": the sum over the units stays as it is.
    """

    kind: Literal["moves", "weight", "gained", "squared"]
    tensor: str = ""
    by: _Multiplied | None = None


_MOVING = _State("moves")


def frame_of(program: Program, structure: Structure) -> tuple[Frame, dict[str, str]]:
    """What of a network may be rotated; for every other group why it may not.

    Rotated are units that weights make and read, which are added, averaged, multiplied by what holds none of them,
    normed as a whole, and contracted with each other: a residual stream, queries with keys, values. A gain between is
    moved into the weights that read it; where it cannot be, it is `carried`, and only equal gains commute.
    """
    walk = Propagation(program, structure.shapes)
    walk.run(RULES)
    atoms = atoms_of(walk, structure)
    turns, gains, refused = [], [], {}
    for group in structure.groups:
        if group.name not in atoms:
            continue
        follow = _Follow(walk, atoms[group.name])
        try:
            follow.run()
            turns.append(_turn(walk, group, atoms, follow))
            gains += [
                Gain(group.name, g.gain, g.bias, tuple(g.readers), g.carried or not g.readers) for g in follow.gains
            ]
        except _NoRotation as why:
            refused[group.name] = str(why)
    return Frame(structure, tuple(turns), tuple(gains), program.tied), refused


class _Follow:
    """One pass over the program with the states of the values that hold one atom."""

    def __init__(self, walk: Propagation, atom: Axis) -> None:
        self.walk, self.atom = walk, ax.find(atom)
        self.states: dict[str, _State] = {}
        self.gains: list[_Multiplied] = []
        self.centred = False
        # for each weight that reads the units, what each of its readings sees; the biases of these
        self.read: dict[str, list[tuple[_Multiplied | None, Reader]]] = {}
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
                self.states[place] = _State("weight", name)
        for node in self.walk.program.needed:
            if node.kind == "size" or node.name not in self.walk.flow.told:
                continue
            if any(name in self.states for name in node.refs()):
                out = self.step(node)
                if out is not None and self.keeps(node):
                    self.states[node.name] = out
        self.settle()

    def holds(self, axis: Axis) -> bool:
        """Whether the atom is part of an axis."""
        return any(leaf is self.atom for leaf in ax.leaves(axis))

    def keeps(self, node: Node) -> bool:
        """Whether the result holds the atom; one of several results is asked by itself."""
        value = self.walk.values.get(node.name) or self.walk.views.get(node.name)
        return value is None or bool(self.parts(value))

    def parts(self, value: Value) -> list[Value]:
        """The value, or those of its slices, that hold the atom."""
        return [v for v in value.stack or (value,) if any(map(self.holds, v.axes))]

    # ------------------------------------------------------------------ operations

    def step(self, node: Node) -> _State | None:
        """The state of the result."""
        kind, base = node.kind, node.base
        if kind in _MOVES or kind == "look up":
            return self.moved(node)
        if kind == "join" or base in ("add", "sub"):
            return self.added(node)
        if base in ("mul", "multiply", "div", "true_divide"):
            return self.multiplied(node)
        if base in ("pow", "square"):
            return self.power(node)
        steps: dict[str, Callable[[Node], _State | None]] = dict.fromkeys(_PRODUCTS, self.contracted)
        steps |= {"attention": self.attended, "reduce": self.reduced, "embedding": self.looked_up}
        if kind in steps:
            return steps[kind](node)
        if base in ("layer_norm", "native_layer_norm", "rms_norm"):
            return self.normed(node)
        if base == "neg":
            return self.moved(node)
        raise self.refusal(node)

    def refusal(self, node: Node, why: str = "") -> _NoRotation:
        """The operation, and its line."""
        return _NoRotation(f"operation {node.op} ({node.where}) {why or 'treats units one by one'}")

    def moved(self, node: Node) -> _State:
        """Entries of one value at other places."""
        states = self.of(node)
        if len(states) != 1 or not node.refs() or node.refs()[0] not in self.states:
            raise self.refusal(node)
        return next(iter(states.values()))

    def of(self, node: Node) -> dict[str, _State]:
        """The states of the arguments that have one."""
        return {name: self.states[name] for name in node.refs() if name in self.states}

    def linear(self, states: Mapping[str, _State]) -> _State:
        """Values that are put together: a gain that only some of them have cannot be moved into weights."""
        if any(s.kind == "squared" for s in states.values()):
            raise _NoRotation("squares of units are added to something else")
        kinds = {s.by for s in states.values()}
        if len(kinds) == 1 and None not in kinds:
            return next(iter(states.values()))
        for s in states.values():
            self.carry(s)
        return _MOVING

    def carry(self, state: _State) -> None:
        """Say that what follows sees the units with their gain."""
        if state.by is not None:
            state.by.carried = True
        if state.kind == "weight":
            self.plain.add(state.tensor)

    def added(self, node: Node) -> _State:
        states, others = self.of(node), self.others(node)
        if others or (node.kind != "join" and self.number(node) is not None):
            self.centred = True  # one number is added to all units
            if node.kind == "join":
                raise self.refusal(node, "puts units beside something else")
        gained = [s for s in states.values() if s.kind == "gained"]
        weights = [s for s in states.values() if s.kind == "weight"]
        if node.base == "add" and len(gained) == len(weights) == 1 and len(states) == 2 and node.kind != "join":
            by = gained[0].by
            if by is not None and by.bias is None and not by.readers and self.vector(weights[0].tensor):
                by.bias = weights[0].tensor
                return gained[0]
        return self.linear(states)

    def others(self, node: Node) -> list[str]:
        """The arguments without a state, but for empty ones (a cache that nothing is in yet)."""
        return [name for name in node.refs() if name not in self.states and self.shapes.get(name) != (0,)]

    def number(self, node: Node) -> float | None:
        """A number among the first two arguments."""
        return next((v for v in node.args[:2] if isinstance(v, int | float)), None)

    def multiplied(self, node: Node) -> _State:
        states, refs = self.of(node), node.refs()
        if len(states) == 1 and (node.base in ("mul", "multiply") or refs[0] in states):
            if refs.count(next(iter(states))) == 2:
                return self.squares(node, next(iter(states.values())))
            state = next(iter(states.values()))
            if state.by is not None and state.by.bias is not None:
                state.by.carried = True  # the multiple of what is added is no bias
            return state
        weights = [s for s in states.values() if s.kind == "weight" and self.vector(s.tensor)]
        moving = [s for s in states.values() if s.kind == "moves"]
        if node.base.startswith("div") or len(weights) != 1 or len(moving) != 1:
            raise self.refusal(node)
        return self.gained(weights[0].tensor, None)

    def vector(self, tensor: str) -> bool:
        """Whether a parameter has one entry for each unit and no others."""
        return prod(self.walk.shapes[tensor]) == self.atom.size

    def gained(self, gain: str | None, bias: str | None) -> _State:
        """The state after a gain and a bias that are used nowhere else."""
        by = _Multiplied(gain, bias)
        self.gains.append(by)
        return _State("gained", by=by)

    def power(self, node: Node) -> _State:
        if node.base == "pow" and node.args[1] != 2:
            raise self.refusal(node)
        return self.squares(node, next(iter(self.of(node).values())))

    def squares(self, node: Node, state: _State) -> _State:
        if state.kind != "moves":
            raise self.refusal(node)
        return _State("squared")

    def looked_up(self, node: Node) -> _State:
        if node.refs()[1] in self.states:
            raise self.refusal(node)
        return self.linear(self.of(node))

    def normed(self, node: Node) -> _State:
        a, (value, *_) = node.named(), node.refs()
        axes = self.walk.values[value].axes if value in self.walk.values else ()
        whole = len(a["normalized_shape"]) == 1 and axes and ax.find(axes[-1]) is self.atom
        if not whole or self.states[value].kind == "squared" or self.states[value].kind == "weight":
            raise self.refusal(node)
        self.linear({value: self.states[value], "": _MOVING})  # a gain before it is carried
        self.centred |= "rms" not in node.base
        gain, bias = (self.parameter(a.get(key)) for key in ("weight", "bias"))
        return self.gained(gain, bias) if gain or bias else _MOVING

    def parameter(self, argument: Any) -> str | None:
        """The name of the parameter that an argument is a view of."""
        if not isinstance(argument, Ref):
            return None
        state = self.states.get(argument.name)
        if state is None or state.kind != "weight":
            raise _NoRotation("a function of weights multiplies the units")
        return state.tensor

    def reduced(self, node: Node) -> _State | None:
        (value, state), a = next(iter(self.of(node).items())), node.named()
        axes = self.walk.values[value].axes if value in self.walk.values else ()
        over = _dims(a.get("dim"), len(axes))
        within = [d for d in over if self.holds(axes[d])]
        if not axes or any(ax.find(axes[d]) is not self.atom for d in within):
            raise self.refusal(node)
        if not within:
            return self.summed(node, state)
        if state.kind == "squared" and node.base in ("mean", "sum"):
            return None
        if state.kind != "moves" or node.base not in ("mean", "sum", "var", "std", "var_mean", "std_mean"):
            raise self.refusal(node)
        self.centred = True
        return None

    def summed(self, node: Node, state: _State) -> _State:
        """Over examples' places: what is added to a gain is a bias of the mean, not of the sum."""
        if node.base not in ("mean", "sum") or state.kind == "squared":
            raise self.refusal(node)
        if node.base == "sum" and state.by is not None and state.by.bias is not None:
            state.by.carried = True
        return state

    # ------------------------------------------------------------------ products

    def contracted(self, node: Node) -> _State | None:
        """A layer or a product: weights read the units or make them, values are contracted with each other."""
        states = self.of(node)
        if any(s.kind == "squared" for s in states.values()):
            raise self.refusal(node)
        roles = {role for n, axis, role in self.walk.readers if n is node and self.holds(axis)}
        values = [s for s in states.values() if s.kind != "weight"]
        weights = [s.tensor for s in states.values() if s.kind == "weight"]
        if "out" in roles:
            self.reading(node, values, weights)
            return _MOVING
        if values and weights:
            raise self.refusal(node)
        if len(values) == 2 and self.stays(node):
            raise self.refusal(node, "multiplies units entry by entry")
        if len(values) == 1 and not self.stays(node):
            raise self.refusal(node, "sums over units")
        if values and isinstance(node.named().get("bias"), Ref):
            raise self.refusal(node, "adds a number for each place")
        for s in states.values():
            self.carry(s)
        return _MOVING

    def stays(self, node: Node) -> bool:
        value = self.walk.values.get(node.name)
        return value is None or any(map(self.holds, value.axes))

    def reading(self, node: Node, values: Sequence[_State], weights: Sequence[str]) -> None:
        """A weight sums over the units of a value."""
        found = [(w, d) for w in weights for d in self.dims_read(w)]
        if len(values) != 1 or len(found) != 1:
            raise self.refusal(node, "reads units in more than one way")
        (weight, dim), given = found[0], node.named()
        whole = ax.find(self.walk.weights[weight][dim]) is self.atom
        self.seen |= {name: None for name, s in self.of(node).items() if s is values[0]}
        place = given.get("bias") if node.base == "linear" else given.get("self") if node.base == "addmm" else None
        bias = self.walk.program.tensors.get(place.name) if isinstance(place, Ref) else None
        if not whole and values[0].by is not None:
            values[0].by.carried = True
        self.read.setdefault(weight, []).append((values[0].by, Reader(weight, dim, bias)))
        for other in (w for w in weights if w != weight):
            self.plain.add(other)

    def dims_read(self, tensor: str) -> list[int]:
        uses = {(d, role) for name, d, axis, role in self.walk.uses if name == tensor and self.holds(axis)}
        return sorted({d for d, role in uses if role == "out"})

    def attended(self, node: Node) -> _State | None:
        a, states = node.named(), self.of(node)
        if isinstance(a.get("attn_mask"), Ref) and a["attn_mask"].name in states:
            raise self.refusal(node)
        for key in ("query", "key", "value"):
            name = a[key].name
            if name not in states:
                continue
            axes = self.walk.values[name].axes if name in self.walk.values else ()
            inside = [d for d, axis in enumerate(axes) if self.holds(axis)]
            if inside != [len(axes) - 1] or states[name].kind not in ("moves", "gained"):
                raise self.refusal(node)
            self.carry(states[name])
        return _MOVING

    # ------------------------------------------------------------------ the end

    def settle(self) -> None:
        """Which gains go into which weights: each weight reads one gain, and is nothing else."""
        vectors = [g.gain for g in self.gains] + [g.bias for g in self.gains]
        biases = [r.bias for several in self.read.values() for _, r in several[:1]]
        for weight, several in self.read.items():
            sources = {by for by, _ in several}
            if len(sources) > 1 or weight in self.plain:
                for by in sources - {None}:
                    by.carried = True  # type: ignore[union-attr]
                continue
            by, reader = several[0]
            if by is not None:
                own = reader.bias is not None and biases.count(reader.bias) == 1 and self.used_once(reader.bias)
                two = len(self.walk.shapes[weight]) == 2
                by.readers.append(reader if own and two and len(several) == 1 else Reader(weight, reader.dim, None))
        for by in self.gains:
            names = [n for n in (by.gain, by.bias) if n is not None]
            by.carried |= any(vectors.count(n) > 1 or n in self.plain for n in names)

    def used_once(self, tensor: str) -> bool:
        places = {place for place, name in self.walk.program.tensors.items() if name == tensor}
        return sum(node.refs().count(p) for node in self.walk.program.needed for p in places) == 1


def _dims(dim: Any, rank: int) -> set[int]:
    if dim is None or dim == []:
        return set(range(rank))
    return {d % rank for d in ([dim] if isinstance(dim, int) else dim)}


# ---------------------------------------------------------------------- where the units are


def _turn(walk: Propagation, group: Group, atoms: Mapping[str, Axis], follow: _Follow) -> Turn:
    """The group with what stands beside its units everywhere, and where each of them is."""
    atom, names = follow.atom, {axis: name for name, axis in atoms.items()}
    gains = {g.gain for g in follow.gains}
    members = [m for m in group.members if walk.program.tied.get(m.tensor, m.tensor) not in gains]
    axes = {(m.tensor, m.dim): walk.weights[walk.program.tied.get(m.tensor, m.tensor)][m.dim] for m in members}
    beside = [_beside(axis, atom) for axis in axes.values()]
    beside += [
        [leaf for axis in part.axes for leaf in ax.leaves(axis)]
        for name in follow.states
        if name in walk.values
        for part in follow.parts(walk.values[name])
    ]
    keys = [leaf for leaf in beside[0] if all(leaf in s for s in beside)]
    held = [Held(m.tensor, m.dim, _places(axes[m.tensor, m.dim], atom, keys)) for m in members]
    seen = [
        Held(name, d, _places(axis, atom, keys))
        for name in follow.seen
        for d, axis in enumerate(walk.values[name].axes)
        if follow.holds(axis) and all(k in ax.labels(axis) for k in keys)
    ]
    sizes = tuple((names.get(k, ""), k.size) for k in keys)
    return Turn(group.name, atom.size, tuple(held), sizes, follow.centred, tuple(seen))


def _beside(axis: Axis, atom: Axis) -> list[Axis]:
    """The other atoms that name the positions of this one on an axis."""
    labels = ax.labels(axis)
    here = labels[atom] >= 0
    return [other for other, units in labels.items() if other is not atom and bool((units[here] >= 0).all())]


def _places(axis: Axis, atom: Axis, keys: Sequence[Axis]) -> Tensor:
    """The positions of each unit of the atom under each key, [keys..., units, block]."""
    labels = ax.labels(axis)
    at = torch.nonzero(labels[atom] >= 0).reshape(-1)
    rank = torch.zeros_like(at)
    for one in (*keys, atom):
        rank = rank * one.size + labels[one][at]
    return at[rank.argsort(stable=True)].reshape(*(k.size for k in keys), atom.size, -1)
