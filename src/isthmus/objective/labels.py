"""Class labels: on which axis of the outputs the classes stand, which labels count, and the share that is wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isthmus.errors import InputError

IGNORED = -100
"""The label that counts nowhere unless another one is named, as in torch."""


@dataclass(frozen=True)
class Labels:
    """How values per position become one value per example.

    `axis`: of the outputs, for the classes. `ignored`: the label that counts nowhere. `together`: every position that
    counts weighs the same, over all examples; else every example that has one does. Values of positions are multiplied
    by `scale`, so that the mean over the examples is that average; None where nothing is ignored, so that each
    example's value is the plain mean over its positions.
    """

    axis: int = 1
    ignored: int = IGNORED
    together: bool = False
    scale: float | None = None

    @classmethod
    def of(cls, y: Tensor, axis: int, ignored: int, *, together: bool = False) -> Labels:
        """For a whole data set of labels. Errors: no label that counts."""
        plain = cls(axis, ignored, together)
        counts = plain.counts(y)
        if bool(counts.all()):
            return plain
        if not bool(counts.any()):
            raise InputError("y", expected="a label that counts", got=f"only {ignored}, the ignored one")
        weight = int(counts.sum()) if together else int(counts.flatten(1).any(1).sum() if y.dim() > 1 else counts.sum())
        return replace(plain, scale=len(y) / weight)

    def counts(self, y: Tensor) -> Tensor:
        """Where labels count; probabilities always do."""
        return torch.ones_like(y.select(self.axis, 0), dtype=torch.bool) if _soft(y) else y.long() != self.ignored

    def target(self, y: Tensor) -> Tensor:
        """The class of every position, the most probable one for probabilities; 0 where the label is ignored."""
        return y.argmax(self.axis) if _soft(y) else torch.where(self.counts(y), y, 0).long()

    def average(self, values: Tensor, y: Tensor) -> Tensor:
        """One value per example [n] from values per position [n, ...]; carries gradients."""
        if self.scale is None:
            return values.flatten(1).mean(1) if values.dim() > 1 else values
        counts = self.counts(y)
        sums = torch.where(counts, values, 0).view(len(y), -1).sum(1) * self.scale
        return sums if self.together else sums / counts.view(len(y), -1).sum(1).clamp(min=1)

    def wrong(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The share of wrong classes, per example."""
        return self.average((outputs.argmax(self.axis) != self.target(y)).double(), y)


def find_axis(outputs: Tensor, y: Tensor, asked: int | None, otherwise: str = "") -> int:
    """The axis of `outputs` [n, ...] that holds the classes: the one `asked` for, else the one that fits `y`.

    That is axis 1 (as in torch) or the last. Probabilities have the shape of the outputs, and sum to one over it.
    `otherwise`: what else may be written.

    Errors: ``InputError`` when `y` fits none, or fits both.

    >>> z = torch.zeros(2, 5, 3)
    >>> find_axis(z, torch.zeros(2, 3, dtype=int), None), find_axis(z, torch.zeros(2, 5, dtype=int), None)
    (1, 2)
    """
    last = outputs.dim() - 1
    if last < 1:
        raise InputError(
            "the module's output",
            expected="shape [n, classes, ...]",
            got=tuple(outputs.shape),
            instead=_or(_one_logit(y), otherwise),
        )
    if asked is not None:
        axis = asked + outputs.dim() if asked < 0 else asked
        if not 1 <= axis <= last:
            raise InputError("class_axis", expected=f"1 to {last}, or -1", got=asked)
        return _fitting(outputs, y, [axis], otherwise)[0]
    fits = _fitting(outputs, y, [1] if last == 1 else [1, last], otherwise)
    if len(fits) > 1:
        raise InputError(
            "class_axis",
            expected=f"the axis of the classes: the labels {tuple(y.shape)} fit outputs {tuple(outputs.shape)} on two",
            got="None",
            instead=_or("class_axis=1 (as in torch) or class_axis=-1", otherwise),
        )
    return fits[0]


def _or(*ways: str) -> str:
    return " or ".join(filter(None, ways))


def _fitting(outputs: Tensor, y: Tensor, axes: list[int], otherwise: str) -> list[int]:
    shapes = {k: (*outputs.shape[:k], *outputs.shape[k + 1 :]) for k in axes}
    if not _soft(y):
        fits = [k for k in axes if y.shape[1:] == shapes[k][1:]]
    elif y.shape[1:] != outputs.shape[1:]:
        fits = []
    else:
        fits = [k for k in axes if _sums_to_one(y, k)] or axes
    if not fits:
        raise _misfit(outputs, y, list(shapes.values()), otherwise)
    return fits


def _misfit(outputs: Tensor, y: Tensor, shapes: list[tuple[int, ...]], otherwise: str) -> InputError:
    labels = " or ".join(sorted({str(("n", *s[1:])).replace("'", "") for s in shapes}))
    return InputError(
        "y",
        expected=f"integer labels of shape {labels} for outputs of shape {('n', *outputs.shape[1:])}".replace("'", ""),
        got=f"{y.dtype} of shape {tuple(y.shape)}",
        instead=_or(_instead(outputs, y, shapes), otherwise),
    )


def _instead(outputs: Tensor, y: Tensor, shapes: list[tuple[int, ...]]) -> str:
    """What to write for targets that are no labels as they are."""
    if _soft(y) and any(y.shape[1:] == s[1:] for s in shapes) and bool((y == y.round()).all()):
        return "y.long()"
    if y.dim() == outputs.dim() and y.shape[1] == 1 and not _soft(y):
        return "y[:, 0]"
    if y.shape[1:] == outputs.shape[1:] and not _soft(y):
        return "y.argmax(1), if they are one-hot"
    return ""


def _sums_to_one(y: Tensor, axis: int) -> bool:
    return bool(((y.sum(axis, dtype=torch.float64) - 1).abs() < 1e-3).all())


def check_classes(classes: int, y: Tensor, ignored: int | None, otherwise: str = "") -> None:
    """Refuse labels outside 0 .. classes - 1 other than the ignored one, and negative probabilities.

    `ignored`: None for a loss that ignores none. `otherwise`: what else may be written.
    """
    if _soft(y):
        if bool((y < 0).any()):
            raise InputError("y", expected="probabilities >= 0", got=float(y.min()))
        return
    y = y.long()
    counted = y.flatten() if ignored is None else y[y != ignored]
    odd = counted[(counted < 0) | (counted >= classes)].unique()
    if not len(odd):
        return
    one = len(odd) == 1 and ignored is not None
    instead = f"ignore_index={int(odd[0])}, if that label counts nowhere" if one else ""
    if classes == 1:
        instead = _one_logit(y)
    raise InputError(
        "y",
        expected=f"labels from 0 to {classes - 1}",
        got=f"{int(counted.min())} to {int(counted.max())}",
        instead=_or(instead, otherwise),
    )


def _one_logit(y: Tensor) -> str:
    two = not _soft(y) and bool(((y == 0) | (y == 1)).all())
    return "loss=nn.BCEWithLogitsLoss(), for one logit and labels 0 and 1" if two else ""


def _soft(y: Tensor) -> bool:
    return y.is_floating_point()
