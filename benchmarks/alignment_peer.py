"""``rebasin`` (PyPI, 0.0.47) beside ``im.align`` on two trained pairs.

    python benchmarks/alignment_peer.py --cpu --keep FOLDER

Needs ``rebasin`` and pairs of ``alignment_acceptance.py`` (trained if FOLDER has none). Both are given the pair and 128
examples or fewer; excess and function are measured alike, by Isthmus, in float64 for the function.
"""

from __future__ import annotations

import copy

import torch
from alignment_acceptance import EVALUATED, PAIRS, POINTS, ends, examples
from common import clock, start
from rebasin import PermutationCoordinateDescent  # pyright: ignore[reportMissingImports]

import isthmus as im
from isthmus.alignment.change import change


def main() -> None:
    start("rebasin beside im.align")
    for name in ("perceptron-512", "VGG-BN"):
        make, kind, _ = PAIRS[name]
        a, b = ends(name)
        objective = im.Objective(make().eval(), data=examples(kind))
        few = objective.subset(EVALUATED)
        objective.structure, objective.program  # noqa: B018 - derived once
        print(f"{name}: naive excess {excess(few, a, b):.4f}")
        for seed in (0, 1):
            begin = clock()
            target = theirs(name, a, b, examples(kind)[0][:128], seed)
            tell(f"rebasin, seed {seed}", few, a, b, target, clock() - begin)
        for matching in (im.WeightMatching("identity"), im.WeightMatching(), im.ActivationMatching()):
            begin = clock()
            target = im.align(objective, a, b, matching).target
            tell(repr(matching), few, a, b, target, clock() - begin)


def theirs(name: str, a: im.Params, b: im.Params, x: torch.Tensor, seed: int) -> im.Params:
    """What rebasin makes of b."""
    torch.manual_seed(seed)
    one, other = (copy.deepcopy(PAIRS[name][0]()).eval() for _ in range(2))
    one.load_state_dict(a)
    other.load_state_dict(b)
    PermutationCoordinateDescent(one, other, x).rebasin()
    return {k: v.detach().clone() for k, v in other.state_dict().items()}


def excess(few: im.Objective, a: im.Params, b: im.Params) -> float:
    """On the line, with statistics of BatchNorm computed again."""
    return im.profile(few, im.Path.through([a, b]), POINTS).excess


def tell(way: str, few: im.Objective, a: im.Params, b: im.Params, target: im.Params, seconds: float) -> None:
    """Print a line."""
    wrong = change(few, b, target, 256)
    loss = f"loss of b {few.loss(b):.3f}, of the target {few.loss(target):.3f}"
    print(f"  {way:38} excess {excess(few, a, target):.4f}, {seconds:.2f} s, function {wrong:.0e}, {loss}", flush=True)


if __name__ == "__main__":
    main()
