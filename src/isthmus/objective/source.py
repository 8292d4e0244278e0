"""Where the examples of an objective are: in memory, in a loader that is read again at every pass, or out of sight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from isthmus.errors import InputError, UnsupportedError
from isthmus.objective import data as datasets
from isthmus.objective.adapt import nameless
from isthmus.objective.batches import Batch, BatchReading, check_layouts, checked, is_batch, joined, loader_of, read
from isthmus.objective.data import rows
from isthmus.objective.named import targets
from isthmus.shown import plural

Pair = tuple[Any, Any]
"""(x, y) of some examples, as the module and the loss take them."""
Evaluate = Callable[[dict[str, Tensor]], Mapping[str, float]]
"""params -> {"loss": ..., "error": ...}, the error if there is one."""


@dataclass(frozen=True, eq=False)
class Prepare:
    """Examples as the module and the loss take them; the module takes the part `nameless` of x by position."""

    loss: Any
    dtype: torch.dtype
    nameless: str | None = None

    def __call__(self, examples: Batch) -> Pair:
        """(x, y)."""
        x: Any = examples.x
        x = x if self.nameless is None else x[self.nameless]
        return datasets.cast_inputs(x, self.dtype), targets(self.loss, examples.y, datasets.wide(self.dtype))


class Source(ABC):
    """The examples of one data set. `number`: how many; `device`: where; `batch`: see ``Batch``."""

    number: int
    device: torch.device
    batch: Any
    passes: int = 0

    @abstractmethod
    def cast(self, dtype: torch.dtype) -> Source:
        """The same ones in another precision."""

    @abstractmethod
    def held(self) -> Pair:
        """All of them, in memory."""

    @abstractmethod
    def chunks(self, most: int) -> Iterator[Pair]:
        """All of them in order, at most so many at a time."""

    @abstractmethod
    def at(self, index: Tensor) -> Pair:
        """Those with these numbers."""

    @abstractmethod
    def few(self) -> Pair:
        """The first four, and others that may be unlike them."""

    @abstractmethod
    def head(self, n: int) -> Pair:
        """The first `n`; fewer where they do not stand in one batch."""

    @abstractmethod
    def first(self, n: int) -> Held:
        """The first `n`, in memory."""

    @abstractmethod
    def targets(self) -> Any:
        """The targets of all of them."""

    @abstractmethod
    def digest(self, dtype: torch.dtype) -> str:
        """``digest_of_data``."""

    def describe(self) -> dict[str, Any]:
        """Plain values that say where they are; nothing where they are in memory."""
        return {}

    def words(self) -> list[str]:
        """What a line about them says."""
        return [plural(self.number, "example")]


@dataclass(eq=False)
class Held(Source):
    """Examples in memory."""

    x: Any
    y: Any
    batch: Any = None

    def __post_init__(self) -> None:
        first = tree_flatten(self.y)[0][0]
        self.number, self.device = len(first), first.device

    def cast(self, dtype: torch.dtype) -> Held:
        """Tensors that have it are shared."""
        y = datasets.cast_inputs(self.y, datasets.wide(dtype))
        return Held(datasets.cast_inputs(self.x, dtype), y, self.batch)

    def held(self) -> Pair:
        """(x, y)."""
        return self.x, self.y

    def part(self, index: slice) -> Held:
        """Some of them, as views."""
        x, y = rows((self.x, self.y), index)
        return Held(x, y, self.batch)

    def chunks(self, most: int) -> Iterator[Pair]:
        """Views."""
        for i in range(0, self.number, most):
            yield rows((self.x, self.y), slice(i, i + most))

    def at(self, index: Tensor) -> Pair:
        """Copies."""
        return rows((self.x, self.y), index)

    def few(self) -> Pair:
        """Also one from the middle, the last, and those with extreme whole numbers."""
        n = self.number
        some = {*range(min(4, n)), n // 2, n - 1} | datasets.extremes(self.x)
        return self.at(torch.tensor(sorted(some), device=self.device))

    def head(self, n: int) -> Pair:
        """Views."""
        return rows((self.x, self.y), slice(0, n))

    def first(self, n: int) -> Held:
        """Views."""
        return self.part(slice(0, n))

    def targets(self) -> Any:
        """y."""
        return self.y

    def digest(self, dtype: torch.dtype) -> str:
        """Of what is in memory."""
        return datasets.digest_of_data(self.x, self.y, dtype)


@dataclass(eq=False)
class Streamed(Source):
    """Examples in a loader: one batch is in memory at a time, besides a few examples.

    `passes`: how often the loader was read to its end. Every pass must begin with the same examples and give as many.
    """

    loader: Iterable[Any]
    reading: BatchReading
    prepare: Prepare
    start: Batch
    passes: int = 0
    number: int = 0
    _few: list[Batch] = field(default_factory=list)
    _largest: int = 0

    def __post_init__(self) -> None:
        self.batch, self.device = self.start.batch, tree_flatten(self.start.y)[0][0].device

    def cast(self, dtype: torch.dtype) -> Streamed:
        """Another count of passes."""
        return replace(self, prepare=replace(self.prepare, dtype=dtype), passes=0, number=0, _few=[])

    def held(self) -> Pair:
        """Errors: ``UnsupportedError``."""
        raise UnsupportedError(
            "the data", "they are streamed, and this needs them in memory", "write stream=False, or objective.subset(n)"
        )

    def chunks(self, most: int) -> Iterator[Pair]:
        """One pass."""
        for batch in self._batches():
            for i in range(0, datasets.number(batch.y), most):
                yield self.prepare(_part(batch, slice(i, i + most)))

    def at(self, index: Tensor) -> Pair:
        """Read by their numbers. Errors: ``UnsupportedError`` where the data set has none."""
        loader: Any = self.loader
        ordered = isinstance(loader, DataLoader) and isinstance(loader.sampler, SequentialSampler)
        if not ordered or not hasattr(loader.dataset, "__getitem__"):
            raise UnsupportedError(
                "the data", "they are streamed, and this needs examples by their number",
                "give a DataLoader of a data set with numbered examples and without a sampler",
            )  # fmt: skip
        found = loader.collate_fn([loader.dataset[i] for i in index.tolist()])
        return self.prepare(checked(self.reading.split(found)))

    def few(self) -> Pair:
        """Those that the pass for the targets found."""
        return self.prepare(self._few[0])

    def head(self, n: int) -> Pair:
        """Of the first batch, read again."""
        return self.prepare(_part(first_batch(self.loader, self.reading), slice(0, n)))

    def first(self, n: int) -> Held:
        """Costs the part of a pass that it needs."""
        found: list[Batch] = []
        for batch in self._batches():
            found.append(batch)
            if sum(datasets.number(b.y) for b in found) >= n:
                break
        return Held(*self.prepare(_part(joined(found), slice(0, n))), self.batch)

    def targets(self) -> Any:
        """Costs a pass, the first one, and the memory of all targets."""
        parts, few = [], [self.start]
        for batch in self._batches():
            odd = sorted(datasets.extremes(batch.x) | {datasets.number(batch.y) - 1})
            together = joined([*few, _part(batch, torch.tensor(odd, device=self.device))])
            last = datasets.number(together.y) - 1
            keep = {*range(datasets.number(self.start.y)), last} | datasets.extremes(together.x)
            few = [_part(together, torch.tensor(sorted(keep), device=self.device))]
            parts.append(self.prepare(batch)[1])
        self._few = few
        return tree_map(lambda *several: torch.cat(several), *parts)

    def digest(self, dtype: torch.dtype) -> str:
        """Costs a pass for each tensor of a batch."""
        return datasets.digest_of(lambda: self.chunks(self.number), self.number, dtype)

    def describe(self) -> dict[str, Any]:
        """`bytes`: of all examples, and `bytes_held` of a batch, as the first ones have them."""
        each = bytes_of(self.start) // datasets.number(self.start.y)
        return {"streamed": True, "bytes": each * self.number, "bytes_held": each * self._largest}

    def words(self) -> list[str]:
        """With the memory that they take."""
        told = self.describe()
        return [*super().words(), f"streamed, {told['bytes_held'] / 1e6:.3g} of {told['bytes'] / 1e6:.3g} MB in memory"]

    def _batches(self) -> Iterator[Batch]:
        n, few = 0, slice(0, datasets.number(self.start.y))
        for batch in self.loader:
            found = checked(self.reading.split(batch))
            check_layouts([self.start, found])
            if n == 0 and not _same(_part(found, few), self.start):
                raise _differ("other examples at the beginning of a pass")
            size = datasets.number(found.y)
            n, self._largest = n + size, max(self._largest, size)
            yield found
        self.passes += 1
        if self.number not in (0, n):
            raise _differ(f"{n} examples in a pass, {self.number} in the one before")
        self.number = n


@dataclass(eq=False)
class Numbers(Source):
    """A function of the parameters that gives the loss: no examples are to be seen, and no outputs."""

    evaluate: Evaluate
    device: torch.device
    number: int = 0
    batch: Any = None

    @classmethod
    def of(cls, module: nn.Module, evaluate: Evaluate, others: Mapping[str, Any]) -> Numbers:
        """On the device of the module. Errors: ``InputError`` for `others`: how outputs are made and judged."""
        for name, value in others.items():
            if value is not None and (name, value) != ("loss", "cross_entropy"):
                what = getattr(evaluate, "__name__", "the function")
                raise InputError(name, expected=f"nothing beside evaluate=: {what} gives the loss", got="a value")
        return cls(evaluate, next((p.device for p in module.parameters()), torch.device("cpu")))

    def measure(self, params: dict[str, Tensor]) -> tuple[float, float]:
        """(loss, error); NaN for an error that is not given. Errors: ``InputError`` for anything but numbers."""
        found = self.evaluate(dict(params))
        if not isinstance(found, Mapping) or "loss" not in found:
            got = f"the keys {', '.join(map(str, found))}" if isinstance(found, Mapping) else type(found).__name__
            raise InputError("evaluate", expected="a function that gives a dict with the key 'loss'", got=got)
        try:
            return float(found["loss"]), float(found.get("error", float("nan")))
        except (TypeError, ValueError) as e:
            raise InputError("evaluate", expected="numbers", got=str(e)) from e

    def _refuse(self, *_: Any) -> Any:
        raise UnsupportedError(
            "the objective", "evaluate= gives only the loss of parameters, and this needs gradients, outputs or graphs",
            "give loss= and data=",
        )  # fmt: skip

    _none: ClassVar[Any] = _refuse
    held = chunks = at = few = head = first = targets = digest = _none

    def cast(self, dtype: torch.dtype) -> Numbers:
        """Itself."""
        return self

    def describe(self) -> dict[str, Any]:
        """The name of the function, in place of a loss."""
        return {"loss": getattr(self.evaluate, "__name__", "callable"), "named": False, "examples": None}

    def words(self) -> list[str]:
        """Nothing."""
        return []


def open_source(
    module: nn.Module,
    data: Any,
    loss: Any,
    called: Mapping[str, Any],
    *,
    dtype: torch.dtype | None,
    limit: int | None,
) -> tuple[torch.dtype, Source]:
    """The precision, and the examples as `module` and `loss` take them. `called`: options of ``Objective``."""
    if dtype is not None and not dtype.is_floating_point:
        raise InputError("dtype", expected="a floating-point dtype", got=dtype)
    if limit is not None and limit <= 0:
        raise InputError("memory", expected="a positive number of bytes", got=limit)
    if isinstance(data, Source):
        dtype = dtype or datasets.precision(module.parameters())
        return dtype, data.cast(dtype)
    given = _opened(data, BatchReading(called["targets"], called["forward"] is not None), called["stream"], limit)
    start = given.start if isinstance(given, Streamed) else given
    dtype = dtype or datasets.precision([*module.parameters(), *tree_flatten(start.x)[0]])
    prepare = Prepare(loss, dtype, nameless(module, start.x))
    streamed = isinstance(given, Streamed)
    return dtype, replace(given, prepare=prepare) if streamed else Held(*prepare(given), given.batch)


def _opened(data: Any, reading: BatchReading, stream: bool | None, limit: int | None) -> Batch | Streamed:
    """The examples in memory; those of a loader streamed when asked, or when their bytes exceed the `limit`."""
    if data is None or is_batch(data):
        if stream:
            raise InputError("data", expected="a DataLoader or a data set, with stream=True", got="tensors in memory")
        return read(data, reading)
    loader = loader_of(data)
    if stream is False or (stream is None and (limit is None or not _exceeds(loader, reading, limit))):
        return read(data, reading)
    _check_order(loader)
    start = _part(first_batch(loader, reading), slice(0, 4))
    return Streamed(loader, reading, Prepare(None, torch.float32), start)


def first_batch(loader: Iterable[Any], reading: BatchReading) -> Batch:
    """The examples in the first batch."""
    for batch in loader:
        return checked(reading.split(batch))
    raise InputError("data", expected="at least one batch", got="an empty loader")


def bytes_of(examples: Batch) -> int:
    """The bytes of the tensors."""
    return sum(v.numel() * v.element_size() for v in tree_flatten((examples.x, examples.y))[0])


def _exceeds(loader: Iterable[Any], reading: BatchReading, limit: int) -> bool:
    """Whether the examples of a loader, which are not in memory yet, have more bytes than that."""
    if isinstance(loader, list | tuple):
        return False
    data: Any = getattr(loader, "dataset", None)
    if hasattr(data, "__len__"):
        start = first_batch(loader, reading)
        return bytes_of(start) * len(data) > limit * datasets.number(start.y)
    total = 0
    for batch in loader:
        total += bytes_of(checked(reading.split(batch)))
        if total > limit:
            return True
    return False


def _part(examples: Batch, index: slice | Tensor) -> Batch:
    return Batch(rows(examples.x, index), rows(examples.y, index), examples.batch)


def _same(a: Batch, b: Batch) -> bool:
    pairs = zip(tree_flatten((a.x, a.y))[0], tree_flatten((b.x, b.y))[0], strict=True)
    return all(torch.equal(v, w) for v, w in pairs)


def _check_order(loader: Any) -> None:
    """Refuse a loader that says that it shuffles: every pass must give the same examples in the same order."""
    samplers = [getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)]
    if any(isinstance(s, RandomSampler) for s in samplers):
        raise _differ("shuffle=True")


def _differ(got: str) -> InputError:
    return InputError(
        "data", expected="a loader that gives the same examples in the same order on every pass", got=got,
        instead="a loader without shuffling or random augmentation, or stream=False to read it into memory",
    )  # fmt: skip
