"""Is ``Auto`` ever much dearer than the cheapest single method that reaches the same level?

    python benchmarks/auto.py [--tuning] [--only NAME] [--cache FOLDER]

Ten pairs on scikit-learn's digits: perceptrons, convolutional networks with and without BatchNorm, transformers; twins
that were fine-tuned from one base, and independent seeds. The excess asked for is 5 % of the larger end. A single one
costs what ``connect`` costs (trained curves stop at the level), and the check that Auto makes too: the loss at 33
points of the path. Costs are processor seconds, in one thread, with a fresh objective for each run, so that each reads
the network's graph itself. ``--tuning``: other pairs, on which the order of the steps of Auto was chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import process_time

import torch
from torch import Tensor, nn

import isthmus as im
from isthmus import pipeline
from isthmus.connectors.auto.check import EndLosses, check, usual
from isthmus.models import seeded

SHARE = 0.05
"""The excess asked for, in units of the larger end's loss."""


class Transformer(nn.Module):
    """Rows of pixels as words: blocks with the norm first, and the mean of the words."""

    def __init__(self, width: int = 32, blocks: int = 1) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(0.1 * torch.randn(8, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.read = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of images [n, 1, 8, 8]."""
        x = self.embed(x.flatten(1, 2)) + self.place
        for block in self.blocks:
            x = block(x)
        return self.read(x.mean(1))


def perceptron(*widths: int) -> Callable[[], nn.Module]:
    """Hidden layers of those widths, with ReLU."""

    def make() -> nn.Module:
        sizes = [64, *widths, 10]
        layers = [part for n, m in pairwise(sizes) for part in (nn.Linear(n, m), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *layers[:-1])

    return make


def convolutional(width: int, norm: bool = False) -> Callable[[], nn.Module]:
    """Two convolutions and one linear layer, with or without BatchNorm."""

    def make() -> nn.Module:
        def block(n: int, m: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(n, m, 3, stride, 1), *([nn.BatchNorm2d(m)] if norm else []), nn.ReLU()]

        return nn.Sequential(*block(1, width, 1), *block(width, 2 * width, 2), nn.Flatten(), nn.Linear(32 * width, 10))

    return make


@dataclass(frozen=True)
class Pair:
    """Two networks: independent ones, or twins that went on from one base with learning rate `twins`."""

    make: Callable[[], nn.Module]
    seed: int
    twins: float | None = None
    until: float = 0.01

    def ends(self) -> tuple[im.Params, im.Params]:
        """Their weights."""
        if self.twins is None:
            a, b = (self._train(seeded(self.make, s), s, 3e-3, 60) for s in (2 * self.seed, 2 * self.seed + 1))
            return a, b
        base = seeded(self.make, self.seed)
        base.load_state_dict(self._train(base, self.seed, 3e-3, 20, 0.05))
        a, b = (self._train(base, 1000 + 2 * self.seed + k, self.twins, 20) for k in (0, 1))
        return a, b

    def _train(self, module: nn.Module, seed: int, lr: float, epochs: int, until: float | None = None) -> im.Params:
        recipe = im.Recipe(lr=lr, steps=11 * epochs, batch=128)
        return dict(pipeline.train(module, DATA, recipe, seed=seed, target=until or self.until).params)


_DIGITS = im.data.load("digits")
DATA = (_DIGITS.x_train, _DIGITS.y_train)
TUNING = {
    "mlp 48": Pair(perceptron(48), 11),
    "mlp 80x3": Pair(perceptron(80, 80, 80), 12),
    "mlp 400x2": Pair(perceptron(400, 400), 13),
    "mlp 80x3, twins .01": Pair(perceptron(80, 80, 80), 14, 1e-2),
    "conv 12": Pair(convolutional(12), 15),
    "conv 12, BatchNorm": Pair(convolutional(12, True), 16),
    "conv 12, BatchNorm, twins .003": Pair(convolutional(12, True), 17, 3e-3),
    "transformer 24": Pair(lambda: Transformer(24), 18, until=0.03),
    "transformer 24, twins .001": Pair(lambda: Transformer(24), 19, 1e-3, until=0.03),
}
PAIRS = {
    "mlp 100": Pair(perceptron(100), 0),
    "mlp 60x4": Pair(perceptron(60, 60, 60, 60), 1),
    "mlp 256x2": Pair(perceptron(256, 256), 2),
    "mlp 60x4, twins .001": Pair(perceptron(60, 60, 60, 60), 3, 1e-3),
    "mlp 256x2, twins .01": Pair(perceptron(256, 256), 4, 1e-2),
    "conv 16": Pair(convolutional(16), 5),
    "conv 16, BatchNorm": Pair(convolutional(16, True), 6),
    "conv 16, BatchNorm, twins .001": Pair(convolutional(16, True), 7, 1e-3),
    "transformer 32": Pair(lambda: Transformer(32), 8, until=0.03),
    "transformer 32, twins .003": Pair(lambda: Transformer(32), 9, 3e-3, until=0.03),
}


SINGLE: dict[str, Callable[[float], im.Connector]] = {
    "Linear": lambda level: im.Linear(),
    "Aligned": lambda level: im.Aligned(),
    "Aligned(Renormalised)": lambda level: im.Aligned(im.Renormalised()),
    "Bezier": lambda level: im.Bezier(target=level),
    "Aligned(Bezier)": lambda level: im.Aligned(im.Bezier(target=level)),
    "PolyChain": lambda level: im.PolyChain(target=level),
}
"""The single methods, each with its own defaults; the constructions cost more than these on all pairs."""


@dataclass(frozen=True)
class Cost:
    """What a path cost: processor seconds, passes as ``Auto`` counts them, and whether it is low enough."""

    seconds: float
    passes: float
    reached: bool


def single(objective: im.Objective, a: im.Params, b: im.Params, method: im.Connector) -> Cost:
    """One method and the check of ``Auto``, which asks at once whether it is low enough."""
    begin = process_time()
    found = im.connect(objective, a, b, method)
    bn = found.path.bn or usual(objective)
    ends = EndLosses(objective, found.path.start, found.path.end)
    level = max(ends.under(bn)) * (1 + SHARE)
    known = found.stats.get("max", 0.0)
    seen = check(objective, found.path, ends.under(bn), level) if known <= level else None
    n = objective.num_examples
    passes = ends.passes + (found.cost.evaluations or 0) + 3 * (found.cost.gradient_steps or 0) * min(128, n) / n
    passes += 0 if seen is None else seen.passes
    if isinstance(method, im.Aligned):
        passes += (7 if isinstance(method.inner, im.Renormalised) else 2) * min(1000, n) / n
    return Cost(process_time() - begin, passes, seen is not None and seen.reached)


def auto(objective: im.Objective, a: im.Params, b: im.Params) -> tuple[Cost, str]:
    """The ladder, and the method that it ended with."""
    begin = process_time()
    found = im.connect(objective, a, b, im.Auto())
    info = found.info
    last = [row["method"] for row in info.tried if row["reached"]]
    return Cost(process_time() - begin, info.passes, found.outcome.ok), last[0] if last else "none"


def ends_of(name: str, pair: Pair) -> tuple[im.Params, im.Params]:
    """Trained, or kept in the folder of --cache."""
    if "--cache" not in sys.argv:
        return pair.ends()
    file = Path(sys.argv[sys.argv.index("--cache") + 1]) / f"{name.replace(' ', '_')}.pt"
    if not file.exists():
        torch.save(pair.ends(), file)
    return torch.load(file)


def level_of(objective: im.Objective, a: im.Params, b: im.Params) -> float:
    """The target of trained curves."""
    return max(EndLosses(objective, a, b).under(usual(objective))) * (1 + SHARE)


def row(name: str, pair: Pair) -> tuple[float, float]:
    """A line of the table; Auto's cost in units of the cheapest method's: seconds, and passes."""
    a, b = ends_of(name, pair)

    def fresh() -> im.Objective:
        return im.Objective(pair.make().eval(), data=DATA)

    level = level_of(fresh(), a, b)
    costs = {other: single(fresh(), a, b, make(level)) for other, make in SINGLE.items()}
    reached = {other: c for other, c in costs.items() if c.reached}
    own, how = auto(fresh(), a, b)
    said = ", ".join(f"{k} {c.seconds:.2f} s / {c.passes:.0f}" for k, c in reached.items()) or "none"
    print(f"{name:32s} {how:36s} {own.seconds:.2f} s / {own.passes:.0f} passes | reached by: {said}", flush=True)
    if not reached:
        return (0.0, 0.0) if own.reached else (float("inf"), float("inf"))
    seconds, passes = (min(getattr(c, what) for c in reached.values()) for what in ("seconds", "passes"))
    return own.seconds / seconds, own.passes / passes


def main() -> None:
    """The table, and the largest ratios."""
    torch.set_num_threads(1)
    pairs = TUNING if "--tuning" in sys.argv else PAIRS
    if "--only" in sys.argv:
        pairs = {k: v for k, v in pairs.items() if sys.argv[sys.argv.index("--only") + 1] in k}
    single(im.Objective(perceptron(8)(), data=DATA), *ends_of("warm", Pair(perceptron(8), 99, until=1.0)), im.Aligned())
    ratios = {name: row(name, pair) for name, pair in pairs.items()}
    for name, (seconds, passes) in ratios.items():
        print(f"{name:32s} Auto / cheapest: {seconds:.2f} in processor seconds, {passes:.2f} in passes")


if __name__ == "__main__":
    main()
