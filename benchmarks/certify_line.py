"""What does a proof cost? The straight line between two trained digit networks, against a 61-point profile of it.

Trains two 64-60-60-60-60-10 networks on the built-in digits, then alternates, in one process, the careful loop (no
gradients, full batch, 61 points), ``profile`` and ``certify`` to gaps of 10 %, 1 % and 0.1 %, all in float64, and
prints medians of ratios. The reach is 1 % in at most 10 times, 0.1 % in at most 16 times the loop. Plain interval
arithmetic on the same network is printed beside it: it carries no slope, so that its bound is useless.

    python benchmarks/certify_line.py [repeats] [threads]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch

import isthmus as im
from isthmus import pipeline as runs
from isthmus.certify import verify_certificate
from isthmus.certify.affine import Interval
from isthmus.certify.bounds import Bounds
from isthmus.certify.forms import Form
from isthmus.data import load
from isthmus.models import by_name, seeded
from isthmus.params import Params
from isthmus.training.fit import Recipe

MODEL = "mlp:64-60x4-10"
REACH = {0.1: None, 0.01: 10.0, 0.001: 16.0}


def trained() -> tuple[im.Objective, im.Path]:
    """The objective and the line."""
    data = load("digits").flat()
    x, y = data.x_train.double(), data.y_train
    ends: list[Params] = []
    for s in (0, 1):
        module = seeded(lambda: by_name(MODEL), s).double()
        recipe = Recipe(lr=2e-3, batch=128, steps=4000)
        ends.append(runs.train(module, (x, y), recipe, seed=s, target=5e-4).params)
    return im.Objective(by_name(MODEL), "cross_entropy", (x, y), dtype=torch.float64), im.Path.through(ends)


def loop(objective: im.Objective, path: im.Path) -> float:
    """The largest loss at 61 points, one full pass each."""
    return max(objective.loss(path.at(i / 60)) for i in range(61))


class Flat:
    """A moving tensor as a plain interval: its slope counts as radius."""

    def __init__(self, motion) -> None:
        self.motion = motion

    def over(self, interval: Interval) -> Form:
        form = self.motion.over(interval)
        return Form(form.centre, None, form.slope.abs(), form.ulps)


def plain_intervals(objective: im.Objective, path: im.Path, pieces: int) -> float:
    bounds = Bounds(objective, objective.program, [path.start, path.end])
    bounds.reading.motions = {k: Flat(m) for k, m in bounds.reading.motions.items()}  # type: ignore[assignment]
    return max(bounds.over(i / pieces, (i + 1) / pieces).loss for i in range(pieces))


def seconds(f: Callable[[], object]) -> float:
    begin = time.perf_counter()
    f()
    return time.perf_counter() - begin


def main(repeats: int = 9, threads: int = 1) -> None:
    torch.set_num_threads(threads)
    objective, path = trained()
    _ = objective.structure, objective.program  # read once per objective, not per certificate
    print(f"{MODEL}, {objective.num_examples} examples, float64, {threads} thread(s), median of {repeats}")
    plain = [seconds(lambda: loop(objective, path)) for _ in range(repeats)]
    print(f"largest of 61 points: {loop(objective, path):.6f}; careful loop {median(plain):.3f} s")
    for gap, reach in REACH.items():
        ratios, profiles, times = [], [], []
        for _ in range(repeats):
            base = seconds(lambda: loop(objective, path))
            grid = seconds(lambda: im.profile(objective, path, 61))
            took = seconds(lambda gap=gap: im.certify(objective, path, gap, budget=100))
            ratios.append(took / base)
            profiles.append(took / grid)
            times.append(took)
        c = im.certify(objective, path, gap, budget=100)
        check = seconds(lambda c=c: verify_certificate(objective, path, c.to_dict()))
        print(
            f"gap {gap:6.1%}: bound {c.bound:.6f}, best sample {c.witness[1]:.6f}, reached {c.gap:.3%}, "
            f"{c.evaluations} evaluations, {median(times):.3f} s, {median(ratios):.1f} x the loop"
            + (f" (reach: {reach:g})" if reach else "")
            + f", {median(profiles):.1f} x profile(); verified in {check:.3f} s; rounding slack {c.slack:.1e}"
        )
    for pieces in (64, 512):
        print(f"plain intervals, {pieces} pieces: bound {plain_intervals(objective, path, pieces):.4g}")


if __name__ == "__main__":
    main(*(int(v) for v in sys.argv[1:3]))
