"""Checkpoints of other programs on the command line: names are matched to the network, ``--key`` selects."""

import json

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.cli import run_app
from isthmus.models import by_name
from isthmus.params import equal

MODEL = "mlp:64-6-10"


def network(seed):
    torch.manual_seed(seed)
    return by_name(MODEL)


def before(prefix, state):
    return {prefix + k: v for k, v in state.items()}


A, B = (dict(network(seed).state_dict()) for seed in (0, 1))
LAYOUTS = {
    "AveragedModel": (lambda s: before("module.", s) | {"n_averaged": torch.tensor(3)}, "left unused: n_averaged"),
    "lightning": (
        lambda s: {"state_dict": before("model._orig_mod.", s) | {"criterion.weight": torch.ones(10)}},
        "left unused: criterion.weight",
    ),
    "pytorch-cifar": (lambda s: {"net": before("module.", s), "acc": np.float64(91)}, ""),
    "ema alone": (lambda s: {"ema": s}, ""),
    "deepspeed": (lambda s: {"module": s}, ""),
    "timm": (lambda s: {"state_dict": s, "state_dict_ema": B}, "'state_dict_ema' (--key 'state_dict_ema' takes it)"),
    "opacus": (lambda s: before("_module.", s), ""),
    "unknown": (lambda s: {"policy": before("body.", s)}, ""),
}


def connect(a, b, folder, *more):
    arguments = ["connect", str(a), str(b), "--out", str(folder), "--method", "linear", "--quiet", "--num-points", "3"]
    return run_app([*arguments, "--examples", "50", "--budget", "0", *more])


@pytest.mark.parametrize("name", LAYOUTS)
def test_connect_reads_every_layout_and_names_what_it_leaves(tmp_path, capsys, name):
    wrap, unused = LAYOUTS[name]
    torch.save(wrap(A), tmp_path / "a.pt")
    im.save_params(B, tmp_path / "b.safetensors")
    assert connect(tmp_path / "a.pt", tmp_path / "b.safetensors", tmp_path / "out", "--model", MODEL) == 0
    path = im.load_connection(tmp_path / "out/path.safetensors").path
    assert equal(path.start, A)
    assert equal(path.end, B)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == bool(unused)
    assert all(unused in note for note in notes)


def test_the_sizes_of_an_mlp_are_read_from_wrapped_weights(tmp_path):
    torch.save({"net": before("module.", A)}, tmp_path / "a.pt")
    torch.save({"state_dict": B}, tmp_path / "b.pt")
    assert connect(tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "out") == 0
    assert equal(im.load_connection(tmp_path / "out/path.safetensors").path.end, B)


def test_key_selects_for_both_files_or_for_each(tmp_path, capsys):
    file = tmp_path / "a.pt"
    torch.save({"state_dict": A, "state_dict_ema": B}, file)
    assert connect(file, file, tmp_path / "each", "--key", "state_dict", "--key", "state_dict_ema") == 0
    assert "note:" not in capsys.readouterr().err
    path = im.load_connection(tmp_path / "each/path.safetensors").path
    assert equal(path.start, A)
    assert equal(path.end, B)
    assert json.loads((tmp_path / "each/result.json").read_text())["key"] == ["state_dict", "state_dict_ema"]
    assert connect(file, file, tmp_path / "both", "--key", "state_dict_ema") == 0
    assert equal(im.load_connection(tmp_path / "both/path.safetensors").path.start, B)


@pytest.mark.parametrize(
    ("saved", "more", "message"),
    [
        ({"state_dict": A}, ["--key", "ema"], "holds no tensors under 'ema'; it has 'state_dict'"),
        ({"model": A, "net": B}, [], "several state dicts: model, net; write --key 'model' or --key 'net'"),
        ({"g": A, "h": B}, [], "several state dicts: g, h; write --key 'g' or --key 'h'"),
        ({"state_dict": A}, ["--key", "a", "--key", "b", "--key", "c"], "--key: expected one name, or 2"),
        ({k: v for k, v in A.items() if k[0] == "0"}, [], "'2.weight' is missing"),
        ({"w": torch.ones(2)}, [], "'0.weight' is missing; it has w"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_ends_in_one_line(tmp_path, capsys, saved, more, message):
    torch.save(saved, tmp_path / "a.pt")
    assert connect(tmp_path / "a.pt", tmp_path / "a.pt", tmp_path / "out", "--model", MODEL, *more) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert message in printed[0]
    assert not (tmp_path / "out").exists()


def test_stability_and_theory_take_a_key(tmp_path, capsys):
    torch.save({"state_dict": A, "ema": B}, tmp_path / "a.pt")
    im.save_params(B, tmp_path / "b.safetensors")
    found = []
    for arguments in ([tmp_path / "a.pt", "--key", "ema"], [tmp_path / "b.safetensors"]):
        common = ["--model", MODEL, "--examples", "50", "--masks", "2", "--quiet"]
        where = ["--out", str(tmp_path / arguments[0].name.replace(".", "-"))]
        assert run_app(["stability", *map(str, arguments), *common, *where]) == 0
        found.append(json.loads((tmp_path / where[1] / "stability.json").read_text())["dropout"])
    assert found[0] == found[1]
    file = str(tmp_path / "a.pt")
    few = ["--model", MODEL, "--examples", "50", "--masks", "2", "--draws", "1", "--steps", "1", "--quiet"]
    assert (
        run_app(["theory", file, file, "--key", "state_dict", "--key", "ema", *few, "--theorem", "Corollary 4.2"]) == 0
    )


def test_other_peoples_checkpoints_and_models(tmp_path):
    """A .pt under "state_dict" with the module. prefix, and a model from a file."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 10))\n"
    )
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 9), torch.nn.Tanh(), torch.nn.Linear(9, 10))
    for name, factor in (("a", 1.0), ("b", -0.5)):
        state = {f"module.{k}": v * factor for k, v in module.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / f"{name}.pt")
    code = run_app(
        ["connect", str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), "--model", f"{tmp_path / 'net.py'}:make"]
        + ["--method", "Dropout", "--option", "masks=1", "--out", str(tmp_path / "res"), "--quiet", "--num-points", "3"]
    )
    assert code == 0
    assert json.loads((tmp_path / "res/result.json").read_text())["proved"]


def test_the_label_that_counts_nowhere_is_stored(tmp_path, capsys):
    r = np.random.default_rng(0)
    x = r.normal(size=(30, 3)).astype("f4")
    y = (x[:, 0] > 0).astype("i8")
    y[:10] = 4
    np.savez(tmp_path / "d.npz", x=x, y=y)
    data, ends = ["--data", str(tmp_path / "d.npz")], [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    for i, end in enumerate(ends):
        train = ["train", "--model", "mlp:3-4-5", *data, "--ignore-index", "4", "--epochs", "2", "--seed", str(i)]
        assert run_app([*train, "--out", end, "-q"]) == 0
    capsys.readouterr()

    def found(*words):
        line = ["connect", *ends, *data, "--method", "Linear", "--num-points", "3", "-q", "--json"]
        assert run_app([*line, *words, "--out", str(tmp_path / "-".join(["out", *words]))]) == 0
        return json.loads(capsys.readouterr().out)

    told = [found(), found("--ignore-index", "4"), found("--ignore-index", "3")]
    assert told[0]["objective"]["ignore_index"] == 4
    assert told[0]["max_loss"] == told[1]["max_loss"] != told[2]["max_loss"]
    merged = str(tmp_path / "merged.safetensors")
    assert run_app(["merge", *ends, *data, "--method", "average", "--anyway", "--out", merged, "-q"]) == 0
    capsys.readouterr()
    ends[1] = merged  # it says what both said
    assert found("--seed", "1")["objective"]["ignore_index"] == 4
    ends[1] = str(tmp_path / "1.safetensors")
    state = im.load_params(ends[1])
    im.save_params(state, ends[1], {"model": "mlp:3-4-5", "ignore_index": "[]"})
    im.save_params(im.load_params(ends[0]), ends[0], {"model": "mlp:3-4-5", "ignore_index": "[]"})
    assert run_app(["check", *ends, *data, "--out", str(tmp_path / "check"), "-q"]) == 2
    assert "says that ignore_index is '[]', not a whole number" in capsys.readouterr().err
