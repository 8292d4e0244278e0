"""A data set as people have it (arrays, a data set, a loader of any batches), read into tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data import DataLoader, Dataset, TensorDataset

from isthmus.errors import InputError
from isthmus.objective.data import Inputs, all_tensors, check_examples, is_array, is_numbers, kind, tensor_of
from isthmus.objective.writes import alike
from isthmus.program.leaves import opened

Data = Any
"""A pair (x, y), a dict, a ``Dataset`` or a loader, of tensors, arrays or lists."""

TARGETS = ("labels", "label", "targets", "target", "y")
"""What the targets in a batch are called, in the order in which they are looked for."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A data set in memory: the arguments of the module and the targets, batch first in each.

    `batch`: the user's batch with places for the tensors of `x` (``leaves.opened``), where forward= takes it whole;
    then `y` is `x` again where no part of the batch is called targets.
    """

    x: Inputs
    y: Any
    batch: Any = None


@dataclass(frozen=True)
class BatchReading:
    """How a batch is read. `targets`: their name or place; `whole`: the module's side is the batch as it is."""

    targets: str | int | None = None
    whole: bool = False

    def split(self, batch: Any) -> Batch:
        """One batch as tensors."""
        return self._whole(batch) if self.whole else Batch(*self._pair(batch))

    def _whole(self, batch: Any) -> Batch:
        leaves, template = opened(batch)
        if not leaves:
            raise InputError("data", expected="batches with tensors in them", got=kind(batch))
        tensors = tuple(tensor_of(v) for v in leaves)
        key = self._target(batch)
        return Batch(tensors, tensors if key is None else _targets(batch, key), template)

    def _pair(self, batch: Any) -> tuple[Any, Any]:
        key = self._target(batch)
        if key is None or not isinstance(batch, Mapping | tuple | list):
            raise _no_targets(batch)
        if isinstance(batch, Mapping):
            rest: Any = {k: v for k, v in batch.items() if k != key}
        else:
            parts = [v for i, v in enumerate(batch) if i != key]
            rest = parts[0] if len(parts) == 1 else tuple(parts)
        return inputs(rest), _targets(batch, key)

    def _target(self, batch: Any) -> str | int | None:
        """Where the targets stand in a batch; None where that is not said. Errors: not where `targets` says."""
        if self.targets is None:
            return _usual(batch)
        places = _places(batch)
        if self.targets not in places or len(places) == 1:
            got = repr(self.targets)
            raise InputError("targets", expected=f"one of the parts of a batch, {_parts(batch)}", got=got)
        return self.targets


def _usual(batch: Any) -> str | int | None:
    """Where targets stand when nobody says it."""
    if isinstance(batch, Mapping):
        return next((k for k in TARGETS if k in batch), None)
    return len(batch) - 1 if isinstance(batch, tuple | list) and len(batch) > 1 else None


def _places(batch: Any) -> list[Any]:
    """Where targets may stand: keys, places, or attributes."""
    if isinstance(batch, Mapping):
        return list(batch)
    if isinstance(batch, tuple | list):
        return list(range(len(batch)))
    return [name for name in dir(batch) if not name.startswith("_")]


def read(data: Data, reading: BatchReading) -> Batch:
    """All examples in memory, checked: dense tensors, not empty, equal lengths, one device, finite."""
    if data is None:
        raise InputError("data", expected="a pair of tensors (x, y) or a DataLoader", got="nothing")
    return checked(reading.split(data) if is_batch(data) else _read_loader(loader_of(data), reading))


def checked(found: Batch) -> Batch:
    """The examples, without a history. Errors: tensors that hold no data set."""
    parts = tree_flatten(found.x)[0]
    if not parts or not all_tensors(parts):
        raise InputError("data", expected="x as a tensor, a tuple or a dict of tensors", got=kind(found.x))
    check_examples(parts, tree_flatten(found.y)[0])
    x, y = tree_map(lambda v: v.detach(), (found.x, found.y))
    return Batch(x, y, found.batch)


def is_batch(data: Any) -> bool:
    """Whether all examples are at hand, as one batch."""
    if isinstance(data, Mapping):
        return True
    if not isinstance(data, tuple | list) or len(data) < 2:
        return False
    return is_array(data[1]) if len(data) == 2 else isinstance(data, tuple) and all(map(is_array, data))


def loader_of(data: Any) -> Iterable[Any]:
    """What gives batches, again and again, in the order of the examples where that is ours to say."""
    if isinstance(data, TensorDataset):
        return [data.tensors]
    if isinstance(data, Dataset) and hasattr(data, "__len__"):
        return DataLoader(data, batch_size=256)
    what = "a pair (x, y) of tensors, a data set or a DataLoader"
    if not isinstance(data, Iterable) or isinstance(data, Tensor | np.ndarray | str):
        raise InputError("data", expected=what, got=type(data).__name__)
    if iter(data) is data:
        raise InputError("data", expected="a DataLoader, which can be read twice", got=type(data).__name__)
    return data


def inputs(x: Any) -> Any:
    """x with every part a tensor; a list of numbers is one part, other lists and tuples are several."""
    if isinstance(x, Mapping):
        return {k: tensor_of(v) for k, v in x.items()}
    if isinstance(x, tuple) or (isinstance(x, list) and not is_numbers(x)):
        return tuple(tensor_of(v) for v in x)
    return tensor_of(x)


def _read_loader(loader: Iterable[Any], reading: BatchReading) -> Batch:
    """Read a loader into memory, twice: passes that differ by more than the order are refused."""
    first = _one_pass(loader, reading)
    if isinstance(loader, list):
        return first
    again = _one_pass(loader, reading)
    if not _same_examples((first.x, first.y), (again.x, again.y)):
        raise InputError(
            "data",
            expected="a loader that gives the same examples on every pass",
            got="two passes that differ",
            instead="a loader without random augmentation and with drop_last=False",
        )
    return first


def _one_pass(loader: Iterable[Any], reading: BatchReading) -> Batch:
    batches = [reading.split(batch) for batch in loader]
    if not batches:
        raise InputError("data", expected="at least one batch", got="an empty loader")
    return joined(batches)


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches one after the other. Errors: batches that are not alike."""
    check_layouts(batches)
    x = tree_map(lambda *parts: _joined(parts), *(b.x for b in batches))
    y = tree_map(lambda *parts: _joined(parts), *(b.y for b in batches))
    return Batch(x, y, batches[0].batch)


def check_layouts(batches: Sequence[Batch]) -> None:
    """Refuse batches that do not hold the same tensors, in the same places."""
    first, *others = batches
    whole = all(all_tensors(tree_flatten((b.x, b.y))[0]) for b in batches)
    if not whole or not all(_layout(b) == _layout(first) and alike(b.batch, first.batch) for b in others):
        expected = "batches whose x is a tensor, a tuple or a dict of tensors, all alike"
        raise InputError("data", expected=expected, got=kind(first.x))


def _layout(examples: Batch) -> str:
    return str(tree_flatten((examples.x, examples.y))[1])


def _same_examples(a: Any, b: Any) -> bool:
    """Whether two passes give as many examples, and the same sums: the order may differ."""
    first, second = tree_flatten(a)[0], tree_flatten(b)[0]
    if [len(v) for v in first] != [len(v) for v in second]:
        return False
    sums, others = ([size(v) for v in part] for part in (first, second))
    return not any(abs(p - q) > 1e-9 * max(1.0, abs(p)) for p, q in zip(sums, others, strict=True))


def size(v: Tensor) -> float:
    """The sum of squares, which does not depend on the order."""
    return float(v.abs().double().square().sum()) if v.dtype != torch.bool else float(v.sum())


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Batches one after the other. Errors: examples of different shapes."""
    if len(shapes := sorted({tuple(v.shape[1:]) for v in parts})) > 1:
        raise InputError(
            "data", expected="examples of one shape in all batches", got=f"{shapes[0]} and {shapes[1]}",
            instead="a loader that pads to one length (ignore_index for the labels of the padding)",
        )  # fmt: skip
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _targets(batch: Any, key: Any) -> Tensor:
    """The part of a batch that stands at `key`, or is an attribute of that name. Errors: no tensor with examples."""
    y = tensor_of(batch[key] if isinstance(batch, Mapping | tuple | list) else getattr(batch, key))
    if not isinstance(y, Tensor) or y.dim() == 0:
        raise _no_batch(y)
    return y


def _parts(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return ", ".join(map(repr, batch))
    if isinstance(batch, tuple | list):
        return f"0 to {len(batch) - 1}"
    return ", ".join(map(repr, getattr(batch, "__dict__", ()))) or type(batch).__name__


def _no_batch(y: Any) -> InputError:
    if isinstance(y, Tensor) or np.isscalar(y):
        instead = "DataLoader(dataset, batch_size=256)"
        return InputError("data", expected="batches (x, y)", got="single examples", instead=instead)
    return InputError("data", expected="targets as one tensor per batch", got=kind(y))


def _no_targets(batch: Any) -> InputError:
    """Say how the targets are found in what the loader gives."""
    got, instead = type(batch).__name__, "forward=lambda module, batch: ..., for any other batch"
    if isinstance(batch, Mapping):
        got, instead = f"{got} with the keys {', '.join(map(str, batch))}", "targets='the key of the targets'"
    elif isinstance(batch, tuple | list):
        got = f"{len(batch)} part{'s' * (len(batch) != 1)}"
    return InputError("data", expected="batches (x, y), or dicts that hold labels", got=got, instead=instead)
