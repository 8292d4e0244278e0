"""Networks, paths and a counter for the tests of the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import isthmus as im
from isthmus.paths import Segment
from tests.problems import blobs, perceptron, random_params, small_convnet


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Linear(6 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        h = (h + self.norm(self.inner(h))).relu()
        return self.last(nn.functional.avg_pool2d(h, 4).view(x.size(0), -1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 7, batch_first=True)
        self.last = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cells(x.squeeze(1))[0][:, -1])


class Branching(nn.Module):
    """Cannot be exported: its control flow depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return self.two(h.relu() if float(h.sum()) < 1e9 else h)


class Reused(nn.Module):
    """Reads what its ReLU reads a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(5, 70), nn.Linear(70, 70), nn.Linear(70, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        h = self.two(h.relu() + h)
        return self.last(h.relu() - h)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(12, 4)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        h, k = self.one(x), self.two(z)
        return self.last(torch.cat([h.relu(), k.tanh()], 1))


@dataclass(frozen=True)
class Case:
    name: str
    module: Callable[[], nn.Module]
    shape: tuple[int, ...]


CASES = (
    Case("perceptron", lambda: perceptron([5, 9, 7, 8, 4]), (5,)),
    Case("tanh", lambda: perceptron([5, 9, 7, 4], nn.Tanh), (5,)),
    Case("convnet with BatchNorm", small_convnet, (1, 8, 8)),
    Case("residual", Residual, (1, 8, 8)),
    Case("recurrent", Recurrent, (1, 8, 8)),
    Case("not exportable", Branching, (5,)),
    Case("reused", Reused, (5,)),
    Case("linear with BatchNorm", lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)), (5,)),
)


def objective_of(case: Case, dtype: torch.dtype = torch.float64, n: int = 24, **options: object) -> im.Objective:
    module = case.module().to(dtype).eval()
    x, y = blobs(n, case.shape, 4)
    return im.Objective(module, "cross_entropy", (x.to(dtype), y), **options)  # type: ignore[arg-type]


def ends(case: Case, dtype: torch.dtype = torch.float64, count: int = 2) -> list[im.Params]:
    return [random_params(case.module(), seed, dtype) for seed in range(1, count + 1)]


def slow(objective: im.Objective, segment: Segment, ts: list[float]) -> tuple[list[float], list[float]]:
    """The slow twin: one full pass over the data per point."""
    pairs = [objective.measure(segment.at(t)) for t in ts]
    return [p for p, _ in pairs], [q for _, q in pairs]


def flops(work: Callable[[], object]) -> int:
    """The floating-point operations of all products that `work` runs."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
