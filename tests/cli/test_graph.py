"""`isthmus graph`: files, what is printed, going on, and the page."""

import json

import pytest
import torch

import isthmus as im
from isthmus.cli import run_app

SPEC = ["--model", "mlp:64-8-10", "--data", "digits", "--examples", "40", "--loss", "cross_entropy"]
QUICK = ["--option", "steps=6", "--option", "batch=8", "--num-points", "5", "-q"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    for i in range(3):
        torch.manual_seed(i)
        net = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
        module = im.models.by_name("mlp:64-8-10", inputs=(64,), outputs=10)
        held = dict(zip(module.state_dict(), net.state_dict().values(), strict=True))
        im.save_params(held, folder / f"net{i}.safetensors", {})
    return [str(folder / f"net{i}.safetensors") for i in range(3)]


def test_a_graph_from_files_with_its_page(files, tmp_path, capsys):
    command = ["graph", *files, *SPEC, *QUICK, "--out", str(tmp_path)]
    assert run_app(command) == 0
    said = capsys.readouterr().out
    graph = im.load_graph(tmp_path)
    assert [m.name for m in graph.minima] == ["net0", "net1", "net2"]
    assert graph.minima[0].test_error is not None
    assert graph.method["name"] == "Bezier"
    assert f"{len(graph.edges)} of 3 pairs tried" in said
    assert graph.stop in said
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "net2" in page
    assert f"{graph.bottleneck:.4g}" in page
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    assert run_app([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "graph.json").read_text())
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
    (tmp_path / "report.html").unlink()
    assert run_app(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text() == page


def test_all_pairs_and_what_is_refused(files, tmp_path, capsys):
    command = ["graph", *files, *SPEC, *QUICK, "--method", "Linear", "--out", str(tmp_path)]
    command = [v for v in command if v not in ("--option", "steps=6", "batch=8")]
    assert run_app([*command, "--goal", "all", "--align", "activations"]) == 0
    assert "all pairs were tried" in capsys.readouterr().out
    assert im.load_graph(tmp_path).aligned["matching"]["name"] == "ActivationMatching"
    assert "in one numbering by ActivationMatching" in (tmp_path / "report.html").read_text()
    assert run_app([*command, "--goal", "most"]) == 2
    assert "goal: expected 'tree' or 'all'" in capsys.readouterr().err
    assert run_app(["graph", files[0], *SPEC, "-q", "--out", str(tmp_path)]) == 2
    assert "at least two networks" in capsys.readouterr().err


def test_ways_on_which_no_loss_is_finite_are_said_and_drawn(tmp_path, capsys):
    module = im.models.by_name("mlp:64-8-10", inputs=(64,), outputs=10)
    zero = {k: torch.zeros_like(v) for k, v in module.state_dict().items()}
    first, *_, last = [k for k, v in zero.items() if v.dim() == 2]
    # each has a layer of zeros; between them the product of the other two is beyond float32
    for name, huge in {"a": first, "b": last, "c": first}.items():
        held = zero | {huge: torch.full_like(zero[huge], 1e30).cumsum(0)}
        im.save_params(held, tmp_path / f"{name}.safetensors", {})
    files, out = [str(tmp_path / f"{name}.safetensors") for name in "abc"], tmp_path / "out"
    assert run_app(["graph", *files, *SPEC, "--method", "Linear", "--num-points", "5", "-q", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "between some of them no way is known on which the loss is finite" in said
    page = (out / "report.html").read_text()
    assert "as between a and b, no way is known" in page
    assert page.count(">inf</text>") + page.count("<!-- inf -->") == 1 + 4  # at the tree, and in the matrix
    assert im.load_graph(out).saddle("a", "c") < 3
