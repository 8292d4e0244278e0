"""What the networks of the page on Freeman & Bruna 2017 learn, and the weights that they start from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from isthmus.data import Dataset
from isthmus.experiments.jobs import HOST, Problem
from isthmus.models import mlp, seeded
from isthmus.objective import Objective
from isthmus.objective.losses import Ridge
from isthmus.params import Params

_COEFFICIENTS = {"quadratic": (0.1, 0.25, 0.5), "cubic": (0.0, 3.0, -10.0, 8.0)}
"""Of 1, x, x^2, ... (section 4.1)."""


def absolute(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean absolute error of every example, as in the program of the paper's authors.

    >>> absolute(torch.tensor([[1.0], [-2.0]]), torch.zeros(2, 1))
    tensor([1., 2.])
    """
    return (outputs - y).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class Polynomial:
    """A polynomial on `examples` equidistant points of [0, 1], and a 1-4-4-1 sigmoid network in float64.

    `closed`: without biases, and with a sigmoid after the last layer too. `loss`: "absolute" or "squared", the mean.
    `spread`: weights and biases start uniform in [-spread, spread]; None as torch starts them.
    """

    name: str
    loss: str = "absolute"
    closed: bool = False
    examples: int = 200
    spread: float | None = field(default=None, metadata={"later": True})

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.name}, {self.loss} error"

    def module(self, seed: int) -> nn.Sequential:
        """The network with the weights of that seed."""
        net = seeded(lambda: mlp((1, 4, 4, 1), bias=not self.closed, activation="sigmoid"), seed).double()
        return nn.Sequential(*net, nn.Sigmoid()) if self.closed else net

    def start(self, seed: int) -> Params:
        """The weights that training starts from."""
        params, generator = weights_of(self.module(seed)), torch.Generator().manual_seed(seed)
        if self.spread is None:
            return params
        return {k: (2 * torch.rand(v.shape, generator=generator, dtype=v.dtype) - 1) * self.spread
                for k, v in params.items()}  # fmt: skip

    def objectives(self, device: torch.device = HOST) -> tuple[Objective, Objective | None]:
        """On the points; there are no others to test on."""
        x = torch.linspace(0, 1, self.examples, dtype=torch.float64)[:, None].to(device)
        y = sum((c * x**k for k, c in enumerate(_COEFFICIENTS[self.name])), torch.zeros_like(x))
        if self.loss == "squared":
            return Objective(self.module(0).eval(), "mse", (x, y)), None
        return Objective(self.module(0).eval(), absolute, (x, y), convex=True), None


def weights_of(module: nn.Module) -> Params:
    """The weights of a module."""
    return {k: v.detach() for k, v in module.state_dict().items()}


@dataclass(frozen=True)
class Images:
    """A problem with images, as the authors' programs have it.

    `scaled`: pixels in [0, 1]. `crop`: networks see the `crop` x `crop` pixels in the middle, and are trained on as
    large parts at random places. `decay`: what is added to the loss for the weights of the hidden linear layers, times
    half of the sum of their squares. `start`: "mnist", weights normal(0, 0.1) and biases 0.1; "cifar10", weights
    normal(0, 0.05) in convolutions, (0, 0.04) in hidden linear layers, (0, 1 / inputs) in the last one, all within two
    standard deviations, biases 0 in the first and the last layer and 0.1 between them.
    """

    problem: Problem
    start_of: Literal["mnist", "cifar10"]
    scaled: bool = False
    crop: int | None = None
    decay: float = 0.0

    @property
    def label(self) -> str:
        """For people."""
        return self.problem.label

    @property
    def loss(self) -> str:
        """Of the problem."""
        return self.problem.loss

    def digests(self) -> dict[str, str]:
        """Of the problem."""
        return self.problem.digests()

    def fewer(self, examples: int) -> Images:
        """The same on the first so many training examples, and no test examples."""
        return replace(self, problem=replace(self.problem, examples=examples, tests=0))

    def dataset(self) -> Dataset:
        """The images, whole."""
        data = self.problem.dataset()
        if not self.scaled:
            return data
        low, high = float(data.x_train.min()), float(data.x_train.max())
        x, z = ((v - low) / (high - low) if v is not None else None for v in (data.x_train, data.x_test))
        assert x is not None  # noqa: S101 - training examples are there
        return replace(data, x_train=x, x_test=z)

    def seen(self) -> Dataset:
        """The images as networks see them when they are judged."""
        data = self.dataset()
        if self.crop is None:
            return data
        off = (data.x_train.shape[-1] - self.crop) // 2
        middle = (..., slice(off, off + self.crop), slice(off, off + self.crop))
        return replace(data, x_train=data.x_train[middle], x_test=None if data.x_test is None else data.x_test[middle])

    def start(self, seed: int) -> Params:
        """The weights that training starts from."""
        generator = torch.Generator().manual_seed(seed)
        params = weights_of(self.problem.module(self.seen(), seed))
        layers = list(dict.fromkeys(k.rpartition(".")[0] for k in params))
        out: Params = {}
        for layer in layers:
            w, last = params[f"{layer}.weight"], layer == layers[-1]
            out[f"{layer}.weight"] = self._deviation(w, last) * _normal(w, generator)
            bias = 0.0 if self.start_of == "cifar10" and layer in (layers[0], layers[-1]) else 0.1
            out[f"{layer}.bias"] = torch.full_like(params[f"{layer}.bias"], bias)
        return out

    def _deviation(self, w: Tensor, last: bool) -> float:
        if self.start_of == "mnist":
            return 0.1
        return 0.05 if w.ndim == 4 else 1 / w.shape[1] if last else 0.04

    def objectives(self, device: torch.device = HOST) -> tuple[Objective, Objective | None]:
        """On the training and on the test images."""
        data = self.seen().to(device)
        module = self.problem.module(data).eval()
        hidden = tuple(f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Linear))[:-1]
        penalty = Ridge(self.decay / 2, hidden) if self.decay else None
        train = Objective(module, self.loss, (data.x_train, data.y_train), penalty=penalty)
        if data.x_test is None or data.y_test is None or self.problem.tests == 0:
            return train, None
        return train, train.on((data.x_test, data.y_test))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """A standard normal variable given that it is within two standard deviations."""
    draw = torch.empty_like(like)
    return nn.init.trunc_normal_(draw, 0.0, 1.0, -2.0, 2.0, generator=generator)


def cropped(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A part of `side` x `side` pixels of each image [n, c, h, w], at a place of its own.

    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> part = cropped(x, 3, torch.Generator().manual_seed(0))
    >>> part.shape, float(part[0, 0, 1, 1] - part[0, 0, 0, 0])
    (torch.Size([1, 1, 3, 3]), 5.0)
    """
    places = x.shape[-1] - side + 1
    corner = torch.randint(places, (2, len(x)), generator=generator).to(x.device)
    rows, columns = (corner[..., None] + torch.arange(side, device=x.device)).unbind()
    return x[torch.arange(len(x), device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(
        -1, 1
    )


Learned = Problem | Polynomial | Images
"""What a network of the page learns."""


def start_of(problem: Learned, seed: int) -> Params:
    """The weights that training starts from."""
    if isinstance(problem, Problem):
        return weights_of(problem.module(problem.dataset(), seed))
    return problem.start(seed)
