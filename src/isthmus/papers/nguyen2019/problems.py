"""Small problems for the page on Nguyen 2019: wide networks on few samples, and points where they are bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.experiments.jobs import HOST, Problem
from isthmus.models import seeded
from isthmus.objective import Objective
from isthmus.objective.data import rows
from isthmus.params import Params
from isthmus.training.fit import Fitted, Recipe, fit
from isthmus.training.memory import Memory, forget

PAGE = "nguyen2019"
_LOSSES = ("cross_entropy", "mse", "hinge")
BAD = ("half dead", "low rank")
"""Ends at which the premises of the proofs fail: see ``spoil``."""
STARTS = ("random", "trained", *BAD)
RANK = 5
"""How many different units a layer of low rank has."""


@dataclass(frozen=True)
class Setting:
    """A perceptron on the first N training examples of a data set, in float64.

    `slope`: of the leaky ReLU; None for ReLU. `loss`: one of ``_LOSSES``; the targets of "mse" are the one-hot labels.

    >>> Setting("digits", 40, (64, 80, 24, 10)).label
    '64-80-24-10, leaky ReLU of slope 0.2, digits, N = 40'
    """

    data: str
    N: int
    widths: tuple[int, ...]
    slope: float | None = 0.2
    loss: str = "cross_entropy"
    bias: bool = True

    def __post_init__(self) -> None:
        if self.loss not in _LOSSES:
            raise InputError("loss", expected=f"one of {', '.join(_LOSSES)}", got=repr(self.loss))
        if len(self.widths) < 2:
            raise InputError("widths", expected="at least two", got=self.widths)

    @property
    def network(self) -> str:
        """The widths and the activation."""
        activation = "ReLU" if self.slope is None else f"leaky ReLU of slope {self.slope:g}"
        return "-".join(map(str, self.widths)) + f", {activation}" + ("" if self.bias else ", no biases")

    @property
    def model(self) -> str:
        """As `network`."""
        return self.network

    @property
    def label(self) -> str:
        """For people."""
        loss = "" if self.loss == "cross_entropy" else f", {self.loss}"
        return f"{self.network}, {self.data}, N = {self.N}{loss}"

    def digests(self) -> Mapping[str, str]:
        """Of the data."""
        return self._problem.digests()

    @property
    def _problem(self) -> Problem:
        return Problem("mlp:" + "-".join(map(str, self.widths)), self.data, self.N, tests=0)

    def module(self) -> nn.Sequential:
        """The network; its own weights are not used."""
        return seeded(self._build, 0)

    def _build(self) -> nn.Sequential:
        parts: list[nn.Module] = []
        for n, m in pairwise(self.widths):
            activation = nn.ReLU() if self.slope is None else nn.LeakyReLU(self.slope)
            parts += [nn.Linear(n, m, bias=self.bias, dtype=torch.float64), activation]
        return nn.Sequential(*parts[:-1])

    def objective(self, device: torch.device = HOST) -> Objective:
        """The loss on the N examples, which are on `device`."""
        data = self._problem.dataset().to(device)
        x, y = data.x_train.double(), data.y_train
        if self.loss == "hinge":
            return Objective(self.module(), hinge, (x, y), convex=True)
        if self.loss == "mse":
            y = nn.functional.one_hot(y, self.widths[-1]).double()
        return Objective(self.module(), self.loss, (x, y))

    def random(self, seed: int) -> Params:
        """He's random weights, biases of standard deviation 0.3."""
        g, out = torch.Generator().manual_seed(seed), {}
        for name, v in self.module().state_dict().items():
            scale = (2 / v.shape[1]) ** 0.5 if v.dim() > 1 else 0.3
            out[name] = torch.randn(v.shape, generator=g, dtype=torch.float64) * scale
        return out

    def train(
        self, seed: int, recipe: Recipe, target: float, memory: Memory = forget, device: torch.device = HOST
    ) -> Fitted:
        """Trained from the random weights of that seed until the loss is at most `target`."""
        objective = self.objective(device)
        x, y = objective.data
        start = {k: v.to(device) for k, v in self.random(seed).items()}

        def batch_loss(state: Params, index: Tensor) -> Tensor:
            return objective.example_losses(objective.forward(state, rows(x, index)), y[index]).mean()

        return fit(
            batch_loss, objective.loss, start, self.N, recipe,
            generator=torch.Generator().manual_seed(seed), target=target, memory=memory,
        )  # fmt: skip


def hinge(z: Tensor, y: Tensor) -> Tensor:
    """The multi-class hinge loss, the sum of max(0, 1 + z_j - z_y) over the other classes j: convex, not smooth.

    >>> hinge(torch.tensor([[3.0, 1.0, 2.5]]), torch.tensor([0]))
    tensor([0.5000])
    """
    margin = (1 + z - z.gather(1, y[:, None])).clamp_min(0)
    return margin.scatter(1, y[:, None], 0).sum(1)


def spoil(params: Mapping[str, Tensor], how: str) -> Params:
    """A bad point: "half dead", every second unit of each hidden layer has no incoming weights and no bias; "low
    rank", every hidden layer has ``RANK`` different units. Neither features nor weights then have full rank.

    >>> spoil({"0.weight": torch.ones(2, 1), "2.weight": torch.ones(1, 2)}, "half dead")["0.weight"].flatten()
    tensor([1., 0.])
    """
    if how not in BAD:
        raise InputError("how", expected=f"one of {', '.join(BAD)}", got=repr(how))
    last = [name.partition(".")[0] for name in params][-1]
    out = {}
    for name, v in params.items():
        row = torch.arange(len(v))
        if name.partition(".")[0] == last:
            out[name] = v.clone()
        elif how == "low rank":
            out[name] = v[row % RANK]
        else:
            out[name] = torch.where((row % 2 == 0).view(-1, *(1,) * (v.dim() - 1)), v, 0.0)
    return out
