"""How low is the straight line between aligned networks, and what does the alignment cost?

    python benchmarks/alignment.py --cpu

Two perceptrons 784-512x3-10 of other seeds, Adam, 5 epochs on the first 20,000 images of MNIST. Excess: the largest
loss at 41 points minus that of the larger end; "held out": on the 10,000 images behind these.
"""

from __future__ import annotations

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
    a, b = (trained(module, x[:20_000], y[:20_000], seed, epochs=5) for seed in (0, 1))

    def row(name: str, method: im.Connector) -> None:
        measured = im.profile(objective, im.connect(objective, a, b, method), 41, test=test)
        assert measured.test is not None
        excess, held_out = (p.barriers["loss"].excess for p in (measured, measured.test))
        print(f"  {name:36} excess {excess:.4f}, held out {held_out:.4f}", flush=True)

    row("straight line", im.Linear())
    row("renormalised", im.Renormalised())
    im.align(objective, a, b, im.Given())  # derives the structure, before the clock starts
    for name, matching in MATCHINGS.items():
        begin = clock()
        found = im.align(objective, a, b, matching)
        seconds = clock() - begin
        (run,) = found.runs
        print(f"  {name}: {seconds:.2f} s, similarity {run.similarity:.2f}, function {found.function_error:.0e}")
        order = im.Given(found.permutations)
        row(f"{name}, aligned", im.Aligned(matching=order))
        row(f"{name}, aligned and renormalised", im.Aligned(im.Renormalised(), order))


if __name__ == "__main__":
    main()
