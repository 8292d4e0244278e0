"""What does screening in bfloat16 gain on a segment on which every layer moves?"""

from __future__ import annotations

import common
import torch

import isthmus as im
from isthmus.evaluate.screen import bf16_pays
from isthmus.paths import Curve

POINTS = 61


def main() -> None:
    common.start(f"Screening in bfloat16, straight line between two trained networks, {POINTS} points")
    x, y = common.data()
    module = common.perceptron()
    a, b = (common.trained(module, x, y, seed) for seed in (1, 2))
    objective = im.Objective(module, data=(x, y))
    segment = Curve((a, b))
    path = im.Path((segment,))
    batch = common.good_batch(module, segment, x, y)
    ts = [k / (POINTS - 1) for k in range(0, POINTS, 6)]
    times = common.in_turns(
        {
            "screened": lambda: im.profile(objective, path, POINTS, screen="bf16"),
            "exact": lambda: im.profile(objective, path, POINTS),
            "loop": lambda: common.careful(module, segment, ts, x, y, batch),
        },
        3,
    )
    loops = [t * POINTS / len(ts) for t in times["loop"]]
    screened, exact = im.profile(objective, path, POINTS, screen="bf16"), im.profile(objective, path, POINTS)
    speed = common.gflops(dtype=torch.bfloat16) / common.gflops()
    print(f"  bfloat16 is {speed:.1f} times as fast in a large product; found to pay: {bf16_pays(objective, a)}")
    print(f"  {int(screened.confirmed.sum())} of {POINTS} points confirmed, margin {screened.margin}")
    print(f"  maxima: {screened.max:.6f} and {exact.max:.6f}")
    common.report(
        [
            ("times the careful loop", common.ratio(loops, times["screened"]), 3 if speed > 3 else 1),
            ("times our own profile in float32", common.ratio(times["exact"], times["screened"]), 1),
        ]
    )


if __name__ == "__main__":
    main()
