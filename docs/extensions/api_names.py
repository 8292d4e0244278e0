"""The public names of the package, in groups, as the pages of the API show them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from docstrings import Parts, doc_of, parse

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
_OF_NAME = {
    "Params": "Ask",
    "METHODS": "Methods",
    "PROVISIONAL": "Ask",
    "load_graph": "Storing",
    "Renumbering": "Alignment",
    "Matching": "Alignment",
}
_SAID = {
    "Params": "The parameters and buffers of a network: tensors by name, as `module.state_dict()` gives them.",
    "METHODS": "The classes of all methods, in the order in which `isthmus methods` lists them.",
    "PROVISIONAL": "The public names that may change in any minor version; all others are stable.",
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

    def about(self, name: str) -> str:
        """What is said of an argument or attribute, by its own docstring or by that of a base class."""
        bases = self.value.__mro__ if inspect.isclass(self.value) else [self.value]
        docs = (parse(doc_of(base)) for base in bases if base.__module__.startswith("isthmus"))
        return next(filter(None, (parts.about(name) for parts in docs)), "")

    @property
    def file(self) -> str:
        """Where it is defined, from the root of the repository."""
        return "src/" + inspect.getmodule(self.value).__file__.partition("/src/")[2]  # type: ignore[union-attr]

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
