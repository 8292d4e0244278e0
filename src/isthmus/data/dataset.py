"""A data set in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.shown import one_line


@one_line
@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples: inputs in floating point or whole numbers (int64), labels as int64.

    `x_train` is [n, c, h, w] for images, [n, d] for rows and [n, T] for sequences of words. `y_train` holds labels
    0 .. classes-1, and -100 where one counts nowhere, or real targets (then `classes` is 0). `x_test` and `y_test` are
    None together when there are no test examples. `source` says where the numbers came from.

    `name`: of the set.

    >>> data = Dataset("two", torch.zeros(2, 1, 3, 3), torch.tensor([0, 1]), None, None, 2, "made here")
    >>> data.flat().x_train.shape, data.subset(1).y_train
    (torch.Size([2, 9]), tensor([0]))
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor | None
    y_test: Tensor | None
    classes: int
    source: str

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            if (x is None) != (y is None):
                raise InputError(f"x_{part}, y_{part}", expected="both, or neither", got="only one of them")
            if x is not None and y is not None:
                _check_shapes(f"x_{part}, y_{part}", x, y)
        if self.x_test is not None and self.x_test.shape[1:] != self.x_train.shape[1:]:
            raise InputError(
                "x_test",
                expected=f"examples of shape {list(self.x_train.shape[1:])}, as in x_train",
                got=list(self.x_test.shape[1:]),
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the shapes, dtypes and bytes of the four tensors: equal digests mean equal data."""
        sha = hashlib.sha256()
        for tensor in (self.x_train, self.y_train, self.x_test, self.y_test):
            if tensor is None:
                sha.update(b"none;")
            else:
                sha.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
                sha.update(tensor.cpu().contiguous().numpy().data)
        return sha.hexdigest()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.x_train.shape[1:])

    def flat(self) -> Dataset:
        """The same examples as rows: x is [n, d]."""
        return self._map_x(lambda x: x.flatten(1))

    def floating(self) -> Dataset:
        """The same examples with inputs of whole numbers as float32, for networks that calculate with them."""
        return self._map_x(lambda x: x if x.is_floating_point() else x.float())

    def cast(self, dtype: torch.dtype) -> Dataset:
        """Inputs, and real targets, in the floating-point `dtype`; labels and whole numbers stay int64."""
        if not dtype.is_floating_point:
            raise InputError("dtype", expected="a floating-point dtype", got=dtype, instead="torch.float64")
        out = self._map_x(lambda x: x.to(dtype) if x.is_floating_point() else x)
        if self.classes:
            return out
        y_test = None if self.y_test is None else self.y_test.to(dtype)
        return replace(out, y_train=self.y_train.to(dtype), y_test=y_test)

    def to(self, device: torch.device) -> Dataset:
        """The same examples on a device."""
        out = self._map_x(lambda x: x.to(device))
        y_test = None if self.y_test is None else self.y_test.to(device)
        return replace(out, y_train=self.y_train.to(device), y_test=y_test)

    def subset(self, n_train: int | None = None, n_test: int | None = None) -> Dataset:
        """The first `n_train` training and the first `n_test` test examples; None keeps them all."""
        x, y = self._first("n_train", n_train, self.x_train, self.y_train)
        if self.x_test is None or self.y_test is None:
            if n_test is not None:
                raise InputError("n_test", expected="None, as there are no test examples", got=n_test)
            return replace(self, x_train=x, y_train=y)
        x_test, y_test = self._first("n_test", n_test, self.x_test, self.y_test)
        return replace(self, x_train=x, y_train=y, x_test=x_test, y_test=y_test)

    def _first(self, what: str, n: int | None, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if n is None:
            return x, y
        if not 1 <= n <= len(x):
            raise InputError(what, expected=f"a whole number from 1 to {len(x)}, as {self.name} has", got=n)
        return x[:n], y[:n]

    def _map_x(self, change: Callable[[Tensor], Tensor]) -> Dataset:
        x_test = None if self.x_test is None else change(self.x_test)
        return replace(self, x_train=change(self.x_train), x_test=x_test)


def _check_shapes(what: str, x: Tensor, y: Tensor) -> None:
    if x.ndim < 2 or len(x) < 1 or y.ndim < 1 or len(x) != len(y):
        raise InputError(
            what,
            expected="shapes [n, ...] and [n] or [n, k] with the same n >= 1",
            got=f"{list(x.shape)} and {list(y.shape)}",
        )
