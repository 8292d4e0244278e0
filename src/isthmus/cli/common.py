"""How the options that commands share become objects."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn

from isthmus.alignment import Matching
from isthmus.cli.asked import Parts, of_checkpoints
from isthmus.cli.given import OwnData, on_device
from isthmus.cli.options import Asked
from isthmus.cli.typed import command
from isthmus.connectors import Connector
from isthmus.data import Dataset
from isthmus.device import device_of as device_of
from isthmus.errors import CheckpointError, InputError, IsthmusError
from isthmus.experiments.plain_yaml import typed_value
from isthmus.models import MODELS, by_name, parameters_of
from isthmus.models.hugging_face import HUGGING_FACE, from_folder
from isthmus.objective import Objective
from isthmus.params import Params, cast
from isthmus.pipeline import inputs_of
from isthmus.storage import read_checkpoint
from isthmus.storage.adapters import AdapterContents
from isthmus.storage.contents import Contents
from isthmus.storage.files import one_line
from isthmus.storage.folders import adapter_folder
from isthmus.storage.methods import connector_from, matching_from
from isthmus.storage.on_file import on_demand
from isthmus.storage.tensors import read_metadata

_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of malloc.h."""
_READING, _MEASURING = 1 << 20, 1 << 23


def dtype_of(name: str, params: Params) -> torch.dtype:
    """The precision of that name; auto takes that of the weights."""
    if name == "auto":
        kinds = [v.dtype for v in params.values() if v.is_floating_point()]
        return torch.float64 if torch.float64 in kinds else torch.float32
    if name not in ("float32", "float64"):
        raise InputError("--dtype", expected="auto, float32 or float64", got=repr(name))
    return torch.float32 if name == "float32" else torch.float64


def stored_in(path: Path) -> dict[str, str]:
    """What our own checkpoints say about themselves; nothing for others."""
    try:
        return read_metadata(path)
    except IsthmusError:
        return {}


def network_of(parts: Parts, like: Params | None = None) -> nn.Module:
    """The network of that name, which may take its sizes from the data and from the weights `like`."""
    kind, _, folder = parts.model.partition(":")
    if kind == HUGGING_FACE and folder:
        return from_folder(folder, weights=False)
    if isinstance(parts.dataset, OwnData):
        return by_name(parts.model, like=like)
    data = inputs_of(parts.model, parts.dataset)
    return by_name(parts.model, inputs=data.shape, outputs=data.classes or None, like=like)


def objectives(
    parts: Parts, network: nn.Module, asked: Asked, dtype: torch.dtype
) -> tuple[Objective, Objective | None]:
    """The training objective of a network and, where the data have a test part, the test objective."""
    module = network.eval()
    if not any(p.is_meta for p in module.parameters()):
        module = module.to(device_of(asked.device))
    if isinstance(parts.dataset, OwnData):
        return _build(parts, parts.dataset, module, asked, dtype)
    data = inputs_of(parts.model, parts.dataset)
    try:
        return _build(parts, _as_given(data), module, asked, dtype)
    except InputError as e:
        own = parts.model.partition(":")[0] not in (*MODELS, HUGGING_FACE)
        if own and len(data.shape) > 1 and str(e).startswith("data: "):  # the network takes no images
            return _build(parts, _as_given(data.flat()), module, asked, dtype)
        if "x.float()" in str(e):
            e.add_note("inputs of whole numbers stay whole: store x in floating point for a network that multiplies it")
        elif "indices" in str(e):
            e.add_note("inputs of uint8 and bool become float32: store x as int64 for a network that looks it up")
        raise


def _as_given(data: Dataset) -> OwnData:
    return OwnData((data.x_train, data.y_train), None if data.x_test is None else (data.x_test, data.y_test))


def _build(
    parts: Parts, data: OwnData, module: nn.Module, asked: Asked, dtype: torch.dtype
) -> tuple[Objective, Objective | None]:
    where = device_of(asked.device)
    options: dict[str, Any] = {**data.options, "loss": parts.loss, "penalty": parts.penalty, "dtype": dtype}
    options |= {**parts.labelled, "data": on_device(data.train, where)}
    train = Objective(module, **options)
    if asked.batch is not None:
        train = Objective(module, **options, memory=asked.batch * train.bytes_each)
    train.penalty_of(dict.fromkeys(train.parameter_names, torch.zeros(())))  # do its names exist
    test = None if data.test is None else train.on(on_device(data.test, where))
    if not isinstance(parts.dataset, OwnData):
        return train, test
    examples, tests = parts.counts
    return _part(train, examples), None if test is None or tests == 0 else _part(test, tests)


def _part(objective: Objective, examples: int | None) -> Objective:
    """The first examples, as far as there are so many."""
    return objective if examples is None or examples >= objective.num_examples else objective.subset(examples)


@dataclass(frozen=True, eq=False)
class Opened:
    """Checkpoints of one network with what they are weights of; `ends` are in its precision and on its device."""

    model: str
    data: str
    objective: Objective
    test: Objective | None
    ends: tuple[Params, ...]
    kind: torch.dtype
    files: tuple[Path, ...]

    @property
    def about(self) -> dict[str, Any]:
        """What a result says of where it comes from: the network, the data, the files, the command as it was typed."""
        files = [str(file) for file in self.files]
        return {"model": self.model, "data": self.data, "checkpoints": files, "command": command()}


def opened(files: Sequence[Path], asked: Asked, large: int | None = None) -> Opened:
    """Read the checkpoints; what is not asked for is as stored in the first, else a perceptron on digits.

    `large`: bytes from which on a network in safetensors files stays there, and is read ``OnDemand``.
    """
    keys = _keys(asked.key, len(files))
    read = [_Checkpoint(file, asked, large) for file in files]
    parts = of_checkpoints(files, [stored_in(file) for file in files], asked)
    kind = dtype_of(asked.dtype, {f"{i} {k}": v for i, c in enumerate(read) for k, v in c.outline(keys[i]).items()})
    ends = []
    objective, test = _fitting(parts, read[0], keys[0], asked, kind)
    for checkpoint, place in zip(read, keys, strict=True):
        ends.append(_end(checkpoint, place, objective, kind))
    return Opened(parts.model, parts.data, objective, test, tuple(ends), kind, tuple(files))


def _end(checkpoint: _Checkpoint, key: str | None, objective: Objective, kind: torch.dtype) -> Any:
    """The weights of one checkpoint, in the precision `kind`: a dictionary, or ``OnDemand``."""
    contents = checkpoint.contents()
    params, note = _choose(contents, key, objective)
    if note:
        print(f"note: {_as_options(note)}", file=sys.stderr)
    if checkpoint.stays(contents):
        found = on_demand(params, contents, kind, objective.device)
        del params, contents  # before what is free is given back
        _keep_free(_MEASURING)
        return found
    return {k: v.to(objective.device) for k, v in cast(params, kind).items()}


def _keep_free(size: int) -> None:
    """Tell the C library up to what size it may keep pieces that were freed, and to return what is free now.

    glibc keeps those of up to 32 MB, once one was freed: of networks that are read and looked at, several times over.
    To keep none while they are measured would cost half as much time again, as every tensor is asked for anew.
    """
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, size)
        library.malloc_trim(0)


def one_more(file: Path, asked: Asked, found: Opened, large: int | None) -> Any:
    """The weights of one more checkpoint of a network that is open, as its ends have them."""
    return _end(_Checkpoint(file, asked, large), None, found.objective, found.kind)


class _Checkpoint:
    """A checkpoint that is read when it is asked for; a large one, which stays in its files, each time again."""

    def __init__(self, file: Path, asked: Asked, large: int | None) -> None:
        self.file, self.asked, self.large = file, asked, large
        self._held: Contents | AdapterContents | None = None

    def contents(self) -> Contents | AdapterContents:
        """What it holds; `base` is that of the adapters among several."""
        if self._held is not None:
            return self._held
        base = self.asked.base if adapter_folder(self.file) is not None else None
        found = read_checkpoint(self.file, base=base, unsafe_pickle=self.asked.unsafe_pickle)
        if self.stays(found):
            _keep_free(_READING)
        else:
            self._held = found
        return found

    def stays(self, found: Contents | AdapterContents) -> TypeGuard[Contents]:
        """Whether it is large and in files that are read tensor by tensor."""
        return self.large is not None and isinstance(found, Contents) and bool(found.files) and found.size >= self.large

    def outline(self, key: str | None) -> Params:
        """The names, shapes and types of the weights."""
        return {k: torch.empty_like(v, device="meta") for k, v in _weights(self.contents(), key).items()}


def _keys(key: Sequence[str] | None, files: int) -> list[str | None]:
    """The `key` of each file: one for all, or one for each."""
    if not key or len(key) == 1:
        return [key[0] if key else None] * files
    if len(key) != files:
        raise InputError("--key", expected=f"one name, or {files}, one for each file", got=len(key))
    return list(key)


def _choose(contents: Contents | AdapterContents, key: str | None, like: Objective | None = None) -> tuple[Params, str]:
    try:
        return contents.choose(key, like)
    except CheckpointError as error:
        error.args = (_as_options(str(error)),)
        raise


def _as_options(text: str) -> str:
    """A message with the options of the command line instead of Python's arguments."""
    return text.replace(" key=", " --key ").replace("(key=", "(--key ")


def _weights(contents: Contents | AdapterContents, key: str | None) -> Params:
    """The weights as far as they can be told without knowing the network, else all tensors."""
    try:
        return contents.choose(key)[0]
    except CheckpointError:
        return contents.tensors()


def _fitting(
    parts: Parts, checkpoint: _Checkpoint, key: str | None, asked: Asked, dtype: torch.dtype
) -> tuple[Objective, Objective | None]:
    """The objectives of the network that `parts` names, which may take its sizes from the weights."""
    try:
        return objectives(parts, network_of(parts, _choose(checkpoint.contents(), key)[0]), asked, dtype)
    except (InputError, CheckpointError) as error:
        # names as in the file can fit under a prefix, beside other tensors, or in one of several dictionaries
        try:
            if _is_larger(parts, checkpoint.contents().size):
                raise error
            return objectives(parts, network_of(parts), asked, dtype)
        except InputError:
            raise error from None


def _is_larger(parts: Parts, size: int) -> bool:
    """Whether a built-in network has more parameters than a file of that many bytes can hold: its name may be false."""
    if parts.model.partition(":")[0] not in MODELS:
        return False
    if isinstance(parts.dataset, OwnData):
        return parameters_of(parts.model) > size
    data = inputs_of(parts.model, parts.dataset)
    return parameters_of(parts.model, inputs=data.shape, outputs=data.classes or None) > size


def method_of(name: str, options: list[str]) -> Connector:
    """A connector from its name and ``key=value`` options, with unknown keys and bad values refused by name."""
    return connector_from({**_values(options), "name": name}, "--method")


def matching_of(name: str, options: list[str], what: str = "--by") -> Matching:
    """As ``method_of``, for a way to match units."""
    return matching_from({**_values(options), "name": name}, what)


def _values(options: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise InputError("--option", expected="KEY=VALUE", got=one_line(option))
        values[key] = typed_value("--option", option, text)
    return values
