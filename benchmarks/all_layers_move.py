"""What does a segment cost on which every layer moves, where little can be saved?"""

from __future__ import annotations

from collections.abc import Callable

import common
import torch
from torch import nn

import isthmus as im
from isthmus.paths import Curve, Segment

POINTS = 13


class Branching(nn.Module):
    """The same perceptron, in a form that cannot be exported: nothing can be saved on it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = common.perceptron()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x if float(x[0, 0]) < 1e9 else -x)


def small_convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)),
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1568, 128), nn.ReLU(), nn.Linear(128, 10),
    ).eval()  # fmt: skip


def one(name: str, make: Callable[[], nn.Module], n: int, *, image: bool = False) -> None:
    x, y = common.data(n)
    x = x.unflatten(1, (28, 28)) if image else x
    module = make()
    points = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        points.append({k: v.detach().clone() for k, v in make().eval().state_dict().items()})
    segment: Segment = Curve(tuple(points))
    objective = im.Objective(module.eval(), data=(x, y))
    path = im.Path((segment,))
    batch = common.good_batch(module, segment, x, y)
    ts = [k / (POINTS - 1) for k in range(POINTS)]
    peaks: list[float] = []
    times = common.in_turns(
        {
            "ours": lambda: im.profile(objective, path, POINTS),
            "loop": lambda: common.careful(module, segment, ts, x, y, batch),
            "loader": lambda: common.over_loader(module, segment, ts[::4], x, y),
            "published": lambda: common.published(module, segment, ts[::4], x, y),
            "peak": lambda: peaks.append(common.gflops()),
        },
        3,
    )
    print(f" {name}, {n} examples, {POINTS} points (good batch {batch})")
    loader, published = ([t * POINTS / len(ts[::4]) for t in times[k]] for k in ("loader", "published"))
    rows = [
        ("times the careful loop", common.ratio(times["loop"], times["ours"]), 0.95),
        ("times the loop over a DataLoader, batch 100", common.ratio(loader, times["ours"]), 1),
        (
            "times the loop of published codes (weights per batch, gradients)",
            common.ratio(published, times["ours"]),
            4 if name == "perceptron" else 1,
        ),
    ]
    if not image:
        work = 2 * sum(v.numel() for v in points[0].values() if v.dim() > 1) * n * POINTS / 1e9
        share = [work / t / p for t, p in zip(times["loop"], peaks[1:], strict=True)]
        ours = [work / t / p for t, p in zip(times["ours"], peaks[1:], strict=True)]
        rows.append(("the loop's work per second / measured peak", sorted(share)[len(share) // 2], 0))
        rows.append(("the same work in our time / measured peak", sorted(ours)[len(ours) // 2], 0.75))
    common.report(rows)


def main() -> None:
    common.start("All layers move: the engine against one pass per point")
    one("perceptron", common.perceptron, common.EXAMPLES)
    one("not exportable", Branching, common.EXAMPLES)
    one("convnet", small_convnet, 2000, image=True)


if __name__ == "__main__":
    main()
