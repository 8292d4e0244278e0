"""Networks that are a chain of affine layers: the form in which the papers write their constructions.

Layers are numbered 1..L, hidden layer l has n_l units, layer 0 is the input. A linear layer after a flattened
convolution stores its columns by channel, so that the same constructions run on perceptrons and convolutional
networks: A[l] has shape [n_l, n_{l-1}, k_l] (k_l kernel entries, or pixels per channel), and b[l], of shape
[n_l, m_l], holds what belongs to one unit: its bias and, where there is BatchNorm, its affine map and statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import UnsupportedError
from isthmus.params import Params
from isthmus.program.export import Node, Program, Ref
from isthmus.shown import one_line
from isthmus.structure.algebra import POINTWISE
from isthmus.structure.units import Group, Structure

AFFINE = ("aten.linear.default", "aten.conv1d.default", "aten.conv2d.default", "aten.conv2d.padding")
NORM = ("aten.batch_norm.default",)
SCALINGS = ("aten.mul.Tensor", "aten.div.Tensor")
RESHAPE = (
    *("aten.view.default", "aten.reshape.default", "aten.flatten.using_ints", "aten._unsafe_view.default"),
    *("aten.squeeze.dim", "aten.squeeze.dims"),
)
IDLE = ("alias", "alpha_dropout", "clone", "contiguous", "detach", "dropout", "feature_dropout", "positive")
"""Operations that change nothing: the structure refused dropout that is in training mode."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@one_line
@dataclass(frozen=True)
class Layer:
    """One affine layer with what is tied to its units. `vectors` are the names of the per-unit tensors in b."""

    weight: str
    vectors: tuple[str, ...]
    nodes: tuple[Node, ...]
    group: Group | None

    @property
    def before(self) -> tuple[Node, ...]:
        """What is done to the features before the affine operation reads them."""
        return self.nodes[: self._at]

    @property
    def behind(self) -> tuple[Node, ...]:
        """What is done to its results: normalisation, activation, pooling."""
        return self.nodes[self._at + 1 :]

    @property
    def _at(self) -> int:
        return next(i for i, n in enumerate(self.nodes) if n.op in AFFINE)

    @property
    def trainable(self) -> tuple[str, ...]:
        """The names that training changes: all but running statistics."""
        return (self.weight, *(v for v in self.vectors if not v.endswith(STATISTICS)))


@one_line
@dataclass(frozen=True)
class Weights:
    """The weights of a chain by layer number: A[l] [n_l, n_{l-1}, k_l] and b[l] [n_l, m_l], l = 1..L."""

    A: dict[int, Tensor]
    b: dict[int, Tensor]

    def copy(self) -> Weights:
        """Independent dictionaries on the same tensors: replace entries, never write into them."""
        return Weights(dict(self.A), dict(self.b))


@one_line
@dataclass(frozen=True)
class Chain:
    """A network x -> layer 1 -> ... -> layer L, with separable hidden units between the layers."""

    layers: tuple[Layer, ...]
    widths: tuple[int, ...]
    input: str

    @property
    def L(self) -> int:
        """The number of affine layers (d in Kuditipudi et al.)."""
        return len(self.layers)

    def layer(self, l: int) -> Layer:
        """Layer l, counted from 1 as in the papers."""
        return self.layers[l - 1]

    def read(self, params: Mapping[str, Tensor]) -> Weights:
        """The weights of `params` by layer, as views where possible."""
        A, b = {}, {}
        for l, layer in enumerate(self.layers, start=1):
            A[l] = params[layer.weight].reshape(self.widths[l], self.widths[l - 1], -1)
            columns = [params[v] for v in layer.vectors]
            b[l] = torch.stack(columns, 1) if columns else A[l].new_zeros(self.widths[l], 0)
        return Weights(A, b)

    def write(self, weights: Weights, like: Mapping[str, Tensor]) -> Params:
        """`like` with the layers in `weights` put in; widths may differ from those of `like` (a subnetwork)."""
        out = dict(like)
        for l, A in weights.A.items():
            layer, shape = self.layer(l), like[self.layer(l).weight].shape
            columns = A.shape[1] * A.shape[2] if len(shape) == 2 else A.shape[1]
            out[layer.weight] = A.reshape(A.shape[0], columns, *shape[2:])
            for i, name in enumerate(layer.vectors):
                out[name] = weights.b[l][:, i].contiguous()
        return out

    def forward(self, params: Mapping[str, Tensor], h: Tensor, first: int = 1) -> Tensor:
        """The output, from the features `h` that enter layer `first` (channels on axis 1; layer 1 reads x).

        The layers' weights may be narrower than the network's: sizes come from the tensors alone.
        """
        for l in range(first, self.L + 1):
            h = self.through(params, h, l)
        return h

    def through(self, params: Mapping[str, Tensor], h: Tensor, l: int) -> Tensor:
        """The features of layer l (after its activation and pooling) from those of layer l - 1."""
        for node in self.layer(l).nodes:
            h = _apply(node, params, h)
        return h

    def entered(self, x: Tensor) -> Tensor:
        """x as the first layer reads it: after whatever the network does to its input first, but for flattening."""
        for node in self.layers[0].before:
            x = x if flattens(node) else _apply(node, {}, x)
        return x

    def activated(self, l: int, z: Tensor) -> Tensor:
        """The activation of layer l, with the numbers it is multiplied by, on each entry of z."""
        for node in self.layer(l).behind:
            z = _apply(node, {}, z) if base(node) in POINTWISE and len(node.refs()) == 1 else z
        return z

    def features(self, params: Mapping[str, Tensor], x: Tensor, l: int, chunk: int) -> Tensor:
        """f_l(x) for all examples, [N, n_l, ...], computed `chunk` examples at a time; f_0 = x."""
        if l == 0:
            return x
        parts = []
        with torch.no_grad():
            for part in x.split(chunk):
                h = part
                for k in range(1, l + 1):
                    h = self.through(params, h, k)
                parts.append(h)
        return torch.cat(parts)


def _apply(node: Node, params: Mapping[str, Tensor], h: Tensor) -> Tensor:
    """One operation on `h`; every reference is either a parameter or the one value that flows."""
    if node.op in RESHAPE:
        return reshape(node, h)

    units = len(params[node.args[1].name]) if node.op in AFFINE else h.shape[1]
    if node.op != AFFINE[0] and (not h.shape[1] or not units):
        # most operations refuse tensors without channels: one that is zero stands in, and is left out of the result
        own = {name: padded(params[name]) for name in node.refs() if name in params}
        return _called(node, own, padded(h))[:, :units]
    return _called(node, params, h)


def _called(node: Node, params: Mapping[str, Tensor], h: Tensor) -> Tensor:
    def value(v: Any) -> Any:
        if isinstance(v, Ref):
            return params[v.name] if v.name in params else h
        return type(v)(value(u) for u in v) if isinstance(v, list | tuple) else v

    return node.target(*(value(v) for v in node.args), **{k: value(v) for k, v in node.kwargs.items()})


def padded(v: Tensor) -> Tensor:
    """A zero in the place of each axis that has no entries."""
    return v if v.numel() else v.new_zeros([max(1, n) for n in v.shape])


def flattens(node: Node) -> bool:
    """Whether a node makes one row of each example's channels and pixels."""
    return node.op in RESHAPE and len(node.shape or ()) == 2


def reshape(node: Node, h: Tensor) -> Tensor:
    """What a reshape of a chain does to features of any number of channels."""
    return h.flatten(1) if flattens(node) else h.reshape(*h.shape[:2], *(node.shape or ())[2:])


def base(node: Node) -> str:
    """The name of an operation without its namespace and overload: "relu"."""
    return node.op.split(".")[1] if "." in node.op else node.op


def chain_of(program: Program, structure: Structure) -> Chain:
    """The chain that `program` is, or ``UnsupportedError`` naming the operation that makes it something else."""
    nodes = _canonical(_one_line(program), program)
    starts = [i for i, n in enumerate(nodes) if n.op in AFFINE]
    if not starts:
        raise UnsupportedError("the network", "it has no linear or convolutional layer")
    # a reshape (flatten) reads the features of the layer before it, so it belongs to the layer that follows
    cuts = [0]
    for i in starts[1:]:
        while nodes[i - 1].op in RESHAPE:
            i -= 1
        cuts.append(i)
    pieces = _factor_first([nodes[i:j] for i, j in zip(cuts, [*cuts[1:], len(nodes)], strict=True)])
    if tail := [n for n in pieces[-1][1:] if n.op not in AFFINE and n.op not in RESHAPE]:
        raise UnsupportedError(
            tail[0].where or tail[0].op,
            "it follows the output layer; return the raw outputs (logits), and scale what the layer reads instead",
        )
    _refuse_pixels(pieces)
    names = [next(n for n in piece if n.op in AFFINE).args[1].name for piece in pieces]
    layers: list[Layer] = []
    for l, piece in enumerate(pieces):
        last = l == len(pieces) - 1
        group = None if last else _group_between(structure, names[l], names[l + 1])
        layers.append(_layer(piece, names[l], group))
    shapes = structure.shapes
    first = shapes[names[0]][1]
    widths = (first, *(shapes[n][0] for n in names))
    used = {v for layer in layers for v in (layer.weight, *layer.vectors)}
    if unused := [k for k in shapes if k not in used and not k.endswith("num_batches_tracked")]:
        raise UnsupportedError(f"parameter {unused[0]!r}", "it belongs to no layer of the chain")
    return Chain(tuple(layers), widths, program.inputs[0])


def factor(node: Node) -> float | None:
    """The number that a node multiplies with (or divides by), None if it does anything else."""
    if node.op not in SCALINGS or not isinstance(node.args[1], int | float):
        return None
    return node.args[1] if node.op == SCALINGS[0] else 1 / node.args[1]


def _factor_first(pieces: list[list[Node]]) -> list[list[Node]]:
    """A number that the outputs are multiplied with, as in W h / N, scales h instead: the outputs stay W h.

    With an output bias that would be another function of the weights; the tail is then left, and refused.
    """
    *before, last = pieces
    tail = [n for n in last if factor(n) is not None]
    affine = next(n for n in last if n.op in AFFINE)
    if not tail or (len(affine.args) > 2 and affine.args[2] is not None):
        return pieces
    rest = [n for n in last if factor(n) is None]
    return [*before[:-1], [*before[-1], *tail], rest] if before else [[*tail, *rest]]


def _one_line(program: Program) -> list[Node]:
    """The tensor operations in order, with parameters named, or a refusal where the graph is not one line."""
    if len(program.inputs) != 1:
        raise UnsupportedError("the network", f"it has {len(program.inputs)} inputs, not one")
    named = {k: Ref(v) for k, v in program.tensors.items()}
    flow = program.inputs[0]
    line: list[Node] = []
    scalars: set[str] = set()
    for node in program.nodes:
        refs = {r.name for r in _refs(node.args)} | {r.name for r in _refs(tuple(node.kwargs.values()))}
        if node.shape is None:  # sizes read off the batch: the reshapes that use them are followed by shape
            scalars.add(node.name)
            continue
        data = refs - named.keys() - scalars
        if data != {flow}:
            raise UnsupportedError(node.where or node.op, "the network is not a chain of layers (branches or sums)")
        if node.op == AFFINE[0] and len(node.shape) != 2:
            raise UnsupportedError(node.where or node.op, "a linear layer that runs over positions is not a chain")
        line.append(_rename(node, named, flow))
        flow = node.name
    if not line or program.outputs[0].name != flow:
        raise UnsupportedError("the network", "its output is not the last operation of a chain")
    return line


def _canonical(line: list[Node], program: Program) -> list[Node]:
    """The same function in one spelling: each reshape directly before the operation that needs it, and nothing idle.

    Features then keep their channels on axis 1 up to the layer that reads them, however the flattening is written.
    """
    out: list[Node] = []
    waiting: Node | None = None
    shape = program.shapes[program.inputs[0]]
    for node in line:
        if node.op in RESHAPE:
            waiting = node
        elif base(node) in IDLE or (out and base(node) == base(out[-1]) == "relu"):
            continue
        elif waiting is not None and base(node) in POINTWISE and len(set(node.refs())) == 1:
            out.append(replace(node, shape=shape))
        else:
            out += _needed(waiting, shape, program.batch)
            out.append(node)
            waiting, shape = None, node.shape or ()
    return out + _needed(waiting, shape, program.batch)


def _needed(node: Node | None, before: tuple[int, ...], batch: int) -> list[Node]:
    """A reshape of values of the shape `before`, if it does anything; refuses what moves entries between channels."""
    shape = before if node is None else node.shape or ()
    if node is None or shape == before:
        return []
    keeps = len(before) > 2 and shape[1:2] == before[1:2]
    if shape[:1] != (batch,) or not (len(shape) == 2 or (len(shape) > 2 and keeps)):
        raise UnsupportedError(node.where or node.op, "a reshape other than flattening each example is not a chain")
    return [node]


def _refuse_pixels(pieces: list[list[Node]]) -> None:
    """Refuse a hidden layer whose flattened pixels are no longer treated channel by channel."""
    for piece in pieces[:-1]:
        own = piece[next(i for i, n in enumerate(piece) if n.op in AFFINE) :]
        for before, node, after in zip(own, own[1:], own[2:], strict=False):
            if flattens(node) and prod((before.shape or ())[2:]) > 1:
                why = "it acts on flattened pixels, and the units of a chain are whole channels"
                raise UnsupportedError(after.where or after.op, why, "put it before the flattening")


def _rename(node: Node, named: dict[str, Ref], flow: str) -> Node:
    def value(v: Any) -> Any:
        if isinstance(v, Ref):
            return named.get(v.name, v)
        return type(v)(value(u) for u in v) if isinstance(v, list | tuple) else v

    return replace(node, args=value(node.args), kwargs={k: value(v) for k, v in node.kwargs.items()})


def _refs(values: Any) -> list[Ref]:
    if isinstance(values, Ref):
        return [values]
    return [r for v in values for r in _refs(v)] if isinstance(values, list | tuple) else []


def _layer(nodes: list[Node], weight: str, group: Group | None) -> Layer:
    vectors: list[str] = []
    for node in nodes:
        names = [r.name for r in (*_refs(node.args), *_refs(tuple(node.kwargs.values())))]
        vectors += [
            n for n in names if node.op in (*AFFINE, *NORM) and n != weight and n in _known(group, node, weight)
        ]
    return Layer(weight, tuple(dict.fromkeys(vectors)), tuple(nodes), group)


def _known(group: Group | None, node: Node, weight: str) -> set[str]:
    if group is not None:
        return {m.tensor for m in group.members if m.role == "in"}
    # the output layer has no units of its own: its bias is the third argument of the affine operation
    return {r.name for r in _refs(node.args[2:3])} | {r.name for r in _refs(tuple(node.kwargs.values()))}


def _group_between(structure: Structure, weight: str, following: str) -> Group:
    """The hidden units that `weight` makes and `following` reads, in their natural order and nothing else's."""
    for group in structure.groups:
        makes = [m for m in group.members if m.tensor == weight and m.dim == 0 and m.role == "in"]
        reads = [m for m in group.members if m.tensor == following and m.dim == 1 and m.role == "out"]
        if not makes or not reads:
            continue
        if not group.separable:
            raise UnsupportedError(f"units of {weight!r}", f"they cannot be treated one by one ({group.why})")
        others = {m.tensor for m in group.members if m.role == "out"} - {following}
        whole = all(_natural(m.index, structure.shapes[m.tensor][m.dim]) for m in group.members)
        if others or not whole:
            break
        return group
    raise UnsupportedError(f"units of {weight!r}", f"they are not exactly the units that {following!r} reads")


def _natural(index: Tensor, length: int) -> bool:
    return prod(index.shape) == length and torch.equal(index.flatten(), torch.arange(length))
