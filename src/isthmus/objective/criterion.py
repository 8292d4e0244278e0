"""What an objective minimises on one data set, read from what the user gave: a name, a loss of torch, a function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import nan
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isthmus.errors import InputError, UnsupportedError
from isthmus.objective.data import rows
from isthmus.objective.labels import IGNORED, Labels, check_classes, find_axis
from isthmus.objective.losses import NAMED, LossFunction, hinge, per_example
from isthmus.objective.named import CLASSES, ENTRIES, MARGINS, as_torchs, describe, is_named, is_torchs, plus
from isthmus.params import moves

Each = Callable[[Tensor, Tensor | None], None]
"""Gets the losses [n] and the errors [n], where they are defined, of some examples after the other."""


@dataclass(frozen=True, eq=False)
class _Criterion:
    """The loss of every example, and the error, on one data set.

    `values` and `errors` take (outputs, y) of some examples and give [n]; `errors` is None where no error is defined.
    `convex`: in the outputs. `named`: "cross_entropy" or "mse" where `values` is just that function of this library.
    `labels`: how a wrong class is counted, where that is the error; `positions` the same for the loss of classes.
    `rises`: the largest sum of weights of an example, where its loss is a sum of weighted cross-entropies, which rise
    with every output but the label's. `link`: how outputs become probabilities, which are what may be averaged over
    networks: "softmax" over the classes, "sigmoid", "log" (they are logarithms already), or "none".
    """

    values: LossFunction
    errors: LossFunction | None
    convex: bool
    named: str | None = None
    labels: Labels | None = None
    positions: Labels | None = None
    rises: float | None = None
    link: Literal["softmax", "sigmoid", "log", "none"] = "none"

    @property
    def classes(self) -> Labels | None:
        """How the loss of classes reads labels, else how the error does."""
        return self.positions or self.labels

    @property
    def scaled(self) -> bool:
        """Whether the value of an example depends on how many others there are, or of which classes: sums, weights."""
        return isinstance(self.values, _OverPositions | _OverEntries) and self.values.scaled

    @property
    def sums(self) -> bool:
        """Whether the value of the data set is the sum over it."""
        return isinstance(self.values, _OverPositions | _OverEntries) and self.values.sums

    def means(self, parts: Iterable[tuple[Tensor, Any]], each: Each | None = None) -> tuple[float, float]:
        """(mean loss, mean error) of (outputs, y), part by part; sums are added in float64. `each` gets the values."""
        loss, error, errors, n = 0.0, 0.0, self.errors, 0
        for outputs, y in parts:
            losses, wrong = self.values(outputs, y), None if errors is None else errors(outputs, y)
            loss += float(losses.double().sum())
            error += float("nan") if wrong is None else float(wrong.double().sum())
            if each is not None:
                each(losses, wrong)
            n += len(outputs)
        return loss / n, error / n if loss == loss else nan  # the class of outputs that are NaN is any


def _unseen(outputs: Tensor, y: Any) -> Tensor:
    raise UnsupportedError("the objective", "it has no outputs", "give loss= and data= in place of evaluate=")


UNSEEN = _Criterion(_unseen, None, False)
"""That of an objective which is a function of the parameters alone."""


@dataclass(frozen=True, eq=False)
class _OverPositions:
    """A class loss: `inner` gives the loss of every position, with the classes on axis 1.

    `scaled`: whether the value of an example depends on how many others there are, or of which classes. `sums`: whether
    the value of the data set is the sum over it.
    """

    inner: LossFunction
    labels: Labels
    scaled: bool
    sums: bool

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

    @property
    def scaled(self) -> bool:
        """Whether the value of an example depends on how many others there are."""
        return self.factor not in (None, 1.0)

    @property
    def sums(self) -> bool:
        """Whether the value of the data set is the sum over it: that alone scales what has no classes."""
        return self.scaled

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The losses [n]."""
        values = self.inner(outputs, y)
        return per_example(values) if self.factor is None else values.view(len(y), -1).sum(1) * self.factor


def of_the_whole(whole: _Criterion, read: _Criterion, *, error: bool) -> _Criterion:
    """The criterion of a whole data set, in the precision of one that was `read` again from a part of it.

    `error`: whether the part's error is another one.
    """
    values, errors = whole.values, read.errors if error else whole.errors
    if isinstance(values, _OverPositions | _OverEntries) and isinstance(read.values, _OverPositions | _OverEntries):
        values = replace(values, inner=read.values.inner)
    return replace(whole, values=values, errors=errors)


def _wrong_sign(outputs: Tensor, y: Tensor) -> Tensor:
    """The share of an example's logits that are on the wrong side of 0, for targets 0 and 1.

    >>> _wrong_sign(torch.tensor([[2.0], [-1.0]]), torch.tensor([[1.0], [1.0]]))
    tensor([0., 1.])
    """
    return per_example(((outputs > 0) != (y > 0.5)).to(outputs.dtype))


_IN_UNIT = (nn.BCEWithLogitsLoss, nn.BCELoss, nn.MultiLabelSoftMarginLoss)
_OF_LOGITS = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
_OF_LOGARITHMS = (nn.NLLLoss, nn.KLDivLoss)


def read(
    loss: Any,
    outputs: Tensor,
    y: Any,
    *,
    convex: bool | None = None,
    error: LossFunction | None = None,
    ignore_index: int | None = None,
    class_axis: int | None = None,
) -> _Criterion:
    """The criterion for all targets `y` [N, ...] of a data set, given the outputs of its first few examples.

    Errors: ``InputError`` for targets that the loss would misread, and for options that it does not take.
    """
    own = as_torchs(loss, ignore_index)
    if type(own) in CLASSES:
        _check_ignored(own, loss, ignore_index)
        axis = _class_axis(outputs, y, class_axis, own.ignore_index)
        together = getattr(loss, "mean", "tokens") == "tokens"
        found = _of_classes(own, outputs, y, axis, together)
    elif isinstance(own, str) or is_torchs(own):
        _no_options(f"{describe(loss)['loss']} has no classes to ignore or to find", ignore_index, class_axis)
        margin = type(own) in MARGINS or (own == "hinge" and y.shape[1:] != outputs.shape[1:])
        found = _of_margins(own, outputs, y) if margin else _of_entries(own, outputs, y)
    else:
        found = _of_callable(own, outputs, y, error, ignore_index, class_axis)
    found = replace(found, link=_link(own, found))
    if convex is not None:
        _check_convex(convex, found, loss)
        found = replace(found, convex=convex)
    few = rows(y, slice(0, len(outputs)))
    _check_values("loss", found.values, outputs, few)
    if error is None:
        return found
    _check_values("error", error, outputs, few)
    return replace(found, errors=error, labels=None)


def _link(own: Any, found: _Criterion) -> Literal["softmax", "sigmoid", "log", "none"]:
    """Outputs of a function of the user that are judged by class labels are taken for logits."""
    if isinstance(own, _OF_LOGITS):
        return "sigmoid"
    if isinstance(own, _OF_LOGARITHMS):
        return "log"
    unknown = not (isinstance(own, str) or is_torchs(own))
    return "softmax" if isinstance(own, nn.CrossEntropyLoss) or (unknown and found.labels is not None) else "none"


def _check_convex(convex: bool, found: _Criterion, loss: Any) -> None:
    if convex and not found.convex and (is_named(loss) or is_torchs(loss)):
        raise InputError("convex", expected="False or None: this loss is not convex in the outputs", got=True)


def _no_options(why: str, ignore_index: int | None, class_axis: int | None) -> None:
    for name, value in (("ignore_index", ignore_index), ("class_axis", class_axis)):
        if value is not None:
            raise InputError(name, expected=f"None: {why}", got=value)


def _check_ignored(own: Any, loss: Any, ignore_index: int | None) -> None:
    if ignore_index not in (None, own.ignore_index):
        name = "im.CrossEntropy" if is_named(loss) else f"nn.{type(own).__name__}"
        raise InputError(
            "ignore_index", expected=f"None or that of the loss, {own.ignore_index}", got=ignore_index,
            instead=f"{name}(ignore_index={ignore_index})",
        )  # fmt: skip


def _class_axis(outputs: Tensor, y: Tensor, given: int | None, ignored: int, error_of: str = "") -> int:
    axis = find_axis(outputs, y, given, error_of)
    check_classes(outputs.shape[axis], y, ignored, error_of)
    return axis


def _plain_entropy(labels: Labels) -> _Criterion:
    return _Criterion(NAMED["cross_entropy"], labels.wrong, True, "cross_entropy", labels, labels, 1.0)


def _of_classes(own: Any, outputs: Tensor, y: Tensor, axis: int, together: bool) -> _Criterion:
    """A class loss of torch, with its weights, its smoothing and its reduction; `together`: as in ``Labels``."""
    weight = own.weight
    if weight is not None and weight.shape != outputs.shape[axis : axis + 1]:
        raise InputError("loss.weight", expected=f"one per class ({outputs.shape[axis]})", got=tuple(weight.shape))
    alone = Labels.of(y, axis, own.ignore_index)
    errors, labels, positions = alone, alone, 1
    if own.reduction != "none":
        errors = Labels.of(y, axis, own.ignore_index, together=together)
        labels = replace(errors, scale=_scale(own, errors, y))
        positions = errors.counts(y)[0].numel() if together else 1
    rises = _rises(own, labels, positions)
    plain = rises is not None and weight is None and own.reduction != "sum"
    if plain and alone.scale is None and axis == 1:
        return _plain_entropy(errors)
    values = _OverPositions(_each(own, outputs), labels, _by_sample(own, y), own.reduction == "sum")
    return _Criterion(values, errors.wrong, CLASSES[type(own)](own), None, errors, labels, rises)


def _rises(own: Any, labels: Labels, positions: int) -> float | None:
    """The largest sum of weights of an example; None for what is no sum of weighted cross-entropies."""
    if type(own) is not nn.CrossEntropyLoss or own.label_smoothing != 0 or not plus(own.weight):
        return None
    largest = 1.0 if own.weight is None else float(own.weight.max())
    return (labels.scale or 1.0) * positions * largest


def _by_sample(own: Any, y: Tensor) -> bool:
    """Whether the scale is that of all examples: their number, or the weights of their classes."""
    if own.reduction != "mean" or own.weight is None:
        return own.reduction == "sum"
    return not y.is_floating_point() and not bool((own.weight == 1).all())


def _scale(own: Any, labels: Labels, y: Tensor) -> float:
    """What the sum of the losses of an example is multiplied by, so that the mean over all is what torch gives."""
    if own.reduction == "sum":
        return float(len(y))
    counts = labels.counts(y)
    weights = counts.double()
    if own.weight is not None and not y.is_floating_point():
        weights = weights * own.weight.to(y.device, torch.float64)[labels.target(y)]
    each = weights.view(len(y), -1).sum(1)
    if not labels.together:
        each /= counts.view(len(y), -1).sum(1).clamp(min=1)
    total = float(each.sum())
    if not total > 0:
        raise InputError("y", expected="labels whose weights have a sum > 0", got=total)
    return len(y) / total


def _each(own: nn.Module, outputs: Tensor) -> Any:
    """The loss of torch without its reduction, in the precision of the outputs."""
    each: Any = copy.deepcopy(own).to(outputs.device, outputs.dtype)
    each.reduction = "none"
    return each


def _of_margins(own: Any, outputs: Tensor, y: Tensor) -> _Criterion:
    """The hinge loss of several classes."""
    if outputs.dim() != 2 or y.dim() != 1 or moves(y):
        raise _other_shape("hinge, or class labels [n]", outputs, y)
    check_classes(outputs.shape[1], y, None)
    labels = Labels()
    if own == "hinge":
        return _Criterion(hinge, labels.wrong, True, None, labels)
    factor = float(len(y)) if own.reduction == "sum" else None
    return _Criterion(_OverEntries(_each(own, outputs), factor), labels.wrong, MARGINS[type(own)](own), None, labels)


def _of_entries(loss: Any, outputs: Tensor, y: Tensor) -> _Criterion:
    _check_entries(loss, outputs, y)
    if loss == "hinge":
        return _Criterion(hinge, _wrong_sign, True)
    if loss == "mse" or (type(loss) is nn.MSELoss and loss.reduction in ("mean", "none")):
        return _Criterion(NAMED["mse"], None, True, "mse")
    if (weight := getattr(loss, "weight", None)) is not None and weight.dim() >= outputs.dim() and len(weight) > 1:
        raise InputError("loss", expected="weights that do not depend on the example", got=tuple(weight.shape))
    errors = _wrong_sign if type(loss) in _OF_LOGITS else None
    factor = {"sum": float(len(y)), "batchmean": 1.0}.get(loss.reduction)
    return _Criterion(_OverEntries(_each(loss, outputs), factor), errors, ENTRIES[type(loss)](loss))


def _check_entries(loss: Any, outputs: Tensor, y: Tensor) -> None:
    name = describe(loss)["loss"]
    if y.shape[1:] != outputs.shape[1:]:
        raise _other_shape(name, outputs, y)
    if type(loss) in _IN_UNIT and not bool(((y >= 0) & (y <= 1)).all()):
        raise InputError("y", expected=f"targets from 0 to 1 for {name}", got=f"{float(y.min())} to {float(y.max())}")
    if loss == "hinge" and not bool(((y == 1) | (y == -1)).all()):
        raise InputError("y", expected="targets -1 and 1 for hinge", got=f"{float(y.min())} to {float(y.max())}")


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
    if error is not None or not isinstance(y, Tensor) or moves(y) or outputs.is_complex():  # which have no order
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
