"""How often the bands of ``im.population`` hold, on a population whose means are known.

    python benchmarks/population.py

A loss at 20 points of a path is a sum of four exponential factors; an error happens at random, at each point alike.
"""

from __future__ import annotations

import torch

from isthmus.evaluate.band import band_of
from isthmus.evaluate.columns import Columns

POINTS, RATE = 20, 0.01


def covered(n: int, sets: int, level: float = 0.95) -> tuple[float, float, float]:
    """The shares of `sets` sets of `n` examples whose bands hold: for the loss, the barrier and the error."""
    g = torch.Generator().manual_seed(n)
    t = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    shapes = torch.stack([torch.ones_like(t), (6 * t).sin(), t, (12 * t).cos()])
    truth, rates = shapes[:2].sum(0), torch.full_like(t, RATE)
    top = float(truth.max() - torch.maximum(truth[0], truth[-1]))
    held = torch.zeros(3, dtype=torch.float64)
    for seed in range(sets):
        factors = torch.empty(n, 4, dtype=torch.float64).exponential_(generator=g)
        factors[:, 2:] -= 1  # the last two have mean 0
        X = factors @ shapes
        wrong = (torch.rand(n, POINTS, generator=g) < RATE).sum(0)
        band = band_of(Columns(losses=list(X.T), errors=wrong.tolist()), t, X.mean(0), level, seed)
        assert band.error is not None
        found = (
            ((band.lo <= truth) & (truth <= band.hi)).all(),
            band.barrier.lo <= top <= band.barrier.hi,
            ((band.error.lo <= rates) & (rates <= band.error.hi)).all(),
        )
        held += torch.tensor([bool(v) for v in found], dtype=torch.float64)
    loss, barrier, error = (held / sets).tolist()
    return loss, barrier, error


if __name__ == "__main__":
    print("examples  loss  barrier  error")
    for n in (100, 500, 2000):
        print("{:8d}  {:.3f}  {:.3f}    {:.3f}".format(n, *covered(n, 500)))
