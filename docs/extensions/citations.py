"""The papers: entries of docs/references.bib, found in prose by first author and year."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

BIB = Path(__file__).parents[1] / "references.bib"
_CITED = re.compile(r"([A-Z][\w'-]+)((?:, | and | & | )(?:[A-Z][\w'-]+|et al\.))*(?:,)? ((?:19|20)\d\d)\b")
_ACCENTS = {
    "{\\'e}": "é",
    '{\\"o}': "ö",
    '{\\"u}': "ü",
    "{\\'a}": "á",
    "{\\c{c}}": "ç",
    "{\\aa}": "å",
    "{\\`a}": "à",
    "{\\'o}": "ó",
    "\\&": "&",
}


@dataclass(frozen=True)
class Entry:
    """A paper."""

    key: str
    authors: str
    title: str
    venue: str
    year: str

    @property
    def surname(self) -> str:
        """Of the first author."""
        return self.authors.split(" and ")[0].split(",")[0]

    @property
    def markdown(self) -> str:
        """Authors, title, where and when."""
        names = [" ".join(reversed(one.split(", ", 1))) for one in self.authors.split(" and ")]
        where = f" {self.venue}," if self.venue else ""
        return f"{', '.join(names)}. *{self.title}*.{where} {self.year}."


def entries(file: Path = BIB) -> list[Entry]:
    """All papers of the file, by first author and year."""
    found = []
    for key, body in re.findall(r"@\w+\{([^,]+),\n(.*?)\n\}", file.read_text(encoding="utf-8"), re.S):
        values = {name.lower(): _plain(text) for name, text in re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", body, re.M)}
        venue = values.get("booktitle") or values.get("journal") or values.get("note", "")
        found.append(Entry(key, values["author"], values["title"], venue, values["year"]))
    return sorted(found, key=lambda e: (e.surname, e.year))


def _plain(text: str) -> str:
    for tex, letter in _ACCENTS.items():
        text = text.replace(tex, letter)
    return re.sub(r"[{}]", "", text)


def cited(text: str, papers: list[Entry]) -> list[Entry]:
    """The papers that a text names by first author and year, in the order of the list."""
    named = {(first, year) for first, _, year in _CITED.findall(" ".join(text.split()))}
    return [paper for paper in papers if (paper.surname, paper.year) in named]


def unknown(text: str, papers: list[Entry]) -> set[str]:
    """What looks like a citation and is none of the papers."""
    known = {(paper.surname, paper.year) for paper in papers}
    return {m[0] for m in _CITED.finditer(" ".join(text.split())) if (m[1], m[3]) not in known}
