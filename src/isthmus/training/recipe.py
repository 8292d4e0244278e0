"""How to train: the optimiser, its learning rate, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import cos, inf, pi
from typing import Literal

from isthmus.checks import check_at_least_zero, check_choices, check_whole
from isthmus.errors import InputError
from isthmus.kinds import check_fields
from isthmus.shown import one_line


@one_line
@dataclass(frozen=True)
class Recipe:
    """How to train: the optimiser and when to stop.

    `steps` is the budget in optimiser steps; `check` the steps between two evaluations on all examples (default:
    one pass over them). Training stops at the first check that finds the loss at or below the target.
    "lbfgs" uses all examples in every step, with a strong Wolfe line search, and stops by itself at a stationary
    point: for the convex problems. The learning rate falls to a hundredth of `lr` along half a cosine ("cosine"),
    is halved after every tenth of the steps ("halving"), is multiplied by `gamma` after every `every` steps ("steps";
    the first `hold` of them do not count) or after ten checks in a row without a loss lower by a ten-thousandth
    ("plateau"), or stays ("constant"). `nesterov`: the form of momentum of "sgd". `beta2`: how much of the mean square
    of the gradients Adam keeps at each step; a smaller one suits losses that fall by orders of magnitude.

    Of trained curves only: `epochs`, a budget in passes over the data, in place of `steps`; `lr` None, from the
    distance of the ends; `precision`, of the passes: that of the objective ("own"), bfloat16 on weights in the
    objective's precision ("bf16"), or bfloat16 where it pays ("auto").

    `optimizer`: one of the three. `batch`: examples per step. `momentum`: of "sgd". `weight_decay`: of "adam" and
    "sgd". `schedule`: of the learning rate.
    """

    optimizer: Literal["adam", "sgd", "lbfgs"] = "adam"
    lr: float | None = 2e-3
    steps: int = 4000
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["cosine", "halving", "steps", "plateau", "constant"] = "cosine"
    check: int | None = None
    epochs: int | None = None
    precision: Literal["own", "bf16", "auto"] = "own"
    beta2: float = 0.999
    nesterov: bool = field(default=True, metadata={"later": True})
    gamma: float = field(default=0.5, metadata={"later": True})
    every: int | None = field(default=None, metadata={"later": True})
    hold: int = field(default=0, metadata={"later": True})

    def __post_init__(self) -> None:
        check_fields(self)
        check_choices(self)
        check_whole(self, "steps", "batch", "check", "epochs", "every")
        if self.lr is not None and not 0 < self.lr < inf:
            raise InputError("lr", expected="a positive number", got=self.lr)
        if not 0 <= self.beta2 < 1:
            raise InputError("beta2", expected="a number in [0, 1)", got=self.beta2)
        check_at_least_zero(self, "weight_decay")
        if not 0 <= self.momentum < 1:
            raise InputError("momentum", expected="a number in [0, 1)", got=self.momentum)
        self._check_decay()

    def _check_decay(self) -> None:
        """`gamma`, `every` and `hold` belong to two schedules."""
        if not 0 < self.gamma <= 1 or self.hold < 0:
            raise InputError("gamma, hold", expected="in (0, 1] and >= 0", got=(self.gamma, self.hold))
        if (self.schedule == "steps") != (self.every is not None) or (self.hold and self.schedule != "steps"):
            raise InputError("every, hold", expected="numbers of steps, with schedule='steps' alone", got=repr(self))

    @property
    def rate(self) -> float:
        """The learning rate. Errors: what only the trainings of curves can do without, or can do."""
        if self.lr is None:
            raise InputError("lr", expected="a number: only curves have one of their own", got=None)
        if self.epochs is not None or self.precision != "own":
            got = f"epochs={self.epochs}, precision={self.precision!r}"
            raise InputError("recipe", expected="steps, and the objective's precision, for all but curves", got=got)
        return self.lr

    def for_curve(self, examples: int, lr: float) -> Recipe:
        """The recipe of ``fit`` for so many examples; `lr` where none is given."""
        steps = self.epochs * max(1, examples // min(self.batch, examples)) if self.epochs else self.steps
        return replace(self, lr=self.lr or lr, steps=steps, epochs=None, precision="own")

    def at(self, step: int) -> float:
        """The learning rate of that step, from 0 on; for "plateau" before it was lowered."""
        if self.schedule == "halving":
            return self.rate * 0.5 ** (10 * step // self.steps)
        if self.every is not None:
            return self.rate * self.gamma ** (max(0, step - self.hold) // self.every)
        if self.schedule == "cosine":
            return self.rate * (0.01 + 0.99 * (1 + cos(pi * step / self.steps)) / 2)
        return self.rate
