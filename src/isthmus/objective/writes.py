"""What a forward pass overwrites, and calls that leave no trace of it."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from isthmus.errors import InputError, UnsupportedError
from isthmus.objective.data import Inputs, arguments
from isthmus.objective.skeleton import storage
from isthmus.program.copied import REGISTERED

_MISSING = object()
_CODE = type | FunctionType | MethodType | BuiltinFunctionType


@dataclass(frozen=True)
class Writes:
    """What forward overwrites: its inputs, tensors of the state by name, attributes as (module, attribute).

    Each call gets copies of these, and what was written is forgotten: every call computes what a first one does.
    """

    inputs: bool = False
    tensors: frozenset[str] = frozenset()
    attributes: tuple[tuple[str, str], ...] = ()


def call(
    module: nn.Module, tensors: Mapping[str, Tensor], x: Inputs, writes: Writes, strict: bool = True, tie: bool = True
) -> Any:
    """The module's output at `x` with its parameters and buffers replaced by `tensors`; nothing is written to.

    `strict`: refuse other names than those of the module; `tie`: replace a tensor under all its names. Either takes a
    walk through the module.
    """
    args, kwargs = arguments(x)
    if writes.inputs:
        args, kwargs = tree_map(torch.clone, (args, kwargs))
    if writes.tensors:
        tensors = {k: v.clone() if k in writes.tensors else v for k, v in tensors.items()}
    with _undone(module, writes.attributes):
        return functional_call(module, dict(tensors), args, kwargs, tie_weights=tie, strict=strict)


@contextmanager
def _undone(module: nn.Module, names: tuple[tuple[str, str], ...]) -> Iterator[None]:
    """Let a call work on copies of these attributes, and give the modules that have them back what they held."""
    kept = [(vars(module.get_submodule(path)), path) for path in dict(names)]
    before = [dict(own) for own, _ in kept]
    for own, path in kept:
        own |= {k: _duplicate(own[k], module) for p, k in names if p == path and k in own}
    try:
        yield
    finally:
        for (own, _), held in zip(kept, before, strict=True):
            own.clear()
            own.update(held)


def _duplicate(value: Any, module: nn.Module) -> Any:
    """A deep copy; modules and what they register stay themselves."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    memo: dict[int, Any] = {id(m): m for m in module.modules()}
    memo |= {id(v): v for v in (*module.parameters(), *module.buffers())}
    memo |= {id(v): v.detach().clone() for v in tree_leaves(value) if isinstance(v, Tensor) and id(v) not in memo}
    return copy.deepcopy(value, memo)


def _own(part: nn.Module) -> dict[str, Any]:
    """The attributes of a module other than what it registers."""
    return {k: v for k, v in vars(part).items() if k not in REGISTERED}


def held(module: nn.Module, written: set[int]) -> set[tuple[str, str]]:
    """The attributes, by module, with tensors in the memory that was written."""
    return {
        (path, name)
        for path, part in module.named_modules()
        for name, value in _own(part).items()
        if any(storage(v) in written for v in tree_leaves(value) if isinstance(v, Tensor))
    }


def changed(module: nn.Module, trial: nn.Module) -> set[tuple[str, str]]:
    """The attributes, by module, that are not alike in a module and in a copy of it, which was run."""
    found = set()
    for path, part in module.named_modules():
        other = trial.get_submodule(path)
        for kind in REGISTERED:
            if new := vars(other)[kind].keys() ^ vars(part)[kind].keys():
                raise UnsupportedError(
                    f"module {path!r} ({type(part).__name__})",
                    f"forward registers or removes {sorted(new)[0]!r}",
                    "run one forward pass first: module(x[:1])",
                )
        before, after = _own(part), _own(other)
        names = before.keys() | after.keys()
        found |= {(path, k) for k in names if not alike(before.get(k, _MISSING), after.get(k, _MISSING))}
    return found


def without_extra(given: Mapping[str, Any], extra: Mapping[str, Any], what: str) -> dict[str, Any]:
    """`given` without what ``get_extra_state`` gave, which is no weight; refuses that of another module."""
    for name in given.keys() & extra.keys():
        if not alike(given[name], extra[name]):
            raise InputError(
                f"{what}[{name!r}]",
                expected="the extra state of the objective's module",
                got="another",
                instead="Objective(module with that state, ...), or leave the entry out",
            )
    return {name: value for name, value in given.items() if name not in extra}


def alike(a: Any, b: Any, depth: int = 6) -> bool:
    """Whether two values hold the same; what cannot be looked into counts as the same."""
    if a is b or depth == 0:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, nn.Module | _CODE):
        return True
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and _alike_values(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return _alike_parts(a, b, depth - 1)


def _alike_values(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.is_meta or b.is_meta or same(a, b))


def _alike_parts(a: Any, b: Any, depth: int) -> bool:
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(alike(v, b[k], depth) for k, v in a.items())
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(alike(v, w, depth) for v, w in zip(a, b, strict=True))
    if isinstance(a, bool | int | float | complex | str | bytes | set | frozenset):
        return a == b or (a != a and b != b)
    return alike(_inside(a), _inside(b), depth)


def _inside(value: Any) -> Any:
    """What an object holds: its attributes, or what it would be pickled from; None where it does not say."""
    if hasattr(value, "__dict__"):
        return vars(value)
    try:
        return value.__reduce_ex__(2)[1:3]
    except (TypeError, IndexError, AttributeError):
        return None


def same(a: Tensor, b: Tensor) -> bool:
    """Equal entry by entry; NaN equals NaN."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
