"""Names that a file holds: a data file never chooses code, nor another file to open, nor how much memory is taken.

A checkpoint, a path, a sweep file say which network, data and loss they belong to. Whoever wrote the file chose these
names, so only names of what is built in, in bounded sizes, are taken from it. All else the user must repeat.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isthmus.data import DATASETS, numbers_of
from isthmus.errors import FileError, InputError
from isthmus.models import MODELS, parameters_of
from isthmus.objective.losses import L1, NAMES, PENALTIES, Ridge
from isthmus.objective.named import CrossEntropy, described
from isthmus.storage.files import one_line

_MAX_TEXT = 1000
"""Characters of a name."""
_MAX_STORED = 2**26
"""Parameters of a network that is not yet there, and numbers of computed data, that a file may ask for."""
_WORDS = 10_000
"""The vocabulary that a language model is taken to have where only its size matters."""
_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


@dataclass(frozen=True)
class StoredSetup:
    """The one gate for what the file `source` says; each method takes a value of any type.

    `command`: what the user typed, to which the message adds the option that repeats the name. Errors: ``FileError``,
    with the line to type where the value can be repeated safely.

    >>> StoredSetup("a.pt", "isthmus connect a.pt b.pt").model("net.py:make")
    Traceback (most recent call last):
    isthmus.errors.FileError: a.pt: names the model 'net.py:make', which is not built in, and a data file chooses no \
code; if you trust it: isthmus connect a.pt b.pt --model net.py:make
    """

    source: str | Path
    command: str = ""

    def model(self, value: object) -> str:
        """A name of ``MODELS`` with its options, for weights that are there and bound its size: see ``by_name``."""
        return self.names(("model", value))[0]

    def data(self, value: object) -> str:
        """A name of ``DATASETS`` with its options; of computed data at most ``_MAX_STORED`` numbers."""
        return self.names(("data", value))[0]

    def names(self, *said: tuple[str, object]) -> tuple[str, ...]:
        """The names, each given with its option, "model" or "data"; all that must be repeated are refused at once."""
        names = tuple((option, self._text(option, value)) for option, value in said)
        if refused := {(option, name): why for option, name in names if (why := _why_not(option, name))}:
            raise self.refusal(refused)
        return tuple(name for _, name in names)

    def refusal(self, why: Mapping[tuple[str, str], str]) -> FileError:
        """The error for names that the user must repeat: options and names, and what is wrong with each."""
        text = "; it ".join(f"names the {option} {shown(name)}, {reason}" for (option, name), reason in why.items())
        if not all(len(name) <= _MAX_TEXT and name.isprintable() and not name.startswith("-") for _, name in why):
            return FileError(self.source, text, "; ".join(self._line(option, "NAME") for option, _ in why))
        typed = " ".join(filter(None, (self.command, *(f"--{o} {shlex.quote(n)}" for o, n in why))))
        return FileError(self.source, text, f"if you trust it: {typed}")

    def new_models(self, *names: str) -> None:
        """Refuse networks, to be made afresh, of more than ``_MAX_STORED`` parameters."""
        built_in = {name: MODELS[name.partition(":")[0]] for name in names}
        sizes = {n: parameters_of(n, outputs=_WORDS if entry.whole else None) for n, entry in built_in.items()}
        if large := {("model", n): f"which has {size:,} parameters" for n, size in sizes.items() if size > _MAX_STORED}:
            raise self.refusal({key: f"{why}, more than a data file may ask for" for key, why in large.items()})

    def loss(self, value: object, options: object = None) -> str | CrossEntropy:
        """A name of ``NAMES``, or a ``CrossEntropy`` with its options."""
        try:
            return described({"loss": value, "loss_options": options})
        except InputError as e:
            why = f"says that the loss is {shown(value)}, which cannot be made from a file"
            raise FileError(self.source, why, self._line("loss", " or ".join(NAMES))) from e

    def dtype(self, value: object) -> torch.dtype:
        """A floating-point precision."""
        if not isinstance(value, str) or value not in _DTYPES:
            why = f"says that the precision is {shown(value)}, not one of {', '.join(_DTYPES)}"
            raise FileError(self.source, why, "make it again")
        return _DTYPES[value]

    def count(self, value: object, what: str = "examples", instead: str = "") -> int:
        """A number of examples; `instead`: what to do about another value."""
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
            value = int(value)  # metadata of safetensors are strings
        if type(value) is not int or not 0 <= value < 10**9:
            why = f"says that the number of {what} is {shown(value)}, not a whole number >= 0"
            raise FileError(self.source, why, instead or self._line("examples", "N"))
        return value

    def whole(self, option: str, value: object, instead: str = "") -> int:
        """A whole number, one of ``LABELLED``; `instead`: what to do about another value."""
        if isinstance(value, str) and re.fullmatch("-?[0-9]{1,18}", value):
            value = int(value)  # metadata of safetensors are strings
        if type(value) is not int or abs(value) > 2**63 - 1:
            why = f"says that {option} is {shown(value)}, not a whole number"
            raise FileError(self.source, why, instead or self._line(option.replace("_", "-"), "N"))
        return value

    def penalty(self, value: object) -> Ridge | L1 | None:
        """What ``describe_penalty`` gave."""
        if value is None:
            return None
        held: dict[Any, Any] = value if isinstance(value, dict) else {}
        kind, names = held.get("name"), held.get("names")
        kappa: Any = held.get("kappa")
        is_number = type(kappa) in (int, float) and kappa < 1e300
        if not (isinstance(kind, str) and kind in PENALTIES and is_number and _are_names(names)):
            why = f"says that the penalty is {shown(kind)} of {shown(kappa)}, which cannot be made from a file"
            raise FileError(self.source, why, self._line("penalty", "none, ridge:KAPPA or l1:KAPPA"))
        return PENALTIES[kind](held["kappa"], None if names is None else tuple(names))

    def _text(self, option: str, value: object) -> str:
        if value is None:
            raise FileError(self.source, f"does not say which {option} it belongs to", self._line(option, "NAME"))
        if not isinstance(value, str):
            why = f"holds {shown(value)} where the name of the {option} belongs"
            raise FileError(self.source, why, self._line(option, "NAME"))
        return value

    def _line(self, option: str, value: str) -> str:
        return f"give --{option} {value} yourself"


def _why_not(option: str, name: str) -> str:
    """What is wrong with a name from a file; nothing for one that is taken."""
    known, other = (MODELS, "no code") if option == "model" else ({e.name for e in DATASETS}, "no other file")
    if len(name) > _MAX_TEXT or name.partition(":")[0] not in known:
        return f"which is not built in, and a data file chooses {other}"
    if option == "data" and (count := numbers_of(name)) > _MAX_STORED:
        return f"which holds {count:,} numbers, more than a data file may ask for"
    return ""


def shown(value: object) -> str:
    """A value of a stranger's file in a few characters on one line, whatever its size and depth.

    >>> shown("a" * 999 + "\\n"), shown([[["deep"]]]), shown({"name": "ridge", "kappa": 0.5})  # doctest: +ELLIPSIS
    ("'aaa...", 'a list', "name 'ridge', kappa 0.5")
    """
    if isinstance(value, str):
        return one_line(repr(value[:_MAX_TEXT]))
    if isinstance(value, Mapping) and len(value) < 5:
        return ", ".join(
            f"{one_line(k, 40)} {shown(v) if not isinstance(v, Mapping) else 'a dict'}" for k, v in value.items()
        )
    return repr(value) if value is None or isinstance(value, bool | int | float) else f"a {type(value).__name__}"


def _are_names(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(n, str) for n in value))


_SAME = ("loss", "loss_options", "named", "examples", "penalty", "error", "functions")
"""The entries of ``Objective.describe`` in which two results about one objective agree in every precision."""

LABELLED = ("ignore_index", "class_axis")
"""Those that say how labels are read; an entry that is missing is the default."""

SAID = ("loss", "examples", *LABELLED)
"""What checkpoints of ours say of their objective, beside the network and the data."""


def differs(mine: Mapping[str, Any], theirs: object) -> list[str]:
    """In what two descriptions of objectives differ, as far as both say it.

    >>> differs({"loss": "mse", "examples": 5}, {"loss": "cross_entropy", "examples": 5})
    ["loss: 'cross_entropy', not 'mse'"]
    """
    if not isinstance(theirs, Mapping):
        return []
    keys = [k for k in _SAME if k in mine and k in theirs]
    keys += ["digest"] if mine.get("dtype") == theirs.get("dtype") and "digest" in mine and "digest" in theirs else []
    keys += LABELLED
    return [f"{k}: {shown(theirs.get(k))}, not {shown(mine.get(k))}" for k in keys if mine.get(k) != theirs.get(k)]
