"""What the functions in a torch file's pickle may be given: stand-ins for values, and a rule for each function.

torch reads a pickle without running code, but trusts the rest of it: see ``storage.pickles``.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from isthmus.storage.files import one_line

_DEPTH = 100
_PARTS = 20_000_000  # a part that is shared counts wherever it stands
_LEAVES = ("number", "complex", "torch.device", "layout")  # kinds that hold nothing whose hash could cost
_KEY_BITS = 60  # Python's hash is the identity below 2^61 - 1; larger whole numbers can be made to collide
AGAIN = "copy or download it again"
TENSORS = "where the model was trained, write torch.save(model.state_dict(), path)"
TRUST = f"{TENSORS}; only if you made this file yourself: load_params(path, unsafe_pickle=True)"

ITEMS = {
    **dict.fromkeys(("Byte", "Char", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4", "Untyped"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
"""Bytes of an entry, by the name of the storage's class."""

NUMPY = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
"""The formats of numpy's numbers that hold values only."""


class Global:
    """A class or function, by name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class StandIn:
    """What a pickle makes that is no plain value."""

    __slots__ = ("depth", "held", "kind", "parts", "size")

    def __init__(self, kind: str, parts: Any = ()) -> None:
        self.kind, self.parts, self.depth, self.size, self.held = kind, parts, 1, 1, False


class RefusedError(Exception):
    """Why, and what to do."""


def refuse(why: str, instead: str = TENSORS) -> RefusedError:
    """The error to raise."""
    return RefusedError(why, instead)


def hold(holder: StandIn, items: Iterable[Any]) -> None:
    """Count `items` as parts of `holder`. A part is finished: who holds it would not see it grow."""
    depth, size = holder.depth, holder.size
    for item in items:
        if isinstance(item, StandIn):
            item.held = True
            size += item.size
            if item.depth >= depth:
                depth = item.depth + 1
        else:
            size += 1
    if depth > _DEPTH:
        raise refuse(f"nests its objects over {_DEPTH} deep")
    if size > _PARTS:
        raise refuse(f"holds over {_PARTS:,} objects, shared ones counted wherever they stand")
    if holder.held:
        raise refuse("holds an object that contains itself, or that grows after it was put into another")
    holder.depth, holder.size = depth, size


def holding(kind: str, items: list[Any]) -> StandIn:
    """A new value of these parts."""
    made = StandIn(kind, items)
    hold(made, items)
    return made


def open_value(target: Any, *kinds: str) -> StandIn:
    """The value that a step fills, of one of these kinds."""
    if not isinstance(target, StandIn) or target.kind not in kinds:
        raise refuse("fills what is not a container", TRUST)
    return target


def key_of(key: Any) -> Any:
    """A key of a dictionary or an element of a set: a plain value, which costs nothing to hash."""
    if isinstance(key, StandIn) and key.kind not in _LEAVES:
        raise refuse(f"uses a {key.kind} as a key of a dictionary or in a set, where names are expected")
    if isinstance(key, int) and key.bit_length() > _KEY_BITS:
        raise refuse(f"uses a whole number of {key.bit_length()} bits as a key")
    return key


def parts_of(value: Any) -> list[Any]:
    """The parts of a tuple or list."""
    if not isinstance(value, StandIn) or not isinstance(value.parts, list):
        raise refuse("gives a function other arguments than torch.save writes", AGAIN)
    return value.parts


def attributes(state: Any, of: type = torch.Tensor) -> None:
    """Refuse attributes that would hide those of the class."""
    for part in parts_of(state) if isinstance(state, StandIn) and state.kind == "tuple" else [state]:
        if part is None:
            continue
        if not isinstance(part, StandIn) or part.kind not in ("dict", "OrderedDict"):
            raise refuse("gives an object attributes that are not in a dictionary", AGAIN)
        for name in part.parts:
            if not isinstance(name, str) or hasattr(of, name):
                raise refuse(f"sets the attribute {one_line(name, 80)!r} of {of.__name__}", "do not trust it")


# -- what the functions that torch allows may be given


def _ordered(*items: Any) -> StandIn:
    pairs = [parts_of(pair) for pair in parts_of(items[0])] if items else []  # Python 2 wrote the pairs as arguments
    return StandIn("OrderedDict", {key_of(key): value for key, value in pairs})


def _counter(counts: Any = None) -> StandIn:
    if counts is None or (isinstance(counts, StandIn) and counts.kind == "dict"):
        return StandIn("Counter", {} if counts is None else dict(counts.parts))
    raise refuse("gives Counter other arguments than torch.save writes", AGAIN)


def _set_of(items: Any) -> StandIn:
    return StandIn("set", [key_of(item) for item in parts_of(items)])


def _plain(kind: str) -> Callable[..., StandIn]:
    """A function of plain values, or of one tuple of them, that makes a small object."""

    def rule(*items: Any) -> StandIn:
        flat = [part for item in items for part in (parts_of(item) if isinstance(item, StandIn) else [item])]
        if len(flat) > 4096 or any(isinstance(part, StandIn | Global) for part in flat):
            raise refuse(f"gives {kind} other arguments than torch.save writes", AGAIN)
        return StandIn("tuple" if kind == "torch.Size" else kind, flat)

    return rule


def _encode(text: str, codec: str = "") -> bytes:
    if codec not in ("latin1", "latin-1"):
        raise refuse(f"asks for the codec {one_line(codec, 40)!r}", TRUST)
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _bytearray(*items: Any) -> StandIn:
    if items and not isinstance(items[0], str | bytes):
        raise refuse("asks for a bytearray, which could be of any size")
    return StandIn("bytearray")


def _ints(value: Any) -> list[int]:
    numbers = parts_of(value)
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise refuse("has a tensor of a shape or strides that are not whole numbers", AGAIN)
    return numbers


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any, item: int | None = None) -> StandIn:
    """A view of a storage. torch would let one that reaches beyond it read memory that nothing was written to."""
    if not isinstance(storage, StandIn) or storage.kind != "storage" or type(offset) is not int or offset < 0:
        raise refuse("makes a tensor of what are not its bytes", AGAIN)
    shape, steps = _ints(size), _ints(stride)
    last = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    held, own = storage.parts
    if 0 not in shape and last >= held // (item or own):
        raise refuse(f"has a tensor of shape {tuple(shape[:8])} beyond its bytes", "save tensor.contiguous()")
    _check_rest(rest)
    return StandIn("tensor")


def _check_rest(rest: tuple[Any, ...]) -> None:
    for more in rest:
        if isinstance(more, StandIn) and more.kind not in ("dict", "OrderedDict", "tuple"):
            raise refuse("gives a tensor what torch.save does not write", AGAIN)


def _tensor_3(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *more: Any) -> Any:
    kind = getattr(torch, dtype.name.removeprefix("torch."))
    return _tensor(storage, offset, size, stride, grad, hooks, *more, item=kind.itemsize)


def _parameter(tensor: Any, grad: Any = True, hooks: Any = None, state: Any = None) -> StandIn:
    if not isinstance(tensor, StandIn) or tensor.kind != "tensor":
        raise refuse("makes a parameter of what is not a tensor", AGAIN)
    attributes(state)
    return StandIn("tensor")


def _nested(*_: Any) -> StandIn:
    raise refuse("holds a nested tensor", "save the tensors of tensor.unbind()")


def _subclass(*_: Any) -> StandIn:
    raise refuse("holds a tensor of another class (of a distributed or quantised model)", "save the plain tensor")


def _dtype(form: Any, *_: Any) -> StandIn:
    if form not in NUMPY:
        raise refuse(f"holds numpy values of the format {one_line(form, 20)!r}", TENSORS)
    return StandIn("dtype", form)


def _build_dtype(target: StandIn, state: Any) -> None:
    if [*parts_of(state)][:1] != [3] or not re.fullmatch(r"[<>|=]", str(parts_of(state)[1])):
        raise refuse("holds a numpy format that numpy does not write", AGAIN)
    if parts_of(state)[2:] != [None, None, None, -1, -1, 0]:
        raise refuse("holds a numpy format that numpy does not write", AGAIN)


def _scalar(dtype: Any, data: Any) -> StandIn:
    if not _fills(dtype, 1, data):
        raise refuse("holds a numpy number of the wrong size", AGAIN)
    return StandIn("number")


def _fills(dtype: Any, count: int, data: Any) -> bool:
    known = isinstance(dtype, StandIn) and dtype.kind == "dtype" and isinstance(data, bytes)
    return known and len(data) == count * np.dtype(dtype.parts).itemsize


def _array(kind: Any, shape: Any, code: Any) -> StandIn:
    if not isinstance(kind, Global) or kind.name != "numpy.ndarray" or _ints(shape) != [0] or code != b"b":
        raise refuse("holds an array that numpy does not write", AGAIN)
    return StandIn("array")


def _build_array(target: StandIn, state: Any) -> None:
    match parts_of(state):
        case [1, shape, dtype, bool(), data] if len(_ints(shape)) <= 32 and _fills(dtype, _count(_ints(shape)), data):
            return
    raise refuse("holds an array that numpy does not write", AGAIN)


def _count(shape: list[int]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")

CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "torch.Size": _plain("torch.Size"),
    "torch.device": _plain("torch.device"),
    "torch.serialization._get_layout": _plain("layout"),
    "_codecs.encode": _encode,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_3,
    "torch._utils._rebuild_qtensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._utils._rebuild_sparse_tensor": lambda layout, data: holding("tensor", parts_of(data)),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda *items: StandIn("tensor"),
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_wrapper_subclass": _subclass,
    "torch._utils._rebuild_device_tensor_from_numpy": _subclass,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _subclass,
    "numpy.dtype": _dtype,
    "pathlib.PosixPath": _plain("path"),
    "pathlib.WindowsPath": _plain("path"),
    **{f"{module}.{name}": _set_of for module, name in (("__builtin__", "set"), ("builtins", "set"))},
    **{f"{module}.complex": _plain("complex") for module in ("__builtin__", "builtins")},
    **{f"{module}.bytes": _no_bytes for module in ("__builtin__", "builtins")},
    **{f"{module}.bytearray": _bytearray for module in ("__builtin__", "builtins")},
    **{f"{module}.scalar": _scalar for module in MULTIARRAY},
    **{f"{module}._reconstruct": _array for module in MULTIARRAY},
}
CLASSES = {"torch.Tensor", "numpy.ndarray", "argparse.Namespace", "torch._tensor._rebuild_from_type_v2"}

BUILDS: dict[str, Callable[[StandIn, Any], None]] = {
    "OrderedDict": lambda target, state: attributes(state, OrderedDict),
    "namespace": lambda target, state: attributes(state, object),
    "dtype": _build_dtype,
    "array": _build_array,
}
