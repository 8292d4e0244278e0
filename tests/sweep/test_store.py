"""Keys, results that are written once, locks, checkpoints, full disks."""

import errno
import hashlib
import json
import os
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import isthmus as im
from isthmus.seal import SEAL
from isthmus.storage import files
from isthmus.sweep import FolderMemory, Local, Store, canonical, identity, key_of, run_cells
from isthmus.sweep.store import BusyError
from tests.mortal import dead
from tests.sweep.cells import Square, Total, results, squares, temporaries


def test_the_key_is_the_hash_of_config_data_and_schema():
    cell = Square(3, 0.5, "log", "abc")
    text = '{"cell":{"data":"abc","is":"Square","log":"log","n":3,"seconds":0.5},"data":{"data":"abc"},"schema":1}'
    assert key_of(identity(cell)) == hashlib.sha256(text.encode()).hexdigest()


def test_the_key_changes_with_each_of_them(monkeypatch):
    keys = {key_of(identity(c)) for c in (Square(3), Square(4), replace(Square(3), seconds=0.25), Square(3, data="x"))}
    monkeypatch.setattr(Square, "schema", 2)
    keys.add(key_of(identity(Square(3))))
    assert len(keys) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: 2}, torch.zeros(2)])
def test_what_has_no_canonical_form_is_refused_by_name(value):
    with pytest.raises(im.InputError, match=r"config\['x'\]"):
        canonical({"x": value})


def test_a_methods_fields_are_part_of_the_config():
    assert canonical(im.Dropout(masks=3)) != canonical(im.Dropout(masks=4))
    assert canonical(im.Linear()) == {"is": "Linear"}


def test_a_result_is_written_once_and_another_configuration_under_its_key_is_refused(tmp_path):
    store, cell = Store(tmp_path), Square(3)
    assert store.find(cell) is None
    with pytest.raises(im.FileError, match="no result yet"):
        store.load(cell)
    store.write(cell, {"square": 9}, {})
    assert store.load(cell).result == {"square": 9}
    with pytest.raises(im.FileError, match="never edited"):
        store.write(cell, {"square": 10}, {})
    file = store.folder(cell) / "result.json"
    document = json.loads(file.read_text())
    for wrong in (
        document | {"cell": document["cell"] | {"n": 4}},
        document | {"data": {"data": "other"}},
        document | {"schema": 2},
        document | {"key": "0" * 64},
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(im.FileError, match="another configuration under the same key"):
            run_cells([cell], store, Local())
    no_digest = {k: v for k, v in document.items() if k != SEAL}
    for wrong in (document | {"result": {"square": 8}}, no_digest):
        file.write_text(json.dumps(wrong))
        with pytest.raises(im.FileError, match="do not match their digest"):
            store.find(cell)
    for text in ("", "{", "[]", '{"format": 99}', '{"format": 1, "format": 1}'):
        file.write_text(text)
        with pytest.raises(im.FileError, match=str(file)):
            store.find(cell)


def test_a_group_is_one_folder_below_the_root(tmp_path, monkeypatch):
    for bad in ("", "..", "a/b", ".hidden"):
        monkeypatch.setattr(Square, "group", bad)
        with pytest.raises(im.InputError, match="group"):
            Store(tmp_path).folder(Square(1))


def test_one_holder_at_a_time(tmp_path):
    store = Store(tmp_path)
    with store.claim(Square(1), wait=False):
        with pytest.raises(BusyError), store.claim(Square(1), wait=False):
            pass
        with store.claim(Square(2), wait=False):
            pass
    with store.claim(Square(1), wait=False):
        pass
    assert not list((tmp_path / "squares/.locks").iterdir())


def test_a_lock_that_may_not_be_made_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    report = run_cells([Square(1)], Store(tmp_path), Local())
    (failed,) = report.failed.values()
    assert re.fullmatch(
        r".*/\.locks/[0-9a-f]+: permission denied; use a place that you may read and write", failed.message
    )
    assert not failed.detail


@dataclass(frozen=True)
class Kept(Square):
    """Leaves a state when it ends."""

    def run(self, job):
        job.memory(seconds=0).save({"w": torch.zeros(1)}, {})
        return super().run(job)


def test_a_state_that_may_not_be_removed_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: refused(SimpleNamespace(lock_file=path), 0))
    (failed,) = run_cells([Kept(1)], Store(tmp_path), Local()).failed.values()
    assert failed.message.endswith("work.state.safetensors: permission denied; use a place that you may read and write")
    assert not failed.detail


def refused(lock, timeout):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), lock.lock_file)


def test_what_is_left_of_an_unfinished_cell_is_removed_but_its_checkpoint(tmp_path):
    store, cell = Store(tmp_path), Square(1)
    folder = store.folder(cell)
    (folder / "run").mkdir(parents=True)
    (folder / "run/path.safetensors").write_text("half")
    (folder / ".result.json.1.0000000000000000.tmp").mkdir()
    (folder / "record.json").write_text("{}")
    (folder / "work.state.safetensors").write_text("kept")
    store.tidy(cell)
    assert [f.name for f in folder.iterdir()] == ["work.state.safetensors"]
    run_cells([cell], store, Local())
    assert sorted(f.name for f in folder.iterdir()) == ["record.json", "result.json"]


def test_what_is_left_beside_a_finished_cell_is_removed_but_a_lock_that_is_held(tmp_path):
    store, cell = Store(tmp_path), Square(1)
    run_cells([cell], store, Local())
    lock = tmp_path / "squares/.locks" / store.folder(cell).name
    with store.claim(cell, wait=False):
        run_cells([cell], store, Local())
        assert lock.exists()
    lock.write_text("")  # of a process that may not remove it any more
    run_cells([cell], store, Local())
    assert not lock.exists()
    assert sorted(f.name for f in store.folder(cell).iterdir()) == ["record.json", "result.json"]


def test_a_state_comes_back_bit_for_bit_and_only_to_its_owner(tmp_path):
    memory = FolderMemory(tmp_path, "owner", steps=3).part("inner")
    assert [memory.due(n) for n in (1, 2, 3, 6)] == [False, False, True, True]
    assert memory.load() is None
    tensors = {"w": torch.rand(3, 2).T, "n": torch.tensor(3), "g": torch.Generator().get_state()}
    memory.save(tensors, {"step": 3, "best": 0.1, "worst": float("inf")})
    found = memory.load()
    assert found is not None
    assert all(torch.equal(found[0][k], v) and found[0][k].dtype == v.dtype for k, v in tensors.items())
    assert found[1] == {"step": 3, "best": 0.1, "worst": float("inf")}
    assert memory.part("more").load() is None
    with pytest.raises(im.FileError, match="the state of another search"):
        FolderMemory(tmp_path, "other").part("any").load()
    data = bytearray(memory.path.read_bytes())
    for place in (9, len(data) // 2, len(data) - 1):
        memory.path.write_bytes(bytes(data[:place]) + bytes([data[place] ^ 1]) + bytes(data[place + 1 :]))
        assert memory.load() is None
    memory.path.write_bytes(bytes(data))
    memory.path.rename(memory.part("moved").path)  # the state of one part is not taken for that of another
    assert memory.part("moved").load() is None
    memory.part("moved").path.write_bytes(bytes(data[:-5]))
    assert memory.part("moved").load() is None


def test_a_memory_removes_what_is_its_own(tmp_path):
    mine, other = FolderMemory(tmp_path / "s", "me"), FolderMemory(tmp_path / "s", "other").part("a")
    mine.part("a").save({}, {"x": 1})
    assert mine.begun()
    (tmp_path / "s" / f".a.{dead()}.{files._host()}00000000.tmp").mkdir()  # of one that was killed while it saved
    mine.remove()
    assert not (tmp_path / "s").exists()
    other.save({}, {"x": 1})
    mine.remove()
    assert other.load() == ({}, {"x": 1})
    with pytest.raises(im.InputError, match="part: expected letters"):
        mine.part("../x")


def test_states_are_due_by_time(tmp_path):
    assert not FolderMemory(tmp_path, "owner", seconds=1000).part("a").due(10)
    assert FolderMemory(tmp_path, "owner", seconds=0).part("a").due(1)


# -- disks that fail


def _fail_at(monkeypatch, number: int) -> list[int]:
    """Let the disk be full from the `number`-th call on that makes or flushes a file; returns the count of calls."""
    calls = [0]
    for module, name in ((os, "mkdir"), (os, "fsync"), (os, "replace"), (Path, "write_bytes")):
        real = getattr(module, name)

        def call(*args, real=real, **options):
            calls[0] += 1
            if calls[0] >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **options)

        monkeypatch.setattr(module, name, call)
    return calls


def test_a_disk_that_fills_up_at_any_moment(tmp_path):
    store, cells = Store(tmp_path), squares(3, 0, tmp_path / "log")
    run_cells(cells[:1], store, Local())
    before = results(tmp_path / "squares")
    stopped = number = 0
    while True:
        number += 1
        with pytest.MonkeyPatch.context() as patch:
            calls = _fail_at(patch, number)
            report, said = None, ""
            try:
                report = run_cells([*cells, Total(tuple(cells))], store, Local())
            except im.IsthmusError as e:
                said = str(e)
        if report is None:
            stopped += 1
            assert "no space left" in said
            assert str(tmp_path) in said
        assert not temporaries(tmp_path)
        assert before.items() <= results(tmp_path / "squares").items()
        assert store.load(cells[0]).result == {"square": 0}
        if report is not None:
            break
        before = results(tmp_path / "squares")
    assert stopped > 5
    assert report.ok
    assert calls[0] < number
    assert store.load(Total(tuple(cells))).result == {"sum": 5}


def test_a_small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs the administrator")
    try:
        store, cells = Store(disk), squares(60, 0, tmp_path / "log")
        with pytest.raises(im.IsthmusError, match=r"no space left.*bytes are needed.*free some space"):
            run_cells(cells, store, Local())
        done = [c for c in cells if store.find(c) is not None]
        assert 2 < len(done) < 60
        assert [store.load(c).result["square"] for c in done] == [c.n**2 for c in done]
        assert not temporaries(disk)
        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        report = run_cells(cells, store, Local())
        assert report.ok
        assert report.found == len(done)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
