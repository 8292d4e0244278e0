"""Penn Treebank: the vocabulary, the sequences, files that are not what they say, and training on them."""

from __future__ import annotations

import json
import os
from collections import Counter
from math import exp
from pathlib import Path

import pytest
import torch

import isthmus as im
from isthmus.cli import run_app
from isthmus.data import load
from isthmus.data.text import sequences, vocabulary
from isthmus.errors import FileError, InputError
from isthmus.experiments import Network, Problem
from isthmus.sweep import Local, Store, run_cells
from isthmus.training.fit import Recipe

TRAIN = " the cat sat on the mat \n a dog sat on the <unk> \n the end \n" * 12
TEST = " the dog sat \n a bird sat on the mat \n" * 3


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "ptb"
    folder.mkdir()
    (folder / "ptb.train.txt").write_text(TRAIN)
    (folder / "ptb.test.txt").write_text(TEST)
    monkeypatch.setenv("ISTHMUS_DATA", str(tmp_path))
    return tmp_path


def words_of(text: str) -> list[str]:
    return text.replace("\n", "<eos>").split()


def test_sequences_are_the_text_and_its_next_words(text: Path):
    data = load("ptb:V=50,T=5")
    stream = words_of(TRAIN)
    names = sorted(set(stream), key=lambda w: (-Counter(stream)[w], w))
    assert names[:2] == ["the", "<eos>"]
    assert data.classes == len(names)
    assert data.x_train.dtype == data.y_train.dtype == torch.int64
    assert data.x_train.shape == ((len(stream) - 1) // 5, 5)
    assert [names[i] for i in data.x_train.flatten()] == stream[: data.x_train.numel()]
    assert [names[i] for i in data.y_train.flatten()] == stream[1 : data.x_train.numel() + 1]
    assert data.x_test is not None
    read = [names[i] for i in data.x_test.flatten()]
    assert read == ["<unk>" if w == "bird" else w for w in words_of(TEST)[: len(read)]]
    assert torch.equal(load("ptb:V=50,T=5", root=text / "ptb").x_train, data.x_train)
    assert data.cast(torch.float64).x_train.dtype == torch.int64


def test_a_small_vocabulary_keeps_the_most_frequent_words(text: Path):
    data = load("ptb:V=4,T=5")
    assert data.classes == 4
    numbers = vocabulary(words_of(TRAIN), 4)
    assert list(numbers) == ["the", "<eos>", "on", "<unk>"]
    stream = [numbers.get(w, 3) for w in words_of(TRAIN)]
    assert data.x_train.flatten().tolist() == stream[: data.x_train.numel()]
    assert vocabulary(["a", "b"], 9) == {"a": 0, "b": 1, "<unk>": 2}
    for name in ("ptb:V=1", "ptb:T=0", "ptb:W=3", "ptb:V=x", "ptb:T=100000"):
        with pytest.raises(InputError):
            load(name)
    with pytest.raises(InputError, match="at least 2 words"):
        vocabulary(["a"], 1)
    assert sequences(["a", "<unk>"], {"a": 0, "<unk>": 1}, 1)[1].tolist() == [[1]]


def test_files_that_are_not_there_or_not_text(tmp_path: Path):
    with pytest.raises(FileError, match=r"looked for .*ptb/ptb.train.txt, .*ptb.train.txt"):
        load("ptb", root=tmp_path)
    (tmp_path / "ptb.train.txt").write_bytes(b"a b\n")
    with pytest.raises(FileError, match=r"missing: ptb.test.txt"):
        load("ptb", root=tmp_path)
    (tmp_path / "ptb.test.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(FileError, match="cannot be read as text"):
        load("ptb", root=tmp_path)
    (tmp_path / "ptb.test.txt").write_bytes(b"")
    with pytest.raises(FileError, match="holds no words"):
        load("ptb", root=tmp_path)


@pytest.mark.skipif(
    not (Path(os.environ.get("ISTHMUS_DATA", "/none")) / "ptb").is_dir(), reason="needs Penn Treebank in $ISTHMUS_DATA"
)
def test_the_real_text_has_its_known_sizes():
    data = load("ptb")
    assert data.classes == 10_000
    assert (data.x_train.shape, data.y_train.shape) == (((929_589 - 1) // 20, 20),) * 2
    assert data.x_test is not None
    assert len(data.x_test) == (82_430 - 1) // 20


def test_the_perplexity_of_a_network_trained_by_the_command(text: Path, capsys: pytest.CaptureFixture[str]):
    out = [str(text / f"{seed}.safetensors") for seed in (0, 1)]
    for seed in (0, 1):
        command = ["train", "--model", "lstm:6x2", "--data", "ptb:V=12,T=5", "--seed", str(seed), "--out", out[seed]]
        assert run_app([*command, "--epochs", "30", "--batch", "10", "--lr", "0.02", "--quiet"]) == 0
    a = im.load_params(out[0])
    data = load("ptb:V=12,T=5")
    objective = im.Objective(im.models.by_name("lstm:6x2", outputs=data.classes), data=(data.x_train, data.y_train))
    model = im.models.by_name("lstm:6x2", like=a)
    model.load_state_dict(a)
    log_p = model(data.x_train).log_softmax(1).gather(1, data.y_train[:, None])
    perplexity = exp(-float(log_p.mean().detach()))
    assert perplexity < 6 < data.classes
    assert exp(objective.loss(a)) == pytest.approx(perplexity, rel=1e-5)
    capsys.readouterr()
    options = ["--option", "quantity=perplexity", "--option", f"threshold={perplexity * 2}", "--option", "steps=200"]
    command = ["connect", *out, "--out", str(text / "run"), "--method", "StringSampling", *options]
    assert run_app([*command, "--num-points", "5", "--budget", "0", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"]["ok"]


def test_an_experiment_trains_on_words_in_both_precisions(text: Path, tmp_path: Path):
    for dtype in ("float32", "float64"):
        cell = Network(Problem("lstm:4x2", "ptb:V=8,T=5", 20, dtype=dtype), 0, Recipe(steps=20, batch=5), 0.0)
        store = Store(tmp_path / dtype)
        assert run_cells([cell], store, Local()).ok
        objective, test = cell.problem.objectives()
        assert test is not None
        params = im.load_params(store.load(cell).folder / "params.safetensors")
        assert store.load(cell).result["loss"] == pytest.approx(objective.loss(params), rel=1e-6)
        x = objective.data[0]
        assert isinstance(x, torch.Tensor)
        assert x.dtype == torch.int64
