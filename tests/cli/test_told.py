"""Progress on a terminal and elsewhere, what is printed for programs and for people, notes, and data on a device."""

from __future__ import annotations

import io
import json
import sys
import time

import pytest
import torch
from torch.utils.data import TensorDataset

import isthmus as im
from isthmus import demo
from isthmus.cli import commands, console, given, run_app
from isthmus.cli.console import progress_bar
from tests.cli.test_plane import SPEC
from tests.problems import perceptron, random_params, saved


class Terminal(io.StringIO):
    """A terminal that keeps what was written to it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def files(tmp_path):
    return saved(perceptron([64, 6, 10]), tmp_path, "ab")


def test_on_a_terminal_the_bar_is_that_of_what_is_done_last(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with progress_bar(False) as progress:
        progress("training", 1, 4)
        progress("proving", 3, 7)
        time.sleep(0.2)  # the bar is drawn ten times a second
        progress("proving", 7, 7)
    written = screen.getvalue()
    last = written.rpartition("proving")[2]
    assert "3/7" in written
    assert "training" not in last


def test_elsewhere_a_line_is_written_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 4.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with progress_bar(False) as progress:
        for done in (1, 2, 3):
            progress("proving", done, 7)
    assert capsys.readouterr().err == "proving: 2 of 7\n"


def test_a_plane_for_programs(files, tmp_path, capsys):
    out = tmp_path / "plane"
    assert run_app(["plane", *files, files[0], *SPEC, "--points", "3", "--out", str(out), "--json"]) == 2
    third = str(tmp_path / "c.safetensors")
    im.save_params(random_params(perceptron([64, 6, 10]), 2, torch.float32), third)
    capsys.readouterr()
    assert run_app(["plane", *files, third, *SPEC, "--points", "3", "--out", str(out), "--json"]) == 0
    said, kept = json.loads(capsys.readouterr().out), json.loads((out / "plane.json").read_text())
    assert said == {k: kept[k] for k in said}
    assert len(said["x"]) == 3


def test_a_page_is_written_where_it_is_asked_for(files, tmp_path, capsys):
    out = tmp_path / "line"
    assert run_app(["connect", *files, *SPEC, "--method", "Linear", "--num-points", "3", "--out", str(out)]) == 0
    assert run_app(["report", str(out), "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'new' / 'page.html'}\n")
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_the_demo_ends_with_its_page_and_fails_where_a_method_does(tmp_path, monkeypatch, capsys, ok, code):
    made = [{"outcome": {"ok": ok}}]
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: (made, tmp_path / "report.html"))
    monkeypatch.setattr(commands, "show", lambda results, as_json: print(len(results), as_json))
    assert run_app(["demo", "--out", str(tmp_path), "-q"]) == code
    assert capsys.readouterr().out == f"1 False\nThe page to read: {tmp_path / 'report.html'}\n"
    assert run_app(["demo", "--out", str(tmp_path), "-q", "--json"]) == code
    assert capsys.readouterr().out == "1 True\n"


@pytest.mark.parametrize(("asked", "threads"), [([], 1), (["--threads", "2"], 2)])
def test_the_demo_takes_the_threads_that_are_asked_for(tmp_path, monkeypatch, asked, threads):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: (seen.append(torch.get_num_threads()) or [], tmp_path))
    monkeypatch.setattr(commands, "show", lambda *_: None)
    try:
        assert run_app([*asked, "demo", "--out", str(tmp_path), "-q"]) == 0
    finally:
        torch.set_num_threads(before)
    assert seen == [threads]


def test_data_of_every_form_are_moved_as_they_are():
    where, x, y = torch.device("meta"), torch.ones(4, 3), torch.arange(4)
    tensors = given.on_device(TensorDataset(x, y), where)
    assert isinstance(tensors, TensorDataset)
    assert [v.device for v in tensors.tensors] == [where, where]
    held = given.on_device({"x": x, "more": [y, "name"]}, where)
    assert (held["x"].device, held["more"][0].device, held["more"][1]) == (where, where, "name")
    assert [b.device for b in given.on_device(iter([x, y]), where)] == [where, where]
    assert given.on_device(x, torch.device("cpu")) is x


@pytest.mark.parametrize("name", ["digits", "gaussians"])
def test_data_that_are_not_files_have_no_folder(name):
    with pytest.raises(im.InputError, match=f"root: expected None for '{name}'"):
        im.data.load(name, root="somewhere")
