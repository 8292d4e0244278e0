"""Every public name says on its page what it takes, gives, refuses and costs, and where it comes from."""

import doctest
import inspect
import re
import sys
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

EXTENSIONS = Path(__file__).parents[2] / "docs" / "extensions"
sys.path.insert(0, str(EXTENSIONS))
names, pages, docstrings, citations = map(import_module, ("api_names", "api_pages", "docstrings", "citations"))

PUBLIC = names.public()
FUNCTIONS = [one for one in PUBLIC if inspect.isfunction(one.value)]
CLASSES = [one for one in PUBLIC if inspect.isclass(one.value)]
PAPERS = citations.entries()
# these lists may only shrink
WITHOUT_EXAMPLE = {"gap_by_width"}
COMMON = {"objective", "a", "b", "params", "models", "seed", "progress"}


def by_name(ones):
    return pytest.mark.parametrize("one", ones, ids=lambda one: one.name)


@pytest.fixture(scope="module")
def writer():
    return pages.Writer()


def test_the_parameters_that_need_no_words_do_not_become_more():
    assert set(docstrings.COMMON) <= COMMON


@by_name(FUNCTIONS)
def test_a_function_says_what_it_takes_and_refuses(one):
    parameters = inspect.signature(one.value).parameters
    assert not [p for p in parameters if not (one.about(p) or p in docstrings.COMMON)]
    assert (
        not parameters
        or one.parts.errors
        or re.search(r"\b(errors?|refuse[sd]?|raises?)\b", inspect.getdoc(one.value) or "", re.I)
    )


@by_name(FUNCTIONS)
def test_a_function_has_an_example_with_its_answer(one):
    examples = [e for code in one.parts.examples for e in doctest.DocTestParser().get_examples(code)]
    assert any(e.want for e in examples) != (one.name in WITHOUT_EXAMPLE)


@by_name(CLASSES)
def test_a_class_says_what_its_fields_and_members_are(one):
    arguments = inspect.signature(one.value).parameters if one.made and not pages.is_abstract(one.value) else ()
    own = [f.name for f in fields(one.value)] if is_dataclass(one.value) else arguments
    own = [name for name in own if not name.startswith("_")]
    assert not [name for name in own if not one.about(name)]
    assert not [name for name, member in pages.members(one.value) if not docstrings.doc_of(member)]


@by_name([one for one in PUBLIC if not inspect.ismodule(one.value)])
def test_every_paper_that_is_named_is_known(one):
    assert not citations.unknown(inspect.getdoc(one.value) or "", PAPERS)


@by_name([one for one in PUBLIC if one.group in ("Theory", "Counterexamples") and one in FUNCTIONS])
def test_what_a_paper_defines_names_the_paper(one):
    assert citations.cited(inspect.getdoc(one.value), PAPERS)


@by_name([one for one in CLASSES if "about" in vars(one.value) and one.name != "Linear"])
def test_a_method_names_its_paper(one):
    assert citations.cited(f"{inspect.getdoc(one.value)} {one.value.about.reference}", PAPERS)


@by_name(FUNCTIONS)
def test_the_page_of_a_function_has_its_sections(one, writer):
    page = writer.page(one)
    for name in inspect.signature(one.value).parameters:
        assert f"\n**{name}** · " in page
    sections = re.findall(r"^## (.*)", page, re.M)
    order = ["Args", "Returns", "Raises", "Cost", "References", "Example"]
    assert sections == [s for s in order if s in sections]
    assert "Returns" in sections


@by_name(CLASSES)
def test_the_page_of_a_class_has_its_members(one, writer):
    page = writer.page(one)
    for name, _ in pages.members(one.value):
        assert re.search(rf"isthmus\.{re.escape(one.name)}\.{name}\b", page)


def test_no_two_pages_have_one_file_and_every_link_leads_to_one(writer):
    files = {one.page.lower() for one in PUBLIC}
    assert len(files) == len(PUBLIC)
    for one in PUBLIC:
        for target in re.findall(r"\]\(([\w.-]+)\.md\)", writer.page(one)):
            assert target in writer.pages.values()


@pytest.mark.parametrize("module", ["docstrings", "outside"])
def test_the_extensions_do_what_their_examples_say(module):
    done = doctest.testmod(import_module(module))
    assert done.attempted
    assert not done.failed
