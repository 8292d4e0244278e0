"""Data of the user's own code, and texts, on the command line."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from isthmus.cli import run_app
from isthmus.cli.given import OwnData, data_of
from isthmus.cli.options import Asked
from isthmus.models.user_code import from_code

CODE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
g = torch.Generator().manual_seed(0)
x, y = torch.randn(40, 5, generator=g), torch.randint(0, 3, (40,), generator=g)
loader = DataLoader(TensorDataset(x[:30], y[:30]), batch_size=7)
def net(): return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
def arrays(): return x[:30], y[:30]
def pair(): return loader, (x[30:], y[30:])
def smooth(): return {"data": (x[:30], y[:30]), "loss": nn.CrossEntropyLoss(label_smoothing=0.1)}
def wrong(): return {"data": (x, y), "los": 1}
def fails(): raise SystemExit("no")
def conv(): return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
"""


@pytest.fixture
def ends(tmp_path, monkeypatch):
    """Two networks in wrappers, and what makes their data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        state = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict()
        torch.save({f"module._orig_mod.model.{k}": v for k, v in state.items()}, f"{name}.pt")


def connect(data, *more):
    command = ["connect", "a.pt", "b.pt", "--model", "mine.py:net", "--data", f"mine.py:{data}", "--method", "Linear"]
    return run_app([*command, "--num-points", "3", "--budget", "0", "--out", data, "-q", *more])


def test_a_network_that_takes_images_is_not_tried_on_rows_for_another_mistake(ends, capsys):
    made = ["train", "--model", "mine.py:conv", "--data", "digits", "--examples", "9", "--out", "c.safetensors", "-q"]
    assert run_app([*made, "--class-axis", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: class_axis: expected")
    assert run_app([*made, "--epochs", "1"]) == 0


def test_every_form_of_data_gives_the_same_loss(ends, capsys):
    found = []
    for data in ("arrays", "pair", "loader"):
        assert connect(data, "--batch", "4") == 0, capsys.readouterr().err
        found.append(json.loads(open(f"{data}/result.json").read()))
    assert [row["max_loss"] for row in found] == pytest.approx([found[0]["max_loss"]] * 3, rel=1e-6)
    assert [row.get("test_loss_max") is not None for row in found] == [False, True, False]
    assert connect("smooth") == 0
    assert json.loads(open("smooth/result.json").read())["max_loss"] != found[0]["max_loss"]
    assert connect("arrays", "--examples", "10") == 0
    assert json.loads(open("arrays/result.json").read())["objective"]["examples"] == 10


def test_training_takes_every_form_of_data(ends, capsys):
    found = {}
    for data in ("arrays", "pair", "smooth"):
        command = ["train", "--model", "mine.py:net", "--data", f"mine.py:{data}", "--out", f"{data}.safetensors"]
        assert run_app([*command, "--epochs", "2", "-q", "--json"]) == 0, capsys.readouterr().err
        found[data] = float(json.loads(capsys.readouterr().out)["train_loss"])
    assert found["arrays"] == pytest.approx(found["pair"], rel=1e-6)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    net.load_state_dict(load_file("smooth.safetensors"))
    given = data_of("mine.py:arrays", "mine.py:net", Asked())
    assert isinstance(given, OwnData)
    x, y = given.train
    assert found["smooth"] == pytest.approx(
        float(nn.CrossEntropyLoss(label_smoothing=0.1)(net(x), y).detach()), rel=1e-6
    )


def test_a_path_knows_its_data_again(ends, capsys):
    assert connect("pair") == 0
    asked = ["profile", "pair/path.safetensors", "--num-points", "3", "--out", "again", "-q"]
    capsys.readouterr()
    assert run_app(asked) == 2
    line = capsys.readouterr().err.strip().partition("if you trust it: isthmus ")[2]
    assert run_app(line.split()) == 0
    assert not capsys.readouterr().err
    assert run_app([*asked, "--model", "mine.py:net", "--data", "mine.py:arrays"]) == 0
    assert "was made with other examples" in capsys.readouterr().err
    text = open("mine.py").read().replace("manual_seed(0)", "manual_seed(1)")
    open("mine.py", "w").write(text)
    assert run_app(line.split()) == 2
    assert (
        "was made with 30 training and 10 test examples that mine.py:pair does not give now" in capsys.readouterr().err
    )


def test_a_file_is_read_as_it_is_and_nothing_is_written_beside_it(ends, monkeypatch):
    """A text of as many letters in the same second: to Python it is the file that it compiled before."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = Path("own.py")
    for number in (3, 4):
        file.write_text(f"import beside\nfrom torch import nn\ndef net(): return nn.Linear(2, {number})\n")
        Path("beside.py").write_text("")
        os.utime(file, (1e9, 1e9))
        assert from_code("own.py:net", ()).out_features == number
    assert not Path("__pycache__").exists()
    assert not sys.dont_write_bytecode


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("wrong", "expected a dictionary with 'data', and perhaps 'test', 'loss'"),
        ("fails", "expected fails() to build the data without arguments, got SystemExit"),
        ("nothing", "a name that mine.py defines"),
        ("", "write --data mine.py:make"),
    ],
)
def test_data_that_cannot_be_used_are_one_line(ends, capsys, data, message):
    capsys.readouterr()
    assert connect(data or "no", *([] if data else ["--data", "mine.py"])) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
