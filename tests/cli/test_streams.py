"""Closed streams, an interrupt while something is imported, names that are taken: one line, or none."""

import os
import subprocess
import sys

import pytest

from isthmus.cli import run_app

TRAIN = ["train", "--model", "mlp:2-3-2", "--data", "gaussians:N=20,d=2", "--epochs", "1", "--out", "a.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="closes numbers of files as POSIX does")
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_closed_streams(tmp_path, closed):
    line = " ".join([sys.executable, "-m", "isthmus", "--threads", "1", *TRAIN, closed])
    assert subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True).returncode == 0
    assert (tmp_path / "a.safetensors").exists()


def test_an_interrupt_while_something_is_imported(tmp_path):
    code = """
import sys
from isthmus import __main__
class Stop:
    def find_spec(self, name, *_):
        if name == "isthmus.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped\n")


def test_a_file_in_the_place_of_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").write_text("")
    assert run_app(["train", *TRAIN[1:-1], "out/a.safetensors"]) == 2
    assert "out: there is a file of that name; give the name of a folder" in capsys.readouterr().err
