"""The small network of Theorem 2.4 of Freeman & Bruna 2017: e(n), the least risk of n units of bounded length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import torch
from torch import Tensor

from isthmus.connectors.base import Task
from isthmus.connectors.two_layer_relu.compression import HiddenLayer, TwoLayers
from isthmus.errors import IsthmusError
from isthmus.params import Params
from isthmus.training.fit import Recipe, fit

_NAMES = ("W", "A", "b")


def train_oracle(
    problem: TwoLayers,
    n: int,
    radius: float,
    starts: Sequence[HiddenLayer],
    like: Params,
    recipe: Recipe,
    *,
    attempts: int,
    task: Task,
) -> HiddenLayer:
    """An upper bound on e(n), with the network that reaches it: rows of length `radius`, l1 on the last layer.

    Trained from the `starts` (layers on at most n units) and from `attempts` random ones; the best is kept. ReLU is
    homogeneous, so that rows of any length with the penalty kappa sum_i |A_i| |W_i| / radius are the same problem; this
    is what is trained. Then the rows get their length and the last layer is solved for.
    """
    chosen = [_compact(start, n) for start in starts]
    chosen += [_random(problem, n, like, task.generator) for _ in range(attempts)]
    best: HiddenLayer | None = None
    for i, start in enumerate(chosen):
        place = replace(task, memory=task.memory.part(f"oracle{n}-{i}"))
        layer = _train(problem, start, radius, like, recipe, place, f"training the oracle, start {i + 1}")
        if best is None or layer.value < best.value:
            best = layer
    if best is None:
        raise IsthmusError("internal error: the oracle has no start; please report it")
    return best


def scaled_to(layer: HiddenLayer, radius: float) -> HiddenLayer:
    """The same function with every row of length `radius`; units with rows of zero are switched off."""
    length = layer.W.norm(dim=1)
    on = length > 0
    W = torch.where(on[:, None], layer.W * (radius / length.clamp_min(1e-300))[:, None], layer.W)
    A = layer.A * torch.where(on, length / radius, torch.zeros_like(length))[None, :, None]
    return replace(layer, W=W, A=A)


def _compact(layer: HiddenLayer, n: int) -> HiddenLayer:
    """The live units of a layer, followed by others, n in all."""
    order = torch.cat([layer.live, (layer.A.abs().sum((0, 2)) == 0).nonzero().flatten()])[:n]
    return replace(layer, W=layer.W[order], A=layer.A[:, order])


def _random(problem: TwoLayers, n: int, like: Params, generator: torch.Generator) -> HiddenLayer:
    """Random directions, and a last layer of zeros but for noise."""
    whole = problem.read(like)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(whole.W)

    W, A = normal(n, whole.W.shape[1]), normal(len(whole.A), n, whole.A.shape[2])
    return HiddenLayer(W / W.norm(dim=1, keepdim=True), A / (A[0].numel() ** 0.5), torch.zeros_like(whole.b), inf)


def _train(
    problem: TwoLayers,
    start: HiddenLayer,
    radius: float,
    like: Params,
    recipe: Recipe,
    task: Task,
    what: str,
) -> HiddenLayer:
    losses, x, y = problem.objective.example_losses, problem.x, problem.y
    fixed = {} if problem.bias != "none" else {"b": start.b}

    def outputs(p: Params, x: Tensor) -> Tensor:
        return problem.hidden(p["W"], x, like).flatten(1) @ p["A"].flatten(1).T + p["b"]

    def penalty(p: Params) -> Tensor:
        total = (p["A"].abs().sum((0, 2)) * p["W"].norm(dim=1)).sum() / radius
        return problem.kappa * (total + (p["b"].abs().sum() if problem.bias == "penalised" else 0.0))

    def batch_loss(p: Params, index: Tensor) -> Tensor:
        p = {**p, **fixed}
        return losses(outputs(p, x[index]), y[index]).mean() + penalty(p)

    def full_loss(p: Params) -> float:
        p = {**p, **fixed}
        size = problem.objective.chunk
        with torch.no_grad():
            parts = zip(x.split(size), y.split(size), strict=True)
            return sum(float(losses(outputs(p, u), v).sum()) for u, v in parts) / len(y) + float(penalty(p))

    rows = start.W / start.W.norm(dim=1, keepdim=True).clamp_min(1e-300)  # Adam's steps fit rows of length 1
    lengths = start.W.norm(dim=1)[None, :, None]
    params = {"W": rows, "A": start.A * lengths, "b": start.b}
    trained = {k: params[k] for k in _NAMES if k not in fixed}
    fitted = fit(
        batch_loss,
        full_loss,
        trained,
        len(y),
        recipe,
        generator=task.generator,
        target=-inf,
        memory=task.memory,
        progress=task.progress,
        what=what,
    )
    found = {**fitted.params, **fixed}
    layer = scaled_to(HiddenLayer(found["W"], found["A"], found["b"], fitted.loss), radius)
    part = task.memory.part("solved")
    return problem.recalled(part, lambda: problem.solved(problem.readout(layer.W, like), layer))
