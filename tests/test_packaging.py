"""What is said twice about a release is said alike."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import isthmus as im

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))

pytestmark = pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="these files stand in the repository alone")


def text(path):
    return (ROOT / path).read_text()


def test_the_version_is_the_same_everywhere():
    said = subprocess.run([sys.executable, "-m", "isthmus", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"isthmus {im.__version__}\n"
    assert PROJECT["dynamic"] == ["version"]
    assert str(yaml.safe_load(text("CITATION.cff"))["version"]) == im.__version__
    assert yaml.safe_load(text("recipe/recipe.yaml"))["context"]["version"] == im.__version__


def test_the_home_of_the_project_is_that_of_the_metadata():
    home = PROJECT["urls"]["Home"]
    assert all(url.startswith(home) for url in PROJECT["urls"].values())
    assert yaml.safe_load(text("CITATION.cff"))["repository-code"] == home
    assert yaml.safe_load(text("recipe/recipe.yaml"))["about"]["homepage"] == home


def test_the_workflows_test_what_the_metadata_promise():
    tests = yaml.safe_load(text(".github/workflows/test.yml"))["jobs"]["tests"]["strategy"]["matrix"]
    prefix = "Programming Language :: Python :: "
    promised = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if re.fullmatch(prefix + r"3\.\d+", c)]
    assert tests["python"] == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"
    (torch,) = (d for d in PROJECT["dependencies"] if d.startswith("torch"))
    assert [f"{torch}.0".replace(">=", "=="), "newest"] == [f"torch=={tests['torch'][0]}", tests["torch"][1]]


def test_the_recipe_asks_for_what_the_metadata_ask_for():
    extras = PROJECT["optional-dependencies"]
    wanted = {*PROJECT["dependencies"], *(d for extra in ("cli", "plot", "data") for d in extras[extra])}
    conda = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    split = [re.fullmatch(r"([A-Za-z0-9_-]+)(.*)", d) for d in wanted]
    wanted = {f"{conda.get(m[1], m[1]).lower()} {m[2]}" for m in split if m}
    found = set(yaml.safe_load(text("recipe/recipe.yaml"))["requirements"]["run"])
    assert {d for d in found if not d.startswith("python ")} == wanted


def test_the_quick_checks_have_the_pinned_ruff():
    repos = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    assert {repo["rev"] for repo in repos if "ruff" in repo["repo"]} == {f"v{PINS['ruff']}"}
