"""One page for every public name, written from the name itself before the site is built."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from api_names import GROUPS, Public, public
from citations import cited, entries
from docstrings import COMMON, Parts, doc_of, parse, sentences

_ALIASES = {
    "ParamsLike": "Params | Module | file", "HasPath": "result with a path", "Definition": "str", "MergeMethod": "str",
    "Progress": "Callable", "FilePath": "Path of a folder",
}  # fmt: skip
"""Names of types that are not public, as readers know them."""
# -- a page


class Writer:
    """Writes the pages; knows which names have one."""

    def __init__(self) -> None:
        self.names = public()
        self.pages = {p.name: p.page for p in self.names}
        self.papers = entries()

    def linked(self, text: str, own: str = "") -> str:
        """Prose whose code that is a public name leads to its page."""

        def link(match: re.Match[str]) -> str:
            code = match[1]
            name = re.match(r"(?:im\.|isthmus\.)?((?:models\.|data\.|counterexamples\.)?\w+)", code)
            page = self.pages.get(name[1]) if name else None
            return match[0] if page is None or page == own else f"[`{code}`]({page}.md)"

        return re.sub(r"``([^`\n]+)``", link, text)

    def kind(self, annotation: Any) -> str:
        """A type as text, public names in it as links."""
        if annotation is inspect.Parameter.empty:
            return ""
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        text = re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)
        for alias, meant in _ALIASES.items():
            text = re.sub(rf"\b{alias}\b", meant, text)
        text = re.sub(r"Literal\[(.*?)\]", lambda m: " or ".join(f"`{v}`" for v in m[1].split(", ")), text)
        pieces = re.split(r"(\w+)", text.replace("[", r"\[").replace("]", r"\]").replace("|", "or"))
        return "".join(f"[{one}]({self.pages[one]}.md)" if one in self.pages else one for one in pieces)

    def page(self, one: Public) -> str:
        """The Markdown of a page."""
        parts = one.parts
        body = self._class(one, parts) if inspect.isclass(one.value) else self._function(one, parts)
        sections = [f"# {one.name}", *body, *self._common(one, parts)]
        return "\n\n".join(s for s in sections if s) + "\n"

    def _common(self, one: Public, parts: Parts) -> Iterator[str]:
        """The sections that all pages have."""
        link = lambda texts: "\n\n".join(self.linked(text, one.page) for text in texts)  # noqa: E731
        if parts.errors:
            yield f"## Raises\n\n{link(parts.errors)}"
        if parts.cost:
            yield f"## Cost\n\n{link(parts.cost)}"
        yield self._references(one, parts)
        if parts.examples:
            code = "\n\n".join(parts.examples)
            yield f"## Example\n\n```pycon\n{code}\n```"
        if inspect.isclass(one.value):
            yield from self._members(one)
        if inspect.isclass(one.value) or inspect.isfunction(one.value):
            yield f"Defined in [`{one.file}`](../../{one.file})."

    def _references(self, one: Public, parts: Parts) -> str:
        about = getattr(one.value, "about", None)
        text = " ".join([inspect.getdoc(one.value) or "", getattr(about, "reference", "")])
        papers = cited(text, self.papers)
        lines = [self.linked(text) for text in parts.source] + [f"- {paper.markdown}" for paper in papers]
        return "## References\n\n" + "\n\n".join(lines) if lines else ""

    def _prose(self, one: Public, parts: Parts, known: set[str]) -> Iterator[str]:
        """The description, and items that are no arguments."""
        yield from (self.linked(text, one.page) for text in parts.text)
        others = [
            f"- {'' if said.startswith(f'``{name}') else f'`{name}`: '}{self.linked(said, one.page)}"
            for name, said in parts.items.items()
            if name not in known
        ]
        yield "\n".join(line.replace("\n", "\n  ") for line in others)
        if parts.use:
            yield "**When to use:** " + " ".join(self.linked(text, one.page) for text in parts.use)

    def _function(self, one: Public, parts: Parts) -> Iterator[str]:
        if not inspect.isfunction(one.value):
            yield f"```{{py:data}} isthmus.{one.name}\n```"
            yield from parts.text
            yield self._entries(one.value)
            return
        signature = inspect.signature(one.value)
        yield _directive("function", one.name, signature)
        yield from self._prose(one, parts, set(signature.parameters))
        arguments = [
            self._entry(p.name, p.annotation, p.default, _said(one, p.name)) for p in signature.parameters.values()
        ]
        yield "## Args\n\n" + "\n\n".join(arguments) if arguments else ""
        yield self._returns(signature.return_annotation, parts)

    def _entries(self, value: Any) -> str:
        """What a table of names holds."""
        if isinstance(value, Mapping):
            return "\n".join(f"- `{name}`" for name in value)
        if isinstance(value, tuple):
            names = [getattr(v, "__name__", None) or getattr(v, "name", v) for v in value]
            return "\n".join("- " + self.linked(f"``{name}``") for name in names)
        return f"`{value!s}`"

    def _entry(self, name: str, annotation: Any, default: Any, said: str) -> str:
        """A definition: name, type and default, and below what it is."""
        kind = self.kind(annotation)
        value = _default(default)
        head = f"**{name}**" + (f" · {kind}" if kind else "") + (f" · default `{value}`" if value else "")
        return f"{head}\n: " + (self.linked(said).replace("\n", " ") or "&nbsp;")

    def _returns(self, annotation: Any, parts: Parts) -> str:
        kind = self.kind(annotation)
        names = re.findall(r"\w+", str(annotation))
        results = [p for p in self.names if p.name in names and inspect.isclass(p.value)]
        told = [f"{self.linked(r.parts.first)}" for r in results]
        shown = [f"`{name}`" for r in results[:1] if r.group == "Results" for name in _attributes(r.value)]
        held = f"Attributes: {', '.join(shown)}." if shown else ""
        said = [s for text in parts.text for s in sentences(text) if re.match(r"(The result|Returns?\b)", s)]
        lines = [kind, ": " + " ".join([*told, *map(self.linked, said[:1]), held]).replace("\n", " ").strip()]
        return "## Returns\n\n" + "\n".join(line for line in lines if line != ": ")

    # -- classes

    def _class(self, one: Public, parts: Parts) -> Iterator[str]:
        signature = inspect.signature(one.value) if one.made and not is_abstract(one.value) else None
        yield _directive("exception" if one.group == "Errors" else "class", one.name, signature)
        own = [f for f in fields(one.value) if not f.name.startswith("_")] if is_dataclass(one.value) else []
        arguments = signature.parameters if signature and not own else {}
        yield from self._prose(one, parts, {f.name for f in own} | set(arguments))
        yield self._about(one.value)
        kind: Any = one.value
        if issubclass(kind, enum.Enum):
            yield "## Members\n\n" + "\n".join(f"- `{m.name}`: {m.value}" for m in kind)
        rows = [self._entry(f.name, f.type, _field_default(f), _said(one, f.name)) for f in own if one.made]
        rows += [self._entry(p.name, p.annotation, p.default, _said(one, p.name)) for p in arguments.values()]
        yield "## Args\n\n" + "\n\n".join(rows) if rows else ""
        if not one.made and own:
            given = [self._attribute(one, f.name, f.type, one.about(f.name)) for f in own]
            yield "## Attributes\n\n" + "\n\n".join(given)

    def _about(self, value: Any) -> str:
        """What a method makes, needs and costs."""
        about = value.__dict__.get("about")
        if about is None:
            return ""
        rows = {"Makes": about.makes, "Needs": about.premises, "Costs": about.cost, "Source": about.reference}
        return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])

    def _attribute(self, one: Public, name: str, annotation: Any, said: str) -> str:
        kind = self.kind(annotation)
        text = f"*{kind}*. " if kind else ""
        return _directive("attribute", f"{one.name}.{name}", None, text + self.linked(said, one.page))

    def _members(self, one: Public) -> Iterator[str]:
        """Properties and methods, those of public base classes too."""
        every = dict(members(one.value))
        properties = {
            n: m
            for n, m in every.items()
            if not inspect.isfunction(m) and not isinstance(m, classmethod | staticmethod)
        }
        methods = {n: m for n, m in every.items() if n not in properties}
        if properties:
            yield "## Properties\n\n" + "\n\n".join(self._property(one, n, m) for n, m in properties.items())
        if methods:
            yield "## Methods\n\n" + "\n\n".join(self._method(one, n, m) for n, m in methods.items())

    def _property(self, one: Public, name: str, member: Any) -> str:
        function = getattr(member, "fget", None) or getattr(member, "func", None)
        kind = self.kind(inspect.signature(function).return_annotation) if function else ""
        said = self.linked(doc_of(member) or "", one.page)
        return _directive("property", f"{one.name}.{name}", None, f"*{kind}*. {said}")

    def _method(self, one: Public, name: str, member: Any) -> str:
        function = getattr(member, "__func__", member)
        signature = inspect.signature(function)
        bare = signature.replace(parameters=list(signature.parameters.values())[not isinstance(member, staticmethod) :])
        parts = parse(doc_of(function))
        said = [self.linked(text, one.page) for text in parts.text]
        said += [f"`{item}`: {self.linked(text, one.page)}" for item, text in parts.items.items()]
        said += [
            f"{head}: {self.linked(text)}"
            for head, texts in (("Cost", parts.cost), ("Errors", parts.errors))
            for text in texts
        ]
        said += [f"```pycon\n{code}\n```" for code in parts.examples]
        return _directive("method", f"{one.name}.{name}", bare, "\n\n".join(said))


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public properties and methods of a class and its bases in this package; the class's own first."""
    held = {f.name for f in fields(kind)} if is_dataclass(kind) else set()
    seen = set(held)
    for base in kind.__mro__:
        if not base.__module__.startswith("isthmus"):
            continue
        for name, member in vars(base).items():
            shown = inspect.isfunction(member) or isinstance(member, classmethod | staticmethod) or _is_property(member)
            if not name.startswith("_") and shown and name not in seen:
                seen.add(name)
                yield name, member


def _is_property(member: Any) -> bool:
    return isinstance(member, property) or hasattr(member, "func")


def _attributes(kind: type) -> list[str]:
    """The fields and the properties of a result."""
    own = [f.name for f in fields(kind) if not f.name.startswith("_")] if is_dataclass(kind) else []
    return own + [name for name, member in members(kind) if _is_property(member)]


def is_abstract(kind: type) -> bool:
    """Whether it is not made by calling it."""
    return inspect.isabstract(kind) or issubclass(kind, enum.Enum)


def _said(one: Public, name: str) -> str:
    """Its own item, what it always means, or the first sentence that names it."""
    return one.parts.items.get(name) or COMMON.get(name) or one.about(name)


def _field_default(f: Any) -> Any:
    if f.default_factory is not MISSING:
        return f.default_factory()
    return inspect.Parameter.empty if f.default is MISSING else f.default


def _default(value: Any) -> str:
    """A default as one would write it; nothing where there is none, or no short form."""
    if value is inspect.Parameter.empty or callable(value) or "<" in repr(value):
        return ""
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__}(...)"


def _directive(kind: str, name: str, signature: inspect.Signature | None, body: str = "") -> str:
    """A signature without types, which the arguments have, and what is said of it."""
    text = "" if signature is None else _call(signature)
    return f"````{{py:{kind}}} isthmus.{name}{text}\n{body}\n````"


def _call(signature: inspect.Signature) -> str:
    shown = []
    for p in signature.parameters.values():
        if p.name.startswith("_") and p.default is not p.empty:
            continue
        short = _default(p.default)
        default = p.empty if p.default is p.empty else _Text(short or "...")
        shown.append(p.replace(annotation=p.empty, default=default))
    return str(signature.replace(parameters=shown, return_annotation=signature.empty))


class _Text:
    """A default that shows itself as it is written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


# -- all pages


def write(folder: Path) -> None:
    """All pages, their groups and the index; a page that did not change is left alone."""
    writer = Writer()
    wanted = {f"{one.page}.md": writer.page(one) for one in writer.names}
    for group, says in GROUPS.items():
        members = [one for one in writer.names if one.group == group]
        rows = "\n".join(f"| [`{m.name}`]({m.page}.md) | {_cell(writer.linked(m.parts.first))} |" for m in members)
        tree = "\n".join(m.page for m in members)
        wanted[f"group-{group.lower()}.md"] = (
            f"# {group}\n\n{says}\n\n| name | |\n|---|---|\n{rows}\n\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
        )
    wanted["index.md"] = _index(writer)
    wanted["papers.md"] = "# Papers\n\n" + "\n".join(f"- {paper.markdown}" for paper in writer.papers) + "\n"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _index(writer: Writer) -> str:
    lines = ["# API", "", "Every public name, as `isthmus.NAME`; here `import isthmus as im`.", ""]
    for group, says in GROUPS.items():
        members = [one for one in writer.names if one.group == group]
        lines += [f"**[{group}](group-{group.lower()}.md)**. {says}", ""]
        lines += [" · ".join(f"[`{m.name}`]({m.page}.md)" for m in members), ""]
    tree = "\n".join(f"group-{group.lower()}" for group in GROUPS)
    return "\n".join(lines) + f"\n```{{toctree}}\n:hidden:\n\n{tree}\npapers\n```\n"


def setup(app: Any) -> dict[str, bool]:
    """Write the pages before Sphinx looks for files."""
    app.connect("config-inited", lambda app, config: write(Path(app.srcdir) / "api"), priority=100)
    return {"parallel_read_safe": True}
