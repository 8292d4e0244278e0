"""A finite data set as tensors: reading loaders, taking rows, calling a module with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from isthmus.errors import InputError
from isthmus.params import in_dtype, moves

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""One argument, several positional ones, or keyword arguments; batch first in each."""
Data = tuple[Any, Any] | Iterable[Any]
"""A pair (x, y) or a loader of such pairs, of tensors, arrays or lists."""


def arguments(x: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The positional and keyword arguments of the call."""
    if isinstance(x, dict):
        return (), x
    return (x if isinstance(x, tuple) else (x,)), {}


def single(x: Inputs) -> Tensor:
    """The one tensor that `x` holds; refuses several."""
    parts = tree_flatten(x)[0]
    if len(parts) != 1:
        raise InputError("data", expected="one input tensor for a chain of layers", got=f"{len(parts)} tensors")
    return parts[0]


def rows(x: Inputs, index: slice | Tensor) -> Inputs:
    """Some examples."""
    if isinstance(x, Tensor):
        return x[index]
    if isinstance(x, dict):
        return {k: v[index] for k, v in x.items()}
    return tuple(v[index] for v in x)


def cast_inputs(x: Inputs, dtype: torch.dtype) -> Inputs:
    """The real and complex parts in the precision `dtype`; integer ones as they are."""
    return tree_map(lambda v: in_dtype(v, dtype), x)


def precision(tensors: Iterable[Tensor]) -> torch.dtype:
    """float64 if one of the tensors has it, else float32.

    >>> precision([torch.ones(1).half(), torch.tensor(3)])
    torch.float32
    """
    kinds = {v.dtype for v in tensors}
    return torch.float64 if kinds & {torch.float64, torch.complex128} else torch.float32


def digest_of_data(x: Inputs, y: Tensor, dtype: torch.dtype) -> str:
    """The SHA-256 of the examples with their floating-point parts in `dtype`: other numbers have another digest.

    Images and the same images as flat rows have the same digest, and so have all devices.
    """
    x = {"": x} if isinstance(x, Tensor) else x
    named = list(x.items()) if isinstance(x, dict) else [(str(i), v) for i, v in enumerate(x)]
    sha = hashlib.sha256()
    for name, value in (*named, ("y", y)):
        value = value.detach().to(dtype if value.is_floating_point() else value.dtype)
        sha.update(repr((name, str(value.dtype), len(value), value.numel())).encode())
        sha.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def as_tensors(data: Any) -> tuple[Inputs, Tensor]:
    """(x, y) from a pair or from a loader, checked: dense tensors, not empty, equal lengths, one device, finite."""
    if data is None:
        raise InputError("data", expected="a pair of tensors (x, y) or a DataLoader", got="nothing")
    if isinstance(data, tuple | list) and len(data) == 2 and _is_array(data[1]):
        x, y = _pair(data)
    else:
        x, y = _read_loader(data)
    parts = tree_flatten(x)[0]
    if not parts or not _all_tensors(parts):
        raise InputError("data", expected="x as a tensor, a tuple or a dict of tensors", got=_kind(x))
    _check_examples(parts, y)
    return tree_map(lambda v: v.detach(), x), y.detach()


def _check_examples(parts: list[Tensor], y: Tensor) -> None:
    for v in (*parts, y):
        _check_dense(v)
    if y.dim() == 0 or len(y) == 0:
        raise InputError("data", expected="at least one example", got="none" if y.dim() else "one number as y")
    for v in (*parts, y):
        _check_beside(v, y)


def _all_tensors(parts: Iterable[Any]) -> bool:
    return all(isinstance(v, Tensor) for v in parts)


def _check_beside(v: Tensor, y: Tensor) -> None:
    if v.dim() == 0 or len(v) != len(y):
        got = len(v) if v.dim() else "a number"
        raise InputError("data", expected=f"{len(y)} examples in every tensor", got=got)
    if v.device != y.device:
        instead = f"x.to({str(y.device)!r})"
        raise InputError("data", expected=f"all tensors on {y.device}", got=v.device, instead=instead)
    if moves(v) and not bool(v.isfinite().all()):
        raise InputError("data", expected="finite numbers", got=f"{int((~v.isfinite()).sum())} NaN or infinite")


def extremes(x: Inputs) -> set[int]:
    """The examples with the smallest and the largest whole numbers, such as words that a network has not."""
    whole = [v.long().reshape(len(v), -1) for v in tree_flatten(x)[0] if not moves(v) and v.numel()]
    return {int(i) for v in whole for i in (v.amin(1).argmin(), v.amax(1).argmax())}


def hint(complaint: str, x: Inputs) -> str:
    """What to write where a module complains of types: whole numbers are not taken for floating-point ones."""
    whole = [v.dtype for v in tree_flatten(x)[0] if not moves(v)]
    types = ("dtype", "Byte", "Char", "Short", "Int", "Long", "Bool", "not implemented for")
    if whole and any(word in complaint for word in types):
        return f"x.float(), for x of {whole[0]}"
    if not whole and "indices" in complaint:
        return "x.long(), for numbers that are looked up"
    for word, narrow in (("BFloat16", "bfloat16"), ("Half", "float16")):
        if word in complaint:
            return f"dtype=torch.{narrow}, where the module itself computes in that"
    return ""


def which(output: Any) -> str:
    """How the first tensor of a module's output is written.

    >>> which((torch.ones(1), None)), which({"logits": torch.ones(1)})
    ('the_module(...)[0]', "the_module(...)['logits']")
    """
    if isinstance(output, Mapping):
        key = next((k for k, v in output.items() if isinstance(v, Tensor)), "name")
        return f"the_module(...)[{key!r}]"
    if isinstance(output, tuple | list):
        return "the_module(...)[0]"
    name = next((k for k, v in getattr(output, "__dict__", {}).items() if isinstance(v, Tensor)), "")
    return f"the_module(...).{name}" if name else "one tensor"


def _check_dense(v: Tensor) -> None:
    if v.layout != torch.strided or v.is_nested:
        kind = "nested" if v.is_nested else "sparse"
        instead = "torch.nested.to_padded_tensor(x, 0.0)" if v.is_nested else "x.to_dense()"
        raise InputError("data", expected="dense tensors", got=f"a {kind} one", instead=instead)
    if v.is_quantized:
        raise InputError("data", expected="ordinary numbers", got="a quantised tensor", instead="x.dequantize()")


def _kind(x: Any) -> str:
    return f"{type(x).__name__} of {type(x[0]).__name__}" if isinstance(x, tuple | list) and x else type(x).__name__


def _is_array(v: Any) -> bool:
    """Whether `v` is a tensor, an array, a column of a table, or a list of (lists of) numbers."""
    return isinstance(v, Tensor | np.ndarray) or hasattr(v, "to_numpy") or _is_numbers(v)


def _is_numbers(v: Any) -> bool:
    while isinstance(v, list) and v:
        v = v[0]
    return isinstance(v, int | float | complex | np.number)


def _tensor_of(v: Any) -> Any:
    """A tensor from an array, a column or a table with ``to_numpy``, a list of numbers; anything else as it is.

    >>> _tensor_of([[1.0, 2.0]]), _tensor_of("text")
    (tensor([[1., 2.]]), 'text')
    """
    if isinstance(v, Tensor) or not _is_array(v):
        return v
    try:
        if isinstance(v, list):
            return torch.tensor(v)
        array = np.array(v.to_numpy() if hasattr(v, "to_numpy") else v)  # a copy, which nobody else writes to
        whole = array.dtype.kind == "u" and array.itemsize > 1
        return torch.from_numpy(array.astype(np.int64 if whole else array.dtype.newbyteorder("=")))
    except (ValueError, TypeError, RuntimeError) as e:
        raise InputError(
            "data", expected="arrays of numbers, all rows of one length", got=str(e).splitlines()[0],
            instead="" if isinstance(e, TypeError) else "examples padded to one length",
        ) from e  # fmt: skip


def _inputs(x: Any) -> Any:
    """x with every part a tensor; a list of numbers is one part, other lists and tuples are several."""
    if isinstance(x, Mapping):
        return {k: _tensor_of(v) for k, v in x.items()}
    if isinstance(x, tuple) or (isinstance(x, list) and not _is_numbers(x)):
        return tuple(_tensor_of(v) for v in x)
    return _tensor_of(x)


def _pair(pair: Sequence[Any]) -> tuple[Any, Any]:
    return _inputs(pair[0]), _tensor_of(pair[1])


def _read_loader(loader: Any) -> tuple[Inputs, Tensor]:
    """Read a loader into memory, twice: passes that differ by more than the order are refused."""
    _check_loader(loader)
    first, again = _one_pass(loader), _one_pass(loader)
    if not _same_examples(first, again):
        raise InputError(
            "data",
            expected="a loader that gives the same examples on every pass",
            got="two passes that differ",
            instead="a loader without random augmentation and with drop_last=False",
        )
    return first


def _check_loader(loader: Any) -> None:
    what = "a pair (x, y) of tensors or a DataLoader"
    if isinstance(loader, tuple) and loader and all(map(_is_array, loader)):
        raise InputError("data", expected=what, got=f"{len(loader)} tensors", instead="((x1, x2), y) for two inputs")
    if isinstance(loader, torch.utils.data.Dataset):
        instead = "DataLoader(dataset, batch_size=256)"
        raise InputError("data", expected=what, got=f"the data set {type(loader).__name__}", instead=instead)
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor | np.ndarray | str | dict):
        pair = "(data[NAME_OF_X], data[NAME_OF_Y])" if isinstance(loader, dict) else ""
        raise InputError("data", expected=what, got=type(loader).__name__, instead=pair)
    if iter(loader) is loader:
        raise InputError("data", expected="a DataLoader, which can be read twice", got=type(loader).__name__)


def _same_examples(a: tuple[Inputs, Tensor], b: tuple[Inputs, Tensor]) -> bool:
    """Whether two passes give as many examples, and the same sums: the order may differ."""
    if len(a[1]) != len(b[1]):
        return False
    sums, others = ([_size(v) for v in tree_flatten(part)[0]] for part in (a, b))
    return not any(abs(p - q) > 1e-9 * max(1.0, abs(p)) for p, q in zip(sums, others, strict=True))


def _size(v: Tensor) -> float:
    return float(v.abs().double().square().sum()) if v.dtype != torch.bool else float(v.sum())


def _one_pass(loader: Iterable[Any]) -> tuple[Inputs, Tensor]:
    batches = [_batch(batch) for batch in loader]
    if not batches:
        raise InputError("data", expected="at least one batch", got="an empty loader")
    xs, ys = zip(*batches, strict=True)
    if not _all_tensors(tree_flatten(xs)[0]) or len({_layout(x) for x in xs}) > 1:
        raise InputError("data", expected="batches whose x is a tensor, a tuple or a dict of tensors", got=_kind(xs[0]))
    return tree_map(lambda *parts: _joined(parts), xs[0], *xs[1:]), _joined(ys)


def _batch(batch: Any) -> tuple[Inputs, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not _is_array(batch[1]):
        _refuse_batch(batch)
    x, y = _pair(batch)
    if not isinstance(y, Tensor) or y.dim() == 0:
        raise InputError(
            "data", expected="batches (x, y)", got="single examples", instead="DataLoader(dataset, batch_size=256)"
        )
    return x, y


def _layout(x: Any) -> str:
    return str(tree_flatten(x)[1])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Batches one after the other. Errors: examples of different shapes."""
    if len(shapes := sorted({tuple(v.shape[1:]) for v in parts})) > 1:
        raise InputError(
            "data", expected="examples of one shape in all batches", got=f"{shapes[0]} and {shapes[1]}",
            instead="a loader that pads to one length (ignore_index for the labels of the padding)",
        )  # fmt: skip
    return torch.cat(list(parts))


def _refuse_batch(batch: Any) -> None:
    """Say how to make pairs from what the loader gives."""
    got, instead = type(batch).__name__, ""
    if hasattr(batch, "keys"):
        keys = [str(k) for k in batch.keys()]
        name = next((k for k in ("labels", "label", "targets", "target", "y") if k in keys), None)
        label = repr(name) if name else "NAME_OF_THE_LABELS"
        got = f"{got} with the keys {', '.join(keys)}"
        instead = f"[({{k: v for k, v in b.items() if k != {label}}}, b[{label}]) for b in loader]"
    elif isinstance(batch, tuple | list) and len(batch) > 2:
        names = ", ".join(f"x{i + 1}" for i in range(len(batch) - 1))
        got = f"{len(batch)} parts"
        instead = f"[(({names}), y) for {names}, y in loader], or [(x1, y) for ...] where the module takes one of them"
    raise InputError("data", expected="batches (x, y)", got=got, instead=instead)
