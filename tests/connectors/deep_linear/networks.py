"""Linear networks, their minima, and how far a path rises above its ends."""

import torch
from torch import nn

import isthmus as im
from tests.problems import Problem, random_params


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(widths, *, bias=True, loss="mse", penalty=None, module=None, shape=None, n=24, seed=0):
    module = module or nn.Sequential(*[nn.Linear(p, q, bias=bias) for p, q in zip(widths, widths[1:], strict=False)])
    module = module.double()
    x = torch.randn(n, *(shape or widths[:1]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = matrix(n, widths[-1], seed + 1) if loss == "mse" else torch.arange(n) % widths[-1]
    objective = im.Objective(module, loss, (x, y), penalty=penalty)
    return Problem("linear", objective, random_params(module, seed + 2), random_params(module, seed + 3))


def trained(problem, params):
    """A local minimum close to `params`, by L-BFGS: ends at which no loss can be given away."""
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    optimizer = torch.optim.LBFGS(leaves.values(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)
    everything = torch.arange(problem.objective.num_examples)

    def closure():
        optimizer.zero_grad()
        loss = problem.objective.batch_loss(leaves, everything)
        loss.backward()
        return loss

    optimizer.step(closure)
    return {k: v.detach() for k, v in leaves.items()}


def excess(objective, connection, points=23):
    """The largest loss on a dense sample, less the larger end's, relative to it."""
    top = max(objective.loss(connection.path.start), objective.loss(connection.path.end))
    t = torch.linspace(0, 1, points).tolist()
    return max(objective.loss(s.at(v)) for s in connection.path.segments for v in t) / top - 1


def two_layer_convolutional():
    return nn.Sequential(nn.Conv2d(1, 11, 3, padding=1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(11 * 9, 4))


def mirrored(params):
    """The same function on the other side of det = 0: one hidden unit with all its signs changed."""
    out = {k: v.clone() for k, v in params.items()}
    out["0.weight"][0] *= -1
    out["1.weight"][:, 0] *= -1
    if "0.bias" in out:
        out["0.bias"][0] *= -1
    return out
