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
from torch.utils._pytree import tree_map

from isthmus.errors import InputError
from isthmus.objective.data import rows
from isthmus.objective.labels import IGNORED, Labels, check_classes, find_axis
from isthmus.objective.losses import NAMED, LossFunction, per_example
from isthmus.params import in_dtype, moves


@dataclass(frozen=True, eq=False)
class _Criterion:
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
class _OverPositions:
    """A class loss: `inner` gives the loss of every position, with the classes on axis 1."""

    inner: LossFunction
    labels: Labels

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The losses [n]."""
        axis = self.labels.axis
        target = y.movedim(axis, 1) if y.is_floating_point() else y
        return self.labels.average(self.inner(outputs.movedim(axis, 1), target), y)


@dataclass(frozen=True, eq=False)
class _OverEntries:
    """A loss of torch without classes: the mean or, where `factor` is given, the scaled sum of an example's entries."""

    inner: LossFunction
    factor: float | None = None

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The losses [n]."""
        values = self.inner(outputs, y)
        return per_example(values) if self.factor is None else values.view(len(y), -1).sum(1) * self.factor


def _wrong_sign(outputs: Tensor, y: Tensor) -> Tensor:
    """The share of an example's logits that are on the wrong side of 0, for targets 0 and 1.

    >>> _wrong_sign(torch.tensor([[2.0], [-1.0]]), torch.tensor([[1.0], [1.0]]))
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
    if not (loss in NAMED if isinstance(loss, str) else callable(loss)):
        raise InputError("loss", expected=names, got=repr(loss))
    if is_torchs(loss):
        _check_reduction(loss)
    elif type(loss).__module__ == torchs.__name__:
        known = ", ".join(t.__name__ for t in (*_CLASSES, *_ENTRIES))
        raise InputError(
            "loss", expected=f"one of {known}", got=type(loss).__name__, instead="a function (outputs, y) -> losses [n]"
        )


def _check_reduction(loss: Any) -> None:
    allowed = ("none", "mean", "sum", *(["batchmean"] if isinstance(loss, nn.KLDivLoss) else []))
    if getattr(loss, "reduction", "") not in allowed:
        raise InputError("loss.reduction", expected=f"one of {allowed}", got=repr(getattr(loss, "reduction", "")))


def is_torchs(loss: Any) -> bool:
    """Whether it is a loss of torch whose options are read."""
    return type(loss) in _CLASSES or type(loss) in _ENTRIES


def targets(loss: Any, y: Any, dtype: torch.dtype) -> Any:
    """`y` as the loss takes it: whole numbers as int64 labels or as numbers; for a callable loss as they are.

    Errors: ``InputError`` for a loss of one tensor where `y` is a whole batch.
    """
    if not isinstance(y, Tensor):
        if isinstance(loss, str) or is_torchs(loss):
            raise InputError(
                "targets", expected="the name of the targets in a batch, or a loss of (outputs, batch)", got="None"
            )
        return tree_map(lambda v: in_dtype(v, dtype), y)
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
) -> _Criterion:
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
    if convex is not None:
        _check_convex(convex, found, loss)
        found = replace(found, convex=convex)
    few = rows(y, slice(0, len(outputs)))
    _check_values("loss", found.values, outputs, few)
    if error is None:
        return found
    _check_values("error", error, outputs, few)
    return replace(found, errors=error, labels=None)


def _check_convex(convex: bool, found: _Criterion, loss: Any) -> None:
    if convex and not found.convex and (isinstance(loss, str) or is_torchs(loss)):
        raise InputError("convex", expected="False or None: this loss is not convex in the outputs", got=True)


def _no_options(why: str, ignore_index: int | None, class_axis: int | None) -> None:
    for name, value in (("ignore_index", ignore_index), ("class_axis", class_axis)):
        if value is not None:
            raise InputError(name, expected=f"None: {why}", got=value)


def _of_classes(loss: Any, outputs: Tensor, y: Tensor, ignore_index: int | None, class_axis: int | None) -> _Criterion:
    if isinstance(loss, str):
        ignored = IGNORED if ignore_index is None else ignore_index
        axis = _class_axis(outputs, y, class_axis, ignored)
        labels = Labels.of(y, axis, ignored)
        if labels.scale is None and axis == 1:
            return _plain_entropy(labels)
        inner = partial(F.cross_entropy, ignore_index=ignored, reduction="none")
        return _Criterion(_OverPositions(inner, labels), labels.wrong, True, None, labels, labels, labels.scale or 1.0)
    if ignore_index not in (None, loss.ignore_index):
        raise InputError(
            "ignore_index", expected=f"None or that of the loss, {loss.ignore_index}", got=ignore_index,
            instead=f"nn.{type(loss).__name__}(ignore_index={ignore_index})",
        )  # fmt: skip
    return _of_module(loss, outputs, y, _class_axis(outputs, y, class_axis, loss.ignore_index))


def _class_axis(outputs: Tensor, y: Tensor, given: int | None, ignored: int, error_of: str = "") -> int:
    axis = find_axis(outputs, y, given, error_of)
    check_classes(outputs.shape[axis], y, ignored, error_of)
    return axis


def _plain_entropy(labels: Labels) -> _Criterion:
    return _Criterion(NAMED["cross_entropy"], labels.wrong, True, "cross_entropy", labels, labels, 1.0)


def _of_module(own: Any, outputs: Tensor, y: Tensor, axis: int) -> _Criterion:
    """A class loss of torch, with its weights, its smoothing and its reduction."""
    weight = own.weight
    if weight is not None and weight.shape != outputs.shape[axis : axis + 1]:
        raise InputError("loss.weight", expected=f"one per class ({outputs.shape[axis]})", got=tuple(weight.shape))
    alone = Labels.of(y, axis, own.ignore_index)
    errors, labels, positions = alone, alone, 1
    if own.reduction != "none":
        errors = Labels.of(y, axis, own.ignore_index, together=True)
        labels = replace(errors, scale=_scale(own, errors, y))
        positions = errors.counts(y)[0].numel()
    rises = _rises(own, labels, positions)
    plain = rises is not None and weight is None and own.reduction != "sum"
    if plain and alone.scale is None and axis == 1:
        return _plain_entropy(errors)
    values, convex = _OverPositions(_each(own, outputs), labels), _CLASSES[type(own)](own)
    return _Criterion(values, errors.wrong, convex, None, errors, labels, rises)


def _rises(own: Any, labels: Labels, positions: int) -> float | None:
    """The largest sum of weights of an example; None for what is no sum of weighted cross-entropies."""
    if type(own) is not nn.CrossEntropyLoss or own.label_smoothing != 0 or not _plus(own.weight):
        return None
    largest = 1.0 if own.weight is None else float(own.weight.max())
    return (labels.scale or 1.0) * positions * largest


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


def _of_entries(loss: Any, outputs: Tensor, y: Tensor) -> _Criterion:
    _check_entries(loss, outputs, y)
    if loss == "mse" or (type(loss) is nn.MSELoss and loss.reduction in ("mean", "none")):
        return _Criterion(NAMED["mse"], None, True, "mse")
    if (weight := getattr(loss, "weight", None)) is not None and weight.dim() >= outputs.dim() and len(weight) > 1:
        raise InputError("loss", expected="weights that do not depend on the example", got=tuple(weight.shape))
    errors = _wrong_sign if type(loss) in _OF_LOGITS else None
    factor = {"sum": float(len(y)), "batchmean": 1.0}.get(loss.reduction)
    return _Criterion(_OverEntries(_each(loss, outputs), factor), errors, _ENTRIES[type(loss)](loss))


def _check_entries(loss: Any, outputs: Tensor, y: Tensor) -> None:
    name = describe(loss)["loss"]
    if y.shape[1:] != outputs.shape[1:]:
        raise _other_shape(name, outputs, y)
    if type(loss) in _IN_UNIT and not bool(((y >= 0) & (y <= 1)).all()):
        raise InputError("y", expected=f"targets from 0 to 1 for {name}", got=f"{float(y.min())} to {float(y.max())}")


def _other_shape(name: str, outputs: Tensor, y: Tensor) -> InputError:
    instead = ""
    if y.dim() + 1 == outputs.dim() and outputs.shape[-1] == 1:
        instead = "y[:, None]"
    elif y.dim() == outputs.dim() + 1 and y.shape[-1] == 1:
        instead = "y[:, 0]"
    expected = f"the shape of the outputs, {('n', *outputs.shape[1:])}, for {name}".replace("'", "")
    return InputError("y", expected=expected, got=tuple(y.shape), instead=instead)


def _of_callable(
    loss: LossFunction,
    outputs: Tensor,
    y: Tensor,
    error: LossFunction | None,
    ignore_index: int | None,
    class_axis: int | None,
) -> _Criterion:
    if error is not None or not isinstance(y, Tensor) or moves(y):
        _no_options(f"a callable loss, {'error=' if error else 'no labels'}", ignore_index, class_axis)
        return _Criterion(loss, error, False)
    ignored = IGNORED if ignore_index is None else ignore_index
    error_of = "error=a function (outputs, y) -> errors [n]"
    labels = Labels.of(y, _class_axis(outputs, y, class_axis, ignored, error_of), ignored)
    return _Criterion(loss, labels.wrong, False, None, labels)


def _said(y: Any) -> str:
    return f"{tuple(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else f"a batch, {type(y).__name__}"


def _check_values(what: str, function: LossFunction, outputs: Tensor, y: Tensor) -> None:
    """The function must give one value per example, whatever other examples stand beside it."""
    n = len(outputs)
    try:
        values, alone = function(outputs, y), function(outputs[:1], rows(y, slice(0, 1)))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as e:
        got = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise InputError(
            what, expected=f"a function of outputs {tuple(outputs.shape)} and y {_said(y)}", got=got
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
