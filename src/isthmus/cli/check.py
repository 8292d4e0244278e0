"""``isthmus check``: may these networks be averaged?"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from isthmus.alignment.many import seen_model
from isthmus.analysis.check import TRAINING, Check
from isthmus.analysis.check import check as checked
from isthmus.cli.common import Opened, one_more, opened
from isthmus.cli.console import hanging, print_json, progress_bar, show_table
from isthmus.cli.options import Asked, BatchNorm, Gap, Json, LevelOption, OutOption, Quiet, Seed, with_asked
from isthmus.errors import InputError, MissingExtraError
from isthmus.graph.search import names_of
from isthmus.objective import Objective
from isthmus.storage import write_json
from isthmus.storage.files import results_folder
from isthmus.verdict import LEVEL, loss_in_words

DataSets = Annotated[
    list[str] | None,
    typer.Option("--data", help="A data set, as for connect; more of them, to be held out: NAME=DATA; repeatable."),
]


@with_asked("changed_data", "data")
def check(
    checkpoints: Annotated[list[Path], typer.Argument(help="Two or more files or folders of weights of one network.")],
    asked: Asked,
    out: OutOption = Path("check-results"),
    data: DataSets = None,
    level: LevelOption = LEVEL,
    align: Annotated[bool, typer.Option(help="Try them with their units renumbered, where they may not.")] = True,
    curve: Annotated[bool, typer.Option("--curve", help="Train a curve between the pair that rises most.")] = False,
    prove: Annotated[bool, typer.Option("--prove", help="Bound the loss on that pair's line for all t.")] = False,
    gap: Gap = 0.05,
    bn: BatchNorm = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """May these networks be averaged or merged? Measured on every data set; exit code 0: go, 1: no-go, 2: misuse.

    They may if the loss stays below the level on the straight line between each two of them and at their mean, on the
    training data, on its test part, and on all other data. The page says where the barrier sits, which examples carry
    it, and what aligning would change. With --base the weights that all began from, also how far each moved.
    """
    found, tests = opened_on(checkpoints, asked, data)
    base = base_of(asked, found)
    names = names_of(checkpoints) if len({*checkpoints}) == len(checkpoints) else None
    with results_folder(out) as folder, progress_bar(quiet) as progress:
        result = checked(
            found.objective, found.ends, test=tests, base=base, names=names, level=level, align=align, curve=curve,
            prove=prove, gap=gap, bn=bn, seed=seed, progress=progress,
        )  # fmt: skip
    about = found.about | {"data": data or [found.data], "seed": seed, "objective": found.objective.describe()}
    write_json(folder / "check.json", result.to_dict() | about)
    pages = _write_pages(folder)
    if as_json:
        print_json(result.to_dict() | about)
    else:
        _show(result)
        print(f"written: {folder / 'check.json'}" + "".join(f"\n         {page}" for page in pages))
    return 0 if result.go else 1


def _write_pages(folder: Path) -> list[Path]:
    from isthmus.report.check import FILE, write_check_files

    try:
        return write_check_files(folder / FILE)
    except MissingExtraError as error:
        print(f"note: no picture and no page: {error}", file=sys.stderr)
        return []


def _show(result: Check) -> None:
    print(hanging(result.why, ""))
    heading, rows = result.table()
    show_table(heading, [[("yes" if v else "no") if isinstance(v, bool) else v for v in row] for row in rows])
    if result.blocks is not None and not result.go:
        top = result.blocks.highest
        print(f"the block that alone raises the loss most: {top.name}, by {loss_in_words(top.alone)}")
    if result.certificate is not None:
        print(hanging(result.certificate.summary, "proof: "))
    for note in result.notes:
        print(hanging(note, "note: "))
    print(f"{result.passes:.1f} passes over the training data")


def opened_on(checkpoints: list[Path], asked: Asked, data: list[str] | None) -> tuple[Opened, dict[str, Objective]]:
    """The checkpoints on the first data set, and all other data by name, the first one's test part among them."""
    if len(checkpoints) < 2:
        raise InputError("checkpoints", expected="two or more", got=len(checkpoints))
    first, *others = data or [None]
    found = opened(checkpoints, replace(asked, data=None if first is None else _split(first)[1]), LARGE)
    tests = {} if found.test is None else {"held-out data": found.test}
    dtype = str(found.objective.dtype).removeprefix("torch.")
    again = replace(asked, examples=None, key=asked.key and asked.key[:1], dtype=dtype)
    for text in others:
        name, where = _split(str(text))
        other = opened(checkpoints[:1], replace(again, data=where), LARGE)
        for what, one in ((name, other.objective), (f"{name}, held out", other.test)):
            if what in (TRAINING, *tests):
                raise InputError("--data", expected="another name, NAME=DATA", got=repr(what))
            tests |= {} if one is None else {what: one}
    return found, tests


LARGE = 1 << 26
"""Bytes from which on networks stay in their files while they are measured."""


def _split(text: str) -> tuple[str, str]:
    """NAME=DATA; the name of the data where none is given, and where an equals sign is one of a path."""
    name, equals, where = text.partition("=")
    return (name, where) if equals and name and "/" not in name else (text, text)


def base_of(asked: Asked, found: Opened) -> Mapping[str, Tensor] | None:
    """The weights that all began from, as the objective evaluates them."""
    if asked.base is None:
        return None
    base = one_more(asked.base, replace(asked, key=None), found, LARGE)
    return seen_model(found.objective, base, "base")
