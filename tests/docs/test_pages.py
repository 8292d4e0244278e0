"""The Python code of the pages runs as it stands, block after block, and prints what the comments beside it say."""

from __future__ import annotations

import ast
import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("start.md", "concepts.md", "faq.md")
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
NEAR = 0.05
"""Processors differ in their rounding, and training makes more of it: numbers agree to a share of 5 %."""


def blocks(text: str) -> list[tuple[int, str]]:
    """The Python code of a page, each block with the line that it begins at."""
    found = re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


def said(lines: list[str], statement: ast.stmt) -> str:
    """What the comment beside a statement says, or those on the lines below it."""
    assert statement.end_lineno is not None
    beside = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode().strip()
    if beside:
        return beside.removeprefix("#").strip()
    below = []
    for line in lines[statement.end_lineno :]:
        if not line.startswith("# "):
            break
        below.append(line[2:])
    return "\n".join(below)


def printed(source: str, page: str, line: int, names: dict[str, Any]) -> list[tuple[int, str, str]]:
    """Runs a block; the line, the output and the comment of every statement that printed something."""
    tree = ast.parse("\n" * line + source)
    lines = [""] * line + source.splitlines()
    out = []
    for statement in tree.body:
        with redirect_stdout(io.StringIO()) as stream:
            exec(compile(ast.Module([statement], []), page, "exec"), names)
        if stream.getvalue():
            out.append((statement.lineno, stream.getvalue().strip(), said(lines, statement)))
    return out


def agree(output: str, comment: str) -> bool:
    """Whether the words are the same, and the numbers nearly."""
    if NUMBER.sub("#", output) != NUMBER.sub("#", comment):
        return False
    pairs = zip(NUMBER.findall(output), NUMBER.findall(comment), strict=True)
    values = [(float(a.replace(",", "")), float(b.replace(",", ""))) for a, b in pairs]
    return all(abs(a - b) <= NEAR * abs(b) + 1e-4 for a, b in values)


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_prints_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    told = 0
    for line, source in blocks((DOCS / page).read_text(encoding="utf-8")):
        for at, output, comment in printed(source, page, line, names):
            told += 1
            assert agree(output, comment), f"{page}, line {at}: prints\n{output}\nand the page says\n{comment}"
    assert told >= 5


def test_a_wrong_number_or_word_is_noticed():
    ((line, source),) = blocks("text\n```python\nx = 2\nprint(x, 'low')  # 2 low\n```\n")
    assert (line, source) == (2, "x = 2\nprint(x, 'low')  # 2 low\n")
    ((at, output, comment),) = printed(source, "page", line, {})
    assert at == 4
    assert agree(output, comment)
    assert agree(output, "2.05 low")
    assert not agree(output, "3 low")
    assert not agree(output, "2 high")
    assert not agree(output, "")


def links(text: str) -> list[str]:
    """The relative links of a page, outside its code."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return [to for to in re.findall(r"\]\(([^)\s]+)\)", prose) if not re.match(r"[a-z]+:", to)]


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in links, as code hosts make it."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ["../README.md", *sorted(p.name for p in DOCS.glob("*.md"))])
def test_links_lead_to_files_and_headings_that_are_there(page):
    here = DOCS / page
    for link in links(here.read_text(encoding="utf-8")):
        name, _, heading = link.partition("#")
        there = here if not name else here.parent / name
        assert there.exists(), f"{page}: {link}"
        if heading:
            assert heading in anchors(there.read_text(encoding="utf-8")), f"{page}: {link}"


def test_every_benchmark_has_one_row():
    rows = re.findall(r"^\| `(\w+\.py)` \|", (DOCS / "benchmarks.md").read_text(encoding="utf-8"), re.M)
    scripts = [p.name for p in (DOCS.parent / "benchmarks").glob("*.py") if p.name != "common.py"]
    assert sorted(rows) == sorted(scripts)


def test_what_the_errata_name_is_there():
    """Tests as `file.py::name`, or `::name` in the file named last."""
    tests, file = DOCS.parent / "tests", ""
    found = re.findall(r"`([\w/]*(?:\.py)?)::(\w+)`", (DOCS / "errata.md").read_text(encoding="utf-8"))
    assert len(found) >= 20
    for name, function in found:
        file = name or file
        assert f"def {function}(" in (tests / file).read_text(encoding="utf-8"), f"{file}::{function}"
