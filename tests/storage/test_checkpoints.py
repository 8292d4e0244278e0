"""Checkpoints: every layout that people use loads; nothing that needs code, or lies about its size, does."""

import io
import json
import os
import pickle
import random
import shutil
import time
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from isthmus.errors import CheckpointError
from isthmus.params import equal
from isthmus.storage import load_params, save_params


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2).double())


@pytest.fixture
def state():
    return dict(network().state_dict())


def check(path, state):
    params = load_params(path)
    assert type(params) is dict
    assert equal(params, state)
    assert all(v.is_contiguous() and not v.requires_grad and type(v) is torch.Tensor for v in params.values())


def test_every_usual_layout_loads(tmp_path, state):
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=0.1)
    extra = {"epoch": 3, "optimizer": optimizer.state_dict(), "best": torch.tensor(0.5), "args": {"lr": (0.1, None)}}
    layouts = [
        state,
        {"state_dict": state, **extra},
        {"model_state": state, **extra},
        {"model": state, **extra},
        {"model_state_dict": state, **extra},
        {f"module.{k}": v for k, v in state.items()},
        {"state_dict": {f"_orig_mod.module.{k}": v for k, v in state.items()}},
        {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()},
    ]
    for i, layout in enumerate(layouts):
        for zipped in (True, False):
            path = tmp_path / f"{i}{zipped}.pth"
            torch.save(layout, path, _use_new_zipfile_serialization=zipped)
            check(path, state)
    save_file(state, tmp_path / "w.safetensors")
    check(tmp_path / "w.safetensors", state)
    # the content counts, not the name
    shutil.copy(tmp_path / "w.safetensors", tmp_path / "w.pt")
    shutil.copy(tmp_path / "0True.pth", tmp_path / "w.bin")
    check(tmp_path / "w.pt", state)
    check(str(tmp_path / "w.bin"), state)


def test_only_a_prefix_that_all_names_have_is_removed(tmp_path):
    torch.save({"module.w": torch.ones(2), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert set(load_params(tmp_path / "w.pt")) == {"module.w", "b"}
    save_params({"module.w": torch.ones(2)}, tmp_path / "ours")
    assert set(load_params(tmp_path / "ours")) == {"module.w"}


def test_views_tied_and_transposed_tensors_arrive_contiguous(tmp_path):
    flat = torch.arange(12.0)
    saved = {"a": flat[:6].view(2, 3), "b": flat[6:].view(3, 2).T, "tied": flat[:6].view(2, 3), "n": flat[3]}
    torch.save(saved, tmp_path / "w.pt")
    check(tmp_path / "w.pt", saved)


def test_damage_that_torch_does_not_see_is_found_by_the_checksums_of_the_archive(tmp_path, state):
    path = tmp_path / "w.pt"
    data = saved(state)
    at = data.index(bytes(state["0.weight"].numpy().data))
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert not equal(torch.load(path), state)
    with pytest.raises(CheckpointError, match=r"the entry 'archive/data/\d+' does not match its checksum"):
        load_params(path)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(True)
    check(path, state)


def test_own_files_round_trip_and_any_damage_is_found(tmp_path, state):
    path = tmp_path / "w.safetensors"
    save_params(state, path, {"epoch": "3"})
    check(path, state)
    before = path.read_bytes()
    save_params(state, path, {"epoch": "3"})
    assert path.read_bytes() == before
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="tensors do not match its digest; copy or download it again"):
        load_params(path)
    names = before.replace(b'"0.weight"', b'"0.weighs"')
    path.write_bytes(names)
    with pytest.raises(CheckpointError, match="do not match its digest"):
        load_params(path)


def shards(folder, state, weight_map=None):
    names = sorted(state)
    halves = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
    for name, keys in halves.items():
        save_file({k: state[k] for k in keys}, folder / name)
    where = {k: name for name, keys in halves.items() for k in keys}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where if weight_map is None else weight_map(where)}))
    return index


def test_shards_load_from_the_index_or_the_folder(tmp_path, state):
    index = shards(tmp_path, state)
    check(index, state)
    check(tmp_path, state)


def test_the_link_layout_of_the_huggingface_cache_loads(tmp_path, state):
    snapshot, blobs = tmp_path / "snapshots" / "1234", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    shards(snapshot, state)
    for i, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(blobs / str(i))
    check(snapshot, state)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "..", "", "sub/a.safetensors", "..\\a", "a\0"])
def test_shards_stay_inside_their_folder(tmp_path, state, name):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(state, tmp_path / "a.safetensors")
    index = shards(folder, state, lambda where: dict.fromkeys(where, name))
    with pytest.raises(CheckpointError, match="not a plain file name; do not trust it"):
        load_params(index)


def test_shards_that_are_links_out_missing_or_other_than_the_index_says_are_refused(tmp_path, state):
    folder = tmp_path / "model"
    folder.mkdir()
    index = shards(folder, state)
    (folder / "a.safetensors").rename(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=r"a.safetensors: there is no such file"):
        load_params(index)
    (folder / "a.safetensors").symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match="a link out of its folder"):
        load_params(folder)
    (folder / "a.safetensors").unlink()
    shards(folder, state, lambda where: {**where, "ghost": "a.safetensors"})
    with pytest.raises(CheckpointError, match=r"names 'ghost', which is not in a.safetensors"):
        load_params(folder)
    shards(folder, state, lambda where: {k: v for k, v in where.items() if k != "0.bias"})
    with pytest.raises(CheckpointError, match=r"does not say that '0.bias' is in a.safetensors"):
        load_params(folder)
    for text in ("{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"w": 3}}', '{"a": 1, "a": 1}'):
        index.write_text(text)
        with pytest.raises(CheckpointError):
            load_params(index)


def test_folders_must_hold_exactly_one_checkpoint(tmp_path, state):
    with pytest.raises(CheckpointError, match="a folder without a checkpoint"):
        load_params(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    check(tmp_path, state)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints \(other.pt, pytorch_model.bin\)"):
        load_params(tmp_path)
    save_params(state, tmp_path / "w.safetensors")
    check(tmp_path, state)


W = torch.ones(2)
NOT_STATE_DICTS = {
    "nothing known": ({"epoch": 1, "g": {"w": W}}, r"only epoch \(int\), g \(dict of 1 tensors\); write key='g'"),
    "list": ([W], "holds one list, not a dictionary"),
    "empty": ({}, "holds no tensors, only nothing"),
    "empty inner": ({"state_dict": {}}, r"only state_dict \(dict of 0 entries\)"),
    "number inside": ({"w": W, "n": 3}, r"its state dict holds 'n' \(int\)"),
    "None inside": ({"state_dict": {"w": W, "extra": None}}, r"'extra' \(NoneType\)"),
    "number as name": ({0: W}, "holds '0'"),
    "two": (
        {"state_dict": {"w": W}, "model": {"w": 2 * W}},
        "several state dicts: state_dict, model; write key='state_dict' or key='model'",
    ),
    "sparse": ({"w": torch.eye(2).to_sparse()}, r"'w' is not a dense tensor: it is sparse; save tensor.to_dense\(\)"),
    "compressed": ({"w": torch.eye(2).to_sparse_csr()}, r"'w' is not a dense tensor: it is sparse"),
    "quantised": ({"w": torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8)}, r"save tensor.dequantize\(\)"),
    "per channel": (
        {"w": torch.quantize_per_channel(torch.eye(2), torch.ones(2), torch.zeros(2), 0, torch.qint8)},
        "it is quantised",
    ),
    "meta": ({"w": torch.ones(2, device="meta")}, "'w' is not a dense tensor: it is on the device meta"),
    "nested": (
        {"w": torch.nested.nested_tensor([W, W])},
        r"holds a nested tensor; save the tensors of tensor.unbind\(\)",
    ),
    "expanded": ({"w": W.expand(100, 2)}, r"'w' of shape \(100, 2\) claims 800 bytes, the file holds 8; save"),
    "zero-stride giant": ({"w": torch.zeros(1).expand(10**6, 10**6)}, "claims 4,000,000,000,000 bytes"),
    "bytearray": ({"w": W, "x": bytearray(3)}, r"its state dict holds 'x' \(bytearray\)"),
    "module": (nn.Linear(2, 2), r"needs code .*torch.nn.modules.linear.Linear.*if you made this file yourself"),
    "numpy": ({"w": W, "x": np.ones(2)}, r"its state dict holds 'x' \(ndarray\)"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", NOT_STATE_DICTS)
def test_what_is_not_one_state_dict_of_tensors_is_refused_and_described(tmp_path, name, zipped):
    saved, message = NOT_STATE_DICTS[name]
    torch.save(saved, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=message):
        load_params(tmp_path / "w.pt")


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_never_run_unless_asked_for(tmp_path):
    ran = tmp_path / "ran"
    for i, saved in enumerate([Evil(ran), {"w": W, "x": Evil(ran)}, {"state_dict": {"w": W}, "x": [Evil(ran)]}]):
        for zipped in (True, False):
            torch.save(saved, tmp_path / f"{i}{zipped}.pt", _use_new_zipfile_serialization=zipped)
        (tmp_path / f"{i}.pt").write_bytes(pickle.dumps(saved))
    # an environment variable that makes torch trust files by default must not matter here
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        for path in sorted(tmp_path.glob("*.pt")):
            with pytest.raises(CheckpointError):
                load_params(path)
    assert not ran.exists()
    assert equal(load_params(tmp_path / "2True.pt", unsafe_pickle=True), {"w": W})
    assert ran.exists()


def test_unsafe_pickle_reads_a_pickled_module(tmp_path):
    module = network()
    for zipped in (True, False):
        torch.save({"model": module}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        assert equal(load_params(tmp_path / "w.pt", unsafe_pickle=True), module.state_dict())


def archive(pickled, records=(), method=zipfile.ZIP_STORED, folder="a/"):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as out:
        for name, content in [("data.pkl", pickled), ("version", "3\n"), *records]:
            out.writestr(folder + name, content)
    return data.getvalue()


def saved(state, zipped=True):
    data = io.BytesIO()
    torch.save(state, data, _use_new_zipfile_serialization=zipped)
    return data.getvalue()


def deflated():
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(8_000_000)}))) as old, zipfile.ZipFile(data, "w") as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record), zipfile.ZIP_DEFLATED)
    return data.getvalue()


def views():
    """Sixty different transposed views of one small storage: each fits, together they do not."""
    w = torch.zeros(200, 200)
    return saved({str(i): w[: 200 - i].T for i in range(60)})


def folder():
    """The entry of the tensor marked as a folder: torch.load gives whatever was in the memory before."""
    data = bytearray(saved({"w": W}))
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"archive/data/0"))
    data[entry + 38] |= 0x10
    return bytes(data)


EMPTY_PICKLE = b"\x80\x02}."
HOSTILE = {
    "empty": b"",
    "text": b"hello there, this is not a checkpoint",
    "HTML": b"<html><body>404: not found</body></html>",
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "gzip": b"\x1f\x8b\x08" + bytes(20),
    "only the end of a zip": b"PK\x05\x06" + bytes(18),
    "tar of the first torch": b"storages" + bytes(249) + b"ustar\x0000" + bytes(500),
    "deflate bomb": deflated(),
    "deflated empty pickle": archive(EMPTY_PICKLE, method=zipfile.ZIP_DEFLATED),
    "trailing bytes": saved({"w": W}) + b"x",
    "leading bytes": b"PK\x03\x04" + saved({"w": W}),
    "comment": saved({"w": W})[:-2] + b"\x04\x00" + b"hide",
    "truncated": saved({"w": torch.ones(100)})[:700],
    "two of one name": archive(EMPTY_PICKLE, [("DATA.PKL", EMPTY_PICKLE)]),
    "no data.pkl": archive(EMPTY_PICKLE, folder="a/b/"),
    "npz": archive(EMPTY_PICKLE, folder=""),
    "160,000 entries": lambda: archive(EMPTY_PICKLE, [(f"data/{i}", b"") for i in range(160_000)]),
    "absurd entry count": saved({"w": W})[:-12] + b"\xff" * 10 + b"\0\0",
    "pickle of 21 MB": lambda: archive(b"\x80\x02" + b"K\x00" * 10_500_000 + b"}."),
    "pickle of 3 million steps": lambda: archive(b"\x80\x02" + b"N" * 3_000_000 + b"}."),
    "bytearray of 40 GB": archive(b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x0a\x85R."),
    "tensor of 40 GB": archive(b"\x80\x02}U\x01wctorch\nFloatTensor\n\x8a\x05\x00\xe4\x0b\x54\x02\x85Rs."),
    "legacy bytearray": b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x0a\x85R.",
    "legacy truncated": saved({"w": torch.ones(100)}, zipped=False)[:-50],
    "deep": lambda: archive(b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b"."),
    "tensor as a folder": folder(),
    "views beyond the file": views(),
    "TorchScript": None,
    "safetensors with a wrong length": (2).to_bytes(8, "big") + b"{}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_quickly_with_one_line(tmp_path, name):
    path = tmp_path / "w.pt"
    content = HOSTILE[name]
    if content is None:
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)
    else:
        path.write_bytes(content() if callable(content) else content)
    start = time.process_time()
    with pytest.raises(CheckpointError) as error:
        load_params(path)
    assert time.process_time() - start < 10  # about 1 s at most on an idle core, several on a busy one
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 500


def mutate(data, rng, faults=3):
    """A copy with at most that many faults: flipped bits, other bytes, a part cut or repeated, the end cut."""
    out = bytearray(data)
    for _ in range(rng.randint(1, faults)):
        at, size = rng.randrange(len(out)), min(rng.randint(1, 16), len(out) - 1)
        match rng.randrange(6):
            case 0 | 1:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                out[at : at + size] = rng.randbytes(size)
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = out[at : at + size]
            case 5:
                del out[max(at, 1) :]
    return bytes(out)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_mutated_checkpoints_load_or_raise_one_error(tmp_path, kind, state):
    path = tmp_path / "w"
    if kind == "safetensors":
        save_params(state, path)
        data = path.read_bytes()
    else:
        data = saved({"state_dict": state, "epoch": 3}, zipped=kind == "zip")
    rng = random.Random(0)
    refused = 0
    for _ in range(1000):
        # a second fault could hit the name of the digest, and so hide the first
        path.write_bytes(mutate(data, rng, faults=1 if kind == "safetensors" else 3))
        try:
            params = load_params(path)
        except CheckpointError:
            refused += 1
        else:
            assert all(isinstance(v, torch.Tensor) and v.is_contiguous() for v in params.values())
            # with a digest there is no silent difference
            assert kind != "safetensors" or equal(params, state)
    assert refused > 200
