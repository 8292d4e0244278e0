"""Walking a program axis by axis: what is known of each value, and how it becomes a `Structure`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from isthmus.errors import IsthmusError, UnsupportedError
from isthmus.program.export import Node, Program
from isthmus.program.ops import Kind, op_named
from isthmus.structure import axes as ax
from isthmus.structure.axes import Axis
from isthmus.structure.degrees import degree_of
from isthmus.structure.units import Group, Member, Structure

__all__ = ["Propagation", "Rule", "Rules", "Value"]

Role = Literal["in", "out"]
Origin = frozenset[tuple[str, int]]
NONE: Origin = frozenset()


@dataclass(frozen=True, eq=False)
class Value:
    """What the walk knows of a tensor.

    `axes`, one per dimension; `origins`, for each axis the axes of parameters that it is a view of. An `active` value
    depends on the input; a `uniform` one is the same number everywhere, so that its axes tie nothing; a `bent` one
    is a function of weights that does not keep zeros; a `straight` one is linear in each tensor that it was made from.
    `stack` holds the slices along the axis `along` (each with that axis, of size 1) when they are known one by one: the
    last states of a recurrent network, packed projections.
    `numbers`: the axis whose positions the entries number (what topk and argmax say was chosen).
    """

    axes: Sequence[Axis]
    origins: Sequence[Origin] = ()
    active: bool = True
    uniform: bool = False
    bent: bool = False
    straight: bool = False
    stack: Sequence[Value] = ()
    along: int = 0
    numbers: Axis | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))
        object.__setattr__(self, "origins", tuple(self.origins) or (NONE,) * len(self.axes))

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes."""
        return tuple(a.size for a in self.axes)

    @property
    def is_weight(self) -> bool:
        """Whether it is computed from parameters alone."""
        return not self.active and any(self.origins)

    def at(self, dims: Sequence[int]) -> Value:
        """The value with those axes, in that order."""
        return replace(self, axes=[self.axes[d] for d in dims], origins=[self.origins[d] for d in dims], stack=())

    def with_axis(self, dim: int, axis: Axis, origin: Origin | None = None) -> Value:
        """The value with one axis replaced."""
        axes, origins = list(self.axes), list(self.origins)
        axes[dim] = axis
        origins[dim] = origins[dim] if origin is None else origin
        return replace(self, axes=axes, origins=origins, stack=())


Rule = Callable[["Propagation", Node, dict[str, Any]], Any]
"""The axes of an operation's result from those of its arguments, which come by name (the first one as ``x``)."""


@dataclass(frozen=True)
class Rules:
    """What each operation does to axes: by its name, else by its kind.

    Those in `raw` see values as they stand; those in `numbering` know what to do with numbers of units.
    """

    named: Mapping[str, Rule]
    kinds: Mapping[Kind, Rule]
    raw: frozenset[str]
    numbering: frozenset[str]

    def of(self, node: Node) -> Rule | None:
        """The rule of a node's operation, if it has one."""
        return self.named.get(node.base) or self.kinds.get(op_named(node.base).kind)


class Propagation:
    """One walk through a program; the rules call its methods. Mutable, and used once."""

    def __init__(self, program: Program, shapes: Mapping[str, Sequence[int]]) -> None:
        self.program, self.shapes = program, {k: tuple(v) for k, v in shapes.items()}
        self.weights: dict[str, tuple[Axis, ...]] = {}
        # (tensor, dim, axis, role), in the order of the program
        self.uses: list[tuple[str, int, Axis, Role]] = []
        self.order = {name: i for i, name in enumerate(program.tensors.values())}
        # names of the groups that a tensor is the first to make, after that of its layer
        self.labels: dict[str, str] = {}
        self.flow = Flow(program)
        # what is known of each value that depends on the input, of each that is made from weights alone, and which node
        # used a weight, on which axis, how
        self.values: dict[str, Value] = {}
        self.views: dict[str, Value] = {}
        self.readers: list[tuple[Node, Axis, Role]] = []
        # the tensors of which a function that is not linear reads units
        self.curved: set[str] = set()
        self._node: Node | None = None

    # ------------------------------------------------------------------ what rules call

    def read(self, value: Any) -> Any:
        """A value ready for a rule: new axes for a uniform one, one tensor for a stack, nothing chosen by number."""
        if not isinstance(value, Value):
            return value
        if value.uniform:
            return replace(value, axes=[Axis(n) for n in value.shape], origins=())
        for part in value.stack[1:]:
            self.tie(value.stack[0], part)
        return replace(value, stack=())

    def tie(self, one: Value, other: Value) -> None:
        """Make the axes of two values of equal shape the same."""
        for a, b in zip(one.axes, other.axes, strict=True):
            ax.unify(a, b)

    def use(self, value: Value, dim: int, role: Role) -> None:
        """Record that an axis of a weight makes units ("in") or reads them ("out")."""
        for tensor, d in sorted(value.origins[dim], key=lambda o: (self.order[o[0]], o[1])):
            self.uses.append((tensor, d, value.axes[dim], role))
            if role == "out" and not value.straight:
                self.curved.add(tensor)
        if value.origins[dim] and self._node is not None and len(value.axes) > 1:
            self.readers.append((self._node, value.axes[dim], role))

    def absorb(self, value: Value) -> None:
        """Record a weight that acts on its own units, entry by entry (a bias, a gain, an embedding of positions)."""
        for dim in range(len(value.axes) if value.is_weight else 0):
            self.use(value, dim, "in")

    # ------------------------------------------------------------------ the walk

    def run(self, rules: Rules) -> None:
        """Apply the rule of each operation on which an output depends; errors name the operation and its line."""
        program = self.program
        env: dict[str, Any] = {k: _held(program.shapes[k], why=ax.GIVEN) for k in program.inputs}
        env |= {place: _held(constant.shape, active=False) for place, constant in program.constants.items()}
        env |= {place: self._weight(name) for place, name in program.tensors.items()}
        for out in program.interpret(partial(self._apply, rules), env):
            ax.fix(*self.read(out).axes, why=ax.GIVEN)
        if (name := next(filter(self._is_unused, program.tensors.values()), None)) is not None:
            instead = "remove it, or write its groups by hand"
            raise UnsupportedError(f"parameter {name!r}", "it is not used by the forward pass", instead)

    def _is_unused(self, name: str) -> bool:
        """Whether nothing reads this tensor, though it has an axis along which there may be units."""
        several = max(self.shapes[name], default=1) != 1
        return several and name not in self.program.integers and not self.program.reads(name)

    def _weight(self, name: str) -> Value:
        shape = self.shapes[name]
        if name in self.program.integers:
            return _held(shape, active=False)
        self.weights[name] = tuple(Axis(n) for n in shape)
        origins = [frozenset({(name, d)}) for d in range(len(shape))]
        return Value(self.weights[name], origins, active=False, straight=True)

    def _apply(self, rules: Rules, node: Node, values: Mapping[str, Any]) -> Any:
        if node.hint is not None:
            return node.hint
        if node.name not in self.flow.told:
            return _constant(node, active=False)  # only its shape is asked for
        try:
            out = self._ruled(rules, node, values)
            if isinstance(out, Value):
                (self.values if out.active else self.views)[node.name] = out
            return out
        except IsthmusError:
            if node.name in self.flow.moving:
                raise
            # constant in the weights: what becomes of which position does not matter to them
            return _constant(node, any(values[k].active for k in node.refs() if isinstance(values[k], Value)))

    def _ruled(self, rules: Rules, node: Node, values: Mapping[str, Any]) -> Any:
        rule, place = rules.of(node), f"operation {node.op} ({node.where})"
        if rule is None:
            raise UnsupportedError(place, "no rule says which units it keeps apart")
        raw = node.base in rules.raw
        given = {k: values[k] if raw else self.read(values[k]) for k in node.refs()}
        operands = [v for v in given.values() if isinstance(v, Value)]
        free = _free(operands)
        if node.base not in rules.numbering:
            _fix_chosen(operands, place)
        out = self._called(rule, node, given, place)
        for axis in free:
            ax.explain(axis, f"{place} treats each position in its own way")
        return _with_straight(node, given, out)

    def _called(self, rule: Rule, node: Node, given: Mapping[str, Any], place: str) -> Any:
        self._node = node
        try:
            return rule(self, node, node.given(given))
        except IsthmusError as error:
            error.add_note(f"in {place}")
            raise
        except (ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
            raise UnsupportedError(place, f"its axes cannot be followed: {error}") from error

    # ------------------------------------------------------------------ the result

    def structure(self) -> Structure:
        """The groups: the atoms that may be permuted and that some weight makes."""
        return Structure(tuple(g for g, _ in self.groups()), self.shapes, self._fixed())

    def groups(self) -> list[tuple[Group, Axis]]:
        """The groups with the atoms that they are."""
        found = self._members()
        groups: list[tuple[Group, Axis]] = []
        for tensor, atom in self._made():
            if atom in found:
                name = _distinct(self._layer(tensor, atom), {g.name for g, _ in groups})
                groups.append((_group(name, found.pop(atom), atom), atom))
        # a single unit that cannot be removed alone leaves nothing to do
        return [(g, atom) for g, atom in groups if g.size > 1 or g.separable]

    def _made(self) -> Iterator[tuple[str, Axis]]:
        """The atoms that weights make, in the order of the program, each with the tensor."""
        for tensor, _, axis, role in self.uses:
            if role == "in":
                for atom in ax.leaves(axis):
                    yield tensor, atom

    def _members(self) -> dict[Axis, list[Member]]:
        """For each free atom the entries that make and read its units."""
        found: dict[Axis, list[Member]] = {}
        aliases: dict[str, list[str]] = {}
        for alias, name in self.program.tied.items():
            aliases.setdefault(name, []).append(alias)
        for (tensor, dim, atom), role in self._roles().items():
            index = ax.positions(self.weights[tensor][dim], atom)
            for name in (tensor, *aliases.get(tensor, ())):
                found.setdefault(atom, []).append(Member(name, dim, "in" if "in" in role else "out", index))
            if len(role) > 1:
                ax.mark(atom, f"{tensor!r} both makes and reads these units along axis {dim}")
        return found

    def _fixed(self) -> dict[str, str]:
        """For each layer that makes units of which some form no group, the first reason."""
        out: dict[str, str] = {}
        for tensor, atom in self._made():
            if atom.fixed and atom.why != ax.GIVEN:
                out.setdefault(self._layer(tensor, atom), atom.why)
        return {layer: why for layer, why in out.items() if why}

    def _layer(self, tensor: str, atom: Axis) -> str:
        """The layer of a tensor, with a label where its axis holds several groups."""
        layer, label = tensor.rpartition(".")[0] or tensor, atom.label or self.labels.get(tensor, "")
        return f"{layer}.{label}" if label else layer

    def _roles(self) -> dict[tuple[str, int, Axis], set[Role]]:
        """The roles of each free atom on each weight axis; an atom that some axis holds without a role is fixed."""
        seen: dict[tuple[str, int, Axis], set[Role]] = {}
        for tensor, dim, axis, role in self.uses:
            for atom in ax.leaves(axis):
                seen.setdefault((tensor, dim, atom), set()).add(role)
        held = [
            (name, d, atom)
            for name, axes in self.weights.items()
            for d, axis in enumerate(axes)
            for atom in ax.labels(axis)
        ]
        for key in held:
            if key not in seen:
                ax.fix(key[2], why=f"no rule says what {key[0]!r} does with them along axis {key[1]}")
        return {key: seen[key] for key in held if not key[2].fixed}


class Flow:
    """What flows where in a program, before anything is known of axes.

    `users`: the nodes that read each value. `moving`: the values on which a weight has an influence. `told`: those of
    which more than the shape is read.
    """

    def __init__(self, program: Program) -> None:
        self.outputs = {out.name for out in program.outputs}
        self.users: dict[str, list[Node]] = {}
        for node in program.needed:
            for name in node.refs():
                self.users.setdefault(name, []).append(node)
        telling = [node for node in program.needed if op_named(node.base).kind not in ("constant", "size")]
        self.moving = _after(telling, {k for k, name in program.tensors.items() if name not in program.integers})
        self.told = set(self.outputs)
        for node in reversed(telling):
            if node.name in self.told:
                self.told.update(node.refs())


def _after(nodes: Sequence[Node], start: set[str]) -> set[str]:
    """The values that depend on one of `start`, and these."""
    for node in nodes:
        if start.intersection(node.refs()):
            start.add(node.name)
    return start


def _with_straight(node: Node, given: Mapping[str, Any], out: Any) -> Any:
    """The result, which says whether it is linear in each entry of the weights that it was made from."""
    if isinstance(out, tuple | list):
        return type(out)(_with_straight(node, given, v) for v in out)
    return replace(out, straight=_straight(node, given, out)) if isinstance(out, Value) else out


def _straight(node: Node, given: Mapping[str, Any], out: Value) -> bool:
    weights = {k: several for k, x in given.items() if (several := _weights_of(x))}
    if not all(v.straight for several in weights.values() for v in several):
        return False
    return degree_of(node, dict.fromkeys(weights, 1)) <= 1 or _parts_axes(node, list(weights.values()), out)


def _parts_axes(node: Node, read: Sequence[Sequence[Value]], out: Value) -> bool:
    """Whether it is a product of two matrices (W = B A), of which no axis belongs to both."""
    if node.kind != "product" or len(read) != 2:
        return False
    first, second = (_named(origin for v in several for origin in v.origins) for several in read)
    shared = any(first & _named([origin]) and second & _named([origin]) for origin in out.origins)
    return not first & second and not shared


def _named(origins: Iterable[Collection[tuple[str, Any]]]) -> set[str]:
    """The tensors of these origins of axes."""
    return {tensor for origin in origins for tensor, _ in origin}


def _weights_of(value: Any) -> list[Value]:
    return [v for v in (value if isinstance(value, tuple | list) else (value,)) if _weighs(v)]


def _weighs(value: Any) -> bool:
    return isinstance(value, Value) and value.is_weight


def _free(values: Sequence[Value]) -> list[Axis]:
    return [leaf for v in values for axis in v.axes for leaf in ax.leaves(axis) if not leaf.fixed]


def _fix_chosen(values: Sequence[Value], place: str) -> None:
    for v in values:
        if v.numbers is not None:
            ax.fix(v.numbers, why=f"{place} computes with the numbers of the units chosen")


def _held(shape: Sequence[int], active: bool = True, why: str = "") -> Value:
    """A value of which no position can be exchanged with another."""
    return Value([ax.fixed(n, why) for n in shape], active=active)


def _constant(node: Node, active: bool) -> Any:
    """The result of an operation into which no weight flows."""
    if node.shapes:
        return tuple(None if shape is None else _held(shape, active) for shape in node.shapes)
    return None if node.shape is None else _held(node.shape, active)


def _group(name: str, members: list[Member], atom: Axis) -> Group:
    why = atom.mixed or ("" if any(m.role == "out" for m in members) else "no weight reads these units")
    members.sort(key=lambda m: m.role)
    return Group(name, atom.size, tuple(members), separable=not why, why=why)


def _distinct(name: str, taken: Collection[str]) -> str:
    return next(n for n in (name, *(f"{name}#{i}" for i in range(2, len(taken) + 3))) if n not in taken)
