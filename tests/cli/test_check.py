"""`isthmus check`: exit codes, files, the page, and data sets by name."""

import json

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.cli import run_app
from isthmus.pipeline import train
from tests.problems import perceptron, random_params

SPEC = ["--model", "mlp:64-6-10", "--examples", "60", "-q"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    module = perceptron([64, 6, 10])
    digits = im.data.load("digits").flat().floating().subset(60)
    module.load_state_dict(random_params(module, 1, torch.float32))
    base = train(module, (digits.x_train, digits.y_train), im.Recipe(steps=150, batch=60), seed=0).params
    order = [1, 2, 3, 4, 5, 0]
    networks = {"base": base, "far": base | {"2.weight": base["2.weight"][:, order]}}
    networks["far"] |= {k: base[k][order] for k in ("0.weight", "0.bias")}
    for i in (1, 2):
        step = random_params(module, 5 + i, torch.float32)
        networks[f"near{i}"] = {k: v + 1e-3 * step[k] for k, v in base.items()}
    for name, params in networks.items():
        im.save_params(params, folder / f"{name}.safetensors")
    g = np.random.default_rng(0)
    np.savez(folder / "noise.npz", x_train=g.normal(size=(30, 64)).astype("float32"), y_train=g.integers(0, 10, 30))
    return folder


def check(files, names, *options):
    return run_app(["check", *(str(files / f"{name}.safetensors") for name in names), *SPEC, *options])


def test_go_and_the_files_of_it(files, tmp_path, capsys):
    base = str(files / "base.safetensors")
    noise = f"noise={files / 'noise.npz'}"
    out = str(tmp_path / "go")
    assert check(files, ["near1", "near2"], "--base", base, "--data", "digits", "--data", noise, "--out", out) == 0
    said = capsys.readouterr().out
    assert said.startswith("May be averaged")
    assert "held-out data" in said
    assert "noise" in said
    assert {f.name for f in (tmp_path / "go").iterdir()} == {"check.json", "check.svg", "check.png", "report.html"}
    held = json.loads((tmp_path / "go/check.json").read_text())
    assert held["sets"] == ["training data", "held-out data", "noise"]
    assert held["vectors"]["norms"][0] > 0
    page = (tmp_path / "go/report.html").read_text()
    assert "May these two networks be averaged?" in page
    assert held["why"].split("(")[0] in page
    first = {f.name: f.read_bytes() for f in (tmp_path / "go").iterdir()}
    assert check(files, ["near1", "near2"], "--base", base, "--data", "digits", "--data", noise, "--out", out) == 0
    assert {f.name: f.read_bytes() for f in (tmp_path / "go").iterdir()} == first
    (tmp_path / "go/report.html").unlink()
    assert run_app(["report", str(tmp_path / "go")]) == 0
    assert (tmp_path / "go/report.html").read_bytes() == first["report.html"]


def test_no_go(files, tmp_path, capsys):
    out = str(tmp_path / "no")
    assert check(files, ["near1", "far", "near2"], "--out", out, "--curve", "--prove", "--level", "1.05x") == 1
    said = capsys.readouterr().out
    assert "May not be averaged" in said
    assert "proof: " in said
    page = (tmp_path / "no/report.html").read_text()
    for heading in ("Where the barrier sits", "Which examples carry it", "What else connects them", "The weights"):
        assert f"<h2>{heading}</h2>" in page
    assert "trained curve" in page
    assert check(files, ["near1", "far"], "--out", out, "--json") == 1
    assert json.loads(capsys.readouterr().out)["go"] is False


def test_misuse_is_two(files, tmp_path, capsys):
    out = str(tmp_path / "x")
    assert check(files, ["near1"], "--out", out) == 2
    assert "expected two or more" in capsys.readouterr().err
    assert (
        check(files, ["near1", "near2"], "--out", out, "--data", "digits", "--data", "digits", "--data", "digits") == 2
    )
    assert "another name, NAME=DATA" in capsys.readouterr().err
    assert check(files, ["near1", "near2"], "--out", out, "--level", "0.5x") == 2
    (tmp_path / "x").mkdir(exist_ok=True)
    (tmp_path / "x/check.json").write_text('{"format": 1}')
    assert run_app(["report", str(tmp_path / "x")]) == 2
    assert "does not hold a check of this version" in capsys.readouterr().err


def test_an_equals_sign_of_a_path_is_no_name_and_precisions_may_differ(files, tmp_path, capsys):
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    (folder / "noise.npz").write_bytes((files / "noise.npz").read_bytes())
    wide = {k: v.double() for k, v in im.load_params(files / "near2.safetensors").items()}
    im.save_params(wide, folder / "wide.safetensors")
    data = ["--data", str(folder / "noise.npz"), "--data", f"noise={folder / 'noise.npz'}"]
    near, out = str(files / "near1.safetensors"), str(tmp_path / "x")
    code = run_app(["check", near, str(folder / "wide.safetensors"), *SPEC[:2], "-q", *data, "--out", out])
    assert (code, capsys.readouterr().err) == (0, "")
    held = json.loads((tmp_path / "x/check.json").read_text())
    assert held["sets"] == ["training data", "noise"]
    assert [row["level"] for row in held["lines"]] == pytest.approx([held["lines"][0]["level"]] * 2)
