"""The pages that tell how to add something: their code runs as it is written, and what it makes passes the laws."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.certify.rules import RULES
from isthmus.program.export import trace
from isthmus.program.ops import OPS
from isthmus.structure import derive_structure
from isthmus.structure.rules import RULES as AXES
from tests.certify import test_forms
from tests.certify.cases import Case
from tests.laws import test_methods
from tests.problems import PROBLEMS

DOCS = Path(__file__).parents[2] / "docs"
SOME = PROBLEMS[:2]
"""Problems on which a method of a page is examined."""


def blocks(page: str) -> list[str]:
    """The Python code of a page, block by block."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [dedent(code) for code in re.findall(r"^ *```python\n(.*?)^ *```", text, re.S | re.M)]


@pytest.fixture
def page() -> Iterator[dict[str, Any]]:
    """What the code of the page defines; the tables are as before afterwards."""
    before = [(table, dict(table)) for table in (OPS, RULES, AXES.named)]
    module = ModuleType("how_to_page")
    vars(module)["__before__"] = dict(OPS)
    sys.modules[module.__name__] = module
    try:
        for name in ("how-to-add-a-connector.md", "how-to-add-an-operation.md"):
            for code in blocks(name):
                exec(compile(code, name, "exec"), vars(module))
        yield vars(module)
    finally:
        del sys.modules[module.__name__]
        for table, old in before:
            table.clear()  # type: ignore[attr-defined]
            table.update(old)  # type: ignore[attr-defined]


def methods(page: dict[str, Any]) -> list[type[im.Connector]]:
    return [v for v in page.values() if isinstance(v, type) and issubclass(v, im.Connector) and v is not im.Connector]


def laws() -> list[Callable[..., None]]:
    """The laws that hold for every method on every problem it takes."""
    found = [f for name, f in vars(test_methods).items() if name.startswith("test_") and hasattr(f, "pytestmark")]
    whole = [mark.args[-1] for mark in (test_methods.exam, test_methods.proofs, test_methods.halved)]
    everyone = [f for f in found if any(mark.args[-1] in whole for mark in f.pytestmark)]
    return [f for f in everyone if [*signature(f).parameters] == ["make", "kind"]]


def test_the_method_of_the_page_passes_the_laws(page):
    kinds, every = methods(page), laws()
    assert kinds
    assert len(every) >= 4
    for kind in kinds:
        for make in SOME:
            for law in every:
                law(make, kind)


def test_a_method_that_moves_an_end_fails_them(page, monkeypatch):
    kind = methods(page)[0]
    find = kind.find

    def off(self: im.Connector, *args: Any, **options: Any) -> im.Connection:
        found = find(self, *args, **options)
        path = im.Path.through([found.path.end, found.path.end])
        return im.Connection(path, found.target, found.outcome, found.stats)

    monkeypatch.setattr(kind, "find", off)
    with pytest.raises(im.IsthmusError):
        test_methods.test_ends_are_exact_and_nothing_of_the_users_is_written(SOME[0], kind)


def test_the_operations_of_the_page_pass_the_laws(page):
    new = set(OPS) - set(page["__before__"])
    models = [v for v in page.values() if isinstance(v, nn.Module)]
    used = {node.base for m in models for node in trace(m, (torch.zeros(3, 5),)).nodes}
    assert new
    assert new <= used
    for model in models:
        # which units there are: derived, and verified by permuting, selecting and silencing them
        structure = derive_structure(model.eval(), (torch.randn(3, 5),))
        assert all(group.separable for group in structure.groups)
        assert len(structure.groups) == sum(hasattr(part, "weight") for part in model.children()) - 1
        case = Case("of the page", lambda model=model: model)
        test_forms.test_no_sample_leaves_its_form_or_exceeds_its_bound(case)
        objective, (a, b) = case.objective(), case.control(1)
        half = {k: (a[k] + b[k]) / 2 for k in a}
        loss = float(im.profile(objective, im.Path.through([a, b]), 3).loss[1])
        assert loss == pytest.approx(objective.loss(half), rel=1e-12)
