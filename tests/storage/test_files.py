"""Atomic writes, JSON, CSV, and tensors on disk: faults at every step leave the old file and nothing else."""

import errno
import json
import math
import os
import resource
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from isthmus.errors import FileError, InputError
from isthmus.storage import files, tensors
from isthmus.storage.files import atomic_write, plain, read_json, sweep_temporaries, write_csv, write_json, write_text
from isthmus.storage.tensors import digest, read_metadata, read_tensors, save_tensors
from tests.mortal import dead


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


class Fault:
    """Every system call that a write makes, numbered; the chosen one fails."""

    def __init__(self, patch, code, at):
        self.calls, self.code, self.at = 0, code, at
        for module, name in [(os, "mkdir"), (os, "open"), (os, "chmod"), (os, "fsync"), (os, "replace")]:
            patch.setattr(module, name, self.wrap(getattr(module, name)))
        patch.setattr(tensors, "_bytes", self.wrap(tensors._bytes))
        patch.setattr(files, "_write_bytes", self.wrap(files._write_bytes))

    def wrap(self, real):
        def call(*args, **kwargs):
            if "dir_fd" in kwargs:  # the clean-up (shutil.rmtree) is not a write
                return real(*args, **kwargs)
            self.calls += 1
            if self.calls == self.at:
                raise OSError(self.code, os.strerror(self.code))
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("kind", ["tensors", "json"])
def test_a_fault_at_any_call_leaves_the_old_file_or_the_new_one_and_no_temporary(tmp_path, kind, code):
    path = tmp_path / "file"
    old, new = {"w": torch.zeros(3), "b": torch.ones(2)}, {"w": torch.ones(3), "b": torch.ones(2)}

    def write(content):
        if kind == "tensors":
            save_tensors(content, path, {})
        else:
            write_json(path, {k: v.tolist() for k, v in content.items()})

    faults = 0
    for at in range(1, 40):
        write(old)
        before = path.read_bytes()
        with pytest.MonkeyPatch.context() as patch:
            fault = Fault(patch, code, at)
            try:
                write(new)
            except FileError as error:
                message = str(error)
            else:
                message = None
        if message is None:
            assert fault.calls < at
            break
        faults += 1
        assert str(path) in message
        assert "\n" not in message
        # only the last two calls come after the rename
        assert path.read_bytes() == before or "folder could not be flushed" in message
        assert listing(tmp_path) == ["file"]
    assert faults >= 8


def test_a_disk_that_is_full_at_any_byte_gives_one_message_with_the_bytes_needed(tmp_path):
    path = tmp_path / "w.safetensors"
    weights = {"w": torch.arange(50.0)}
    save_tensors(weights, path, {"n": "old"})
    before, size = path.read_bytes(), path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(0, size, 7):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(FileError, match=f"{size} bytes are needed"):
                save_tensors(weights, path, {"n": "new"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        assert listing(tmp_path) == ["w.safetensors"]


def test_a_writer_that_raises_half_way_leaves_the_old_file_and_what_it_left_is_removed(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        (temporary.parent / ".tmpXXXX").write_text("a library's own temporary")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, write)
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["file"]


def test_a_writer_that_replaces_its_file_by_a_private_one_still_honours_the_umask(tmp_path):
    def write(temporary):
        other = temporary.parent / "other"
        other.write_text("new")
        other.chmod(0o600)
        other.rename(temporary)

    for umask, mode in [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)]:
        previous = os.umask(umask)
        try:
            atomic_write(tmp_path / "file", write)
        finally:
            os.umask(previous)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_link_is_followed_and_folders_are_refused(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(FileError, match="is a folder, not a file"):
        write_text(tmp_path, "new")
    with pytest.raises(FileError, match=r"there is no folder .*; check the name, or create it"):
        write_text(tmp_path / "missing" / "file", "new")
    with pytest.raises(FileError, match="is not a folder"):
        write_text(tmp_path / "real" / "file", "new")
    write_text(tmp_path / ("n" * 250), "long names work too")
    assert listing(tmp_path) == ["link", "n" * 250, "real"]


def test_sweep_removes_temporaries_of_dead_processes_only(tmp_path):
    child = dead()
    here, there = files._host(), "0" * 8
    names = {
        "dead": f".a.{child}.{here}00000000.tmp",
        "alive": f".a.{os.getpid()}.{here}00000000.tmp",
        "other host": f".a.{child}.{there}00000000.tmp",
        "other host, old": f".b.{child}.{there}00000000.tmp",
        "not ours": ".tmpAbCdEf",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "new").write_text("half")
    for old in (tmp_path / names["other host, old"] / "new", tmp_path / names["other host, old"]):
        os.utime(old, (0, 0))
    (tmp_path / f".c.{child}.{here}00000000.tmp").symlink_to(tmp_path)  # never followed
    swept = {p.name for p in sweep_temporaries(tmp_path)}
    assert swept == {names["dead"], names["other host, old"]}
    assert swept.isdisjoint(listing(tmp_path))
    assert len(listing(tmp_path)) == 4
    with pytest.raises(FileError):
        sweep_temporaries(tmp_path / "missing")


def test_a_write_removes_what_a_killed_one_left(tmp_path):
    (tmp_path / f".a.txt.{dead()}.{files._host()}00000000.tmp").mkdir()
    write_text(tmp_path / "a.txt", "1")
    assert listing(tmp_path) == ["a.txt"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=30, deadline=None)
@given(json_values)
def test_json_comes_back_equal(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_numbers_that_json_has_not_become_null_and_arrays_lists(tmp_path):
    path = tmp_path / "value.json"
    value = {"a": math.nan, "b": [math.inf, -math.inf, 1e308], "c": np.float32(0.5), "d": torch.ones(2), "e": (1,)}
    write_json(path, value)
    assert read_json(path) == {"a": None, "b": [None, None, 1e308], "c": 0.5, "d": [1.0, 1.0], "e": [1]}
    assert plain({"a": -math.inf}, nonfinite=True) == {"a": -math.inf}
    with pytest.raises(InputError, match=r"value\['a'\]\[1\]: expected a JSON value .*, got set"):
        write_json(path, {"a": [1, {2}]})
    with pytest.raises(InputError, match="expected keys that are strings, got 1"):
        write_json(path, {1: "a", "1": "b"})
    assert read_json(path)["c"] == 0.5


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        "NaN",
        "[1e999]",
        "[-Infinity]",
        "",
        "{",
        "[1] x",
        "\ufeff[1]",
        "9" * 5000,
        "[1" + "0" * 400 + "]",
        "[" * 100_000,
        "{" + '"a":1,' * 3 + '"b":2}',
    ],
)
def test_json_that_is_not_strict_is_refused_with_one_line(tmp_path, text):
    (tmp_path / "value.json").write_text(text)
    with pytest.raises(FileError, match=r"value.json: is not valid JSON") as error:
        read_json(tmp_path / "value.json")
    assert "\n" not in str(error.value)


def test_reading_refuses_what_is_not_a_file(tmp_path):
    (tmp_path / "latin.json").write_bytes(b'"\xe4"')
    os.mkfifo(tmp_path / "pipe")
    for read in (read_json, read_tensors, read_metadata):
        for name in ("missing", "latin.json", "pipe", "."):
            with pytest.raises(FileError):
                read(tmp_path / name)


def test_csv_is_written_in_full_and_quotes_what_needs_it(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, {"t": np.array([0.1, math.nan]), "name, with comma": ['say "x"', None], "n": torch.tensor([1, 2])})
    assert path.read_bytes() == b't,"name, with comma",n\n0.1,"say ""x""",1\nnan,,2\n'
    with pytest.raises(InputError, match="columns of one length"):
        write_csv(path, {"a": [1], "b": [1, 2]})
    with pytest.raises(InputError, match="one dimension"):
        write_csv(path, {"a": torch.ones(2, 2)})
    with pytest.raises(InputError, match="a sequence"):
        write_csv(path, {"a": "text"})


def odd_tensors():
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "plain": base,
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "expanded": torch.ones(1).expand(3, 2),
        "scalar": torch.tensor(-0.0),
        "empty": torch.zeros(0, 3),
        "bool": torch.tensor([True, False]),
        "bfloat16": torch.tensor([1.5, math.nan], dtype=torch.bfloat16),
        "half": torch.ones(3, dtype=torch.float16),
        "double": torch.tensor([1e-300], dtype=torch.float64),
        "int8": torch.tensor([-1], dtype=torch.int8),
        "uint16": torch.tensor([65535], dtype=torch.uint16),
        "complex": torch.tensor([1 + 2j]),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "": torch.ones(1),
        "ä/\n\0": torch.ones(1),
    }


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), bytes(tensors._bytes(tensor))


def test_tensors_of_every_kind_come_back_bit_for_bit_and_other_readers_agree(tmp_path):
    path = tmp_path / "odd.safetensors"
    odd = odd_tensors()
    save_tensors(odd, path, {"ü": "x\ny"})
    back, metadata = read_tensors(path)
    assert metadata == read_metadata(path) == {"ü": "x\ny"}
    other = load_file(path)
    assert back.keys() == odd.keys() == other.keys()
    for name, tensor in odd.items():
        assert bits(back[name]) == bits(tensor) == bits(other[name]), name
        assert back[name].is_contiguous()
        assert not back[name].requires_grad
    assert digest(back) == digest(odd)
    once = path.read_bytes()
    save_tensors(dict(reversed(odd.items())), path, {"ü": "x\ny"})
    assert path.read_bytes() == once
    save_tensors({}, path, {})
    assert read_tensors(path) == ({}, {})


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("w", torch.eye(2).to_sparse(), "a dense tensor"),
        ("w", torch.ones(2, device="meta"), "a meta tensor, which has no values"),
        ("w", torch.ones(2, dtype=torch.complex128), "a format that safetensors can hold, got torch.complex128"),
        ("w", 3, "a torch.Tensor, got int"),
        ("__metadata__", torch.ones(1), "other than '__metadata__'"),
        (3, torch.ones(1), "a string"),
        ("\ud800", torch.ones(1), "Unicode"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_by_name(tmp_path, name, tensor, message):
    with pytest.raises(InputError, match=message):
        save_tensors({name: tensor}, tmp_path / "w", {})
    with pytest.raises(InputError, match="metadata"):
        save_tensors({}, tmp_path / "w", {"a": 1})  # pyright: ignore[reportArgumentType]
    assert listing(tmp_path) == []


def test_the_digest_sees_names_dtypes_shapes_and_bytes_and_nothing_else():
    w = torch.arange(6.0)
    others = [
        {"v": w},
        {"w": w.reshape(2, 3)},
        {"w": w.view(torch.int32)},
        {"w": w.double()},
        {"w": -w},
        {"w": w, "b": torch.zeros(0)},
        {"w": w[:0]},
        {"w": w[:0].double()},
        {},
    ]
    assert len({digest(o) for o in [{"w": w}, *others]}) == len(others) + 1
    assert digest({"w": w.reshape(2, 3).T.contiguous().T.reshape(6)}) == digest({"w": w})


def test_headers_that_would_not_be_read_again_are_not_written(tmp_path):
    path = tmp_path / "w.safetensors"
    save_tensors({"w": torch.ones(1)}, path, {})
    before = path.read_bytes()
    with pytest.raises(FileError, match="names 150,001 tensors, 150,000 are allowed; split the file"):
        save_tensors(dict.fromkeys(map(str, range(150_001)), torch.ones(0)), path, {})
    with pytest.raises(FileError, match="has a header of 20,"):
        save_tensors({}, path, {"a": "x" * 20_000_000})
    assert path.read_bytes() == before
    assert listing(tmp_path) == ["w.safetensors"]


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HOSTILE = {
    "empty": b"",
    "short": b"\x01\x02",
    "wrong endian": len(b"{}").to_bytes(8, "big") + b"{}",
    "length beyond the file": raw({"w": ENTRY}, b"\0" * 8, length=1 << 20),
    "length of 2^63": raw({"w": ENTRY}, b"\0" * 8, length=1 << 63),
    "truncated": raw({"w": ENTRY}, b"\0" * 7),
    "trailing": raw({"w": ENTRY}, b"\0" * 9),
    "overlap": raw({"v": ENTRY, "w": ENTRY}, b"\0" * 8),
    "hole": raw({"w": {**ENTRY, "data_offsets": [8, 16]}}, b"\0" * 16),
    "negative": raw({"w": {**ENTRY, "shape": [-2]}}, b"\0" * 8),
    "overflow": raw({"w": {**ENTRY, "shape": [2**40, 2**40]}}, b"\0" * 8),
    "giant": raw({"w": {**ENTRY, "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}, b"\0" * 8),
    "unknown dtype": raw({"w": {**ENTRY, "dtype": "F99"}}, b"\0" * 8),
    "twice": raw(b'{"w":%s,"w":%s}' % ((json.dumps(ENTRY).encode(),) * 2), b"\0" * 8),
    "no object": raw([1, 2]),
    "not JSON": raw(b"{x}"),
    "number as entry": raw({"w": 3}),
    "metadata of numbers": raw({"__metadata__": {"a": 1}}),
    "deep": raw(b'{"w":' + b"[" * 1_000_000),
    "200,000 keys": raw(b"{" + b",".join(b'"%x":0' % i for i in range(200_000)) + b"}"),
    "160,000 entries": raw(
        b"{" + b",".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(160_000)) + b"}"
    ),
    "keys that repeat": raw(b"{" + b",".join(b'"%x":0' % (i % 99_999) for i in range(100_000)) + b"}"),
    "header of 41 MB": raw(b"{" + b" " * 41_000_000 + b"}"),
    "not UTF-8": raw(b'{"\xff":{}}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_safetensors_files_are_refused_with_one_line(tmp_path, name):
    path: Path = tmp_path / "w.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(FileError) as error:
        read_tensors(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 400
