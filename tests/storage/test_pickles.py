"""Pickles that would hang, kill or mislead torch's reader are refused before it sees them; honest ones pass."""

import argparse
import collections
import io
import pathlib
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from isthmus.errors import CheckpointError
from isthmus.params import equal
from isthmus.storage import load_params

W = torch.arange(6.0).reshape(2, 3)
GLOBAL = {
    "OrderedDict": b"ccollections\nOrderedDict\n",
    "set": b"c__builtin__\nset\n",
    "v2": b"ctorch._utils\n_rebuild_tensor_v2\n",
}


def archive(pickled, records=()):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as out:
        for name, content in [("data.pkl", pickled), ("version", "3\n"), *records]:
            out.writestr("a/" + name, content)
    return data.getvalue()


def legacy(pickled, keys=(), data=b""):
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    head = b"".join(pickle.dumps(p, protocol=2) for p in parts)
    return head + pickled + pickle.dumps(list(keys), protocol=2) + data


def storage(count, kind=b"FloatStorage", key=b"U\x010", view=b""):
    return b"(U\x07storagectorch\n" + kind + b"\n" + key + b"U\x03cpuJ" + struct.pack("<i", count) + view + b"tQ"


def tensor(held, shape, stride=1, key=b"U\x010", view=b""):
    size = b"(J" + struct.pack("<i", shape) + b"t(J" + struct.pack("<i", stride) + b"t"
    return (
        GLOBAL["v2"]
        + b"("
        + storage(held, key=key, view=view)
        + b"K\x00"
        + size
        + b"\x89"
        + GLOBAL["OrderedDict"]
        + b")RtR"
    )


def state(*entries):
    """A pickled dictionary of the given entries, each the bytes of a key and of a value."""
    return b"\x80\x02}" + b"".join(entries) + b"."


def nested(n, step=b"\x85"):
    return b")" + step * n


def doubled(n, step=b"\x86"):
    """A pair of the same pair of the same pair ...: n steps for 2^n leaves."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + step for i in range(n))


def collisions(n):
    keys = [b"\x8a" + bytes([len(b)]) + b + b"Ns" for b in (pickle.encode_long(i * (2**61 - 1)) for i in range(1, n))]
    return state(*keys)


ARRAY, LATIN = b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n(U\x01bU\x06latin1tR"
ITSELF = b"]q\x00h\x00a"
HOSTILE = {
    "tuples 600,000 deep as a key": state(nested(600_000) + b"Ns"),
    "tuples 1,200 deep as a key": state(nested(1200) + b"Ns"),
    "tuples 150 deep": state(b"U\x01w" + nested(150) + b"s"),
    "lists 150 deep": state(b"U\x01w" + b"]" * 150 + b"a" * 149 + b"s"),
    "dictionaries 150 deep": state(b"U\x01w" + b"}U\x01k" * 150 + b"N" + b"s" * 150 + b"s"),
    "states of objects 150 deep": state(
        b"U\x01w" + (GLOBAL["OrderedDict"] + b")R}U\x01k") * 150 + b"N" + b"sb" * 150 + b"s"
    ),
    "tuple doubled 60 times as a key": state(doubled(60) + b"Ns"),
    "tuple doubled 60 times": state(b"U\x01w" + doubled(60) + b"s"),
    "list doubled 60 times, called": state(b"U\x01w" + doubled(60, b"]\x94")[:1] + doubled(60) + b")Rs"),
    "doubled tuple in a set": state(b"U\x01w" + GLOBAL["set"] + b"(](" + doubled(60) + b"etRs"),
    "doubled tuple in a Counter": state(b"U\x01wccollections\nCounter\n(](" + doubled(60) + b"etRs"),
    "doubled tuple as a key of an OrderedDict": state(
        b"U\x01w" + GLOBAL["OrderedDict"] + b"(](](" + doubled(60) + b"NeetRs"
    ),
    "doubled tuple as the name of a storage": state(b"U\x01w" + tensor(2, 2, key=doubled(60)) + b"s"),
    "doubled tuple as a function": state(b"U\x01w" + doubled(60) + b")Rs"),
    "doubled tuple as a class": state(b"U\x01w" + doubled(60) + b")\x81s"),
    "short tuple as a key": state(b"K\x01K\x02\x86Ns"),
    "size as a key": state(b"ctorch\nSize\n(K\x01\x85tRNs"),
    "keys that collide": collisions(60_000),
    "list that holds itself": state(b"U\x01w" + ITSELF + b"s"),
    "list that grows later": state(b"U\x01a]q\x00s", b"U\x01bh\x00K\x01as"),
    "frozenset": state(b"U\x01w(\x91s"),
    "INST": state(b"U\x01w(iargparse\nNamespace\nbs"),
    "protocol 4": pickle.dumps({"w": 1}, protocol=4),
    "codec that is slow": state(b"U\x01wc_codecs\nencode\n(U\x03aaaU\x08punycodetRs"),
    "attribute that hides a method": state(
        b"U\x01w" + GLOBAL["OrderedDict"] + b")R}U\x05itemsK\x01sbs"
    ),
    "tensor of memory": state(b"U\x01wctorch\nFloatTensor\nK\x64\x85Rs"),
    "tensor beyond its bytes": state(b"U\x01w" + tensor(2, 3) + b"s"),
    "view beyond its bytes": state(b"U\x01w" + tensor(2, 2, view=b"(U\x01vK\x01K\x14t") + b"s"),
    "strides beyond its bytes": state(b"U\x01w" + tensor(8, 3, 4) + b"s"),
    "negative stride": state(b"U\x01w" + tensor(8, 3, -1) + b"s"),
    "tensor of 4 GB": state(b"U\x01w" + tensor(10**9, 10**9) + b"s"),
    "numpy format of objects": state(b"U\x01wcnumpy\ndtype\n(U\x02O8\x89\x88tRs"),
    "numpy format with fields": state(
        b"U\x01wcnumpy\ndtype\n(U\x02f8\x89\x88tR(K\x03U\x01<NU\x01aNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbs"
    ),
    "numpy number that is too long": state(
        b"U\x01wcnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x02f8\x89\x88tR(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tbU\x02xxtRs"
    ),
    "attributes in a list": state(b"U\x01w" + GLOBAL["OrderedDict"] + b")R]bs"),
    "object of a class by itself": state(b"U\x01w" + GLOBAL["OrderedDict"] + b")\x81s"),
    "Counter of a list": state(b"U\x01wccollections\nCounter\n(]tRs"),
    "size of sizes": state(b"U\x01wctorch\nSize\n((K\x01\x85ttRs"),
    "tensor with a list beside it": state(b"U\x01w" + tensor(2, 2)[:-2] + b"]tRs"),
    "parameter of a number": state(b"U\x01wctorch._utils\n_rebuild_parameter\n(K\x01\x89NtRs"),
    "parameter of a class of its own": state(
        b"U\x01wctorch._tensor\n_rebuild_from_type_v2\n(" + GLOBAL["v2"] + GLOBAL["OrderedDict"]
        + tensor(2, 2)[len(GLOBAL["v2"]) : -1] + b"}tRs"
    ),
    "two sizes of one storage": state(b"U\x01w" + tensor(2, 2) + b"s", b"U\x01v" + tensor(3, 3) + b"s"),
    "numpy format of another version": state(
        b"U\x01wcnumpy\ndtype\n(U\x02f8\x89\x88tR(K\x02U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbs"
    ),
    "numpy array that begins with a shape": state(b"U\x01w" + ARRAY + b"(cnumpy\nndarray\n(K\x01t" + LATIN + b"tRs"),
    "numpy array of nothing": state(b"U\x01w" + ARRAY + b"(cnumpy\nndarray\n(K\x00t" + LATIN + b"tR)bs"),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_quickly_before_torch_reads_them(tmp_path, name, zipped, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read it"))
    path = tmp_path / "w.pt"
    path.write_bytes(archive(HOSTILE[name], [("data/0", bytes(100))]) if zipped else legacy(HOSTILE[name], "0"))
    start = time.process_time()
    with pytest.raises(CheckpointError) as error:
        load_params(path)
    assert time.process_time() - start < 4  # about 1 s at most on an idle core
    assert len(str(error.value)) < len(str(path)) + 400
    assert "damaged pickle" not in str(error.value), str(error.value)


def test_an_old_file_without_the_bytes_of_a_tensor_is_refused(tmp_path):
    path = tmp_path / "w.pt"
    pickled, data = state(b"U\x01w" + tensor(2, 2, view=b"N") + b"s"), struct.pack("<qff", 2, 1.0, 2.0)
    path.write_bytes(legacy(pickled, "0", data))
    assert equal(load_params(path), {"w": torch.tensor([1.0, 2.0])})
    path.write_bytes(legacy(pickled, "", data))
    with pytest.raises(CheckpointError, match="does not hold the bytes of all its tensors"):
        load_params(path)


def test_an_old_file_with_views_of_one_storage(tmp_path):
    view = b"(U\x01vK\x01K\x02t"
    path, pickled = tmp_path / "w.pt", state(b"U\x01w" + tensor(3, 2, view=view) + b"s")
    path.write_bytes(legacy(pickled, "0", struct.pack("<qfff", 3, 1.0, 2.0, 3.0)))
    assert equal(load_params(path), {"w": torch.tensor([2.0, 3.0])})


def test_old_files_whose_tensors_are_together_larger_than_they_are_refused(tmp_path):
    path, keys = tmp_path / "w.pt", "01"
    entries = [b"U\x01" + k + tensor(100, 100, key=b"U\x01" + k) + b"s" for k in (b"0", b"1")]
    path.write_bytes(legacy(state(*entries), keys, bytes(100)))
    with pytest.raises(CheckpointError, match=r"claims 800 bytes of tensors, the file holds \d\d\d"):
        load_params(path)


def adam_state():
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def shared(depth=10):
    value = (1, 2)
    for _ in range(depth):
        value = (value, value)
    return value


HONEST = {
    "optimiser": adam_state(),
    "schedule": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(W)], 0.1), 3).state_dict(),
    "hyper_parameters": {"lr": 1e-3, "layers": [{"width": 3, "act": "relu"}], "betas": (0.9, 0.999), "none": None},
    "deep but not too deep": [[[[[[[[{"a": [({"b": 1},)]}]]]]]]]],
    "the same tuple many times": shared(),
    "numpy": [np.float64(0.1), np.float32(1), np.bool_(True), np.uint8(3), np.int64(-3), np.complex64(1j)],
    "keyed by numpy": {np.int64(3): 1},
    "arrays": [np.arange(6).reshape(2, 3), np.zeros(0), np.ones(2, np.float16), np.asfortranarray(np.eye(3))],
    "random state": {"numpy": np.random.get_state(), "torch": torch.get_rng_state()},  # noqa: NPY002
    "options": argparse.Namespace(lr=0.1, out=pathlib.Path("a/b"), nested=argparse.Namespace(k=[1])),
    "plain": [True, 2**70, -1, 1.5, "text", b"bytes", bytearray(b"xy"), 1j, {1, "a"}, torch.Size([2, 3]), torch.half],
    "devices": [torch.device("cuda", 0), torch.device("cpu"), torch.int8, torch.strided],
    "counted": collections.Counter("aab"),
    "ordered": collections.OrderedDict([(1, 2), ("a", W)]),
    "tensors": [W.T, W[:, 1:], W.to_sparse(), W.to_sparse_csr(), W.to(torch.complex64).conj(), nn.Parameter(W)],
    "views": [W.expand(4, 2, 3), W[1, 2], W[:0], W.flatten()[::2]],
    "quantised": torch.quantize_per_tensor(W, 0.1, 2, torch.qint8),
    "meta": torch.ones(2, device="meta"),
    "small types": [W.to(t) for t in (torch.bfloat16, torch.float16, torch.int8, torch.uint8)],
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", HONEST)
def test_what_training_saves_beside_the_weights_does_not_stand_in_the_way(tmp_path, name, zipped):
    torch.save({"state_dict": {"w": W}, "more": HONEST[name]}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    assert equal(load_params(tmp_path / "w.pt"), {"w": W})


def test_types_without_a_storage_of_their_own_load(tmp_path):
    types = (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint64)
    params = {str(t): W.to(t) for t in types}
    torch.save(params, tmp_path / "w.pt")
    assert {k: v.dtype for k, v in load_params(tmp_path / "w.pt").items()} == {str(t): t for t in types}
    assert all(torch.equal(v.float(), W) for v in load_params(tmp_path / "w.pt").values())


def test_parameters_with_attributes_load(tmp_path):
    p = nn.Parameter(W.clone())
    setattr(p, "lr_scale", 0.5)  # noqa: B010
    q = W.clone()
    setattr(q, "tag", {"a": (1, 2)})  # noqa: B010
    torch.save({"p": p, "q": q}, tmp_path / "w.pt")
    assert equal(load_params(tmp_path / "w.pt"), {"p": W, "q": W})


class Config:
    def __init__(self):
        self.lr = 0.1


class Made(Config):
    def __reduce__(self):
        return Made, ()


def test_classes_that_the_user_told_torch_to_trust_load_and_stay_trusted(tmp_path, monkeypatch):
    Config.__module__ = Made.__module__ = __name__
    torch.save({"state_dict": {"w": W}, "config": Config(), "made": Made(), "best": np.float64(1)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="needs code to be read"):
        load_params(tmp_path / "w.pt")
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([Config, Made, np.dtype])
    try:
        assert equal(load_params(tmp_path / "w.pt"), {"w": W})
        assert {Config, np.dtype} <= set(torch.serialization.get_safe_globals())
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    assert not set(torch.serialization.get_safe_globals()) - set(before)


def test_many_tensors_take_little_time(tmp_path):
    state = {f"layers.{i}.weight": torch.ones(2) for i in range(5_000)}
    torch.save(state, tmp_path / "w.pt")
    start = time.process_time()
    torch.load(tmp_path / "w.pt", weights_only=True)
    alone = time.process_time() - start
    start = time.process_time()
    assert len(load_params(tmp_path / "w.pt")) == 5_000
    assert time.process_time() - start < 5 * alone + 1


def test_folders_and_files_of_other_kinds_say_what_they_are(tmp_path, monkeypatch):
    from isthmus.storage import folders

    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/.metadata").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is a checkpoint in parts of torch\.distributed"):
        load_params(tmp_path / "parts")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors"}}')
    monkeypatch.setattr(folders, "_INDEX_BYTES", 10)
    with pytest.raises(CheckpointError, match="is an index of more than 20 MB"):
        load_params(tmp_path)
