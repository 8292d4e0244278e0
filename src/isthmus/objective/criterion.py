"""What an objective minimises on one data set, read from what the user gave: a name, a loss of torch, a function."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import loss as torchs

from isthmus.errors import InputError
from isthmus.objective.labels import IGNORED, Labels, check_classes, find_axis
from isthmus.objective.losses import NAMED, LossFunction, per_example
from isthmus.params import in_dtype, moves


@dataclass(frozen=True, eq=False)
class Criterion:
    """The loss of every example, and the error, on one data set.

    `values` and `errors` take (outputs, y) of some examples and give [n]; `errors` is None where no error is defined.
    `convex`: in the outputs. `named`: "cross_entropy" or "mse" where `values` is just that function of this library.
    `labels`: how a wrong class is counted, where that is the error; `positions` the same for the loss of classes.
    `rises`: the largest sum of weights of an example, where its loss is a sum of weighted cross-entropies, which rise
    with every output but the label's.
    """

    values: LossFunction
    errors: LossFunction | None
    convex: bool
    named: str | None = None
    labels: Labels | None = None
    positions: Labels | None = None
    rises: float | None = None


@dataclass(frozen=True, eq=False)
class OverPositions:
    """A class loss: `inner` gives the loss of every position, with the classes on axis 1."""

    inner: LossFunction
    labels: Labels

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The losses [n]."""
        axis = self.labels.axis
        target = y.movedim(axis, 1) if y.is_floating_point() else y
        return self.labels.average(self.inner(outputs.movedim(axis, 1), target), y)


@dataclass(frozen=True, eq=False)
class OverEntries:
    """A loss of torch without classes: the mean or, where `factor` is given, the scaled sum of an example's entries."""

    inner: LossFunction
    factor: float | None = None

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The losses [n]."""
        values = self.inner(outputs, y)
        return per_example(values) if self.factor is None else values.view(len(y), -1).sum(1) * self.factor


def wrong_sign(outputs: Tensor, y: Tensor) -> Tensor:
    """The share of an example's logits that are on the wrong side of 0, for targets 0 and 1.

    >>> wrong_sign(torch.tensor([[2.0], [-1.0]]), torch.tensor([[1.0], [1.0]]))
    tensor([0., 1.])
    """
    return per_example(((outputs > 0) != (y > 0.5)).to(outputs.dtype))


def _plus(*weights: Tensor | None) -> bool:
    return all(w is None or bool((w >= 0).all()) for w in weights)


_CLASSES: dict[type[nn.Module], Callable[[Any], bool]] = {
    nn.CrossEntropyLoss: lambda m: _plus(m.weight),
    nn.NLLLoss: lambda m: True,
}
"""The losses of torch whose targets are classes, and whether each is convex in the outputs."""

_ENTRIES: dict[type[nn.Module], Callable[[Any], bool]] = {
    nn.MSELoss: lambda m: True,
    nn.L1Loss: lambda m: True,
    nn.SmoothL1Loss: lambda m: True,
    nn.HuberLoss: lambda m: True,
    nn.BCEWithLogitsLoss: lambda m: _plus(m.weight, m.pos_weight),
    nn.BCELoss: lambda m: False,  # torch cuts its logarithm off at -100
    nn.KLDivLoss: lambda m: True,
    nn.SoftMarginLoss: lambda m: True,
    nn.HingeEmbeddingLoss: lambda m: True,
    nn.PoissonNLLLoss: lambda m: m.log_input,
    nn.MultiLabelSoftMarginLoss: lambda m: _plus(m.weight),
}
"""Those whose targets have the shape of the outputs."""

_IN_UNIT = (nn.BCEWithLogitsLoss, nn.BCELoss, nn.MultiLabelSoftMarginLoss)
_OF_LOGITS = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)


def check_loss(loss: Any) -> None:
    """Refuse what is no loss of (outputs, y), before any data are read."""
    names = f"one of {sorted(NAMED)}, a loss of torch such as nn.CrossEntropyLoss(), or a callable"
    if isinstance(loss, type):
        raise InputError("loss", expected=names, got=f"the class {loss.__name__}", instead=f"nn.{loss.__name__}()")
    if (isinstance(loss, str) and loss not in NAMED) or not (isinstance(loss, str) or callable(loss)):
        raise InputError("loss", expected=names, got=repr(loss))
    if type(loss).__module__ == torchs.__name__ and not is_torchs(loss):
        known = ", ".join(t.__name__ for t in (*_CLASSES, *_ENTRIES))
        raise InputError(
            "loss", expected=f"one of {known}", got=type(loss).__name__, instead="a function (outputs, y) -> losses [n]"
        )

    allowed = ("none", "mean", "sum", *(["batchmean"] if isinstance(loss, nn.KLDivLoss) else []))
    if is_torchs(loss) and getattr(loss, "reduction", "") not in allowed:
        raise InputError("loss.reduction", expected=f"one of {allowed}", got=repr(getattr(loss, "reduction", "")))


def is_torchs(loss: Any) -> bool:
    """Whether it is a loss of torch whose options are read."""
    return type(loss) in _CLASSES or type(loss) in _ENTRIES


def targets(loss: Any, y: Tensor, dtype: torch.dtype) -> Tensor:
    """`y` as the loss takes it: whole numbers as int64 labels or as numbers; for a callable loss as they are."""
    if moves(y):
        return in_dtype(y, dtype)
    if loss == "mse" or type(loss) in _ENTRIES:
        return y.to(dtype)
    return y.long() if isinstance(loss, str) or type(loss) in _CLASSES else y


def describe(loss: Any) -> dict[str, Any]:
    """The loss and, for one of torch, its options, as plain values."""
    if not is_torchs(loss):
        return {"loss": loss if isinstance(loss, str) else getattr(loss, "__name__", "callable")}
    options = {k: v for k, v in vars(loss).items() if k[0] != "_" and k != "training"} | loss._buffers
    plain = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in options.items()}
    return {"loss": type(loss).__name__, "loss_options": plain}


def read(
    loss: str | LossFunction,
    outputs: Tensor,
    y: Tensor,
    *,
    convex: bool | None = None,
    error: LossFunction | None = None,
    ignore_index: int | None = None,
    class_axis: int | None = None,
) -> Criterion:
    """The criterion for all targets `y` [N, ...] of a data set, given the outputs of its first few examples.

    Errors: ``InputError`` for targets that the loss would misread, and for options that it does not take.
    """
    if loss == "cross_entropy" or type(loss) in _CLASSES:
        found = _of_classes(loss, outputs, y, ignore_index, class_axis)
    elif loss == "mse" or type(loss) in _ENTRIES:
        _no_options(f"{describe(loss)['loss']} has no classes", ignore_index, class_axis)
        found = _of_entries(loss, outputs, y)
    else:
        found = _of_callable(loss, outputs, y, error, ignore_index, class_axis)  # type: ignore[arg-type]
    if convex and not found.convex and (isinstance(loss, str) or is_torchs(loss)):
        raise InputError("convex", expected="False or None: this loss is not convex in the outputs", got=True)
    found = found if convex is None else replace(found, convex=convex)
    found = found if error is None else replace(found, errors=error, labels=None)
    for what, function in (("loss", found.values), ("error", error)):
        if function is not None:
            _check_values(what, function, outputs, y[: len(outputs)])
    return found


def _no_options(why: str, ignore_index: int | None, class_axis: int | None) -> None:
    for name, value in (("ignore_index", ignore_index), ("class_axis", class_axis)):
        if value is not None:
            raise InputError(name, expected=f"None: {why}", got=value)


def _of_classes(loss: Any, outputs: Tensor, y: Tensor, ignore_index: int | None, class_axis: int | None) -> Criterion:
    own = None if isinstance(loss, str) else loss
    ignored = IGNORED if ignore_index is None else ignore_index
    if own is not None and ignore_index not in (None, own.ignore_index):
        name = f"nn.{type(own).__name__}"
        raise InputError(
            "ignore_index", expected=f"None or that of the loss, {own.ignore_index}", got=ignore_index,
            instead=f"{name}(ignore_index={ignore_index})",
        )  # fmt: skip
    ignored = ignored if own is None else own.ignore_index
    axis = find_axis(outputs, y, class_axis)
    check_classes(outputs.shape[axis], y, ignored)
    given = getattr(own, "weight", None)
    if given is not None and given.shape != outputs.shape[axis : axis + 1]:
        raise InputError("loss.weight", expected=f"one per class ({outputs.shape[axis]})", got=tuple(given.shape))
    alone = Labels.of(y, axis, ignored)
    together = own is not None and own.reduction != "none"
    errors = Labels.of(y, axis, ignored, together=True) if together else alone
    labels = alone if own is None or not together else replace(errors, scale=_scale(own, errors, y))
    weight = None if own is None else own.weight
    entropy = own is None or (type(own) is nn.CrossEntropyLoss and own.label_smoothing == 0 and _plus(weight))
    if entropy and weight is None and alone.scale is None and axis == 1 and getattr(own, "reduction", "") != "sum":
        return Criterion(NAMED["cross_entropy"], errors.wrong, True, "cross_entropy", errors, errors, 1.0)
    if own is None:
        inner: LossFunction = partial(F.cross_entropy, ignore_index=ignored, reduction="none")
    else:
        inner = _each(own, outputs)
    rises = (labels.scale or 1.0) * (errors.counts(y)[0].numel() if together else 1)
    rises *= 1.0 if weight is None else float(weight.max())
    known = own is None or _CLASSES[type(own)](own)
    top = rises if entropy else None
    return Criterion(OverPositions(inner, labels), errors.wrong, known, None, errors, labels, top)


def _scale(own: Any, labels: Labels, y: Tensor) -> float:
    """What the sum of the losses of an example is multiplied by, so that the mean over all is what torch gives."""
    if own.reduction == "sum":
        return float(len(y))
    counts = labels.counts(y)
    total = float(counts.sum())
    if own.weight is not None and not y.is_floating_point():
        total = float(own.weight.to(y.device, torch.float64)[labels.target(y)][counts].sum())
    if not total > 0:
        raise InputError("y", expected="labels whose weights have a sum > 0", got=total)
    return len(y) / total


def _each(own: nn.Module, outputs: Tensor) -> Any:
    """The loss of torch without its reduction, in the precision of the outputs."""
    each: Any = copy.deepcopy(own).to(outputs.device, outputs.dtype)
    each.reduction = "none"
    return each


def _of_entries(loss: Any, outputs: Tensor, y: Tensor) -> Criterion:
    name = describe(loss)["loss"]
    if y.shape[1:] != outputs.shape[1:]:
        column = y.dim() + 1 == outputs.dim() and outputs.shape[-1] == 1
        row = y.dim() == outputs.dim() + 1 and y.shape[-1] == 1
        raise InputError(
            "y",
            expected=f"the shape of the outputs, {('n', *outputs.shape[1:])}, for {name}".replace("'", ""),
            got=tuple(y.shape),
            instead="y[:, None]" if column else "y[:, 0]" if row else "",
        )
    if type(loss) in _IN_UNIT and not bool(((y >= 0) & (y <= 1)).all()):
        raise InputError("y", expected=f"targets from 0 to 1 for {name}", got=f"{float(y.min())} to {float(y.max())}")
    if loss == "mse":
        return Criterion(NAMED["mse"], None, True, "mse")
    if (weight := getattr(loss, "weight", None)) is not None and weight.dim() >= outputs.dim() and len(weight) > 1:
        raise InputError("loss", expected="weights that do not depend on the example", got=tuple(weight.shape))
    errors = wrong_sign if type(loss) in _OF_LOGITS else None
    if type(loss) is nn.MSELoss and loss.reduction in ("mean", "none"):
        return Criterion(NAMED["mse"], None, True, "mse")
    factor = {"sum": float(len(y)), "batchmean": 1.0}.get(loss.reduction)
    return Criterion(OverEntries(_each(loss, outputs), factor), errors, _ENTRIES[type(loss)](loss))


def _of_callable(
    loss: LossFunction,
    outputs: Tensor,
    y: Tensor,
    error: LossFunction | None,
    ignore_index: int | None,
    class_axis: int | None,
) -> Criterion:
    if error is not None or moves(y):
        _no_options(f"a callable loss, {'error=' if error else 'no labels'}", ignore_index, class_axis)
        return Criterion(loss, error, False)
    ignored = IGNORED if ignore_index is None else ignore_index
    error_of = "error=a function (outputs, y) -> errors [n]"
    axis = find_axis(outputs, y, class_axis, error_of)
    check_classes(outputs.shape[axis], y, ignored, error_of)
    labels = Labels.of(y, axis, ignored)
    return Criterion(loss, labels.wrong, False, None, labels)


def _check_values(what: str, function: LossFunction, outputs: Tensor, y: Tensor) -> None:
    """The function must give one value per example, whatever other examples stand beside it."""
    n = len(outputs)
    try:
        values, alone = function(outputs, y), function(outputs[:1], y[:1])
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as e:
        got = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise InputError(
            what, expected=f"a function of outputs {tuple(outputs.shape)} and y {tuple(y.shape)}, {y.dtype}", got=got
        ) from e
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if shape != (n,):
        hint = "reduction='none' and the mean over each example, or a loss of torch such as nn.CrossEntropyLoss()"
        raise InputError(
            what, expected=f"one value per example, shape ({n},)", got=shape, instead=hint if shape == () else ""
        )
    apart = float((values[:1] - alone).abs().max())
    if apart > 1e-3 * float(values.abs().max()):
        raise InputError(what, expected="a value of each example alone", got="values that depend on the other examples")
    if what == "error" and bool(((values < 0) | (values > 1)).any()):
        raise InputError(what, expected="errors in [0, 1]", got=f"{float(values.min())} to {float(values.max())}")
