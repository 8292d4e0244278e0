"""What the command line says of a path: what was done, whether it stays below a level, and how that is known."""

import json

import pytest
import torch

import isthmus as im
from isthmus.cli import run_app
from isthmus.cli.paths import _print_values

MODEL = "mlp:64-12x2-10"
SMALL = ["--examples", "60"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two unrelated trained networks, and a straight line between them."""
    folder = tmp_path_factory.mktemp("verdict")
    for name, seed in (("a", 0), ("b", 1)):
        out = str(folder / f"{name}.safetensors")
        assert run_app(["train", "--model", MODEL, "--out", out, "--seed", str(seed), "--epochs", "30", "--quiet"]) == 0
    assert connect(folder, folder / "line") == 0
    return folder


def connect(folder, out, *more):
    ends = [str(folder / "a.safetensors"), str(folder / "b.safetensors")]
    return run_app(["connect", *ends, "--method", "Linear", "--out", str(out), "--quiet", *SMALL, *more])


def path_of(folder):
    return [str(folder / "line/path.safetensors"), *SMALL, "--quiet"]


def printed(capsys, arguments, code=0):
    capsys.readouterr()
    assert run_app(arguments) == code
    return capsys.readouterr().out


def test_a_line_over_a_barrier_was_constructed_and_is_not_low(folder, tmp_path, capsys):
    capsys.readouterr()
    assert connect(folder, tmp_path) == 0  # the method did what it does
    text = capsys.readouterr().out
    top = json.loads((tmp_path / "result.json").read_text())["max_loss"]
    assert top > 1
    assert "below 1.1 x the larger end (" in text
    assert ") on the whole path: no, rises to " in text
    assert "constructed: the path was made as the method describes" in text
    assert " connected" not in text.replace("disconnected", "")
    assert "test data: below 1.1 x the larger end" in text


def test_the_result_holds_the_verdict_and_what_the_proof_reached(folder):
    result = json.loads((folder / "line/result.json").read_text())
    assert result["outcome"] == {
        "name": "CONSTRUCTED",
        "ok": True,
        "message": "constructed: the path was made as the method describes",
    }
    found = result["verdict"]
    assert (found["below"], found["how"], found["asked"]) == (False, "rises", "1.1x")
    assert found["highest"] >= result["max_loss"]
    assert found["level"] == pytest.approx(1.1 * max(result["loss_a"], result["loss_b"]), rel=1e-5)
    assert found["test"]["how"] in ("rises", "measured")
    assert result["bn"] == "none"
    certificate = json.loads((folder / "line/certificate.json").read_text())
    assert result["close"] is certificate["close"]
    assert result["certificate"] == certificate["summary"]


def test_profile_and_certify_say_it_too(folder, tmp_path, capsys):
    arguments = [*path_of(folder), "--out", str(tmp_path)]
    assert "on the whole path: no, rises to " in printed(capsys, ["profile", *arguments])
    assert "on the whole path: no, rises to " in printed(capsys, ["certify", *arguments])
    text = printed(capsys, ["profile", *arguments, "--level", "50"])
    assert "below 50 on the whole path: yes, measured (61 points per segment, at most " in text
    text = printed(capsys, ["certify", *arguments, "--level", "50"])
    assert "below 50 on the whole path: yes, proved (at most " in text
    for name in ("profile", "certify"):
        values = json.loads(printed(capsys, [name, *arguments, "--json", "--level", "2x"]))
        assert values["verdict"]["below"] is False
        assert values["verdict"]["asked"] == "2x"
        assert values["bn"] == "none"


def test_a_bound_that_is_far_is_said_and_ends_with_0(folder, tmp_path, capsys):
    arguments = ["certify", *path_of(folder), "--out", str(tmp_path), "--budget", "0.001", "--level", "3"]
    text = printed(capsys, arguments)
    assert "proved, but " in text
    assert " times the measured maximum (" in text
    assert "the budget of 0.001 profiles was spent; about " in text
    assert "below 3 on the whole path: not known (" in text
    values = json.loads(printed(capsys, [*arguments, "--json"]))
    assert (values["proved"], values["close"], values["budget"]) == (True, False, 0.001)
    assert values["verdict"]["below"] is None


def test_connect_says_that_a_bound_is_far(folder, tmp_path, capsys):
    capsys.readouterr()
    assert connect(folder, tmp_path, "--budget", "0.001", "--level", "3") == 0
    text = capsys.readouterr().out
    assert "below 3 on the whole path: yes, measured (61 points per segment" in text
    assert "does not reach the level)" in text
    assert "proved, but " in text


def test_only_measured_ends_with_1(folder, tmp_path, capsys):
    text = printed(capsys, ["certify", *path_of(folder), "--out", str(tmp_path), "--budget", "0"], code=1)
    assert "not proved: 1 of 1 segments is only measured" in text


def test_a_level_that_is_none_is_refused_before_the_work(folder, tmp_path, capsys):
    for command in (["profile", *path_of(folder)], ["certify", *path_of(folder)]):
        capsys.readouterr()
        assert run_app([*command, "--out", str(tmp_path / "x"), "--level", "0.9x"]) == 2
        assert "level: expected a loss such as 0.3, or a multiple >= 1" in capsys.readouterr().err
    assert connect(folder, tmp_path / "x", "--level", "low") == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("wrong", [("--gap", "0"), ("--num-points", "1"), ("--budget", "-1")])
@pytest.mark.parametrize("command", ["connect", "compare"])
def test_what_no_proof_can_be_asked_is_refused_before_the_work(folder, tmp_path, capsys, command, wrong):
    """In a comparison too, where it is no reason of a method."""
    ends = [str(folder / "a.safetensors"), str(folder / "b.safetensors")]
    assert run_app([command, *ends, "--out", str(tmp_path / "x"), *wrong]) == 2
    said = capsys.readouterr().err
    assert wrong[0][2:] in said.replace("_", "-")
    assert not (tmp_path / "x").exists()


def test_the_policy_of_batchnorm_is_named(tmp_path, capsys):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 10))\n"
    )
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 9), torch.nn.BatchNorm1d(9), torch.nn.ReLU(), torch.nn.Linear(9, 10)
    )
    for name, factor in (("a", 1.0), ("b", -0.5)):
        state = {k: v if "running" in k or "batches" in k else factor * v for k, v in module.state_dict().items()}
        im.save_params(state, tmp_path / f"{name}.safetensors")
    net = ["--model", f"{tmp_path / 'net.py'}:make", "--data", "digits", *SMALL, "--quiet"]
    ends = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    line = "BatchNorm (bn=recompute): the running statistics are computed again at every point"
    kept = "BatchNorm (bn=interpolate): the running statistics move along the path like weights, and certificates speak"
    run = ["connect", *ends, "--method", "Linear", "--num-points", "5", "--out", str(tmp_path / "r"), *net]
    text = printed(capsys, run)
    for words in (line, "with interpolated statistics: below", "the largest loss is ", "with bn=keep"):
        assert words in text
    result, stored_profile = (json.loads((tmp_path / f"r/{name}.json").read_text()) for name in ("result", "profile"))
    assert (result["bn"], set(result["beside"])) == ("recompute", {"interpolate", "keep"})
    assert stored_profile["beside"]["keep"]["barriers"]["loss"]["max"] == result["beside"]["keep"]["max_loss"]
    assert run_app(["report", str(tmp_path / "r")]) == 0
    assert "with bn=interpolate" in (tmp_path / "r/report.html").read_text()
    stored = [str(tmp_path / "r/path.safetensors"), *net, "--out", str(tmp_path / "p")]
    assert kept in printed(capsys, ["certify", *stored])
    assert json.loads(printed(capsys, ["certify", *stored, "--json"]))["bn"] == "interpolate"
    assert line in printed(capsys, ["profile", *stored, "--num-points", "5"])
    assert kept in printed(capsys, ["profile", *stored, "--num-points", "5", "--bn", "interpolate"])
    again = ["connect", *ends, "--method", "Linear", "--num-points", "5", "--bn", "keep", "--out", str(tmp_path / "k")]
    assert "(bn=keep)" in printed(capsys, [*again, *net])
    stored[0] = str(tmp_path / "k/path.safetensors")
    assert "(bn=keep)" in printed(capsys, ["profile", *stored, "--num-points", "5"])  # as it was asked for


def test_a_proof_is_told_where_nothing_can_be_said_of_all_examples(folder, tmp_path, capsys, monkeypatch):
    def refuse(*args, **options):
        raise im.UnsupportedError("certified=True", "no such rule")

    monkeypatch.setattr("isthmus.cli.paths.population", refuse)
    path = str(folder / "line/path.safetensors")
    assert run_app(["certify", path, "--population", "--out", str(tmp_path), "--quiet", "--json"]) == 1
    told, said = capsys.readouterr()
    assert json.loads(told)["proved"]
    assert "nothing is said of all examples" in said
    assert "no such rule" in said
    monkeypatch.undo()
    alone = ["--examples", "1", "--changed-data"]
    assert run_app(["certify", path, "--population", *alone, "--out", str(tmp_path), "--quiet", "--json"]) == 1
    told, said = capsys.readouterr()
    assert json.loads(told)["proved"]
    assert "nothing is said of all examples: data: expected at least two examples" in said


def test_what_is_proved_is_printed_no_lower_than_it_is(capsys):
    _print_values({"bound": 1.2345671, "excess": 0.00012345671, "slack": 1.2345671}, {}, [], "none", as_json=False)
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert said == {"bound": "1.23457", "excess": "0.000123457", "slack": "1.23457"}
    _print_values({"bound": 1.2345611, "excess": 0.00012345611, "slack": 1.2345611}, {}, [], "none", as_json=False)
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert said == {"bound": "1.23457", "excess": "0.000123457", "slack": "1.23456"}
