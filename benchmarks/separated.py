"""How many boxes it takes to prove that one tanh unit and its mirror image are not connected.

    python benchmarks/separated.py

w tanh(v x) with a ridge: every path from (v, w) to (-v, -w) meets a loss of 2.429, that of the zero network.
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

    def network(v: float, w: float) -> im.Params:
        return {k: torch.tensor([[u]], dtype=torch.float64) for k, u in (("0.weight", v), ("2.weight", w))}

    best = minimize(lambda p: objective.loss(network(*map(float, p))), [1.5, 2.0])
    v, w = map(float, best.x)
    for share in (0.3, 0.6, 0.9, 0.97):
        begin = time.perf_counter()
        found = im.separated(objective, network(v, w), network(-v, -w), share * WALL)
        took = f"{found.boxes:,} boxes, {time.perf_counter() - begin:.1f} s"
        print(f"{share:.0%} of the wall: proved {found.proved}, {took}")


if __name__ == "__main__":
    main()
