"""Folders of Hugging Face and of PEFT from the command line: paths between them are measured as the slow loop does."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.cli import given, run_app
from isthmus.cli.given import OwnData, data_of
from isthmus.cli.options import Asked
from isthmus.errors import FileError, InputError
from isthmus.params import equal
from isthmus.paths.on_demand import OnDemand
from tests.cli.test_large import both
from tests.hugging_face import adapter, inputs, network, saved

transformers = pytest.importorskip("transformers")
CODE = """
import torch
from torch.utils.data import DataLoader
x, y = torch.load("x.pt"), torch.load("y.pt")
def arrays(): return x, y
def loader():
    batches = [{"input_ids": v, "labels": w} for v, w in zip(x, y)]
    return {"data": DataLoader(batches, batch_size=3), "stream": True}
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)

    def examples(kind):
        torch.save(inputs(kind), "x.pt")
        torch.save(torch.arange(4) % 3, "y.pt")
        return inputs(kind), torch.arange(4) % 3

    return examples


def losses(a, b, model, data, *more):
    """What ``connect`` measures at both ends and half-way."""
    asked = ["--model", f"hf:{model}", "--data", data, "--num-points", "3", "--out", "out", "-q", *more]
    assert run_app(["connect", str(a), str(b), *asked, "--method", "Linear", "--budget", "0"]) == 0
    return json.loads(open("out/profile.json").read())["loss"]


def slowly(kind, a, b, loss):
    """The same by the plain loop over t."""
    out, module = [], copy.deepcopy(network(kind))
    for t in (0, 0.5, 1):
        module.load_state_dict({k: torch.lerp(v, b[k], t) if v.is_floating_point() else v for k, v in a.items()})
        with torch.no_grad():
            out.append(loss(lambda x: module(x).logits))
    return pytest.approx(out, rel=1e-5)


def mean(x, y):
    return lambda net: float(torch.nn.functional.cross_entropy(net(x).flatten(0, -2), y.flatten()))


@pytest.mark.parametrize(("kind", "data"), [("vit", "arrays"), ("bert", "loader")])
def test_two_folders_by_data_of_ones_own(made, kind, data):
    x, y = made(kind)
    found = losses(saved(kind), saved(kind, 1), saved(kind), f"mine.py:{data}")
    a, b = (network(kind, seed).state_dict() for seed in (0, 1))
    assert found == slowly(kind, a, b, mean(x, y))


def test_a_base_and_its_adapter(made):
    pytest.importorskip("peft")
    x, y = made("gpt2")
    found = losses(saved("gpt2"), adapter("patterns"), saved("gpt2"), "mine.py:arrays", "--batch", "2")
    a, b = (im.load_params(p, like=network("gpt2")) for p in (saved("gpt2"), adapter("patterns")))
    assert found == slowly("gpt2", a, b, mean(x, y))


def test_a_text(made, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    folder = shutil.copytree(saved("lm1"), tmp_path / "lm1")
    cut = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate("abcde")}, unk_token="e"))
    cut.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=cut, unk_token="e").save_pretrained(folder)
    (tmp_path / "a.txt").write_text("a b c a b c d a b c a b c")
    x, y = (
        torch.tensor([[0, 1, 2], [0, 1, 2], [3, 0, 1], [2, 0, 1]]),
        torch.tensor([[1, 2, 0], [1, 2, 3], [0, 1, 2], [0, 1, 2]]),
    )
    found = losses(folder, saved("lm1", 1), folder, "a.txt", "--block", "3")
    asked = ["--model", f"hf:{folder}", "--data", "a.txt", "--block", "3", "--num-points", "3", "--out", "again", "-q"]
    assert run_app(["profile", "out/path.safetensors", *asked]) == 0
    assert json.loads(open("again/profile.json").read())["loss"] == pytest.approx(found, rel=1e-6)
    a, b = (network("lm1", seed).state_dict() for seed in (0, 1))
    assert found == slowly("lm1", a, b, mean(x, y))


def test_experts_that_do_not_run_in_float64_are_certified_as_connect_does(made, capsys):
    made("mixtral")
    torch.save(inputs("mixtral").roll(-1, 1), "y.pt")
    losses(saved("mixtral"), saved("mixtral", 1), saved("mixtral"), "mine.py:arrays")
    capsys.readouterr()
    command = ["certify", "out/path.safetensors", "--model", f"hf:{saved('mixtral')}", "--data", "mine.py:arrays"]
    assert run_app([*command, "--budget", "1", "--out", "out", "-q"]) == 1  # measured alone: the choice moves
    assert "topk" in capsys.readouterr().err


WORDS = """
import torch
import isthmus as im
from torch.utils.data import DataLoader
ids = torch.arange(12).reshape(3, 4)
def loader(labels): return DataLoader([{"input_ids": v, "labels": w} for v, w in zip(ids, labels)], shuffle=False)
def words(): return loader(ids.masked_fill(ids > 9, -100))
def others(): return loader(ids.roll(-1, 1))
def next(): return {"data": words(), "loss": im.CrossEntropy(mean="tokens", shift=True)}
"""


def test_a_text_is_cut_by_the_tokenizer_beside_the_model(tmp_path, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    folder = shutil.copytree(saved("lm1"), tmp_path / "lm1")
    model = f"hf:{folder}"
    (tmp_path / "a.txt").write_text("a b c a b c d")
    with pytest.raises(FileError, match="holds no tokenizer"):
        data_of(str(tmp_path / "a.txt"), model, Asked(block=2))
    cut = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate("ab cde")}, unk_token="e"))
    cut.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=cut, eos_token="e", unk_token="e").save_pretrained(folder)
    made = data_of(str(tmp_path / "a.txt"), model, Asked(block=2))
    assert isinstance(made, OwnData)
    assert made.options == {"class_axis": -1}
    assert made.train[0].tolist() == [[0, 1], [3, 0], [1, 3]]
    assert made.train[1].tolist() == [[1, 3], [0, 1], [3, 4]]
    (tmp_path / "b.jsonl").write_text('{"text": "a b"}\n\n{"text": "c"}\n')
    made = data_of(str(tmp_path / "b.jsonl"), model, Asked(block=3))
    assert isinstance(made, OwnData)
    assert [v.tolist() for v in made.train] == [[[0, 1, 5]], [[1, 5, 3]]]
    (tmp_path / "c.jsonl").write_text('{"txt": "a b"}\n')
    with pytest.raises(FileError, match='line 1 has no "text"'):
        data_of(str(tmp_path / "c.jsonl"), model, Asked(block=3))
    (tmp_path / "d.txt").write_text("")
    with pytest.raises(FileError, match=r"d.txt: holds 1 words of the tokenizer, too few to predict one"):
        data_of(str(tmp_path / "d.txt"), model, Asked())
    with pytest.raises(InputError, match=r"--block: expected at most 7, the words of .*a.txt less one, got 8"):
        data_of(str(tmp_path / "a.txt"), model, Asked(block=8))
    monkeypatch.setattr(given, "_LARGEST", 10)
    with pytest.raises(FileError, match="has over 10 bytes; give a part of it"):
        data_of(str(tmp_path / "a.txt"), model, Asked(block=2))
    for other, message in (("mlp:4-4", "a model with a tokenizer"), (f"hf:{saved('bert')}", "predicts the next word")):
        with pytest.raises(InputError, match=message):
            data_of(str(tmp_path / "a.txt"), other, Asked())
    with pytest.raises(InputError, match=r"--block: expected a text"):
        data_of("digits", model, Asked(block=2))


def test_a_folder_asks_for_its_network(capsys):
    assert run_app(["connect", str(saved("lm1")), str(saved("lm1")), "--out", "x"]) == 2
    assert f"--model hf:{saved('lm1')}" in capsys.readouterr().err


def test_labels_that_are_the_words_themselves_need_a_loss_with_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(WORDS)
    command = ["connect", *[str(saved("lm1", seed)) for seed in (0, 1)], "--model", f"hf:{saved('lm1')}"]
    command += ["--out", "out", "--method", "Linear", "--num-points", "2", "--budget", "0", "-q", "--data"]
    assert run_app([*command, "mine.py:words"]) == 2
    assert "a loss beside labels that are the words themselves" in capsys.readouterr().err
    for data in (["mine.py:next"], ["mine.py:others"], ["mine.py:words", "--loss", "cross_entropy"]):
        assert run_app([*command, *data]) == 0, capsys.readouterr().err


def test_networks_of_words_give_the_same_bytes(monkeypatch, tmp_path):
    kind = "gpt2"
    folders = []
    for i, scale in enumerate((0.0, 1e-3)):
        net = copy.deepcopy(network(kind))
        g = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for p in net.parameters():
                p += scale * torch.randn(p.shape, generator=g)
        folders.append(str(tmp_path / f"n{i}"))
        net.save_pretrained(folders[-1])
    np.savez(tmp_path / "d.npz", x_train=inputs(kind).numpy(), y_train=np.arange(4) % 3)
    words = [*folders, "--model", f"hf:{folders[0]}", "--data", str(tmp_path / "d.npz"), "-q"]
    for name in ("check", "merge"):
        memory, disk = both(monkeypatch, tmp_path, [name, *words])
        assert memory == disk


def test_tied_weights_stay_one_when_they_are_merged():
    net = network("lm1")
    objective = im.Objective(net, "cross_entropy", (inputs("lm1"), inputs("lm1")), output="logits")
    a = objective.check(net.state_dict())
    b = {k: v * 1.001 for k, v in a.items()}
    kept = [OnDemand(p, lambda name, p=p: p[name].clone()) for p in (a, b)]
    found = im.merge(objective, kept, at=0.5).params
    assert found["lm_head.weight"] is found["transformer.wte.weight"]
    assert equal(found, im.merge(objective, [a, b], at=0.5).params)
