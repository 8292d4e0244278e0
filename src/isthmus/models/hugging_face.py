"""Networks of Hugging Face's transformers, as the ``config.json`` of a folder on this machine describes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isthmus.errors import FileError, InputError, MissingExtraError
from isthmus.storage.files import check_regular, one_line, read_json
from isthmus.storage.translated import quietly

HUGGING_FACE = "hf"
"""What the name of such a network begins with: ``hf:FOLDER``."""

_CONFIG = "config.json"
_CONFIG_BYTES = 1_000_000
_REPEATED = re.compile(r"layer|block|depth|stage|expert|head", re.IGNORECASE)
_MOST = 10_000
"""The most layers, blocks, ... that a config may ask for."""
_WORDS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""The files that tokenizers keep their words in."""
_SMALL = 2**30
"""A network of so many parameters may be made whatever lies beside the config; a larger one needs its weights there."""
_OWN = "your own code, FILE.py:FACTORY"


def from_folder(folder: str | Path, weights: bool = True) -> nn.Module:
    """The network that the ``config.json`` in a folder describes, with fresh weights, in evaluation mode.

    `weights`: False makes its parameters on the device meta, where they take no memory. The class is the one that
    "architectures" names in ``transformers``; no code of the folder is run, nothing is downloaded, and its weights are
    not read (give the folder where parameters are taken). Errors: ``FileError`` for a config that is no such network or
    asks for more parameters than its weights hold, ``MissingExtraError``.
    """
    file = Path(folder) / _CONFIG
    if not file.is_file():
        got = f"no {_CONFIG} in {folder}"
        raise InputError("model", expected="hf:FOLDER, a folder of save_pretrained", got=got, instead=_OWN)
    said = _read(file)
    kind = _class_of(file, said)
    config = configured(folder)
    with quietly():
        _check_size(file, kind, config)
        with nullcontext() if weights else _without_memory():
            return kind(config).eval()


@contextmanager
def _without_memory() -> Iterator[None]:
    """Put each parameter on the device meta as soon as a module has it; buffers, which are computed, stay."""
    register = nn.Module.register_parameter

    def put(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = put  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def causal(folder: str | Path) -> bool:
    """Whether the network of that folder predicts the next word at every position."""
    names = _read(Path(folder) / _CONFIG).get("architectures") or [""]
    return str(names[0]).endswith(("ForCausalLM", "LMHeadModel"))


def tokenizer_of(folder: str | Path) -> Any:
    """The tokenizer in a folder. Errors: ``FileError`` for none, or one that needs code of its own."""
    auto, why = _transformers().AutoTokenizer, "holds no tokenizer"
    instead = "write tokenizer.save_pretrained(FOLDER)"
    if not any((Path(folder) / name).is_file() for name in _WORDS):  # the library would make one without words
        raise FileError(folder, why, instead)
    try:
        with quietly():
            return auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library promises no types
        raise FileError(folder, f"{why} that can be read ({one_line(error)})", instead) from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "hf") from error
    return transformers


def _read(file: Path) -> dict[str, Any]:
    if check_regular(file) > _CONFIG_BYTES:
        raise FileError(file, "is a config of more than 1 MB")
    said = read_json(file)
    if not isinstance(said, dict):
        raise FileError(file, "is not the config of a network")
    for key, value in _numbers("", said):
        if value > _MOST and _REPEATED.search(key):
            raise FileError(file, f"asks for {key} = {value:,}, {_MOST:,} are allowed", _OWN)
    return said


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number in a config, with the name under which it or its list stands."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(key, inner)
    elif isinstance(value, int | float):
        yield key, value


def _class_of(file: Path, said: dict[str, Any]) -> Any:
    """The class of ``transformers`` that the config names."""
    library = _transformers()
    names, kind = said.get("architectures"), said.get("model_type")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise FileError(file, "does not say which class it is for (architectures)", f"give {_OWN}")
    found = getattr(library, names[0], None) if names[0].isidentifier() else None
    if kind not in library.CONFIG_MAPPING or not isinstance(found, type):
        why = f"is for {one_line(names[0], 60)!r}, which transformers {library.__version__} does not have"
        raise FileError(file, f"{why}, and code in the folder is not run", f"give {_OWN}")
    if not issubclass(found, library.PreTrainedModel):
        raise FileError(file, f"is for {names[0]!r}, which is no network", f"give {_OWN}")
    if said.get("quantization_config"):
        raise FileError(file, "is for quantised weights, which cannot move", "give the folder that they were made from")
    return found


def configured(folder: str | Path) -> Any:
    """The config in a folder, as ``transformers`` reads it. Errors: ``FileError``."""
    auto, file = _transformers().AutoConfig, Path(folder) / _CONFIG
    try:
        with quietly():
            config = auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library promises no types
        raise FileError(file, f"is not read by transformers ({one_line(error)})", f"give {_OWN}") from error
    config.use_cache = False  # of keys and values for the next word, which outputs would hold as well
    if getattr(config, "use_pretrained_backbone", False):
        config.use_pretrained_backbone = False  # which would be fetched
    return config


def _check_size(file: Path, kind: Any, config: Any) -> None:
    """Refuse a network that cannot be made, or has more parameters than its folder holds bytes of weights."""
    try:
        with torch.device("meta"):
            count = sum(p.numel() for p in kind(config).parameters())
    except Exception as error:  # a config may ask for anything
        raise FileError(file, f"describes no network that can be made ({one_line(error)})", f"give {_OWN}") from error
    weights = [p for ending in ("safetensors", "bin") for p in file.parent.glob(f"*.{ending}")]
    held = sum(p.stat().st_size for p in weights)
    if count > max(_SMALL, held):
        raise FileError(
            file, f"asks for {count:,} parameters, its folder holds {held:,} bytes of weights", f"give {_OWN}"
        )
