"""Lower outputs: from given outputs to ones of a loss near its infimum, along lines on which the loss only falls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.evaluate.chain import loss_of_outputs
from isthmus.objective import Objective

__all__ = ["Lowered", "lower"]

_LARGEST = 1e4
"""No margin above this is tried."""
_ROUNDS = 20
"""Lines that the general descent may take."""


@dataclass(frozen=True, eq=False)
class Lowered:
    """The `outputs` to pass through in order, the `loss` at the last, and how they were found.

    `slope`: the norm of the gradient of the mean loss in the outputs there; 0 at a minimum.
    """

    outputs: tuple[Tensor, ...]
    loss: float
    slope: float
    how: str


def lower(objective: Objective, Z: Tensor, tolerance: float) -> Lowered:
    """From outputs Z [N, m] (float64) to a loss of at most `tolerance` above the infimum, if it can be found.

    For mean squared error, Z -> y. For integer labels, the label's output of every example is raised to a margin above
    the others, the smallest power of 2 that will do (cross-entropy and hinge losses fall on that line). For any other
    convex loss L-BFGS in the outputs, one line after another. On each line the loss is convex, so it falls all along if
    it falls at the end; where it does not, the line is cut at its minimum.
    """
    y = objective.data[1]
    if objective.named_loss == "mse":
        return _lowered(objective, (y.to(Z).clone(),), "targets")
    # a label outside the classes is one that counts nowhere: no output of its example is to be raised
    if not y.is_floating_point() and Z.dim() == 2 and y.dim() == 1 and Z.shape[1] > 1:
        margin = 1.0
        while margin <= _LARGEST:
            G = _raised(Z, y, margin)
            if loss_of_outputs(objective, G) <= tolerance:
                if _slope(objective, Z, G) <= 0:
                    return _lowered(objective, (G,), f"labels raised to a margin of {margin:g}")
                break
            margin *= 2
    return _general(objective, Z, tolerance)


def _raised(Z: Tensor, y: Tensor, margin: float) -> Tensor:
    counts = (y >= 0) & (y < Z.shape[1])
    at = torch.where(counts, y, 0)[:, None]
    others = Z.scatter(1, at, float("-inf")).amax(1, keepdim=True)
    raised = Z.scatter(1, at, torch.maximum(Z.gather(1, at), others + margin))
    return torch.where(counts[:, None], raised, Z)


def _general(objective: Objective, Z: Tensor, tolerance: float) -> Lowered:
    out, G = [], Z
    for _ in range(_ROUNDS):
        before = loss_of_outputs(objective, G)
        goal = _minimised(objective, G)
        goal = torch.lerp(G, goal, _lowest(objective, G, goal))
        if not loss_of_outputs(objective, goal) < before - 0.1 * tolerance:
            break
        out.append(goal)
        G = goal
    return _lowered(objective, tuple(out) or (Z,), "L-BFGS in the outputs")


def _minimised(objective: Objective, Z: Tensor) -> Tensor:
    G = Z.clone().requires_grad_(True)
    y = objective.data[1]
    solver = torch.optim.LBFGS(
        [G], max_iter=500, tolerance_grad=1e-15, tolerance_change=1e-300, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        # the sum: examples are independent problems of their own scale
        loss = objective.example_losses(G, y).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)  # pyright: ignore[reportArgumentType]
    found = G.detach()
    return found if bool(found.isfinite().all()) else Z


def _lowest(objective: Objective, Z: Tensor, G: Tensor) -> float:
    """Where on the line from Z to G the convex loss is lowest, by bisection on its slope."""
    if _slope(objective, Z, G) <= 0:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _slope(objective, Z, G, middle) <= 0:
            low = middle
        else:
            high = middle
    return low


def _slope(objective: Objective, Z: Tensor, G: Tensor, t: float = 1.0) -> float:
    """The derivative of the loss in t at t on the line from Z to G."""
    return float((_gradient(objective, torch.lerp(Z, G, t)) * (G - Z)).sum())


def _gradient(objective: Objective, Z: Tensor) -> Tensor:
    point = Z.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = objective.example_losses(point, objective.data[1]).mean()
    return torch.autograd.grad(loss, point)[0]


def _lowered(objective: Objective, outputs: tuple[Tensor, ...], how: str) -> Lowered:
    last = outputs[-1]
    return Lowered(outputs, loss_of_outputs(objective, last), float(_gradient(objective, last).norm()), how)
