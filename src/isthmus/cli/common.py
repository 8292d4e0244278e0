"""What the commands share: their common options, and how options become objects."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml

from isthmus.cli.asked import Asked, Parts, of_checkpoints
from isthmus.connectors import Connector
from isthmus.data import Dataset
from isthmus.device import device_of as device_of
from isthmus.errors import CheckpointError, InputError, IsthmusError
from isthmus.models import MODELS, by_name, parameters_of
from isthmus.objective import Objective
from isthmus.params import Params, cast
from isthmus.pipeline import inputs_of
from isthmus.storage import read_checkpoint
from isthmus.storage.contents import Contents
from isthmus.storage.methods import connector_from
from isthmus.storage.tensors import read_metadata

Checkpoint = Annotated[
    Path, typer.Argument(help="Weights: .safetensors, .pt/.pth (bare or under state_dict, model, ...).")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="NAME[:SPEC], MODULE:FACTORY or FILE.py:FACTORY; default: as stored.")
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="A data set's name or an .npz file; default: as stored, else digits.")
]
LossOption = Annotated[
    str | None, typer.Option("--loss", help="cross_entropy or mse; default: as stored, else cross_entropy.")
]
BatchNorm = Annotated[
    str | None,
    typer.Option("--bn", help="BatchNorm: recompute, interpolate, keep or error; default: as stored, else recompute."),
]
Examples = Annotated[
    int | None, typer.Option("--examples", help="Use only the first N training examples; default: as stored.", min=1)
]
PenaltyOption = Annotated[
    str | None,
    typer.Option("--penalty", help="ridge:KAPPA or l1:KAPPA (then :NAME,NAME for some tensors only), or none."),
]
ChangedData = Annotated[
    bool, typer.Option("--changed-data", help="Measure although the data are not those that the path was made with.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
Points = Annotated[int, typer.Option("--num-points", help="Points measured per segment, both ends included.", min=2)]
Gap = Annotated[float, typer.Option("--gap", help="Relative gap at which a numerical bound may stop.")]
Budget = Annotated[
    int | None,
    typer.Option(
        "--budget",
        help="Sub-intervals that may be bounded; 0: exact claims only; default: what costs ten times the measuring.",
        min=0,
    ),
]
LevelOption = Annotated[
    str, typer.Option("--level", help="The verdict's level: a loss, or 1.1x for 1.1 times the larger end's loss.")
]
UnsafePickle = Annotated[
    bool, typer.Option("--unsafe-pickle", help="RUN CODE in .pt files that need it. Only for files you trust.")
]
Key = Annotated[
    list[str] | None,
    typer.Option("--key", help="Where in a .pt file the weights stand, as state_dict_ema; twice: one for each file."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")]
DType = Annotated[str, typer.Option("--dtype", help="auto (as stored, else as the weights), float32 or float64.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is random.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def dtype_of(name: str, params: Params) -> torch.dtype:
    """The precision of that name; auto takes that of the weights."""
    if name == "auto":
        kinds = [v.dtype for v in params.values() if v.is_floating_point()]
        return torch.float64 if torch.float64 in kinds else torch.float32
    if name not in ("float32", "float64"):
        raise InputError("--dtype", expected="auto, float32 or float64", got=repr(name))
    return torch.float32 if name == "float32" else torch.float64


def stored_in(path: Path) -> dict[str, str]:
    """What our own checkpoints say about themselves; nothing for others."""
    try:
        return read_metadata(path)
    except IsthmusError:
        return {}


def objectives(
    parts: Parts, like: Params | None, *, device: str, dtype: torch.dtype
) -> tuple[Objective, Objective | None]:
    """The training objective and, where the data have a test part, the test objective."""
    dataset = inputs_of(parts.model, parts.dataset)
    module = by_name(parts.model, inputs=dataset.shape, outputs=dataset.classes or None, like=like).eval()
    where = device_of(device)

    def build(d: Dataset) -> tuple[Objective, Objective | None]:
        data = (d.x_train.to(where), d.y_train.to(where))
        train = Objective(
            module.to(where),
            parts.loss,
            data,
            penalty=parts.penalty,
            dtype=dtype,
            **parts.labelled,  # type: ignore[arg-type]
        )
        train.penalty_of(dict.fromkeys(train.parameter_names, torch.zeros(())))  # do its names exist
        test = None if d.x_test is None or d.y_test is None else train.on((d.x_test.to(where), d.y_test.to(where)))
        return train, test

    try:
        return build(dataset)
    except InputError as e:
        if parts.model.partition(":")[0] not in MODELS and len(dataset.shape) > 1:
            return build(dataset.flat())
        if "x.float()" in str(e):
            e.add_note("inputs of whole numbers stay whole: store x in floating point for a network that multiplies it")
        elif "indices" in str(e):
            e.add_note("inputs of uint8 and bool become float32: store x as int64 for a network that looks it up")
        raise


@dataclass(frozen=True, eq=False)
class Opened:
    """Checkpoints of one network with what they are weights of; `ends` are in its precision and on its device."""

    model: str
    data: str
    objective: Objective
    test: Objective | None
    ends: tuple[Params, ...]


def opened(
    files: Sequence[Path], model: str | None, data: str | None, *,
    loss: str | None, examples: int | None, device: str, dtype: str, unsafe_pickle: bool, penalty: str | None = None,
    key: Sequence[str] | None = None,
) -> Opened:  # fmt: skip
    """Read the checkpoints; what is not asked for is as stored in the first, else a perceptron on digits."""
    keys = _keys(key, len(files))
    read = [read_checkpoint(file, unsafe_pickle=unsafe_pickle) for file in files]
    parts = of_checkpoints(files, [stored_in(file) for file in files], Asked(model, data, loss, examples, penalty))
    kind = dtype_of(dtype, {f"{i} {k}": v for i, c in enumerate(read) for k, v in _weights(c, keys[i]).items()})
    ends = []
    objective, test = _fitting(parts, read[0], keys[0], device, kind)
    for contents, place in zip(read, keys, strict=True):
        params, note = _choose(contents, place, objective)
        if note:
            print(f"note: {_as_options(note)}", file=sys.stderr)
        ends.append({k: v.to(objective.device) for k, v in cast(params, kind).items()})
    return Opened(parts.model, parts.data, objective, test, tuple(ends))


def _keys(key: Sequence[str] | None, files: int) -> list[str | None]:
    """The `key` of each file: one for all, or one for each."""
    if not key or len(key) == 1:
        return [key[0] if key else None] * files
    if len(key) != files:
        raise InputError("--key", expected=f"one name, or {files}, one for each file", got=len(key))
    return list(key)


def _choose(contents: Contents, key: str | None, like: Objective | None = None) -> tuple[Params, str]:
    try:
        return contents.choose(key, like)
    except CheckpointError as error:
        error.args = (_as_options(str(error)),)
        raise


def _as_options(text: str) -> str:
    """A message with the options of the command line instead of Python's arguments."""
    return text.replace(" key=", " --key ").replace("(key=", "(--key ")


def _weights(contents: Contents, key: str | None) -> Params:
    """The weights as far as they can be told without knowing the network, else all tensors."""
    try:
        return contents.choose(key)[0]
    except CheckpointError:
        return contents.tensors()


def _fitting(
    parts: Parts, contents: Contents, key: str | None, device: str, dtype: torch.dtype
) -> tuple[Objective, Objective | None]:
    """The objectives of the network that `parts` names, which may take its sizes from the weights."""
    try:
        return objectives(parts, _choose(contents, key)[0], device=device, dtype=dtype)
    except (InputError, CheckpointError) as error:
        # names as in the file can fit under a prefix, beside other tensors, or in one of several dictionaries
        try:
            if _is_larger(parts, contents.size):
                raise error
            return objectives(parts, None, device=device, dtype=dtype)
        except InputError:
            raise error from None


def _is_larger(parts: Parts, size: int) -> bool:
    """Whether a built-in network has more parameters than a file of that many bytes can hold: its name may be false."""
    data = inputs_of(parts.model, parts.dataset)
    known = parts.model.partition(":")[0] in MODELS
    return known and parameters_of(parts.model, inputs=data.shape, outputs=data.classes or None) > size


def method_of(name: str, options: list[str]) -> Connector:
    """A connector from its name and ``key=value`` options, with unknown keys and bad values refused by name."""
    values: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise InputError("--option", expected="KEY=VALUE", got=option)
        values[key] = yaml.safe_load(text)
    return connector_from({**values, "name": name}, "--method")
