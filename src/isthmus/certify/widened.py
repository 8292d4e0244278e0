"""A network and its loss in float64 throughout, also where the code of either computes in a narrower type inside.

A proof speaks about real arithmetic; the samples that it is compared with should round as little as float64 does. Most
modules need nothing but weights in float64. Others hold constants, casts, class weights or zero states in float32, fail
on them, or round as float32 does: there every operation is run on widened tensors, and asked for wide ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from isthmus.errors import InputError, IsthmusError, UnsupportedError
from isthmus.objective import Objective
from isthmus.objective.data import rows
from isthmus.objective.losses import LossFunction
from isthmus.objective.named import is_named, is_torchs
from isthmus.params import Params, cast

__all__ = ["TROUBLE", "Evaluation", "evaluation", "flushes", "without_raw_errors"]

NARROW = (torch.float32, torch.float16, torch.bfloat16)
TROUBLE = (
    *(RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError),
    *(AssertionError, ArithmeticError),
)
"""What the code of a user, of torch, or of a rule may raise where it meets something that it was not written for."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """`objective` in float64, and whether its operations had to be `widened`; `problem`: why it is in its own precision
    instead, or empty."""

    objective: Objective
    widened: bool = False
    problem: str = ""

    def params(self, params: Params) -> Params:
        """A point as `objective` takes it."""
        return cast(params, self.objective.dtype)


def evaluation(objective: Objective, point: Params) -> Evaluation:
    """How `objective` is evaluated in float64, found out at a point of it.

    >>> module = torch.nn.Linear(1, 1)
    >>> halved = lambda outputs, y: (outputs[:, 0] - y) ** 2 * torch.tensor([0.5])
    >>> o = Objective(module, halved, (torch.zeros(2, 1), torch.zeros(2)))
    >>> evaluation(o, module.state_dict()).widened, evaluation(o, module.state_dict()).problem
    (True, '')
    """
    point = cast(objective.check(point, "path"), torch.float64)
    try:
        plain = objective.cast(torch.float64)
        if not _narrow_inside(plain, point):
            return Evaluation(plain)
    except (*TROUBLE, IsthmusError):
        pass
    try:
        return Evaluation(_widened(objective), widened=True)
    except (*TROUBLE, IsthmusError) as e:
        return Evaluation(objective, problem=f"it cannot be evaluated in float64: {first_line(e)}")


def _narrow_inside(objective: Objective, point: Params) -> bool:
    """Whether the module or the loss makes or reads anything narrower than float64, on two examples."""
    (x, y), seen = objective.data, _Narrow()
    few = slice(0, 2)
    x, y = rows(x, few), y[few]
    with torch.no_grad(), seen:
        objective.example_losses(objective.forward(point, x), y)
    return seen.found


def _widened(objective: Objective) -> Objective:
    """The same objective in float64, its module, its loss and its error run on wide tensors alone."""
    shadow, module = copy.copy(objective), copy.deepcopy(objective.skeleton)
    kind = type(module)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Widened():
            return kind.forward(self, *args, **kwargs)

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    shadow.skeleton = module
    loss: Any = objective._loss
    error = objective._labelled["error"]
    changes: dict[str, Any] = {} if error is None else {"error": _on_wide(error)}
    if not is_named(loss) and not is_torchs(loss):
        changes["loss"] = _on_wide(loss)
    return shadow._vary(dtype=torch.float64, **changes)


def _on_wide(f: LossFunction) -> LossFunction:
    def wide(outputs: Tensor, y: Tensor) -> Tensor:
        with _Widened():
            return f(outputs, y)

    wide.__name__ = getattr(f, "__name__", "callable")
    return wide


def first_line(e: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(e).strip().splitlines()), type(e).__name__)


@contextmanager
def without_raw_errors(what: str) -> Iterator[None]:
    """Turn what is not an error of this library into an `UnsupportedError` about `what`."""
    try:
        yield
    except IsthmusError as e:
        if isinstance(e, InputError):
            raise UnsupportedError(what, str(e)) from e
        raise
    except TROUBLE as e:
        raise UnsupportedError(what, f"{type(e).__name__}: {first_line(e)}") from e


def grouped_product(x: Tensor, several: Tensor, ends: Tensor) -> Tensor:
    """Each group of rows by its own matrix; `ends`: where the groups end. torch has it for narrower types alone.

    >>> x, several = torch.ones(3, 1), torch.tensor([[[2.0]], [[5.0]]])
    >>> grouped_product(x, several, torch.tensor([1, 3])).flatten().tolist()
    [2.0, 5.0, 5.0]
    """
    sizes = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    return torch.cat([rows @ matrix for rows, matrix in zip(x.split(sizes), several, strict=True)])


def flushes() -> bool:
    """Whether a thread of torch takes denormal numbers for zero (``torch.set_flush_denormal``): then no rounding error
    is what it should be."""
    least = torch.full((torch.get_num_threads() << 17,), 2.0**-1074, dtype=torch.float64)
    return bool((least * 1.0 == 0).any()) or 2.0**-1074 * float(least[0] / least[0]) == 0


def _narrow(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in NARROW


class _Narrow(TorchDispatchMode):
    """Notes whether an operation reads or makes a floating-point tensor narrower than float64."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.found = self.found or any(map(_narrow, tree_flatten((args, kwargs, out))[0]))
        return out


class _Widened(TorchDispatchMode):
    """Runs every operation on float64 where it would read, make or be asked for a narrower floating-point type."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        if schema.is_mutable and any(map(_narrow, tree_flatten((args, kwargs))[0])):
            raise UnsupportedError(schema.name, "it writes into a tensor of a narrower type than float64")
        args, kwargs = tree_map(_wide, args), tree_map(_wide, kwargs)
        out = (grouped_product if func is torch.ops.aten._grouped_mm.default else func)(*args, **kwargs)
        if _narrow(out) and any(a.name == "dtype" for a in schema.arguments):
            out = func(*args, **(kwargs | {"dtype": torch.float64}))  # made from numbers, in the default type
        return tree_map(_wide, out)


def _wide(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.double() if x.dtype in NARROW else x
    return torch.float64 if x in NARROW else x
