"""Modules whose batches or outputs are more than tensors, as modules of tensors that give one tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.errors import InputError, UnsupportedError
from isthmus.program.leaves import filled

__all__ = ["Adapted", "Forward", "Manner", "adapted", "choose", "floats"]

Forward = Callable[[nn.Module, Any], Any]
"""How a module is called with a batch: (module, batch) -> outputs."""


@dataclass(frozen=True)
class Manner:
    """How a module is called with tensors, and what of its result is read.

    `forward`: the user's own call, of the `batch` filled with the tensors (``leaves.opened``); None: ``module(...)``.
    `output`: the entry that is read, an attribute or key, or the place in a tuple; None: the result itself.
    `constants`: the type of the numbers that forward makes without saying which; None: that of the day.
    """

    forward: Forward | None = None
    batch: Any = None
    output: str | int | None = None
    constants: torch.dtype | None = None


class Adapted(nn.Module):
    """A module as the function of tensors that a `Manner` makes of it: weights, names and attributes are the module's.

    ``own`` is the module itself: another object of its class with the very same attributes.
    """

    def __init__(self, module: nn.Module, manner: Manner) -> None:
        kind = module.kind if isinstance(module, Adapted) else type(module)
        object.__setattr__(self, "__dict__", vars(module) | {"_kind": kind, "_manner": manner})

    @property
    def kind(self) -> type[nn.Module]:
        """The class of the module itself."""
        return self.__dict__["_kind"]

    @property
    def manner(self) -> Manner:
        """How it is called."""
        return self.__dict__["_manner"]

    @property
    def own(self) -> nn.Module:
        """The module itself."""
        module = self.kind.__new__(self.kind)
        object.__setattr__(module, "__dict__", self.__dict__)
        return module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The chosen entry; the hooks of the module run where it is called itself."""
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The chosen entry of what the module gives."""
        manner = self.manner
        with floats(manner.constants):
            if manner.forward is None:
                found = self.own(*args, **kwargs)
            else:
                found = manner.forward(self.own, filled(manner.batch, args))
        return found if manner.output is None else _entry(found, manner.output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapted:
        memo[id(self.manner)] = self.manner
        return type(self)(deepcopy(self.own, memo), self.manner)

    def __reduce__(self) -> tuple[Any, ...]:
        return Adapted, (self.own, self.manner)

    def __repr__(self) -> str:
        return repr(self.own)


def adapted(module: nn.Module, manner: Manner) -> nn.Module:
    """The module, called in that manner; itself where there is nothing to it."""
    if isinstance(module, Adapted):
        return type(module)(module, manner)
    return module if manner == Manner() else Adapted(module, manner)


@contextmanager
def floats(dtype: torch.dtype | None) -> Iterator[None]:
    """Give the numbers that are made in it without a type this one; None changes nothing."""
    if dtype is None:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def choose(result: Any, wanted: str | int | None, what: str) -> str | int | None:
    """The entry of a module's result that is its output; None where the result itself is one tensor.

    That is the one `wanted`, else the ``logits``, else the first tensor of a tuple, else the only tensor. `what`: the
    module, for errors. Errors: ``InputError`` when several may be meant, ``UnsupportedError`` when none is a tensor.

    >>> choose((torch.ones(1), None), None, "Net"), choose({"logits": torch.ones(1), "h": torch.ones(1)}, None, "Net")
    (0, 'logits')
    """
    if isinstance(result, Tensor):
        if wanted is not None:
            raise InputError("output", expected=f"None: {what} returns one tensor", got=repr(wanted))
        return None
    found = [k for k, v in _entries(result).items() if isinstance(v, Tensor)]
    if wanted is None:
        return "logits" if "logits" in found else _only(found, result, what)
    if wanted not in found:
        raise InputError("output", expected=f"one of {found}, which {what} returns", got=repr(wanted))
    return wanted


def _only(found: list[Any], result: Any, what: str) -> str | int:
    """The first of a tuple's tensors, or the only one of what has names."""
    if not found:
        raise UnsupportedError(
            what, f"its forward returns {type(result).__name__}, without a tensor in it",
            "name the tensor with forward=lambda module, batch: ...",
        )  # fmt: skip
    if len(found) > 1 and not isinstance(found[0], int):
        raise InputError(
            "output", expected=f"one of the tensors {found} that {what} returns", got="None",
            instead=f"output={found[0]!r}, say",
        )  # fmt: skip
    return found[0]


def _entries(result: Any) -> dict[Any, Any]:
    if isinstance(result, Mapping):
        return dict(result)
    if hasattr(result, "_fields"):  # a named tuple
        return dict(zip(result._fields, result, strict=True))
    if isinstance(result, tuple | list):
        return dict(enumerate(result))
    if is_dataclass(result):
        return {f.name: getattr(result, f.name) for f in fields(result)}
    return dict(getattr(result, "__dict__", {}))


def _entry(result: Any, key: str | int) -> Any:
    """One entry of what a module returns."""
    return result[key] if isinstance(result, Mapping) or isinstance(key, int) else getattr(result, key)
