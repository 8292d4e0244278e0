"""A merged network written as its networks came: a folder of Hugging Face, a safetensors file, a file of torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from isthmus.errors import CheckpointError, InputError
from isthmus.kinds import check_kind, check_kinds
from isthmus.params import Params, moves
from isthmus.storage.adapters import AdapterContents
from isthmus.storage.checkpoints import read_checkpoint, save_params
from isthmus.storage.contents import Contents, is_averaged
from isthmus.storage.files import PathLike, atomic_write, copy_file, make_folder
from isthmus.storage.folders import adapter_folder

ENDINGS = (".safetensors", ".pt", ".pth", ".bin")
"""Of files of weights."""
_WEIGHTS = "model.safetensors"
_COPIED = (".json", ".txt", ".model", ".jinja")
_NOT_COPIED = (".index.json", "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")


def save_like(
    params: Mapping[str, Tensor],
    out: PathLike,
    source: PathLike,
    *,
    key: str | None = None,
    base: PathLike | None = None,
    unsafe_pickle: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write a network's weights with the names and the precisions of the checkpoint `source`; returns the files.

    `params`: the network's weights.

    `out`: a folder for Hugging Face (``model.safetensors``, and the config and the tokenizer of the folder `source`), a
    .safetensors file, or one for torch (.pt, .pth, .bin: a state_dict). Names of the network may stand under a prefix
    in the source; tensors of it that the network has not are written as they are. A tied tensor is written once,
    under the names of the source. `key`, `base`, `unsafe_pickle`: as for ``load_params``; merged adapters of PEFT are
    written as the base that they change. `metadata`: of a .safetensors file, as for ``save_params``. Errors:
    ``InputError`` for another ending, ``FileError`` for a disk that fails.

    >>> from tempfile import TemporaryDirectory
    >>> from isthmus.storage import load_params
    >>> with TemporaryDirectory() as folder:
    ...     save_params({"module.w": torch.zeros(2).half()}, f"{folder}/a.safetensors")
    ...     files = save_like({"w": torch.ones(2)}, f"{folder}/b.safetensors", f"{folder}/a.safetensors")
    ...     load_params(files[0])
    {'module.w': tensor([1., 1.], dtype=torch.float16)}
    """
    check_kinds(save_like, locals())
    for name, value in params.items():
        check_kind(value, Tensor, f"params[{name!r}]")
    target = check_place(out)
    held = _held(source, base, unsafe_pickle)
    named = as_stored(params, held, key)
    if target.suffix in ENDINGS[1:]:
        make_folder(target.parent)
        size = sum(v.nbytes for v in named.values())
        atomic_write(target, lambda temporary: torch.save(named, temporary), size=size)
        return [target]
    if target.suffix == ".safetensors":
        make_folder(target.parent)
        save_params(named, target, metadata)
        return [target]
    make_folder(target)
    save_params(named, target / _WEIGHTS)
    return [target / _WEIGHTS, *_copy_configs(held.path.parent, target)]


def check_place(out: PathLike) -> Path:
    """Refuse a name whose ending is none of files of weights."""
    if (target := Path(out)).suffix not in ("", *ENDINGS):
        raise InputError("out", expected="a folder, or a file .safetensors, .pt, .pth or .bin", got=str(out))
    return target


def _held(source: PathLike, base: PathLike | None, unsafe_pickle: bool) -> Contents:
    """What the checkpoint holds, or the base of an adapter."""
    of_adapter = adapter_folder(Path(source)) is not None
    found = read_checkpoint(source, base=base if of_adapter else None, unsafe_pickle=unsafe_pickle)
    return found.below if isinstance(found, AdapterContents) else found


def as_stored(params: Mapping[str, Tensor], source: Contents, key: str | None = None) -> Params:
    """The weights on the CPU, with the names and the precisions that the checkpoint has; with their own where it has
    others, or several dictionaries that could be meant."""
    own = {k: v.detach().cpu().contiguous() for k, v in params.items()}
    try:
        held = source.choose(key)[0]
    except CheckpointError:
        return own
    places = _places(held, own)
    untied = {id(v) for v in params.values()}
    if {id(params[k]) for k in places.values()} != untied:
        return own
    return {k: _as(own[places[k]], v) if k in places else v for k, v in held.items()}


def as_written(
    params: Mapping[str, Tensor],
    source: PathLike,
    *,
    key: str | None = None,
    base: PathLike | None = None,
    unsafe_pickle: bool = False,
) -> Params:
    """The weights as they are after ``save_like`` rounded them to the precisions of `source`, in their own types."""
    named = as_stored(params, _held(source, base, unsafe_pickle), key)
    # of tied names the file may have one
    rounded = {id(params[own]): named[name] for name, own in _places(named, params).items()}
    return {k: rounded[id(v)].to(v) if id(v) in rounded else v for k, v in params.items()}


def _places(held: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """The network's name for each that the file has for its weights: not for running averages beside them."""
    found = {name: k for name in held if (k := _own_name(name, own)) is not None}
    plain = {k for name, k in found.items() if not is_averaged(name)}
    return {name: k for name, k in found.items() if not (k in plain and is_averaged(name))}


def _own_name(name: str, own: Mapping[str, Tensor]) -> str | None:
    """The name that the network has for one of the file: the same, or one of them has a prefix before the other's."""
    if name in own:
        return name
    found = [k for k in own if name.endswith(f".{k}") or k.endswith(f".{name}")]
    return found[0] if len(found) == 1 else None


def _as(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype) if moves(value) and moves(like) else value


def _copy_configs(folder: Path, target: Path) -> list[Path]:
    """Config and tokenizer; no code, no weights, nothing of a trainer."""
    if not (folder / "config.json").is_file() or folder.resolve() == target.resolve():
        return []
    chosen = [f for f in sorted(folder.iterdir()) if f.is_file() and _is_config(f.name)]
    for file in chosen:
        copy_file(file, target / file.name)
    return [target / f.name for f in chosen]


def _is_config(name: str) -> bool:
    return name.endswith(_COPIED) and not name.endswith(_NOT_COPIED)
