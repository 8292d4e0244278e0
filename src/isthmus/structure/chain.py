"""Networks that are a chain of affine layers: the form in which the papers write their constructions.

Layers are numbered 1..L, hidden layer l has n_l units, layer 0 is the input. A linear layer after a flattened
convolution stores its columns by channel, so that the same constructions run on perceptrons and convolutional
networks: A[l] has shape [n_l, n_{l-1}, k_l] (k_l kernel entries, or pixels per channel), and b[l], of shape
[n_l, m_l], holds what belongs to one unit: its bias and, where there is BatchNorm, its affine map and statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from isthmus.errors import UnsupportedError
from isthmus.params import Params
from isthmus.program.export import Node, Program, Ref
from isthmus.program.ops import Kind
from isthmus.shown import one_line
from isthmus.structure.units import Group, Structure, whole

RESHAPE: tuple[Kind, ...] = ("reshape", "squeeze")
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
        return next(i for i, n in enumerate(self.nodes) if n.kind == "affine")

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
    """A network x -> layer 1 -> ... -> layer L, with separable hidden units between the layers.

    `widths`: n_0 .. n_L. `entries`: k_1 .. k_L, how many weights of a unit read one unit before it.
    """

    layers: tuple[Layer, ...]
    widths: tuple[int, ...]
    entries: tuple[int, ...]
    input: str

    @property
    def L(self) -> int:
        """The number of affine layers (d in Kuditipudi et al.)."""
        return len(self.layers)

    def layer(self, l: int) -> Layer:
        """Layer l, counted from 1 as in the papers."""
        return self.layers[l - 1]

    def read(self, params: Mapping[str, Tensor], first: int = 1, entering: int | None = None) -> Weights:
        """The weights of `params` by layer, from layer `first` on, as views where possible.

        The layers may be narrower than the network's; `entering` is the number of units that layer `first` reads
        (default: all of them).
        """
        A, b = {}, {}
        columns = self.widths[first - 1] if entering is None else entering
        for l in range(first, self.L + 1):
            layer, W = self.layer(l), params[self.layer(l).weight]
            A[l] = W.reshape(len(W), columns, self.entries[l - 1])
            vectors = [params[v] for v in layer.vectors]
            b[l] = torch.stack(vectors, 1) if vectors else W.new_zeros(len(W), 0)
            columns = len(W)
        return Weights(A, b)

    def he_init(
        self,
        generator: torch.Generator,
        like: Mapping[str, Tensor],
        widths: Mapping[int, int] | None = None,
        first: int = 1,
    ) -> Weights:
        """He's random weights for the layers from `first` on, biases 0, BatchNorm the identity.

        `widths` replaces the widths of some layers; `like` gives the precision and the device.
        """
        n, A, b = dict(enumerate(self.widths)) | dict(widths or {}), {}, {}
        for l in range(first, self.L + 1):
            shape, own = (n[l], n[l - 1], self.entries[l - 1]), like[self.layer(l).weight]
            gain = (1 if l == self.L else 2) / max(1, shape[1] * shape[2])
            A[l] = torch.randn(shape, generator=generator, dtype=torch.float64).to(own) * gain**0.5
            ones = [float(v.endswith((".weight", "running_var"))) for v in self.layer(l).vectors]
            b[l] = torch.tensor(ones).to(own).expand(n[l], -1)
        return Weights(A, b)

    def compact(self, weights: Weights, like: Mapping[str, Tensor]) -> Params:
        """The small tensors of a subnetwork that starts at a layer > 1: only those of the layers in `weights`."""
        small = self.write(weights, like)
        return {n: small[n] for l in weights.A for n in (self.layer(l).weight, *self.layer(l).vectors)}

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
            z = _apply(node, {}, z) if node.kind == "pointwise" and len(node.refs()) == 1 else z
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
    if node.kind in RESHAPE:
        return reshape(node, h)

    units = len(params[node.args[1].name]) if node.kind == "affine" else h.shape[1]
    if node.base != "linear" and (not h.shape[1] or not units):
        # most operations refuse tensors without channels: one that is zero stands in, and is left out of the result
        own = {name: padded(params[name]) for name in node.refs() if name in params}
        return _called(node, own, padded(h))[:, :units]
    return _called(node, params, h)


def _called(node: Node, params: Mapping[str, Tensor], h: Tensor) -> Tensor:
    return node.call({name: params.get(name, h) for name in node.refs()})


def padded(v: Tensor) -> Tensor:
    """A zero in the place of each axis that has no entries."""
    return v if v.numel() else v.new_zeros([max(1, n) for n in v.shape])


def flattens(node: Node) -> bool:
    """Whether a node makes one row of each example's channels and pixels."""
    return node.kind in RESHAPE and len(node.shape or ()) == 2


def reshape(node: Node, h: Tensor) -> Tensor:
    """What a reshape of a chain does to features of any number of channels."""
    return h.flatten(1) if flattens(node) else h.reshape(*h.shape[:2], *(node.shape or ())[2:])


def chain_of(program: Program, structure: Structure) -> Chain:
    """The chain that `program` is, or ``UnsupportedError`` naming the operation that makes it something else."""
    pieces = _factor_first(_pieces(_canonical(_one_line(program), program)))
    tail = next((n for n in pieces[-1][1:] if n.kind not in ("affine", *RESHAPE)), None)
    if tail is not None:
        why = "it follows the output layer; return the raw outputs (logits), and scale what the layer reads instead"
        raise UnsupportedError(tail.where or tail.op, why)
    _refuse_pixels(pieces)
    shapes, names = structure.shapes, [_affine(piece).args[1].name for piece in pieces]
    groups = [*(_group_between(structure, *pair) for pair in pairwise(names)), None]
    layers = tuple(map(_layer, pieces, names, groups))
    _refuse_unread(shapes, layers)
    widths = (shapes[names[0]][1], *(shapes[n][0] for n in names))
    entries = tuple(prod(shapes[n]) // (shapes[n][0] * before) for n, before in zip(names, widths[:-1], strict=True))
    return Chain(layers, widths, entries, program.inputs[0])


def _pieces(nodes: list[Node]) -> list[list[Node]]:
    """The nodes of each layer. A reshape (flatten) reads features of the layer before it, and belongs to the next."""
    starts = [i for i, n in enumerate(nodes) if n.kind == "affine"]
    if not starts:
        raise UnsupportedError("the network", "it has no linear or convolutional layer")
    cuts = [0]
    for i in starts[1:]:
        while nodes[i - 1].kind in RESHAPE:
            i -= 1
        cuts.append(i)
    return [nodes[i:j] for i, j in pairwise([*cuts, len(nodes)])]


def _affine(nodes: Sequence[Node]) -> Node:
    return next(n for n in nodes if n.kind == "affine")


def _refuse_unread(shapes: Mapping[str, Sequence[int]], layers: Sequence[Layer]) -> None:
    used = {v for layer in layers for v in (layer.weight, *layer.vectors)}
    if unused := [k for k in shapes if k not in used and not k.endswith("num_batches_tracked")]:
        raise UnsupportedError(f"parameter {unused[0]!r}", "it belongs to no layer of the chain")


def factor(node: Node) -> float | None:
    """The number that a node multiplies with (or divides by), None if it does anything else."""
    if node.about.linear not in ("each", "first") or not isinstance(node.args[1], int | float):
        return None
    return node.args[1] if node.about.linear == "each" else 1 / node.args[1]


def _factor_first(pieces: list[list[Node]]) -> list[list[Node]]:
    """A number that the outputs are multiplied with, as in W h / N, scales h instead: the outputs stay W h.

    With an output bias that would be another function of the weights; the tail is then left, and refused.
    """
    *before, last = pieces
    tail = [n for n in last if factor(n) is not None]
    if not tail or _has_bias(_affine(last)):
        return pieces
    rest = [n for n in last if factor(n) is None]
    return [*before[:-1], [*before[-1], *tail], rest] if before else [[*tail, *rest]]


def _has_bias(affine: Node) -> bool:
    return len(affine.args) > 2 and affine.args[2] is not None


def _one_line(program: Program) -> list[Node]:
    """The tensor operations in order, with parameters named, or a refusal where the graph is not one line."""
    if len(program.inputs) != 1:
        raise UnsupportedError("the network", f"it has {len(program.inputs)} inputs, not one")
    named = {k: Ref(v) for k, v in program.tensors.items()}
    flow = program.inputs[0]
    line: list[Node] = []
    scalars: set[str] = set()
    for node in program.nodes:
        if node.shape is None:  # sizes read off the batch: the reshapes that use them are followed by shape
            scalars.add(node.name)
            continue
        if set(node.refs()) - named.keys() - scalars != {flow}:
            raise UnsupportedError(node.where or node.op, "the network is not a chain of layers (branches or sums)")
        _refuse_layer(node)
        args, kwargs = node.bind({k: named.get(k, Ref(k)) for k in node.refs()})
        line.append(replace(node, args=args, kwargs=kwargs))
        flow = node.name
    if not line or program.outputs[0].name != flow:
        raise UnsupportedError("the network", "its output is not the last operation of a chain")
    return line


def _refuse_layer(node: Node) -> None:
    """Refuse layers whose weight is no full matrix, or is read at several positions."""
    if node.base == "linear" and len(node.shape or ()) != 2:
        raise UnsupportedError(node.where or node.op, "a linear layer that runs over positions is not a chain")
    if node.kind == "affine" and node.named().get("groups", 1) != 1:
        raise UnsupportedError(node.where or node.op, "a grouped convolution has no full matrix")
    if "group_norm" in node.base:
        why = "it has as many groups in a narrower network, whose units are then others"
        raise UnsupportedError(node.where or node.op, why, "InstanceNorm, where each unit is a group")


def _canonical(line: list[Node], program: Program) -> list[Node]:
    """The same function in one spelling: each reshape directly before the operation that needs it, and nothing idle.

    Features then keep their channels on axis 1 up to the layer that reads them, however the flattening is written.
    """
    out: list[Node] = []
    waiting: Node | None = None
    shape = program.shapes[program.inputs[0]]
    for node in line:
        if node.kind in RESHAPE:
            waiting = node
        elif node.kind == "identity" or (out and node.base == out[-1].base == "relu"):
            continue
        elif waiting is not None and node.kind == "pointwise" and len(set(node.refs())) == 1:
            out.append(replace(node, shape=shape))
        else:
            out += _needed(waiting, shape, program.batch)
            out.append(node)
            waiting, shape = None, node.shape or ()
    return out + _needed(waiting, shape, program.batch)


def _needed(node: Node | None, before: tuple[int, ...], batch: int) -> list[Node]:
    """A reshape of values of the shape `before`, if it does anything; refuses what moves entries between channels."""
    if node is None or node.shape == before:
        return []
    shape: tuple[int, ...] = node.shape or ()
    keeps = min(len(before), len(shape)) > 2 and shape[1:2] == before[1:2]
    if shape[:1] != (batch,) or not (len(shape) == 2 or keeps):
        raise UnsupportedError(node.where or node.op, "a reshape other than flattening each example is not a chain")
    return [node]


def _refuse_pixels(pieces: list[list[Node]]) -> None:
    """Refuse a hidden layer whose flattened pixels are no longer treated channel by channel."""
    for piece in pieces[:-1]:
        own = piece[next(i for i, n in enumerate(piece) if n.kind == "affine") :]
        for before, node, after in zip(own, own[1:], own[2:], strict=False):
            if flattens(node) and prod((before.shape or ())[2:]) > 1:
                why = "it acts on flattened pixels, and the units of a chain are whole channels"
                raise UnsupportedError(after.where or after.op, why, "put it before the flattening")


def _layer(nodes: list[Node], weight: str, group: Group | None) -> Layer:
    vectors: list[str] = []
    for node in nodes:
        if node.kind in ("affine", "norm"):
            known = _known(group, node)
            vectors += [name for name in node.refs() if name != weight and name in known]
    return Layer(weight, tuple(dict.fromkeys(vectors)), tuple(nodes), group)


def _known(group: Group | None, node: Node) -> set[str]:
    if group is not None:
        return {m.tensor for m in group.members if m.role == "in"}
    # the output layer has no units of its own: its bias is the third argument of the affine operation
    return {v.name for v in (*node.args[2:3], *node.kwargs.values()) if isinstance(v, Ref)}


def _group_between(structure: Structure, weight: str, following: str) -> Group:
    """The hidden units that `weight` makes and `following` reads, in their natural order and nothing else's."""
    ends = {(weight, 0, "in"), (following, 1, "out")}
    between = (g for g in structure.groups if ends <= {(m.tensor, m.dim, m.role) for m in g.members})
    group = next(between, None)
    if group is not None:
        _check_single(group, weight)
        if whole(group, structure.shapes) and {m.tensor for m in group.outs} == {following}:
            return group
    layer = weight.rpartition(".")[0] or weight
    why = structure.fixed.get(layer, "")
    raise UnsupportedError(
        f"units of {weight!r}",
        f"they are not exactly the units that {following!r} reads" + (f" ({why})" if why else ""),
    )


def _check_single(group: Group, weight: str) -> None:
    """Refuse units that are no single rows of the weight."""
    together = next(m.index[0].numel() for m in group.members if (m.tensor, m.dim) == (weight, 0))
    if not group.separable or together > 1:
        why = group.why or f"an operation behind them takes {together} together"
        raise UnsupportedError(f"units of {weight!r}", f"they cannot be treated one by one ({why})")
