"""`isthmus plane` with a path alone, and what is left where nothing was made."""

import json
from dataclasses import replace

import pytest

import isthmus as im
from isthmus.cli import run_app
from tests.problems import perceptron, saved

SPEC = ["--model", "mlp:64-6-10", "--data", "digits", "--examples", "20", "-q"]


@pytest.fixture
def files(tmp_path):
    return saved(perceptron([64, 6, 10]), tmp_path, "abc")


def test_a_path_alone_spans_the_plane_that_the_library_takes(files, tmp_path):
    out = str(tmp_path / "line")
    assert run_app(["connect", *files[:2], *SPEC, "--method", "Linear", "--num-points", "3", "--out", out]) == 0
    line = im.load_connection(f"{out}/path.safetensors")
    a, b, c = (im.load_params(file) for file in files)
    bent = replace(line, path=im.Path((im.Curve((a, c, b)),)))
    im.save(bent, tmp_path / "bent.safetensors")
    assert run_app(["plane", *files[:2], *SPEC, "--path", str(tmp_path / "bent.safetensors"), "--points", "3",
                    "--out", str(tmp_path / "plane")]) == 0  # fmt: skip
    held = json.loads((tmp_path / "plane/plane.json").read_text())
    digits = im.data.load("digits").flat().floating().subset(20)
    objective = im.Objective(perceptron([64, 6, 10]).float(), data=(digits.x_train.float(), digits.y_train))
    alone = im.plane(objective, bent, points=3).to_dict()
    assert (held["x"], held["y"]) == (alone["x"], alone["y"])
    assert max(held["off"]) < 1e-4  # a curve of three control points lies in the plane through them


@pytest.mark.parametrize(
    "refused",
    [
        ("connect", "a", "b", "--method", "DeepLinear"),
        ("plane", "a", "b", "b"),
        ("theory", "a", "b", "--theorem", "9.9"),
        ("align", "a", "b", "--by", "nothing"),
        ("align", "a", "b", "--bn", "nothing"),
        ("train", "--lr", "-1"),
        ("certify", "path", "--gap", "0"),
        ("profile", "path", "--bn", "nothing", "--npz", "new/curve.npz"),
        ("ensemble", "path", "--bn", "nothing"),
        ("stability", "a", "--keep", "2"),
        ("report", "path"),
    ],
)
def test_a_command_that_fails_leaves_no_folder(files, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    im.save(im.Path.through([im.load_params(file) for file in files[:2]]), "path.safetensors")
    places = {"a": files[0], "b": files[1], "path": "path.safetensors"}
    out = tmp_path / "new" / ("out.safetensors" if refused[0] == "train" else "out")
    words = [*(places.get(word, word) for word in refused), "--out", str(out)]
    words += [] if refused[0] == "report" else [*SPEC, "-q"]
    assert run_app(words) == 2
    assert not out.parent.exists()
    out.mkdir(parents=True)
    assert run_app(words) == 2
    assert out.exists()  # what was there stays
