"""Odd networks with data, a loss and two odd ends: a seed gives an `Odd`, whose truth is the plain loop in float64."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus as im
from isthmus.params import Params
from tests.generated import Case, plain_penalty
from tests.long.odd_ends import pair
from tests.long.odd_networks import Net, chain, linear, two, wide

FAMILIES: dict[str, Callable[[random.Random], Net]] = {"chain": chain, "linear": linear, "two": two, "wide": wide}


class Criterion(NamedTuple):
    """A loss as it is given, the same written out for all examples, targets and options."""

    given: Any
    own: Callable[[Tensor, Tensor], Tensor]
    y: Tensor
    options: dict[str, Any]


def in_float64(params: Params) -> Params:
    return {k: v.detach().double() if v.is_floating_point() else v.clone() for k, v in params.items()}


@dataclass
class Odd:
    """A case and its two ends."""

    case: Case
    own: Callable[[Tensor, Tensor], Tensor]
    a: Params
    b: Params
    _wide: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self._wide = copy.deepcopy(self.case.module).double().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.case.inputs.dtype

    @property
    def has_statistics(self) -> bool:
        return any("running" in k for k in self.a)

    def objective(self) -> im.Objective:
        case = self.case
        return im.Objective(case.module, case.loss, (case.inputs, case.y), **case.options)

    def outputs(self, params: Params) -> Tensor:
        with torch.no_grad():
            return torch.func.functional_call(self._wide, in_float64(params), (self.case.inputs.double(),))

    def truth(self, params: Params) -> float:
        """The loss in float64."""
        return self._loss(self.outputs(params), params)

    def rounded(self, params: Params) -> float:
        """The loss of outputs that are computed in the precision of the module."""
        own = {k: v.detach().clone() for k, v in params.items()}
        with torch.no_grad():
            outputs = torch.func.functional_call(self.case.module, own, (self.case.inputs,))
        return self._loss(outputs.double(), params)

    def _loss(self, outputs: Tensor, params: Params) -> float:
        y = self.case.y
        loss = self.own(outputs, y.double() if y.is_floating_point() else y)
        return float(loss) + plain_penalty(self.case, in_float64(params))


def draw(seed: int, family: str = "chain") -> Odd:
    """The network of that number; the state of the random numbers stays."""
    r = random.Random(f"{family} {seed}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dtype = r.choice([torch.float64, torch.float64, torch.float32])
        module, shape, outputs, tags = FAMILIES[family](r)
        module = module.to(dtype).train(r.random() < 0.04)
        x = _inputs(r, shape).to(dtype)
        criterion = r.choice(LOSSES)(r, len(x), outputs, dtype)
        options = criterion.options | _options(r, family, module)
        for p in module.parameters():
            p.requires_grad_(r.random() > 0.1)
        a, b, odd = pair(r, module, x, seed)
    mode = "train" if module.training else "eval"
    described = f"{family} {seed}, {dtype}, {len(x)} examples, {mode}, {[*tags, *odd]}, {criterion.given}, {options}"
    case = Case(module, x, criterion.y, criterion.given, options, described)
    return Odd(case, criterion.own, a, b)


def _inputs(r: random.Random, shape: tuple[int, ...]) -> Tensor:
    """Numbers of float32, which are what they are when they are cast."""
    x = torch.randn(r.choice([1, 1, 2, 3, 6, 12, 20]), *shape)
    kind = r.choice(["any"] * 16 + ["equal", "equal", "positive", "zero"])
    return {"any": x, "equal": x[:1].expand(x.shape), "positive": x.abs(), "zero": 0 * x}[kind]


def _options(r: random.Random, family: str, module: nn.Module) -> dict[str, Any]:
    """Small chunks, and a penalty: in the families of theorems one that they allow."""
    out: dict[str, Any] = {"memory": 1} if r.random() < 0.15 else {}
    last = [k for k, v in module.named_parameters() if v.dim() > 1][-1]
    penalties = {
        "chain": [im.Ridge(1e-2), im.L1(1e-2)],
        "linear": [im.Ridge(kappa) for kappa in (1e-2, 0.3, 1e-6)],
        "two": [im.L1(kappa, (last,)) for kappa in (1e-2, 0.3, 1e-6)],
        "wide": [],
    }[family]
    share = 0.15 if family == "chain" else 0.45
    return out | ({"penalty": r.choice(penalties)} if penalties and r.random() < share else {})


def _labels(r: random.Random, n: int, k: int) -> Tensor:
    return torch.zeros(n, dtype=torch.long) if r.random() < 0.2 else torch.randint(0, k, (n,))


def _entropy(r: random.Random, n: int, k: int, dtype: torch.dtype) -> Criterion:
    return Criterion("cross_entropy", F.cross_entropy, _labels(r, n, k), {})


def _smoothed(r: random.Random, n: int, k: int, dtype: torch.dtype) -> Criterion:
    given = r.choice([im.CrossEntropy(label_smoothing=0.2), nn.CrossEntropyLoss(label_smoothing=0.2)])
    return Criterion(given, lambda o, y: F.cross_entropy(o, y, label_smoothing=0.2), _labels(r, n, k), {})


def _weighted(r: random.Random, n: int, k: int, dtype: torch.dtype) -> Criterion:
    """One class may count nothing, unless it is that of all examples."""
    y, w = _labels(r, n, k), (torch.rand(k) + 0.1).to(dtype)
    if r.random() < 0.3 and bool((y != 0).any()):
        w[0] = 0
    own = lambda o, y: F.cross_entropy(o, y, weight=w.double())
    return Criterion(nn.CrossEntropyLoss(weight=w), own, y, {})


def _ignored(r: random.Random, n: int, k: int, dtype: torch.dtype) -> Criterion:
    """Some examples, never all of them, have the label that is left out."""
    y = _labels(r, n, k)
    y[1:][torch.rand(n - 1) < 0.4] = -100
    return Criterion(r.choice(["cross_entropy", nn.CrossEntropyLoss()]), F.cross_entropy, y, {})


def _probabilities(r: random.Random, n: int, k: int, dtype: torch.dtype) -> Criterion:
    return Criterion("cross_entropy", F.cross_entropy, torch.rand(n, k).softmax(1).to(dtype), {})


def _binary(r: random.Random, n: int, k: int, dtype: torch.dtype) -> Criterion:
    y = (torch.rand(n, k) < 0.5).to(dtype)
    return Criterion(nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits, y, {})


def _squares(r: random.Random, n: int, k: int, dtype: torch.dtype) -> Criterion:
    y = torch.randn(n, k, dtype=dtype)
    if r.random() < 0.3:
        return Criterion(nn.MSELoss(reduction="sum"), lambda o, y: F.mse_loss(o, y, reduction="sum"), y, {})
    return Criterion("mse", F.mse_loss, y, {})


def _distances(r: random.Random, n: int, k: int, dtype: torch.dtype) -> Criterion:
    given, own = r.choice([(nn.HuberLoss(), F.huber_loss), (nn.L1Loss(), F.l1_loss)])
    return Criterion(given, own, torch.randn(n, k, dtype=dtype), {"convex": True})


def _own(r: random.Random, n: int, k: int, dtype: torch.dtype) -> Criterion:
    """A convex function of one's own, which returns a loss for each example."""
    if r.random() < 0.5:
        bowl = lambda o, y: (o - y).square().sum(1) + o.logsumexp(1)
        return Criterion(bowl, lambda o, y: bowl(o, y).mean(), torch.randn(n, k, dtype=dtype), {"convex": True})
    hinge = lambda o, y: (1 - o * y).clamp(min=0).sum(1)
    y = (2 * torch.randint(0, 2, (n, k)) - 1).to(dtype)
    return Criterion(hinge, lambda o, y: hinge(o, y).mean(), y, {"convex": True})


LOSSES = [
    _entropy, _entropy, _entropy, _smoothed, _weighted, _ignored, _probabilities, _binary, _squares, _squares,
    _distances, _own,
]  # fmt: skip
