"""The house's docstrings, taken apart: prose in a fixed manner in, the sections of a page out.

A docstring is paragraphs. Inside one, at the start of a sentence, "`name`: ..." says what an argument or an attribute
is; "Cost: ...", "Errors: ...", "Source: ...", "When to use: ..." say what they say. Examples are doctests.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from typing import Any

COMMON = {
    "objective": "The network with its loss and its data.",
    "a": "The first network: a state_dict, a module or a checkpoint file.",
    "b": "The second network: a state_dict, a module or a checkpoint file.",
    "params": "The network: a state_dict, a module or a checkpoint file.",
    "models": "The networks: state_dicts, modules or checkpoint files.",
    "seed": "Of everything that is random; the same seed gives the same result.",
    "progress": "Called as `progress(what, done, total)`; default: nothing is told.",
}
"""Parameters that mean the same wherever they stand; a docstring need not repeat them. This list may only shrink."""

_NAME = r"`\w+(?:\[[^`]*\])?`(?: \[[^\]]*\])?"
_NAMES = f"{_NAME}(?:, {_NAME})*"
_MARK = re.compile(
    rf"(?:^|(?<=[.;,:)]\s))(?:(?P<names>{_NAMES}):\s"
    r"|(?P<head>Costs?|Errors?|Source|When to use|Needs)(?P<colon>:?)\s)"
)
_HEADS = {
    "Cost": "cost",
    "Costs": "cost",
    "Error": "errors",
    "Errors": "errors",
    "Source": "source",
    "When to use": "use",
}


@dataclass
class Parts:
    """A docstring by sections: `items` by the name of the argument or attribute, the rest as Markdown."""

    text: list[str] = field(default_factory=list)
    items: dict[str, str] = field(default_factory=dict)
    use: list[str] = field(default_factory=list)
    cost: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @property
    def first(self) -> str:
        """The first sentence."""
        return sentences(self.text[0])[0] if self.text else ""

    def about(self, name: str) -> str:
        """What is said of an argument or attribute: its item, else the first sentence that names it."""
        if name in self.items:
            return self.items[name]
        named = re.compile(rf"`{name}(?:\W[^`]*)?`")
        everything = [*self.text, *self.items.values(), *self.use, *self.cost, *self.errors]
        found = (s for part in everything for s in sentences(part) if named.search(s))
        return next(found, "")


def parse(doc: str | None) -> Parts:
    """Take a docstring apart.

    >>> parts = parse("The sum.\\n\\n`x`: a number. `y`: another. Cost: nothing. Errors: none.\\n\\n>>> 1 + 1\\n2")
    >>> parts.items, parts.cost, parts.errors, parts.examples
    ({'x': 'A number.', 'y': 'Another.'}, ['Nothing.'], ['None.'], ['>>> 1 + 1\\n2'])
    """
    parts = Parts()
    for paragraph in re.split(r"\n[ \t]*\n", inspect.cleandoc(doc or "")):
        if paragraph.startswith(">>>"):
            parts.examples.append(paragraph)
        elif len(listed := re.split(r"(?:^|\n)- (?=``\w)", paragraph)) > 1 and not listed[0]:
            parts.items |= {re.findall(r"\w+", one)[0]: _sentence(one.rstrip(";")) for one in listed[1:]}
        elif paragraph.startswith(("    ", "- ")) or "\n- " in paragraph:
            parts.text.append(paragraph)
        elif paragraph:
            _split(paragraph, parts)
    return parts


def _split(paragraph: str, parts: Parts) -> None:
    """Give every stretch of a paragraph to the section that its beginning names."""
    marks = [m for m in _MARK.finditer(paragraph) if _counts(m)]
    starts = [m.start() for m in marks] + [len(paragraph)]
    before = paragraph[: starts[0]].strip()
    if before:
        parts.text.append(before)
    for mark, end in zip(marks, starts[1:], strict=True):
        said = paragraph[mark.end() : end].strip().rstrip(",;")
        if mark["names"]:
            said = _sentence(said)
            for name in re.findall(r"`(\w+)", mark["names"]):
                shape = re.search(rf"`{name}` (\[[^\]]*\])", mark["names"])
                parts.items.setdefault(name, f"{shape[1]}: {said}" if shape else said)
        elif mark["head"] in _HEADS:
            own = said if mark["colon"] else f"{mark['head']} {said}"
            getattr(parts, _HEADS[mark["head"]]).append(_sentence(own))
        else:
            parts.text.append(f"{mark['head']}{mark['colon']} {said}")


def _counts(mark: re.Match[str]) -> bool:
    """Whether it begins a section: "Errors:", not "errors" in a sentence; what costs or needs begins a sentence."""
    return bool(mark["names"] or mark["colon"] or mark["head"] in ("Costs", "Needs"))


def _sentence(text: str) -> str:
    """With a capital letter and a full stop, unless it begins with code or a symbol."""
    symbol = re.match(r"\w*[(_^]|[b-z][ .,]|max ", text)
    text = text if symbol else text[:1].upper() + text[1:]
    return text if text.endswith((".", ":", "?")) else f"{text}."


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph of prose; of a list its first line, and its entries."""
    if "\n- " in text:
        first, *entries = re.split(r"\n- ", text)
        return [f"{first} ... (see above)", *map(_sentence, entries)]
    return re.split(r"(?<=[.?])\s+(?=[A-Z`\"(])(?<!al\.\s)", text.strip())


def doc_of(value: Any) -> str | None:
    """The docstring of a function, class or property; none of those that dataclasses make."""
    value = getattr(value, "fget", None) or getattr(value, "func", None) or value
    doc = inspect.getdoc(value)
    return None if inspect.isclass(value) and doc and doc.startswith(f"{value.__name__}(") else doc
