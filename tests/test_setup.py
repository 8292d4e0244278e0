"""What an installation must and must not contain."""

import re
import subprocess
import sys
import tomllib
from collections import Counter
from importlib import import_module
from importlib.metadata import distributions, requires
from pathlib import Path

import pytest
import torch
from radon.complexity import cc_visit

import isthmus as im
from isthmus.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]


def test_no_torchvision_and_no_cuda_came_with_the_dependencies():
    """Anything that reaches torchvision replaces the CPU build of torch by gigabytes of CUDA."""
    names = {d.metadata["Name"].lower() for d in distributions()}
    assert "torchvision" not in names
    if torch.version.cuda is not None:
        pytest.skip("this environment was set up with a CUDA build of torch on purpose")
    assert not [n for n in names if n.startswith("nvidia-")]


def test_the_core_needs_four_packages():
    core = {re.split(r"[<>=!;\[ ]", r)[0] for r in requires("isthmus") or [] if "extra ==" not in r}
    assert core == {"torch", "numpy", "scipy", "safetensors"}


def test_importing_the_library_loads_no_extra():
    extras = ("matplotlib", "plotly", "typer", "rich", "pydantic", "yaml", "sklearn", "ray")
    code = f"import isthmus, sys; print([m for m in {extras} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def modules_after(code):
    run = [sys.executable, "-c", f"import sys\n{code}\nprint('loaded', *sys.modules)"]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    return set(said.rpartition("loaded")[2].split())


def test_the_library_and_the_help_of_the_command_line_start_without_torch():
    assert "torch" not in modules_after("import isthmus; isthmus.__version__")
    loaded = modules_after("from isthmus.cli import run_app; assert run_app(['--help']) == 0")
    assert "typer" in loaded
    assert not {"torch", "numpy", "yaml", "pydantic", "isthmus.api"} & loaded


def test_the_help_says_of_each_command_what_the_command_itself_says():
    for name, (file, says) in COMMANDS.items():
        module = import_module(f"isthmus.cli.{file}")
        found = module.app.info.help if name == "experiment" else getattr(module, name).__doc__
        assert found.splitlines()[0] == says


def test_a_submodule_does_not_hide_the_function_of_its_name():
    code = "import isthmus.certify, isthmus.theory, isthmus.verdict as v; im = isthmus\n"
    assert modules_after(code + "assert all(map(callable, (im.certify, im.theory, im.verdict, v)))")
    assert {"connect", "certify", "METHODS", "data", "__version__"} <= set(dir(im))
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        _ = im.conect


def test_constraints_pin_torch_and_every_direct_dependency():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line and line[0] != "#"
    )
    assert pins["torch"] == "2.13.0"
    assert "torchvision" not in pins
    names = {re.split(r"[<>=!;\[ ]", r)[0].lower() for r in requires("isthmus") or []} - {"isthmus"}
    assert not {n for n in names if n not in {k.lower() for k in pins}}


def test_every_method_is_public_and_documented():
    for method in im.METHODS:
        assert getattr(im, method.__name__) is method
        assert method.__doc__
        assert all(len(text) > 3 for text in (method.about.makes, method.about.needs, method.about.reference))
        if method is not im.Linear:
            assert str(re.search(r"\d{4}", method.about.reference)[0]) in method.__doc__  # type: ignore[index]
        assert method.__name__ in (ROOT / "docs/how-to-choose.md").read_text()


def test_files_stay_under_400_lines():
    long = [p for p in (ROOT / "src").rglob("*.py") if len(p.read_text().splitlines()) > 400]
    assert not long


SAME_NAME = """
Claim
Disconnected
Engine
Entry
Level
Network
Piece
Proof
Task
Weights
"""
"""The public classes of which there are two or more; the list may only shrink."""


def test_no_function_is_more_complex_than_10():
    src = ROOT / "src/isthmus"
    found = {
        f"{path.relative_to(src).as_posix()}:{block.fullname}"
        for path in src.rglob("*.py")
        for block in cc_visit(path.read_text())
        if block.letter != "C" and block.complexity > 10
    }
    assert not found


def test_no_public_class_has_the_name_of_another():
    sources = (path.read_text() for path in (ROOT / "src").rglob("*.py"))
    names = Counter(name for source in sources for name in re.findall(r"^class (\w+)", source, re.MULTILINE))
    found = {name for name, times in names.items() if times > 1 and name[0] != "_"}
    _only_shrinks(found, set(SAME_NAME.split()))


def test_the_files_that_may_have_long_parameter_lists_have_them():
    ignored = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]["per-file-ignores"]
    listed = {path for path, rules in ignored.items() if path.startswith("src/") and "PLR0913" in rules}
    command = ["ruff", "check", "--isolated", "--select=PLR0913", "--config=lint.pylint.max-args=8"]
    out = subprocess.run(
        [sys.executable, "-m", *command, "--output-format=concise", "src"], cwd=ROOT, capture_output=True, text=True
    )
    found = {line.split(":")[0] for line in out.stdout.splitlines() if "PLR0913" in line or "too-many-arg" in line}
    _only_shrinks(found, listed)


def _only_shrinks(found: set[str], listed: set[str]) -> None:
    """Nothing new is wrong, and what has become right is taken off the list."""
    assert sorted(found - listed) == [], "split or rename these"
    assert sorted(listed - found) == [], "these are right now: take them off the list"
