"""Data sets: layouts, scaling, and files that are not what they say."""

from __future__ import annotations

import gzip
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isthmus.data import DATASETS, Dataset, load
from isthmus.data.find import BATCHES, IDX
from isthmus.errors import FileError, InputError, MissingExtraError

rng = np.random.default_rng(0)
X_TRAIN, X_TEST = (rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (12, 5))
Y_TRAIN, Y_TEST = (rng.integers(0, 10, n, dtype=np.uint8) for n in (12, 5))
MNIST: dict[str, Any] = {"x_train": X_TRAIN, "y_train": Y_TRAIN, "x_test": X_TEST, "y_test": Y_TEST}
RGB: dict[str, Any] = {
    "x_train": rng.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8),
    "y_train": rng.integers(0, 10, 50, dtype=np.uint8),
    "x_test": rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
    "y_test": rng.integers(0, 10, 4, dtype=np.uint8),
}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, gz: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(IDX, (X_TRAIN, Y_TRAIN, X_TEST, Y_TEST), strict=True):
        body = idx(array)
        (folder / (name + ".gz" * gz)).write_bytes(gzip.compress(body) if gz else body)


def write_batches(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    def records(x: np.ndarray, y: np.ndarray) -> bytes:
        return b"".join(bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(x, y, strict=True))

    for i, name in enumerate(BATCHES):
        part = slice(10 * i, 10 * i + 10)
        (folder / name).write_bytes(records(RGB["x_train"][part], RGB["y_train"][part]))
    (folder / "test_batch.bin").write_bytes(records(RGB["x_test"], RGB["y_test"]))


def refused(root: Path, name: str = "mnist") -> str:
    with pytest.raises(FileError) as caught:
        load(name, root=root)
    return str(caught.value)


def test_digits():
    data = load("digits")
    assert data.x_train.shape == (1437, 1, 8, 8)
    assert data.x_test is not None
    assert data.y_test is not None
    assert data.x_test.shape == (360, 1, 8, 8)
    assert (data.x_train.dtype, data.y_train.dtype, data.classes) == (torch.float32, torch.int64, 10)
    # whole pixels 0..16 come back, and the training mean is 0 at every pixel
    assert data.x_train.double().mean(0).abs().max() < 1e-7
    both = torch.cat([data.x_train, data.x_test]) * 16
    assert ((both - both[:1]) - (both - both[:1]).round()).abs().max() < 1e-5
    assert data.digest == load("digits").digest
    assert torch.equal(data.y_train[:5], torch.arange(5))


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'isthmus\[data\]'"):
        load("digits")


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"),
    [("mnist", "."), ("mnist", "mnist"), ("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")],
)
def test_idx_layouts_agree_with_npz(tmp_path: Path, name: str, folder: str, gz: bool):
    write_idx(tmp_path / "idx" / folder, gz)
    data = load(name, root=tmp_path / "idx")
    np.savez(tmp_path / f"{name}.npz", **MNIST)
    assert data.digest == load(name, root=tmp_path).digest
    # (x/255 - 1/2) / (1/2), written out again
    want = torch.from_numpy(X_TRAIN.astype(np.float64)) / 127.5 - 1
    assert data.x_train.shape == (12, 1, 28, 28)
    assert (data.x_train[:, 0].double() - want).abs().max() < 1e-6
    assert data.x_train.min() >= -1
    assert data.x_train.max() <= 1
    assert data.y_train.tolist() == Y_TRAIN.tolist()
    assert str(tmp_path) in data.source


@pytest.mark.parametrize("shape", [(-1, 784), (-1, 1, 28, 28), (-1, 28, 28, 1)])
def test_npz_layouts(tmp_path: Path, shape: tuple[int, ...]):
    np.savez(tmp_path / "mnist.npz", **MNIST)
    want = load("mnist", root=tmp_path).digest
    changed = {k: v.reshape(shape) if k[0] == "x" else v for k, v in MNIST.items()}
    np.savez_compressed(tmp_path / "mnist.npz", **changed)
    assert load("mnist", root=tmp_path).digest == want


@pytest.mark.parametrize("folder", [".", "cifar10", "cifar-10-batches-bin"])
def test_cifar_layouts_and_scaling(tmp_path: Path, folder: str):
    write_batches(tmp_path / "bin" / folder)
    data = load("cifar10", root=tmp_path / "bin")
    np.savez(tmp_path / "cifar10.npz", **RGB)
    assert data.digest == load("cifar10", root=tmp_path).digest
    assert data.x_train.shape == (50, 3, 32, 32)
    x = RGB["x_train"].astype(np.float64)
    want = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    assert np.abs(data.x_train.permute(0, 2, 3, 1).numpy() - want).max() < 1e-5
    assert data.x_test is not None
    test = (RGB["x_test"] - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    assert np.abs(data.x_test.permute(0, 2, 3, 1).numpy() - test).max() < 1e-5


def test_where_sets_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ISTHMUS_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileError) as caught:
        load("cifar10")
    for place in ("given/cifar10.npz", "cache/isthmus/data/cifar10.npz", "given/cifar-10-batches-bin/data_batch_1.bin"):
        assert str(tmp_path / place) in str(caught.value)
    assert "ISTHMUS_DATA" in str(caught.value)
    write_batches(tmp_path / "cache" / "isthmus" / "data")
    assert load("cifar10").source == str(tmp_path / "cache" / "isthmus" / "data")
    (tmp_path / "given").mkdir()
    np.savez(tmp_path / "given" / "cifar10.npz", **RGB)
    assert load("cifar10").source == str(tmp_path / "given" / "cifar10.npz")
    assert str(tmp_path / "elsewhere") in refused(tmp_path / "elsewhere", "cifar10")
    assert "given" not in refused(tmp_path / "elsewhere", "cifar10")


def test_the_python_version_of_cifar_is_refused(tmp_path: Path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x02.")
    assert "cifar-10-binary.tar.gz" in refused(tmp_path, "cifar10")


def test_one_mnist_is_not_taken_for_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import hashlib

    monkeypatch.setitem(
        load.__globals__["find"].__globals__["_TEST_LABELS"], hashlib.sha256(Y_TEST.tobytes()).hexdigest(), "mnist"
    )
    write_idx(tmp_path)
    assert load("mnist", root=tmp_path).classes == 10
    assert "holds mnist, not fashion-mnist; load it as 'mnist'" in refused(tmp_path, "fashion-mnist")


def damage(tmp_path: Path, name: str, change) -> str:
    write_idx(tmp_path, gz=name.endswith(".gz"))
    file = tmp_path / name
    file.write_bytes(change(file.read_bytes()))
    return refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (IDX[0], lambda b: b[:-1], "should hold 9,408 bytes"),
        (IDX[0], lambda b: b + b"x", "holds more"),
        (IDX[0], lambda b: b[:3], "damaged or cut short"),
        (IDX[0], lambda b: b"", "damaged or cut short"),
        (IDX[0], lambda b: b"\0\0\x0d" + b[3:], "wrong magic number"),
        (IDX[0], lambda b: b[:4] + b"\xff" * 12 + b[16:], "more than the limit"),
        (IDX[0], lambda b: idx(Y_TRAIN), "has 1 axes, expected 3"),
        (IDX[0], lambda b: idx(X_TRAIN[:, :27]), "differ in size"),
        (IDX[1], lambda b: idx(Y_TRAIN[:-1]), "do not belong together"),
        (IDX[1], lambda b: idx(Y_TRAIN + np.uint8(9)), "labels 0..9"),
        (IDX[0] + ".gz", lambda b: b[:-9], "damaged or cut short"),
        (IDX[0] + ".gz", lambda b: b[:40] + b"zzzz" + b[44:], "damaged or cut short"),
        (IDX[0] + ".gz", lambda b: idx(X_TRAIN), "damaged or cut short"),
    ],
)
def test_damaged_idx(tmp_path: Path, name: str, change, words: str):
    message = damage(tmp_path, name, change)
    assert words in message
    assert "\n" not in message


def test_incomplete_folders(tmp_path: Path):
    write_idx(tmp_path)
    (tmp_path / IDX[3]).unlink()
    assert f"missing: {IDX[3]}" in refused(tmp_path)
    write_batches(tmp_path / "c")
    (tmp_path / "c" / BATCHES[2]).unlink()
    assert f"missing: {BATCHES[2]}" in refused(tmp_path / "c", "cifar10")
    (tmp_path / "c" / BATCHES[2]).write_bytes(b"1234")
    assert "not a multiple of 3073" in refused(tmp_path / "c", "cifar10")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_train": X_TRAIN[:-1]}, "do not belong together"),
        ({"x_train": X_TRAIN / 255}, "dtype float64, not whole numbers"),
        ({"x_train": X_TRAIN.astype(np.int64) + 1}, "pixels 0..255"),
        ({"x_train": X_TRAIN[:, :, :14]}, "expected [n, 28, 28]"),
        ({"y_train": Y_TRAIN.astype(float) * np.nan}, "NaN"),
        ({"y_train": np.array([object()] * 12)}, "pickled objects"),
        ({"y_train": np.array(["a"] * 12)}, "not numbers"),
        ({"y_train": Y_TRAIN[:, None]}, "do not belong together"),
        ({"x_train": X_TRAIN[:0], "y_train": Y_TRAIN[:0]}, "do not belong together"),
    ],
)
def test_damaged_npz(tmp_path: Path, change: dict, words: str):
    np.savez(tmp_path / "mnist.npz", allow_pickle=True, **(MNIST | change))
    assert words in refused(tmp_path)


def test_archives_that_unpack_to_a_multiple_of_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("isthmus.data.files._FREE", 10_000)
    np.savez_compressed(tmp_path / "mnist.npz", x_train=np.zeros((50_000, 28, 28), np.uint8))
    assert "claims to hold 39,200,1" in refused(tmp_path)
    assert "store it without compression" in refused(tmp_path)


def test_npz_without_an_array_and_other_files(tmp_path: Path):
    np.savez(tmp_path / "mnist.npz", x_train=X_TRAIN)
    assert "has no array y_train, x_test, y_test; it holds x_train" in refused(tmp_path)
    for body in (b"", b"PK\x03\x04", b"not a zip", gzip.compress(b"x")):
        (tmp_path / "mnist.npz").write_bytes(body)
        assert "cannot be read as .npz" in refused(tmp_path)
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w") as z:
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 9), }"
        z.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n")
    assert "cannot be read as .npz" in refused(tmp_path)


def test_gaussians():
    data = load("gaussians:N=2000,d=20,classes=2,seed=3")
    radius = data.x_train.square().mean(1).sqrt()
    # standard deviations 0.8 and 1.2; the mean square of 20 x 1000 entries is known to about 1 %
    assert abs(radius[data.y_train == 0].square().mean().sqrt() - 0.8) < 0.02
    assert abs(radius[data.y_train == 1].square().mean().sqrt() - 1.2) < 0.03
    assert data.x_train.mean().abs() < 0.03
    torch.manual_seed(0)
    again = load("gaussians:N=2000,d=20,seed=3")
    assert again.digest == data.digest
    assert load("gaussians:N=2000,d=20,seed=4").digest != data.digest
    blobs = load("gaussians:N=301,d=5,classes=3")
    centres = torch.stack([blobs.x_train[blobs.y_train == c].mean(0) for c in range(3)])
    assert ((centres.norm(dim=1) - 4).abs() < 0.6).all()
    assert torch.bincount(blobs.y_train).tolist() == [101, 100, 100]
    assert blobs.y_test is not None
    assert torch.equal(blobs.y_test, blobs.y_train)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gaussians:N=0", "whole number >= 1"),
        ("gaussians:classes=1", "whole number >= 2"),
        ("gaussians:sigma=2", "got 'sigma=2'"),
        ("gaussians:N=1e3", "got 'N=1e3'"),
        ("gaussians:N", "got 'N'"),
        ("digits:3", "no options"),
        ("imagenet", "one of digits, mnist, fashion-mnist, cifar10, ptb, gaussians"),
    ],
)
def test_names_that_are_refused(name: str, words: str):
    with pytest.raises(InputError) as caught:
        load(name)
    assert words in str(caught.value)


def test_dataset_values():
    data = load("gaussians:N=10,d=3")
    small = data.subset(4, 2)
    assert small.x_test is not None
    assert (len(small.x_train), len(small.x_test)) == (4, 2)
    assert torch.equal(small.x_train, data.x_train[:4])
    assert data.subset().digest == data.digest != small.digest
    assert data.cast(torch.float64).x_train.dtype == torch.float64
    assert data.cast(torch.float64).y_train.dtype == torch.int64
    images = Dataset("i", torch.zeros(2, 3, 4, 5), torch.zeros(2).long(), None, None, 1, "here")
    assert (images.shape, images.flat().shape) == ((3, 4, 5), (60,))
    for bad in (lambda: data.subset(11), lambda: data.subset(0), lambda: images.subset(1, 1)):
        with pytest.raises(InputError, match="expected"):
            bad()
    with pytest.raises(InputError, match="floating-point"):
        data.cast(torch.int64)
    with pytest.raises(InputError, match="both, or neither"):
        Dataset("i", torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 3), None, 0, "here")
    assert all(entry.syntax.startswith(entry.name) and entry.line for entry in DATASETS)
