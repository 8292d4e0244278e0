"""Files of the user's own: used as given, dtypes and all, or refused."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from isthmus.data import load
from isthmus.errors import FileError

rng = np.random.default_rng(0)


def test_random_damage_is_one_error_or_harmless(tmp_path: Path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=rng.normal(size=(6, 4)), y=np.arange(6) % 3)
    good = buffer.getvalue()
    draw = random.Random(0)
    file = tmp_path / "d.npz"
    file.write_bytes(good)
    want = load(file).digest
    failures = 0
    for _ in range(1000):
        body = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            body[draw.randrange(len(body))] = draw.randrange(256)
        file.write_bytes(body[: draw.choice([len(body), draw.randrange(len(body))])])
        try:
            got = load(file).digest
        except FileError:
            failures += 1
        else:
            # zip checks every member: what loads at all holds the same numbers
            assert got == want
    assert failures > 500


def test_a_file_is_used_as_given(tmp_path: Path):
    file = tmp_path / "mine.npz"
    x, y = rng.normal(size=(6, 4)), np.array([0, 2, 1, 2, 0, 1], np.int16)
    np.savez(file, x=x, y=y)
    data = load(file)
    assert (data.name, data.classes, data.x_test, data.source) == ("mine", 3, None, str(file))
    assert np.array_equal(data.x_train.numpy(), x.astype(np.float32))
    assert data.y_train.dtype == torch.int64
    np.savez(file, x_train=x, y_train=x[:, :2], x_test=x[:2], y_test=y[:2])
    data = load(str(file))
    assert (data.classes, data.y_train.dtype) == (0, torch.float32)
    assert data.y_test is not None
    assert data.y_test.dtype == torch.float32
    assert data.cast(torch.float64).y_train.dtype == torch.float64


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64])
def test_whole_numbers_stay_whole(tmp_path: Path, kind: type):
    x = np.array([[0, 7], [100, 3]], kind)
    np.savez(tmp_path / "d.npz", x=x, y=np.array([0, 1]), x_test=x, y_test=np.array([1, 1]))
    data = load(tmp_path / "d.npz")
    assert data.x_train.dtype == torch.int64
    assert data.x_train.tolist() == x.tolist()
    assert data.cast(torch.float64).x_train.dtype == torch.int64
    assert data.floating().x_train.dtype == torch.float32
    assert data.floating().x_train.tolist() == x.tolist()


def test_64_bit_whole_numbers_are_not_rounded(tmp_path: Path):
    x = np.array([[2**24 + 1, 2**53 + 1]])
    np.savez(tmp_path / "d.npz", x=x, y=np.array([2**24 + 1]))
    data = load(tmp_path / "d.npz")
    assert data.x_train.tolist() == x.tolist()
    assert data.y_train.tolist() == [2**24 + 1]


@pytest.mark.parametrize("kind", [np.uint8, bool, np.float16, np.float32, np.float64])
def test_pixels_flags_and_floating_point_become_float32(tmp_path: Path, kind: type):
    x = np.array([[0, 1], [1, 1]], kind)
    np.savez(tmp_path / "d.npz", x=x, y=np.array([True, False]))
    data = load(tmp_path / "d.npz")
    assert data.x_train.dtype == torch.float32
    assert data.x_train.tolist() == x.astype(float).tolist()  # unscaled
    assert (data.y_train.tolist(), data.classes) == ([1, 0], 2)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint64, bool, np.float32])
def test_targets_of_every_kind(tmp_path: Path, kind: type):
    y = np.array([[1], [0]], kind)
    np.savez(tmp_path / "d.npz", x=np.ones((2, 2)), y=y)
    data = load(tmp_path / "d.npz")
    assert data.y_train.tolist() == y.tolist()
    assert data.y_train.dtype == (torch.float32 if kind is np.float32 else torch.int64)


def test_a_label_that_counts_nowhere_is_no_class(tmp_path: Path):
    np.savez(tmp_path / "d.npz", x=np.ones((3, 2)), y=np.array([[1, -100], [0, 2], [-100, -100]]))
    data = load(tmp_path / "d.npz")
    assert data.classes == 3
    assert data.y_train.tolist() == [[1, -100], [0, 2], [-100, -100]]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"z": np.ones(2)}, "holds z; store x_train"),
        ({}, "holds nothing"),
        ({"x": np.ones((2, 2))}, "only one of x and y"),
        ({"x": np.ones((2, 2)), "y": np.array([-1, 1])}, "negative labels"),
        ({"x": np.ones((2, 2)), "y": np.ones(3)}, "with the same n"),
        ({"x": np.ones(2), "y": np.ones(2)}, "shapes [n, ...]"),
        ({"x": np.full((2, 2), 1e300), "y": np.ones(2)}, "beyond the range"),
        ({"x": np.full((2, 2), 2**63, np.uint64), "y": np.ones(2)}, "x holds numbers beyond the range of int64"),
        ({"x": np.ones((2, 2)), "y": np.full(2, 2**63, np.uint64)}, "y holds numbers beyond the range of int64"),
        (
            {"x_train": np.ones((2, 2), int), "y_train": np.ones(2), "x_test": np.ones((2, 2)), "y_test": np.ones(2)},
            "two kinds, int64 and float64",
        ),
        (
            {"x_train": np.ones((2, 2)), "y_train": np.ones(2), "x_test": np.ones((2, 3)), "y_test": np.ones(2)},
            "x_test",
        ),
        ({"x_train": np.ones((2, 2)), "y_train": np.ones(2), "x_test": np.ones((2, 2))}, "only one of x_test"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, arrays: dict, words: str):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(FileError) as caught:
        load(tmp_path / "f.npz")
    assert words in str(caught.value)


def test_a_path_that_does_not_exist(tmp_path: Path):
    with pytest.raises(FileError, match="no such file"):
        load(tmp_path / "none.npz")
