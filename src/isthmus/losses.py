"""Per-example losses, errors and convex penalties: the parts of an objective that know no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.errors import InputError

LossFunction = Callable[[Tensor, Tensor], Tensor]


def _per_example(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """-log softmax(outputs)[y], one value per example; positions beyond the batch axis are averaged.

    `outputs` [n, classes, ...], `y` either integer labels [n, ...] or probabilities [n, classes, ...].

    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor([4.])
    """
    return _per_example(F.cross_entropy(outputs, y, reduction="none"))


def mse(outputs: Tensor, y: Tensor) -> Tensor:
    """The squared error, one value per example: the mean over the output entries, as torch's ``mse_loss``.

    >>> mse(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([5.])
    """
    return _per_example((outputs - y).square())


def class_axis(outputs: Tensor, y: Tensor) -> int:
    """The axis of `outputs` that holds the classes: 1 as in torch, [n, classes, ...]; the last if only that fits `y`.

    Errors: ``InputError`` when the labels fit neither.

    >>> class_axis(torch.zeros(2, 5, 3), torch.zeros(2, 3, dtype=int)), class_axis(
    ...     torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=int)
    ... )
    (1, 2)
    """
    first, last = _class_axes(outputs, y)
    if not first and not last:
        raise InputError(
            "y",
            expected=f"one label per position of the outputs {tuple(outputs.shape)}, for the error rate",
            got=tuple(y.shape),
            instead="Objective(..., error=a function (outputs, y) -> errors [n])",
        )
    return 1 if first else outputs.dim() - 1


def check_class_axis(outputs: Tensor, y: Tensor) -> None:
    """Refuse labels that fit the outputs on two axes: which one holds the classes, only the loss would know."""
    if all(_class_axes(outputs, y)) and outputs.dim() > 2:
        raise InputError(
            "error",
            expected=f"a function (outputs, y) -> errors [n]: in outputs {tuple(outputs.shape)} the classes may be on "
            "axis 1 or on the last",
            got="none",
            instead="error=isthmus.losses.wrong_class for axis 1, "
            "error=lambda z, y: isthmus.losses.wrong_class(z.movedim(-1, 1), y) for the last",
        )
    class_axis(outputs, y)


def _class_axes(outputs: Tensor, y: Tensor) -> tuple[bool, bool]:
    """Whether `y` fits the outputs with the classes on axis 1, and on the last axis."""
    if outputs.dim() < 2:
        return False, False
    if y.is_floating_point():
        return y.shape == outputs.shape, False
    return y.shape == outputs.shape[:1] + outputs.shape[2:], y.shape == outputs.shape[:-1]


def wrong_class(outputs: Tensor, y: Tensor) -> Tensor:
    """1 where the largest output is not the label (or the most probable one), else 0; averaged over positions.

    The classes are on ``class_axis(outputs, y)``.

    >>> wrong_class(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    tensor([0., 1.])
    """
    target = y.argmax(1) if y.is_floating_point() else y
    return _per_example((outputs.argmax(class_axis(outputs, y)) != target).to(outputs.dtype))


NAMED: dict[str, LossFunction] = {"cross_entropy": cross_entropy, "mse": mse}


def check_targets(loss: str, outputs: Tensor, y: Tensor) -> None:
    """Refuse targets that the named loss would misread in silence or that torch would refuse obscurely."""
    if loss == "mse" and outputs.shape != y.shape:
        raise InputError(
            "y",
            expected=f"the shape of the outputs, {tuple(outputs.shape)}, for mean squared error",
            got=tuple(y.shape),
            instead="y[:, None]" if y.dim() + 1 == outputs.dim() and outputs.shape[-1] == 1 else "",
        )
    if loss == "mse" and not y.is_floating_point():
        raise InputError("y", expected="floating-point targets for mean squared error", got=y.dtype)
    if loss != "cross_entropy":
        return
    if outputs.dim() < 2:
        raise InputError("the module's output", expected="shape [n, classes, ...]", got=tuple(outputs.shape))
    labels = (outputs.shape[0], *outputs.shape[2:])
    if y.is_floating_point() and y.shape != outputs.shape:
        raise InputError("y", expected=f"integer labels of shape {labels}", got=f"{y.dtype} of shape {tuple(y.shape)}")
    if not y.is_floating_point() and y.shape != labels:
        raise InputError("y", expected=f"integer labels of shape {labels}", got=tuple(y.shape))


def check_labels(classes: int, y: Tensor) -> None:
    """Refuse labels outside 0 .. classes - 1 (torch would skip -100 in silence)."""
    if not y.is_floating_point() and (int(y.min()) < 0 or int(y.max()) >= classes):
        raise InputError("y", expected=f"labels from 0 to {classes - 1}", got=f"{int(y.min())} to {int(y.max())}")


@dataclass(frozen=True)
class Ridge:
    """kappa * (sum of squares of the parameters); `names` limits it to some tensors.

    >>> float(Ridge(0.5)({"w": torch.tensor([2.0])}, ["w"]))
    2.0
    """

    kappa: float
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_kappa(self.kappa)

    def __call__(self, params: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
        """The penalty of `params`, a float64 scalar that carries gradients."""
        return self.kappa * _total([params[k].double().square().sum() for k in _chosen(self.names, names)])


@dataclass(frozen=True)
class L1:
    """kappa * (sum of absolute values of the parameters); `names` limits it to some tensors.

    >>> float(L1(0.5)({"w": torch.tensor([-2.0])}, ["w"]))
    1.0
    """

    kappa: float
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_kappa(self.kappa)

    def __call__(self, params: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
        """The penalty of `params`, a float64 scalar that carries gradients."""
        return self.kappa * _total([params[k].double().abs().sum() for k in _chosen(self.names, names)])


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
