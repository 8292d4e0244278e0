"""Users' own sweeps: a YAML file of networks, methods and seeds, as cells and as one row per pair and method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from isthmus.certify import check_search
from isthmus.certify.certify import BUDGET
from isthmus.errors import FileError, InputError, MissingExtraError
from isthmus.experiments.jobs import Network, Pair, Problem, Weights
from isthmus.experiments.page import ended
from isthmus.experiments.plain_yaml import plain_yaml, typed_value
from isthmus.experiments.tables import Column, Entry, Table, first
from isthmus.storage.files import check_regular, disk_error, one_line
from isthmus.storage.methods import connector_from
from isthmus.stored import StoredSetup
from isthmus.sweep.cells import text_of
from isthmus.training.fit import Recipe

T = TypeVar("T")
_BYTES = 1_000_000
_POINTS = 1_000_000
_CELLS = 100_000
_STRICT = {"extra": "forbid"}  # for pydantic: a key that is not a field is an error


@dataclass(frozen=True)
class Training:
    """Networks to train: one for each seed."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    model: str
    seeds: tuple[int, ...]
    data: str = "digits"
    examples: int | None = None
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    dtype: Literal["float32", "float64"] = "float64"
    optimizer: Literal["adam", "sgd", "lbfgs"] = "adam"
    lr: float = 2e-3
    steps: int = 4000
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["cosine", "halving", "plateau", "constant"] = "cosine"
    target: float = 1e-3

    def ends(self) -> tuple[Network, ...]:
        """The networks, as cells."""
        values = {f.name: getattr(self, f.name) for f in fields(Recipe) if f.name in vars(self)}
        problem, recipe = Problem(self.model, self.data, self.examples, self.loss, self.dtype), Recipe(**values)
        return tuple(Network(problem, seed, recipe, self.target) for seed in self.seeds)


@dataclass(frozen=True)
class Checkpoints:
    """Networks that are there already."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    model: str
    checkpoints: tuple[str, ...]
    key: str | None = None
    data: str = "digits"
    examples: int | None = None
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    dtype: Literal["float32", "float64"] = "float64"

    def ends(self) -> tuple[Weights, ...]:
        """The networks, as files."""
        problem = Problem(self.model, self.data, self.examples, self.loss, self.dtype)
        return tuple(Weights(problem, path, self.key) for path in self.checkpoints)


@dataclass(frozen=True)
class SweepFile:
    """What a sweep file holds. `pairs`: "neighbours" (1-2, 3-4, ...), "chain" (1-2, 2-3, ...) or "all"."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    name: str
    networks: tuple[Training | Checkpoints, ...]
    methods: tuple[str | dict[str, Any], ...]
    seeds: tuple[int, ...] = (0,)
    pairs: Literal["neighbours", "chain", "all"] = "all"
    num_points: int = 61
    gap: float = 0.01
    budget: float = BUDGET

    def cells(self) -> list[Pair]:
        """Every pair of every entry of `networks`, by every method, from every seed."""
        connectors = [connector_from(m, "methods") for m in self.methods]
        for what, values in (("networks", self.networks), ("methods", connectors), ("seeds", self.seeds)):
            _check_distinct(what, values)
        out = []
        for entry in self.networks:
            for a, b in self._paired(entry):
                for method in connectors:
                    for seed in self.seeds:
                        out.append(Pair(self.name, a, b, method, seed, self.num_points, self.gap, self.budget))
                        if len(out) > _CELLS:
                            more = f"at most {_CELLS:,} pairs times methods times seeds"
                            raise InputError(f"sweep {self.name!r}", expected=more, got="more")
        return out

    def _paired(self, entry: Training | Checkpoints) -> Iterator[tuple[Any, Any]]:
        ends, where = entry.ends(), f"networks, {entry.model}"
        if len(ends) < 2:
            raise InputError(where, expected="at least two networks to pair", got=len(ends))
        if self.pairs == "neighbours" and len(ends) % 2:
            raise InputError(where, expected="an even number, to pair neighbours", got=len(ends))
        _check_distinct(where, ends)
        if self.pairs == "all":
            return combinations(ends, 2)
        step = 2 if self.pairs == "neighbours" else 1
        return zip(ends[::step], ends[1::step], strict=False)


def _check_distinct(what: str, values: Sequence[Any]) -> None:
    """Refuse a list without entries, and an entry that is there twice: its rows would be taken for further ones."""
    if not values:
        raise InputError(what, expected="at least one entry", got="none")
    seen: set[str] = set()
    for value in values:
        text = text_of(value)
        if text in seen:
            raise InputError(what, expected="entries that differ", got=f"{getattr(value, 'label', value)} twice")
        seen.add(text)


def read_sweep(
    path: str | Path, changes: Sequence[str] = (), *, repeated: Sequence[str] = (), command: str = ""
) -> SweepFile:
    """The sweep in a YAML file; `changes` are ``KEY=VALUE``, with dots and numbers into it (``networks.0.steps=50``).

    The file chooses no code and no data files: networks and data that are not built in must be among `repeated` or
    the `changes`, as must networks and computed data of unusual size (see ``isthmus.stored``; `command` is what the
    message adds the options to). Checkpoints are opened as the file says; reading them runs nothing. Errors:
    ``FileError`` and ``InputError`` that name the key.
    """
    path = Path(path)
    document = _document(path)
    repeated = [*repeated, *_changed(document, changes)]
    document["networks"] = [
        _checked(Checkpoints if "checkpoints" in entry else Training, entry, f"{path}: networks.{i}")
        for i, entry in enumerate(_entries(document, path))
    ]
    read = _checked(SweepFile, document, str(path))
    if not 2 <= read.num_points <= _POINTS:
        raise InputError(f"{path}: num_points", expected=f"a whole number from 2 to {_POINTS:,}", got=read.num_points)
    check_search(read.gap, read.budget, read.num_points)
    said = dict.fromkeys((o, n) for e in read.networks for o, n in (("model", e.model), ("data", e.data)))
    left = [(option, name) for option, name in said if name not in repeated]
    gate = StoredSetup(path, command)
    gate.names(*left)
    gate.new_models(*(name for option, name in left if option == "model"))
    return read


def _document(path: Path) -> dict[str, Any]:
    """What the file holds, of bounded size."""
    try:
        if check_regular(path) > _BYTES:
            raise FileError(path, f"has more than {_BYTES:,} bytes", "give a sweep file")
        document = plain_yaml(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise FileError(path, *disk_error(e, path)) from e
    except UnicodeDecodeError as e:
        raise FileError(path, "is not text", "check the name") from e
    except ValueError as e:
        raise FileError(path, f"is not YAML of a sweep ({e})", "see docs/experiments.md for an example") from e
    if not isinstance(document, dict):
        raise FileError(path, "holds no keys", "see docs/experiments.md for an example")
    return document


def _changed(document: dict[str, Any], changes: Sequence[str]) -> list[str]:
    """Put the changes into the document; the texts among them, which the user typed."""
    typed: list[str] = []
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise InputError("--set", expected="KEY=VALUE", got=one_line(change))
        value = typed_value("--set", change, text)
        typed += _strings(value)
        _put(document, key.split("."), value, change)
    return typed


def _strings(value: Any) -> list[str]:
    """All texts in a document."""
    if isinstance(value, dict):
        value = list(value.values())
    return [s for v in value for s in _strings(v)] if isinstance(value, list) else [value] * isinstance(value, str)


def _entries(document: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    entries = document.get("networks")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise InputError(f"{path}: networks", expected="a list of entries with keys", got=type(entries).__name__)
    return entries


def _checked(kind: type[T], values: Mapping[str, Any], what: str) -> T:
    """A dataclass from plain values, converted to the types of its fields; the message names the key."""
    for key, value in values.items():
        if any(isinstance(one, bool) for one in (value if isinstance(value, list) else [value])):
            raise InputError(f"{what}.{key}", expected="numbers or texts", got=value)  # True would pass for 1
    try:
        from pydantic import TypeAdapter, ValidationError
    except ImportError as e:
        raise MissingExtraError("pydantic", "cli") from e
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join([what, *(str(part) for part in first["loc"])])
        raise InputError(where, expected=first["msg"], got=repr(first.get("input"))) from e


def _put(document: Any, keys: list[str], value: Any, change: str) -> None:
    for key in keys[:-1]:
        try:
            document = document[_place(key)] if isinstance(document, list) else document[key]
        except (LookupError, ValueError, TypeError) as e:
            raise InputError("--set", expected="a key of the file", got=change) from e
    if isinstance(document, list):
        try:
            document[_place(keys[-1])] = value
        except (LookupError, ValueError) as e:
            expected = f"a number below {len(document)} in {change!r}"
            raise InputError("--set", expected=expected, got=keys[-1]) from e
    elif isinstance(document, dict):
        document[keys[-1]] = value
    else:
        raise InputError("--set", expected="a key of the file", got=change)


def _place(key: str) -> int:
    """The number of an entry of a list, from 0 on."""
    if not key.isdecimal():
        raise ValueError(key)
    return int(key)


BARRIERS = ("max", "excess", "linear", "mean")


def _options(entry: Entry) -> str:
    return ", ".join(f"{k}={v}" for k, v in entry["method?"].items() if k != "name")


def _trained(entry: Entry) -> str:
    """How the networks of the row were made, but for what is the default: rows of several entries differ in it."""
    a = entry.cell.a
    kept: list[tuple[Any, tuple[str, ...]]] = [(a.problem, ("model", "data"))]
    if isinstance(a, Network):
        kept += [(a.recipe, ()), (a, ("problem", "seed", "recipe"))]
    said = [(f, getattr(value, f.name)) for value, but in kept for f in fields(value) if f.name not in but]
    return ", ".join(f"{f.name}={value}" for f, value in said if value != f.default)


def _barrier(quantity: str, name: str) -> Column:
    """Empty where the quantity was not measured."""
    return first(lambda entry: entry["barriers"].get(quantity, {}).get(name))


TABLE = Table(
    of=Pair,
    by={
        "model": "cell.a.problem.model",
        "data": "cell.a.problem.data",
        "trained": _trained,
        "pair": "cell.ends",
        "method": lambda e: type(e.cell.method).__name__,
        "options": _options,
        "seed": "cell.seed",
        ".key": lambda e: e.stored.key,
    },
    columns={
        "outcome": first(lambda e: ended(e["outcome.name"])),
        "segments": first("segments"),
        "length": first("length"),
        "length/distance": first("normalized_length"),
        **{
            f"{quantity.replace('_', ' ')} {name}": _barrier(quantity, name)
            for quantity in ("loss", "error", "test_loss", "test_error")
            for name in BARRIERS
        },
        "bound": first("bound?"),
        "seconds": first("record.seconds?"),
        "key": first(lambda e: e.stored.key),
    },
)
"""One row per pair, method and seed: every barrier, the proved bound, length, seconds."""
