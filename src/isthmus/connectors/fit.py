"""The one training loop: batches, optimiser, schedule, stopping, non-finite check, progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, isfinite, pi
from typing import Any

import torch
from torch import Tensor

from isthmus.connectors.base import Outcome, Progress, no_progress
from isthmus.errors import InputError
from isthmus.params import Params


@dataclass(frozen=True)
class Recipe:
    """How to train: the optimiser and when to stop.

    `steps` is the budget in optimiser steps; `check` the steps between two evaluations on all examples (default:
    one pass over them). Training stops at the first check that finds the loss at or below the target.
    "lbfgs" uses all examples in every step, with a strong Wolfe line search, and stops by itself at a stationary
    point: for the convex problems.
    """

    optimizer: str = "adam"
    lr: float = 2e-3
    steps: int = 4000
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    check: int | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "sgd", "lbfgs"):
            raise InputError("optimizer", expected="'adam', 'sgd' or 'lbfgs'", got=repr(self.optimizer))
        if self.schedule not in ("cosine", "constant"):
            raise InputError("schedule", expected="'cosine' or 'constant'", got=repr(self.schedule))
        for name in ("steps", "batch", "check"):
            value = getattr(self, name)
            if value is not None and (value != int(value) or value < 1):
                raise InputError(name, expected="a whole number >= 1", got=value)
        if not 0 < self.lr < float("inf"):
            raise InputError("lr", expected="a positive number", got=self.lr)
        if self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise InputError(
                "weight_decay, momentum", expected=">= 0 and in [0, 1)", got=(self.weight_decay, self.momentum)
            )


@dataclass(frozen=True, eq=False)
class Fitted:
    """The best parameters seen at a check, their loss on all examples, and how training ended."""

    params: Params
    loss: float
    steps: int
    outcome: Outcome


def fit(
    batch_loss: Callable[[Params, Tensor], Tensor],
    full_loss: Callable[[Params], float],
    params: Mapping[str, Tensor],
    num_examples: int,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    target: float = 0.0,
    buffers: Params | None = None,
    progress: Progress = no_progress,
    what: str = "training",
) -> Fitted:
    """Minimise ``full_loss`` over the floating-point tensors of `params`, by steps on ``batch_loss(params, index)``.

    Batches are drawn without replacement, epoch by epoch, from `generator` alone. Returns the best parameters
    that any check has seen, so the result is never worse than the start. A loss that is not finite ends training
    with ``Outcome.NOT_FINITE``. `buffers` go with the parameters into both losses and into the result; the batch
    loss may write into them (running statistics of BatchNorm).
    """
    state = {k: v.detach().clone() for k, v in (buffers or {}).items()}
    leaves = {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in params.items()}
    trained = [v for v in leaves.values() if v.requires_grad]
    device = trained[0].device
    batch = num_examples if recipe.optimizer == "lbfgs" else min(recipe.batch, num_examples)
    check = recipe.check or max(1, num_examples // batch)
    check = 1 if recipe.optimizer == "lbfgs" else check
    optimizer = _optimizer(recipe, trained)
    best = _snapshot(leaves, state)
    best_loss = full_loss(best)
    if not isfinite(best_loss):
        return Fitted(best, best_loss, 0, Outcome.NOT_FINITE)
    if best_loss <= target:
        return Fitted(best, best_loss, 0, Outcome.CONNECTED)
    everything = torch.arange(num_examples, device=device)
    order = everything
    position = num_examples
    outcome, step = Outcome.BUDGET_EXHAUSTED, 0
    while step < recipe.steps:
        if recipe.schedule == "cosine" and recipe.optimizer != "lbfgs":
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * (0.01 + 0.99 * (1 + cos(pi * step / recipe.steps)) / 2)
        if recipe.optimizer == "lbfgs":
            index = everything
        else:
            if position + batch > num_examples:
                order = torch.randperm(num_examples, generator=generator).to(device)
                position = 0
            index = order[position : position + batch]
            position += batch

        def closure(index: Tensor = index) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = batch_loss({**leaves, **state}, index)
            loss.backward()
            return loss

        optimizer.step(closure)
        step += 1
        if step % check == 0 or step == recipe.steps:
            loss = full_loss({**_detached(leaves), **state})
            progress(what, step, recipe.steps)
            if not isfinite(loss):
                outcome = Outcome.NOT_FINITE
                break
            stalled = recipe.optimizer == "lbfgs" and loss >= best_loss * (1 - 1e-9)
            if loss < best_loss:
                best, best_loss = _snapshot(leaves, state), loss
            if best_loss <= target or stalled:
                outcome = Outcome.CONNECTED
                break
    progress(what, recipe.steps, recipe.steps)
    return Fitted(best, best_loss, step, outcome)


def _snapshot(leaves: Params, state: Params) -> Params:
    return {k: v.detach().clone() for k, v in {**leaves, **state}.items()}


def _detached(leaves: Params) -> Params:
    return {k: v.detach() for k, v in leaves.items()}


def _optimizer(recipe: Recipe, trained: list[Tensor]) -> Any:
    if recipe.optimizer == "lbfgs":
        return torch.optim.LBFGS(trained, lr=1.0, max_iter=20, history_size=20, line_search_fn="strong_wolfe")
    if recipe.optimizer == "adam":
        return torch.optim.Adam(trained, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(
        trained, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, weight_decay=recipe.weight_decay
    )
