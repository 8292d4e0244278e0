"""Folders of Hugging Face and of PEFT from the command line: paths between them are measured as the slow loop does."""

import copy
import json
import shutil

import pytest
import torch

import isthmus as im
from isthmus.cli import run_app
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
    folder = shutil.copytree(saved("lm"), tmp_path / "lm")
    cut = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate("abcde")}, unk_token="e"))
    cut.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=cut, unk_token="e").save_pretrained(folder)
    (tmp_path / "a.txt").write_text("a b c a b c d a b c a b c")
    x, y = (
        torch.tensor([[0, 1, 2], [0, 1, 2], [3, 0, 1], [2, 0, 1]]),
        torch.tensor([[1, 2, 0], [1, 2, 3], [0, 1, 2], [0, 1, 2]]),
    )
    found = losses(folder, saved("lm", 1), folder, "a.txt", "--block", "3")
    asked = ["--model", f"hf:{folder}", "--data", "a.txt", "--block", "3", "--num-points", "3", "--out", "again", "-q"]
    assert run_app(["profile", "out/path.safetensors", *asked]) == 0
    assert json.loads(open("again/profile.json").read())["loss"] == pytest.approx(found, rel=1e-6)
    a, b = (network("lm", seed).state_dict() for seed in (0, 1))
    assert found == slowly("lm", a, b, mean(x, y))


def test_experts_that_do_not_run_in_float64_are_certified_as_connect_does(made, capsys):
    made("mixtral")
    torch.save(inputs("mixtral").roll(-1, 1), "y.pt")
    losses(saved("mixtral"), saved("mixtral", 1), saved("mixtral"), "mine.py:arrays")
    capsys.readouterr()
    command = ["certify", "out/path.safetensors", "--model", f"hf:{saved('mixtral')}", "--data", "mine.py:arrays"]
    assert run_app([*command, "--budget", "1", "--out", "out", "-q"]) == 1  # measured alone: the choice moves
    assert "topk" in capsys.readouterr().err
