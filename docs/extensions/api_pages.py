"""One page for every public name, written from the name itself before the site is built."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from citations import cited, entries
from docstrings import COMMON, Parts, doc_of, parse, sentences

MODULES = ("", "models", "data", "counterexamples")
GROUPS = {
    "Ask": "The question: a network with its loss and data, two ends, and how high the loss rises between them.",
    "Paths": "Paths as values: functions of t in [0, 1] with values in the parameters.",
    "Methods": "The methods of `connect`, frozen dataclasses of settings, and the settings that some of them take.",
    "Alignment": "Hidden units of one network in the numbering of another.",
    "Proofs": "What holds on a whole path, proved.",
    "Analyses": "Questions whose answer is no path: barriers, merges, ensembles, planes, graphs.",
    "Theory": "What theorems ask of a network, measured.",
    "Structure": "The interchangeable units of a network.",
    "Storing": "Files: checkpoints, connections, alignments.",
    "Results": "What the functions return.",
    "Errors": "What is raised, and what is warned of.",
    "Models": "Networks of the papers, `isthmus.models`.",
    "Data": "Data sets on this machine, `isthmus.data`.",
    "Counterexamples": "Networks between which no low path exists, `isthmus.counterexamples`.",
}
_ASK = ("connect", "profile", "verdict", "check", "compare", "merge")
_BY_MODULE = {
    "isthmus.objective": "Ask", "isthmus.params": "Ask", "isthmus.paths": "Paths", "isthmus.connectors": "Methods",
    "isthmus.training": "Methods", "isthmus.alignment": "Alignment", "isthmus.certify": "Proofs",
    "isthmus.analysis.separated": "Proofs", "isthmus.analysis.subnetwork_bounds": "Theory",
    "isthmus.analysis.gap_by_width": "Theory", "isthmus.analysis": "Analyses", "isthmus.graph": "Analyses",
    "isthmus.evaluate": "Analyses", "isthmus.premises": "Theory", "isthmus.stability": "Theory",
    "isthmus.comparison": "Analyses", "isthmus.verdict": "Proofs", "isthmus.theory": "Theory",
    "isthmus.structure": "Structure", "isthmus.storage": "Storing",
}  # fmt: skip
_OF_NAME = {"Params": "Ask", "METHODS": "Methods", "load_graph": "Storing", "Renumbering": "Alignment", "Matching": "Alignment"}
_SAID = {
    "Params": "The parameters and buffers of a network: tensors by name, as `module.state_dict()` gives them.",
    "METHODS": "The classes of all methods, in the order in which `isthmus methods` lists them.",
    "models.MODELS": "The networks that have a name on the command line.",
    "models.ACTIVATIONS": "The activations that have a name, each a class of torch.",
    "models.EXTRACTORS": "The extractors of features that have a name.",
    "data.DATASETS": "The data sets that have a name on the command line.",
}
"""Of values that have no docstring."""


@dataclass(frozen=True)
class Public:
    """A public name, as ``isthmus.NAME``."""

    name: str
    value: Any
    group: str
    page: str

    @property
    def parts(self) -> Parts:
        """Its docstring by sections."""
        own = self.value if inspect.isclass(self.value) or inspect.isfunction(self.value) else None
        return parse(_SAID[self.name] if own is None else doc_of(own))

    @property
    def made(self) -> bool:
        """Whether it is a class whose values users make."""
        return inspect.isclass(self.value) and self.group not in ("Results", "Errors")


def public() -> list[Public]:
    """All public names, by group and then by name."""
    found: list[tuple[str, Any]] = []
    for prefix in MODULES:
        module = import_module(f"isthmus.{prefix}" if prefix else "isthmus.api")
        names = [n for n, v in vars(module).items() if not n.startswith("_") and not inspect.ismodule(v)]
        found += [(f"{prefix}.{n}".lstrip("."), getattr(module, n)) for n in names if n != "annotations"]
    functions = {name.lower() for name, value in found if inspect.isfunction(value)}
    every = [Public(n, v, _group(n, v), _page(n, v, functions)) for n, v in found]
    order = list(GROUPS)
    return sorted(every, key=lambda p: (order.index(p.group), not inspect.isfunction(p.value), p.name.lower()))


def _page(name: str, value: Any, functions: set[str]) -> str:
    """The name of its file: a class that differs from a function by case alone gets another on all file systems."""
    return f"{name}-class" if inspect.isclass(value) and name.lower() in functions else name


def _group(name: str, value: Any) -> str:
    prefix = name.partition(".")[0] if "." in name else ""
    if prefix:
        return prefix.capitalize()
    if inspect.isclass(value) and issubclass(value, Exception | Warning):
        return "Errors"
    if name in _OF_NAME:
        return _OF_NAME[name]
    if name in _ASK:
        return "Ask"
    where = value.__module__
    group = next(group for start, group in sorted(_BY_MODULE.items(), reverse=True) if where.startswith(start))
    if inspect.isclass(value) and _is_result(value, group):
        return "Results"
    return group


def _is_result(value: type, group: str) -> bool:
    """Whether functions make it: all but settings, paths and structures, which users make as well."""
    from isthmus.alignment import Matching
    from isthmus.connectors import Connection, Outcome

    if value in (Connection, Outcome) or group in ("Proofs", "Analyses", "Theory"):
        return True
    return group == "Alignment" and not issubclass(value, Matching)


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
        text = re.sub(r"\b(?:\w+\.)+(?=\w)", "", text).replace("HasPath", "result with a path")
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

    def _references(self, one: Public, parts: Parts) -> str:
        about = getattr(one.value, "about", None)
        text = " ".join([inspect.getdoc(one.value) or "", getattr(about, "reference", "")])
        papers = cited(text, self.papers)
        lines = [self.linked(text) for text in parts.source] + [f"- {paper.markdown}" for paper in papers]
        return "## References\n\n" + "\n\n".join(lines) if lines else ""

    def _prose(self, one: Public, parts: Parts, known: set[str]) -> Iterator[str]:
        """The description, and items that are no arguments."""
        yield from (self.linked(text, one.page) for text in parts.text)
        others = [f"- `{name}`: {self.linked(said, one.page)}" for name, said in parts.items.items() if name not in known]
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
        arguments = [self._entry(p.name, p.annotation, p.default, _said(parts, p.name)) for p in signature.parameters.values()]
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
        signature = inspect.signature(one.value) if one.made and not _abstract(one.value) else None
        yield _directive("exception" if one.group == "Errors" else "class", one.name, signature)
        own = [f for f in fields(one.value) if not f.name.startswith("_")] if is_dataclass(one.value) else []
        arguments = signature.parameters if signature and not own else {}
        yield from self._prose(one, parts, {f.name for f in own} | set(arguments))
        yield self._about(one.value)
        if issubclass(one.value, enum.Enum):
            yield "## Members\n\n" + "\n".join(f"- `{m.name}`: {m.value}" for m in one.value)
        rows = [self._entry(f.name, f.type, _field_default(f), _said(parts, f.name)) for f in own if one.made]
        rows += [self._entry(p.name, p.annotation, p.default, _said(parts, p.name)) for p in arguments.values()]
        yield "## Args\n\n" + "\n\n".join(rows) if rows else ""
        if not one.made and own:
            given = [self._attribute(one, f.name, f.type, parts.about(f.name)) for f in own]
            yield "## Attributes\n\n" + "\n\n".join(given)

    def _about(self, value: type) -> str:
        """What a method makes, needs and costs."""
        about = value.__dict__.get("about")
        if about is None:
            return ""
        rows = {"Makes": about.makes, "Needs": about.premises, "Costs": about.cost, "Source": about.reference}
        return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])

    def _attribute(self, one: Public, name: str, annotation: Any, said: str) -> str:
        kind = self.kind(annotation)
        text = f"*{kind}*. " if kind else ""
        return f"```{{py:attribute}} isthmus.{one.name}.{name}\n```\n\n: {text}{self.linked(said)}".replace("\n\n: ", "\n\n")

    def _members(self, one: Public) -> Iterator[str]:
        """Properties and methods, those of public base classes too."""
        members = dict(_own_members(one.value))
        properties = {n: m for n, m in members.items() if not inspect.isfunction(m) and not isinstance(m, classmethod | staticmethod)}
        methods = {n: m for n, m in members.items() if n not in properties}
        if properties:
            yield "## Properties\n\n" + "\n\n".join(self._property(one, n, m) for n, m in properties.items())
        if methods:
            yield "## Methods\n\n" + "\n\n".join(self._method(one, n, m) for n, m in methods.items())

    def _property(self, one: Public, name: str, member: Any) -> str:
        function = getattr(member, "fget", None) or getattr(member, "func", None)
        kind = self.kind(inspect.signature(function).return_annotation) if function else ""
        said = self.linked(doc_of(member) or "", one.page)
        return f"```{{py:property}} isthmus.{one.name}.{name}\n```\n\n*{kind}*. {said}"

    def _method(self, one: Public, name: str, member: Any) -> str:
        function = getattr(member, "__func__", member)
        signature = inspect.signature(function)
        bare = signature.replace(parameters=list(signature.parameters.values())[not isinstance(member, staticmethod) :])
        parts = parse(doc_of(function))
        said = [self.linked(text, one.page) for text in parts.text]
        said += [f"`{item}`: {self.linked(text, one.page)}" for item, text in parts.items.items()]
        said += [f"{head}: {self.linked(text)}" for head, texts in (("Cost", parts.cost), ("Errors", parts.errors)) for text in texts]
        said += [f"```pycon\n{code}\n```" for code in parts.examples]
        return "\n\n".join([_directive("method", f"{one.name}.{name}", bare), *said])


def _own_members(kind: type) -> Iterator[tuple[str, Any]]:
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
    return own + [name for name, member in _own_members(kind) if _is_property(member)]


def _abstract(kind: type) -> bool:
    return inspect.isabstract(kind) or issubclass(kind, enum.Enum)


def _said(parts: Parts, name: str) -> str:
    """Its own item, what it always means, or the first sentence that names it."""
    return parts.items.get(name) or COMMON.get(name) or parts.about(name)


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


def _directive(kind: str, name: str, signature: inspect.Signature | None) -> str:
    """A signature without types, which the arguments have."""
    text = "" if signature is None else _call(signature)
    return f"```{{py:{kind}}} isthmus.{name}{text}\n```"


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
