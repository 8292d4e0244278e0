"""`isthmus align` and `connect --align`: the files, what is printed, and another checkpoint of the same run."""

import json
import sys

import pytest
import torch

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
    assert "straight line" in said
    assert (tmp_path / "b.alignment.png").read_bytes()[1:4] == b"PNG"
    made, b = im.load_params(out), im.load_params(files[1])
    assert not equal(made, b)
    assert all(equal({k: v.sort(0).values}, {k: b[k].sort(0).values}) for k, v in made.items() if k.endswith("0.bias"))
    stored = str(tmp_path / "b.alignment.safetensors")
    assert (
        run_app(
            ["align", files[0], files[2], *SPEC, "--by", stored, "--out", later, "--num-points", "0", "--json", "-q"]
        )
        == 0
    )
    shown = json.loads(capsys.readouterr().out)
    assert shown["function_error"] <= 1e-12
    assert shown["before"] is None
    c, moved = im.load_params(files[2]), im.load_params(later)
    bias = next(k for k, v in c.items() if v.shape == (8,))
    order = [b[bias].tolist().index(v) for v in made[bias].tolist()]
    assert moved[bias].tolist() == c[bias][order].tolist()
    assert run_app(["align", *files[:2], *SPEC, "--by", stored, "--option", "ties=0", "--out", later, "-q"]) == 2
    assert "none with a stored alignment" in capsys.readouterr().err
    assert run_app(["align", *files[:2], *SPEC, "--by", "luck", "--out", later, "-q"]) == 2
    assert "expected one of activations, weights" in capsys.readouterr().err


def test_several_networks_their_average_and_the_page(files, tmp_path, capsys, monkeypatch):
    command = ["align", *files, *SPEC, "--num-points", "5", "-q"]
    assert run_app([*command, "--out", str(tmp_path / "all")]) == 0
    said = capsys.readouterr().out
    names = {f"{n}.safetensors" for n in ("1", "2", "1.alignment", "2.alignment", "average")}
    pictures = {"alignment.json", "alignment.svg", "alignment.png", "report.html"}
    assert {f.name for f in (tmp_path / "all").iterdir()} == names | pictures
    mean, *several = (im.load_params(tmp_path / "all" / f"{n}.safetensors") for n in ("average", "1", "2"))
    for k, v in im.load_params(files[0]).items():
        torch.testing.assert_close(mean[k], (v + several[0][k] + several[1][k]) / 3)
    held = json.loads((tmp_path / "all/alignment.json").read_text())
    assert [f"{held['names'][row['a']]} - {held['names'][row['b']]}" in said for row in held["after"]["lines"]] == [
        True
    ] * 3
    page = (tmp_path / "all/report.html").read_text()
    assert f"{held['after']['max']:.4g}" in page
    assert page.count("<svg") == 1
    (tmp_path / "all/report.html").unlink()
    assert run_app(["report", str(tmp_path / "all")]) == 0
    assert (tmp_path / "all/report.html").read_text() == page
    (tmp_path / "all/alignment.json").write_text('{"format": 1, "alignments": []}')
    assert run_app(["report", str(tmp_path / "all")]) == 2
    assert "alignment.json: does not hold an alignment" in capsys.readouterr().err

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_app([*command[:3], *SPEC, "--num-points", "2", "-q", "--out", str(tmp_path / "bare.safetensors")]) == 0
    assert "no picture" in capsys.readouterr().err
    assert run_app([*command, "--out", str(tmp_path / "one.safetensors")]) == 2
    assert "a folder, for more than two networks" in capsys.readouterr().err
    assert run_app([*command, "--out", files[0].removesuffix("/0.safetensors")]) == 2
    assert "another folder than that of the checkpoints" in capsys.readouterr().err
    assert run_app(["align", files[0], *SPEC, "--out", str(tmp_path / "one")]) == 2
    assert "checkpoints: expected two or more" in capsys.readouterr().err


def test_any_method_behind_an_alignment(files, tmp_path, capsys):
    command = ["connect", *files[:2], *SPEC, "--method", "Linear", "--num-points", "5", "--budget", "0", "-q"]
    assert run_app([*command, "--align", "weights", "--out", str(tmp_path)]) == 0
    found = im.load_connection(tmp_path / "path.safetensors")
    assert found.stats["method"]["name"] == "Aligned"
    assert found.stats["method"]["matching"]["name"] == "WeightMatching"
    assert sorted(len(v) for v in found.tensors.values()) == [8]
    assert "Aligned" in capsys.readouterr().out
    assert run_app(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "The alignment: Aligned" in page
    assert "<!-- what moved, by layer -->" in page
    assert f"<td>{found.stats['alignment']['distance'][1]:.4g}</td>" in page
