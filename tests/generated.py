"""Modules drawn at random: chains, branches, ties, reshapes, in-place operations, several inputs, dtypes, class axes.

A drawn `Case` holds a module in evaluation mode, data, a loss by name or as a callable, and two points. What an
objective says of it must be what the plain loop says: load the weights, call the module, average.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus as im
from isthmus.params import Params
from tests.generated_parts import (
    ACTIVATIONS,
    Aliased,
    Attention,
    Branches,
    Buffered,
    Context,
    Last,
    Recurrent,
    Reshaped,
    Residual,
    Tied,
    Twice,
    TwoInputs,
    Written,
    statistics,
)

Built = tuple[nn.Module, int]
"""A block and the width of what it returns."""


@dataclass
class Case:
    """One drawn module with its data; `described` says what was drawn."""

    module: nn.Module
    inputs: Any
    y: Tensor
    loss: str | Callable[[Tensor, Tensor], Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    described: str = ""

    def params(self, seed: int) -> Params:
        g = torch.Generator().manual_seed(seed)
        out = {}
        for name, v in self.module.state_dict().items():
            moves = v.is_floating_point() and bool(v.isfinite().all())
            noise = torch.randn(v.shape, generator=g, dtype=torch.float64).to(v.dtype) if moves else v
            out[name] = v * (1 + 0.1 * noise.abs()) + (0 if "running_var" in name else 0.2) * noise if moves else v
        return self.tied({k: v.detach().clone() for k, v in out.items()})

    def tied(self, params: Params) -> Params:
        """Names of one tensor share the value of the first."""
        first: dict[int, str] = {}
        kept = self.module.state_dict(keep_vars=True)
        return {k: params[first.setdefault(id(kept[k]), k)] for k in params}

    def call(self, params: Params) -> Tensor:
        """The plain loop: a copy of the module with these weights, called on all examples (copies of them)."""
        module = copy.deepcopy(self.module)
        module.load_state_dict(params)
        with torch.no_grad():
            x = copy.deepcopy(self.inputs)
            if isinstance(x, dict):
                return module(**x)
            return module(*x) if isinstance(x, tuple) else module(x)


def draw(seed: int) -> Case:
    """The case of that number."""
    r = random.Random(seed)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        dtype = r.choice([torch.float64, torch.float64, torch.float32])
        family = r.choice(["vector", "image", "signal", "sequence", "tokens", "two"])
        case = _FAMILIES[family](r)
        case.module = case.module.to(dtype).eval()
        case.inputs = _cast(case.inputs, dtype)
        _targets(case, r, dtype)
        if r.random() < 0.3:
            case.options["memory"] = r.choice([1, 1 << 12, 1 << 15])  # several chunks, down to single examples
        if r.random() < 0.2:
            case.options["penalty"] = r.choice([im.Ridge(1e-3), im.L1(1e-3)])
        case.described = f"{seed}: {family}, {dtype}, {case.options}, {case.module}"
        return case
    finally:
        torch.random.set_rng_state(state)


def _cast(x: Any, dtype: torch.dtype) -> Any:
    if isinstance(x, dict):
        return {k: _cast(v, dtype) for k, v in x.items()}
    if isinstance(x, tuple):
        return tuple(_cast(v, dtype) for v in x)
    return x.to(dtype) if x.is_floating_point() else x


def _plain(r: random.Random, width: int, depth: int) -> Built:
    """Blocks on [n, width]."""
    parts: list[nn.Module] = []
    for _ in range(depth):
        kind = r.choice(
            ["linear", "linear", "residual", "branch", "twice", "alias", "norm", "write", "buffer", "shape"]
        )
        if kind == "linear":
            out = r.randint(1, 9)
            layer: nn.Module = nn.Linear(width, out, bias=r.random() < 0.7)
            if r.random() < 0.15:
                layer = nn.utils.parametrizations.weight_norm(layer)
            parts += [layer, r.choice(ACTIVATIONS)()]
            width = out
        elif kind == "residual":
            inner = nn.Sequential(nn.Linear(width, 5), nn.ReLU(inplace=r.random() < 0.5), nn.Linear(5, width))
            parts.append(Residual(inner, in_place=r.random() < 0.5))
        elif kind == "branch":
            how, out = r.choice(["cat", "gate", "sum", "maximum"]), r.randint(1, 6)
            parts.append(Branches(nn.Linear(width, out), nn.Sequential(nn.Linear(width, out), nn.ReLU()), how))
            width = 2 * out if how == "cat" else out
        elif kind in ("twice", "alias"):
            parts.append((Twice if kind == "twice" else Aliased)(nn.Linear(width, width)))
        elif kind == "norm":
            parts.append(statistics(nn.BatchNorm1d(width)) if r.random() < 0.6 else nn.LayerNorm(width))
        elif kind == "write":
            parts.append(Written(r.choice(["clamp_", "view", "mul_", "slice"])))
        elif kind == "shape":
            parts.append(Reshaped(r.choice(["view(size)", "view(len)", "unsqueeze", "reshape"])))
        else:
            parts.append(Buffered(width, kind=r.choice(["permutation", "mask", "scale"])))
    return nn.Sequential(*parts), width


def _vector(r: random.Random) -> Case:
    d, n = r.randint(1, 8), r.choice([1, 2, 3, 7, 13, 40])
    body, width = _plain(r, d, r.randint(1, 4))
    return Case(nn.Sequential(body, nn.Linear(width, r.randint(1, 5))), torch.randn(n, d), torch.empty(0), "")


def _image(r: random.Random) -> Case:
    c, size, n = r.randint(1, 3), r.choice([5, 6, 8]), r.choice([1, 3, 9, 17])
    parts, width = [], c
    for _ in range(r.randint(1, 3)):
        out = 2 * r.randint(1, 3)
        parts.append(
            nn.Conv2d(
                width,
                out,
                3,
                padding=1,
                bias=r.random() < 0.6,
                padding_mode="circular" if r.random() < 0.25 else "zeros",
            )
        )
        width = out
        norm = r.choice(["none", "batch", "group"])
        parts += (
            [] if norm == "none" else [statistics(nn.BatchNorm2d(width)) if norm == "batch" else nn.GroupNorm(2, width)]
        )
        parts.append(r.choice(ACTIVATIONS)())
        if r.random() < 0.4:
            inner = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=r.choice([1, 2, width])), nn.ReLU())
            parts.append(Residual(inner, in_place=r.random() < 0.5))
    pool = r.choice(["max", "average", "padded", "adaptive", "global"])
    parts.append({"max": nn.MaxPool2d(2), "average": nn.AvgPool2d(2), "padded": nn.MaxPool2d(3, 2, padding=1),
                  "adaptive": nn.AdaptiveAvgPool2d(2), "global": nn.AdaptiveAvgPool2d(1)}[pool])  # fmt: skip
    parts.append(
        r.choice([nn.Flatten(), Reshaped(r.choice(["view(size)", "view(shape)", "view(len)", "flatten", "reshape"]))])
    )
    if r.random() < 0.3:
        parts.append(nn.Dropout(0.5))
    x = torch.randn(n, c, size, size)
    with torch.no_grad():
        flat = nn.Sequential(*parts).eval()(x).shape[1]
    return Case(nn.Sequential(*parts, nn.Linear(flat, r.randint(2, 5))), x, torch.empty(0), "")


def _signal(r: random.Random) -> Case:
    """One-dimensional convolutions whose outputs keep the positions: [n, classes, T]."""
    c, t, n = r.randint(1, 3), r.choice([4, 6, 9]), r.choice([1, 4, 11])
    mid = r.randint(2, 5)
    module = nn.Sequential(
        nn.Conv1d(c, mid, 3, padding=1), r.choice(ACTIVATIONS)(), nn.Conv1d(mid, r.choice([2, 3, 5]), 1)
    )  # fmt: skip
    return Case(module, torch.randn(n, c, t), torch.empty(0), "")


def _sequence(r: random.Random) -> Case:
    d, t, n = 2 * r.randint(1, 3), r.choice([3, 5]), r.choice([1, 2, 6, 15])
    parts: list[nn.Module] = []
    for _ in range(r.randint(1, 2)):
        kind = r.choice(["lstm", "gru", "attention", "mix"])
        if kind in ("lstm", "gru"):
            parts.append(Recurrent(d, d, kind, start=r.random() < 0.5))
        elif kind == "attention":
            parts += [nn.LayerNorm(d), Attention(d, causal=r.random() < 0.5)]
        else:
            parts += [nn.Linear(d, d), r.choice(ACTIVATIONS)()]
    parts.append(Context(d) if r.random() < 0.3 else Last(r.choice(["last", "mean", "amax"])))
    return Case(nn.Sequential(*parts, nn.Linear(d, r.randint(2, 4))), torch.randn(n, t, d), torch.empty(0), "")


def _tokens(r: random.Random) -> Case:
    v, d, t, n = r.randint(5, 9), 4, r.choice([3, 4]), r.choice([1, 3, 8])
    x = torch.randint(0, v, (n, t))
    if r.random() < 0.5:
        return Case(Tied(v, d, Recurrent(d, d, "lstm", start=False), transpose=True), x, torch.empty(0), "")
    body = nn.Sequential(nn.Embedding(v, d), Last(r.choice(["mean", "last"])), nn.Linear(d, 3))
    return Case(body, x, torch.empty(0), "")


def _two(r: random.Random) -> Case:
    p, q, n = r.randint(1, 5), r.randint(1, 5), r.choice([1, 5, 12])
    left, wide = _plain(r, p, 1)
    right, narrow = _plain(r, q, 1)
    module = TwoInputs(left, right, nn.Linear(wide + narrow, r.randint(2, 4)))
    x = (torch.randn(n, p), torch.randn(n, q))
    return Case(module, dict(zip(("x", "other"), x, strict=True)) if r.random() < 0.5 else x, torch.empty(0), "")


_FAMILIES: dict[str, Callable[[random.Random], Case]] = {
    "vector": _vector, "image": _image, "signal": _signal, "sequence": _sequence, "tokens": _tokens, "two": _two,
}  # fmt: skip


def _targets(case: Case, r: random.Random, dtype: torch.dtype) -> None:
    """Labels, probabilities or numbers that suit the outputs, and a loss."""
    with torch.no_grad():
        out = case.call(case.module.state_dict())
    positions = (out.shape[0], *out.shape[2:])
    kind = r.choice(["labels", "labels", "small labels", "probabilities", "mse", "callable", "smooth"])
    if kind == "mse" or out.shape[1] == 1:
        case.y, case.loss = torch.randn(out.shape, dtype=dtype), "mse"
    elif kind == "probabilities":
        case.y, case.loss = torch.rand(out.shape).softmax(1).to(dtype), "cross_entropy"
    else:
        case.y, case.loss = torch.randint(0, out.shape[1], positions), "cross_entropy"
        if kind == "small labels":
            case.y = case.y.to(r.choice([torch.int32, torch.uint8]))
        if kind == "callable" and out.dim() == 2:
            case.loss, case.options["convex"] = _margin, True
        if kind == "smooth":
            case.loss, case.options["convex"] = _smoothed, True


def _margin(outputs: Tensor, y: Tensor) -> Tensor:
    return F.multi_margin_loss(outputs, y.long(), reduction="none")


def _smoothed(outputs: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(outputs, y.long(), reduction="none", label_smoothing=0.1)
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def plain_losses(case: Case, outputs: Tensor) -> Tensor:
    """The per-example losses [n], written out."""
    if callable(case.loss):
        return case.loss(outputs, case.y)
    if case.loss == "mse":
        return (outputs - case.y).square().flatten(1).mean(1)
    y = case.y if case.y.is_floating_point() else case.y.long()
    losses = F.cross_entropy(outputs, y, reduction="none")
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def plain_error(case: Case, outputs: Tensor) -> float:
    """The share of wrong classes, averaged over positions and examples; NaN where there are no classes."""
    if case.loss == "mse":
        return float("nan")
    y = case.y.argmax(1) if case.y.is_floating_point() else case.y.long()
    return float((outputs.argmax(1) != y).double().mean())


def ties(case: Case, params: Params) -> float:
    """The share of positions whose two largest outputs are so close that the last digits decide."""
    top = case.call(params).double().topk(2, dim=1).values
    return float(((top[:, 0] - top[:, 1]) <= 1e-6 * top.abs().amax(1).clamp(min=1)).double().mean())


def plain_penalty(case: Case, params: Params) -> float:
    """The penalty, once per parameter however many names it has."""
    penalty = case.options.get("penalty")
    if penalty is None:
        return 0.0
    names = penalty.names or [k for k, _ in case.module.named_parameters()]
    values = [params[k].double() for k in names]
    power = 2 if isinstance(penalty, im.Ridge) else 1
    return float(penalty.kappa * sum(v.abs().pow(power).sum() for v in values))
