"""`isthmus align` and `connect --align`: the files, what is printed, and another checkpoint of the same run."""

import json

import pytest

import isthmus as im
from isthmus.cli import run_app
from isthmus.params import equal
from tests.problems import random_params

SPEC = ["--model", "mlp:64-8-10", "--data", "digits", "--examples", "40"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    module = im.models.by_name("mlp:64-8-10", inputs=(64,), outputs=10)
    for seed in range(3):
        im.save_params(
            random_params(module, seed, im.data.load("digits").x_train.dtype), folder / f"{seed}.safetensors"
        )
    return [str(folder / f"{seed}.safetensors") for seed in range(3)]


def test_units_are_renumbered_and_the_order_is_made_again(files, tmp_path, capsys):
    out, later = (str(tmp_path / f"{name}.safetensors") for name in ("b", "c"))
    assert run_app(["align", *files[:2], *SPEC, "--out", out, "-q"]) == 0
    said = capsys.readouterr().out
    assert "outputs changed by" in said
    made, b = im.load_params(out), im.load_params(files[1])
    assert not equal(made, b)
    assert all(equal({k: v.sort(0).values}, {k: b[k].sort(0).values}) for k, v in made.items() if k.endswith("0.bias"))
    stored = str(tmp_path / "b.alignment.safetensors")
    assert run_app(["align", files[0], files[2], *SPEC, "--by", stored, "--out", later, "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["function_error"] <= 1e-12
    c, moved = im.load_params(files[2]), im.load_params(later)
    bias = next(k for k, v in c.items() if v.shape == (8,))
    order = [b[bias].tolist().index(v) for v in made[bias].tolist()]
    assert moved[bias].tolist() == c[bias][order].tolist()
    assert run_app(["align", *files[:2], *SPEC, "--by", stored, "--option", "ties=0", "--out", later, "-q"]) == 2
    assert "none with a stored alignment" in capsys.readouterr().err
    assert run_app(["align", *files[:2], *SPEC, "--by", "luck", "--out", later, "-q"]) == 2
    assert "expected one of activations, weights" in capsys.readouterr().err


def test_any_method_behind_an_alignment(files, tmp_path, capsys):
    command = ["connect", *files[:2], *SPEC, "--method", "Linear", "--num-points", "5", "--budget", "0", "-q"]
    assert run_app([*command, "--align", "weights", "--out", str(tmp_path)]) == 0
    found = im.load_connection(tmp_path / "path.safetensors")
    assert found.stats["method"]["name"] == "Aligned"
    assert found.stats["method"]["matching"]["name"] == "WeightMatching"
    assert sorted(len(v) for v in found.tensors.values()) == [8]
    assert "Aligned" in capsys.readouterr().out
