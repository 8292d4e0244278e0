"""A finite data set as tensors: reading loaders, taking rows, calling a module with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from isthmus.errors import InputError

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


def rows(x: Inputs, index: slice | Tensor) -> Inputs:
    """Some examples."""
    if isinstance(x, Tensor):
        return x[index]
    if isinstance(x, dict):
        return {k: v[index] for k, v in x.items()}
    return tuple(v[index] for v in x)


def cast_inputs(x: Inputs, dtype: torch.dtype) -> Inputs:
    """The floating-point parts in `dtype`; integer ones as they are."""

    def one(v: Tensor) -> Tensor:
        return v.to(dtype) if v.is_floating_point() else v

    if isinstance(x, Tensor):
        return one(x)
    return {k: one(v) for k, v in x.items()} if isinstance(x, dict) else tuple(one(v) for v in x)


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
    """(x, y) from a pair of tensors or from a loader, checked: not empty, equal lengths, one device, finite."""
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[1], Tensor):
        x, y = data
        x = tuple(x) if isinstance(x, list) else x
    else:
        x, y = _read_loader(data)
    parts = tree_flatten(x)[0]
    if not parts or not all(isinstance(v, Tensor) for v in parts):
        raise InputError("data", expected="x as a tensor, a tuple or a dict of tensors", got=type(x).__name__)
    if len(y) == 0:
        raise InputError("data", expected="at least one example", got="none")
    for v in (*parts, y):
        if len(v) != len(y):
            raise InputError("data", expected=f"{len(y)} examples in every tensor", got=len(v))
        if v.device != y.device:
            raise InputError("data", expected=f"all tensors on {y.device}", got=v.device)
        if v.is_floating_point() and not bool(v.isfinite().all()):
            raise InputError("data", expected="finite numbers", got=f"{int((~v.isfinite()).sum())} NaN or infinite")
    return x, y


def _read_loader(loader: Any) -> tuple[Inputs, Tensor]:
    """Read a loader into memory, twice: passes that differ by more than the order are refused."""
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor | str | dict):
        raise InputError("data", expected="a pair of tensors (x, y) or a DataLoader", got=type(loader).__name__)
    if iter(loader) is loader:
        raise InputError("data", expected="a DataLoader, which can be read twice", got=type(loader).__name__)
    x, y = _one_pass(loader)
    again, y_again = _one_pass(loader)
    sums = [[float(v.double().square().sum()) for v in tree_flatten(part)[0]] for part in ((x, y), (again, y_again))]
    if len(y) != len(y_again) or any(abs(p - q) > 1e-9 * max(1.0, abs(p)) for p, q in zip(*sums, strict=True)):
        raise InputError(
            "data",
            expected="a loader that gives the same examples on every pass",
            got="two passes that differ",
            instead="a loader without random augmentation and with drop_last=False",
        )
    return x, y


def _one_pass(loader: Iterable[Any]) -> tuple[Inputs, Tensor]:
    xs: list[Any] = []
    ys: list[Tensor] = []
    for batch in loader:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], Tensor):
            raise InputError("data", expected="batches (x, y)", got=type(batch).__name__)
        xs.append(tuple(batch[0]) if isinstance(batch[0], list) else batch[0])
        ys.append(batch[1])
    if not ys:
        raise InputError("data", expected="at least one batch", got="an empty loader")
    if isinstance(xs[0], dict):
        return {k: torch.cat([x[k] for x in xs]) for k in xs[0]}, torch.cat(ys)
    if isinstance(xs[0], tuple):
        return tuple(torch.cat(list(column)) for column in zip(*xs, strict=True)), torch.cat(ys)
    return torch.cat(xs), torch.cat(ys)
