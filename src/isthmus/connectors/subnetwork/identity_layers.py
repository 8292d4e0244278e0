"""Layers of a subnetwork xi_l written by hand, one after another."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from isthmus.connectors.subnetwork.train import Start, Subnet, measure
from isthmus.errors import InputError, UnsupportedError
from isthmus.objective import Objective
from isthmus.objective.data import single
from isthmus.premises.separability import separate
from isthmus.structure.chain import RESHAPE, Chain, Weights
from isthmus.training.fit import Ended

_FLOOR = 1e-14
"""Outputs are scaled until the loss is half the target, or this."""


def class_labels(objective: Objective) -> bool:
    """Whether the loss is the cross-entropy of class numbers [N]."""
    y = objective.data[1]
    return objective.named_loss == "cross_entropy" and not y.is_floating_point() and y.dim() == 1


def is_convolution(chain: Chain, p: int) -> bool:
    """Whether layer p is convolutional."""
    return all(n.base != "linear" for n in chain.layer(p).nodes)


class Wires:
    """Layers of xi_l built one after another, and the features that the last of them makes, in float64."""

    def __init__(self, objective: Objective, start: Start) -> None:
        self.objective, self.start, self.chain = objective, start, start.chain
        self.at = start.l
        """The layer whose features `h` are."""
        h = self.chain.features(start.params, single(objective.data[0]), start.l, objective.chunk)
        self.h = (h[:, start.reads] if start.l else h).double()
        self.A: dict[int, Tensor] = {}
        self.b: dict[int, Tensor] = {}

    @property
    def x(self) -> Tensor:
        """The features flattened, [N, D]."""
        return (self.h if self.at else self.chain.entered(self.h)).flatten(1)

    @property
    def L(self) -> int:
        """The number of layers."""
        return self.chain.L

    def free(self, p: int) -> int:
        """How many units xi_l has in layer p."""
        return len(self.start.rows[p])

    def has_bias(self, p: int) -> bool:
        """Whether units of layer p can add a constant."""
        return bool(self._vectors(p)[1])

    def is_relu(self, p: int) -> bool:
        """Whether layer p is linear with ReLU, after BatchNorm if any."""
        rest = {n.base for n in self.chain.layer(p).behind if n.kind not in ("norm", *RESHAPE)}
        return not is_convolution(self.chain, p) and rest == {"relu"}

    def _vectors(self, p: int) -> tuple[dict[str, float], list[tuple[str, float]]]:
        """Values at which layer p adds nothing (BatchNorm neutral), and (name, sign) of a vector that is the bias."""
        neutral = dict.fromkeys(self.chain.layer(p).vectors, 0.0)
        biases: list[tuple[str, float]] = []
        for node in self.chain.layer(p).nodes:
            if node.kind not in ("affine", "norm"):
                continue
            named = node.named()
            if node.kind == "norm":
                neutral[named["running_var"].name] = 1.0 - float(named["eps"])
                neutral |= {named["weight"].name: 1.0} if named["weight"] is not None else {}
                biases.append((named["running_mean"].name, -1.0))
            if named.get("bias") is not None:
                biases.insert(0, (named["bias"].name, 1.0))
        return neutral, biases

    def put(self, p: int, weight: Tensor, bias: Tensor | None = None) -> None:
        """Set layer p = at + 1: rows `weight` [r, D] and `bias` [r], further units zero, and compute its features."""
        n, k = self.free(p), self.chain.read(self.start.params).A[p].shape[2]
        A = weight.new_zeros(n, weight.shape[1])
        A[: len(weight)] = weight
        neutral, biases = self._vectors(p)
        columns = {v: torch.full((n,), value, dtype=A.dtype, device=A.device) for v, value in neutral.items()}
        if bias is not None and bool(bias.any()):
            name, sign = biases[0]
            columns[name][: len(bias)] += sign * bias
        b = torch.stack(list(columns.values()), 1) if columns else A.new_zeros(n, 0)
        self.keep(p, A.reshape(n, -1, k), b)

    def keep(self, p: int, A: Tensor, b: Tensor) -> None:
        """Set layer p = at + 1 to these weights in compact form, and compute its features."""
        self.A[p], self.b[p], self.at = A.double(), b.double(), p
        small = self.chain.compact(Weights({p: self.A[p]}, {p: self.b[p]}), self.start.params)
        with torch.no_grad():
            parts = self.h.split(self.objective.chunk)
            self.h = torch.cat([self.chain.through(small, part, p) for part in parts])

    def through_convolutions(self, own: Weights) -> None:
        """Fill the convolutional layers that follow with these weights."""
        while self.at + 1 < self.L and is_convolution(self.chain, self.at + 1):
            if not self.free(self.at + 1):
                raise InputError(f"free channels of layer {self.at + 1}", expected="at least 1", got=0)
            self.keep(self.at + 1, own.A[self.at + 1], own.b[self.at + 1])
        if is_convolution(self.chain, self.at + 1):
            raise UnsupportedError(f"layer {self.L}", "xi_l without training needs a linear output layer")

    def subnet(self, target: float) -> Subnet:
        """The finished xi_l in the network's precision, outputs scaled for a class loss, and its measured loss."""
        if class_labels(self.objective):
            y = self.objective.data[1]
            own = self.h.gather(1, y[:, None])
            gap = float((own - self.h.scatter(1, y[:, None], -torch.inf)).min()) if self.h.shape[1] > 1 else 1.0
            if gap > 0:
                # a gap of G leaves at most (C - 1) e^-G
                wanted = log(max(self.h.shape[1] - 1, 1) / max(target / 2, _FLOOR))
                self.A[self.L] = self.A[self.L] * (max(wanted, 1.0) / gap)
                self.b[self.L] = self.b[self.L] * (max(wanted, 1.0) / gap)
        start, dtype = self.start, self.objective.dtype
        weights = Weights({p: v.to(dtype) for p, v in self.A.items()}, {p: v.to(dtype) for p, v in self.b.items()})
        loss, _ = measure(self.objective, self.chain, start.params, start.l, start.reads, weights)
        aim = self.objective.data[1]
        scale = float(aim.double().square().mean()) if aim.is_floating_point() else 1.0
        if not loss <= max(target, 1e-6 * scale):
            raise InputError(
                f"xi_{start.l} in {str(dtype).removeprefix('torch.')}",
                expected=f"a loss of at most {max(target, 1e-6 * scale):.3g}",
                got=f"{loss:.3g} after rounding",
                instead="objective.cast(torch.float64)" if dtype != torch.float64 else "",
            )
        return Subnet(start.l, start.reads, weights, loss, 0, Ended.TARGET)


def half_space(x: Tensor) -> Tensor | None:
    """e with x @ e > 0 for every example (x >= 0: the sum), on average 1; None if there is none or none was found."""
    e = x.new_ones(x.shape[1])
    if not bool((x >= 0).all()):
        labels = torch.cat([torch.ones(len(x)), torch.zeros(len(x))]).long().to(x.device)
        found = separate(torch.cat([x, -x]), labels, 2, kind="argmax", bias=False)
        e = found.weight[1] - found.weight[0]
    at = x @ e
    return e / float(at.mean()) if bool((at > 0).all()) else None
