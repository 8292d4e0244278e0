"""Merged networks are written as their networks came."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

import isthmus as im
from isthmus.cli import run_app
from isthmus.errors import InputError
from isthmus.params import equal
from isthmus.report.card import mergekit_recipe
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


@pytest.mark.parametrize("place", ["source", "below", "base", "another", "link"])
def test_no_weights_are_written_over_but_those_of_a_merge(files, tmp_path, place, capsys):
    folder = tmp_path / "net"
    folder.mkdir()
    im.save_params(im.load_params(files[0]), folder / "model.safetensors")
    (tmp_path / "link").symlink_to(folder)
    sources = {"base": files, "another": files}.get(place, [str(folder), files[1]])
    out = {"source": folder / "model.safetensors", "below": folder / "new", "link": tmp_path / "link"}.get(
        place, folder
    )
    more = ["--base", str(folder), "--method", "task"] if place == "base" else []
    before = (folder / "model.safetensors").read_bytes()
    assert run_app(["merge", *sources, *SPEC, "--out", str(out), "--level", "1e6", *more]) == 2
    said = "a place without weights, or those of a merge" if place == "another" else "another place than that"
    assert said in capsys.readouterr().err
    assert [f.name for f in folder.iterdir()] == ["model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_merge_again_gives_the_same_bytes(files, tmp_path, capsys):
    for out in (tmp_path / "made", tmp_path / "made.pt"):
        command = ["merge", *files, *SPEC, "--out", str(out), "--level", "1e6"]
        made = [run_app(command), {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}]
        assert made == [0, made[1]]
        assert [run_app(command), {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}] == made
    assert run_app([*command, "--base", files[0]]) == 2
    assert "--base: expected none but for task, ties" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["made", "made.pt", "made.safetensors"])
def test_a_merge_that_was_killed_goes_on_with_the_same_command(files, tmp_path, ending, monkeypatch):
    place, real = tmp_path / "new", os.replace
    place.mkdir()
    command = ["merge", *files, *SPEC, "--out", str(place / ending), "--level", "1e6"]
    assert run_app(command) == 0
    whole = {f.relative_to(place): f.read_bytes() for f in place.rglob("*") if f.is_file()}
    renamed: list[int] = []
    lives: list[int] = []

    def killed(*given):
        if len(renamed) == lives[-1]:
            raise KeyboardInterrupt
        renamed.append(1)
        real(*given)

    for last in range(len(whole)):
        shutil.rmtree(place)
        place.mkdir()
        renamed.clear()
        lives.append(last)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            assert run_app(command) not in (0, 1, 2)
        assert run_app(command) == 0
        assert {f.relative_to(place): f.read_bytes() for f in place.rglob("*") if f.is_file()} == whole


def test_a_wrong_ending_is_refused_before_the_work(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("isthmus.cli.merge.opened_on", None)
    assert run_app(["merge", *files, *SPEC, "--out", str(tmp_path / "x.onnx")]) == 2
    assert "a folder, or a file .safetensors" in capsys.readouterr().err


def test_one_of_several_dictionaries_keeps_its_names(files, tmp_path):
    held = torch.load(files[0], weights_only=True)["state_dict"]
    torch.save({"one": held, "two": {k: v + 1 for k, v in held.items()}}, tmp_path / "two.pt")
    own = {k.removeprefix("model."): v.float() for k, v in held.items() if not k.endswith("extra")}
    im.save_like(own, tmp_path / "x.safetensors", tmp_path / "two.pt", key="one")
    assert equal(im.load_params(tmp_path / "x.safetensors"), held)
    im.save_like(own, tmp_path / "y.safetensors", tmp_path / "two.pt")  # which of them is not said
    assert equal(im.load_params(tmp_path / "y.safetensors"), own)
    keys = ["--key", "one", "--key", "state_dict", "--data", "again=digits", "--at", "0", "--level", "1e6"]
    out = tmp_path / "z.pt"
    assert run_app(["merge", str(tmp_path / "two.pt"), files[1], *SPEC, *keys, "--out", str(out)]) == 0
    assert torch.load(out, weights_only=True).keys() == held.keys()


def test_merged_adapters_are_written_as_their_base(tmp_path):
    pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from tests.hugging_face import adapter, saved

    made = {k: v + 1 for k, v in im.load_params(saved("gpt2")).items()}
    im.save_like(made, tmp_path / "out", adapter("lora"))
    kind = transformers.GPT2ForSequenceClassification
    found, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    own = found.state_dict()
    assert all(torch.equal(own[k], v) for k, v in made.items())


def test_a_name_that_could_be_two_is_no_name(tmp_path):
    own = {"a.w": torch.ones(2), "b.w": torch.zeros(2)}
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt")
    im.save_like(own, tmp_path / "new.safetensors", tmp_path / "old.pt")
    assert equal(im.load_params(tmp_path / "new.safetensors"), own)


def test_what_trainers_leave_is_not_copied_and_mergekit_gets_the_recipe(tmp_path):
    folders = [tmp_path / name for name in ("it's a", "b")]
    for folder in folders:
        folder.mkdir()
        im.save_params({"w": torch.ones(2)}, folder / "model.safetensors")
        for name in ("config.json", "tokenizer.json", "trainer_state.json", "x.index.json", "code.py"):
            (folder / name).write_text("{}")
    im.save_like({"w": torch.ones(2)}, tmp_path / "out", folders[0])
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"model.safetensors", "config.json", "tokenizer.json"}
    models, base = [{"w": torch.tensor(v)} for v in ([1.0, 2.0], [3.0, 5.0])], {"w": torch.zeros(2)}
    names = [str(folder) for folder in folders]

    def recipe(merged, base=None):
        return str(mergekit_recipe(merged, names, base))

    line = recipe(im.merge(None, models, at=0.25))
    quoted = names[0].replace("'", "''")
    assert f"merge_method: linear\nmodels:\n  - model: '{quoted}'\n" in line
    assert line.index("weight: 0.75") < line.index("weight: 0.25")
    assert "normalize: true" in line
    ties = recipe(im.merge(None, models, "ties", base=base, density=0.5), tmp_path / "base")
    assert all(text in ties for text in ("ties", "base_model", "density: 0.5", "lambda: 1.0", "normalize: true"))
    task = recipe(im.merge(None, models, "task", base=base, weights=[1, 2]), tmp_path / "base")
    assert all(text in task for text in ("task_arithmetic", "weight: 2.0", "normalize: false"))
    slerp = recipe(im.merge(None, models, "slerp", 0.25))
    assert all(text in slerp for text in ("slerp", f"base_model: '{quoted}'", "t: 0.25"))
    again = replace(im.merge(None, models), bn="recompute")
    assert mergekit_recipe(again, names, None) is None
    assert mergekit_recipe(im.merge(None, models), [names[0], str(tmp_path)], None) is None


def test_names_of_another_version_are_the_networks_own(tmp_path):
    """Where names in the file cannot be told, the network's own are written."""
    own = {"fc.weight": torch.ones(2, 2), "fc.bias": torch.zeros(2)}
    torch.save({"old": torch.ones(2, 2)}, tmp_path / "old.pt")
    im.save_like(own, tmp_path / "new.safetensors", tmp_path / "old.pt")
    assert equal(im.load_params(tmp_path / "new.safetensors"), own)


@pytest.mark.parametrize("ending", ["x.safetensors", "x.pt"])
def test_what_is_measured_is_what_is_written(files, tmp_path, ending):
    out = tmp_path / ending
    command = ["merge", *files, *SPEC, "--out", str(out), "--at", "0.37", "--level", "1e6"]
    assert run_app(command) == 0
    told = json.loads((tmp_path / "x.merge.json").read_text())["worth"]["training data"]
    held = {k.removeprefix("model."): v.float() for k, v in im.load_params(out).items() if "extra" not in k}
    data = im.data.load("digits").flat()
    loss = torch.nn.functional.cross_entropy(
        torch.func.functional_call(perceptron([64, 6, 10]), held, data.x_train[:40]), data.y_train[:40]
    )
    assert told["loss"] == pytest.approx(float(loss), rel=1e-6)


def test_running_averages_beside_the_weights_are_neither_merged_nor_measured(tmp_path):
    module, files = perceptron([64, 6, 10]), []
    for i in (1, 2):
        own = random_params(module, i, torch.float32)
        held = {f"net.{k}": v.bfloat16() for k, v in own.items()} | {f"ema.{k}": v + 1 for k, v in own.items()}
        torch.save(held, tmp_path / f"{i}.pt")
        torch.save({k: v for k, v in held.items() if k.startswith("net")}, tmp_path / f"bare{i}.pt")
        files.append(held)
    losses = []
    for name in ("", "bare"):
        out = tmp_path / f"{name}out.pt"
        command = ["merge", *(str(tmp_path / f"{name}{i}.pt") for i in (1, 2)), *SPEC, "--out", str(out)]
        assert run_app([*command, "--at", "0.4", "--level", "1e6"]) == 0
        losses.append(json.loads((tmp_path / f"{name}out.merge.json").read_text())["worth"]["training data"]["loss"])
    assert losses[0] == losses[1]
    made, bare = (torch.load(tmp_path / f"{name}out.pt", weights_only=True) for name in ("", "bare"))
    assert all(v.equal(made[k]) for k, v in bare.items())
    assert all(made[k].equal(v) for k, v in files[0].items() if k.startswith("ema"))
