"""What a path was made with is found again in its file: loss, examples, penalty, precision, data."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus import pipeline as runs
from isthmus.cli import run_app
from isthmus.cli.asked import parse_penalty
from isthmus.errors import InputError

MODEL = "mlp:6-5-3"
DATA = "gaussians:N=40,d=6,classes=3"


def written(file, n=40, tests=12, seed=0, shift=0.0):
    """Regression data in a file."""
    r = np.random.default_rng(seed)
    x, w = r.normal(size=(n + tests, 6)), r.normal(size=(6, 3))
    y = 0.5 + 0.4 * np.tanh(x @ w) + shift  # a probability too, for cross entropy
    np.savez(file, x_train=x[:n], y_train=y[:n], x_test=x[n:], y_test=y[n:])
    return str(file)


@pytest.fixture
def ends(tmp_path, monkeypatch):
    """Two networks, and a folder to work in."""
    monkeypatch.chdir(tmp_path)
    written("reg.npz")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        im.save_params(im.models.by_name(MODEL).state_dict(), f"{name}.safetensors")
    return ["a.safetensors", "b.safetensors"]


def ok(capsys, *arguments):
    """Run a command that succeeds; what it printed."""
    capsys.readouterr()
    assert run_app(["--threads", "1", *arguments, "-q"]) == 0, capsys.readouterr().err
    return capsys.readouterr()


def refused(capsys, *arguments):
    """The one line of a command that ends with 2."""
    capsys.readouterr()
    assert run_app(["--threads", "1", *arguments, "-q"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    return printed.err


def connected(capsys, ends, *options, data="reg.npz", out="run"):
    """A line between the ends; the profile that ``connect`` measured."""
    model = ["--model", MODEL, "--data", data]
    ok(
        capsys,
        "connect",
        *ends,
        *model,
        "--method",
        "Linear",
        "--num-points",
        "4",
        "--budget",
        "100",
        "--out",
        out,
        *options,
    )
    return json.loads(open(f"{out}/profile.json").read())


def profiled(capsys, *options, path="run/path.safetensors"):
    """The profile of the path, and what was said on stderr."""
    printed = ok(capsys, "profile", path, "--num-points", "4", "--out", "again", *options)
    return json.loads(open("again/profile.json").read()), printed.err


PARTS = [
    ("--loss", "mse"),
    ("--loss", "mse", "--examples", "7"),
    ("--loss", "mse", "--penalty", "ridge:0.5"),
    ("--loss", "mse", "--penalty", "l1:0.125:0.weight,2.bias"),
    ("--loss", "mse", "--dtype", "float64"),
    ("--loss", "mse", "--examples", "9", "--penalty", "ridge:1e-3:0.bias", "--dtype", "float64"),
]


@pytest.mark.parametrize("parts", PARTS, ids=" ".join)
def test_every_part_of_the_objective_is_found_again(ends, capsys, parts):
    first = connected(capsys, ends, *parts)
    again, said = profiled(capsys, "--data", "reg.npz")
    assert said == ""
    assert again["loss"] == first["loss"]
    assert again["error"] == first["error"]
    assert again["test"] == first["test"]
    assert again["objective"] == first["objective"]
    assert first["objective"]["examples"] == len(
        range(int(parts[parts.index("--examples") + 1]) if "--examples" in parts else 40)
    )
    ok(capsys, "certify", "run/path.safetensors", "--data", "reg.npz", "--out", "again", "--budget", "100")
    proved = json.loads(open("again/certificate.json").read())
    assert max(first["loss"]) <= proved["bound"] * (1 + 1e-6)
    assert proved["bound"] == pytest.approx(json.loads(open("run/certificate.json").read())["bound"], rel=0.02)
    for file in ("run/certificate.json", "again/certificate.json"):
        printed = ok(capsys, "certify", "run/path.safetensors", "--data", "reg.npz", "--out", "x", "--verify", file)
        assert printed.out == "the certificate holds\n"


def test_the_penalty_is_part_of_what_every_command_measures(ends, capsys):
    """By hand: the mean squared error and half the squares of the weights."""
    first = connected(capsys, ends, "--loss", "mse", "--penalty", "ridge:0.5")
    params, data = im.load_params("a.safetensors"), im.data.load("reg.npz")
    module = im.models.by_name(MODEL)
    module.load_state_dict(params)
    with torch.no_grad():
        value = float((module(data.x_train) - data.y_train).square().mean())
    plus = 0.5 * sum(float(p.double().square().sum()) for p in params.values())
    assert first["loss"][0] == pytest.approx(value + plus, rel=1e-6)


def test_theory_sees_the_penalty(ends, capsys):
    """Proposition 2.2 is about linear networks with none, or ridge on all weights."""
    open("net.py", "w").write(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))\n"
    )
    for name in "ab":
        params = im.load_params(f"{name}.safetensors")
        im.save_params({k.replace("2.", "1."): v for k, v in params.items()}, f"{name}.safetensors")
    arguments = ["theory", *ends, "--model", "net.py:net", "--data", "reg.npz", "--loss", "mse"]
    for penalty, holds in (("none", True), ("ridge:0.5", True), ("l1:0.5", False)):
        out = ok(capsys, *arguments, "--theorem", "Proposition 2.2", "--penalty", penalty, "--json").out
        (row,) = [r for r in json.loads(out)["rows"] if r["premise"] == "penalty"]
        assert row["holds"] is holds


def test_what_is_typed_counts_and_is_said(ends, capsys):
    first = connected(capsys, ends, "--loss", "mse", "--examples", "9", "--penalty", "ridge:0.5")
    for typed, said in (
        (["--loss", "cross_entropy"], "was made with the loss 'mse'; here it is 'cross_entropy', as asked"),
        (["--examples", "40"], "was made with 9 examples; here they are the first 40, as asked"),
        (["--penalty", "none"], "was made with the penalty"),
        (["--penalty", "l1:0.5"], "was made with the penalty"),
        (["--dtype", "float64"], "was made with the dtype 'float32'; here it is 'float64', as asked"),
        (["--model", f"{MODEL}:tanh"], f"here it is '{MODEL}:tanh', as asked"),
    ):
        again, err = profiled(capsys, "--data", "reg.npz", *typed)
        assert said in err
        assert len(err.splitlines()) == 1
        assert again["loss"] != first["loss"]
    for typed in (["--loss", "mse"], ["--examples", "9"], ["--penalty", "ridge:0.5"], ["--dtype", "float32"]):
        again, err = profiled(capsys, "--data", "reg.npz", *typed)
        assert (err, again["loss"]) == ("", first["loss"])


def test_a_proof_about_another_objective_does_not_hold(ends, capsys):
    connected(capsys, ends, "--loss", "mse")
    arguments = ["certify", "run/path.safetensors", "--data", "reg.npz", "--out", "x", "-q"]
    assert run_app([*arguments, "--loss", "cross_entropy", "--verify", "run/certificate.json"]) == 1
    assert "it is about another objective, loss: 'mse', not 'cross_entropy'" in capsys.readouterr().out


def test_data_that_changed_are_found_out(ends, capsys):
    first = connected(capsys, ends, "--loss", "mse", "--examples", "9")
    path = "run/path.safetensors"
    changes = [(40, 12, 1, 0.0), (40, 12, 0, 1e-6), (8, 12, 0, 0.0), (40, 3, 0, 0.0)]
    for n, tests, seed, shift in changes:
        written("reg.npz", n, tests, seed, shift)
        for name in ("profile", "certify"):
            err = refused(capsys, name, path, "--data", "reg.npz", "--out", "again")
            assert "9 training and 12 test examples that reg.npz does not hold now" in err
            assert "--changed-data" in err
    again, err = profiled(capsys, "--data", "reg.npz", "--changed-data")
    assert "was made with other examples" in err
    written("reg.npz")
    written("other.npz", seed=2)
    again, err = profiled(capsys, "--data", "other.npz")
    assert "was made with other examples; here they are 'other.npz', as asked" in err
    assert again["loss"] != first["loss"]
    written("same.npz")  # the same numbers under another name
    again, err = profiled(capsys, "--data", "same.npz")
    assert (err, again["loss"]) == ("", first["loss"])
    held = dict(np.load("reg.npz"))
    x, y = (np.concatenate([held[k], held[k]]) for k in ("x_train", "y_train"))
    np.savez("more.npz", x_train=x, y_train=y, x_test=held["x_test"], y_test=held["y_test"])
    again, err = profiled(capsys, "--data", "more.npz")  # the first nine are the same
    assert (err, again["loss"]) == ("", first["loss"])


def test_the_test_examples_are_found_again(ends, capsys):
    """A part of them, and none, as sweeps measure."""
    data = im.data.load(DATA)
    assert data.x_test is not None
    assert data.y_test is not None
    train = im.Objective(im.models.by_name(MODEL), data=(data.x_train, data.y_train))
    a, b = (im.load_params(f) for f in ends)
    for tests in (5, 0, 40):
        test = train.on((data.x_test[:tests], data.y_test[:tests])) if tests else None
        about = {"model": MODEL, "data": DATA}
        runs.run(train, a, b, im.Linear(), "run", test=test, num_points=4, about=about)
        again, _ = profiled(capsys)
        assert again.get("test") == json.loads(open("run/profile.json").read()).get("test")
        assert (again.get("test") is None) == (tests == 0)


def test_paths_from_python_say_what_they_can(ends, capsys):
    def huber(outputs, y):
        return torch.nn.functional.huber_loss(outputs, y, reduction="none").mean(1)

    def cross_entropy(outputs, y):
        return outputs.square().sum(1)

    data = im.data.load("reg.npz")
    pair = (data.x_train[:9], data.y_train[:9])
    module, (a, b) = im.models.by_name(MODEL), [im.load_params(f) for f in ends]
    arguments = ["--model", MODEL, "--data", "reg.npz"]

    def saved(loss, **options):
        objective = im.Objective(module, loss, options.pop("data", pair), **options)
        connection = im.connect(objective, a, b)
        im.save(connection, "p.safetensors")
        return im.profile(objective, connection.path, 4)

    for loss in (huber, cross_entropy, lambda z, y: (z - y).square().mean(1)):
        saved(loss, convex=True)
        err = refused(capsys, "profile", "p.safetensors", *arguments, "--out", "x")
        assert "cannot be made from a file; give --loss cross_entropy or mse" in err
    measured = saved("mse", penalty=im.L1(0.25, ("0.weight",)))
    assert "--model NAME" in refused(capsys, "profile", "p.safetensors", "--out", "x")
    assert "--data NAME" in refused(capsys, "profile", "p.safetensors", "--model", MODEL, "--out", "x")
    again, err = profiled(capsys, *arguments, path="p.safetensors")
    assert again["loss"] == pytest.approx(measured.loss.tolist(), rel=1e-6)
    assert err == ""
    # not the first nine: the file says that they are others
    saved("mse", data=(data.x_train[9:18], data.y_train[9:18]))
    assert "9 training examples that reg.npz does not hold" in refused(
        capsys, "profile", "p.safetensors", *arguments, "--out", "x"
    )
    saved("mse", error=lambda z, y: (z - y).abs().max(1).values.clamp(max=1))
    assert "the error '<lambda>', which a file cannot hold" in profiled(capsys, *arguments, path="p.safetensors")[1]


def test_files_of_earlier_versions_say_less_and_suffice(ends, capsys):
    first = connected(capsys, ends, "--examples", "9", data=DATA)
    known = im.load_connection("run/path.safetensors")
    new = ("named", "error", "digest")
    objective = {k: v for k, v in known.stats["objective"].items() if k not in new}
    stats = {k: v for k, v in known.stats.items() if k != "test"} | {"objective": objective}
    im.save(replace(known, stats=stats), "old.safetensors")
    again, err = profiled(capsys, path="old.safetensors")
    assert (err, again["loss"]) == ("", first["loss"])
    del stats["data"]
    im.save(replace(known, stats=stats), "old.safetensors")
    err = refused(capsys, "profile", "old.safetensors", "--data", DATA, "--out", "x")
    assert "was made with 9 examples and does not say which of the 40" in err
    assert "--examples N" in err
    again, err = profiled(capsys, "--data", DATA, "--examples", "9", path="old.safetensors")
    assert again["loss"] == first["loss"]


def test_checkpoints_hand_on_what_they_were_trained_with(ends, capsys):
    for seed in "01":
        ok(capsys, "train", "--model", MODEL, "--data", "reg.npz", "--loss", "mse", "--examples", "9", "--epochs", "2",
           "--seed", seed, "--out", f"t{seed}.safetensors")  # fmt: skip
    ok(capsys, "connect", "t0.safetensors", "t1.safetensors", "--method", "Linear", "--num-points", "2", "--out", "run",
       "--data", "reg.npz")  # fmt: skip
    objective = json.loads(open("run/result.json").read())["objective"]
    assert (objective["loss"], objective["examples"]) == ("mse", 9)


def test_a_report_is_about_one_objective(ends, capsys):
    connected(capsys, ends, "--loss", "mse", "--examples", "9", "--penalty", "ridge:0.5")
    ok(capsys, "profile", "run/path.safetensors", "--data", "reg.npz", "--num-points", "9", "--out", "run")
    capsys.readouterr()
    assert run_app(["report", "run"]) == 0
    page = open("run/report.html").read()
    assert "<code>mse</code> on 9 training examples plus the penalty ridge of 0.5" in page
    ok(capsys, "profile", "run/path.safetensors", "--data", "reg.npz", "--out", "run", "--loss", "cross_entropy")
    assert run_app(["report", "run"]) == 2
    assert "profile.json: is about another objective than result.json (loss:" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["profile", "certificate", "path"])
def test_a_report_is_about_one_path(name, ends, capsys):
    connected(capsys, ends, "--loss", "mse")
    Path("run").rename("other")
    connected(capsys, ends[::-1], "--loss", "mse")
    file = "path.safetensors" if name == "path" else f"{name}.json"
    Path("other", file).replace(Path("run", file))
    assert run_app(["report", "run"]) == 2
    assert f"{file}: is " in (err := capsys.readouterr().err)
    assert "another path" in err


@pytest.mark.parametrize(
    "text", ["ridge", "ridge:", "ridge:x", "ridge:-1", "ridge:nan", "ridge:inf", "lasso:1", "", "os:abort"]
)
def test_penalties_that_are_none(text, ends, capsys):
    with pytest.raises(InputError, match="--penalty"):
        parse_penalty(text)
    err = refused(capsys, "connect", *ends, "--model", MODEL, "--data", "reg.npz", "--penalty", text, "--out", "x")
    assert "--penalty" in err


def test_a_penalty_on_tensors_that_are_not_there(ends, capsys):
    arguments = ["--model", MODEL, "--data", "reg.npz", "--loss", "mse", "--penalty", "l1:1:3.weight", "--out", "x"]
    assert "['3.weight']" in refused(capsys, "connect", *ends, *arguments)
