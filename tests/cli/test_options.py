"""Random options of every command: a result, or one line that says what is wrong."""

import os
import random

import pytest

from isthmus.cli import run_app
from tests.long import options

NAMES = ("normed",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("options"), os.getcwd()
    os.chdir(folder)
    options.inputs(folder, NAMES)
    yield folder
    os.chdir(before)


@pytest.mark.parametrize("seed", [0, *range(2, 6), *range(7, 12)])
def test_a_command_ends_with_a_result_or_in_one_line(folder, capsys, seed):
    def run(words, folder):
        capsys.readouterr()
        code = run_app([*words])
        return code, *capsys.readouterr()

    r = random.Random(f"options {seed}")
    words = options.drawn(r, NAMES)
    assert options.faults(words, folder, r, run)[1] == [], words


def test_what_is_looked_for_is_found(folder):
    """Each kind of fault, in what a command is said to have done."""
    ways = {
        "late": (None, "", ""), "exit code 3": (3, "", ""), "a traceback": (0, "", "Traceback (most"),
        "a warning": (0, "", "UserWarning: x"), "not one line": (2, "", "error: x\nerror: y"),
        "nan": (0, "loss nan", ""), "no JSON, NaN": (0, '{"x": NaN}', ""),
    }  # fmt: skip
    for what, ended in ways.items():
        words = ["train", "--json"]
        found = options.faults(words, folder, random.Random(0), lambda words, folder, ended=ended: ended)[1]
        assert any(one.startswith(f"{what}:") for one in found), what

    def leaves(words, folder):
        (folder / "o" / "r").mkdir()
        return 2, "", "error: x"

    assert options.faults(["profile"], folder, random.Random(0), leaves)[1] == ["left behind: ['o/r']: error: x"]
