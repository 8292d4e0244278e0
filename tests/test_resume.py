"""A search that is killed, from the command line and in an experiment, goes on and ends as if nothing had been."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import isthmus as im
from isthmus import pipeline as runs
from isthmus.cli import commands, run_app
from isthmus.experiments import Network, Pair, Problem
from isthmus.storage import FolderMemory
from isthmus.storage.methods import connector_from
from isthmus.sweep import Local, Store, run_cells
from isthmus.training.fit import Recipe
from tests.connectors.strings.strings import LEVEL, Killed, Mortal, quadratic

PROBLEM = Problem("mlp:6-5x1-2", "gaussians:N=60,d=6,seed=1")
OPTIONS = {"threshold": 0.3, "steps": 200, "check": 5, "batch": 20, "lr": 0.01, "attempts": 1}
METHODS: dict[str, Any] = {
    "StringSampling": connector_from({"name": "StringSampling", **OPTIONS, "depth": 3}),
    "ConstrainedStringSampling": connector_from({"name": "ConstrainedStringSampling", **OPTIONS, "beads": 6}),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two trained networks in files."""
    folder, files = tmp_path_factory.mktemp("ends"), []
    data = PROBLEM.dataset()
    for seed in (0, 1):
        fitted = runs.train(
            PROBLEM.module(data, seed), (data.x_train.double(), data.y_train), Recipe(lr=0.02, steps=400, batch=20),
            seed=seed, target=0.25,
        )  # fmt: skip
        files.append(str(folder / f"{seed}.safetensors"))
        im.save_params(fitted.params, files[-1], {"model": PROBLEM.model, "data": PROBLEM.data})
    return files


def command(ends: list[str], out: Path, name: str, *more: str) -> list[str]:
    given = [f"{k}={v}" for k, v in OPTIONS.items()]
    given.append("depth=3" if name == "StringSampling" else "beads=6")
    options = [word for option in given for word in ("--option", option)]
    return [
        "connect",
        *ends,
        "--out",
        str(out),
        "--method",
        name,
        *options,
        "--num-points",
        "3",
        "--budget",
        "0",
        *more,
    ]


def dying(monkeypatch: pytest.MonkeyPatch, saves: int) -> list[int]:
    """Every state is saved at once, and the process dies after so many times; returns the count of saves."""
    done, real = [0], FolderMemory.save

    def save(self, tensors, values):
        real(self, tensors, values)
        done[0] += 1
        if done[0] == saves:
            raise Killed

    monkeypatch.setattr(runs, "SECONDS", 0.0)
    monkeypatch.setattr(FolderMemory, "save", save)
    return done


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_command_goes_on_to_the_same_bytes(ends, tmp_path, monkeypatch, capsys, name):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with monkeypatch.context() as patch:
        saves = dying(patch, -1)
        code = run_app(command(ends, whole, name))
    assert saves[0] > 8
    assert "going on" not in capsys.readouterr().err
    assert not (whole / runs.STATE).exists()
    for share in (3, 2):  # killed twice, the second time by the first's successor
        with monkeypatch.context() as patch:
            dying(patch, saves[0] // share)
            with pytest.raises(Killed):
                run_app(command(ends, killed, name))
        assert sorted(f.name for f in killed.iterdir()) == [runs.STATE]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        again = dying(patch, -1)
        assert run_app(command(ends, killed, name)) == code
    assert again[0] < saves[0] / 2
    assert f"going on from the state of the search in {killed / runs.STATE}" in capsys.readouterr().err
    assert not (killed / runs.STATE).exists()
    assert len(im.load_connection(whole / "path.safetensors").path) > 1
    assert (whole / "path.safetensors").read_bytes() == (killed / "path.safetensors").read_bytes()
    assert (whole / "profile.csv").read_bytes() == (killed / "profile.csv").read_bytes()


@pytest.mark.parametrize("name", METHODS)
def test_killed_after_the_search_it_is_not_done_again(ends, tmp_path, monkeypatch, name):
    real = runs.profile

    def dies(*args, **options):
        raise Killed

    monkeypatch.setattr(runs, "profile", dies)
    with pytest.raises(Killed):
        run_app(command(ends, tmp_path, name, "--quiet"))
    before = im.load_connection(tmp_path / "path.safetensors")
    assert (tmp_path / runs.STATE).exists()
    monkeypatch.setattr(runs, "profile", real)
    said = []
    monkeypatch.setattr(commands, "progress_bar", lambda quiet: Spy(said))
    run_app(command(ends, tmp_path, name))
    assert not any("training" in what for what in said)  # segments that were looked at are recalled
    after = im.load_connection(tmp_path / "path.safetensors")
    assert before.stats == after.stats
    assert not (tmp_path / runs.STATE).exists()


class Spy:
    """A progress bar that remembers what it was told."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def __enter__(self):
        return lambda what, done, total: self.said.append(what)

    def __exit__(self, *_: object) -> None:
        pass


def test_the_state_of_another_search_is_refused_and_kept(ends, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        dying(patch, 4)
        with pytest.raises(Killed):
            run_app(command(ends, tmp_path, "StringSampling", "--quiet"))
    state = tmp_path / runs.STATE
    kept = {f: f.read_bytes() for f in state.iterdir()}
    others = (
        command(ends[::-1], tmp_path, "StringSampling"),
        command(ends, tmp_path, "ConstrainedStringSampling"),
        command(ends, tmp_path, "StringSampling", "--seed", "1"),
        command(ends, tmp_path, "StringSampling", "--option", "alpha=0.8"),
        command(ends, tmp_path, "StringSampling", "--examples", "50"),
        command(ends, tmp_path, "StringSampling", "--option", "on=test"),
    )
    for other in others:
        assert run_app([*other, "--quiet"]) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith(f"error: {state}: holds the state of another search")
        assert len(line.splitlines()) == 1
        assert {f: f.read_bytes() for f in state.iterdir()} == kept
    assert run_app(command(ends, tmp_path, "StringSampling")) in (0, 1)
    assert "going on" in capsys.readouterr().err
    state.mkdir()
    for file, data in kept.items():
        file.write_bytes(data[:-3])  # a damaged state is none: the search starts again
    assert run_app(command(ends, tmp_path, "StringSampling")) in (0, 1)
    assert "going on" not in capsys.readouterr().err


def test_a_method_that_does_not_search_leaves_a_state_alone(ends, tmp_path):
    (tmp_path / runs.STATE).mkdir()
    state = tmp_path / runs.STATE / "state.safetensors"
    state.write_bytes(b"not mine")
    assert run_app(["connect", *ends, "--method", "linear", "--out", str(tmp_path), "--num-points", "3", "-q"]) == 0
    assert state.read_bytes() == b"not mine"


def test_the_test_set_judges_when_the_method_says_so(ends, tmp_path):
    objective, test = PROBLEM.objectives()
    a, b = (im.load_params(f) for f in ends)
    assert test is not None
    for name, method in METHODS.items():
        for on in ("train", "test"):
            chosen = replace(method, on=on, threshold=None)
            assert chosen.judged == (on == "test")
            done = runs.run(objective, a, b, chosen, tmp_path / name / on, test=test, num_points=3, budget=0)
            assert done.connection.stats["threshold"]["on"] == on
            assert done.profile.test is not None


def test_a_killed_pair_goes_on(tmp_path, monkeypatch):
    recipe = Recipe(lr=0.02, steps=400, batch=20)
    a, b = (Network(PROBLEM, seed, recipe, 0.25) for seed in (0, 1))
    cell = Pair("toy", a, b, METHODS["StringSampling"], num_points=3, budget=0)
    stores = Store(tmp_path / "whole"), Store(tmp_path / "killed")
    run_cells([cell], stores[0], Local())
    run_cells([a, b], stores[1], Local())
    monkeypatch.setattr(FolderMemory, "due", lambda self, step: True)
    with monkeypatch.context() as patch:
        saves = dying(patch, 6)
        with pytest.raises(Killed):
            run_cells([cell], stores[1], Local())
        assert saves[0] == 6
    assert all(f.name.endswith("state.safetensors") for f in stores[1].folder(cell).iterdir())
    again = dying(monkeypatch, -1)
    run_cells([cell], stores[1], Local())
    assert again[0] > 0
    results = [s.folder(cell) / "run" for s in stores]
    for file in ("path.safetensors", "result.json", "profile.json"):
        assert (results[0] / file).read_bytes() == (results[1] / file).read_bytes()
    assert json.loads((results[0] / "result.json").read_text())["segments"] > 1
    assert not list(stores[1].folder(cell).glob("*state.safetensors"))
    judged = replace(cell, method=replace(METHODS["StringSampling"], on="test", threshold=None))
    assert run_cells([judged], stores[1], Local()).computed == 1


def test_the_owner_of_a_state_is_what_decides_the_search(tmp_path):
    """The same in every process, though a module may print addresses; another network or data set is another search."""

    class Printed(torch.nn.Tanh):
        def extra_repr(self) -> str:
            return f"<function f at {id(self):#x}>"

    def owner(*hidden: torch.nn.Module, shift: float = 0.0, method: im.Connector = METHODS["StringSampling"]) -> str:
        data = PROBLEM.dataset()
        module = torch.nn.Sequential(torch.nn.Linear(6, 5), *hidden, torch.nn.Linear(5, 2)).double()
        objective = im.Objective(module, data=(data.x_train.double() + shift, data.y_train))
        state = runs.state_of(objective, {}, {}, method, tmp_path)
        return state.owner

    kept = [Printed() for _ in range(2)]
    assert all("0x" in repr(module) for module in kept)
    assert owner(kept[0]) == owner(kept[1])
    ways = {owner(torch.nn.Tanh()), owner(torch.nn.ReLU()), owner(torch.nn.Tanh(), shift=1.0)}
    ways.add(owner(torch.nn.Tanh(), method=METHODS["ConstrainedStringSampling"]))
    assert len(ways) == 4


@pytest.mark.parametrize("small", [{"budget": 30}, {"beads": 1}])
def test_a_constrained_search_without_room_stays_so_and_goes_on_with_more(small):
    objective, a, b = quadratic()
    method = im.ConstrainedStringSampling(threshold=LEVEL, recipe=im.Recipe(lr=0.01, steps=3000, batch=16, check=10))
    kept = Mortal(seed=0, lives=(10**6, 10**6))
    first, second = (im.connect(objective, a, b, replace(method, **small), memory=kept) for _ in range(2))
    assert first.outcome is second.outcome is im.Outcome.BUDGET_EXHAUSTED
    assert first.stats == second.stats
    assert im.connect(objective, a, b, method, memory=kept).outcome.ok
