"""Random modules, weights, paths and losses against their certificates: nothing that is proved may be false.

``python -m tests.certify.attack FIRST COUNT [FILE]`` tries the modules of COUNT seeds, several paths each, and prints
what it found, and at how many points a loss was held against its bound: as many seeds as there are blocks hold every
block. With a FILE, what was done is kept there, and the same command goes on. The tests run a few of them.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from random import Random
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.certify.affine import Interval
from isthmus.certify.kernel import Kernel
from isthmus.errors import InputError, IsthmusError, UnsupportedError
from isthmus.params import Params
from tests.certify.blocks import BLOCKS

F64 = torch.float64
OUTPUTS = 18
"""Points at which every entry of the outputs is held against its form."""
GRID = 1025
"""Points of a path at which the loss is held against its bound, beside others."""
PATHS = 6
"""Paths per module: reading its graph is what takes long."""


class Stack(nn.Module):
    """A layer, blocks, a layer; the outputs are logarithms of probabilities where a loss asks for them."""

    def __init__(self, blocks: list[nn.Module], classes: int, logs: bool, shut: bool) -> None:
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(5, 12), nn.ModuleList(blocks), nn.Linear(12, classes)
        self.logs, self.shut = logs, shut

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).view(-1, 3, 4)
        for block in self.blocks:
            h = block(h)
        h = h.flatten(1)
        z = self.last(h.tanh() if self.shut else h)
        return z.log_softmax(-1) if self.logs else z


LOSSES = (
    "cross_entropy", "weighted", "smooth", "ignored", "soft", "mse", "l1", "huber", "hinge", "margins", "nll", "kl",
    "bce_with_logits", "sum",
)  # fmt: skip


def _loss(name: str, n: int, classes: int, x: Tensor, g: torch.Generator) -> tuple[Any, Tensor]:
    """A loss and its targets."""
    y, real = torch.randint(0, classes, (n,), generator=g), torch.randn(n, classes, generator=g, dtype=F64).to(x.dtype)
    soft = real.double().softmax(1).to(x.dtype)
    if name == "ignored":
        y[1:] = torch.where(torch.rand(n - 1, generator=g) < 0.3, -100, y[1:])
    return {
        "weighted": (im.CrossEntropy(weight=[0.0, 3.0, 0.5, 1.0][:classes] if classes < 5 else None), y.clamp(min=1)),
        "smooth": (im.CrossEntropy(label_smoothing=0.2), y), "ignored": ("cross_entropy", y),
        "soft": ("cross_entropy", soft), "mse": ("mse", real), "l1": ("l1", real), "huber": ("huber", real.round()),
        "hinge": ("hinge", real.sign()), "margins": ("hinge", y), "nll": ("nll", y), "kl": ("kl", soft),
        "bce_with_logits": ("bce_with_logits", (soft > 0.3).to(x.dtype)),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), y),
    }.get(name, ("cross_entropy", y))  # fmt: skip


def _points(module: nn.Module, count: int, random: Random, g: torch.Generator) -> list[Params]:
    """Control points: all fresh, or a little apart; a tensor or two of odd sizes; some tensors that stay."""
    near, odd = random.choice([None, 0.3, 1e-2, 1e-6]), random.random() < 0.3
    names = list(module.state_dict())
    sizes = {k: 10.0 ** random.uniform(-40, 30) for k in random.sample(names, min(2, len(names)))} if odd else {}
    usual, still = random.choice([0.1, 0.5, 1.0, 3.0]), {k for k in names if random.random() < 0.2}
    start: Params = {}
    points = []
    for i in range(count):
        point = {}
        for k, v in module.state_dict().items():
            if not v.is_floating_point():
                point[k] = v
                continue
            fresh = torch.randn(v.shape, generator=g, dtype=F64)
            fresh = (fresh.abs() + 0.1 if k.endswith("running_var") else fresh * usual) * sizes.get(k, 1.0)
            if i and (k in still or near is not None):
                fresh = start[k] if k in still else start[k] * (1 + (near or 0.0) * fresh.sign() * random.random())
            point[k] = fresh
        start = start or point
        points.append({k: v.to(module.state_dict()[k].dtype) for k, v in point.items()})
    return points


@dataclass
class Attack:
    """What was tried, and what came of it."""

    told: Counter[str] = field(default_factory=Counter)
    false: list[str] = field(default_factory=list)
    measured: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    entries: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        counts = {"told": dict(self.told), "measured": dict(self.measured)}
        return counts | {"false": self.false, "samples": self.samples, "entries": self.entries}

    def add(self, row: dict[str, Any]) -> None:
        """What another one found, from its plain values."""
        self.told.update(row["told"])
        self.measured.update(row["measured"])
        self.false += row["false"]
        self.samples += row["samples"]
        self.entries += row["entries"]

    def one(self, seed: int, names: list[str] | None = None, paths: int = PATHS) -> None:
        """One module, and several paths through its weights."""
        random, g = Random(seed), torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        names = names or _blocks(seed, random)
        loss, classes = random.choice(LOSSES), random.choice([2, 4, 4])
        dtype = random.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
        module = (
            Stack([BLOCKS[k]() for k in names], classes, loss in ("nll", "kl"), random.random() < 0.3).to(dtype).eval()
        )
        n = random.choice([1, 2, 5, 12, 50])
        x = torch.randn(n, 5, generator=g, dtype=F64) * random.choice([1, 1, 1, 3])
        x = (x.round() if random.random() < 0.3 else x).to(dtype)  # ties, and zeros
        if n > 1 and random.random() < 0.2:
            x[1] = 0
        told = f"seed {seed} {names} {loss} {dtype} n={n}"
        try:
            objective = im.Objective(module, *_given(_loss(loss, n, classes, x, g), x))
        except IsthmusError as e:
            self.told[f"no objective: {type(e).__name__}"] += 1
            return
        for i in range(paths):
            points = _points(module, random.choice([2, 2, 2, 3, 4]), random, g)
            self.path(objective, points, random, f"{told} path {i}")

    def path(self, objective: im.Objective, points: list[Params], random: Random, told: str) -> None:
        """One certificate, if there is one, against samples."""
        path = im.Path((im.Curve(tuple(points)),))
        try:
            model, budget = random.choice(["box", "chord"]), random.choice([0.1, 1, 4, 12])
            c = im.certify(objective, path, random.choice([0.5, 0.05, 0.01]), model=model, budget=budget)
        except IsthmusError as e:
            self.told[type(e).__name__] += 1
            if not isinstance(e, (InputError, UnsupportedError)):
                self.false.append(f"{told}: {str(e)[:200]}")
            return
        row = c.segments[0]
        self.told[row.claim] += 1
        if not c.proved:
            self.measured[row.why.split("nonlinear in t; ")[-1][:110]] += 1
            return
        kernel = Kernel(objective, path)
        seen = _samples(kernel, c, random)
        self.samples += len(seen)
        self.false += [f"{told}: {p}" for p in _contradicted(kernel, c, seen)]
        if row.claim == "bounded":
            self.entries += OUTPUTS * kernel.wide.outputs(kernel.point(0, 0.5)).numel()
            self.false += [f"{told}: {p}" for p in _outside(kernel, random)]


def _blocks(seed: int, random: Random) -> list[str]:
    """One block after the other with the seeds, beside others."""
    names = [list(BLOCKS)[seed % len(BLOCKS)], *random.choices(list(BLOCKS), k=random.choice([0, 0, 0, 1, 1, 2]))]
    random.shuffle(names)
    return names


def _given(pair: tuple[Any, Tensor], x: Tensor) -> tuple[Any, tuple[Tensor, Tensor]]:
    return pair[0], (x, pair[1])


def _samples(kernel: Kernel, c: im.Certificate, random: Random) -> dict[float, tuple[float, float]]:
    """Loss and error at many points: a grid, by the engine, which takes several at once; ends and middles; maxima."""
    wide, intervals = kernel.wide, c.segments[0].intervals or ((0.0, 1.0, 0.0),)
    seen = {t: (loss, error) for t, loss, error in kernel.samples(0, GRID)}
    at = [random.random() for _ in range(8)]
    at += [
        v
        for start, end, _ in random.sample(intervals, min(12, len(intervals)))
        for v in (start, end, (start + end) / 2)
    ]
    seen |= {t: wide.measure(kernel.point(0, t)) for t in at}
    for t in sorted(seen, key=lambda t: -seen[t][0])[:2]:
        seen |= _climb(lambda t: wide.measure(kernel.point(0, t)), t, 1 / GRID)
    return seen


def _contradicted(kernel: Kernel, c: im.Certificate, seen: dict[float, tuple[float, float]]) -> Iterator[str]:
    """Samples above the bound of the segment, or of the sub-interval that they lie in."""
    row = c.segments[0]
    intervals = row.intervals or ((0.0, 1.0, row.bound),)
    for t, (value, error) in seen.items():
        bound = min([row.bound, *(b for start, end, b in intervals if start <= t <= end)])
        if not isfinite(value) or (value > bound and value > bound + _noise(kernel, t)):
            yield f"the loss at {t} is {value!r}, above {bound!r}"
            return
        if row.error_bound is not None and not error <= row.error_bound + 1e-12:
            yield f"the error at {t} is {error}, above {row.error_bound}"
            return


def _shaken(point: Params, seed: int) -> Params:
    """The point off by a few ulps: how much its loss changes is what the evaluation of a sample may round away."""
    g = torch.Generator().manual_seed(seed)
    return {
        k: v * (1 + 2.0**-52 * torch.randint(-2, 3, v.shape, generator=g)) if v.is_floating_point() else v
        for k, v in point.items()
    }


def _noise(kernel: Kernel, t: float) -> float:
    point = kernel.point(0, t)
    value = kernel.wide.loss(point)
    return 4 * max(abs(kernel.wide.loss(_shaken(point, seed)) - value) for seed in range(6)) if isfinite(value) else 0.0


def _stray(kernel: Kernel, t: float) -> Tensor:
    point = kernel.point(0, t)
    z = kernel.wide.outputs(point)
    return 4 * torch.stack([(kernel.wide.outputs(_shaken(point, seed)) - z).abs() for seed in range(6)]).amax(0)


def _climb(f: Callable[[float], tuple[float, float]], t: float, width: float) -> dict[float, tuple[float, float]]:
    """Ternary search for a maximum."""
    low, high, seen = max(t - width, 0.0), min(t + width, 1.0), {}
    for _ in range(14):
        p, q = low + (high - low) / 3, high - (high - low) / 3
        seen |= {p: f(p), q: f(q)}
        low, high = (p, high) if seen[p][0] < seen[q][0] else (low, q)
    return seen


def _outside(kernel: Kernel, random: Random) -> Iterator[str]:
    """Outputs that leave their forms, entry by entry."""
    reading = kernel.bounds(0).reading
    for width in (0.2, 1e-3):
        start = random.random() * (1 - width)
        interval = Interval.between(start, start + width)
        parts = [z.settled() for z, _ in reading.outputs(interval)]
        for k in range(9):
            t = min(start + width * k / 8, start + width)
            z = kernel.wide.outputs(kernel.point(0, t))
            if away := _away(parts, z, (t - interval.middle) / interval.half, lambda t=t: _stray(kernel, t)):
                yield f"an output at {t} is {away} outside its form"
                return


def _away(parts: list[Any], z: Tensor, s: float, stray: Callable[[], Tensor]) -> str:
    done = 0
    for form in parts:
        own = z[done : done + len(form.centre)]
        done += len(own)
        if not bool(form.size().isfinite().all()):
            continue
        value = form.centre if form.slope is None else form.centre + s * form.slope
        off = (own - value).abs() - form.radius
        if not bool(off.max() <= 0) and not bool((off <= stray()[done - len(own) : done]).all()):
            return f"{float(off.max())!r} of {float(own.abs().max())!r}"
    return ""


def main(first: int, count: int, kept: Path | None) -> None:
    """Try the seeds from `first` on, those in the file `kept` excepted, to which every seed that is done is added."""
    rows = {} if kept is None or not kept.exists() else dict(map(_row, kept.read_text(encoding="utf-8").splitlines()))
    total = Attack()
    start = process_time()
    for seed in range(first, first + count):
        if seed not in rows:
            own = Attack()
            own.one(seed)
            rows[seed] = own.to_dict()
            if kept is not None:
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"seed": seed, **rows[seed]}) + "\n")
        total.add(rows[seed])
        for line in rows[seed]["false"][:2]:
            print("FALSE", line, flush=True)
        if (seed - first) % 20 == 19:
            print(seed + 1 - first, "modules", total.samples, "samples", dict(total.told), flush=True)
    print(f"{total.samples} samples, {total.entries} entries of outputs, {len(total.false)} false", dict(total.told))
    print(f"{process_time() - start:.0f} processor seconds of this run")
    for why, k in total.measured.most_common(12):
        print(k, why)


def _row(line: str) -> tuple[int, dict[str, Any]]:
    row = json.loads(line)
    return row.pop("seed"), row


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
