"""The page of the command line has every command, with an example that the program takes; and words are spelt right."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer

from isthmus.cli.app import COMMANDS, _loaded
from isthmus.cli.told import EXAMPLES, FAILS
from isthmus.connectors import METHODS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "extensions"))
command_line = import_module("command_line")


def commands():
    for name in COMMANDS:
        command = typer.main.get_command(_loaded(name))
        inner = getattr(command, "commands", {})
        yield from ((f"{name} {one}", held) for one, held in inner.items()) if inner else [(name, command)]


ALL = dict(commands())


@pytest.fixture(scope="module")
def page():
    return command_line.page()


def test_every_command_has_an_example_and_nothing_else_has():
    assert set(EXAMPLES) == set(ALL)
    assert set(FAILS) <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_the_program_takes_the_example(name):
    program, *arguments = shlex.split(EXAMPLES[name])
    words = name.split()
    assert [program, *arguments[: len(words)]] == ["isthmus", *words]
    ALL[name].make_context(name, arguments[len(words) :])  # raises for what it does not know


@pytest.mark.parametrize("name", ALL)
def test_every_option_says_what_it_is(name, page):
    context = ALL[name].make_context(name, [], resilient_parsing=True)
    for parameter in ALL[name].get_params(context):
        assert parameter.help, parameter.name
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert re.search(rf"^\| `[^`]*{re.escape(parameter.opts[0])}\b", page, re.M)
    assert EXAMPLES[name] in page


def test_the_page_has_the_methods(page):
    for method in METHODS:
        assert f"### {method.__name__}\n" in page


def test_words_are_spelt_right():
    looked = ["README.md", "CHANGELOG.md", "docs", "src", "benchmarks", "tests"]
    command = [sys.executable, "-m", "codespell_lib", "--skip", "*.png,_build,api,gallery", *looked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
