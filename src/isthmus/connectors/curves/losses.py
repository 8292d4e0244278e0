"""The loss at points of a curve: of a batch with gradients, of some examples in a hurry, and of all."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from isthmus.errors import IsthmusError
from isthmus.evaluate.batchnorm import BATCH, applied, refresh, statistics, with_batch_statistics
from isthmus.evaluate.screen import has_bf16
from isthmus.objective import Objective
from isthmus.objective.data import Inputs
from isthmus.objective.drawn import drawn
from isthmus.objective.source import Source
from isthmus.params import Params, in_dtype

FEW = 2000
"""Examples on which points are screened."""
_LARGE = 100_000
"""Parameters from which bfloat16 pays on a processor that has it."""


@dataclass(eq=False)
class CurveLosses:
    """`bn`: "recompute" for networks whose batch statistics are those of each batch; `low`: train in bfloat16.

    `passes` counts evaluations of all examples.
    """

    objective: Objective
    bn: str
    low: bool
    passes: float = field(default=0.0)

    @classmethod
    def of(cls, objective: Objective, bn: str, precision: str) -> CurveLosses:
        """`precision`: "own", "bf16", or "auto": bfloat16 where the processor has it and the network is large."""
        size = sum(v.numel() for v in objective.skeleton.parameters())
        pays = objective.dtype == torch.float32 and size >= _LARGE and has_bf16(objective.device)
        found = cls(objective, applied(objective, bn), precision == "bf16" or (precision == "auto" and pays))
        if precision == "auto" and found.low:
            found.low = found._runs_low()
        return found

    def _runs_low(self) -> bool:
        """Whether the network runs in bfloat16 at all."""
        try:
            like, device = self._fast.skeleton.state_dict(), self.objective.device
            zeros = {k: torch.zeros(v.shape, dtype=v.dtype, device=device) for k, v in like.items()}
            self.batch(zeros, torch.arange(min(4, self.objective.num_examples), device=device))
        except (IsthmusError, RuntimeError, NotImplementedError):
            return False
        return True

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the passes of training."""
        return torch.bfloat16 if self.low else self.objective.dtype

    @cached_property
    def _fast(self) -> Objective:
        return self.objective.cast(torch.bfloat16) if self.low else self.objective

    @cached_property
    def _module(self) -> nn.Module | None:
        return with_batch_statistics(self._fast.skeleton) if self.bn == "recompute" else None

    @cached_property
    def _scratch(self) -> Params:
        """What a pass with batch statistics writes into."""
        like, device = self._fast.skeleton.state_dict(), self.objective.device
        return {k: torch.zeros(like[k].shape, dtype=like[k].dtype, device=device) for k in statistics(self.objective)}

    @cached_property
    def _few(self) -> Source:
        return drawn(self._fast.source, FEW)

    def _values(self, point: Params, x: Inputs, y: Tensor) -> Tensor:
        """The losses of some examples, from outputs in the fast precision."""
        own = self._scratch if self.bn == "recompute" else {}
        return self._fast.example_losses(self._fast.forward({**point, **own}, x, self._module), y)

    def batch(self, point: Params, index: Tensor) -> Tensor:
        """The mean loss of a batch, with the penalty; `point` is in ``dtype``, gradients flow to it."""
        loss = self._values(point, *self._fast.source.at(index)).mean()
        penalty, names = self.objective.penalty, self.objective.parameter_names
        return loss if penalty is None else loss + penalty(point, names).to(loss.dtype)

    def few(self, point: Params) -> float:
        """The loss on some examples, in the fast precision, from a point in the working one."""
        return self._screened(point, self._few)

    def whole(self, point: Params) -> float:
        """The loss on all examples as ``few`` computes it: near that of ``all``, and in bfloat16 for less."""
        return self._screened(point, self._fast.source)

    def _screened(self, point: Params, source: Source) -> float:
        low = {k: in_dtype(v, self.dtype) for k, v in point.items()}
        with torch.no_grad():
            parts = source.chunks(self._step(source.number))
            total = sum(float(self._values(low, x, y).double().sum()) for x, y in parts)
        self.passes += source.number / self.objective.num_examples
        return total / source.number + self.objective.penalty_of(point)

    def _step(self, number: int) -> int:
        """How many examples at a time; with batch statistics no example is left alone."""
        step = min(BATCH, self._fast.chunk)
        if self.bn == "recompute":
            step = max(step, 2)
            while step < number and number % step == 1:
                step += 1
        return step

    def all(self, point: Params) -> float:
        """The loss on all examples; where that is the policy, with statistics that are computed again."""
        self.passes += 2 if self.bn == "recompute" else 1
        return self.objective.loss(refresh(self.objective, point) if self.bn == "recompute" else point)
