"""Where MNIST, Fashion-MNIST and CIFAR-10 are looked for, and in which layouts."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isthmus.data.files import Array, read_cifar_batch, read_idx, read_npz
from isthmus.errors import FileError

_SPLITS = ("x_train", "y_train", "x_test", "y_test")
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))

# The idx files of MNIST and Fashion-MNIST have the same names and sizes; their test labels tell them apart.
_TEST_LABELS = {
    "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5": "mnist",
    "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9": "fashion-mnist",
}


@dataclass(frozen=True)
class _Raw:
    """Pixels 0..255 [n, c, h, w] and labels, as they stand in the files."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    source: str


def roots(root: str | Path | None) -> list[Path]:
    """The folders to search: `root` alone, else $ISTHMUS_DATA, the cache folder and Debian's data sets."""
    if root is not None:
        return [Path(root).expanduser()]
    given = os.environ.get("ISTHMUS_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isthmus" / "data"
    return [*([Path(given).expanduser()] if given else []), cache, Path("/usr/share/datasets")]


def find(name: str, root: str | Path | None) -> _Raw:
    """The first complete copy of `name` under the roots; its absence names every place that was looked at."""
    looked: list[str] = []
    for folder in roots(root):
        npz = folder / f"{name}.npz"
        looked.append(str(npz))
        if npz.is_file():
            return _from_npz(name, npz)
        for sub in _SUBFOLDERS[name]:
            raw = _cifar(folder / sub, looked) if name == "cifar10" else _idx(name, folder / sub, looked)
            if raw is not None:
                return raw
    raise FileError(
        name,
        "no copy of this data set on this machine; looked for " + ", ".join(looked),
        f"put {name}.npz (arrays {', '.join(_SPLITS)}) or {_FILES[name]} into one of these folders, "
        "or set ISTHMUS_DATA to the folder that holds them",
    )


_SUBFOLDERS = {
    # the folder itself comes last: files with the names of the other set may lie there
    "mnist": ("mnist", "MNIST/raw", "."),
    "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw", "."),
    "cifar10": ("cifar10", "cifar-10-batches-bin", "."),
}
_FILES = {
    "mnist": f"the idx files {IDX[0]}[.gz] ...",
    "fashion-mnist": f"the idx files {IDX[0]}[.gz] ... (Debian: apt install dataset-fashion-mnist)",
    "cifar10": "the binary version, data_batch_1.bin ... test_batch.bin",
}


def _from_npz(name: str, path: Path) -> _Raw:
    arrays = read_npz(path)
    if missing := [k for k in _SPLITS if k not in arrays]:
        raise FileError(path, f"has no array {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}")
    for key in _SPLITS:
        if arrays[key].dtype.kind not in "iu":
            raise FileError(path, f"{key} has dtype {arrays[key].dtype}, not whole numbers 0..255")
    x_train, x_test = (_images(name, path, key, arrays[key]) for key in ("x_train", "x_test"))
    return checked(name, _Raw(x_train, arrays["y_train"], x_test, arrays["y_test"], str(path)))


def _images(name: str, path: Path, key: str, x: Array) -> Array:
    """[n, c, h, w] from the layouts in use: no channel axis, flat rows, or channels last."""
    channels, side = (3, 32) if name == "cifar10" else (1, 28)
    if x.ndim == 4 and x.shape[1:] == (side, side, channels):
        return x.transpose(0, 3, 1, 2)
    if x.shape[1:] in ((channels, side, side), (channels * side * side,), *(((side, side),) if channels == 1 else ())):
        return x.reshape(-1, channels, side, side)
    raise FileError(path, f"{key} has shape {list(x.shape)}, expected [n, {side}, {side}{', 3' * (channels == 3)}]")


def _idx(name: str, folder: Path, looked: list[str]) -> _Raw | None:
    found = {f: p for f in IDX for p in (folder / f"{f}.gz", folder / f) if p.is_file()}
    looked.append(f"{folder / IDX[0]}[.gz]")
    if not found:
        return None
    if missing := [f for f in IDX if f not in found]:
        raise FileError(folder, f"holds part of {name}; missing: {', '.join(missing)}")
    images, labels, test_images, test_labels = (found[file] for file in IDX)
    return checked(
        name,
        _Raw(_grey(images), _array(labels, 1), _grey(test_images), _array(test_labels, 1), source=str(folder)),
    )


def _grey(path: Path) -> np.ndarray:
    """Images [n, 1, height, width]."""
    return _array(path, 3)[:, None]


def _array(path: Path, ndim: int) -> np.ndarray:
    array = read_idx(path)
    if array.ndim != ndim:
        raise FileError(path, f"has {array.ndim} axes, expected {ndim}")
    return array


def _cifar(folder: Path, looked: list[str]) -> _Raw | None:
    looked.append(str(folder / BATCHES[0]))
    names = (*BATCHES, "test_batch.bin")
    missing = [n for n in names if not (folder / n).is_file()]
    if len(missing) == len(names):
        for pickled in (folder / "data_batch_1", folder.parent / "cifar-10-batches-py" / "data_batch_1"):
            if pickled.is_file():
                raise FileError(
                    pickled.parent,
                    "is the python version of CIFAR-10, whose pickles can run code and are not read",
                    "fetch the binary version (cifar-10-binary.tar.gz) instead",
                )
        return None
    if missing:
        raise FileError(folder, f"holds part of cifar10; missing: {', '.join(missing)}")
    batches = [read_cifar_batch(folder / n) for n in BATCHES]
    x_test, y_test = read_cifar_batch(folder / "test_batch.bin")
    x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return checked("cifar10", _Raw(x, y, x_test, y_test, str(folder)))


def checked(name: str, raw: _Raw) -> _Raw:
    """Refuse shapes that disagree, pixels and labels out of range, and one MNIST in place of the other."""
    for part, x, y in (("train", raw.x_train, raw.y_train), ("test", raw.x_test, raw.y_test)):
        _check_part(raw.source, part, x, y)
    if raw.x_train.shape[1:] != raw.x_test.shape[1:]:
        raise FileError(raw.source, "training and test images differ in size")
    known = _TEST_LABELS.get(hashlib.sha256(raw.y_test.astype(np.uint8).tobytes()).hexdigest(), name)
    if known != name:
        raise FileError(raw.source, f"holds {known}, not {name}", f"load it as {known!r}")
    return raw


def _check_part(source: str, part: str, x: np.ndarray, y: np.ndarray) -> None:
    if y.ndim != 1 or len(x) != len(y) or len(x) == 0:
        raise FileError(source, f"x_{part} {list(x.shape)} and y_{part} {list(y.shape)} do not belong together")
    if x.min() < 0 or x.max() > 255 or y.min() < 0 or y.max() > 9:
        raise FileError(source, f"expected {part} pixels 0..255 and labels 0..9, got others")
