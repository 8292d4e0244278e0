"""The parts of an objective: those that the user typed, and for the others what the file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from isthmus.cli.typed import command
from isthmus.data import Dataset, load
from isthmus.errors import FileError, InputError
from isthmus.objective.data import digest_of_data
from isthmus.objective.losses import L1, PENALTIES, Ridge, describe_penalty
from isthmus.objective.named import CrossEntropy, describe
from isthmus.pipeline import LABELLED, inputs_of
from isthmus.storage.files import one_line
from isthmus.stored import StoredSetup, shown

_AGAIN = "make the path again"


@dataclass(frozen=True)
class Asked:
    """What the user typed; None where it is left to the file."""

    model: str | None = None
    data: str | None = None
    loss: str | None = None
    examples: int | None = None
    penalty: str | None = None
    dtype: str = "auto"
    changed_data: bool = False


@dataclass(frozen=True)
class Parts:
    """An objective before it is built. `dtype`: None where no file says it. `notes`: what differs from the file.

    `labelled`: the options of the loss that say how labels are read, ``ignore_index`` and ``class_axis``.
    """

    model: str
    data: str
    dataset: Dataset
    loss: str | CrossEntropy
    penalty: Ridge | L1 | None
    dtype: torch.dtype | None = None
    notes: tuple[str, ...] = ()
    labelled: Mapping[str, int] = field(default_factory=dict)


def parse_penalty(text: str) -> Ridge | L1 | None:
    """The penalty that ``--penalty`` means.

    >>> parse_penalty("ridge:0.01"), parse_penalty("l1:1e-3:0.weight,2.weight"), parse_penalty("none")
    (Ridge(kappa=0.01, names=None), L1(kappa=0.001, names=('0.weight', '2.weight')), None)
    """
    if text == "none":
        return None
    name, _, rest = text.partition(":")
    kappa, _, names = rest.partition(":")
    try:
        return PENALTIES[name](float(kappa), tuple(names.split(",")) if names else None)
    except (KeyError, ValueError) as e:
        expected = "none, or ridge:KAPPA or l1:KAPPA, KAPPA a finite number >= 0, then :NAME,NAME for some tensors only"
        raise InputError("--penalty", expected=expected, got=repr(text), instead="--penalty ridge:0.01") from e


def of_checkpoints(files: Sequence[Path], said: Sequence[Mapping[str, Any]], asked: Asked) -> Parts:
    """What the user typed, else what the checkpoints say, else the defaults; files that disagree are refused.

    `said`: the metadata of each file.
    """
    options = ("model", "data", "loss", "examples")
    held = {o: _agreed(o, files, said) if getattr(asked, o) is None else None for o in options}
    gate = StoredSetup(files[0], command())
    model, data = _names(gate, asked, held["model"] or "mlp", held["data"] or "digits")
    loss = asked.loss or gate.loss(held["loss"] or "cross_entropy")
    examples = asked.examples
    if examples is None and held["examples"] is not None and all(data == v.get("data", data) for v in said):
        examples = gate.count(held["examples"])
    dataset = load(data)
    dataset = dataset if examples is None else dataset.subset(examples)
    return Parts(model, data, dataset, loss, None if asked.penalty is None else parse_penalty(asked.penalty))


def _names(gate: StoredSetup, asked: Asked, model: object, data: object) -> tuple[str, str]:
    """Model and data: what the user typed, else through the gate what the file says."""
    typed = {"model": asked.model, "data": asked.data}
    said = [(option, value) for option, value in (("model", model), ("data", data)) if typed[option] is None]
    found = dict(zip((option for option, _ in said), gate.names(*said), strict=True))
    return asked.model or found["model"], asked.data or found["data"]


def _agreed(option: str, files: Sequence[Path], said: Sequence[Mapping[str, Any]]) -> Any:
    """What the files that say something about it say."""
    found = {file: values[option] for file, values in zip(files, said, strict=True) if option in values}
    kinds = {_without_dropout(v) if option == "model" else v for v in found.values()}
    if len(kinds) > 1:
        (a, first), (b, second) = list(found.items())[:2]
        shown = f"{one_line(repr(second))}, but {a} {one_line(repr(first))}"
        raise FileError(b, f"says that its {option} is {shown}", f"say which with --{option}")
    return next(iter(found.values()), None)


def _without_dropout(model: str) -> str:
    """Dropout changes nothing outside training, so ends may differ in it."""
    return ":".join(part for part in model.split(":") if not part.startswith("dropout="))


@dataclass(frozen=True)
class _Said:
    """What a path file says about its objective, each value through the gate when it is asked for."""

    source: Path
    stats: Mapping[str, Any]

    @property
    def gate(self) -> StoredSetup:
        return StoredSetup(self.source, command())

    @property
    def objective(self) -> Mapping[str, Any]:
        held = self.stats.get("objective")
        return held if isinstance(held, dict) else {}

    @property
    def test(self) -> Mapping[str, Any]:
        held = self.stats.get("test")
        return held if isinstance(held, dict) else {}

    def loss(self) -> str | CrossEntropy:
        held = self.objective
        name = held.get("loss") if held.get("named", True) is True else f"function {held.get('loss')}"
        return self.gate.loss(name, held.get("loss_options"))

    def labelled(self) -> dict[str, int]:
        held = {k: self.objective[k] for k in LABELLED if k in self.objective}
        for key, value in held.items():
            if type(value) is not int or abs(value) > 2**63 - 1:
                raise FileError(self.source, f"says that {key} is {shown(value)}, not a whole number", _AGAIN)
        return held

    def penalty(self) -> Ridge | L1 | None:
        return self.gate.penalty(self.objective.get("penalty"))

    def dtype(self) -> torch.dtype | None:
        return self.gate.dtype(self.objective["dtype"]) if "dtype" in self.objective else None

    def examples(self) -> int | None:
        held = self.objective
        return self.gate.count(held["examples"], instead=_AGAIN) if "examples" in held else None

    def tests(self) -> int | None:
        """The number of test examples; None: not said."""
        if "test" not in self.stats:
            return None
        return self.gate.count(self.test["examples"], "test examples", _AGAIN) if "examples" in self.test else 0

    def part(self, data: Dataset) -> Dataset | None:
        """The examples of the path among the data: the first so many; None when the data have fewer."""
        examples, tests = self.examples(), self.tests()
        have = 0 if data.x_test is None else len(data.x_test)
        if (examples or 0) > len(data.x_train) or (tests or 0) > have:
            return None
        part = data.subset(examples or None, tests or None)
        return replace(part, x_test=None, y_test=None) if tests == 0 else part

    def is_same(self, part: Dataset | None) -> bool | None:
        """Whether these are the examples that the path was made with; None: the file does not say."""
        if part is None:
            return False
        found = []
        for held, x, y in (
            (self.objective.get("digest"), part.x_train, part.y_train),
            (self.test.get("digest"), part.x_test, part.y_test),
        ):
            if held is not None and x is not None and y is not None:
                found.append(held == digest_of_data(x, y, self.dtype() or torch.float64))
        return all(found) if found else None


def of_path(source: Path, stats: Mapping[str, Any], asked: Asked) -> Parts:
    """What the user typed, else what the path file says. Errors: where neither says it, and for data that changed.

    Where both say it and differ, the user's word counts and `notes` say so.
    """
    said = _Said(source, stats)
    model, data = _names(said.gate, asked, stats.get("model"), stats.get("data"))
    loss = asked.loss or said.loss()
    penalty = said.penalty() if asked.penalty is None else parse_penalty(asked.penalty)
    dataset, notes = _examples(said, model, data, asked)
    notes += _contradicted(said, {"model": model, **describe(loss), "penalty": describe_penalty(penalty)}, asked.dtype)
    labelled = said.labelled() if asked.loss in (None, said.objective.get("loss")) else {}
    return Parts(model, data, dataset, loss, penalty, said.dtype(), tuple(notes), labelled)


def _contradicted(said: _Said, used: Mapping[str, object], dtype: str) -> list[str]:
    """What of the objective differs from what the path was made with."""
    held = {**said.objective, "model": said.stats.get("model", used["model"]), "penalty": said.objective.get("penalty")}
    used = dict(used) if dtype == "auto" else {**used, "dtype": dtype}
    notes = [
        f"the {key} {shown(held[key])}; here it is {shown(value)}, as asked"
        for key, value in used.items()
        if held.get(key, value) != value
    ]
    if (error := held.get("error")) is not None:
        notes.append(f"the error {shown(error)}, which a file cannot hold; here it is the rate of wrong classes")
    return notes


def _examples(said: _Said, model: str, data: str, asked: Asked) -> tuple[Dataset, list[str]]:
    """The examples to measure on, and what to say about them."""
    full = inputs_of(model, load(data))
    held = said.stats.get("data")
    other = held is not None and asked.data not in (None, held)
    part = said.part(full)
    same = said.is_same(part)
    if same is False and not other and not asked.changed_data:
        count = f"{said.examples()} training" + (f" and {said.tests()} test" if said.tests() else "")
        raise FileError(
            said.source,
            f"was made with {count} examples that {data} does not hold now",
            f"give the data that it was made with as --data, or, to measure on others: {command()} --changed-data",
        )
    if same is None and held is None and asked.examples is None and said.examples() != len(full.x_train):
        why = f"was made with {said.examples()} examples and does not say which of the {len(full.x_train)} of {data}"
        raise FileError(said.source, why, "give --examples N, for the first N")
    notes = []
    if same is False or (same is None and other):
        part = None if other else part
        notes.append(f"other examples; here they are {shown(data)}, as asked")
    if asked.examples is not None:
        if part is not None and asked.examples != said.examples():
            notes.append(f"{said.examples()} examples; here they are the first {asked.examples}, as asked")
        test = full if part is None else part
        part = replace(full.subset(asked.examples), x_test=test.x_test, y_test=test.y_test)
    return part or full, notes
