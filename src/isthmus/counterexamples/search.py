"""How low a trained path between the two minima gets: the other side of the lower bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.counterexamples.disconnected import Disconnected
from isthmus.errors import InputError
from isthmus.objective.data import single
from isthmus.params import Params
from isthmus.paths import Path
from isthmus.shown import one_line
from isthmus.training.fit import Recipe, fit
from isthmus.training.progress import Progress, no_progress


@one_line
@dataclass(frozen=True, eq=False)
class Found:
    """The lowest path of several trained ones: the `maximum` of its losses, and those of `all` runs.

    Maxima are over `num_points` equal steps, the bends, and the points where an output weight crosses zero; one of
    the latter is where the proof finds a loss of at least B_h, so no maximum is below it.

    `path`: the chain itself.
    """

    path: Path
    maximum: float
    all: tuple[float, ...]
    num_points: int


def smallest_found(
    example: Disconnected,
    *,
    pivots: int = 13,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 1500,
    lr: float = 0.01,
    noise: float = 0.3,
    num_points: int = 2001,
    progress: Progress = no_progress,
) -> Found:
    """The smallest maximum that trained polygonal chains reach between the two minima of `example`.

    A chain has `pivots` free points, which start on the straight line with Gaussian noise of size `noise` added; its
    loss is the log-sum-exp of the losses along it with the factors 30, 300 and 3000 one after the other, `steps` Adam
    steps each. No run can get below ``example.lower_bound``.

    `seeds`: one for each run. `lr`: the learning rate of Adam with the first factor, a third of it with each next one.
    `num_points`: at which the maximum is measured. Errors: ``InputError`` for numbers that are too small. Source: for
    the example of Kuditipudi et al. 2019, Theorem 4.

    >>> from isthmus.counterexamples.disconnected import disconnected
    >>> example = disconnected()
    >>> found = smallest_found(example, seeds=(0,), steps=50)
    >>> found.maximum >= example.lower_bound
    True
    """
    if pivots < 1 or steps < 1 or num_points < 2 or not seeds:
        got = (pivots, steps, num_points, list(seeds))
        raise InputError("pivots, steps, num_points, seeds", expected=">= 1, >= 1, >= 2 and at least one seed", got=got)
    chains = [_train(example, pivots, seed, steps, lr, noise, num_points, progress) for seed in seeds]
    heights = [_height(example, chain, num_points) for chain in chains]
    best = min(range(len(chains)), key=heights.__getitem__)
    a, b = example.minima
    points = [{k: v[i] for k, v in chains[best].items()} for i in range(pivots)]
    return Found(Path.through([a, *points, b]), heights[best], tuple(heights), num_points)


def _train(
    example: Disconnected, pivots: int, seed: int, steps: int, lr: float, noise: float, fine: int, progress: Progress
) -> Params:
    generator = torch.Generator().manual_seed(seed)
    a, b = example.minima
    t = torch.linspace(0, 1, pivots + 2, dtype=torch.float64)[1:-1, None, None]
    free = {}
    for name in a:
        line = torch.lerp(a[name], b[name], t)
        free[name] = line + noise * torch.randn(line.shape, generator=generator, dtype=line.dtype)
    grid = 12 * (pivots + 1)
    for factor in (30.0, 300.0, 3000.0):

        def soft(chain: Params, index: Tensor, factor: float = factor) -> Tensor:
            # a random shift of the grid, so that no part of the chain is never seen
            shift = torch.rand((), generator=generator, dtype=torch.float64)
            return torch.logsumexp(factor * _losses(example, chain, (index + shift) / grid), 0) / factor

        with_ends = Recipe(optimizer="adam", lr=lr, batch=grid, steps=steps, check=max(1, steps // 30))
        free = fit(
            soft, lambda chain: _height(example, chain, fine), free, grid, with_ends,
            generator=generator, progress=progress, what=f"training a chain (seed {seed}, factor {factor:g})",
        ).params  # fmt: skip
        lr = lr / 3
    return free


def _height(example: Disconnected, chain: Params, num_points: int) -> float:
    with torch.no_grad():
        t = torch.linspace(0, 1, num_points, dtype=torch.float64)
        bends = torch.linspace(0, 1, len(chain["2.weight"]) + 2, dtype=torch.float64)
        return float(_losses(example, chain, torch.cat([t, bends, _crossings(example, chain)])).max())


def _crossings(example: Disconnected, chain: Params) -> Tensor:
    """Every t at which an output weight changes its sign."""
    a, b = (p["2.weight"] for p in example.minima)
    w = torch.cat([a[None], chain["2.weight"], b[None]])[:, 0]
    here, there = w[:-1], w[1:]
    i, _ = torch.where(here * there < 0)
    return (i + (here / (here - there))[here * there < 0]) / len(here)


def _losses(example: Disconnected, chain: Params, t: Tensor) -> Tensor:
    """The loss at each t of the polygonal chain through the minima and the free points: all networks at once."""
    a, b = example.minima
    weights = []
    for name in ("0.weight", "2.weight"):
        points = torch.cat([a[name][None], chain[name], b[name][None]])
        place = t * (len(points) - 1)
        i = place.long().clamp(max=len(points) - 2)
        weights.append(torch.lerp(points[i], points[i + 1], (place - i)[:, None, None]))
    A, w = weights
    x, y = single(example.objective.data[0]), example.objective.data[1]
    hidden = torch.einsum("nd,thd->tnh", x, A).relu()
    return (torch.einsum("tnh,toh->tno", hidden, w) - y).square().mean((1, 2))
