"""The parts of an objective: those that the user typed, and for the others what the file says."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from isthmus.cli.given import OwnData, data_of, refuse_own_words
from isthmus.cli.options import Asked
from isthmus.cli.typed import command
from isthmus.data import Dataset
from isthmus.errors import FileError, InputError
from isthmus.objective import Objective
from isthmus.objective.data import digest_of_data
from isthmus.objective.losses import L1, PENALTIES, Ridge, describe_penalty
from isthmus.objective.named import CrossEntropy, describe
from isthmus.pipeline import inputs_of
from isthmus.storage.files import one_line
from isthmus.storage.folders import USUAL
from isthmus.stored import LABELLED, StoredSetup, shown

_AGAIN = "make the path again"


@dataclass(frozen=True)
class Parts:
    """An objective before it is built. `dtype`: None where no file says it. `notes`: what differs from the file.

    `labelled`: the options of the loss that say how labels are read, ``ignore_index`` and ``class_axis``. `counts`: how
    many training and test examples of ``OwnData`` data are used, None for all of them.
    """

    model: str
    data: str
    dataset: Dataset | OwnData
    loss: Any
    penalty: Ridge | L1 | None
    dtype: torch.dtype | None = None
    notes: tuple[str, ...] = ()
    labelled: Mapping[str, int] = field(default_factory=dict)
    counts: tuple[int | None, int | None] = (None, None)


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
    held = _held(files, said, asked)
    gate = StoredSetup(files[0], command())
    model, data = _names(gate, asked, held["model"], held["data"])
    dataset = data_of(data, model, asked)
    own = options_of(dataset)
    loss = asked.loss or own.get("loss") or gate.loss(held["loss"])
    examples = asked.examples or _stored_count(gate, held.get("examples"), data, said)
    if isinstance(dataset, Dataset):
        dataset = dataset.subset(examples)
    elif (asked.loss, own.get("loss"), loss) == (None, None, "cross_entropy"):
        refuse_own_words(dataset, model, data)
    labelled = _labelled(own, asked, _stored_labels(gate, files, said, asked, data, loss))
    return Parts(model, data, dataset, loss, asked_penalty(asked), labelled=labelled, counts=(examples, None))


def _held(files: Sequence[Path], said: Sequence[Mapping[str, Any]], asked: Asked) -> dict[str, Any]:
    """What the files say of what the user did not type, else the defaults."""
    options = [option for option in ("model", "data", "loss", "examples") if getattr(asked, option) is None]
    found = {option: _agreed(option, files, said) for option in options}
    _check_told(files[0], asked.model or found["model"])
    defaults = {"model": "mlp", "data": "digits", "loss": "cross_entropy"}
    return defaults | {option: value for option, value in found.items() if value is not None}


def _stored_count(gate: StoredSetup, count: object, data: str, said: Sequence[Mapping[str, Any]]) -> int | None:
    """The number of examples that the files say; None where they say none, or of other data."""
    same = all(data == v.get("data", data) for v in said)
    return None if count is None or not same else gate.count(count)


def _stored_labels(
    gate: StoredSetup, files: Sequence[Path], said: Sequence[Mapping[str, Any]], asked: Asked, data: str, loss: Any
) -> dict[str, int]:
    """How the files say that labels are read; nothing where they are of other data or another loss."""
    if any((data, loss) != (v.get("data", data), v.get("loss", loss)) for v in said):
        return {}
    found = {key: _agreed(key, files, said) for key in LABELLED if getattr(asked, key) is None}
    return {key: gate.whole(key, value) for key, value in found.items() if value is not None}


def asked_penalty(asked: Asked) -> Ridge | L1 | None:
    """The penalty that the user typed; none where nothing was typed."""
    return None if asked.penalty is None else parse_penalty(asked.penalty)


def _check_told(file: Path, model: object) -> None:
    """A folder of Hugging Face describes its network, but it is made only when asked for."""
    folder = file.parent if file.name in USUAL else file
    if model is None and (folder / "config.json").is_file():
        line = f"{command()} --model {shlex.quote(f'hf:{folder}')}"
        raise FileError(file, "holds the weights of a network that is not named", f"to take its config.json: {line}")


def options_of(dataset: Dataset | OwnData) -> Mapping[str, Any]:
    """What data of the user's own code say of the objective."""
    return dataset.options if isinstance(dataset, OwnData) else {}


def _labelled(own: Mapping[str, Any], asked: Asked, stored: Mapping[str, int] | None = None) -> dict[str, Any]:
    """How labels are read: as typed, else as the data say, else as stored."""
    typed = {"ignore_index": asked.ignore_index, "class_axis": asked.class_axis}
    sources: tuple[Mapping[str, Any], ...] = (stored or {}, own, typed)
    return {k: held[k] for held in sources for k in LABELLED if held.get(k) is not None}


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
        raise FileError(b, f"says that its {option} is {shown}", f"say which with --{option.replace('_', '-')}")
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
        return {key: self.gate.whole(key, value, _AGAIN) for key, value in held.items()}

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

    def changed(self, what: str) -> FileError:
        """The error for data that are not those of the path."""
        told = "other" if self.examples() is None else f"{self.examples()} training"
        count = told + (f" and {self.tests()} test" if self.tests() else "")
        why = f"was made with {count} examples that {what}"
        line = f"{command()} --changed-data"
        instead = f"give the data that it was made with as --data, or, to measure on others: {line}"
        return FileError(self.source, why, instead)

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
    full = data_of(data, model, asked)
    own = options_of(full)
    loss = asked.loss or own.get("loss") or said.loss()
    penalty = said.penalty() if asked.penalty is None else parse_penalty(asked.penalty)
    named = {} if own.get("loss") is not None and asked.loss is None else describe(loss)
    counts: tuple[int | None, int | None] = (None, None)
    if isinstance(full, OwnData):
        dataset, notes, counts = full, [], (asked.examples or said.examples(), said.tests())
    else:
        dataset, notes = _examples(said, inputs_of(model, full), data, asked)
    notes += _contradicted(said, {"model": model, **named, "penalty": describe_penalty(penalty)}, asked.dtype)
    stored = said.labelled() if asked.loss in (None, said.objective.get("loss")) else {}
    return Parts(
        model, data, dataset, loss, penalty, said.dtype(), tuple(notes), _labelled(own, asked, stored), counts
    )  # fmt: skip


def check_given(source: Path, stats: Mapping[str, Any], train: Objective, test: Objective | None, asked: Asked) -> str:
    """Whether data of the user's own code are those of the path; what to say where they need not be, or ""."""
    said = _Said(source, stats)
    pairs = ((said.objective.get("digest"), train), (said.test.get("digest"), test))
    held = [(digest, objective) for digest, objective in pairs if digest is not None]
    kind = said.dtype() or torch.float64
    if all(o is not None and o.cast(kind).describe()["digest"] == digest for digest, o in held):
        return ""
    other = said.stats.get("data") not in (None, asked.data)
    if not (other or asked.changed_data or asked.examples is not None):
        raise said.changed(f"{asked.data} does not give now")
    return f"other examples; here they are {shown(asked.data)}, as asked"


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


def _examples(said: _Said, full: Dataset, data: str, asked: Asked) -> tuple[Dataset, list[str]]:
    """The examples to measure on, and what to say about them."""
    other = said.stats.get("data") is not None and asked.data not in (None, said.stats["data"])
    part = said.part(full)
    same = said.is_same(part)
    _check_same(said, full, data, asked, same, other)
    notes = []
    if same is False or (same is None and other):
        part = None if other else part
        notes.append(f"other examples; here they are {shown(data)}, as asked")
    if asked.examples is None:
        return part or full, notes
    if part is not None and said.examples() not in (None, asked.examples):
        notes.append(f"{said.examples()} examples; here they are the first {asked.examples}, as asked")
    return _first(full, part, asked.examples), notes


def _check_same(said: _Said, full: Dataset, data: str, asked: Asked, same: bool | None, other: bool) -> None:
    """Refuse data that are not those of the path, where the user asked for no others, or that may not be."""
    if same is False and not other and not asked.changed_data:
        raise said.changed(f"{data} does not hold now")
    untold = same is None and said.stats.get("data") is None and asked.examples is None
    if untold and said.examples() != len(full.x_train):
        count = said.examples() if said.examples() is not None else "some"
        why = f"was made with {count} examples and does not say which of the {len(full.x_train)} of {data}"
        raise FileError(said.source, why, "give --examples N, for the first N")


def _first(full: Dataset, part: Dataset | None, examples: int) -> Dataset:
    """The first training examples, with the test examples of the path where they are known."""
    test = full if part is None else part
    return replace(full.subset(examples), x_test=test.x_test, y_test=test.y_test)
