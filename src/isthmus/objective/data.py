"""A finite data set as tensors: taking rows, calling a module with them, saying what is wrong with them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from isthmus.errors import InputError
from isthmus.params import in_dtype, moves

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""One argument, several positional ones, or keyword arguments; batch first in each."""


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


def rows(x: Any, index: slice | Tensor) -> Any:
    """Some examples of a tensor, or of each in a tree of tensors."""
    return x[index] if isinstance(x, Tensor) else tree_map(lambda v: v[index], x)


def number(y: Any) -> int:
    """How many examples there are."""
    return len(tree_flatten(y)[0][0])


def cast_inputs(x: Inputs, dtype: torch.dtype) -> Inputs:
    """The real and complex parts in the precision `dtype`; integer ones as they are."""
    return tree_map(lambda v: in_dtype(v, dtype), x)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of targets, outputs and losses: at least float32."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def precision(tensors: Iterable[Tensor]) -> torch.dtype:
    """float64 if one of the tensors has it, else float32.

    >>> precision([torch.ones(1).half(), torch.tensor(3)])
    torch.float32
    """
    kinds = {v.dtype for v in tensors}
    return torch.float64 if kinds & {torch.float64, torch.complex128} else torch.float32


def digest_of_data(x: Inputs, y: Any, dtype: torch.dtype) -> str:
    """The SHA-256 of the examples with their floating-point parts in `dtype`: other numbers have another digest.

    Images and the same images as flat rows have the same digest, and so have all devices.
    """
    return digest_of(lambda: [(x, y)], number(y), dtype)


def digest_of(batches: Callable[[], Iterable[tuple[Any, Any]]], n: int, dtype: torch.dtype) -> str:
    """``digest_of_data`` of `n` examples that come in batches (x, y); one pass over them for each tensor of a batch."""
    sha, i, parts = hashlib.sha256(), 0, 1
    while i < parts:
        for k, (x, y) in enumerate(batches()):
            named = [*_named(x, ""), *_named(y, "y")]
            name, value = named[i]
            value = value.detach().to(dtype if value.is_floating_point() else value.dtype)
            if k == 0:
                sha.update(repr((name, str(value.dtype), n, n * value[0].numel())).encode())
            sha.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            parts = len(named)
        i += 1
    return sha.hexdigest()


def _named(x: Any, name: str) -> list[tuple[str, Tensor]]:
    if isinstance(x, Tensor):
        return [(name, x)]
    parts = tree_flatten(x)[0]
    return [
        (name + k, v) for k, v in zip(x if isinstance(x, dict) else map(str, range(len(parts))), parts, strict=True)
    ]


def check_examples(parts: list[Tensor], targets: list[Tensor]) -> None:
    """Refuse tensors that do not hold as many examples each, finite ones, in one place."""
    y = targets[0]
    for v in (*parts, *targets):
        _check_dense(v)
    if y.dim() == 0 or len(y) == 0:
        raise InputError("data", expected="at least one example", got="none" if y.dim() else "one number as y")
    for v in (*parts, *targets):
        _check_beside(v, y)


def all_tensors(parts: Iterable[Any]) -> bool:
    """Whether each part is a tensor."""
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


_OF_WHOLE = (
    ("dtype|Byte|Char|Short|Int|Long|Bool|not implemented for", "x.float(), for x of {}"),
    ("index out of range", "numbers that the network knows, and no more places than it has (--block for texts)"),
)
_OF_FLOATING = (("indices", "x.long(), for numbers that are looked up"),)
_OF_ANY = (
    (
        "exactly one of (decoder_)?input_ids",
        "decoder_input_ids in every batch, as model.prepare_decoder_input_ids_from_labels(labels) makes them",
    ),
    ("mat_a .* got Double", 'model.set_experts_implementation("batched_mm"), for experts of transformers'),
    ("BFloat16", "dtype=torch.bfloat16, where the module itself computes in that"),
    ("Half", "dtype=torch.float16, where the module itself computes in that"),
)
"""What complaints of a module say of its inputs, and what to write instead."""


def hint(complaint: str, x: Inputs) -> str:
    """What to write where a module complains of types: whole numbers are not taken for floating-point ones."""
    whole = [v.dtype for v in tree_flatten(x)[0] if not moves(v)]
    return next(
        (instead for words, instead in (_OF_WHOLE if whole else _OF_FLOATING) + _OF_ANY if re.search(words, complaint)),
        "",
    ).format(*whole[:1])


def _check_dense(v: Tensor) -> None:
    if v.layout != torch.strided or v.is_nested:
        kind = "nested" if v.is_nested else "sparse"
        instead = "torch.nested.to_padded_tensor(x, 0.0)" if v.is_nested else "x.to_dense()"
        raise InputError("data", expected="dense tensors", got=f"a {kind} one", instead=instead)
    if v.is_quantized:
        raise InputError("data", expected="ordinary numbers", got="a quantised tensor", instead="x.dequantize()")


def kind(x: Any) -> str:
    """What it is, in words."""
    return f"{type(x).__name__} of {type(x[0]).__name__}" if isinstance(x, tuple | list) and x else type(x).__name__


def is_array(v: Any) -> bool:
    """Whether `v` is a tensor, an array, a column of a table, or a list of (lists of) numbers."""
    return isinstance(v, Tensor | np.ndarray) or hasattr(v, "to_numpy") or is_numbers(v)


def is_numbers(v: Any) -> bool:
    """Whether `v` is a list of (lists of) numbers."""
    while isinstance(v, list) and v:
        v = v[0]
    return isinstance(v, int | float | complex | np.number)


def tensor_of(v: Any) -> Any:
    """A tensor from an array, a column or a table with ``to_numpy``, a list of numbers; anything else as it is.

    >>> tensor_of([[1.0, 2.0]]), tensor_of("text")
    (tensor([[1., 2.]]), 'text')
    """
    if isinstance(v, Tensor) or not is_array(v):
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
