"""What stands between the layers of a chain: activations and their properties, and the matrix that each layer reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.errors import UnsupportedError
from isthmus.program.export import Node
from isthmus.structure.chain import RESHAPE, Chain, Layer

__all__ = ["Activation", "activation_of", "affine_of", "check_units", "design", "monotonic", "reads_flat"]


@dataclass(frozen=True)
class Activation:
    """The activation behind a hidden layer, with what Nguyen 2019 assumes of it.

    `slope`: the function is z for z >= 0 and slope z for z < 0 (None: it is another one). `onto` is Assumption 2.1,
    strictly monotone with range R; `independent` is Assumption 2.2, no shift of it is a combination of others (None:
    not known). `plain`: nothing but this function stands between the layers (no pooling, no normalisation).
    """

    name: str
    slope: float | None
    independent: bool | None
    plain: bool

    @property
    def onto(self) -> bool:
        """Assumption 2.1: strictly monotone, with range R. Of the known ones, those with a slope > 0."""
        return self.slope is not None and self.slope > 0


def activation_of(layer: Layer) -> Activation:
    """The activation of a hidden layer, read from the graph.

    A leaky ReLU (slope > 0) and the identity are onto; ReLU, ELU, tanh and others are not. The identity alone is not
    independent: x = 2 (x + 1) - (x + 2).
    """
    rest = [n for n in layer.behind if n.kind not in RESHAPE]
    plain = len(rest) == 1
    if not rest:
        return Activation("identity", 1.0, False, True)
    if plain and rest[0].base == "prelu":  # slopes that belong to the units: new ones get a slope other than 1
        return Activation("prelu", None, True, True)
    return _one_known(rest, plain)


def _one_known(nodes: list[Node], plain: bool) -> Activation:
    """The one among the operations of which the properties are known."""
    known = [n for n in nodes if n.about.independent or n.base == "leaky_relu"]
    if len(known) != 1:
        return Activation("+".join(n.base for n in nodes), None, None, plain)
    node = known[0]
    if node.base != "leaky_relu":
        return Activation(node.base, None, True, plain)
    slope = float(node.named()["negative_slope"])
    return Activation(f"leaky_relu({slope:g})", slope, slope != 1, plain)


def affine_of(layer: Layer) -> Node:
    """The linear or convolutional operation of a layer."""
    return next(n for n in layer.nodes if n.kind == "affine")


def monotonic(chain: Chain, l: int, reach: float = 10.0) -> float:
    """The length of the longest interval in [-reach, reach] on which the activation of layer l is strictly monotonic.

    Seen on 20,000 steps, of which ten in a row must all rise or all fall; 0 for steps and constants.
    """
    z = torch.linspace(-reach, reach, 20001, dtype=torch.float64)[:, None]
    steps = chain.activated(l, z)[:, 0].diff().sign()
    longest = run = 0
    for before, now in pairwise([0.0, *steps.tolist()]):
        run = (run + 1 if now == before else 1) if now else 0
        longest = max(longest, run)
    return longest * reach / 10000 if longest >= 10 else 0.0


def reads_flat(layer: Layer) -> bool:
    """Whether the layer is a linear one, which reads one row per example."""
    return affine_of(layer).base == "linear"


def check_units(chain: Chain) -> None:
    """Refuse normalisation and grouped convolutions, whose units are no plain rows of a matrix."""
    for layer in chain.layers:
        for node in layer.nodes:
            if node.kind == "norm":
                raise UnsupportedError(node.where or node.op, "the theorems are for networks without normalisation")
            if node.kind == "affine" and node.base != "linear" and node.named()["groups"] != 1:
                raise UnsupportedError(node.where or node.op, "a grouped convolution is no plain matrix")


def design(chain: Chain, l: int, params: Mapping[str, Tensor], h: Tensor) -> Tensor:
    """What layer l multiplies: [rows, n_{l-1}, k_l], from the features `h` that enter it; `params` only give shapes.

    Its pre-activations are design . A_l + b_l, one row per example for a linear layer, one per example and
    position for a convolution.

    >>> import torch, isthmus as im
    >>> from isthmus.structure.chain import chain_of
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    >>> o = im.Objective(net, data=(torch.randn(5, 2, 3, 3), torch.zeros(5, dtype=torch.int64)))
    >>> chain, params = chain_of(o.program, o.structure), net.state_dict()
    >>> design(chain, 1, params, o.data[0]).shape, design(chain, 2, params, torch.zeros(5, 3, 2, 2)).shape
    (torch.Size([20, 2, 4]), torch.Size([5, 3, 4]))
    """
    node = affine_of(chain.layer(l))
    h = chain.entered(h) if l == 1 else h
    if node.base == "linear":
        return h.flatten(1).reshape(len(h), chain.widths[l - 1], -1)
    a: Mapping[str, Any] = node.named()
    kernel = list(params[chain.layer(l).weight].shape[2:])
    n = len(kernel)
    stride, dilation = (_several(a[k], n) for k in ("stride", "dilation"))
    padding = a["padding"]
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        h = F.pad(h, [p for t in reversed(total) for p in (t // 2, t - t // 2)])
        padding = 0
    padding = _several(padding, n)
    if n == 1:
        h, kernel, stride, dilation = h.unsqueeze(2), [1, *kernel], [1, *stride], [1, *dilation]
        padding = [0, *padding]
    columns = F.unfold(h, (*kernel,), (*dilation,), (*padding,), (*stride,))
    return columns.transpose(1, 2).reshape(-1, chain.widths[l - 1], columns.shape[1] // chain.widths[l - 1])


def _several(value: Any, n: int) -> list[int]:
    value = [value] if isinstance(value, int) else list(value)
    return value * n if len(value) == 1 else value
