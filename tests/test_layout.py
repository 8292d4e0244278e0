"""The house: no circle of files, and a proof that depends on little."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"


@cache
def imports() -> dict[str, set[str]]:
    """For each file of the package the files that it imports when it is loaded; a package is its ``__init__``."""
    files = {".".join(p.relative_to(SRC).with_suffix("").parts): p for p in SRC.rglob("*.py")}
    files = {name.removesuffix(".__init__"): p for name, p in files.items()}
    return {name: {n for node in loaded(p) for n in named(node)} & files.keys() - {name} for name, p in files.items()}


def loaded(path: Path) -> list[ast.ImportFrom]:
    """The imports outside functions and outside ``if TYPE_CHECKING``."""
    return [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]


def named(node: ast.ImportFrom) -> set[str]:
    return {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}


def closure(name: str) -> set[str]:
    seen, todo = set(), {name}
    while todo:
        seen |= todo
        todo = {m for n in todo for m in imports()[n]} - seen
    return seen


def test_files_do_not_import_each_other_in_circles():
    without_packages = {k: {n for n in v if not k.startswith(f"{n}.")} for k, v in imports().items()}
    assert len(list(TopologicalSorter(without_packages).static_order())) == len(imports())


def test_a_proof_depends_on_nothing_above_evaluation():
    """But where a search that was stopped is kept: ``training.memory`` itself depends on parameters alone."""
    kept = {"isthmus.training", "isthmus.training.memory"}
    parts = {name.split(".")[1] for name in closure("isthmus.certify") - kept if "." in name}
    assert "evaluate" in parts
    assert not parts & {"connectors", "stability", "training", "premises", "analysis", "theory", "storage"}
