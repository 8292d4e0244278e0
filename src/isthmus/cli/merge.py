"""``isthmus merge``: one network from the weights of several, refused where it is worse than they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import typer

from isthmus.analysis.averaging import Mean
from isthmus.analysis.check import sets_of
from isthmus.analysis.merge import METHODS, Merged, MergeMethod
from isthmus.analysis.merge import merge as merged
from isthmus.cli.check import DataSets, base_of, opened_on
from isthmus.cli.common import stored_in
from isthmus.cli.console import hanging, print_json, progress_bar, show_table
from isthmus.cli.options import Asked, BatchNorm, Json, LevelOption, Quiet, Seed, with_asked
from isthmus.errors import InputError
from isthmus.objective import Objective
from isthmus.params import equal
from isthmus.report.card import merge_card, mergekit_recipe
from isthmus.storage import make_folder, write_json, write_text
from isthmus.storage.folders import adapter_folder
from isthmus.storage.merged import ENDINGS, as_written, check_place, save_like
from isthmus.stored import SAID
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
        float | None,
        typer.Option("--at", help="Of two networks, how far from the first; default: where it is best; slerp: 0.5."),
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
    _check_base(method, asked.base, checkpoints)
    _check_out(out, [*checkpoints, *([] if asked.base is None else [asked.base])])
    found, tests = opened_on(checkpoints, asked, data)
    base = base_of(asked, found) if method in ("task", "ties") else None
    with progress_bar(quiet) as progress:
        result = merged(
            found.objective, found.ends, known, at, weights=weight, base=base, density=density, scale=scale,
            test=tests, level=level, bn=bn, seed=seed, progress=progress,
        )  # fmt: skip
    result = _as_written(result, sets_of(found.objective, tests), checkpoints[0], asked)
    about = found.about | {"data": data or [found.data], "base": asked.base and str(asked.base), "written": []}
    if result.ok or anyway:
        about["written"] = [str(file) for file in _write(result, out, checkpoints, asked, about)]
    _show(result, about, as_json)
    return _said_no(anyway) if not result.ok else 0


def _as_written(result: Merged, sets: Mapping[str, Objective], source: Path, asked: Asked) -> Merged:
    """With the losses of what is written, which has the precisions of the first checkpoint."""
    key, base = asked.key[0] if asked.key else None, asked.base
    narrow = as_written(result.params, source, key=key, base=base, unsafe_pickle=asked.unsafe_pickle)
    if equal(narrow, result.params):
        return result
    worth = {name: Mean(*one.measure(narrow), result.worth[name].level) for name, one in sets.items()}
    return replace(result, worth=worth)


def _said_no(anyway: bool) -> int:
    print("written all the same" if anyway else "nothing written; --anyway writes it", file=sys.stderr)
    return 1


def _said_by_all(checkpoints: list[Path]) -> dict[str, str]:
    """What all of them say of their network and its objective, as those of ``isthmus train`` do."""
    first, *others = (stored_in(file) for file in checkpoints)
    kept = {key: first[key] for key in ("model", "data", *SAID) if key in first}
    return {k: v for k, v in kept.items() if isinstance(v, str) and all(one.get(k) == v for one in others)}


def _known(method: str) -> MergeMethod:
    for known in get_args(MergeMethod):
        if known == method:
            return known
    raise InputError("--method", expected=f"one of {', '.join(METHODS)}", got=repr(method))


def _check_base(method: str, base: Path | None, checkpoints: list[Path]) -> None:
    """A base that nothing would read is a mistake."""
    if base is not None and method not in ("task", "ties") and all(adapter_folder(c) is None for c in checkpoints):
        raise InputError("--base", expected="none but for task, ties and adapters of PEFT", got=str(base))


def _check_out(out: Path, checkpoints: list[Path]) -> None:
    """Nothing of the user's is written over: what was merged, and weights that no merge wrote."""
    check_place(out)
    if any(_is_at(out.resolve(), file.resolve()) for file in checkpoints):
        raise InputError("--out", expected="another place than that of the checkpoints", got=str(out))
    if _holds_weights(out) and not _beside(out, "json").is_file():
        raise InputError("--out", expected="a place without weights, or those of a merge before", got=str(out))


def _is_at(target: Path, source: Path) -> bool:
    """Whether the place is a checkpoint, lies in it, or is the folder that holds it."""
    return target.is_relative_to(source) if source.is_dir() else target in (source, source.parent)


def _holds_weights(out: Path) -> bool:
    return out.is_file() or (out.is_dir() and any(file.suffix in ENDINGS for file in out.iterdir()))


def _beside(out: Path, kind: str) -> Path:
    """The file of that kind that says what was merged."""
    return out.with_name(f"{out.stem}.merge.{kind}") if out.suffix else out / f"merge.{kind}"


def _write(result: Merged, out: Path, checkpoints: list[Path], asked: Asked, about: dict[str, object]) -> list[Path]:
    """The weights, the card, and the same recipe for mergekit where there is one.

    merge.json first: it tells the weights of a merge that was killed from others, so that the same command goes on.
    """
    key, base = asked.key[0] if asked.key else None, asked.base
    document = result.to_dict() | about
    recipe = mergekit_recipe(result, [str(file) for file in checkpoints], base)
    make_folder(_beside(out, "json").parent)
    write_json(_beside(out, "json"), document)
    written = save_like(
        result.params, out, checkpoints[0], key=key, base=base, unsafe_pickle=asked.unsafe_pickle,
        metadata=_said_by_all(checkpoints),
    )  # fmt: skip
    write_text(_beside(out, "md"), merge_card(document, recipe))
    written += [_beside(out, "json"), _beside(out, "md")]
    if recipe is not None:
        kit = _beside(out, "json").with_suffix("")
        write_text(kit.with_name(f"{kit.name}kit.yaml"), recipe)
        written.append(kit.with_name(f"{kit.name}kit.yaml"))
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
