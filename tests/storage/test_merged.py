"""Merged networks are written as their networks came."""

import json

import pytest
import torch

import isthmus as im
from isthmus.cli import run_app
from isthmus.errors import InputError
from isthmus.params import equal
from tests.problems import perceptron, random_params


@pytest.fixture
def files(tmp_path):
    """Two networks of one start in half precision, under a prefix, beside a tensor that the network has not."""
    module = perceptron([64, 6, 10])
    for i in (1, 2):
        own = {f"model.{k}": v.to(torch.bfloat16) for k, v in random_params(module, i, torch.float32).items()}
        torch.save({"state_dict": own | {"model.extra": torch.tensor([7.0])}}, tmp_path / f"{i}.pt")
    return [str(tmp_path / f"{i}.pt") for i in (1, 2)]


SPEC = ["--model", "mlp:64-6-10", "--data", "digits", "--examples", "40", "-q"]


@pytest.mark.parametrize("ending", ["x.safetensors", "x.pt", "folder"])
def test_names_and_precisions_are_those_of_the_first(files, tmp_path, ending, capsys):
    out = tmp_path / "made" / ending
    code = run_app(["merge", *files, *SPEC, "--out", str(out), "--at", "0.5", "--level", "1e6"])
    assert code == 0
    assert "error" not in capsys.readouterr().err
    held = torch.load(files[0], weights_only=True)["state_dict"]
    other = torch.load(files[1], weights_only=True)["state_dict"]
    made = im.load_params(out)
    if ending == "x.pt":
        made = torch.load(out, weights_only=True)
    bare = {k.removeprefix("model."): v for k, v in held.items()}
    made = {k.removeprefix("model."): v for k, v in made.items()}
    assert made.keys() == bare.keys()
    assert all(v.dtype == bare[k].dtype for k, v in made.items())
    assert made["extra"].tolist() == [7]
    for k in ("0.weight", "2.bias"):
        want = (held[f"model.{k}"].float() + other[f"model.{k}"].float()) / 2
        torch.testing.assert_close(made[k].float(), want, rtol=0.01, atol=0)
    beside = out / "merge.json" if ending == "folder" else out.parent / "x.merge.json"
    document = json.loads(beside.read_text())
    assert document["at"] == 0.5
    assert document["command"].startswith("isthmus merge")
    card = beside.with_suffix(".md").read_text()
    assert all(file in card for file in files)
    assert f"{document['worth']['training data']['loss']:.4g}" in card


def test_a_network_that_is_worse_is_not_written(files, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    command = ["merge", *files, *SPEC, "--out", str(out), "--at", "0.5", "--level", "0.001"]
    assert run_app(command) == 1
    assert "nothing written; --anyway writes it" in capsys.readouterr().err
    assert not out.exists()
    assert run_app([*command, "--anyway", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert out.exists()


def test_nothing_of_the_user_is_written_over(files, tmp_path, capsys):
    before = [open(file, "rb").read() for file in files]
    for out in (files[0], str(tmp_path)):
        assert run_app(["merge", *files, *SPEC, "--out", out]) == 2
        assert "expected another place than that of the checkpoints" in capsys.readouterr().err
    assert [open(file, "rb").read() for file in files] == before
    with pytest.raises(InputError, match=r"a folder, or a file \.safetensors"):
        im.save_like(im.load_params(files[0]), tmp_path / "x.onnx", files[0])


def test_names_of_another_version_are_the_networks_own(tmp_path):
    """Where names in the file cannot be told, the network's own are written."""
    own = {"fc.weight": torch.ones(2, 2), "fc.bias": torch.zeros(2)}
    torch.save({"old": torch.ones(2, 2)}, tmp_path / "old.pt")
    im.save_like(own, tmp_path / "new.safetensors", tmp_path / "old.pt")
    assert equal(im.load_params(tmp_path / "new.safetensors"), own)
