"""The outputs of T networks of one shape at once: stacked weights, one batched product per layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from isthmus.program.export import Node
from isthmus.structure.chain import RESHAPE, Chain, flattens, padded, reshape


def gather(h: Tensor, units: Tensor) -> Tensor:
    """The features that each network reads, side by side on axis 1: [B, T K, ...] from h [B, n, ...], units [T, K]."""
    return h.index_select(1, units.flatten())


def forward_stacked(chain: Chain, params: Mapping[str, Tensor], h: Tensor, first: int, count: int) -> Tensor:
    """The outputs [T, B, n_L, ...] of T = `count` networks, from their features [B, T K, ...] that enter layer `first`.

    Up to the last flattening the networks stand side by side on the channel axis, [B, T channels, ...], and a
    convolution has T groups; from the first linear layer on they stand on an axis of their own, [T, B, units]. The
    result is that of T calls of ``chain.forward``, up to rounding.
    """
    apart = False
    for l in range(first, chain.L + 1):
        for node in chain.layer(l).nodes:
            if not apart and (flattens(node) or node.base == "linear"):
                h, apart = _apart(h, count), True
            if node.kind not in RESHAPE:
                h = _apply(node, params, h, count, apart)
            elif not apart:
                h = reshape(node, h)
    return h if apart else h.unflatten(1, (count, h.shape[1] // count)).movedim(1, 0)


def _apart(h: Tensor, count: int) -> Tensor:
    """[B, T channels, ...] -> [T, B, all features of a network]."""
    return h.unflatten(1, (count, h.shape[1] // count)).flatten(2).transpose(0, 1)


def _apply(node: Node, params: Mapping[str, Tensor], h: Tensor, count: int, apart: bool) -> Tensor:
    units = params[node.named()["weight"].name].shape[1] if node.kind == "affine" else h.shape[2 if apart else 1]
    if node.base != "linear" and (not h.numel() or not units):
        # as in a chain, a channel of zeros stands in for none
        if apart:
            return h
        own = {name: padded(params[name]) for name in node.refs() if name in params}
        h = h if h.shape[1] else h.new_zeros(len(h), count, *h.shape[2:])
        return _on(node, own, h, count, apart)[:, : count * units]
    return _on(node, params, h, count, apart)


def _on(node: Node, params: Mapping[str, Tensor], h: Tensor, count: int, apart: bool) -> Tensor:
    if node.kind == "affine":
        return _layer(node, params, h, count)
    own = {name: params[name].flatten() for name in node.refs() if name in params}
    if own:  # BatchNorm, whose vectors belong to the units of all networks
        flowing = h.transpose(0, 1).flatten(1) if apart else h
    else:  # every other operation of a chain treats examples and units one by one
        flowing = h.flatten(0, 1) if apart else h
    out = node.call({name: own.get(name, flowing) for name in node.refs()})
    if not apart:
        return out
    return _apart(out, count) if own else out.unflatten(0, (count, -1))


def _layer(node: Node, params: Mapping[str, Tensor], h: Tensor, count: int) -> Tensor:
    given = node.named()
    weight = params[given["weight"].name]
    bias = None if given["bias"] is None else params[given["bias"].name]
    if node.base == "linear":
        W = weight.transpose(1, 2)
        return torch.bmm(h, W) if bias is None else torch.baddbmm(bias.unsqueeze(1), h, W)
    together = {"weight": weight.flatten(0, 1), "bias": None if bias is None else bias.flatten()}
    return node.target(**given | together | {"input": h, "groups": count * given["groups"]})
