"""How low is the straight line between aligned networks, and what does the alignment cost?

    python benchmarks/alignment.py --cpu
    python benchmarks/alignment.py --cpu --many
    python benchmarks/alignment.py --cpu --figure docs/alignment.png

Two perceptrons 784-512x3-10 of other seeds, Adam, 5 epochs on the first 20,000 images of MNIST. Excess: the largest
loss at 41 points minus that of the larger end; "held out": on the 10,000 images behind these. ``--many``: four of them
(batches of 128) at once, their lines at 11 points and their mean. ``--figure``: the picture of two of these.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from common import clock, data, perceptron, start, trained

import isthmus as im

MATCHINGS = {
    "weights, identity": im.WeightMatching("identity"),
    "weights, forward": im.WeightMatching(),
    "weights, barycentre": im.WeightMatching("barycentre"),
    "activations": im.ActivationMatching(),
}


def main() -> None:
    start("How low is the line between aligned networks?")
    x, y = data(30_000)
    module = perceptron(hidden=3, width=512)
    objective, test = (im.Objective(module, data=(x[s], y[s])) for s in (slice(0, 20_000), slice(20_000, None)))

    def networks(count: int, batch: int) -> list[im.Params]:
        made = [trained(module, x[:20_000], y[:20_000], seed, 5, batch) for seed in range(count)]
        im.align(objective, made[0], made[1], im.Given())  # derives the structure, before the clock starts
        return made

    if "--figure" in sys.argv:
        draw(objective, test, networks(2, 128), sys.argv[sys.argv.index("--figure") + 1])
    elif "--many" in sys.argv:
        together(objective, test, networks(4, 128))
    else:
        pair(objective, test, networks(2, 250))


def pair(objective: im.Objective, test: im.Objective, ends: Sequence[im.Params]) -> None:
    """Every matching on one pair."""
    a, b = ends

    def row(name: str, method: im.Connector) -> None:
        measured = im.profile(objective, im.connect(objective, a, b, method), 41, test=test)
        assert measured.test is not None
        excess, held_out = (p.barriers["loss"].excess for p in (measured, measured.test))
        print(f"  {name:36} excess {excess:.4f}, held out {held_out:.4f}", flush=True)

    row("straight line", im.Linear())
    row("renormalised", im.Renormalised())
    for name, matching in MATCHINGS.items():
        begin = clock()
        found = im.align(objective, a, b, matching)
        seconds = clock() - begin
        (run,) = found.runs
        print(f"  {name}: {seconds:.2f} s, similarity {run.similarity:.2f}, function {found.function_error:.0e}")
        order = im.Given(found.permutations)
        row(f"{name}, aligned", im.Aligned(matching=order))
        row(f"{name}, aligned and renormalised", im.Aligned(im.Renormalised(), order))


def together(objective: im.Objective, test: im.Objective, networks: Sequence[im.Params]) -> None:
    """Four networks at once: each to the first, and all to one another."""

    def star(matching: im.Matching) -> tuple[im.Alignment, ...]:
        return tuple(im.align(objective, networks[0], one, matching) for one in networks)

    ways: dict[str, Callable[[], tuple[im.Alignment, ...]]] = {
        f"{kind}, {name}": partial(way, matching)
        for name, matching in (("weights", im.WeightMatching()), ("activations", im.ActivationMatching()))
        for kind, way in (("star", star), ("all", partial(im.align_many, objective, networks)))
    }
    for network in networks:
        print(f"  one network: loss {objective.loss(network):.4f}, held out {test.loss(network):.4f}")

    def row(name: str, found: Sequence[im.Params], seconds: float) -> None:
        lines = im.StraightLines.between(objective, found, test=test, num_points=11)
        told = ", ".join(f"{k} {v:.4f}" for k, v in lines.scores.items())
        print(
            f"  {name:18} excess: mean {lines.mean:.4f}, max {lines.max:.4f}; the mean: {told}; {seconds:.1f} s",
            flush=True,
        )

    row("naive", networks, 0.0)
    for name, way in ways.items():
        begin = clock()
        found = way()
        seconds = clock() - begin
        row(name, [one.target for one in found], seconds)


def draw(objective: im.Objective, test: im.Objective, ends: Sequence[im.Params], file: str) -> None:
    """Naive and aligned, with what moved and how the search went."""
    from isthmus.plot.alignment import StoredAlignment, alignment_figure
    from isthmus.plot.figures import save_figure

    found = im.align(objective, ends[0], ends[1], im.WeightMatching("activations"))
    lines = im.aligned_lines(objective, ends, found, test=test)
    print(f"  {lines!r}: {save_figure(alignment_figure(StoredAlignment.of(lines.to_dict())), file)}")


if __name__ == "__main__":
    main()
