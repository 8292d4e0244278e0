"""What functions and modules compute, as digests: two of the same name are told apart, here and in later processes."""

from __future__ import annotations

import functools
import json
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from hashlib import sha256
from logging import Logger
from pathlib import Path
from threading import Lock, RLock
from types import (
    BuiltinFunctionType,
    CodeType,
    EllipsisType,
    FunctionType,
    GenericAlias,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    UnionType,
    WrapperDescriptorType,
)  # fmt: skip
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from isthmus.objective.outside import globals_of, names_read
from isthmus.program.copied import REGISTERED

_PLAIN = (
    bool, int, float, complex, str, bytes, bytearray, EllipsisType, range, slice, re.Pattern, Path,
    np.dtype, np.generic, torch.dtype, torch.device, torch.Size, UnionType, GenericAlias,
)  # fmt: skip
_NAMED = (MethodDescriptorType, MemberDescriptorType, WrapperDescriptorType, GetSetDescriptorType, np.ufunc)
_CONSTANT = (tuple, frozenset, CodeType)
"""Which of these are one object depends on how the code was loaded."""
PROCESS = uuid4().hex
_BESIDE = ("generation_config",)
"""Attributes of modules of libraries that decide no output; it holds a number that differs from process to process."""
_OURS = ("isthmus", "torch", "numpy", "builtins")


def digest_of(function: Any) -> str | None:
    """The SHA-256 of all that decides what a function computes; None where something of it cannot be told.

    Its bytecode, its defaults, the variables of outer functions and the globals that it reads, and those of the
    functions and classes that these are, as far as they are the user's; of installed packages the names and the files.
    Of a module its class, attributes, hooks and parts, and where its parameters and buffers are on "meta" their shapes.

    >>> digest_of(lambda x: 2 * x) == digest_of(lambda x: 2 * x) != digest_of(lambda x: 3 * x)
    True
    """
    reading = _Reading()
    try:
        told = json.dumps(reading.told(function))
    except RecursionError:
        return None
    return sha256(told.encode()).hexdigest() if reading.whole else None


def code_of(value: Any) -> dict[str, str]:
    """The digests of its class and of those of the dataclasses in its fields, by name; none of this library's own.

    Code that cannot be told from other code of its name counts as that of this process alone.
    """
    held = [getattr(value, entry.name) for entry in fields(value)] if is_dataclass(value) else []
    found = {k: v for inner in held if is_dataclass(inner) for k, v in code_of(inner).items()}
    if type(value).__module__.partition(".")[0] != "isthmus":
        found[type(value).__name__] = digest_of(type(value)) or PROCESS
    return found


class _Reading:
    """Values in plain words; `seen`: those that were met, in this order; `whole`: whether all could be told."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, Any]] = {}
        self.whole = True

    def told(self, value: Any) -> list[Any]:
        """Equal lists for values that are equal, from this process or another."""
        if value is None or isinstance(value, _PLAIN):
            return [type(value).__name__, repr(value)]
        if isinstance(value, _NAMED) or _installed(value):
            home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
            return ["named", home, getattr(value, "__qualname__", ""), _version_of(home)]
        if id(value) in self.seen:
            return ["again", self.seen[id(value)][0]]
        if not isinstance(value, _CONSTANT):
            self.seen[id(value)] = len(self.seen), value  # held, so that no other gets its id
        return [type(value).__qualname__, *map(self.told, self._parts(value))]

    def _parts(self, value: Any) -> Iterable[Any]:
        """What a value consists of."""
        for kinds, parts in _PARTS.items():
            if isinstance(value, kinds):
                return parts(value)
        if hasattr(value, "__dict__") and not any(getattr(kind, "__slots__", ()) for kind in type(value).__mro__):
            return type(value), vars(value)
        try:
            reduced = value.__reduce_ex__(4)  # what a pickle of it would hold
        except Exception:
            self.whole = False
            return ()
        return [list(part) if isinstance(part, Iterator) else part for part in reduced]


def _installed(value: Any) -> bool:
    """Whether it is a module, function or class of a package, which its name tells; not one made inside a function."""
    if isinstance(value, ModuleType):
        name = value.__name__
    elif isinstance(value, FunctionType | BuiltinFunctionType | type) and "<" not in value.__qualname__:
        name = value.__module__ or "builtins"
    else:
        return False
    root = name.split(".")[0]
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return root in _OURS or root in sys.stdlib_module_names or "-packages" in file


@functools.cache
def _version_of(module: str) -> str:
    """The digest of the file of a package's module; none of this library's, torch's, numpy's and Python's own."""
    root, file = module.split(".")[0], getattr(sys.modules.get(module), "__file__", None)
    if file is None or root in (*_OURS, *sys.stdlib_module_names) or not Path(file).is_file():
        return ""
    return sha256(Path(file).read_bytes()).hexdigest()


def _of_function(value: FunctionType) -> Iterable[Any]:
    named = sorted(names_read(value, globals_of), key=lambda pair: pair[0])
    return value.__code__, value.__defaults__, value.__kwdefaults__, *named


def _of_code(value: CodeType) -> Iterable[Any]:
    numbers = value.co_flags, value.co_argcount, value.co_kwonlyargcount
    names = value.co_names, value.co_varnames, value.co_freevars
    return value.co_code, value.co_exceptiontable, *numbers, *names, *value.co_consts


def _of_class(value: type) -> Iterable[Any]:
    """Its bases, and what decides what it computes."""
    functions = FunctionType | classmethod | staticmethod | property
    held = [(k, v) for k, v in vars(value).items() if isinstance(v, functions) or not k.startswith(("__", "_abc"))]
    return value.__qualname__, value.__bases__, held


def _of_network(value: nn.Module) -> Iterable[Any]:
    own = {k: v for k, v in vars(value).items() if k not in (*REGISTERED, *_BESIDE)}
    if isinstance(value, GraphModule):
        own = {"code": value.code}
    # hooks are kept under numbers that count all there ever were
    own |= {k: list(v.values()) for k, v in own.items() if "_hooks" in k and isinstance(v, Mapping)}
    return type(value), own, value._parameters, value._buffers, value._modules


def _of_tensor(value: Tensor) -> Iterable[Any]:
    if value.is_meta:
        return value.dtype, tuple(value.shape)
    raw = value.detach().cpu().to_dense().contiguous().flatten().view(torch.uint8)
    return value.dtype, tuple(value.shape), sha256(raw.numpy().tobytes()).hexdigest()


def _of_module(value: ModuleType) -> Iterable[Any]:
    file = getattr(value, "__file__", None)
    return (Path(file).read_bytes() if file and Path(file).is_file() else value.__name__,)


_PARTS: dict[Any, Callable[[Any], Iterable[Any]]] = {
    FunctionType: _of_function,
    CodeType: _of_code,
    type: _of_class,
    nn.Module: _of_network,
    Tensor: _of_tensor,
    np.ndarray: lambda v: (v.dtype, v.shape, sha256(np.ascontiguousarray(v).tobytes()).hexdigest()),
    ModuleType: _of_module,
    MethodType: lambda v: (v.__func__, v.__self__),
    BuiltinFunctionType: lambda v: (v.__name__, v.__self__),
    weakref.ref: lambda v: (v(),),
    functools.cached_property: lambda v: (v.func,),
    (Logger, type(Lock()), type(RLock())): lambda v: (),  # they decide nothing
    functools.partial: lambda v: (v.func, v.args, v.keywords),
    property: lambda v: (v.fget,),
    Mapping: lambda v: list(v.items()),
    (list, tuple): lambda v: v,
    (set, frozenset): lambda v: sorted(v, key=repr),
}
"""What values of some kinds consist of."""
