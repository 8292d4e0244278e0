"""Checkpoints of other programs, read without running anything in them; and our own files of parameters."""

from __future__ import annotations

import argparse
import pathlib
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus.errors import CheckpointError, FileError, IsthmusError, IsthmusWarning
from isthmus.kinds import check_kind, check_kinds
from isthmus.params import Params
from isthmus.seal import SEAL, is_changed, sealed
from isthmus.storage.adapters import AdapterContents, read_lora
from isthmus.storage.contents import Contents, Like, owned
from isthmus.storage.files import PathLike, check_regular, disk_error, one_line
from isthmus.storage.folders import BIN_INDEX, INDEX, adapter_file, adapter_folder, member, shard_of, weight_map
from isthmus.storage.pickle_rules import MULTIARRAY, NUMPY, StandIn
from isthmus.storage.pickles import PickleWalk
from isthmus.storage.room import check_room
from isthmus.storage.tensors import digest, read_tensors, save_tensors, sniff

__all__ = ["load_params", "read_checkpoint", "save_params"]

_DIGEST = "isthmus.digest"

_RECORDS = 150_000  # entries of a zip archive, one per tensor
_PICKLE_BYTES = 20_000_000
_PICKLE_STEPS = 500_000  # a second or two; and 30 more per record, which is what a tensor takes

_SAVE_TENSORS = "where the model was trained, write torch.save(model.state_dict(), path)"
_AGAIN = "copy or download it again"


def load_params(
    path: PathLike,
    *,
    key: str | None = None,
    like: Like | None = None,
    base: PathLike | None = None,
    unsafe_pickle: bool = False,
) -> Params:
    """The parameters in a checkpoint, on the CPU: a plain dictionary of contiguous tensors.

    `path`: the file or folder.

    Reads a safetensors file; a torch file (.pt, .pth, .bin); an ``*.index.json`` with shards of either; a folder with
    one of these, as Hugging Face's (what trainers leave beside the weights is not opened); the folder of a PEFT adapter
    (LoRA, rsLoRA, DoRA, ``modules_to_save``), which is merged into the weights of its `base`: by default the local
    folder that it names. The kind is judged by content, not by name. A torch file is a state dict or holds one under
    "state_dict", "model_state_dict", "model", "net", "module" and the like, else under a name of an average ("ema").
    Its other entries (optimiser, epoch) are ignored, but a state dict must hold tensors only: leaving out
    one of its entries could change the network. NaN is not refused here.

    `like`: a module or an objective, whose names are then looked for (or a dictionary of tensors with such names).
    The result has exactly these. They may stand under any prefix ("model.", "net._orig_mod.module."), the plain
    weights before averaged ones; of tied tensors one name is enough, and counters of BatchNorm that an old file has
    not are zero. Without `like` a prefix that shows a wrapper ("module.", "_orig_mod.", "_module.", and Lightning's
    "model.") is removed if all names have it. Give `like` where the network is known.

    A module of ``transformers`` reads files with the names of its other versions, as it does itself.

    `key`: where the weights stand, as "state_dict_ema" or "ema.model": names of entries, or what names begin with.
    Other weights and tensors that were left unused are named in an ``IsthmusWarning``.

    Nothing in the file is executed, and memory stays within about twice the file: compressed archives, tensors
    larger than their storage, headers over 20 MB, objects nested over 100 deep and tuples as keys are refused. A file
    from ``save_params`` is checked against its digest and, without `like`, returned with its names as they are.

    `unsafe_pickle`: DANGER. ``True`` lets a torch file RUN ANY CODE it contains, as you, while it is read. Only
    for a file that you made yourself; it is needed for pickled modules and other Python objects.

    Errors: ``CheckpointError`` with the reason and what to do: among others, several sets of weights that fit equally
    well, with the `key` of each.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     torch.save({"state_dict": {"module.w": torch.ones(2)}, "epoch": 3}, f"{folder}/a.pt")
    ...     load_params(f"{folder}/a.pt")
    {'w': tensor([1., 1.])}
    """
    check_kinds(load_params, locals())
    params, note = read_checkpoint(path, base=base, unsafe_pickle=unsafe_pickle).choose(key, like)
    if note:
        warnings.warn(note, IsthmusWarning, stacklevel=2)
    return params


def read_checkpoint(
    path: PathLike, *, base: PathLike | None = None, unsafe_pickle: bool = False
) -> Contents | AdapterContents:
    """All that a checkpoint holds, to choose the weights from. Errors: ``CheckpointError``, as ``load_params``."""
    file = Path(path)
    try:
        if (folder := adapter_folder(file)) is not None:
            return _load_adapter(folder, base, unsafe_pickle)
        if base is not None:
            raise CheckpointError(file, "is no PEFT adapter, and has no base", "leave the base out")
        file = member(file) if file.is_dir() else file
        return _load(file, unsafe_pickle)
    except CheckpointError:
        raise
    except FileError as error:
        # a shard's own path stays in the reason
        raise CheckpointError(file, str(error).removeprefix(f"{file}: ")) from error
    except OSError as error:
        raise CheckpointError(file, *disk_error(error, file)) from error


def _load_adapter(folder: Path, base: PathLike | None, unsafe_pickle: bool) -> AdapterContents:
    """An adapter with the checkpoint that it is added to."""
    file = adapter_file(folder)
    lora = read_lora(folder, _tensors_of(file, unsafe_pickle))
    named = lora.base if base is None else str(base)
    below = Path(named)
    if not named or not below.exists():
        why = f"is an adapter for {one_line(repr(named), 80)}, which is not on this machine"
        raise CheckpointError(folder, why, "give its path: base=, or --base")
    if adapter_folder(below) is not None:
        raise CheckpointError(folder, f"is an adapter for the adapter {below}", "save the merged weights of that one")
    return AdapterContents(lora, _load(member(below) if below.is_dir() else below, unsafe_pickle))


def save_params(params: Mapping[str, Tensor], path: PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Write parameters as a safetensors file, atomically, with a digest that ``load_params`` checks.

    `metadata`: further strings for the header. Every safetensors reader can read the file.

    `params`: tensors by name. `path`: the file. Errors: ``FileError`` for a folder that is not there and for a full
    disk.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_params({"w": torch.ones(2)}, f"{folder}/a.safetensors")
    ...     load_params(f"{folder}/a.safetensors")
    {'w': tensor([1., 1.])}
    """
    check_kinds(save_params, locals())
    for name, value in params.items():
        check_kind(value, Tensor, f"params[{name!r}]")
    save_tensors(params, path, sealed({"format": "pt", **(metadata or {}), _DIGEST: digest(params)}))


def _load(path: Path, unsafe_pickle: bool) -> Contents:
    size = check_regular(path)
    if path.name.endswith((INDEX, BIN_INDEX)) or (path.suffix == ".json" and sniff(path) == "JSON text"):
        params, files = _load_shards(path, unsafe_pickle)
        return Contents(path, params, sum(v.nbytes for v in params.values()), files=files)
    return _load_one(path, size, unsafe_pickle)


def _load_one(path: Path, size: int, unsafe_pickle: bool) -> Contents:
    kind = sniff(path)
    with open(path, "rb") as file:
        first = file.read(4)
    if first == b"PK\x03\x04":
        _check_zip(path, size, unsafe_pickle)
        return Contents(path, _load_pickle(path, unsafe_pickle), size)
    if "safetensors" in kind or path.suffix == ".safetensors":
        return _load_safetensors(path, size)
    if first[:1] == b"\x80":
        if not unsafe_pickle:
            _check_legacy(path, size)
        return Contents(path, _load_pickle(path, unsafe_pickle), size)
    raise CheckpointError(path, f"is {kind}, not a safetensors or torch file", _SAVE_TENSORS)


def _load_safetensors(path: Path, size: int) -> Contents:
    tensors, metadata = read_tensors(path)
    files = dict.fromkeys(tensors, path)
    if "isthmus" in metadata:
        raise CheckpointError(path, "is a saved connection, not one network", "read it with load_connection")
    if is_changed(metadata) or _has_lost_seal(metadata):  # also where the name of a digest was hit
        raise CheckpointError(path, "is damaged: its metadata do not match their digest", _AGAIN)
    if _DIGEST not in metadata:
        return Contents(path, tensors | _aliases(tensors, metadata), size, files=files)
    if digest(tensors) != metadata[_DIGEST]:
        raise CheckpointError(path, "is damaged: its tensors do not match its digest", _AGAIN)
    return Contents(path, tensors, size, ours=True, files=files)


def _has_lost_seal(metadata: Mapping[str, str]) -> bool:
    """Whether a digest is there under a name of no digest; files of old versions have none but that of the tensors."""
    others = [v for k, v in metadata.items() if k != _DIGEST]
    return _DIGEST in metadata and SEAL not in metadata and any(re.fullmatch("[0-9a-f]{64}", v) for v in others)


def _aliases(tensors: Params, metadata: Mapping[str, str]) -> Params:
    """Further names of tied tensors: ``safetensors.torch.save_model`` writes one copy, and its other names so."""
    names = {k: v for k, v in metadata.items() if v in tensors and k not in tensors}
    return {k: tensors[v] for k, v in names.items() if k.rpartition(".")[2] == v.rpartition(".")[2]}


def _load_shards(path: Path, unsafe_pickle: bool) -> tuple[Params, dict[str, Path]]:
    """The tensors of all shards that an index names, and the safetensors file of each.

    The shards lie in the folder of the index.
    """
    where = weight_map(path)
    shards = {name: shard_of(path, name) for name in sorted(set(where.values()))}
    check_room(path, sum(shard.stat().st_size for shard in shards.values() if shard.is_file()))
    params: Params = {}
    files: dict[str, Path] = {}
    for name, shard in shards.items():
        tensors = _tensors_of(shard, unsafe_pickle)
        files |= dict.fromkeys(tensors, shard) if "safetensors" in sniff(shard) else {}
        if stray := [k for k in tensors if where.get(k) != name]:
            why = f"does not say that {one_line(stray[0], 80)!r} is in {one_line(name, 80)}"
            raise CheckpointError(path, why, _AGAIN)
        params |= tensors
    _check_all_there(path, where, params)
    return {k: params[k] for k in where}, files


def _check_all_there(path: Path, where: Mapping[str, str], params: Params) -> None:
    if missing := [k for k in where if k not in params]:
        why = f"names {one_line(missing[0], 80)!r}, which is not in {one_line(where[missing[0]], 80)}"
        raise CheckpointError(path, why, _AGAIN)


def _tensors_of(shard: Path, unsafe_pickle: bool) -> Params:
    """The tensors of a file that holds nothing else: a shard, or an adapter."""
    try:
        size = check_regular(shard)
        tree = _load_one(shard, size, unsafe_pickle).tree
        if not isinstance(tree, Mapping) or not all(isinstance(v, Tensor) for v in tree.values()):
            raise CheckpointError(shard, "does not hold tensors alone", _AGAIN)
        return owned(shard, tree, size)
    except OSError as error:
        raise FileError(shard, *disk_error(error, shard)) from error
    except CheckpointError as error:
        raise FileError(shard, str(error).removeprefix(f"{shard}: ")) from error


def _check_zip(path: Path, size: int, unsafe_pickle: bool) -> None:
    """Refuse an archive that ``torch.save`` does not write: compressed, overlapping, padded, or too many entries.

    torch reads archives with another library than Python does, so everything that the two could read
    differently (a comment, bytes before the archive, names that differ in case only) is refused as well.
    """
    total, length, start, end = _directory(path, size)
    if total > _RECORDS or length > 2 * _PICKLE_BYTES:
        raise CheckpointError(path, f"is a zip archive of {total:,} entries, {_RECORDS:,} are allowed", _SAVE_TENSORS)
    if start + length != end:
        raise CheckpointError(path, "is a zip archive with bytes that belong to no entry", _AGAIN)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_records(path, archive, size, unsafe_pickle)
    except IsthmusError:
        raise
    except Exception as error:  # zipfile raises seven types for damaged archives
        raise CheckpointError(path, f"is a damaged zip archive ({one_line(error)})", _AGAIN) from error


def _directory(path: Path, size: int) -> tuple[int, int, int, int]:
    """Of a zip archive's directory: the number of entries, the bytes it takes, where it starts and should end."""
    with open(path, "rb") as file:
        file.seek(max(size - 98, 0))
        tail = file.read(98)
    last, locator, wide = tail[-22:], tail[-42:-22], tail[:-42]
    if len(last) < 22 or last[:4] != b"PK\x05\x06" or last[20:] != b"\0\0":
        raise CheckpointError(path, "is a zip archive that does not end as one (truncated, or padded)", _AGAIN)
    if locator[:4] != b"PK\x06\x07":
        total, length, start = struct.unpack("<HII", last[10:20])
        return total, length, start, size - 22
    # torch always writes the wide form too; its place must be where both readers look for it, and the two must agree
    if wide[:4] == b"PK\x06\x06" and struct.unpack("<Q", locator[8:16]) == (size - 98,):
        total, length, start = struct.unpack("<QQQ", wide[32:56])
        narrow = min(total, 0xFFFF), min(length, 0xFFFFFFFF), min(start, 0xFFFFFFFF)
        if narrow == struct.unpack("<HII", last[10:20]):
            return total, length, start, size - 98
    raise CheckpointError(path, "is a zip archive with a damaged directory", _AGAIN)


def _check_records(path: Path, archive: zipfile.ZipFile, size: int, unsafe_pickle: bool) -> None:
    records = archive.infolist()
    if len({r.filename.lower() for r in records}) < len(records):
        raise CheckpointError(path, "is a zip archive with two entries of one name", "do not trust it")
    for record in records:
        _check_record(path, record)
    if sum(r.file_size for r in records) > size:
        raise CheckpointError(path, "is a zip archive whose entries are larger than the file", "do not trust it")
    main = _main_record(path, records)
    if not any(r.CRC for r in records):
        del main.CRC  # torch.serialization.set_crc32_options(False) leaves them out: let zipfile not look for one
    elif (bad := archive.testzip()) is not None:  # torch itself does not look at the checksums
        why = f"is damaged: the entry {one_line(bad, 60)!r} does not match its checksum"
        raise CheckpointError(path, why, _AGAIN)
    if not unsafe_pickle:
        _check_size(path, main.file_size)
        PickleWalk(path, size, _PICKLE_STEPS + 30 * len(records)).through(BytesIO(archive.read(main)))


def _check_size(path: Path, size: int) -> None:
    if size > _PICKLE_BYTES:
        why = f"holds {size:,} bytes of objects beside its tensors, {_PICKLE_BYTES:,} are allowed"
        raise CheckpointError(path, why, _SAVE_TENSORS)


def _check_record(path: Path, record: zipfile.ZipInfo) -> None:
    name = one_line(record.filename, 60)
    if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
        why = f"holds the compressed entry {name!r}, which could unpack to any size"
        raise CheckpointError(path, why, _SAVE_TENSORS)
    # torch's reader leaves the memory of such an entry as it finds it, and calls that the tensor
    if record.external_attr & 0x10 or record.filename.endswith("/"):
        raise CheckpointError(path, f"holds the entry {name!r} as a folder", _AGAIN)


def _main_record(path: Path, records: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    """The pickle, in whose folder all else lies."""
    main = [r for r in records if r.filename.count("/") == 1 and r.filename.endswith("/data.pkl")]
    folder = main[0].filename.removesuffix("data.pkl") if main else ""
    if len(main) != 1 or not all(r.filename.startswith(folder) for r in records):
        raise CheckpointError(path, "is a zip archive, but not one that torch.save wrote", _SAVE_TENSORS)
    return main[0]


def _check_legacy(path: Path, size: int) -> None:
    """The torch format before 1.6: a mark, a version, the system, the objects, the keys, then the bytes."""
    walk = PickleWalk(path, size, _PICKLE_STEPS)
    with open(path, "rb") as file:
        *_, keys = (walk.through(file) for _ in range(5))
    # torch would leave the memory of the other storages as it finds it, and call that the tensors
    named = keys.parts if isinstance(keys, StandIn) and keys.kind == "list" else []
    if not all(isinstance(key, str) for key in named) or set(named) != walk.storages.keys():
        raise CheckpointError(path, "is damaged: it does not hold the bytes of all its tensors", _AGAIN)
    if (total := sum(walk.storages.values())) > size:
        raise CheckpointError(path, f"claims {total:,} bytes of tensors, the file holds {size:,}", _AGAIN)


def _safe_globals() -> list[Any]:
    """What torch refuses though it runs nothing: numbers and arrays of numpy, parsed options, paths of files.

    Those that the user allowed are left out: torch's context manager would take them away at its end.
    """
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.array([0]).__reduce__()[0]
    names = {f"{m}.{f}": g for m in MULTIARRAY for f, g in (("scalar", scalar), ("_reconstruct", reconstruct))}
    names |= {
        "builtins.bytes": bytes,
        "pathlib.PosixPath": pathlib.PurePosixPath,
        "pathlib.WindowsPath": pathlib.PureWindowsPath,
    }
    safe = [*((g, name) for name, g in names.items()), np.dtype, np.ndarray, argparse.Namespace]
    safe += [type(np.dtype(form)) for form in NUMPY]
    given = torch.serialization.get_safe_globals()
    return [g for g in safe if g not in given]


def _load_pickle(path: Path, unsafe_pickle: bool) -> Any:
    check_room(path, check_regular(path))
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_safe_globals()):
            warnings.simplefilter("ignore")  # of deprecated storages; nothing that the user could act on
            return torch.load(path, map_location="cpu", weights_only=not unsafe_pickle)
    except OSError as error:
        raise CheckpointError(path, *disk_error(error, path)) from error
    except Exception as error:  # nine types are known, and torch promises none
        raise CheckpointError(path, *_reason(error)) from error


def _reason(error: Exception) -> tuple[str, str]:
    text = str(error)
    if "Unsupported global" in text or "Unsupported class" in text or "not an allowed global" in text:
        called = next((w.strip("`',.") for w in text.split("GLOBAL")[1:2] for w in w.split()[:1]), "a Python object")
        return (
            f"needs code to be read ({one_line(called, 80)}), which could do anything",
            f"{_SAVE_TENSORS}; only if you made this file yourself: load_params(path, unsafe_pickle=True)",
        )
    _, _, why = text.rpartition("WeightsUnpickler error:")  # behind what torch advises of its own options
    return f"cannot be read by torch ({type(error).__name__}: {one_line(' '.join(why.split()))})", _AGAIN
