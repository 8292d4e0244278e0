"""How high are the paths of Theorems 2 and 3 between digits perceptrons trained with dropout, and what is proved?

Two 64-60-60-60-60-10 ReLU perceptrons with biases, dropout 0.25 after every hidden layer, on scikit-learn's 1797
digits (x / 16 minus the mean), float64: trained to a loss of 0.004, for 2000 steps, and without dropout.

    python benchmarks/noise_paths.py [two seeds]
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise

import torch
from torch import nn

import isthmus as im
from isthmus.models import seeded
from isthmus.pipeline import train
from isthmus.training.fit import Recipe

WIDTHS = (64, 60, 60, 60, 60, 10)
RECIPE = Recipe(optimizer="adam", lr=2e-3, batch=256, steps=2000)


def network(dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout, ..., Linear."""
    parts: list[nn.Module] = []
    for n, m in pairwise(WIDTHS):
        parts += [nn.Linear(n, m), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts[:-2]).double()


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All digits, train and test, as rows of mean zero."""
    data = im.data.load("digits").flat()
    assert data.x_test is not None
    assert data.y_test is not None
    x = torch.cat([data.x_train, data.x_test]).double()
    return x - x.mean(0), torch.cat([data.y_train, data.y_test])


def row(name: str, objective: im.Objective, a: im.Params, b: im.Params, method: im.Connector) -> None:
    begin = time.process_time()
    connection = im.connect(objective, a, b, method)
    connected = time.process_time() - begin
    profile = im.profile(objective, connection.path, 61)
    certificate = im.certify(objective, connection.path)
    total = time.process_time() - begin
    noise = connection.stats.get("noise")
    n = len(connection.path)
    exact = [s for s in certificate.segments if s.claim in ("unchanged", "convex")]
    parts = f"proved exactly {len(exact)} of {n}, bound there {max((s.bound for s in exact), default=0):.4g}"
    if noise:
        parts += f"; straight segments {noise['a']['max_loss']:.4g}, {noise['b']['max_loss']:.4g}"
        parts += f"; theta_1 {noise['a']['loss_at_theta_1']:.4g}, {noise['b']['loss_at_theta_1']:.4g}"
    if "network" in connection.stats:
        parts += f"; theta* {connection.stats['network']['loss']:.4g} at {connection.stats['network']['widths']}"
    bound = f"{certificate.bound:.4g}" if certificate.proved else "none"
    times = f"[{connected:.0f} s, all {total:.0f} s]"
    print(f"{name:34} max {profile.max:<9.4g} bound {bound:8} {parts} {times}", flush=True)


def main(seeds: list[int]) -> None:
    torch.set_num_threads(1)
    x, y = digits()
    for dropout, target in ((0.25, 4e-3), (0.25, 0.0), (0.0, 2e-4)):
        ends = []
        for seed in seeds:
            module = seeded(lambda p=dropout: network(p), seed)
            fitted = train(module, (x, y), RECIPE, seed=seed, target=target)
            ends.append(fitted.params)
        objective = im.Objective(network(dropout).eval(), data=(x, y))
        a, b = ends
        print(
            f"dropout {dropout}, seeds {seeds}: end losses {objective.loss(a):.3g}, {objective.loss(b):.3g}", flush=True
        )
        row("straight line", objective, a, b, im.Linear())
        row("Theorem 1", objective, a, b, im.Dropout())
        row("Theorem 2, p = 0.5", objective, a, b, im.NoiseDropout(p=0.5))
        row("Theorem 2, p = 0.5, 200 draws", objective, a, b, im.NoiseDropout(p=0.5, draws=200))
        row("Theorem 2, p = 0.5, Algorithm 1", objective, a, b, im.NoiseDropout(p=0.5, counts="bernoulli"))
        row("Theorem 2, p = 0.75", objective, a, b, im.NoiseDropout(p=0.75))
        row("Theorem 3, p = 0.3, 12 of 18", objective, a, b, im.Narrow(p=0.3, width=12))
        row("Theorem 3, p = 0.3, 18 of 18", objective, a, b, im.Narrow(p=0.3))
        row("Theorem 3, matched width 12", objective, a, b, im.Narrow(width=12))
        n = im.noise_stability(objective, a, p=0.3, examples=300, times=(0.0, 0.5))
        print(f"noise stability of a: epsilon {n.epsilon:.3g}, c {n.contraction:.3g}, rho {n.smoothness:.3g}")
        for c in n.conditions:
            print(f"  {c.name}: {c.value:.4g} (needed: {c.needed}; holds: {c.holds})")


if __name__ == "__main__":
    main([int(s) for s in sys.argv[1:]] or [11, 12])
