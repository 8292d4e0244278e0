"""What the commands share: their common options, and how options become objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as validated

from isthmus.connectors import METHODS, Connector
from isthmus.data import load
from isthmus.errors import InputError, IsthmusError
from isthmus.models import MODELS, by_name
from isthmus.objective import Objective
from isthmus.params import Params, cast
from isthmus.storage import load_params
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
LossOption = Annotated[str, typer.Option("--loss", help="cross_entropy or mse.")]
Examples = Annotated[int | None, typer.Option("--examples", help="Use only the first N training examples.", min=1)]
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
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")]
DType = Annotated[str, typer.Option("--dtype", help="auto (as the checkpoints), float32 or float64.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is random.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def device_of(name: str) -> torch.device:
    """The device of that name; auto takes a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:
        raise InputError("--device", expected="auto, cpu or a device that torch has here", got=repr(name)) from e


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
    model: str, data: str, like: Params, *, loss: str, examples: int | None, device: str, dtype: torch.dtype
) -> tuple[Objective, Objective | None]:
    """The training objective and, where the data have a test part, the test objective."""
    dataset = load(data).subset(examples, None) if examples else load(data)
    name = model.partition(":")[0]
    module = by_name(model, inputs=dataset.shape, outputs=dataset.classes or None, like=like).eval()
    where = device_of(device)

    def build(flat: bool) -> tuple[Objective, Objective | None]:
        d = dataset.flat() if flat else dataset
        train = Objective(module.to(where), loss, (d.x_train.to(where), d.y_train.to(where)), dtype=dtype)
        test = None if d.x_test is None or d.y_test is None else train.on((d.x_test.to(where), d.y_test.to(where)))
        return train, test

    if name in MODELS:
        return build(MODELS[name].flat)
    try:
        return build(flat=False)
    except InputError:
        if len(dataset.shape) == 1:
            raise
        return build(flat=True)


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
    loss: str, examples: int | None, device: str, dtype: str, unsafe_pickle: bool,
) -> Opened:  # fmt: skip
    """Read the checkpoints; what is not asked for is as stored in the first, else a perceptron on digits."""
    read = [load_params(file, unsafe_pickle=unsafe_pickle) for file in files]
    stored = stored_in(files[0])
    model, data = model or stored.get("model") or "mlp", data or stored.get("data") or "digits"
    kind = dtype_of(dtype, {k: v for params in read for k, v in params.items()})
    objective, test = objectives(model, data, read[0], loss=loss, examples=examples, device=device, dtype=kind)
    ends = tuple({k: v.to(objective.device) for k, v in cast(params, kind).items()} for params in read)
    return Opened(model, data, objective, test, ends)


def method_of(name: str, options: list[str]) -> Connector:
    """A connector from its name and ``key=value`` options, with unknown keys and bad values refused by name."""
    names = {m.__name__.lower(): m for m in METHODS}
    if name.lower() not in names:
        raise InputError("--method", expected=f"one of {', '.join(m.__name__ for m in METHODS)}", got=repr(name))
    kind = names[name.lower()]
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or key not in known:
            raise InputError(f"--option for {kind.__name__}", expected=f"KEY=VALUE, KEY in {sorted(known)}", got=option)
        values[key] = yaml.safe_load(text)
    try:
        checked = validated(kind, config=ConfigDict(extra="forbid", frozen=True))  # type: ignore[call-overload]
        return kind(**{k: getattr(checked(**values), k) for k in values})
    except ValidationError as e:
        first = e.errors()[0]
        raise InputError(
            f"--option {'.'.join(map(str, first['loc']))}", expected=first["msg"], got=repr(first.get("input"))
        ) from e
