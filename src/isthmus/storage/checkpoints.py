"""Checkpoints of other programs, read without running anything in them; and our own files of parameters."""

from __future__ import annotations

import os
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from isthmus.errors import CheckpointError, FileError, IsthmusError
from isthmus.params import Params
from isthmus.storage.files import PathLike, check_regular, disk_error, one_line, read_json
from isthmus.storage.tensors import digest, read_tensors, save_tensors, sniff

__all__ = ["load_params", "save_params"]

_DIGEST = "isthmus.digest"
_WRAPPERS = ("state_dict", "model_state", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_INDEX = ".safetensors.index.json"

_RECORDS = 50_000  # entries of a zip archive
_PICKLE_BYTES = 10_000_000
_PICKLE_STEPS = 2_000_000  # a state dict takes about 30 per tensor; torch's reader does some 2 million a second

_SAVE_TENSORS = "where the model was trained, write torch.save(model.state_dict(), path)"
_AGAIN = "copy or download it again"


def load_params(path: PathLike, *, unsafe_pickle: bool = False) -> Params:
    """The parameters in a checkpoint, on the CPU: a plain dictionary of contiguous tensors.

    Reads a safetensors file; a folder or an ``*.safetensors.index.json`` with shards; a torch file (.pt, .pth,
    .bin), which is a state dict or holds one under "state_dict", "model_state", "model" or "model_state_dict".
    The kind is judged by content, not by name. Other entries of a torch file (optimiser, epoch) are ignored,
    but a state dict itself must hold tensors only: leaving out one of its entries could change the network.
    A prefix "module." or "_orig_mod." that all names have is removed. NaN is not refused here.

    Nothing in the file is executed, and memory stays within about twice the file: compressed archives, tensors
    larger than their storage and headers over 10 MB are refused. A file from ``save_params`` is checked
    against its digest and returned with its names as they are.

    `unsafe_pickle`: DANGER. ``True`` lets a torch file RUN ANY CODE it contains, as you, while it is read. Only
    for a file that you made yourself; it is needed for pickled modules and other Python objects.

    Errors: ``CheckpointError`` with the reason and what to do.
    """
    try:
        return _load(Path(path), unsafe_pickle)
    except CheckpointError:
        raise
    except FileError as error:
        # a shard's own path stays in the reason
        raise CheckpointError(path, str(error).removeprefix(f"{path}: ")) from error
    except OSError as error:
        raise CheckpointError(path, *disk_error(error, Path(path))) from error


def save_params(params: Mapping[str, Tensor], path: PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Write parameters as a safetensors file, atomically, with a digest that ``load_params`` checks.

    `metadata`: further strings for the header. Every safetensors reader can read the file.
    """
    save_tensors(params, path, {"format": "pt", **(metadata or {}), _DIGEST: digest(params)})


def _load(path: Path, unsafe_pickle: bool) -> Params:
    if path.is_dir():
        return _load(_member(path), unsafe_pickle)
    size = check_regular(path)
    kind = sniff(path)
    with open(path, "rb") as file:
        first = file.read(4)
    if first == b"PK\x03\x04":
        _check_zip(path, size, unsafe_pickle)
        return _state_dict(path, _load_pickle(path, unsafe_pickle), size)
    if "safetensors" in kind or path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.name.endswith(_INDEX) or (path.suffix == ".json" and kind == "JSON text"):
        return _load_shards(path)
    if first[:1] == b"\x80":
        if not unsafe_pickle:
            with open(path, "rb") as file:
                _check_legacy(path, file)
        return _state_dict(path, _load_pickle(path, unsafe_pickle), size)
    raise CheckpointError(path, f"is {kind}, not a safetensors or torch file", _SAVE_TENSORS)


def _member(folder: Path) -> Path:
    """The one checkpoint in a folder: an index of shards, else a single safetensors file, else a torch file."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    for endings in ((_INDEX,), (".safetensors",), (".pt", ".pth", ".bin")):
        found = [name for name in names if name.endswith(endings) and not name.startswith(".")]
        if len(found) == 1:
            return folder / found[0]
        if found:
            some = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
            raise CheckpointError(folder, f"holds {len(found)} checkpoints ({some})", "give the path of one of them")
    raise CheckpointError(
        folder, "is a folder without a checkpoint", f"expected a file ending in .safetensors or {_INDEX}"
    )


def _load_safetensors(path: Path) -> Params:
    tensors, metadata = read_tensors(path)
    if "isthmus" in metadata:
        raise CheckpointError(path, "is a saved connection, not one network", "read it with load_connection")
    if _DIGEST not in metadata:
        return _strip(path, tensors)
    if digest(tensors) != metadata[_DIGEST]:
        raise CheckpointError(path, "is damaged: its tensors do not match its digest", _AGAIN)
    return tensors


def _load_shards(path: Path) -> Params:
    """The tensors of all shards that an index names; the shards lie in the folder of the index."""
    if check_regular(path) > 2 * _PICKLE_BYTES:
        raise CheckpointError(path, "is an index of more than 20 MB", _AGAIN)
    index = read_json(path)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(v, str) for v in where.values()):
        raise CheckpointError(path, 'is not an index of shards: it has no "weight_map" of file names', _AGAIN)
    params: Params = {}
    for name in sorted(set(where.values())):
        tensors, _ = read_tensors(_shard(path, name))
        if stray := [k for k in tensors if where.get(k) != name]:
            raise CheckpointError(
                path, f"does not say that {one_line(stray[0], 80)!r} is in {one_line(name, 80)}", _AGAIN
            )
        params |= tensors
    if missing := [k for k in where if k not in params]:
        raise CheckpointError(
            path, f"names {one_line(missing[0], 80)!r}, which is not in {one_line(where[missing[0]], 80)}", _AGAIN
        )
    return _strip(path, {k: params[k] for k in where})


def _shard(index: Path, name: str) -> Path:
    """The path of a shard, which must be a plain name and lie in the folder of its index."""
    if name != os.path.basename(name) or "\\" in name or "\0" in name or name in ("", ".", ".."):
        raise CheckpointError(
            index, f"names the shard {one_line(name, 80)!r}, which is not a plain file name", "do not trust it"
        )
    shard = index.parent / name
    home = index.parent.resolve()
    # the cache of huggingface_hub keeps <snapshots>/<revision>/<name> as links to <blobs>/<hash>
    allowed = {home, home.parent.parent / "blobs"} if home.parent.name == "snapshots" else {home}
    if shard.resolve().parent not in allowed:
        raise CheckpointError(
            index, f"names the shard {one_line(name, 80)!r}, a link out of its folder", "do not trust it"
        )
    return shard


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
    names = [r.filename for r in records]
    if len({name.lower() for name in names}) < len(names):
        raise CheckpointError(path, "is a zip archive with two entries of one name", "do not trust it")
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            why = f"holds the compressed entry {one_line(record.filename, 60)!r}, which could unpack to any size"
            raise CheckpointError(path, why, _SAVE_TENSORS)
        # torch's reader leaves the memory of such an entry as it finds it, and calls that the tensor
        if record.external_attr & 0x10 or record.filename.endswith("/"):
            why = f"holds the entry {one_line(record.filename, 60)!r} as a folder"
            raise CheckpointError(path, why, _AGAIN)
    if sum(r.file_size for r in records) > size:
        raise CheckpointError(path, "is a zip archive whose entries are larger than the file", "do not trust it")
    main = [r for r in records if r.filename.count("/") == 1 and r.filename.endswith("/data.pkl")]
    folder = main[0].filename.removesuffix("data.pkl") if main else ""
    if len(main) != 1 or not all(name.startswith(folder) for name in names):
        raise CheckpointError(path, "is a zip archive, but not one that torch.save wrote", _SAVE_TENSORS)
    if any(r.CRC for r in records):
        if (bad := archive.testzip()) is not None:  # torch itself does not look at the checksums
            why = f"is damaged: the entry {one_line(bad, 60)!r} does not match its checksum"
            raise CheckpointError(path, why, _AGAIN)
    else:  # torch.serialization.set_crc32_options(False) leaves them out: let zipfile not look for one
        del main[0].CRC
    if not unsafe_pickle:
        if main[0].file_size > _PICKLE_BYTES:
            why = f"holds {main[0].file_size:,} bytes of objects beside its tensors, {_PICKLE_BYTES:,} are allowed"
            raise CheckpointError(path, why, _SAVE_TENSORS)
        _check_pickle(path, BytesIO(archive.read(main[0])), _PICKLE_STEPS)


def _check_pickle(path: Path, file: IO[bytes], steps: int) -> int:
    """Walk through one pickle without running it; return the steps left of `steps`."""
    try:
        for operation, argument, _ in pickletools.genops(file):
            steps -= 1
            if steps < 0:
                raise CheckpointError(path, f"takes over {_PICKLE_STEPS:,} steps to read", _SAVE_TENSORS)
            # the one callable on torch's list of safe ones that fills as much memory as it is asked to
            if operation.name == "GLOBAL" and str(argument).endswith(" bytearray"):
                raise CheckpointError(path, "asks for a bytearray, which could be of any size", _SAVE_TENSORS)
    except IsthmusError:
        raise
    except Exception as error:  # the reader of a damaged pickle can raise almost anything
        raise CheckpointError(path, f"is a damaged pickle ({one_line(error)})", _AGAIN) from error
    return steps


def _check_legacy(path: Path, file: IO[bytes]) -> None:
    """The torch format before 1.6: a mark, a version, the system, the objects, the keys, then the bytes."""
    steps = _PICKLE_STEPS
    for _ in range(5):
        steps = _check_pickle(path, file, steps)


def _load_pickle(path: Path, unsafe_pickle: bool) -> Any:
    try:
        with warnings.catch_warnings():
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
    return f"cannot be read by torch ({type(error).__name__}: {one_line(error)})", _AGAIN


def _state_dict(path: Path, loaded: Any, size: int) -> Params:
    """The one dictionary of tensors in what a torch file held."""
    if isinstance(loaded, nn.Module):  # only with unsafe_pickle
        loaded = loaded.state_dict()
    if not isinstance(loaded, Mapping):
        raise CheckpointError(path, f"holds one {_kind(loaded)}, not a dictionary of tensors", _SAVE_TENSORS)
    inner = {k: loaded[k] for k in _WRAPPERS if isinstance(loaded.get(k), Mapping | nn.Module)}
    inner = {k: v.state_dict() if isinstance(v, nn.Module) else v for k, v in inner.items()}
    inner = {k: v for k, v in inner.items() if any(isinstance(x, Tensor) for x in v.values())}
    if len(inner) > 1:
        raise CheckpointError(path, f"holds several state dicts: {', '.join(inner)}", "save the one that you mean")
    state = next(iter(inner.values())) if inner else loaded
    if not any(isinstance(v, Tensor) for v in state.values()):
        found = ", ".join(f"{one_line(k, 40)} ({_kind(v)})" for k, v in list(loaded.items())[:8])
        expected = ", ".join(map(repr, _WRAPPERS))
        raise CheckpointError(
            path, f"holds no tensors, only {found or 'nothing'}", f"expected them here or under {expected}"
        )
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            why = f"its state dict holds {one_line(name, 80)!r} ({_kind(value)}), which is not a tensor under a name"
            raise CheckpointError(path, why, "save the tensors alone")
    return _strip(path, _owned(path, state, size))


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        tensors = sum(isinstance(v, Tensor) for v in value.values())
        return f"dict of {tensors} tensors" if tensors else f"dict of {len(value)} entries"
    return type(value).__name__


def _owned(path: Path, state: Mapping[str, Tensor], size: int) -> Params:
    """The tensors, contiguous, after the checks that bound what that can cost.

    A view that is contiguous costs nothing. Others are copied, once each, and together may not exceed the file.
    """
    copies: dict[tuple[Any, ...], Tensor] = {}
    copied = 0
    params: Params = {}
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
            raise CheckpointError(
                path, f"{one_line(name, 80)!r} is not a dense tensor with values", "save tensor.to_dense()"
            )
        held = tensor.untyped_storage().nbytes()
        needs = tensor.numel() * tensor.itemsize
        if needs > held or needs > size:
            claim = f"{one_line(name, 80)!r} of shape {tuple(tensor.shape)} claims {needs:,} bytes"
            why = f"{claim}, the file holds {min(held, size):,}"
            raise CheckpointError(path, why, "save tensor.contiguous()")
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg())
        if key not in copies:
            plain = tensor.detach().resolve_conj().resolve_neg()
            if not plain.is_contiguous():
                copied += needs
                if copied > size:
                    raise CheckpointError(
                        path, f"repeats its bytes in {copied:,} bytes of views", "save contiguous tensors"
                    )
            copies[key] = plain.contiguous()
        params[name] = copies[key]
    return params


def _strip(path: Path, params: Params) -> Params:
    """Without the prefixes that wrappers put before every name."""
    for _ in _PREFIXES:
        for prefix in _PREFIXES:
            if params and all(name.startswith(prefix) and name != prefix for name in params):
                params = {name.removeprefix(prefix): tensor for name, tensor in params.items()}
    return params
