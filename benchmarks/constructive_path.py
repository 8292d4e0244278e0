"""How much faster is a constructive path of a 784-500x5-10 perceptron measured than by one pass per point?"""

from __future__ import annotations

import common

import isthmus as im

POINTS = 60


def main() -> None:
    common.start(f"Constructive path (dropout, theorem 1), {POINTS} points per segment")
    x, y = common.data()
    module = common.perceptron()
    a, b = (common.trained(module, x, y, seed, epochs=1) for seed in (1, 2))
    objective = im.Objective(module, data=(x, y))
    path = im.connect(objective, a, b, im.Dropout(masks=2)).path
    n = len(path)
    batch = common.good_batch(module, path.segments[0], x, y)
    middle = [path.segments[i] for i in (0, n // 2, n - 1)]

    def loop() -> None:
        for segment in middle:
            common.careful(module, segment, [0.3, 0.7], x, y, batch)

    def slow() -> None:
        common.published(module, middle[0], [0.3], x, y)

    times = common.in_turns({"ours": lambda: im.profile(objective, path, POINTS), "loop": loop, "published": slow}, 3)
    evaluations = n * (POINTS - 1) + 1
    loops = [t / 6 * evaluations for t in times["loop"]]
    published = [t * evaluations for t in times["published"]]
    print(f"  {n} segments, {evaluations} points; the loops are extrapolated from 6 and 1 of them (batch {batch})")
    common.report(
        [
            ("times the careful loop", common.ratio(loops, times["ours"]), 35),
            ("times the loop of published codes", common.ratio(published, times["ours"]), 35),
        ]
    )
    profile = im.profile(objective, path, 4)
    check = [common.careful(module, path.segments[i], [1 / 3], x, y, batch)[0][0] for i in range(n)]
    far = max(abs(float(profile.loss[3 * i + 1]) - c) / c for i, c in enumerate(check))
    print(f"  largest relative difference of the losses: {far:.1e}")


if __name__ == "__main__":
    main()
