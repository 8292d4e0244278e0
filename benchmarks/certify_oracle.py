"""Our bounds over sub-intervals of a line against those of auto_LiRPA (Xu et al. 2020), which knows nothing of ours.

auto_LiRPA bounds outputs where every weight moves on its own within an interval; here all move with one t, so ours
should be nearer, and neither may be below a sample. Biases stay. Printed are bounds on the mean loss (our two models)
and the largest loss of 65 samples. It is not among our requirements; release 0.3 asks for torch below 1.13, and runs
with 2.13 where `_mended` puts back what torch and numpy left out (in an environment of its own):

    pip install --no-deps auto-LiRPA==0.3
    pip install torch==2.13.0 numpy scipy safetensors packaging appdirs graphviz pyyaml tqdm
    PYTHONPATH=src python benchmarks/certify_oracle.py
"""

from __future__ import annotations

import argparse
import logging
import sys
import types
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus as im
from isthmus.certify.kernel import Kernel

WIDTHS = (1 / 8, 1 / 64, 1 / 512)
NETS: dict[str, tuple[list[int], type[nn.Module]]] = {
    "8-16-16-4, ReLU": ([8, 16, 16, 4], nn.ReLU),
    "8-16-16-16-4, ReLU": ([8, 16, 16, 16, 4], nn.ReLU),
    "8-16-16-4, tanh": ([8, 16, 16, 4], nn.Tanh),
    "8-16-16-4, sigmoid": ([8, 16, 16, 4], nn.Sigmoid),
}


def _mended() -> None:
    """What auto_LiRPA 0.3 imports from places that numpy and torch have left."""
    sets: Any = types.ModuleType("numpy.lib.arraysetops")
    sets.isin = np.isin
    sys.modules["numpy.lib.arraysetops"] = sets
    import torch.onnx.symbolic_helper as helper

    helper._set_opset_version = lambda version: None  # type: ignore[attr-defined]
    import auto_LiRPA  # type: ignore[import-not-found]

    auto_LiRPA.BoundedModule._named_members = nn.Module._named_members
    torch._C.Node.__getitem__ = lambda node, key: getattr(node, node.kindOf(key))(key)  # type: ignore[attr-defined]


class Boxed(nn.Module):
    """A perceptron whose weights are intervals, for auto_LiRPA."""

    def __init__(self, low: im.Params, high: im.Params, activation: type[nn.Module]) -> None:
        from auto_LiRPA import BoundedParameter  # type: ignore[import-not-found]
        from auto_LiRPA.perturbations import PerturbationLpNorm  # type: ignore[import-not-found]

        super().__init__()
        self.activation = activation()
        self.names = list(low)
        for k in low:
            moving = bool((low[k] != high[k]).any())
            within = PerturbationLpNorm(norm=np.inf, x_L=low[k], x_U=high[k])
            # its linear bounds take the first axis for one of examples, which a weight has not
            flat = low[k].reshape(1, -1), high[k].reshape(1, -1)
            within.get_input_bounds = lambda x, A, flat=flat: flat
            middle = (low[k] + high[k]) / 2
            held = BoundedParameter(middle, within) if moving else nn.Parameter(middle)
            setattr(self, k.replace(".", "_"), held)

    def forward(self, x: Tensor) -> Tensor:
        pairs = list(zip(self.names[::2], self.names[1::2], strict=True))
        for i, pair in enumerate(pairs):
            weight, bias = (getattr(self, k.replace(".", "_")) for k in pair)
            x = F.linear(x, weight, bias)
            x = x if i + 1 == len(pairs) else self.activation(x)
        return x


def theirs(a: im.Params, b: im.Params, start: float, end: float, activation: type[nn.Module], data: Any) -> float:
    """The mean loss at the worst outputs within auto_LiRPA's bounds; the better of its interval and its linear ones."""
    from auto_LiRPA import BoundedModule  # type: ignore[import-not-found]

    x, y = data
    ends = [{k: torch.lerp(a[k], b[k], t) for k in a} for t in (start, end)]
    low, high = ({k: f(*(p[k] for p in ends)) for k in a} for f in (torch.minimum, torch.maximum))
    options = {"sparse_intermediate_bounds": False, "sparse_features_alpha": False, "sparse_spec_alpha": False}
    module = BoundedModule(Boxed(low, high, activation), x, bound_opts=options, verbose=False)
    each = torch.eye(int(y.max()) + 1, dtype=x.dtype).expand(len(x), -1, -1)
    found = []
    for method in ("IBP", "CROWN-IBP", "backward"):
        below, above = (v.detach() for v in module.compute_bounds(x=(x,), C=each, method=method))
        at = y.unsqueeze(1)
        worst = above.scatter(1, at, below.gather(1, at))
        found.append(float(F.cross_entropy(worst, y)))
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="pairs of networks of every kind")
    seeds = parser.parse_args().seeds
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    _mended()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    below = 0
    print("network, width: largest sample, ours (box), ours (chord), auto_LiRPA; means of", seeds, "pairs")
    for name, (sizes, activation) in NETS.items():
        for width in WIDTHS:
            rows = [_one(sizes, activation, width, seed) for seed in range(seeds)]
            below += sum(bound < row[0] for row in rows for bound in row[1:])
            print(f"{name}, 1/{1 / width:.0f}:", "  ".join(f"{sum(c) / seeds:.5g}" for c in zip(*rows, strict=True)))
    print(below, "bounds below a sample")


def _one(sizes: list[int], activation: type[nn.Module], width: float, seed: int) -> tuple[float, float, float, float]:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in pairwise(sizes):
        layers += [nn.Linear(n, m), activation()]
    module = nn.Sequential(*layers[:-1]).double()
    a, b = ({k: torch.randn_like(v) / v.shape[-1] ** 0.5 for k, v in module.state_dict().items()} for _ in range(2))
    b |= {k: v for k, v in a.items() if k.endswith("bias")}
    data = torch.randn(64, sizes[0]).double(), torch.randint(0, sizes[-1], (64,))
    objective, path = im.Objective(module, data=data), im.Path.through([a, b])
    kernel, start = Kernel(objective, path), 0.5
    ours = [kernel.bound(0, start, start + width, model).loss for model in ("box", "chord")]
    seen = max(objective.loss(path.at(start + width * k / 64)) for k in range(65))
    return seen, ours[0], ours[1], theirs(a, b, start, start + width, activation, data)


if __name__ == "__main__":
    main()
