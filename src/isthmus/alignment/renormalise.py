"""Points between two networks whose hidden units have the means and deviations that lie between those of the ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.alignment.overlap import scaled
from isthmus.alignment.seen import first, inputs
from isthmus.errors import UnsupportedError
from isthmus.evaluate.batchnorm import refresh, statistics
from isthmus.objective import Objective
from isthmus.params import Params, lerp
from isthmus.program.program import Node, Program, Ref
from isthmus.structure import Structure
from isthmus.structure.taps import taps

_STILL = 1e-6
"""A unit whose deviation is at most so many times the largest one is moved, not scaled."""


def renormalised(objective: Objective, a: Params, b: Params, ts: Sequence[float], examples: int) -> list[Params]:
    """The points of the straight line at `ts` with their units' statistics repaired (Jordan et al. 2022, REPAIR).

    With BatchNorm its running statistics are computed again, on the first `examples`. Else every affine layer that
    makes units of its own is scaled, unit by unit, and moved where it has a bias, until what it computes has the mean
    and the standard deviation that lie between those of the ends, layer after layer. Errors: ``UnsupportedError`` for a
    network that has neither.
    """
    few = first(objective, examples)
    if statistics(objective):
        return [refresh(few, lerp(a, b, t)) for t in ts]
    layers = _layers(objective.program, objective.structure)
    if not layers:
        why = "no layer makes units that can be scaled one by one, and there is no BatchNorm"
        raise UnsupportedError("Renormalised", why, "a trained curve, such as im.Bezier()")
    if any(a[layer.weight].is_complex() for layer in layers.values()):
        raise UnsupportedError("Renormalised", "complex weights", "Linear() or StringSampling()")
    x = inputs(few)
    with torch.no_grad():
        own, other = (_moments(objective.program.seen(p, x, list(layers)), layers) for p in (a, b))
        return [_repaired(objective.program, lerp(a, b, t), x, layers, _between(own, other, t)) for t in ts]


@dataclass(frozen=True, eq=False)
class _Layer:
    """A node that makes units: its tensors by name, the axis of its result, and the positions of units there."""

    node: Node
    weight: str
    bias: str | None
    rows: int
    dim: int
    positions: Tensor


_Moments = dict[str, tuple[Tensor, Tensor]]


def _layers(program: Program, structure: Structure) -> dict[str, _Layer]:
    """The layers whose units are told apart by no other operation than entry by entry, by the names of their values."""
    nodes = {node.name: node for node in program.needed}
    out: dict[str, _Layer] = {}
    for name, several in taps(program, structure, "before").items():
        if not structure.group(name).separable:
            continue
        for tap in several:
            layer = _layer(program, nodes.get(tap.value))
            if layer is not None and not tap.others:
                held = out.get(tap.value)
                mine = tap.index.reshape(-1)
                positions = mine if held is None else torch.cat([held.positions, mine])
                out[tap.value] = _Layer(layer[0], layer[1], layer[2], layer[3], tap.dim, positions)
    return {node.name: out[node.name] for node in program.needed if node.name in out}


def _layer(program: Program, node: Node | None) -> tuple[Node, str, str | None, int] | None:
    """The node with the names of its weight and its bias, which nothing else reads, and the axis of the rows."""
    if node is None or node.kind not in ("affine", "convolution") or node.named().get("groups", 1) != 1:
        return None
    weight, bias = _named(program, node, "weight"), _named(program, node, "bias")
    if weight is None or (bias is None and node.named().get("bias") is not None):
        return None
    if _is_shared(program, weight, bias):
        return None  # scaling it would change what else reads it
    return node, weight, bias, 1 if "transpose" in node.base else 0


def _is_shared(program: Program, *names: str | None) -> bool:
    return not all(program.reads_once(name) for name in names if name is not None)


def _named(program: Program, node: Node, argument: str) -> str | None:
    """The parameter that is given as an argument."""
    ref = node.named().get(argument)
    return program.tensors.get(ref.name) if isinstance(ref, Ref) else None


def _moments(values: Mapping[str, Any], layers: Mapping[str, _Layer]) -> _Moments:
    return {name: _moment(values[name], layer) for name, layer in layers.items()}


def _moment(value: Tensor, layer: _Layer) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of each position of the units' axis, in float64."""
    rows = value.movedim(layer.dim, 0).double().flatten(1)
    return rows.mean(1), rows.std(1, correction=0)


def _between(a: _Moments, b: _Moments, t: float) -> _Moments:
    return {k: (torch.lerp(a[k][0], b[k][0], t), torch.lerp(a[k][1], b[k][1], t)) for k in a}


def _repaired(
    program: Program, point: Params, x: Sequence[Tensor], layers: Mapping[str, _Layer], goal: _Moments
) -> Params:
    """The point after its layers were corrected in turn, each seeing what the corrected ones before it compute."""
    out = dict(point)

    def handle(node: Node, values: Mapping[str, Any]) -> Any:
        value = node.call(values)
        layer = layers.get(node.name)
        if layer is None:
            return value
        scale, shift = _correction(value, layer, goal[node.name])
        out[layer.weight] = scaled(out[layer.weight], scale, layer.rows)
        if layer.bias is None:
            return scaled(value, scale, layer.dim)
        out[layer.bias] = (out[layer.bias].double() * scale + shift).to(out[layer.bias].dtype)
        size = [1] * value.ndim
        size[layer.dim] = -1
        return scaled(value, scale, layer.dim) + shift.reshape(size).to(value.dtype)

    env: dict[str, Any] = {place: point[name] for place, name in program.tensors.items()}
    env |= dict(program.constants) | dict(zip(program.inputs, x, strict=True))
    program.interpret(handle, env)
    return out | {alias: out[name] for alias, name in program.tied.items()}


def _correction(value: Tensor, layer: _Layer, goal: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What each position is multiplied by, and what is added then; 1 and 0 for positions of no unit."""
    mean, deviation = _moment(value, layer)
    scale, shift = torch.ones_like(mean), torch.zeros_like(mean)
    k = layer.positions.to(mean.device)
    moves = deviation[k] > _STILL * deviation.max()
    scale[k] = torch.where(moves, goal[1][k] / torch.where(moves, deviation[k], 1.0), 1.0)
    shift[k] = goal[0][k] - mean[k] * scale[k]
    return scale, shift
