"""A file that is larger than memory is refused before it is read."""

import json

import pytest
import torch

import isthmus as im
from isthmus.errors import CheckpointError, FileError
from isthmus.storage import room, tensors
from isthmus.storage.room import available

A, B = {"w": torch.zeros(1000)}, {"w": torch.ones(1000)}


def folder_of_shards(folder):
    for i, params in enumerate(({"a": torch.zeros(600)}, {"b": torch.ones(600)})):
        tensors.save_tensors(params, folder / f"{i}.safetensors", {})
    (folder / "m.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "0.safetensors", "b": "1.safetensors"}})
    )
    return folder / "m.safetensors.index.json"


@pytest.fixture
def files(tmp_path):
    im.save(im.Path.through([A, B]), tmp_path / "path.safetensors")
    im.save_params(A, tmp_path / "one.safetensors")
    torch.save(A, tmp_path / "one.pt")
    return {
        "path.safetensors": (im.load_connection, FileError, tmp_path / "path.safetensors"),
        "one.safetensors": (im.load_params, CheckpointError, tmp_path / "one.safetensors"),
        "one.pt": (im.load_params, CheckpointError, tmp_path / "one.pt"),
        "shards": (im.load_params, CheckpointError, folder_of_shards(tmp_path)),
    }


@pytest.mark.parametrize("kind", ["path.safetensors", "one.safetensors", "one.pt", "shards"])
def test_what_is_larger_than_memory_is_refused_unread(monkeypatch, files, kind):
    load, error, file = files[kind]
    load(file)
    monkeypatch.setattr(room, "available", lambda: 4_000)  # more than one of the shards
    for module, name in ((tensors, "safe_open"), (torch, "load")):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("it was read"))
    with pytest.raises(error, match=r"needs [4-9],\d\d\d bytes of memory, 4,000 are available; free some") as raised:
        load(file)
    assert str(raised.value).count(str(file)) == 1


def test_where_it_cannot_be_told_nothing_is_refused(monkeypatch, files):
    monkeypatch.setattr(room, "_MEMORY", room._MEMORY / "none")
    assert available() is None
    load, _, file = files["one.safetensors"]
    assert load(file).keys() == A.keys()


def system(monkeypatch, folder, own, groups):
    """A machine with 100 kB, and control groups."""
    (folder / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 90 kB\nSwapFree:  10 kB\n")
    (folder / "own").write_text(own)
    for name, held in groups.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(held)
    for name, file in (("_MEMORY", "meminfo"), ("_OWN", "own"), ("_GROUPS", "groups")):
        monkeypatch.setattr(room, name, folder / file)


def test_memory_is_that_of_the_system_and_of_each_control_group(monkeypatch, tmp_path):
    second = {
        "groups/memory.stat": "",  # the root has no limit
        "groups/a/memory.max": "50000\n",
        "groups/a/memory.current": "20000\n",
        "groups/a/memory.stat": "anon 7\ninactive_file 500\nactive_file 1\n",
        "groups/a/b/memory.max": "max\n",
        "groups/a/b/memory.current": "20000\n",
    }
    system(monkeypatch, tmp_path, "0::/a/b\n", second)
    assert available() == 50000 - 20000 + 501
    (tmp_path / "groups/a/memory.max").write_text("10000\n")
    assert available() == 0
    system(monkeypatch, tmp_path, "0::/\n", {})
    assert available() == 100 * 1024


def test_the_first_version_of_control_groups(monkeypatch, tmp_path):
    first = {
        "groups/memory/memory.limit_in_bytes": "3000\n",
        "groups/memory/memory.usage_in_bytes": "1000\n",
        "groups/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 30\ntotal_active_file 4\n",
    }
    system(monkeypatch, tmp_path, "4:cpu,memory:/not/seen/here\n0::/\n", first)
    assert available() == 2034
