"""Mean-field networks: what does training all trials as one problem save, and how fast does dropout cost fall with N?

Without arguments, on Gaussians (class +-1, x ~ N(0, (1 +- 0.2)^2 I) in 32 dimensions, clipped ReLU, step 0.02, batch
16, T = 10, 20 trials, half of the units kept): (1) stacked trials against a loop over them; (2) the change in loss at
times 0, T/2 and T against N, with its slope and interval; (3) the excess of the 7-segment path of ``MeanField`` between
pairs of trials; (4) the change against M. ``mnist`` measures seconds per epoch of two- and three-layer networks.

    python benchmarks/mean_field_trials.py [mnist] [--cpu]
"""

from __future__ import annotations

import resource
import sys
from statistics import fmean, stdev

import torch
from common import in_turns, ratio, start, timed
from torch import Tensor

import isthmus as im
from isthmus.models import mean_field, mean_field_trials, train_mean_field
from isthmus.stability.dropout.pattern import PatternStability, StabilityCurve, pattern_stability

D, STEP, BATCH, TIME, TRIALS = 32, 0.02, 16, 10.0, 20
SIZES = (100, 200, 400, 800, 1600, 3200, 6400)


def sample(k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """k examples of the Gaussian task."""
    y = torch.randint(2, (k, 1), generator=generator) * 2.0 - 1
    return torch.randn(k, D, generator=generator) * (1 + 0.2 * y), y


def stacked_or_not() -> None:
    """All trials of one N as one batched problem, against one after the other."""
    print(f"  {TRIALS} trials of {TIME / STEP:.0f} steps, stacked against a loop over the seeds:")
    for N in (50, 100, 400, 1600):
        net = mean_field((D, N, 1), "clipped_relu", seed=0)
        options = {"step": STEP, "time": TIME, "batch": BATCH}
        found = in_turns(
            {
                "loop": lambda net=net, o=options: [train_mean_field(net, sample, seed=s, **o) for s in range(TRIALS)],
                "stacked": lambda net=net, o=options: mean_field_trials(net, sample, seeds=range(TRIALS), **o),
            },
            rounds=3,
        )
        loop, stacked = found["loop"], found["stacked"]
        print(f"    N = {N:5}: loop {fmean(loop):.2f} s, stacked {fmean(stacked):.2f} s, x{ratio(loop, stacked):.2f}")


def curves() -> None:
    """Changes in loss and paths, for every N."""
    test = sample(10_000, torch.Generator().manual_seed(99))
    times = (0.0, TIME / 2, TIME)
    points: dict[float, dict[int, list[PatternStability]]] = {t: {} for t in times}
    by_size: dict[int, list[PatternStability]] = {}
    for N in SIZES:
        net = mean_field((D, N, 1), "clipped_relu", seed=0)
        objective = im.Objective(net, "mse", test)
        runs = mean_field_trials(net, sample, step=STEP, time=TIME, batch=BATCH, seeds=range(TRIALS), times=times)
        for t in times:
            points[t][N] = [pattern_stability(objective, p, N // 2) for p in runs[t]]
        if N == SIZES[-1]:
            by_size = {M: [pattern_stability(objective, p, M) for p in runs[TIME]] for M in SIZES[:-2]}
        excess, lines, proved, segments = [], [], True, 0
        for a, b in zip(runs[TIME][::2], runs[TIME][1::2], strict=True):
            path = im.connect(objective, a, b, im.MeanField()).path
            segments = len(path)
            excess.append(im.profile(objective, path, 5).excess)
            if len(lines) < 2:
                lines.append(im.profile(objective, im.connect(objective, a, b).path, 21).max)
                proved &= im.certify(objective, path).proved
        loss = fmean(s.loss for s in points[TIME][N])
        changes = ", ".join(f"{fmean(s.change for s in points[t][N]):.4f}" for t in times)
        print(
            f"    N = {N:5}: change at t = 0, T/2, T: {changes}; loss {loss:.3f}, straight line {fmean(lines):.3f}, "
            f"excess of {segments} segments {fmean(excess):.4f} +- {stdev(excess):.4f}, proved: {proved}",
            flush=True,
        )
    for t in times:
        row(f"N, t = {t:g}", StabilityCurve.of("N", points[t]))
    row(f"M, N = {SIZES[-1]}, t = {TIME:g}", StabilityCurve.of("M", by_size))


def row(name: str, curve: StabilityCurve) -> None:
    s = curve.slope()
    print(
        f"    slope against {name}: {s.value:.3f}, 95 % interval [{s.low:.3f}, {s.high:.3f}]; "
        f"sqrt(log / .) has {curve.predicted_slope:.3f}; means "
        + ", ".join(f"{m:.4f} +- {d:.4f}" for m, d in zip(curve.mean, curve.deviation, strict=True))
    )


def mnist() -> None:
    """Seconds per epoch, peak memory, and how far a short training comes."""
    data = im.data.load("mnist")
    assert data.x_test is not None
    assert data.y_test is not None
    x = data.x_train.flatten(1).float()
    centre, spread = x.mean(), x.std()
    x, x_test = (x - centre) / spread, (data.x_test.flatten(1).float() - centre) / spread
    for widths, epochs in (((784, 800, 10), 3), ((784, 3200, 10), 3), ((784, 800, 800, 10), 3), ((784, 12800, 10), 1)):
        net = mean_field(widths, seed=0)
        ends: list[im.Params] = []

        def train(net: torch.nn.Module = net, ends: list[im.Params] = ends, epochs: int = epochs) -> None:
            time = 0.1 * epochs * len(x) / 100
            ends.append(train_mean_field(net, (x, data.y_train), step=0.1, time=time, batch=100, loss="cross_entropy"))

        seconds = timed(train) / epochs
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        s = pattern_stability(im.Objective(net, data=(x_test, data.y_test)), ends[0], min(widths[1:-1]) // 2)
        print(
            f"    {'-'.join(map(str, widths))}: {seconds:.1f} s per epoch, peak so far {peak:.2f} GiB; after {epochs} "
            f"epochs of step 0.1 test error {s.error:.2%}, of the first half of the units {s.dropped_error:.2%}",
            flush=True,
        )


if __name__ == "__main__":
    start("Mean-field networks: stacked trials, and the cost of dropping half of the units")
    if "mnist" in sys.argv:
        mnist()
    else:
        stacked_or_not()
        curves()
