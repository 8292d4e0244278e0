"""Data as people have them: by name, in a file, made by their own code, or a text for a language model."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from isthmus.cli.options import Asked
from isthmus.data import DATASETS, Dataset, load
from isthmus.errors import FileError, InputError
from isthmus.models.hugging_face import HUGGING_FACE, causal, configured, tokenizer_of
from isthmus.models.user_code import made_by_code
from isthmus.objective import Objective
from isthmus.storage.files import check_regular, disk_error, one_line, strict_json

_TEXTS = (".txt", ".jsonl")
_LARGEST = 2**28
"""Bytes of a text."""
_BLOCK = 128
_OWN = (
    "module",
    "data",
    "dtype",
    "memory",
    "structure",
    "penalty",
)  # arguments of Objective that options of the command give


@dataclass(frozen=True, eq=False)
class OwnData:
    """Data of the user's own code, as ``Objective`` takes them; `options`: further arguments of it."""

    train: Any
    test: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


def data_of(name: str, model: str, asked: Asked) -> Dataset | OwnData:
    """The data of that name, for the model of that name. Errors: ``InputError``, ``FileError``."""
    kind, _, rest = name.partition(":")
    if Path(name).suffix in _TEXTS:
        return _text(Path(name).expanduser(), model, asked.block)
    if asked.block is not None:
        raise InputError("--block", expected="a text, .txt or .jsonl, as the data", got=repr(name))
    if kind.endswith(".py") and not rest:
        raise InputError(f"data {name!r}", expected="FILE.py:FACTORY", got="no FACTORY", instead=f"--data {name}:make")
    if not rest or kind in {e.name for e in DATASETS} or Path(name).expanduser().exists():
        return load(name)
    known = [*(e.name for e in DATASETS), "a .npz file"]
    return given(made_by_code(name, "data", "the data", known), name)


def given(made: Any, name: str) -> OwnData:
    """What a factory of data gives: training data, a pair (training, test), or a dictionary.

    Data are whatever ``Objective`` takes: (x, y), a ``TensorDataset``, a ``DataLoader``. The dictionary has "data", and
    perhaps "test" and arguments of ``Objective``: "loss", "error", "ignore_index", ...; one without "data" is data
    itself. Errors: ``InputError``.
    """
    if isinstance(made, Mapping) and "data" in made:
        return _of_dictionary({str(k): v for k, v in made.items()}, name)
    if isinstance(made, tuple | list) and len(made) == 2 and not _is_array(made[1]):
        return OwnData(*made)
    return OwnData(made)


def _of_dictionary(made: dict[str, Any], name: str) -> OwnData:
    options = {k: v for k, v in made.items() if k not in ("data", "test")}
    taken = [k for k in inspect.signature(Objective).parameters if k not in _OWN and k[0] != "_"]
    if unknown := options.keys() - {*taken}:
        expected = f"a dictionary with 'data', and perhaps 'test', {', '.join(map(repr, taken))}"
        raise InputError(f"data {name!r}", expected=expected, got=", ".join(map(repr, unknown)))
    return OwnData(made["data"], made.get("test"), options)


def refuse_own_words(found: OwnData, model: str, name: str) -> None:
    """Labels that are the words themselves need a loss that is named, where the network predicts the next word."""
    kind, _, folder = model.partition(":")
    if kind != HUGGING_FACE or not causal(folder):
        return
    with torch.random.fork_rng(devices=[]):  # a loader that shuffles draws a number
        batch = next(iter(found.train)) if isinstance(found.train, DataLoader) else found.train
    if not isinstance(batch, Mapping):
        return
    words, labels = batch.get("input_ids"), batch.get("labels")
    if isinstance(words, Tensor) and isinstance(labels, Tensor) and words.shape == labels.shape:
        if bool(((labels == words) | (labels < 0)).all()):
            raise InputError(
                f"data {name!r}",
                expected="a loss beside labels that are the words themselves",
                got="none",
                instead='return {"data": ..., "loss": im.CrossEntropy(mean="tokens", shift=True)} for the loss of the '
                "next word, as the network itself computes it; --loss cross_entropy for that of the word itself",
            )


def on_device(data: Any, where: torch.device) -> Any:
    """Data of any kind on a device, batch by batch where they come in batches."""
    if where.type == "cpu":
        return data
    if isinstance(data, TensorDataset):
        return TensorDataset(*moved(data.tensors, where))
    return moved(data, where) if isinstance(data, tuple | list | Mapping) else _Moved(data, where)


def moved(value: Any, where: torch.device) -> Any:
    """A tensor, or what holds tensors, on a device; anything else as it is."""
    if isinstance(value, Mapping):
        return {k: moved(v, where) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(v, where) for v in value)
    return value.to(where) if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class _Moved:
    loader: Iterable[Any]
    where: torch.device

    def __iter__(self) -> Iterator[Any]:
        return (moved(batch, self.where) for batch in self.loader)


def _is_array(value: Any) -> bool:
    """Whether the second of a pair is the targets y, not test data."""
    return isinstance(value, Tensor | np.ndarray) or hasattr(value, "to_numpy")


def _text(file: Path, model: str, block: int | None) -> OwnData:
    """A text in blocks of words, each with the words that follow, as the tokenizer beside the model cuts it."""
    name, _, folder = model.partition(":")
    if name != HUGGING_FACE or not folder:
        instead = "--model hf:FOLDER, or .npz data of whole numbers"
        raise InputError(f"data {str(file)!r}", expected="a model with a tokenizer", got=repr(model), instead=instead)
    if not causal(folder):
        expected = "a model that predicts the next word (...ForCausalLM, ...LMHeadModel)"
        instead = "--data FILE.py:FACTORY, whose data are pairs of inputs and labels"
        raise InputError(f"data {str(file)!r}", expected=expected, got=repr(model), instead=instead)
    tokenizer, config = tokenizer_of(folder), configured(folder)
    longest = getattr(config, "max_position_embeddings", _BLOCK)
    size = block or min(_BLOCK, longest)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    words: list[int] = []
    for text in _documents(file):
        words += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], *end]
    if len(words) < 2:
        raise FileError(
            file, f"holds {len(words)} words of the tokenizer, too few to predict one", "give a longer text"
        )
    n = (len(words) - 1) // size
    if n < 1:
        raise InputError("--block", expected=f"at most {len(words) - 1}, the words of {file} less one", got=size)
    stream = torch.tensor(words[: n * size + 1])
    x, y = stream[:-1].reshape(n, size).clone(), stream[1:].reshape(n, size).clone()
    return OwnData((x, y), options={"class_axis": -1})


def _documents(file: Path) -> Iterator[str]:
    """The whole of a .txt file; of a .jsonl file the "text" of every line."""
    try:
        if check_regular(file) > _LARGEST:
            raise FileError(file, f"has over {_LARGEST:,} bytes", "give a part of it, or --data FILE.py:FACTORY")
        text = file.read_text("utf-8")
    except OSError as error:
        raise FileError(file, *disk_error(error, file)) from error
    except UnicodeDecodeError as error:
        raise FileError(file, f"is no text in UTF-8 ({one_line(error)})") from error
    if file.suffix == ".txt":
        yield text
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _text_of(file, number, line)


def _text_of(file: Path, number: int, line: str) -> str:
    try:
        held = strict_json(line)
    except (ValueError, RecursionError, json.JSONDecodeError) as error:
        raise FileError(file, f"line {number} is not JSON ({one_line(error)})", "write one object per line") from error
    if not isinstance(held, dict) or not isinstance(held.get("text"), str):
        raise FileError(file, f'line {number} has no "text"', 'write {"text": "..."} on each line')
    return held["text"]
