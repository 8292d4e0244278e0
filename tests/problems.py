"""All the small objectives that the tests run on, as functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, wraps
from pathlib import Path

import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.params import Params, cast


@dataclass(frozen=True)
class Problem:
    """An objective and two points of it."""

    name: str
    objective: im.Objective
    a: Params
    b: Params


def made_once(make: Callable[[], Problem]) -> Callable[[], Problem]:
    """The same objective on every call, which traces its module once, and points of one's own."""
    first = cache(make)

    @wraps(make)
    def problem() -> Problem:
        p = first()
        return replace(p, a={k: v.clone() for k, v in p.a.items()}, b={k: v.clone() for k, v in p.b.items()})

    return problem


def perceptron(widths: list[int], activation: Callable[[], nn.Module] = nn.ReLU, *, bias: bool = True) -> nn.Sequential:
    parts: list[nn.Module] = []
    for n, m in zip(widths, widths[1:], strict=False):
        parts += [nn.Linear(n, m, bias=bias), activation()]
    return nn.Sequential(*parts[:-1])


class Atan(nn.Module):
    """An activation without a rule for certificates."""

    def forward(self, x: Tensor) -> Tensor:
        return x.atan()


def small_convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 7, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(7, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4, 9),
        nn.ReLU(),
        nn.Linear(9, 4),
    )


def random_params(module: nn.Module, seed: int, dtype: torch.dtype = torch.float64) -> Params:
    """Weights of a plausible size, and BatchNorm statistics that are not the trivial ones."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, v in module.state_dict().items():
        if not v.is_floating_point():
            out[name] = v.clone()
        elif name.endswith("running_var"):
            out[name] = 0.5 + torch.rand(v.shape, generator=g, dtype=torch.float64)
        else:
            fan_in = v[0].numel() if v.dim() > 1 else 9
            out[name] = torch.randn(v.shape, generator=g, dtype=torch.float64) * (2 / fan_in) ** 0.5
    return cast(out, dtype)


def saved(module: nn.Module, folder: Path, names: str) -> list[str]:
    """Files of networks that are drawn with the seeds 0, 1, ..., one for each letter."""
    files = [folder / f"{name}.safetensors" for name in names]
    for seed, file in enumerate(files):
        im.save_params(random_params(module, seed, torch.float32), file)
    return [str(file) for file in files]


def blobs(n: int, shape: tuple[int, ...], classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, *shape, generator=g, dtype=torch.float64)
    return centres[y] + 0.5 * torch.randn(n, *shape, generator=g, dtype=torch.float64), y


def classify(name: str, module: nn.Module, shape: tuple[int, ...], classes: int = 4, **options: object) -> Problem:
    module = module.double().eval()
    objective = im.Objective(module, "cross_entropy", blobs(24, shape, classes), **options)  # type: ignore[arg-type]
    return Problem(name, objective, random_params(module, 1), random_params(module, 2))


@made_once
def two_layers() -> Problem:
    return classify("two layers", perceptron([5, 9, 4]), (5,))


@made_once
def odd_widths() -> Problem:
    return classify("odd widths", perceptron([5, 7, 3, 11, 6, 4]), (5,))


@made_once
def without_bias() -> Problem:
    return classify("without bias", perceptron([5, 8, 6, 4], bias=False), (5,))


@made_once
def tanh_regression() -> Problem:
    module = perceptron([3, 6, 7, 2], nn.Tanh).double()
    x, _ = blobs(20, (3,), 4)
    y = torch.stack([x.sum(1), x.prod(1)], 1)
    return Problem(
        "tanh regression", im.Objective(module, "mse", (x, y)), random_params(module, 1), random_params(module, 2)
    )


@made_once
def permuted() -> Problem:
    """A network that gives its own labels, and the same one with its units in another order: low ends, a high line."""
    module = perceptron([5, 8, 8, 4]).double()
    a = random_params(module, 1)
    a |= {k: 4 * a[k] for k in ("4.weight", "4.bias")}
    x, _ = blobs(24, (5,), 4)
    with torch.no_grad():
        y = torch.func.functional_call(module, a, x).argmax(1)
    b = dict(a)
    for before, after in (("0", "2"), ("2", "4")):
        b |= {f"{before}.{k}": b[f"{before}.{k}"].flip(0) for k in ("weight", "bias")}
        b[f"{after}.weight"] = b[f"{after}.weight"].flip(1)
    return Problem("permuted", im.Objective(module, "cross_entropy", (x, y)), a, b)


@made_once
def with_ridge() -> Problem:
    return classify("with ridge", perceptron([5, 8, 6, 4]), (5,), penalty=im.Ridge(1e-3))


@made_once
def convolutional() -> Problem:
    return classify("convolutional", small_convnet(), (1, 8, 8))


@made_once
def wide_relu() -> Problem:
    """All hidden layers have twice as many units as there are samples."""
    module = perceptron([5, 17, 16, 3]).double()
    objective = im.Objective(module, "cross_entropy", blobs(8, (5,), 3))
    return Problem("wide relu", objective, random_params(module, 1), random_params(module, 2))


@made_once
def wide_then_narrow() -> Problem:
    """The first layer is that wide, the others get narrower; the activation is onto R."""
    module = perceptron([5, 17, 9, 6, 3], lambda: nn.LeakyReLU(0.2)).double()
    objective = im.Objective(module, "cross_entropy", blobs(8, (5,), 3))
    return Problem("wide, then narrow", objective, random_params(module, 1), random_params(module, 2))


@made_once
def deep_linear() -> Problem:
    """No activations: three layers, without a penalty."""
    module = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 4))
    return classify("deep linear", module, (5,))


@made_once
def linear_with_ridge() -> Problem:
    """No activations: two layers and ridge."""
    module = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4))
    return classify("linear with ridge", module, (5,), penalty=im.Ridge(1e-2))


@made_once
def sparse_regression() -> Problem:
    """Two layers, with an l1 penalty on the second."""
    module = perceptron([3, 8, 2]).double()
    x, _ = blobs(20, (3,), 4)
    objective = im.Objective(module, "mse", (x, x[:, :2].sin()), penalty=im.L1(1e-3, ("2.weight",)))
    return Problem("sparse regression", objective, random_params(module, 1), random_params(module, 2))


PROBLEMS = (two_layers, odd_widths, without_bias, tanh_regression, with_ridge, convolutional)


class TiedAndNormed(nn.Module):
    """Words in and out by one table, behind batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.last = nn.Embedding(7, 3), nn.BatchNorm1d(3), nn.Linear(3, 7, bias=False)
        self.last.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.table(x)))


def tied_and_normed() -> tuple[im.Objective, list[Params], tuple[str, ...]]:
    """The objective of such a network, three points, and the names of its weights."""
    module = TiedAndNormed().double().eval()
    x, y = torch.randint(0, 7, (2, 12), generator=torch.Generator().manual_seed(0))
    objective = im.Objective(module, data=(x, y))
    drawn = (random_params(module, seed) for seed in range(3))
    points = [objective.check({**p, "last.weight": p["table.weight"]}) for p in drawn]
    return objective, points, ("table.weight", "norm.weight", "norm.bias")
