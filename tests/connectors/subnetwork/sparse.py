"""Two-layer ReLU networks with an l1 penalty, and their layers: what the tests of Theorem 2.4 share."""

import torch
from torch import nn

import isthmus as im
from isthmus.connectors.two_layer_relu.compression import TwoLayers
from tests.problems import Problem, perceptron, random_params

WEIGHT = ("2.weight",)


def matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regression(m=10, d=3, out=1, *, kappa=1e-3, bias=True, names=WEIGHT, n=60, seed=0):
    module = perceptron([d, m, out], bias=bias).double()
    x = matrix(n, d, seed=seed)
    y = torch.sin(x @ matrix(d, out, seed=seed + 1))
    penalty = im.L1(kappa, names) if kappa else None
    objective = im.Objective(module, "mse", (x, y), penalty=penalty)
    ends = [unit_rows(random_params(module, seed + k)) for k in (2, 3)]
    return Problem("regression", objective, *ends)


def unit_rows(params):
    """Rows of the paper's first layers: length 1, the bias counted."""
    W, b = params["0.weight"], params.get("0.bias")
    length = (W.square().sum(1) + (0 if b is None else b.square())).sqrt()
    changed = {"0.weight": W / length[:, None]} | ({} if b is None else {"0.bias": b / length})
    return params | changed


def convolutional(loss="mse", kappa=1e-3):
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3)).double()
    x = matrix(20, 1, 6, 6)
    y = matrix(20, 3, seed=1) if loss == "mse" else torch.arange(20) % 3
    objective = im.Objective(module, loss, (x, y), penalty=im.L1(kappa, ("4.weight",)))
    return Problem("convolutional", objective, random_params(module, 1), random_params(module, 2))


def squares(z, y):
    return (z - y).square().mean(1)


def solved(problem, params):
    two = TwoLayers(problem.objective)
    layer = two.read(params)
    return two, two.solved(two.readout(layer.W, params), layer)


def params_of(two, layer, like):
    return two.chain.write(two.weights(layer, like), like)
