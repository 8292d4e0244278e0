"""`load`: a data set by name or by file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isthmus.data.dataset import Dataset
from isthmus.data.files import Array, read_npz
from isthmus.data.find import find, roots
from isthmus.data.text import find_text, sequences, vocabulary
from isthmus.errors import FileError, InputError, MissingExtraError
from isthmus.objective.labels import IGNORED

_DIGITS_TRAIN = 1437
_DELTA = 0.2
"""Half the gap between the two standard deviations of ``gaussians``."""
_CENTRE = 4.0
"""Distance of a class centre from the origin when ``gaussians`` has more than two classes."""
_MAX_NUMBERS = 2**30
"""Computed data hold at most so many numbers: 4 GB in float32, several times CIFAR-10."""


def load(name_or_file: str | Path, *, root: str | Path | None = None) -> Dataset:
    """The data set of that name (see ``DATASETS``), or of an .npz file: `name_or_file`.

    Named sets are looked for under `root`, else under $ISTHMUS_DATA, the cache folder (~/.cache/isthmus/data) and
    /usr/share/datasets; nothing is downloaded. A file holds x_train, y_train and optionally x_test, y_test, or x
    and y, used as they stand. Inputs: whole numbers (any integer dtype but uint8) stay whole, as int64, for networks
    that look them up, such as embeddings; uint8, which is how pixels are kept, bool and floating point become
    float32, unscaled. Targets: whole numbers and bool become int64 labels, of which -100 counts nowhere; floating
    point stays, as float32.
    Errors: FileError for a set that is absent (with every place that was looked at) or damaged, InputError for an
    unknown name and for options of more than ``_MAX_NUMBERS`` numbers.

    >>> data = load("gaussians:N=6,d=2,seed=1")
    >>> data.x_train.shape, data.y_train, data.classes
    (torch.Size([6, 2]), tensor([0, 1, 0, 1, 0, 1]), 2)
    """
    text = str(name_or_file)
    name, _, options = text.partition(":")
    if name in _ENTRIES:
        if (count := _ENTRIES[name].numbers(options)) > _MAX_NUMBERS:
            raise InputError(f"data {text!r}", expected=f"at most {_MAX_NUMBERS:,} numbers", got=f"{count:,}")
        return _ENTRIES[name].make(options, root)
    path = Path(name_or_file).expanduser()
    if path.is_file():
        return _from_file(path)
    if path.suffix in (".npz", ".npy") or "/" in text:
        raise FileError(path, "no such file", "an .npz file with x_train, y_train[, x_test, y_test], or x, y")
    raise InputError("data", expected=f"one of {', '.join(_ENTRIES)}, or an .npz file", got=repr(text))


@dataclass(frozen=True)
class DataEntry:
    """One name: its syntax, one line on it, what makes it, and how many numbers its options ask to compute.

    `name`: as it is typed. `syntax`: of what may follow. `line`: what it is. `make`: makes it. `numbers`: counts what
    its options ask to compute.
    """

    name: str
    syntax: str
    line: str
    make: Callable[[str, str | Path | None], Dataset]
    numbers: Callable[[str], int] = lambda options: 0


def _no_options(name: str, options: str) -> None:
    if options:
        raise InputError(f"data {name!r}", expected="no options", got=repr(options), instead=repr(name))


def _digits(options: str, root: str | Path | None) -> Dataset:
    """scikit-learn's 1797 digits of 8 x 8 pixels: first 1437 train, last 360 test; x/16 minus the training mean."""
    _no_options("digits", options)
    if root is not None:
        raise InputError("root", expected="None for 'digits', which comes with scikit-learn", got=root)
    try:
        from sklearn.datasets import load_digits
    except ImportError as exc:
        raise MissingExtraError("scikit-learn", "data") from exc
    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(np.asarray(pixels, np.float64)) / 16
    x = (x - x[:_DIGITS_TRAIN].mean(0)).float().reshape(-1, 1, 8, 8)
    y = torch.from_numpy(np.asarray(labels, np.int64))
    n = _DIGITS_TRAIN
    return Dataset("digits", x[:n], y[:n], x[n:], y[n:], 10, "scikit-learn load_digits")


def _mnist_family(name: str) -> Callable[[str, str | Path | None], Dataset]:
    def make(options: str, root: str | Path | None) -> Dataset:
        """Pixels 0..255 mapped to [-1, 1] (Nguyen, Brechet and Mondelli 2021, section 6)."""
        _no_options(name, options)
        raw = find(name, root)
        x_train, x_test = (
            torch.from_numpy(x.astype(np.float32)).div_(255).sub_(0.5).div_(0.5) for x in (raw.x_train, raw.x_test)
        )
        return Dataset(name, x_train, _labels(raw.y_train), x_test, _labels(raw.y_test), 10, raw.source)

    return make


def _cifar10(options: str, root: str | Path | None) -> Dataset:
    """Each channel minus its training mean, divided by its training standard deviation."""
    _no_options("cifar10", options)
    raw = find("cifar10", root)
    # exact sums over whole numbers, so that no copy of the images in float64 is made
    levels = np.arange(256, dtype=np.float64)
    channels = (torch.from_numpy(np.ascontiguousarray(raw.x_train[:, c])) for c in range(3))
    counts = np.stack([torch.bincount(v.flatten(), minlength=256).numpy() for v in channels])
    mean = counts @ levels / counts.sum(1)
    std = np.sqrt(np.maximum(counts @ levels**2 / counts.sum(1) - mean**2, 0))
    if not std.all():
        raise FileError(raw.source, "a colour channel is the same in all training images")
    shift, scale = (torch.from_numpy(v.astype(np.float32))[:, None, None] for v in (mean, std))
    x_train, x_test = (
        torch.from_numpy(x.astype(np.float32)).sub_(shift).div_(scale) for x in (raw.x_train, raw.x_test)
    )
    return Dataset("cifar10", x_train, _labels(raw.y_train), x_test, _labels(raw.y_test), 10, raw.source)


def _labels(y: Array) -> Tensor:
    return torch.from_numpy(y.astype(np.int64))


def _numbers(name: str, options: str, defaults: Mapping[str, int]) -> dict[str, int]:
    """The options KEY=WHOLE NUMBER,... over their defaults."""
    value = dict(defaults)
    for part in options.split(",") if options else ():
        key, _, number = part.partition("=")
        if key not in value or not (number.isascii() and number.isdigit() and len(number) < 10):
            raise InputError(
                f"data {name!r}",
                expected=f"options {', '.join(defaults)}, each =WHOLE NUMBER",
                got=repr(part),
                instead=f"{name}:" + ",".join(f"{k}={v}" for k, v in defaults.items()),
            )
        value[key] = int(number)
    return value


_GAUSSIANS = {"N": 1000, "d": 32, "classes": 2, "seed": 0}


def _gaussians_numbers(options: str) -> int:
    value = _numbers("gaussians", options, _GAUSSIANS)
    return (2 * value["N"] + value["classes"]) * max(value["d"], 1)


def _gaussians(options: str, root: str | Path | None) -> Dataset:
    """N training examples of balanced classes, and N test examples from the same generator.

    Two classes (Shevchenko and Mondelli 2020, appendix D): label 0 is N(0, (1-0.2)^2 I), label 1 is
    N(0, (1+0.2)^2 I), told apart only by their norm. More: label c is N(4 u_c, I) with u_c a random unit vector.
    """
    if root is not None:
        raise InputError("root", expected="None for 'gaussians', which are computed", got=root)
    value = _numbers("gaussians", options, _GAUSSIANS)
    n, d, classes = value["N"], value["d"], value["classes"]
    for key, low in (("N", 1), ("d", 1), ("classes", 2)):
        if value[key] < low:
            raise InputError(f"data 'gaussians', {key}", expected=f"a whole number >= {low}", got=value[key])
    generator = torch.Generator().manual_seed(value["seed"])
    y = (torch.arange(n) % classes).repeat(2)
    noise = torch.randn(2 * n, d, generator=generator)
    if classes == 2:
        x = noise * (1 + _DELTA * (2 * y[:, None] - 1))
    else:
        centres = torch.randn(classes, d, generator=generator)
        x = noise + _CENTRE * (centres / centres.norm(dim=1, keepdim=True))[y]
    source = "computed: " + ",".join(f"{k}={v}" for k, v in value.items())
    return Dataset("gaussians", x[:n], y[:n], x[n:], y[n:], classes, source)


_PTB = {"V": 10_000, "T": 20}


def _ptb(options: str, root: str | Path | None) -> Dataset:
    """Sequences of T words, each an example of its own, and the words that follow them; classes: the vocabulary.

    The V most frequent words of the training text; all others are ``<unk>`` (10,000 are all words of this version).
    The test examples are those of ptb.test.txt. With cross entropy exp(loss) is the perplexity.
    """
    value = _numbers("ptb", options, _PTB)
    for key, low in (("V", 2), ("T", 1)):
        if value[key] < low:
            raise InputError(f"data 'ptb', {key}", expected=f"a whole number >= {low}", got=value[key])
    (train, test), source = find_text(roots(root))
    numbers = vocabulary(train, value["V"])
    (x, y), (x_test, y_test) = (sequences(words, numbers, value["T"]) for words in (train, test))
    return Dataset("ptb", x, y, x_test, y_test, len(numbers), source)


def _targets(path: Path, targets: list[Tensor]) -> tuple[list[Tensor], int]:
    """Numbers, with no classes, where some are floating point, else labels and the number of their classes.

    The label that counts nowhere is none of them.
    """
    if any(y.is_floating_point() for y in targets):
        return [y.float() for y in targets], 0
    if any(bool(((y < 0) & (y != IGNORED)).any()) for y in targets):
        ways = f"store labels 0, 1, ... and {IGNORED} for those that count nowhere, or targets as floating point"
        raise FileError(path, "has negative labels", ways)
    return targets, max((max(int(y.max()) + 1, 0) for y in targets if y.numel()), default=0)


def _from_file(path: Path) -> Dataset:
    arrays = read_npz(path)
    train = _pair(path, arrays, "x_train", "y_train") or _pair(path, arrays, "x", "y")
    if train is None:
        held = ", ".join(arrays) or "nothing"
        raise FileError(path, f"holds {held}", "store x_train, y_train[, x_test, y_test], or x, y")
    test = _pair(path, arrays, "x_test", "y_test")
    if test and test[0].dtype != train[0].dtype:
        kinds = f"{arrays['x_train' if 'x_train' in arrays else 'x'].dtype} and {arrays['x_test'].dtype}"
        raise FileError(path, f"holds training and test inputs of two kinds, {kinds}", "store both in one dtype")
    targets, classes = _targets(path, [train[1], test[1]] if test else [train[1]])
    x_test, y_test = (test[0], targets[1]) if test else (None, None)
    try:
        return Dataset(path.stem, train[0], targets[0], x_test, y_test, classes, str(path))
    except InputError as exc:
        raise FileError(path, str(exc)) from exc


def _pair(path: Path, arrays: dict[str, Array], x_key: str, y_key: str) -> tuple[Tensor, Tensor] | None:
    """Inputs and targets as ``load`` says, or None when the file has neither."""
    if x_key not in arrays and y_key not in arrays:
        return None
    if x_key not in arrays or y_key not in arrays:
        raise FileError(path, f"has only one of {x_key} and {y_key}")
    x, y = arrays[x_key], arrays[y_key]
    whole = x.dtype.kind in "iu" and x.dtype != np.uint8
    return _tensor(path, x_key, x, whole), _tensor(path, y_key, y, y.dtype.kind != "f")


def _tensor(path: Path, key: str, array: Array, whole: bool) -> Tensor:
    """An array as int64 or as float32; numbers that would become others are refused."""
    with np.errstate(over="ignore"):
        out = array.astype(np.int64 if whole else np.float32)
    if whole and array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
        raise FileError(path, f"{key} holds numbers beyond the range of int64")
    if not np.isfinite(out).all():
        raise FileError(path, f"{key} holds numbers beyond the range of float32")
    return torch.from_numpy(out)


DATASETS: tuple[DataEntry, ...] = (
    DataEntry("digits", "digits", "1797 digits of 8 x 8 pixels, from scikit-learn (isthmus[data])", _digits),
    DataEntry("mnist", "mnist", "60,000 + 10,000 digits of 28 x 28 pixels, scaled to [-1, 1]", _mnist_family("mnist")),
    DataEntry(
        "fashion-mnist",
        "fashion-mnist",
        "60,000 + 10,000 clothes of 28 x 28 pixels, scaled to [-1, 1]",
        _mnist_family("fashion-mnist"),
    ),
    DataEntry("cifar10", "cifar10", "50,000 + 10,000 colour photographs, each channel standardised", _cifar10),
    DataEntry(
        "ptb",
        "ptb[:V=10000,T=20]",
        "Penn Treebank (Mikolov's version): sequences of T words and the words that follow, V words in the vocabulary",
        _ptb,
    ),
    DataEntry(
        "gaussians",
        "gaussians[:N=1000,d=32,classes=2,seed=0]",
        "synthetic: isotropic Gaussians of Shevchenko and Mondelli 2020, appendix D",
        _gaussians,
        _gaussians_numbers,
    ),
)
"""The data sets with a name, in the order of ``isthmus --help``."""

_ENTRIES = {entry.name: entry for entry in DATASETS}


def numbers_of(name: str) -> int:
    """How many numbers loading the data of that name computes; 0 for data that are read from files.

    `name`: that of a set, with its options. Errors: ``KeyError`` for another name.

    >>> numbers_of("gaussians:N=1000,d=2"), numbers_of("digits")
    (4004, 0)
    """
    name, _, options = name.partition(":")
    return _ENTRIES[name].numbers(options)
