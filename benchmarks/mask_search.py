"""How much faster is the half-width search than one full-size masked network and one Brent search per mask?"""

from __future__ import annotations

from typing import Any

import common
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

import isthmus as im
from isthmus.params import Params
from isthmus.stability.dropout.dropped import Dropped
from isthmus.stability.dropout.search import Sought, search
from isthmus.structure.chain import chain_of

MASKS = 200
FEW = 1


def naive(params: Params, x: Tensor, y: Tensor, masks: list[Tensor], first: int) -> tuple[float, float]:
    """One mask: the full-size network with masked layers, run at every scale that Brent's method asks for."""
    names = [k for k in params if k.endswith("weight")]

    def loss(scale: float) -> float:
        h = x
        for l, name in enumerate(names, start=1):
            bias = params[name.replace("weight", "bias")]
            if l == len(names):
                return float(F.cross_entropy(scale * (h @ params[name].T) + bias, y))
            h = F.linear(h, params[name], bias).relu_()
            h = h * masks[l - first] if l >= first else h
        raise AssertionError

    with torch.no_grad():
        found: Any = minimize_scalar(loss, bracket=(0, 1), options={"xtol": 1e-5})
    return float(found.x), float(found.fun)


def main() -> None:
    common.start(f"Half-width search, {MASKS} masks for each of 5 entry layers")
    x, y = common.data()
    module = common.perceptron()
    params = common.trained(module, x, y, 1)
    objective = im.Objective(module, data=(x, y))
    chain = chain_of(objective.program, objective.structure)

    def ours(masks: int, screen: bool | None) -> dict[int, Dropped]:
        g = torch.Generator().manual_seed(0)
        return search(objective, chain, params, Sought(0.5, masks, screen=screen), g)

    def slow() -> None:
        g = torch.Generator().manual_seed(1)
        for first in range(1, 6):
            for _ in range(FEW):
                masks = [2.0 * (torch.randperm(500, generator=g) < 250) for _ in range(first, 6)]
                naive(params, x, y, masks, first)

    ours(10, None)
    rows = []
    for name, screen in (("", None), (", without bfloat16", False)):
        quick = common.timed(lambda screen=screen: ours(MASKS, screen))
        loop = common.timed(slow) * MASKS / FEW
        rows.append((f"times the naive search, extrapolated from {FEW} masks per layer{name}", loop / quick, 20))
    common.report(rows)
    found = ours(MASKS, None)
    again = ours(MASKS, False)
    for i, d in found.items():
        print(f"  entry {i}: loss {d.loss:.6f}, scale {d.scale:.4f}; without bfloat16 {again[i].loss:.6f}")
    d = ours(1, False)[1]
    masks = [torch.zeros(500).index_fill_(0, d.kept[l], d.factors[l]) for l in range(1, 6)]
    print(f"  one mask: ours {d.loss:.8f} at {d.scale:.6f}, naive {naive(params, x, y, masks, 1)}")


if __name__ == "__main__":
    main()
