"""The one training loop: batches, optimiser, schedule, stopping, non-finite check, progress, resuming."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, isfinite, pi
from typing import Any, Protocol

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


class Checkpoint(Protocol):
    """Where a long fit keeps its state, so that a killed process can go on from there."""

    def due(self, step: int) -> bool:
        """Whether the state after that step shall be saved."""
        ...

    def save(self, tensors: Params, values: Mapping[str, Any]) -> None:
        """Keep tensors and plain values, replacing what was kept before: whole or not at all."""
        ...

    def load(self) -> tuple[Params, dict[str, Any]] | None:
        """What was kept last, or None."""
        ...


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
    checkpoint: Checkpoint | None = None,
    progress: Progress = no_progress,
    what: str = "training",
) -> Fitted:
    """Minimise ``full_loss`` over the floating-point tensors of `params`, by steps on ``batch_loss(params, index)``.

    Batches are drawn without replacement, epoch by epoch, from `generator` alone. Returns the best parameters
    that any check has seen, so the result is never worse than the start. A loss that is not finite ends training
    with ``Outcome.NOT_FINITE``. `buffers` go with the parameters into both losses and into the result; the batch
    loss may write into them (running statistics of BatchNorm).

    With a `checkpoint` the state is saved when it is due, and a later call with the same arguments goes on from
    there to the same result, bit for bit. L-BFGS keeps no state: its fits are short and start again.
    """
    device = next(v for v in params.values() if v.is_floating_point()).device
    fitting = _Fitting.start(params, buffers or {}, num_examples, recipe, generator, device)
    keep = None if recipe.optimizer == "lbfgs" else checkpoint
    if keep is None or not fitting.resume(keep.load()):
        fitting.best_loss = full_loss(fitting.best)
        if not isfinite(fitting.best_loss):
            return Fitted(fitting.best, fitting.best_loss, 0, Outcome.NOT_FINITE)
        if fitting.best_loss <= target:
            return Fitted(fitting.best, fitting.best_loss, 0, Outcome.CONNECTED)
    check = 1 if recipe.optimizer == "lbfgs" else recipe.check or max(1, num_examples // fitting.batch)
    outcome = Outcome.BUDGET_EXHAUSTED
    while fitting.step < recipe.steps:
        fitting.advance(batch_loss)
        if fitting.step % check == 0 or fitting.step == recipe.steps:
            loss = full_loss({**_detached(fitting.leaves), **fitting.state})
            progress(what, fitting.step, recipe.steps)
            if not isfinite(loss):
                outcome = Outcome.NOT_FINITE
                break
            stalled = recipe.optimizer == "lbfgs" and loss >= fitting.best_loss * (1 - 1e-9)
            if loss < fitting.best_loss:
                fitting.best, fitting.best_loss = _snapshot(fitting.leaves, fitting.state), loss
            if fitting.best_loss <= target or stalled:
                outcome = Outcome.CONNECTED
                break
        if keep is not None and keep.due(fitting.step):
            keep.save(*fitting.pack())
    progress(what, recipe.steps, recipe.steps)
    return Fitted(fitting.best, fitting.best_loss, fitting.step, outcome)


@dataclass(eq=False)
class _Fitting:
    """All that changes during a fit; what ``pack`` gives is all that a resumed one needs."""

    recipe: Recipe
    generator: torch.Generator
    leaves: Params
    state: Params
    best: Params
    optimizer: Any
    everything: Tensor
    order: Tensor
    position: int
    batch: int
    step: int = 0
    best_loss: float = float("inf")

    @classmethod
    def start(
        cls,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        num_examples: int,
        recipe: Recipe,
        generator: torch.Generator,
        device: torch.device,
    ) -> _Fitting:
        state = {k: v.detach().clone() for k, v in buffers.items()}
        leaves = {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in params.items()}
        optimizer = _optimizer(recipe, [v for v in leaves.values() if v.requires_grad])
        batch = num_examples if recipe.optimizer == "lbfgs" else min(recipe.batch, num_examples)
        all_of = torch.arange(num_examples, device=device)
        best = _snapshot(leaves, state)
        return cls(recipe, generator, leaves, state, best, optimizer, all_of, all_of, num_examples, batch)

    def advance(self, batch_loss: Callable[[Params, Tensor], Tensor]) -> None:
        """One step of the optimiser on the next batch."""
        if self.recipe.schedule == "cosine" and self.recipe.optimizer != "lbfgs":
            for group in self.optimizer.param_groups:
                fraction = (1 + cos(pi * self.step / self.recipe.steps)) / 2
                group["lr"] = self.recipe.lr * (0.01 + 0.99 * fraction)
        index = self.everything if self.recipe.optimizer == "lbfgs" else self._next_batch()

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            loss = batch_loss({**self.leaves, **self.state}, index)
            loss.backward()
            return loss

        self.optimizer.step(closure)
        self.step += 1

    def _next_batch(self) -> Tensor:
        n = len(self.everything)
        if self.position + self.batch > n:
            self.order = torch.randperm(n, generator=self.generator).to(self.everything.device)
            self.position = 0
        self.position += self.batch
        return self.order[self.position - self.batch : self.position]

    def pack(self) -> tuple[Params, dict[str, Any]]:
        """The state as tensors and plain values."""
        kept = self.optimizer.state_dict()["state"]
        tensors = {
            **{f"leaf/{k}": v.detach() for k, v in self.leaves.items()},
            **{f"buffer/{k}": v for k, v in self.state.items()},
            **{f"best/{k}": v for k, v in self.best.items()},
            **{f"optimizer/{i}/{k}": v for i, row in kept.items() for k, v in row.items() if isinstance(v, Tensor)},
            "generator": self.generator.get_state(),
            "order": self.order,
        }
        return tensors, {"step": self.step, "position": self.position, "best_loss": self.best_loss}

    def resume(self, kept: tuple[Params, dict[str, Any]] | None) -> bool:
        """Take over a packed state; False where there is none."""
        if kept is None:
            return False
        tensors, values = kept
        with torch.no_grad():  # copied into torch's own memory: kernels may add in another order elsewhere
            for prefix, into in (("leaf", self.leaves), ("buffer", self.state), ("best", self.best)):
                for name, v in into.items():
                    v.copy_(tensors[f"{prefix}/{name}"])
        rows: dict[int, dict[str, Tensor]] = {}
        for name, v in tensors.items():
            if name.startswith("optimizer/"):
                _, i, key = name.split("/")
                rows.setdefault(int(i), {})[key] = v.clone()
        self.optimizer.load_state_dict({"state": rows, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.generator.set_state(tensors["generator"].clone())
        self.order = tensors["order"].to(self.everything.device, copy=True)
        self.step, self.position, self.best_loss = values["step"], values["position"], values["best_loss"]
        return True


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
