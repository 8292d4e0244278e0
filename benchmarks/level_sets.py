"""How far above their ends do the paths of Freeman & Bruna 2017 rise, and how many segments do they need?

Proposition 2.2: linear networks 5-n-3 on 40 points, with ridge, between random ends and between local minima; and four
layers without a penalty. Theorem 2.4: its bound and its path between random first layers with their best last layers,
against the width.
"""

from __future__ import annotations

from itertools import pairwise
from time import process_time

import common
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.two_layer_relu.compression import TwoLayers

TRIALS = 15


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_params(module: nn.Module, seed: int) -> im.Params:
    parameters = enumerate(module.named_parameters())
    return {k: normal(*v.shape, seed=seed + i) / v.shape[-1] ** 0.5 for i, (k, v) in parameters}


def minimum(objective: im.Objective, params: im.Params) -> im.Params:
    """A local minimum near `params`, by L-BFGS."""
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    optimizer = torch.optim.LBFGS(leaves.values(), max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-11)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective.batch_loss(leaves, torch.arange(objective.num_examples))
        loss.backward()
        return loss

    optimizer.step(closure)
    return {k: v.detach() for k, v in leaves.items()}


def linear(widths: tuple[int, ...], kappa: float, seed: int) -> im.Objective:
    layers = [nn.Linear(n, m, bias=False) for n, m in pairwise(widths)]
    x = normal(40, widths[0], seed=seed)
    y = x @ normal(widths[0], widths[-1], seed=seed + 1) + 0.3 * normal(40, widths[-1], seed=seed + 2)
    return im.Objective(nn.Sequential(*layers).double(), "mse", (x, y), penalty=im.Ridge(kappa) if kappa else None)


def deep_linear(widths: tuple[int, ...], kappa: float, trained: bool, tolerance: float) -> None:
    sampled, bounds, certified, counts, begin = [], [], [], [], process_time()
    for seed in range(TRIALS):
        objective = linear(widths, kappa, 100 * seed)
        ends = [random_params(objective._materialised(), 100 * seed + k) for k in (10, 20)]
        ends = [minimum(objective, p) for p in ends] if trained else ends
        connection = im.connect(objective, *ends, im.DeepLinear(tolerance=tolerance))
        top = max(objective.loss(p) for p in ends)
        certificate = im.certify(objective, connection.path)
        assert certificate.proved
        sampled.append(im.profile(objective, connection.path, 61).max / top - 1)
        bounds.append(connection.stats.get("excess_bound", 0.0) / top)
        certified.append(certificate.excess / top)
        counts.append(len(connection.path))
    kind = "minima" if trained else "random"
    print(
        f"  {'-'.join(map(str, widths)):10} kappa {kappa:<5g} {kind} ends, tolerance {tolerance:.0e}: "
        f"segments {min(counts)} to {max(counts)}, excess / larger end: sampled {max(sampled):.1e}, by Bernstein "
        f"coefficients {max(bounds):.1e}, certified {max(certified):.1e}; "
        f"{(process_time() - begin) / TRIALS:.2f} s each",
        flush=True,
    )


def random_features(m: int) -> tuple[im.Objective, im.Params, im.Params]:
    """Two random first layers of m rows of length 1, each with its best last layer."""
    module = nn.Sequential(nn.Linear(2, m, bias=False), nn.ReLU(), nn.Linear(m, 1, bias=False)).double()
    x = normal(300, 2, seed=0)
    objective = im.Objective(
        module, "mse", (x, torch.sin(2 * x.sum(1, keepdim=True))), penalty=im.L1(1e-3, ("2.weight",))
    )
    two, ends = TwoLayers(objective), []
    for seed in (1, 2):
        W = normal(m, 2, seed=seed)
        params = {"0.weight": W / W.norm(dim=1, keepdim=True), "2.weight": torch.zeros(1, m, dtype=torch.float64)}
        layer = two.solved(two.readout(params["0.weight"], params), two.read(params))
        ends.append(params | {"2.weight": layer.A[:, :, 0]})
    return objective, ends[0], ends[1]


def main() -> None:
    common.EXAMPLES = 40
    common.start("Level sets of linear networks and of two-layer ReLU networks")
    for n in (4, 6):
        for trained in (False, True):
            for tolerance in (1e-3, 1e-6, 1e-9) if trained else (1e-6,):
                deep_linear((5, n, 3), 0.03, trained, tolerance)
    for widths in ((5, 4, 3), (5, 6, 7, 4, 3)):
        deep_linear(widths, 0.0, False, 1e-6)
    for alpha in (0.0, 0.1):
        method = im.TwoLayerReLU(alpha=alpha, recipe=im.Recipe(lr=1e-2, steps=500))
        for row in im.gap_by_width(random_features, (8, 16, 32, 64, 128), method):
            parts = f"e(n) {row.oracle:.5f}, delta {row.compressed[0]:.5f} {row.compressed[1]:.5f}"
            bound = f"epsilon {row.epsilon:.5f}, ends {row.ends[0]:.5f} {row.ends[1]:.5f}"
            print(
                f"  alpha {alpha:g}, m = {row.m:3}, n = {row.n:2}: {parts}, {bound}, gap {row.gap:.1e}, "
                f"measured excess {row.excess:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
