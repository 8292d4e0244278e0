"""``isthmus merge``: one network from the weights of several, refused where it is worse than they are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from isthmus.analysis.merge import METHODS, Merged, MergeMethod
from isthmus.analysis.merge import merge as merged
from isthmus.cli.check import DataSets, base_of, opened_on
from isthmus.cli.console import hanging, print_json, progress_bar, show_table
from isthmus.cli.options import Asked, BatchNorm, Json, LevelOption, Quiet, Seed, with_asked
from isthmus.cli.typed import command
from isthmus.errors import InputError
from isthmus.report.card import merge_card, mergekit_recipe
from isthmus.storage import make_folder, write_json, write_text
from isthmus.storage.merged import save_like
from isthmus.verdict import LEVEL

_SAYS = "; ".join(f"{name}: {says}" for name, says in METHODS.items())


@with_asked("changed_data", "data")
def merge(
    checkpoints: Annotated[list[Path], typer.Argument(help="Two or more files or folders of weights of one network.")],
    asked: Asked,
    out: Annotated[
        Path,
        typer.Option("--out", help="A folder (as of Hugging Face, where they came so), or a file .safetensors, .pt."),
    ],
    method: Annotated[str, typer.Option("--method", help=f"{_SAYS}.")] = "average",
    at: Annotated[
        float | None, typer.Option("--at", help="Of two networks, how far from the first; default: where it is best.")
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option("--weight", help="Of each network, in their order; repeatable.")
    ] = None,
    density: Annotated[float, typer.Option("--density", help="ties: the share of entries that is kept.")] = 0.2,
    scale: Annotated[float, typer.Option("--scale", help="task, ties: of what is added to --base.")] = 1.0,
    data: DataSets = None,
    level: LevelOption = LEVEL,
    anyway: Annotated[bool, typer.Option("--anyway", help="Write it although its loss is above the level.")] = False,
    bn: BatchNorm = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Merge networks, measure what came out, and write it as they came, with a card; 1 where it is above the level.

    Nothing is written then, unless --anyway is given. --base: what the networks began from, for task and ties.
    """
    known = _known(method)
    _check_out(out, checkpoints)
    found, tests = opened_on(checkpoints, asked, data)
    base = base_of(asked, found) if method in ("task", "ties") else None
    with progress_bar(quiet) as progress:
        result = merged(
            found.objective, found.ends, known, at, weights=weight, base=base, density=density, scale=scale,
            test=tests, level=level, bn=bn, seed=seed, progress=progress,
        )  # fmt: skip
    about = {"checkpoints": [str(file) for file in checkpoints], "model": found.model, "data": data or [found.data]}
    about |= {"base": asked.base and str(asked.base), "command": command(), "written": []}
    if result.ok or anyway:
        about["written"] = [str(file) for file in _write(result, out, checkpoints, asked, about)]
    _show(result, about, as_json)
    return _said_no(anyway) if not result.ok else 0


def _said_no(anyway: bool) -> int:
    print("written all the same" if anyway else "nothing written; --anyway writes it", file=sys.stderr)
    return 1


def _known(method: str) -> MergeMethod:
    for known in get_args(MergeMethod):
        if known == method:
            return known
    raise InputError("--method", expected=f"one of {', '.join(METHODS)}", got=repr(method))


def _check_out(out: Path, checkpoints: list[Path]) -> None:
    """Nothing of the user's is written over."""
    sources = {file.resolve() for file in checkpoints}
    if out.resolve() in sources or any(out.resolve() == file.parent for file in sources if file.is_file()):
        raise InputError("--out", expected="another place than that of the checkpoints", got=str(out))


def _write(result: Merged, out: Path, checkpoints: list[Path], asked: Asked, about: dict[str, object]) -> list[Path]:
    """The weights, the card, and the same recipe for mergekit where there is one."""
    written = save_like(result.params, out, checkpoints[0], unsafe_pickle=asked.unsafe_pickle)
    folder = make_folder(out if not out.suffix else out.parent)
    beside = folder / ("merge" if not out.suffix else f"{out.stem}.merge")
    document = result.to_dict() | about
    recipe = mergekit_recipe(result, [str(file) for file in checkpoints], asked.base)
    write_json(beside.with_name(f"{beside.name}.json"), document)
    write_text(beside.with_name(f"{beside.name}.md"), merge_card(document, recipe))
    written += [beside.with_name(f"{beside.name}.{kind}") for kind in ("json", "md")]
    if recipe is not None:
        write_text(beside.with_name(f"{beside.name}kit.yaml"), recipe)
        written.append(beside.with_name(f"{beside.name}kit.yaml"))
    return written


def _show(result: Merged, about: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict() | about)
        return
    print(hanging(result.why, ""))
    at = [] if result.at is None else [f"at t = {result.at:.4g}"]
    print(", ".join([f"method {result.method}", *at]))
    networks = [f"network {i}" for i in range(len(next(iter(result.ends.values()))))]
    rows = [(name, *result.ends[name], one.loss, one.level, one.error) for name, one in result.worth.items()]
    show_table(("data", *networks, "merged", "level", "merged error"), rows)
    for file in about["written"] if isinstance(about["written"], list) else ():
        print(f"written: {file}")
