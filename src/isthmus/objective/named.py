"""The losses that can be asked for: by name, as a `CrossEntropy`, as a loss object of torch, as a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import loss as torchs
from torch.utils._pytree import tree_map

from isthmus.errors import InputError
from isthmus.kinds import check_kinds
from isthmus.objective.labels import IGNORED
from isthmus.objective.losses import NAMES
from isthmus.params import in_dtype, moves


@dataclass(frozen=True)
class CrossEntropy:
    """The cross-entropy of class labels, -log softmax(outputs)[y], with its options.

    `weight`: one per class; the mean is over weights, as in torch. `label_smoothing`: in [0, 1], as in torch.
    `ignore_index`: the label that counts nowhere. `mean`: "examples", every example that has a label weighs the same
    (its loss is the mean over its positions); "tokens", every position does, as in torch and Hugging Face: on texts of
    different lengths these differ. `shift`: the output at a position is for the label at the next one, as causal
    language models of Hugging Face have it, whose labels are their inputs; else labels and outputs face each other.

    The name "cross_entropy" is ``CrossEntropy()``; the loss of a causal language model of Hugging Face is
    ``CrossEntropy(mean="tokens", shift=True)``, and that of its classifiers is either. Convex in the outputs.

    >>> CrossEntropy(weight=[1, 2]).weight
    (1.0, 2.0)
    """

    weight: Sequence[float] | None = None
    label_smoothing: float = 0.0
    ignore_index: int = IGNORED
    mean: Literal["examples", "tokens"] = "examples"
    shift: bool = False

    def __post_init__(self) -> None:
        check_kinds(CrossEntropy, vars(self), but=["mean"])
        if self.mean not in ("examples", "tokens"):
            raise InputError("mean", expected="'examples' or 'tokens'", got=repr(self.mean))
        if not 0 <= self.label_smoothing <= 1:
            raise InputError("label_smoothing", expected="a number from 0 to 1", got=self.label_smoothing)
        if self.weight is not None:
            weight = tuple(float(w) for w in self.weight)
            if not all(isfinite(w) and w >= 0 for w in weight):
                raise InputError("weight", expected="finite numbers >= 0, one per class", got=list(weight))
            object.__setattr__(self, "weight", weight)

    def of_torch(self) -> nn.CrossEntropyLoss:
        """The loss of torch with these options."""
        weight = None if self.weight is None else torch.tensor(self.weight, dtype=torch.float64)
        return nn.CrossEntropyLoss(weight, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing)


def plus(*weights: Tensor | None) -> bool:
    """Whether no weight is below 0."""
    return all(w is None or bool((w >= 0).all()) for w in weights)


CLASSES: dict[type[nn.Module], Callable[[Any], bool]] = {
    nn.CrossEntropyLoss: lambda m: plus(m.weight),
    nn.NLLLoss: lambda m: True,
}
"""The losses of torch whose targets are classes, and whether each is convex in the outputs."""

MARGINS: dict[type[nn.Module], Callable[[Any], bool]] = {nn.MultiMarginLoss: lambda m: plus(m.weight)}
"""Those whose targets are one class per example, all of which weigh the same."""

ENTRIES: dict[type[nn.Module], Callable[[Any], bool]] = {
    nn.MSELoss: lambda m: True,
    nn.L1Loss: lambda m: True,
    nn.SmoothL1Loss: lambda m: True,
    nn.HuberLoss: lambda m: True,
    nn.BCEWithLogitsLoss: lambda m: plus(m.weight, m.pos_weight),
    nn.BCELoss: lambda m: False,  # torch cuts its logarithm off at -100
    nn.KLDivLoss: lambda m: True,
    nn.SoftMarginLoss: lambda m: True,
    nn.HingeEmbeddingLoss: lambda m: True,
    nn.PoissonNLLLoss: lambda m: m.log_input,
    nn.MultiLabelSoftMarginLoss: lambda m: plus(m.weight),
}
"""Those whose targets have the shape of the outputs."""

_TORCHS: dict[str, Callable[[], nn.Module]] = {
    "bce_with_logits": lambda: nn.BCEWithLogitsLoss(reduction="none"),
    "l1": lambda: nn.L1Loss(reduction="none"),
    "huber": lambda: nn.HuberLoss(reduction="none"),
    "kl": lambda: nn.KLDivLoss(reduction="batchmean"),  # the mean over the entries is no divergence
    "nll": lambda: nn.NLLLoss(reduction="none"),
}


def check_loss(loss: Any) -> None:
    """Refuse what is no loss of (outputs, y), before any data are read."""
    names = f"one of {sorted(NAMES)}, a CrossEntropy, a loss of torch such as nn.CrossEntropyLoss(), or a callable"
    if isinstance(loss, type):
        instead = f"{'im' if loss is CrossEntropy else 'nn'}.{loss.__name__}()"
        raise InputError("loss", expected=names, got=f"the class {loss.__name__}", instead=instead)
    if not (is_named(loss) or callable(loss)) or (isinstance(loss, str) and loss not in NAMES):
        raise InputError("loss", expected=names, got=repr(loss))
    if is_torchs(loss):
        _check_reduction(loss)
    elif type(loss).__module__ == torchs.__name__:
        known = ", ".join(t.__name__ for t in (*CLASSES, *MARGINS, *ENTRIES))
        raise InputError(
            "loss", expected=f"one of {known}", got=type(loss).__name__, instead="a function (outputs, y) -> losses [n]"
        )


def _check_reduction(loss: Any) -> None:
    allowed = ("none", "mean", "sum", *(["batchmean"] if isinstance(loss, nn.KLDivLoss) else []))
    if getattr(loss, "reduction", "") not in allowed:
        raise InputError("loss.reduction", expected=f"one of {allowed}", got=repr(getattr(loss, "reduction", "")))


def is_named(loss: Any) -> bool:
    """Whether plain values say what it is."""
    return isinstance(loss, str | CrossEntropy)


def is_torchs(loss: Any) -> bool:
    """Whether it is a loss of torch whose options are read."""
    return type(loss) in CLASSES or type(loss) in MARGINS or type(loss) in ENTRIES


def as_torchs(loss: Any, ignore_index: int | None) -> Any:
    """The loss of torch that a name or a `CrossEntropy` stands for; anything else as it is."""
    if isinstance(loss, CrossEntropy):
        return loss.of_torch()
    if not isinstance(loss, str) or loss in ("mse", "hinge"):
        return loss
    own: Any = nn.CrossEntropyLoss(reduction="none") if loss == "cross_entropy" else _TORCHS[loss]()
    if type(own) in CLASSES and ignore_index is not None:
        own.ignore_index = ignore_index
    return own


def targets(loss: Any, y: Any, dtype: torch.dtype) -> Any:
    """`y` as the loss takes it: whole numbers as int64 labels or as numbers; for a callable loss as they are.

    With ``CrossEntropy(shift=True)`` those of the next position. Errors: ``InputError`` for a loss of one tensor where
    `y` is a whole batch.
    """
    if not isinstance(y, Tensor):
        return _whole(loss, y, dtype)
    if isinstance(loss, CrossEntropy) and loss.shift:
        y = _next(y, loss.ignore_index)
    if moves(y):
        return in_dtype(y, dtype)
    own = as_torchs(loss, None)
    if own == "mse" or type(own) in ENTRIES:
        return y.to(dtype)
    return y.long() if isinstance(own, str) or is_torchs(own) else y


def _whole(loss: Any, y: Any, dtype: torch.dtype) -> Any:
    if is_named(loss) or is_torchs(loss):
        expected = "the name of the targets in a batch, or a loss of (outputs, batch)"
        raise InputError("targets", expected=expected, got="None")
    return tree_map(lambda v: in_dtype(v, dtype), y)


def _next(y: Tensor, ignored: int) -> Tensor:
    if moves(y) or y.dim() < 2:
        raise InputError("y", expected="labels [n, positions] for shift=True", got=f"{y.dtype} of {tuple(y.shape)}")
    return F.pad(y[..., 1:].long(), (0, 1), value=ignored)


def describe(loss: Any) -> dict[str, Any]:
    """The loss and, where it has any, its options, as plain values."""
    if isinstance(loss, CrossEntropy):
        return {"loss": "CrossEntropy", "loss_options": asdict(loss)}
    if not is_torchs(loss):
        return {"loss": loss if isinstance(loss, str) else getattr(loss, "__name__", "callable")}
    options = {k: v for k, v in vars(loss).items() if k[0] != "_" and k != "training"} | loss._buffers
    plain = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in options.items()}
    return {"loss": type(loss).__name__, "loss_options": plain}


def described(held: Mapping[str, Any]) -> str | CrossEntropy:
    """The loss that ``describe`` said, if it is a named one.

    Errors: ``InputError`` for any other, and for options that are none.

    >>> described(describe(CrossEntropy(mean="tokens"))) == CrossEntropy(mean="tokens")
    True
    """
    loss, options = held.get("loss"), held.get("loss_options")
    if loss == "CrossEntropy" and isinstance(options, Mapping) and options.keys() == asdict(CrossEntropy()).keys():
        return CrossEntropy(**options)
    if not isinstance(loss, str) or loss not in NAMES or options is not None:
        raise InputError("loss", expected=f"one of {sorted(NAMES)}, or CrossEntropy and its options", got=repr(loss))
    return loss
