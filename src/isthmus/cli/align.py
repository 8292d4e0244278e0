"""The command that renumbers the units of one network to be those of another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from isthmus.alignment import Matching, Renumbering
from isthmus.alignment import align as aligned
from isthmus.alignment.matching import Matched, MatchingTask
from isthmus.cli.common import matching_of, opened, stored_in
from isthmus.cli.console import number, progress_bar, show_table
from isthmus.cli.options import PATHS, Asked, Checkpoint, Json, Quiet, Seed, with_asked
from isthmus.errors import InputError
from isthmus.objective import Objective
from isthmus.storage import load_alignment, make_folder, save_alignment, save_params

_ENDING = ".alignment.safetensors"


@with_asked(*PATHS)
def align(
    a: Checkpoint,
    b: Checkpoint,
    asked: Asked,
    out: Annotated[Path, typer.Option("--out", help="Where to write the weights of B, renumbered (.safetensors).")],
    by: Annotated[
        str,
        typer.Option(
            "--by",
            help="activations; weights; rotations; or the file of an alignment, or of a path of Aligned, to make on B.",
        ),
    ] = "activations",
    option: Annotated[
        list[str] | None, typer.Option("--option", help="KEY=VALUE, a field of the matching; repeatable.")
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Renumber the hidden units of B to be those of A; what B computes stays the same, and is checked to.

    Writes the weights, and beside them the permutations, which --by takes for another checkpoint of B's run.
    """
    found = opened((a, b), asked)
    with progress_bar(quiet) as progress:
        matching = _matching(by, option or [], found.objective)
        made = aligned(found.objective, found.ends[0], found.ends[1], matching, seed=seed, progress=progress)
    make_folder(out.parent)
    beside = out.with_name(out.name.removesuffix(".safetensors") + _ENDING)
    about = {k: v for k, v in stored_in(b).items() if k in ("loss", "examples") and isinstance(v, str)}
    save_params({k: v.cpu() for k, v in made.target.items()}, out, about | {"model": found.model, "data": found.data})
    save_alignment(made, beside)
    if as_json:
        print(json.dumps(made.to_dict() | {"out": str(out), "alignment": str(beside)}, indent=2))
        return 0
    moved = made.moved
    show_table(("units", "number", "moved"), [(k, len(v), f"{moved[k]:.0%}") for k, v in made.permutations.items()])
    before, after = made.distance
    print(f"distance {number(before)} -> {number(after)}; outputs changed by {made.function_error:.1e} of their size")
    print(f"written: {out}\n         {beside}")
    return 0


def _matching(by: str, options: list[str], objective: Objective) -> Matching:
    if not Path(by).is_file():
        return matching_of(by, options)
    if options:
        raise InputError("--option", expected="none with a stored alignment", got=options)
    return _Again(load_alignment(by, objective))


@dataclass(frozen=True)
class _Again(Matching):
    """What was found for another checkpoint of the run."""

    made: Renumbering

    def find(self, task: MatchingTask) -> Matched:
        """The same permutations, rotations and norms."""
        before, made = {k: task.b[k].double() for k in self.made.before}, self.made
        return Matched(made.permutations, rotations=made.rotations, norms=made.norms, before=before, frame=made.frame)
