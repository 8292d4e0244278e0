"""Per-example losses, errors and convex penalties: the parts of an objective that know no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.errors import InputError
from isthmus.params import widened

LossFunction = Callable[[Tensor, Tensor], Tensor]


def per_example(values: Tensor) -> Tensor:
    """The mean over all axes but the first."""
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """-log softmax(outputs)[y], one value per example; positions beyond the batch axis are averaged.

    `outputs` [n, classes, ...], `y` either integer labels [n, ...] or probabilities [n, classes, ...].

    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor([4.])
    """
    return per_example(F.cross_entropy(outputs, y, reduction="none"))


def mse(outputs: Tensor, y: Tensor) -> Tensor:
    """The squared error, one value per example: the mean over the output entries, as torch's ``mse_loss``.

    >>> mse(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([5.])
    """
    return per_example((outputs - y).square())


def wrong_class(outputs: Tensor, y: Tensor) -> Tensor:
    """1 where the largest output is not the label (or the most probable one), else 0; averaged over positions.

    The classes are on axis 1. An objective's own error leaves ignored labels out (``labels.Labels``).

    >>> wrong_class(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    tensor([0., 1.])
    """
    target = y.argmax(1) if y.is_floating_point() else y
    return per_example((outputs.argmax(1) != target).to(outputs.dtype))


def hinge(outputs: Tensor, y: Tensor) -> Tensor:
    """max(0, 1 - y f), averaged over the entries, for targets -1 and 1 of the outputs' shape, one value per example.

    For class labels [n] and outputs [n, classes] torch's ``multi_margin_loss``, sum_j max(0, 1 - f_y + f_j) / classes.

    >>> hinge(torch.tensor([[0.5], [2.0]]), torch.tensor([[1], [-1]]))
    tensor([0.5000, 3.0000])
    """
    if y.shape != outputs.shape:
        return F.multi_margin_loss(outputs, y, reduction="none")
    return per_example((1 - y.to(outputs.dtype) * outputs).clamp(min=0))


NAMED: dict[str, LossFunction] = {"cross_entropy": cross_entropy, "mse": mse}

NAMES = (*NAMED, "bce_with_logits", "l1", "huber", "hinge", "nll", "kl")
"""What a loss may be called: of an example the mean over its positions that count, or over its entries.

"kl" takes log-probabilities and probabilities and is the divergence, the sum over the entries.
"""


@dataclass(frozen=True)
class Ridge:
    """`kappa` * (sum of squares of the parameters); `names` limits it to some tensors.

    >>> float(Ridge(0.5)({"w": torch.tensor([2.0])}, ["w"]))
    2.0
    """

    kappa: float
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_kappa(self.kappa)

    def __call__(self, params: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
        """The penalty of `params`, a float64 scalar that carries gradients."""
        return self.kappa * _total([widened(params[k]).square().sum() for k in _chosen(self.names, names)])


@dataclass(frozen=True)
class L1:
    """`kappa` * (sum of absolute values of the parameters); `names` limits it to some tensors.

    >>> float(L1(0.5)({"w": torch.tensor([-2.0])}, ["w"]))
    1.0
    """

    kappa: float
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_kappa(self.kappa)

    def __call__(self, params: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
        """The penalty of `params`, a float64 scalar that carries gradients."""
        return self.kappa * _total([widened(params[k].abs()).sum() for k in _chosen(self.names, names)])


PENALTIES: dict[str, type[Ridge | L1]] = {"ridge": Ridge, "l1": L1}


def describe_penalty(penalty: Ridge | L1 | None) -> dict[str, Any] | None:
    """A penalty in plain values, from which ``PENALTIES[name](kappa, names)`` makes it again.

    >>> describe_penalty(Ridge(0.5))
    {'name': 'ridge', 'kappa': 0.5, 'names': None}
    """
    if penalty is None:
        return None
    name = next((k for k, kind in PENALTIES.items() if type(penalty) is kind), repr(penalty))
    names = getattr(penalty, "names", None)
    kappa = getattr(penalty, "kappa", None)
    return {"name": name, "kappa": kappa, "names": None if names is None else list(names)}


def _check_kappa(kappa: float) -> None:
    if not 0 <= kappa < float("inf"):
        raise InputError("kappa", expected="a finite number >= 0 (the penalty must be convex)", got=kappa)


def _total(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)


def _chosen(wanted: tuple[str, ...] | None, names: Iterable[str]) -> list[str]:
    names = list(names)
    if wanted is None:
        return names
    if unknown := set(wanted) - set(names):
        raise InputError("penalty.names", expected=f"names among {sorted(names)}", got=sorted(unknown))
    return list(wanted)
