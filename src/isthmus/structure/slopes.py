"""Chains with PReLU: its slopes as numbers where they stay, else as entries of the units they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from isthmus.errors import UnsupportedError
from isthmus.program.export import Node, Program
from isthmus.structure.chain import Chain, Layer, chain_of
from isthmus.structure.units import Structure

__all__ = ["chain_with_slopes"]


def chain_with_slopes(program: Program, structure: Structure, points: Sequence[Mapping[str, Tensor]]) -> Chain:
    """The chain that `program` is at `points`, PReLU included.

    Slopes that are one number at all points become that of a leaky ReLU. Otherwise, with one slope per unit, each is an
    entry of its unit like the bias: the last of the layer's `vectors`. Errors: ``UnsupportedError`` where the points
    differ in a slope that all units of a layer share, or in one that two layers share.

    >>> import isthmus as im
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.PReLU(3, init=0.5), torch.nn.Linear(3, 1))
    >>> o, a = im.Objective(net, "mse", (torch.zeros(4, 2), torch.zeros(4, 1))), net.state_dict()
    >>> chain_with_slopes(o.program, o.structure, [a]).layer(1).vectors
    ('0.bias',)
    >>> other = a | {"1.weight": torch.tensor([0.1, 0.2, 0.3])}
    >>> chain_with_slopes(o.program, o.structure, [a, other]).layer(1).vectors
    ('0.bias', '1.weight')
    """
    nodes = {n.name: n for n in program.nodes if n.base == "prelu"}
    names = {k: program.tensors[n.args[1].name] for k, n in nodes.items()}
    numbers = {k: _one_number(name, points) for k, name in names.items()}
    moving = {k: name for k, name in names.items() if numbers[k] is None}
    for k, name in moving.items():
        _check_units(nodes[k], name, list(names.values()).count(name), points)
    read = tuple(_leaky(n, numbers.get(n.name)) for n in program.nodes)
    chain = chain_of(replace(program, nodes=read), _without(structure, _all_names(program, {*names.values()})))
    return replace(chain, layers=tuple(_with_slopes(layer, moving) for layer in chain.layers))


def _all_names(program: Program, names: set[str]) -> set[str]:
    """The names with those of the same tensors that are tied to them."""
    return names | {k for k, first in program.tied.items() if first in names}


def _with_slopes(layer: Layer, slopes: Mapping[str, str]) -> Layer:
    own = (slopes[n.name] for n in layer.nodes if n.name in slopes)
    return replace(layer, vectors=(*layer.vectors, *own))


def _one_number(name: str, points: Sequence[Mapping[str, Tensor]]) -> float | None:
    values = torch.cat([p[name].flatten().double().cpu() for p in points])
    return float(values[0]) if bool((values == values[0]).all()) else None


def _check_units(node: Node, name: str, readers: int, points: Sequence[Mapping[str, Tensor]]) -> None:
    units, slopes = (node.shape or (0, 0))[1], points[0][name].numel()
    if slopes == units and readers == 1:
        return
    shared = "two layers share" if readers > 1 else f"all {units} units share"
    values = ", ".join(dict.fromkeys(f"{float(p[name].flatten()[0]):.6g}" for p in points))
    raise UnsupportedError(
        node.where or name,
        f"its slope {name!r}, which {shared}, differs ({values}), and no move of single units changes it",
        f"give both ends one slope, or nn.PReLU({units}), whose slopes move with their units",
    )


def _leaky(node: Node, slope: float | None) -> Node:
    """The leaky ReLU of that slope in the place of a PReLU; the node itself if it has none."""
    if slope is None:
        return node
    target = torch.ops.aten.leaky_relu.default
    return replace(node, op="aten.leaky_relu.default", target=target, args=(node.args[0], slope), kwargs={})


def _without(structure: Structure, names: set[str]) -> Structure:
    groups = [replace(g, members=tuple(m for m in g.members if m.tensor not in names)) for g in structure.groups]
    return Structure(tuple(groups), {k: v for k, v in structure.shapes.items() if k not in names})
