"""The options that commands share, and the one value that holds what the user typed of a network and its data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from isthmus.checks import refuse_not_finite

Checkpoint = Annotated[
    Path,
    typer.Argument(help="Weights: a file (.safetensors, .pt, .pth, .bin), or a folder of Hugging Face or of PEFT."),
]
PathFile = Annotated[Path, typer.Argument(help="A path file (path.safetensors).")]
BatchNorm = Annotated[
    str | None,
    typer.Option("--bn", help="BatchNorm: recompute, interpolate, keep or error; default: as stored, else recompute."),
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
Points = Annotated[int, typer.Option("--num-points", help="Points measured per segment, both ends included.", min=2)]
Gap = Annotated[float, typer.Option("--gap", help="Relative gap at which a numerical bound may stop.")]
Budget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        help="What bounding sub-intervals may cost, in profiles; 0: exact claims only; default: 30.",
        min=0,
    ),
]
BoundModel = Annotated[
    str, typer.Option("--bounds", help="How sub-intervals are bounded: box, chord, or auto, by a trial.")
]
LevelOption = Annotated[
    str, typer.Option("--level", help="The verdict's level: a loss, or 1.1x for 1.1 times the larger end's loss.")
]
Method = Annotated[str, typer.Option("--method", help="See: isthmus methods.")]
MethodOptions = Annotated[
    list[str] | None, typer.Option("--option", help="KEY=VALUE, a field of the method; repeatable.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is random.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@dataclass(frozen=True)
class Asked:
    """What the user typed of a network, its data and its weights; None where it is left to the file."""

    model: Annotated[
        str | None,
        typer.Option("--model", help="NAME[:SPEC], hf:FOLDER, FILE.py:FACTORY, MODULE:FACTORY; default: as stored."),
    ] = None
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="A data set's name, a .npz file, FILE.py:FACTORY, MODULE:FACTORY; with hf: also .txt and .jsonl; "
            "default: as stored, else digits.",
        ),
    ] = None
    block: Annotated[
        int | None,
        typer.Option("--block", help="Words of an example of a text; default: what the network takes, or 128.", min=1),
    ] = None
    loss: Annotated[
        str | None,
        typer.Option("--loss", help="cross_entropy, mse, ...; default: the data's, as stored, else cross_entropy."),
    ] = None
    ignore_index: Annotated[
        int | None, typer.Option("--ignore-index", help="The label that counts nowhere; default: as stored, else -100.")
    ] = None
    class_axis: Annotated[
        int | None, typer.Option("--class-axis", help="The outputs' axis of classes, 1 or -1; default: what fits.")
    ] = None
    examples: Annotated[
        int | None,
        typer.Option("--examples", help="Use only the first N training examples; default: as stored.", min=1),
    ] = None
    penalty: Annotated[
        str | None,
        typer.Option("--penalty", help="ridge:KAPPA or l1:KAPPA (then :NAME,NAME for some tensors only), or none."),
    ] = None
    batch: Annotated[
        int | None, typer.Option("--batch", help="Examples per forward pass; default: what fits into 256 MB.", min=1)
    ] = None
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")] = "auto"
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (as stored, else as the weights), float32 or float64.")
    ] = "auto"
    changed_data: Annotated[
        bool,
        typer.Option("--changed-data", help="Measure although the data are not those that the path was made with."),
    ] = False
    key: Annotated[
        list[str] | None,
        typer.Option("--key", help="Where in a .pt file the weights stand, as state_dict_ema; twice: one per file."),
    ] = None
    base: Annotated[
        Path | None, typer.Option("--base", help="The weights under a PEFT adapter; default: the folder it names.")
    ] = None
    unsafe_pickle: Annotated[
        bool, typer.Option("--unsafe-pickle", help="RUN CODE in .pt files that need it. Only for files you trust.")
    ] = False


CHECKPOINTS = ("key", "base", "unsafe_pickle")
"""What is asked of checkpoints alone."""
PATHS = ("changed_data",)
"""What is asked of path files alone."""


def with_asked(*without: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A command whose parameter ``asked`` is made of options, one for each field of ``Asked`` but those left out."""
    names = [f.name for f in fields(Asked) if f.name not in without]
    hints = get_type_hints(Asked, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name])
        for f in fields(Asked)
        if f.name in names
    ]

    def made(command: Callable[..., int]) -> Callable[..., int]:
        @wraps(command)
        def run(**given: Any) -> int:
            for name, value in given.items():
                refuse_not_finite(f"--{name.replace('_', '-')}", value)
            return command(asked=Asked(**{name: given.pop(name) for name in names}), **given)

        own = inspect.signature(command, eval_str=True)
        rest = [p.replace(kind=kind) for name, p in own.parameters.items() if name != "asked"]
        run.__signature__ = own.replace(parameters=[*rest, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*rest, *shared)} | {"return": int}
        return run

    return made
