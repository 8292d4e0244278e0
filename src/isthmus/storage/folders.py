"""Which file of a folder holds its network: the one that the program that wrote the folder would read, and no other."""

from __future__ import annotations

import os
import re
from pathlib import Path

from isthmus.errors import CheckpointError
from isthmus.storage.files import check_regular, one_line, read_json

__all__ = [
    "ADAPTER",
    "BIN_INDEX",
    "INDEX",
    "USUAL",
    "adapter_file",
    "adapter_folder",
    "member",
    "shard_of",
    "weight_map",
]

ADAPTER = "adapter_config.json"
"""The file that makes a folder one of PEFT."""
INDEX = ".safetensors.index.json"
BIN_INDEX = ".bin.index.json"

USUAL = ("model.safetensors", f"model{INDEX}", "pytorch_model.bin", f"pytorch_model{BIN_INDEX}")
"""What Hugging Face calls weights, in the order in which it looks for them."""
_ENDINGS = ((INDEX,), (".safetensors",), (BIN_INDEX,), (".pt", ".pth", ".bin"))
# what trainers write beside the weights: pickles of other things, which are never opened
_BESIDE = re.compile(r"(optimizer|scheduler|scaler|sampler|rng_state|random_states|training_args|adapter_model)[._-].*")
_INDEX_BYTES = 20_000_000
_AGAIN = "copy or download it again"
_TO_TORCH = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt"


def member(folder: Path) -> Path:
    """The one checkpoint in a folder, safetensors before torch files; beside a ``config.json`` that of the usual name.

    Errors: ``CheckpointError`` for none, or several.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    groups = [[name for name in names if _is_weights(name, endings)] for endings in _ENDINGS]
    groups = [*([name] for name in USUAL if {name, "config.json"} <= {*names}), *groups]
    if found := next(filter(None, groups), None):
        return folder / _one_of(folder, found)
    if ".metadata" in names:
        raise CheckpointError(folder, "is a checkpoint in parts of torch.distributed", f"write {_TO_TORCH}")
    expected = f"expected a file ending in .safetensors or {INDEX}"
    raise CheckpointError(folder, "is a folder without a checkpoint", expected)


def _is_weights(name: str, endings: tuple[str, ...]) -> bool:
    return name.endswith(endings) and not name.startswith(".") and not _BESIDE.fullmatch(name)


def _one_of(folder: Path, found: list[str]) -> str:
    if len(found) == 1:
        return found[0]
    some = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
    raise CheckpointError(folder, f"holds {len(found)} checkpoints ({some})", "give the path of one of them")


def adapter_folder(path: Path) -> Path | None:
    """The folder of the PEFT adapter that a folder is, or a file is the weights of; None for anything else."""
    folder = path if path.is_dir() else path.parent if path.name.startswith("adapter_model.") else None
    return folder if folder is not None and (folder / ADAPTER).is_file() else None


def adapter_file(folder: Path) -> Path:
    """The weights of a PEFT adapter. Errors: ``CheckpointError`` where they are missing."""
    files = [folder / f"adapter_model.{kind}" for kind in ("safetensors", "bin")]
    if found := next((file for file in files if file.is_file()), None):
        return found
    raise CheckpointError(folder, f"holds {ADAPTER}, but no {files[0].name}", _AGAIN)


def weight_map(path: Path) -> dict[str, str]:
    """In which shard each tensor is, as the index says."""
    if check_regular(path) > _INDEX_BYTES:
        raise CheckpointError(path, "is an index of more than 20 MB", _AGAIN)
    index = read_json(path)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(v, str) for v in where.values()):
        raise CheckpointError(path, 'is not an index of shards: it has no "weight_map" of file names', _AGAIN)
    return where


def shard_of(index: Path, name: str) -> Path:
    """The path of a shard, which must be a plain name and lie in the folder of its index."""
    shown = repr(one_line(name, 80))
    if name != os.path.basename(name) or "\\" in name or "\0" in name or name in ("", ".", ".."):
        raise CheckpointError(index, f"names the shard {shown}, which is not a plain file name", "do not trust it")
    shard = index.parent / name
    home = index.parent.resolve()
    # the cache of huggingface_hub keeps <snapshots>/<revision>/<name> as links to <blobs>/<hash>
    allowed = {home, home.parent.parent / "blobs"} if home.parent.name == "snapshots" else {home}
    if shard.resolve().parent not in allowed:
        raise CheckpointError(index, f"names the shard {shown}, a link out of its folder", "do not trust it")
    return shard
