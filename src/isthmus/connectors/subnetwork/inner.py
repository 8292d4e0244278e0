"""How the subnetworks xi_l of Theorem 4.1 are made: by training, or built without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isthmus.checks import check_at_least_zero, check_choices, check_whole
from isthmus.kinds import check_fields
from isthmus.shown import one_line
from isthmus.training.fit import Recipe


@one_line
@dataclass(frozen=True)
class Trained:
    """xi_l is trained from the end's own weights on the free units, at random, or from a half-width network.

    `init`: "theta", "random", or "dropout": the best of `masks` half-width networks of Theorem 1 of Kuditipudi et al.
    (with own subsets; by Corollary 4.2 the path is then never above the losses of those). It is trained by `recipe`
    (for `hub_steps` steps in place of ``recipe.steps`` for xi_0, default twice as many) until its loss on all
    examples is at the target; xi_{L-1}, a convex problem, by L-BFGS. A training that ends above twice the target is
    repeated from random weights, up to `attempts` trainings in all, and the best is kept. `effort` times
    ``recipe.steps`` further steps go to whichever subnetwork limits the path (equation 4's maximum): first it is
    trained on, then on other sets.
    """

    recipe: Recipe = Recipe()  # noqa: RUF009 - frozen
    init: Literal["theta", "random", "dropout"] = "theta"
    masks: int = 30
    hub_steps: int | None = None
    attempts: int = 2
    effort: float = 2.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_choices(self)
        check_whole(self, "masks", "hub_steps", "attempts")
        check_at_least_zero(self, "effort")

    def steps(self, l: int) -> int:
        """How many optimiser steps a training of xi_l takes."""
        return self.recipe.steps if l else self.hub_steps or 2 * self.recipe.steps


@dataclass(frozen=True)
class Memorised:
    """xi_l memorises the data (Corollary 4.3): ReLU, class labels or mse, layers L-2 and L-1 wide enough.

    xi_{L-1}, a convex problem, is solved; nothing else is trained.
    """


@dataclass(frozen=True)
class Separated:
    """xi_l separates the classes (Corollary 4.4): features in which a linear classifier is right on all examples.

    It takes n_L free units per layer. Nothing is trained.
    """
