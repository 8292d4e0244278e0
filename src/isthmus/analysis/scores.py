"""How good predictions are: error, likelihood, calibration and disagreement, added up batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.objective import Objective
from isthmus.objective.data import wide
from isthmus.objective.labels import Labels
from isthmus.params import in_dtype
from isthmus.shown import one_line

BINS = 15
"""Of the expected calibration error: equal parts of [0, 1], each with its upper end."""


@one_line
@dataclass(frozen=True)
class Scores:
    """Means over one data set; None for what the loss does not define.

    `loss`: the objective's, without penalty. `error`: its error rate. Of class probabilities p, each position weighing
    what it does in the error: `nll`, -log p[y]; `ece`, the expected calibration error, sum over the bins of |share that
    is right - mean confidence| weighed by what is in them; `brier`, sum over the classes of (p - y)^2. Of a
    probability (sigmoid) the same, with the likelier of yes and no as the class and (p - y)^2 as `brier`.
    `disagreement`: the share on which two networks give another class; of an ensemble the mean over its pairs of
    networks, of one network that with the first one.
    """

    loss: float
    error: float | None = None
    nll: float | None = None
    ece: float | None = None
    brier: float | None = None
    disagreement: float | None = None


@dataclass(frozen=True)
class Predictions:
    """How the outputs of an objective's networks are averaged: probabilities, or outputs where there are none.

    A prediction is what is averaged, in float64: the logarithms of probabilities, for a sigmoid those of no and yes on
    a last axis (in this order: of equal ones the first is the class, and an error takes an output of 0 for no), or
    plain outputs.
    """

    objective: Objective

    @property
    def link(self) -> str:
        """How outputs become probabilities, see the criterion."""
        return self.objective.criterion.link

    @property
    def labels(self) -> Labels | None:
        """How class labels are read; None without classes."""
        found = self.objective.criterion
        return found.classes if self.link in ("softmax", "log") else None

    @property
    def has_classes(self) -> bool:
        """Whether there is a class, or a yes or no, that is right."""
        return self.labels is not None or self.link == "sigmoid"

    def of(self, outputs: Tensor) -> Tensor:
        """The prediction of one network."""
        wide_ones = outputs.double()
        if self.link == "softmax":
            assert self.labels is not None  # noqa: S101
            return wide_ones.log_softmax(self.labels.axis)
        if self.link == "sigmoid":
            return torch.stack([F.logsigmoid(-wide_ones), F.logsigmoid(wide_ones)], -1)
        return wide_ones

    def added(self, total: Tensor | None, one: Tensor) -> Tensor:
        """The sum of what is averaged; of probabilities its logarithm."""
        if total is None:
            return one
        return total + one if self.link == "none" else torch.logaddexp(total, one)

    def mean(self, total: Tensor, count: int) -> Tensor:
        """The prediction that is the mean of `count` ones with this sum."""
        return total / count if self.link == "none" else total - log(count)

    def outputs(self, prediction: Tensor) -> Tensor:
        """Outputs with this prediction, as the loss takes them."""
        plain = prediction[..., 1] - prediction[..., 0] if self.link == "sigmoid" else prediction
        return plain.to(wide(self.objective.dtype))

    def classes(self, prediction: Tensor) -> Tensor:
        """The likeliest class of every position."""
        return prediction.argmax(-1 if self.labels is None else self.labels.axis)

    def weights(self, y: Tensor) -> Tensor:
        """What each position weighs, [n, positions]: all the same, or 1 in all for each example that has a label."""
        if self.labels is None:
            return torch.full_like(y, len(y) / y.numel(), dtype=torch.float64).view(len(y), -1)
        counts = self.labels.counts(y).view(len(y), -1).double()
        return counts if self.labels.together else counts / counts.sum(1, keepdim=True).clamp(min=1)

    def has_nan(self, prediction: Tensor, y: Tensor) -> bool:
        """Whether a position that counts has a prediction that is no number."""
        odd = prediction.isnan()
        if not self.has_classes:
            return bool(odd.any())
        odd = odd.any(-1 if self.labels is None else self.labels.axis).view(len(y), -1)
        return bool((odd & (self.weights(y) > 0)).any())

    def likelihoods(self, prediction: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(-log p[y], the Brier score) of every position, [n, positions]."""
        if self.labels is None:
            no, yes = prediction.unbind(-1)
            nll = -(_times(y.double(), yes) + _times(1 - y.double(), no))
            return nll.view(len(y), -1), (yes.exp() - y).square().view(len(y), -1)
        logs = prediction.movedim(self.labels.axis, -1)
        if y.is_floating_point():
            truth = y.double().movedim(self.labels.axis, -1)
        else:
            truth = F.one_hot(self.labels.target(y), logs.shape[-1]).double()
        nll, brier = -_times(truth, logs).sum(-1), (logs.exp() - truth).square().sum(-1)
        return nll.view(len(y), -1), brier.view(len(y), -1)

    def truth(self, y: Tensor) -> Tensor:
        """The class that is right, numbered as in ``classes``."""
        return (y > 0.5).long() if self.labels is None else self.labels.target(y)


def _times(share: Tensor, logs: Tensor) -> Tensor:
    """share * logs, 0 where the share is: what is impossible may have the logarithm -inf."""
    return torch.where(share == 0, 0.0, share * logs)


@dataclass(eq=False)
class Tally:
    """Sums over the examples seen so far, for one predictor."""

    predictions: Predictions
    examples: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    bins: Tensor = field(default_factory=lambda: torch.zeros(3, BINS, dtype=torch.float64))

    def add(self, prediction: Tensor, y: Tensor, given: Sequence[Tensor], outputs: Tensor | None = None) -> None:
        """Some examples; `given`: the classes of the networks whose disagreement counts.

        `outputs`: those of one network, which a function of the user may tell from others with the same prediction.
        """
        self.examples += len(y)
        objective = self.predictions.objective
        criterion, own = objective.criterion, None if outputs is None else in_dtype(outputs, wide(objective.dtype))
        outputs = self.predictions.outputs(prediction) if own is None else own
        self._sum("loss", criterion.values(outputs, y).double())
        if criterion.errors is not None:
            self._sum("error", criterion.errors(outputs, y).double())
        if not self.predictions.has_classes:
            return
        weights = self.predictions.weights(y)
        nll, brier = self.predictions.likelihoods(prediction, y)
        # what weighs nothing may have any value
        for name, values in (("nll", nll), ("brier", brier)):
            self._sum(name, torch.where(weights == 0, 0.0, weights * values))
        pairs = [(p != q).view(len(y), -1) * weights for p, q in combinations(given, 2)]
        if pairs:
            self._sum("disagreement", torch.stack(pairs).mean(0))
        self._bin(prediction, y, weights)

    def _sum(self, name: str, values: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(values.sum())

    def _bin(self, prediction: Tensor, y: Tensor, weights: Tensor) -> None:
        labels = self.predictions.labels
        likeliest, found = prediction.max(-1 if labels is None else labels.axis)
        sure = likeliest.exp().view(len(y), -1)
        right = (found == self.predictions.truth(y)).view(len(y), -1)
        place = ((sure * BINS).ceil().long() - 1).clamp(0, BINS - 1)
        sure = torch.where(weights == 0, 0.0, sure)
        for row, values in zip(self.bins, (weights, weights * sure, weights * right), strict=True):
            row += torch.zeros(BINS, dtype=torch.float64).index_add_(0, place.flatten().cpu(), values.flatten().cpu())

    def scores(self) -> Scores:
        """Means over all that was added."""
        n, weight = self.examples, float(self.bins[0].sum())
        out = {k: v / (n if k in ("loss", "error") else weight) for k, v in self.sums.items()}
        if self.predictions.has_classes:
            out["ece"] = float((self.bins[2] - self.bins[1]).abs().sum()) / weight
        return Scores(**out)
