"""The command line: what it writes, what it prints, and how it ends."""

import json
import pickle
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.cli import run_app
from isthmus.params import equal
from isthmus.sweep import Local, Ray

MODEL = "mlp:64-12x2-10"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two trained checkpoints and one Dropout connection between them."""
    folder = tmp_path_factory.mktemp("cli")
    for name, seed in (("a", 0), ("b", 1)):
        code = run_app(
            ["train", "--model", MODEL, "--out", str(folder / f"{name}.safetensors"), "--seed", str(seed)]
            + ["--epochs", "20", "--quiet"]
        )
        assert code == 0
    assert (
        run_app(["connect", *ends(folder), "--method", "dropout", "--option", "masks=2", *out(folder / "dropout")]) == 0
    )
    return folder


def ends(folder):
    return [str(folder / "a.safetensors"), str(folder / "b.safetensors")]


def out(folder):
    return ["--out", str(folder), "--quiet", "--num-points", "3"]


def fails(capsys, arguments, *words, code=2):
    """The command ends with `code`, one line on stderr that holds `words`, and nothing on stdout."""
    capsys.readouterr()
    assert run_app([str(a) for a in arguments]) == code
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert printed.out == ""


def test_everything_is_written_and_agrees(folder):
    result = json.loads((folder / "dropout/result.json").read_text())
    profile = json.loads((folder / "dropout/profile.json").read_text())
    certificate = json.loads((folder / "dropout/certificate.json").read_text())
    connection = im.load_connection(folder / "dropout/path.safetensors")
    assert result["segments"] == len(connection.path) == len(certificate["segments"]) == len(result["labels"]) == 20
    assert result["method"] == {
        "name": "Dropout",
        "keep": 0.5,
        "masks": 2,
        "scale": "output",
        "every_vertex": False,
    } | {"search": "gates"}
    assert result["max_loss"] == max(profile["loss"]) == profile["barriers"]["loss"]["max"]
    assert result["max_loss"] <= result["bound"] * (1 + 1e-5)
    assert result["proved"]
    assert result["outcome"]["ok"]
    assert len(profile["t"]) == 20 * 2 + 1 == len((folder / "dropout/profile.csv").read_text().splitlines()) - 1
    assert profile["test"]["error"][0] == result["test_error_a"]
    population = profile["test"]["population"]
    assert result["population"]["error"] == population["error"]["highest"]
    assert population["highest"][0] <= result["test_loss_max"] <= population["highest"][1]
    assert (population["asymptotic"], population["error"]["asymptotic"]) == (True, False)
    assert equal(connection.path.start, im.load_params(folder / "a.safetensors"))
    assert equal(connection.path.end, im.load_params(folder / "b.safetensors"))
    header = (folder / "dropout/certificate.csv").read_text().splitlines()[0]
    assert header == "index,claim,bound,deviation,label,why"


def test_train_stores_what_made_the_weights_and_repeats(folder, tmp_path, capsys):
    again = tmp_path / "again.safetensors"
    arguments = ["train", "--model", MODEL, "--out", str(again), "--seed", "0", "--epochs", "20", "--quiet", "--json"]
    assert run_app(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["model"] == MODEL
    assert printed["seed"] == "0"
    assert again.read_bytes() == (folder / "a.safetensors").read_bytes()


def test_profile_and_certify_need_only_the_path_file(folder, tmp_path, capsys):
    path = str(folder / "dropout/path.safetensors")
    assert run_app(["profile", path, "--num-points", "2", "--out", str(tmp_path), "--quiet", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {"loss excess", "loss linear", "loss mean", "error max", "test loss max"} <= set(values)
    assert run_app(["certify", path, "--out", str(tmp_path), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["proved"]
    assert (tmp_path / "certificate.csv").exists()
    assert (tmp_path / "profile.json").exists()


def test_profile_takes_the_ways_of_measuring(folder, tmp_path, capsys):
    path = str(folder / "dropout/path.safetensors")
    command = ["profile", path, "--num-points", "5", "--out", str(tmp_path), "--quiet", "--json"]
    assert run_app([*command, "--tol", "0.01"]) == 0
    assert json.loads((tmp_path / "profile.json").read_text())["tol"] == 0.01
    assert run_app([*command, "--screen", "bf16", "--bn", "error"]) == 0
    assert json.loads((tmp_path / "profile.json").read_text())["screen"] == "bf16"
    fails(capsys, [*command, "--bn", "forget"], "'forget'")
    fails(capsys, [*command, "--screen", "int4"], "'int4'")


def test_networks_along_a_path_are_averaged(folder, tmp_path, capsys):
    path, (a, b) = str(folder / "dropout/path.safetensors"), ends(folder)
    command = ["ensemble", path, "--points", "3", "--independent", a, "--independent", b, "--out", str(tmp_path), "-q"]
    assert run_app(command) == 0
    printed = capsys.readouterr().out
    assert "probability average, 3 networks" in printed
    assert printed.index("test NLL") < printed.index("train NLL")
    held = json.loads((tmp_path / "ensemble.json").read_text())
    assert held["rows"][0]["test"]["error"] == json.loads((folder / "dropout/result.json").read_text())["test_error_a"]
    assert (tmp_path / "ensemble.csv").read_text().count("\n") == len(held["rows"]) + 1
    assert (tmp_path / "ensemble.png").stat().st_size > 1000
    average = im.load_params(tmp_path / "average.safetensors")
    points = [im.load_connection(path).path.at(t) for t in held["t"]]
    assert im.params.distance(average, {k: sum(p[k] for p in points) / 3 for k in average}) < 1e-5
    # with what made it, so that other commands know its network
    assert run_app(["connect", a, str(tmp_path / "average.safetensors"), "--method", "linear", *out(tmp_path)]) == 0
    fails(capsys, [*command, "--independent", str(tmp_path / "no.pt")], "no such file")


def test_a_plane_is_drawn_and_stands_in_the_report(folder, tmp_path, capsys):
    path, (a, b) = folder / "dropout/path.safetensors", ends(folder)
    command = ["plane", a, b, "--points", "3", "--out", str(tmp_path), "-q"]
    fails(capsys, command, "a third checkpoint, or --path")
    assert run_app([*command, "--path", str(path), "--screen", "50"]) == 0
    assert capsys.readouterr().out.startswith("Plane(3 x 3 points")
    held = json.loads((tmp_path / "plane.json").read_text())
    assert held["screen"] == 50
    assert held["checkpoints"] == [a, b]
    assert len(held["off"]) == len(held["t"]) >= 21
    assert {f.name for f in tmp_path.iterdir()} == {"plane.json", "plane.html", "plane.png", "plane.svg"}
    (tmp_path / "result.json").write_text((folder / "dropout/result.json").read_text())
    assert run_app(["report", str(tmp_path)]) == 0
    assert "surface0" in (tmp_path / "report.html").read_text()
    fails(capsys, ["plane", a, b, b, *command[3:]], "off the straight line through a and b")


def test_a_profile_is_exported_as_curve_npz(folder, tmp_path, capsys):
    path, file = str(folder / "dropout/path.safetensors"), tmp_path / "made/curve.npz"
    assert run_app(["profile", path, "--num-points", "2", "--out", str(file.parent), "--npz", str(file), "-q"]) == 0
    held = np.load(file)
    assert (
        held["te_err_max"]
        == 100 * json.loads((file.parent / "profile.json").read_text())["test"]["barriers"]["error"]["max"]
    )
    assert held["dl"].sum() == pytest.approx(im.load_connection(path).path.length, rel=1e-5)


def test_profile_and_certify_by_workers_agree_with_one_process(folder, tmp_path, capsys, monkeypatch):
    """The chunks of the workers, here in this process: tests/sweep/test_ray.py runs them on Ray."""
    engines: list[Ray] = []
    monkeypatch.setattr(Ray, "map", lambda self, *work: engines.append(self) or Local().map(*work))
    monkeypatch.setattr(Ray, "session", nullcontext)
    path, both = str(folder / "dropout/path.safetensors"), {"profile": [], "certify": []}
    for name, extra in ((n, e) for n in both for e in ([], ["--workers", "1"])):
        few = ["--num-points", "3"] if name == "profile" else ["--budget", "3", "--examples", "60"]
        assert run_app([name, path, *few, *extra, "--out", str(tmp_path), "--quiet", "--json"]) == 0
        both[name].append(json.loads(capsys.readouterr().out))
    for one, other in both.values():
        numbers = {k for k, v in one.items() if isinstance(v, float)} - {"slack"}
        assert {k: other[k] for k in numbers} == pytest.approx({k: one[k] for k in numbers}, rel=1e-6, abs=1e-9)
    assert engines.count(Ray(1)) == len(engines) >= 2
    assert both["certify"][1]["proved"]
    told = []
    for extra in ([], ["--workers", "1"]):
        asked = ["certify", path, "--bounds", "chord", "--examples", "9", "--population", "--budget", "9", *extra]
        assert run_app([*asked, "--out", str(tmp_path), "--quiet", "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1]
    assert "from 9 test examples" in told[0]["population"]["text"]
    assert "every t: largest loss at most" in told[0]["population"]["text"]
    fails(capsys, ["profile", path, "--workers", "1", "--tol", "0.1", "--out", tmp_path], "--tol")
    fails(capsys, ["certify", path, "--workers", "1", "--verify", path, "--out", tmp_path], "--verify")
    fails(capsys, ["certify", path, "--population", "--verify", path, "--out", tmp_path], "--population")


def test_a_path_that_is_broken_is_not_proved_and_the_segment_is_named(folder, tmp_path, capsys):
    connection = im.load_connection(folder / "dropout/path.safetensors")
    knots = list(connection.path.knots)
    knots[3] = dict(knots[3]) | {"0.weight": knots[3]["0.weight"] + 0.1}
    broken = im.Connection(im.Path.through(knots), connection.target, connection.outcome, connection.stats)
    im.save(broken, tmp_path / "broken.safetensors")
    before = json.loads((folder / "dropout/certificate.json").read_text())["segments"]
    run_app(["certify", str(tmp_path / "broken.safetensors"), "--out", str(tmp_path), "--quiet", "--json"])
    table = json.loads((tmp_path / "certificate.json").read_text())
    changed = [i for i, (x, y) in enumerate(zip(before, table["segments"], strict=True)) if x["claim"] != y["claim"]]
    assert changed
    assert set(changed) <= {2, 3}
    assert all(table["segments"][i]["label"] == connection.stats["segments"][i] for i in changed)


def test_a_stored_certificate_is_checked_again(folder, tmp_path, capsys):
    path = str(folder / "dropout/path.safetensors")
    stored = json.loads((folder / "dropout/certificate.json").read_text())
    arguments = ["certify", path, "--out", str(tmp_path / "x"), "--quiet", "--verify"]
    assert run_app([*arguments, str(folder / "dropout/certificate.json")]) == 0
    assert "the certificate holds" in capsys.readouterr().out
    for name, other in (("path", "0" * 16), ("bn", "recompute"), ("objective", stored["objective"] | {"examples": 3})):
        (tmp_path / "other.json").write_text(json.dumps(stored | {name: other}))
        assert run_app([*arguments, str(tmp_path / "other.json")]) == 1
        assert f"it is about another {name}" in capsys.readouterr().out
    for lost in ({"isthmus.seal"}, {"isthmus.seal", "evaluations"}):
        (tmp_path / "less.json").write_text(json.dumps({k: v for k, v in stored.items() if k not in lost}))
        assert run_app([*arguments, str(tmp_path / "less.json")]) == 1
        assert "its digest is missing" in capsys.readouterr().out
    stored["segments"][4]["bound"] /= 2
    (tmp_path / "lower.json").write_text(json.dumps(stored))
    assert run_app([*arguments, str(tmp_path / "lower.json")]) == 1
    assert "segment 4" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()
    fails(capsys, [*arguments, tmp_path / "no.json"], "no.json")


def test_a_line_is_bounded_from_the_command_line(folder, tmp_path, capsys):
    assert run_app(["connect", *ends(folder), "--method", "Linear", *out(tmp_path)]) == 0
    path = str(tmp_path / "path.safetensors")
    capsys.readouterr()
    assert run_app(["certify", path, "--out", str(tmp_path), "--gap", "0.05", "--quiet", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["proved"]
    assert values["gap"] <= 0.05
    assert run_app(["certify", path, "--out", str(tmp_path), "--budget", "0", "--quiet", "--json"]) == 1


def test_methods_lists_every_method_with_its_options(capsys):
    assert run_app(["methods"]) == 0
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 80
    assert run_app(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    for method in im.METHODS:
        assert method.__name__ in table
        assert all(option in table for option in rows[method.__name__]["options"])


def test_report_writes_a_page(folder, capsys):
    assert run_app(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert str(folder / "report.html") in capsys.readouterr().out
    assert "Kuditipudi" in page


def test_json_goes_to_stdout_alone(folder, tmp_path, capsys):
    assert run_app(["connect", *ends(folder), "--method", "Linear", *out(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"]["name"] == "Linear"


def test_a_method_that_fails_ends_with_1_and_its_result_is_written(folder, tmp_path):
    options = ["--option", "lr=1e30", "--option", "optimizer=sgd", "--option", "init=random"]
    code = run_app(["connect", *ends(folder), "--method", "Subnetwork", *options, *out(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert code == 1
    assert result["outcome"]["name"] == "NOT_FINITE"
    assert im.load_connection(tmp_path / "path.safetensors").outcome is im.Outcome.NOT_FINITE


# -- misuse: one line, exit code 2, nothing written


def test_swapped_architectures(folder, tmp_path, capsys):
    args = ["connect", *ends(folder), *out(tmp_path / "x")]
    fails(capsys, [*args, "--model", "mlp:64-13x2-10"], "expected", "got")
    other = tmp_path / "other.safetensors"
    params = {k: v[:6] if k.startswith("0.") else v for k, v in im.load_params(folder / "b.safetensors").items()}
    im.save_params(params, other)
    fails(capsys, ["connect", ends(folder)[0], other, *out(tmp_path / "x")], "b['0.weight']", "(12, 64)", "(6, 64)")
    assert not (tmp_path / "x").exists()


def test_truncated_files(folder, tmp_path, capsys):
    for source in (folder / "a.safetensors", folder / "dropout/path.safetensors"):
        bad = tmp_path / source.name
        bad.write_bytes(source.read_bytes()[:-100])
        if source.name.startswith("path"):
            fails(capsys, ["certify", bad, "--out", tmp_path / "x"], str(bad))
        else:
            fails(capsys, ["connect", bad, ends(folder)[1], *out(tmp_path / "x")], str(bad))
    assert not (tmp_path / "x").exists()


def test_weights_that_are_not_numbers(folder, tmp_path, capsys):
    params = im.load_params(folder / "a.safetensors")
    params["2.bias"] = params["2.bias"] * float("nan")
    im.save_params(params, tmp_path / "nan.safetensors")
    fails(
        capsys,
        ["connect", tmp_path / "nan.safetensors", ends(folder)[1], "--model", MODEL, *out(tmp_path / "x")],
        "'2.bias'",
        "NaN",
    )
    assert not (tmp_path / "x").exists()


class Evil:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_a_pickle_with_code_is_not_executed(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": Evil()}, tmp_path / "evil_zip.pt")
    for name in ("evil.pt", "evil_zip.pt"):
        fails(capsys, ["connect", tmp_path / name, ends(folder)[1], *out(tmp_path / "x")], name)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "Magic"], ["--method", "Linear", "'Magic'"]),
        (
            ["--method", "Dropout", "--option", "mask=3"],
            ["options among ['every_vertex', 'keep', 'masks', 'scale', 'search']", "'mask'"],
        ),
        (["--method", "Dropout", "--option", "masks=many"], ["masks", "integer", "'many'"]),
        (["--method", "Dropout", "--option", "keep=0.9"], ["keep", "(0, 1/2]", "0.9"]),
        (["--data", "imagenet"], ["digits", "'imagenet'"]),
        (["--data", "missing.npz"], ["missing.npz", "no such file"]),
        (["--model", "transformer9000"], ["mlp", "'transformer9000'"]),
        (["--device", "toaster"], ["--device", "'toaster'"]),
        (["--dtype", "float7"], ["float32 or float64", "'float7'"]),
        (["--loss", "hingy"], ["cross_entropy", "'hingy'"]),
        (["--num-points", "1"], ["num-points", "2"]),
        (["--examples", "10000000"], ["10000000"]),
        (["--colour", "red"], ["--colour"]),
    ],
)
def test_wrong_options(folder, tmp_path, capsys, arguments, words):
    fails(capsys, ["connect", *ends(folder), "--out", tmp_path / "x", "--quiet", *arguments], *words)
    assert not (tmp_path / "x").exists()


def test_missing_files_and_folders(folder, tmp_path, capsys):
    fails(capsys, ["connect", tmp_path / "no.pt", ends(folder)[1], *out(tmp_path / "x")], "no.pt")
    fails(capsys, ["report", tmp_path], str(tmp_path))
    fails(capsys, ["certify", ends(folder)[0], "--out", tmp_path / "x"], "a.safetensors")
    (tmp_path / "file").write_text("")
    fails(capsys, ["connect", *ends(folder), "--method", "Linear", *out(tmp_path / "file/x")], str(tmp_path / "file"))


def test_option_values_are_read_as_their_fields_want(folder, tmp_path):
    """YAML alone would read 1e-3 as a string."""
    options = ["--option", "lr=1e-3", "--option", "steps=5", "--option", "hub_steps=5"]
    assert run_app(["connect", *ends(folder), "--method", "subnetwork", *options, *out(tmp_path)]) == 0
    method = json.loads((tmp_path / "result.json").read_text())["method"]
    inner = method["inner"]
    assert (inner["recipe"]["lr"], inner["recipe"]["steps"], inner["hub_steps"]) == (1e-3, 5, 5)


def test_threads_are_set_for_the_command():
    before = torch.get_num_threads()
    try:
        assert run_app(["--threads", "2", "methods"]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_module_runs_and_help_is_there():
    done = subprocess.run([sys.executable, "-m", "isthmus", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for command in ("demo", "train", "connect", "profile", "certify", "methods", "report"):
        assert command in done.stdout
    wrong = subprocess.run([sys.executable, "-m", "isthmus", "conect"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "conect" in wrong.stderr
