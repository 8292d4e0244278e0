"""How many boxes it takes to prove that one tanh unit and its mirror image are not connected.

    python benchmarks/separated.py

Two parameters, w tanh(v x) with a ridge; every path from (v, w) to (-v, -w) passes over the zero network, of loss 2.429.
"""

from __future__ import annotations

import time

import torch
from scipy.optimize import minimize
from torch import nn

import isthmus as im

WALL = 2.429


def main() -> None:
    """The boxes and seconds at four shares of the wall."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)).double()
    x = torch.linspace(-2, 2, 8, dtype=torch.float64)[:, None]
    y = torch.tanh(1.5 * x)
    y *= (WALL / float(y.square().mean())) ** 0.5
    objective = im.Objective(net, "mse", (x, y), penalty=im.Ridge(0.01))

    def network(w: object) -> im.Params:
        return {k: torch.as_tensor(u, dtype=torch.float64).view(1, 1) for k, u in zip(("0.weight", "2.weight"), w)}  # type: ignore[call-overload]

    best = minimize(lambda w: objective.loss(network(w)), [1.5, 2.0]).x
    for share in (0.3, 0.6, 0.9, 0.97):
        begin = time.perf_counter()
        found = im.separated(objective, network(best), network(-best), share * WALL)
        print(
            f"{share:.0%} of the wall: proved {found.proved}, {found.boxes:,} boxes, {time.perf_counter() - begin:.1f} s"
        )


if __name__ == "__main__":
    main()
