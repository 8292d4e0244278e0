"""Pickles of torch files, walked through before torch reads them.

torch's own reader runs no code, but it trusts the rest: it hashes tuples nested so deep that the interpreter dies, or
grown by sharing to 2^60 entries, makes tensors of memory that nothing was written to, and sets attributes that hide
methods. Here every step is done on stand-ins: plain values are themselves, all else is a ``StandIn`` that knows its
kind, its parts, how deep they are nested and how many they are. What ``torch.save`` does not write is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from isthmus.errors import CheckpointError, IsthmusError
from isthmus.storage.files import one_line
from isthmus.storage.pickle_rules import (
    AGAIN,
    BUILDS,
    CALLS,
    CLASSES,
    ITEMS,
    TRUST,
    Global,
    RefusedError,
    StandIn,
    attributes,
    hold,
    holding,
    key_of,
    open_value,
    parts_of,
    refuse,
)

__all__ = ["PickleWalk"]


class PickleWalk:
    """A walk through the pickles of one file of `size` bytes, in at most `steps` steps altogether.

    `storages`: after the walk, the bytes that each key of a storage stands for.
    """

    def __init__(self, path: Path, size: int, steps: int) -> None:
        self.path, self.file_size, self.steps, self.most = path, size, steps, steps
        self.storages: dict[str, int] = {}
        self._trusted = {
            f[1] if isinstance(f, tuple) else f"{f.__module__}.{f.__qualname__}"
            for f in torch.serialization.get_safe_globals()
        }

    def through(self, file: IO[bytes]) -> Any:
        """Walk through the next pickle of `file`; returns its value or stand-in. Errors: ``CheckpointError``."""
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        try:
            for operation, argument, _ in pickletools.genops(file):
                self.steps -= 1
                if self.steps < 0:
                    raise refuse(f"takes over {self.most:,} steps to read")
                if operation.name in _CONSTANTS:
                    self._stack.append(argument)
                elif (step := _STEPS.get(operation.name)) is not None:
                    step(self, argument)
                else:
                    raise refuse(f"uses the step {operation.name}, which torch.save does not write", TRUST)
            return self._stack.pop()
        except IsthmusError:
            raise
        except RefusedError as error:
            raise CheckpointError(self.path, *error.args) from error
        except Exception as error:  # the reader of a damaged pickle can raise almost anything
            raise CheckpointError(self.path, f"is a damaged pickle ({one_line(error)})", AGAIN) from error

    # -- steps

    def _proto(self, number: int) -> None:
        if number != 2:
            raise refuse(f"is a pickle of protocol {number}, torch.save writes 2", TRUST)

    def _global(self, argument: str) -> None:
        name = argument.replace(" ", ".", 1)
        if not _is_known(name) and name not in self._trusted:
            raise refuse(f"needs code to be read ({one_line(_shown(name), 80)}), which could do anything", TRUST)
        self._stack.append(Global(name))

    def _mark(self, _: None) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _marked(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _get(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _tuple(self, items: list[Any]) -> None:
        self._stack.append(holding("tuple", items))

    def _pop(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _append(self, items: list[Any]) -> None:
        target = open_value(self._stack[-1], "list")
        target.parts.extend(items)
        hold(target, items)

    def _set(self, items: list[Any]) -> None:
        target = open_value(self._stack[-1], "dict", "OrderedDict", "Counter")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target.parts[key_of(key)] = value
        hold(target, items)

    def _storage(self, _: None) -> None:
        """("storage", class, key, location, number of entries[, view]), as ``torch.save`` writes them."""
        match parts_of(self._stack.pop()):
            case ["storage", Global(name=name), str(key), str(), int(count), *view] if len(view) < 2 and count >= 0:
                item = ITEMS[name.rpartition(".")[2].removesuffix("Storage")]
            case _:
                raise refuse("names bytes in a way that torch.save does not", AGAIN)
        size = count * item
        if self.storages.setdefault(key, size) != size:
            raise refuse("claims two sizes for the bytes of one tensor", AGAIN)
        if size > self.file_size:
            raise refuse(f"claims {size:,} bytes in one tensor, the file holds {self.file_size:,}", AGAIN)
        if view and view[0] is not None:
            match parts_of(view[0]):
                case [str(), int(start), int(length)] if 0 <= start <= start + length <= count:
                    size = length * item
                case _:
                    raise refuse("names a view beyond its bytes", AGAIN)
        self._stack.append(StandIn("storage", (size, item)))

    def _reduce(self, _: None) -> None:
        arguments = self._stack.pop()
        self._stack.append(self._call(self._stack.pop(), arguments))

    def _call(self, function: Any, arguments: Any) -> Any:
        items = parts_of(arguments) if isinstance(arguments, StandIn) and arguments.kind == "tuple" else None
        if not isinstance(function, Global) or items is None:
            raise refuse("calls what is not a function", AGAIN)
        if function.name == "torch._tensor._rebuild_from_type_v2":
            return self._typed(items)
        if (rule := CALLS.get(function.name)) is not None:
            made = rule(*items)
            if isinstance(made, StandIn):
                hold(made, items)
            return made
        if function.name in self._trusted:
            return holding("trusted", items)
        raise refuse(f"calls {one_line(function.name, 80)}", TRUST)

    def _new(self, _: None) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        if isinstance(kind, Global) and kind.name == "argparse.Namespace" and not parts_of(arguments):
            self._stack.append(StandIn("namespace"))
        elif isinstance(kind, Global) and kind.name in self._trusted:
            self._stack.append(holding("trusted", parts_of(arguments)))
        else:
            raise refuse("makes an object of another class than torch.save does", TRUST)

    def _typed(self, items: list[Any]) -> StandIn:
        """A tensor with attributes."""
        function, kind, arguments, state = items
        made = self._call(function, arguments)
        plain = isinstance(kind, Global) and kind.name in ("torch.Tensor", "torch.nn.parameter.Parameter")
        if not plain or not isinstance(made, StandIn) or made.kind != "tensor":
            raise refuse("holds a class of tensors of its own", TRUST)
        attributes(state)
        hold(made, [state])
        return made

    def _build(self, _: None) -> None:
        state = self._stack.pop()
        target = open_value(self._stack[-1], "OrderedDict", "dtype", "array", "namespace", "trusted")
        if target.kind in BUILDS:
            BUILDS[target.kind](target, state)
        hold(target, [state])


def _is_known(name: str) -> bool:
    module, _, last = name.rpartition(".")
    if name in CALLS or name in CLASSES:
        return True
    if last.removesuffix("Storage") in ITEMS and module in ("torch", "torch.cuda", "torch.storage"):
        return True
    kinds = torch.dtype | torch.qscheme
    return module == "torch" and isinstance(getattr(torch, last, None), kinds)


def _shown(name: str) -> str:
    return name.removeprefix("__builtin__.").removeprefix("builtins.")


_CONSTANTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}

_STEPS: dict[str, Callable[[PickleWalk, Any], None]] = {
    "PROTO": PickleWalk._proto,
    "STOP": lambda walk, _: None,
    "NONE": lambda walk, _: walk._stack.append(None),
    "NEWTRUE": lambda walk, _: walk._stack.append(True),
    "NEWFALSE": lambda walk, _: walk._stack.append(False),
    "EMPTY_TUPLE": lambda walk, _: walk._stack.append(StandIn("tuple", [])),
    "EMPTY_LIST": lambda walk, _: walk._stack.append(StandIn("list", [])),
    "EMPTY_SET": lambda walk, _: walk._stack.append(StandIn("set", [])),
    "EMPTY_DICT": lambda walk, _: walk._stack.append(StandIn("dict", {})),
    "MARK": PickleWalk._mark,
    "TUPLE": lambda walk, _: walk._tuple(walk._marked()),
    "TUPLE1": lambda walk, _: walk._tuple(walk._pop(1)),
    "TUPLE2": lambda walk, _: walk._tuple(walk._pop(2)),
    "TUPLE3": lambda walk, _: walk._tuple(walk._pop(3)),
    "APPEND": lambda walk, _: walk._append(walk._pop(1)),
    "APPENDS": lambda walk, _: walk._append(walk._marked()),
    "SETITEM": lambda walk, _: walk._set(walk._pop(2)),
    "SETITEMS": lambda walk, _: walk._set(walk._marked()),
    "BINGET": PickleWalk._get,
    "LONG_BINGET": PickleWalk._get,
    "BINPUT": PickleWalk._put,
    "LONG_BINPUT": PickleWalk._put,
    "GLOBAL": PickleWalk._global,
    "BINPERSID": PickleWalk._storage,
    "REDUCE": PickleWalk._reduce,
    "NEWOBJ": PickleWalk._new,
    "BUILD": PickleWalk._build,
}
"""The steps that torch's reader knows."""
