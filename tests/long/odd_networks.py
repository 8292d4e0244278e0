"""Odd networks of chain form, drawn: narrow or wide, nested, with norms, ties, scales and activations of all kinds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


class Functional(nn.Module):
    """Layers with a function between them."""

    def __init__(self, layers: list[nn.Module], act: Activation) -> None:
        super().__init__()
        self.layers, self.act = nn.ModuleList(layers), act

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](x)


class Again(nn.Module):
    """A layer that is called `times` times between a first and a last one."""

    def __init__(self, widths: tuple[int, int, int], bias: bool, act: nn.Module, times: int) -> None:
        super().__init__()
        d, width, out = widths
        self.first, self.inner, self.last = (
            nn.Linear(*w, bias=bias) for w in ((d, width), (width, width), (width, out))
        )
        self.act, self.times = act, times

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        for _ in range(self.times):
            x = self.act(self.inner(x))
        return self.last(x)


class Scaled(nn.Module):
    """Outputs or inputs multiplied by a number, or inputs moved by it."""

    def __init__(self, inner: nn.Module, by: float, where: str) -> None:
        super().__init__()
        self.inner, self.by, self.where = inner, by, where

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "outputs":
            return self.inner(x) * self.by
        return self.inner(x * self.by if self.where == "inputs" else x - self.by)


class Cast(nn.Module):
    """Casts inputs, which are numbers of float32, and back, so that a proof runs a widened copy."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.float().to(x.dtype))


class Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Net(NamedTuple):
    """What was built, the shape of one input, the number of outputs, and what is odd about it."""

    module: nn.Module
    shape: tuple[int, ...]
    outputs: int
    tags: list[str]


MODULES: list[Callable[[], nn.Module]] = [
    nn.ReLU, lambda: nn.LeakyReLU(0.2), lambda: nn.LeakyReLU(-0.5), nn.PReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish,
    nn.Softshrink, nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.ELU, nn.Softplus, nn.Identity, Absolute,
]  # fmt: skip
FUNCTIONS: list[Activation] = [
    F.relu, torch.relu, torch.abs, lambda x: x.clamp(min=0), lambda x: F.leaky_relu(x, 0.1), lambda x: x * (x > 0),
    lambda x: torch.maximum(x, torch.zeros_like(x)), lambda x: F.relu(x) / 3, lambda x: F.relu(x) ** 2,
    lambda x: F.relu(x) + 0.5,
]  # fmt: skip


@dataclass
class Plan:
    """What the kinds of networks are built from."""

    r: random.Random
    act: Callable[[], nn.Module]
    d: int
    widths: list[int]
    outputs: int
    bias: bool
    tags: list[str] = field(default_factory=list)

    def seldom(self, share: float, tag: str) -> bool:
        """Whether something of that share of networks is so here."""
        found = self.r.random() < share
        self.tags += [tag] * found
        return found

    def linear(self, p: int, q: int) -> nn.Module:
        """A layer, now and then with a bias where the others have none, or parametrised."""
        layer = nn.Linear(p, q, bias=self.bias ^ self.seldom(0.15, "other bias"))
        if self.seldom(0.06, "weight norm"):
            return nn.utils.parametrizations.weight_norm(layer)
        return nn.utils.parametrizations.spectral_norm(layer) if self.seldom(0.03, "spectral norm") else layer

    def norm(self, width: int) -> nn.Module:
        """Statistics, kept or not, groups, layers or dropout."""
        return self.r.choice([
            lambda: nn.BatchNorm1d(width), lambda: nn.BatchNorm1d(width, affine=False), lambda: nn.LayerNorm(width),
            lambda: nn.BatchNorm1d(width, track_running_stats=False), lambda: nn.GroupNorm(1, width),
            lambda: nn.Dropout(0.5),
        ])()  # fmt: skip


def _plan(r: random.Random) -> Plan:
    widths = [r.choice([1, 2, 2, 3, 4, 5, 8, 9]) for _ in range(r.choice([1, 1, 2, 2, 3]))]
    if r.random() < 0.15:
        widths = [16] * len(widths)
    act = nn.ReLU if r.random() < 0.5 else r.choice(MODULES)
    return Plan(r, act, r.choice([1, 2, 4]), widths, r.choice([1, 2, 3, 4]), r.random() < 0.7)


def _perceptron(plan: Plan) -> tuple[nn.Module, tuple[int, ...]]:
    blocks: list[nn.Sequential] = []
    before = plan.d
    for width in plan.widths:
        norm = [plan.norm(width)] if plan.seldom(0.15, "norm") else []
        acts = [plan.act() for _ in range(2 if plan.seldom(0.07, "two activations") else 1)]
        blocks.append(nn.Sequential(plan.linear(before, width), *norm, *acts))
        before = width
    last = nn.Linear(before, plan.outputs, bias=plan.bias)
    if plan.seldom(0.2, "nested"):
        return nn.Sequential(nn.Identity(), nn.Sequential(*blocks, last)), (plan.d,)
    return nn.Sequential(*(part for block in blocks for part in block), last), (plan.d,)


def _functional(plan: Plan) -> tuple[nn.Module, tuple[int, ...]]:
    sizes = [plan.d, *plan.widths, plan.outputs]
    layers: list[nn.Module] = [nn.Linear(p, q, bias=plan.bias) for p, q in pairwise(sizes)]
    return Functional(layers, plan.r.choice(FUNCTIONS)), (plan.d,)


def _again(plan: Plan) -> tuple[nn.Module, tuple[int, ...]]:
    sizes = (plan.d, plan.widths[0], plan.outputs)
    return Again(sizes, plan.bias, plan.act(), plan.r.choice([1, 2])), (plan.d,)


def _images(plan: Plan) -> tuple[nn.Module, tuple[int, ...]]:
    return _convolutions(plan, (nn.Conv2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.MaxPool2d), (6, 6))


def _signals(plan: Plan) -> tuple[nn.Module, tuple[int, ...]]:
    return _convolutions(plan, (nn.Conv1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.AvgPool1d), (6,))


def _convolutions(
    plan: Plan, kinds: tuple[Callable[..., nn.Module], ...], size: tuple[int, ...]
) -> tuple[nn.Module, tuple[int, ...]]:
    conv, batch, instance, pool = kinds
    parts: list[nn.Module] = []
    before, r = plan.d, plan.r
    for i, width in enumerate(plan.widths):
        groups = before if width % before == 0 and plan.seldom(0.15, "groups") else 1
        mode = "circular" if plan.seldom(0.15, "circular") else "zeros"
        padding = r.choice([0, 1, "same"]) if i == 0 else 1
        parts.append(conv(before, width, 3, padding=padding, groups=groups, bias=plan.bias, padding_mode=mode))
        parts += [batch(width)] if plan.seldom(0.25, "batch norm") else []
        parts += [instance(width, affine=r.random() < 0.5)] if plan.seldom(0.05, "instance norm") else []
        parts.append(plan.act())
        parts += [pool(2)] if i == 0 and plan.seldom(0.4, "pool") else []
        before = width
    body = nn.Sequential(*parts, nn.Flatten())
    return _with_last(body, (plan.d, *size), plan.outputs, plan.bias), (plan.d, *size)


def _with_last(body: nn.Sequential, shape: tuple[int, ...], outputs: int, bias: bool) -> nn.Sequential:
    """A layer on whatever `body` returns."""
    with torch.no_grad():
        flat = body.eval()(torch.zeros(2, *shape)).shape[1]
    return nn.Sequential(*body, nn.Linear(flat, outputs, bias=bias))


def chain(r: random.Random) -> Net:
    """Of any kind."""
    plan = _plan(r)
    build = r.choice([_perceptron] * 6 + [_images, _signals, _functional, _again])
    module, shape = build(plan)
    if plan.seldom(0.1, "scaled"):
        module = Scaled(module, r.choice([2.0, 0.1, -1.0]), r.choice(["inputs", "outputs", "moved"]))
    if plan.seldom(0.15, "cast"):
        module = Cast(module)
    return Net(module, shape, plan.outputs, plan.tags)


def linear(r: random.Random) -> Net:
    """No activation: layers, or a convolution and a layer, hardly as wide as they must be."""
    d, outputs, bias = r.choice([1, 1, 2, 3]), r.choice([1, 1, 2, 3]), r.random() < 0.5
    least = min(d, outputs)
    widths = [least + r.choice([0, 1, 1, 2, 5]) for _ in range(r.choice([1, 1, 1, 2, 3]))]
    if r.random() < 0.2:
        body = nn.Sequential(
            nn.Conv2d(d, widths[0] + 8, 3, padding=1, bias=bias, stride=r.choice([1, 2])), nn.Flatten()
        )
        return Net(_with_last(body, (d, 4, 4), outputs, bias), (d, 4, 4), outputs, [])
    sizes = [d, *widths, outputs]
    layers: list[nn.Module] = [nn.Linear(p, q, bias=bias ^ (r.random() < 0.2)) for p, q in pairwise(sizes)]
    if r.random() < 0.2:
        layers.insert(1, nn.Identity())
    module: nn.Module = nn.Sequential(*layers)
    if r.random() < 0.1:
        module = Scaled(module, r.choice([2.0, 0.5, -1.0]), r.choice(["inputs", "outputs"]))
    return Net(module, (d,), outputs, [])


def two(r: random.Random) -> Net:
    """Two layers with ReLU between them, the first a convolution now and then."""
    d, outputs, width, bias = r.choice([1, 2, 3]), r.choice([1, 2, 3]), r.choice([2, 3, 4, 6, 9]), r.random() < 0.6
    if r.random() < 0.2:
        pool = r.choice([nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Identity()])
        body = nn.Sequential(nn.Conv2d(d, width, 3, padding=1, bias=bias), nn.ReLU(), pool, nn.Flatten())
        return Net(_with_last(body, (d, 4, 4), outputs, bias), (d, 4, 4), outputs, [])
    last = nn.Linear(width, outputs, bias=bias ^ (r.random() < 0.2))
    return Net(nn.Sequential(nn.Linear(d, width, bias=bias), nn.ReLU(), last), (d,), outputs, [])


def wide(r: random.Random) -> Net:
    """More units than examples, then fewer; activations that are monotone, and some that are not."""
    outputs, bias = r.choice([1, 2, 3]), r.random() < 0.7
    act = r.choice([*MODULES, lambda: nn.LeakyReLU(1e-3), lambda: nn.LeakyReLU(2.0)])
    d, parts = r.choice([1, 2, 4]), []
    before = d
    for width in r.choice([[40], [42, 41], [44, 9], [44, 9, 5], [20], [21, 20], [12, 4]]):
        parts += [nn.Linear(before, width, bias=bias), act()]
        before = width
    return Net(nn.Sequential(*parts, nn.Linear(before, outputs, bias=bias)), (d,), outputs, [])
