"""Strings between trained networks: beads and lengths, batched against sequential training, kill and resume.

``python benchmarks/strings.py [polynomials] [batching] [mnist] [permutation] [resume]``; without a name, all of them.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean

import common
import torch
from torch import Tensor

import isthmus as im
from isthmus import pipeline as runs
from isthmus.connectors.strings.beads import Goal, Trainer
from isthmus.connectors.strings.threshold import Threshold
from isthmus.params import distance, equal, norm
from isthmus.sweep.store import FolderMemory
from isthmus.training.fit import Recipe
from isthmus.training.memory import Memory, forget

CURVES = {
    "quadratic": (lambda x: 0.5 * x**2 + 0.25 * x + 0.1, (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)),
    "cubic": (lambda x: 8 * x**3 - 10 * x**2 + 3 * x, (8e-2, 6e-2, 4e-2, 2e-2, 1e-2, 5e-3, 2e-3)),
}
# beads / length of the first, plain implementation of the algorithm (its own four pairs)
FIRST = {
    "quadratic": ("2.5/1.02", "3.0/1.05", "4.8/1.06", "7.5/1.10", "11.8/1.12", "17/1.14", "23.8/1.15"),
    "cubic": ("1.0/1.00", "1.5/1.00", "2.8/1.19", "6.3/1.27", "8.3/1.27", "10.8/1.33", "16/1.53"),
}


def polynomial(name: str, pairs: int = 4) -> None:
    """1-4-4-1 sigmoid, 64 points, mean squared error; both ends of each pair are trained just to the threshold."""
    curve, levels = CURVES[name]
    x = torch.linspace(0, 1, 64, dtype=torch.float64)[:, None]
    data = (x, curve(x))
    print(f"  {name}: {pairs} pairs; mean beads / mean normalised length")
    lengths = []
    for level, first in zip(levels, FIRST[name], strict=True):
        found, short = [], []
        for pair in range(pairs):
            a, b = (_trained_curve(data, 100 + 2 * pair + k, level) for k in (0, 1))
            objective = im.Objective(_sigmoids(0), "mse", data)
            method = im.StringSampling(
                level, recipe=im.Recipe(lr=0.01, steps=5000, batch=64, schedule="constant", check=20)
            )
            found.append(im.connect(objective, a, b, method))
            if found[-1].outcome.ok:
                short.append(im.straighten(objective, found[-1].path, level).after)
        beads, length = (mean(c.stats[k] for c in found) for k in ("beads", "normalized_length"))
        steps = mean(c.stats["gradient_steps"] for c in found)
        connected = sum(c.outcome.ok for c in found)
        straight = f"{mean(short):.2f}" if short else "-"
        print(
            f"    {level:7.0e}  {beads:5.1f} / {length:.2f}  straightened {straight}  steps {steps:6.0f}"
            f"  connected {connected} of {pairs}   first implementation {first}",
            flush=True,
        )
        lengths.append(length)
    print(f"    the length grows with falling threshold in {sum(p <= q for p, q in pairwise(lengths))} of 6 steps")


def _sigmoids(seed: int) -> torch.nn.Module:
    return im.models.seeded(lambda: im.models.mlp((1, 4, 4, 1), activation="sigmoid").double(), seed)


def _trained_curve(data: tuple[Tensor, Tensor], seed: int, level: float) -> im.Params:
    recipe = Recipe(lr=0.01, steps=20000, batch=64, check=20, schedule="constant")
    return runs.train(_sigmoids(seed), data, recipe, seed=seed, loss="mse", target=level).params


def digits_pair(channels: int, examples: int, level: float) -> tuple[im.Objective, im.Params, im.Params]:
    """Two convolutional networks on MNIST, trained just to the level."""
    x, y = common.data(examples)
    data = (x.reshape(-1, 1, 28, 28), y)
    ends = []
    for seed in (1, 2):
        module = im.models.seeded(lambda: im.models.convnet(channels), seed)
        recipe = Recipe(lr=2e-3, steps=4000, batch=64, check=20, schedule="constant")
        ends.append(runs.train(module, data, recipe, seed=seed, target=level).params)
    return im.Objective(im.models.convnet(channels), data=data), ends[0], ends[1]


def mnist(level: float = 0.1, examples: int = 2000) -> None:
    """A pair connected below the level: beads one after the other, and each depth as one batched problem."""
    for channels in (4, 8, 16):
        objective, a, b = digits_pair(channels, examples, level)
        line = im.profile(objective, im.connect(objective, a, b).path, 21)
        print(f"  MNIST, {examples} images, {channels} channels, loss at most {level}; straight line {line.max:.3f}")
        times = {}
        for name, batched in (("sequential", False), ("batched", True), ("chosen", None)):
            method = im.StringSampling(
                level, batched=batched, recipe=im.Recipe(lr=2e-3, steps=2000, batch=64, check=20)
            )
            begin = time.process_time()
            found = im.connect(objective, a, b, method)
            times[name] = time.process_time() - begin
            stats = found.stats
            top = im.profile(objective, found.path, 61).max
            print(
                f"    {name:10s} {times[name]:7.1f} s  {stats['gradient_steps']:5d} steps  {stats['beads']} beads"
                f"  length {stats['normalized_length']:.4f}  max {top:.5f}  {found.outcome.name}"
                f"  batched={stats['batched']}",
                flush=True,
            )
        print(f"    sequential / batched: {times['sequential'] / times['batched']:.2f} of the processor time")


def batching(beads: int = 8, steps: int = 100) -> None:
    """The same steps of several beads, one bead after the other and as one problem with stacked weights."""
    images, labels = common.data(2000)
    points = torch.linspace(0, 1, 64)[:, None]
    square = images.reshape(-1, 1, 28, 28)
    cases = {
        "1-4-4-1, 64 points": (im.models.mlp((1, 4, 4, 1), activation="sigmoid"), "mse", (points, points**2)),
        "784-32-32-10": (im.models.mlp((784, 32, 32, 10)), "cross_entropy", (images, labels)),
        "784-128-128-10": (im.models.mlp((784, 128, 128, 10)), "cross_entropy", (images, labels)),
        "convolutions, 4 channels": (im.models.convnet(4), "cross_entropy", (square, labels)),
        "convolutions, 8 channels": (im.models.convnet(8), "cross_entropy", (square, labels)),
        "convolutions, 16 channels": (im.models.convnet(16), "cross_entropy", (square, labels)),
    }
    print(f"  {beads} beads, {steps} steps of 64 examples each; processor time, in turns")
    for name, (module, loss, data) in cases.items():
        objective = im.Objective(module, loss, data)
        limit = Threshold(objective, "loss", 0.0, 5)
        recipe = Recipe(batch=64, check=steps)
        start = {k: v.clone() for k, v in module.state_dict().items()}
        starts = [{k: v + 0.01 * i for k, v in start.items()} for i in range(beads)]
        ends = {}

        def work(
            batched: bool,
            objective: im.Objective = objective,
            limit: Threshold = limit,
            recipe: Recipe = recipe,
            starts: list[im.Params] = starts,
            ends: dict[bool, list[im.Params]] = ends,
        ) -> None:
            trainer = Trainer.of(objective, limit, recipe, batched, starts[0])
            found = trainer.train(starts, Goal(-1.0, steps, seed=0))
            ends[batched] = [bead.params for bead in found]

        times = common.in_turns({"one by one": lambda w=work: w(False), "together": lambda w=work: w(True)}, 3)
        chosen = Trainer.of(objective, limit, recipe, None, starts[0]).together
        far = max(distance(p, q) / norm(p) for p, q in zip(ends[False], ends[True], strict=True))
        gain = common.ratio(times["one by one"], times["together"])
        print(
            f"    {name:26s} {gain:5.2f}   difference {far:.0e}   chosen: {'together' if chosen else 'one by one'}",
            flush=True,
        )


def permutation() -> None:
    """Appendix D.1: what the string says above and below 1/12."""
    example = im.counterexamples.permutation()
    for level in (0.3, 0.2, 0.1, 0.08, 0.03, 0.01):
        method = im.StringSampling(level, recipe=im.Recipe(lr=0.01, steps=3000, batch=3, check=20))
        found = im.connect(example.objective, *example.minima, method)
        signs = "".join("+" if example.side(p) > 0 else "-" for p in found.path.knots)
        stats = found.stats
        print(
            f"  {level:5.2f}  {found.outcome.name:24s} beads {stats['beads']:2d}  max {stats['maximum']:.4f}  {signs}"
        )


def resume(kills: int = 4) -> None:
    """A search in another process, killed at random moments and started again, gives the same string bit for bit."""
    if "--worker" in sys.argv:
        folder = Path(sys.argv[-1])
        _save(_search(FolderMemory(folder / "state", "benchmark", steps=7)), folder / "path.safetensors")
        return
    alone = _search(forget)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "resume", "--worker", folder]
        state, killed = Path(folder) / "state", 0
        while True:
            before = _newest(state)
            worker = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
            while worker.poll() is None and _newest(state) == before:
                time.sleep(0.02)
            if killed == kills or worker.poll() is not None:
                worker.wait()
                break
            time.sleep(random.uniform(0, 0.5))
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            killed += 1
        again = im.load_connection(Path(folder) / "path.safetensors")
    same = all(equal(p, q) for p, q in zip(alone.path.knots, again.path.knots, strict=True))
    what = f"{len(alone.path)} segments, {alone.stats['gradient_steps']} steps, {alone.outcome.name}"
    print(f"  killed {killed} times; {what}; equal bit for bit: {same}")
    if not same:
        raise SystemExit(1)


def _newest(folder: Path) -> int:
    """When a file in the folder was written last; 0 where there is none."""
    return max((f.stat().st_mtime_ns for f in folder.glob("*.safetensors")), default=0)


def _search(memory: Memory) -> im.Connection:
    curve, _ = CURVES["quadratic"]
    x = torch.linspace(0, 1, 64, dtype=torch.float64)[:, None]
    data = (x, curve(x))
    a, b = (_trained_curve(data, 104 + k, 1e-4) for k in (0, 1))
    method = im.StringSampling(1e-4, recipe=im.Recipe(lr=0.005, steps=5000, batch=16, check=20))
    return im.connect(im.Objective(_sigmoids(0), "mse", data), a, b, method, memory=memory)


def _save(found: im.Connection, path: Path) -> None:
    im.save(found, path)


def main() -> None:
    parts = {
        "polynomials": lambda: [polynomial(name) for name in CURVES],
        "batching": batching,
        "mnist": mnist,
        "permutation": permutation,
        "resume": resume,
    }
    wanted = [name for name in parts if name in sys.argv[1:]] or list(parts)
    if "--worker" not in sys.argv:
        common.start("Strings below a threshold")
    else:
        torch.set_num_threads(1)
    for name in wanted:
        parts[name]()


if __name__ == "__main__":
    main()
