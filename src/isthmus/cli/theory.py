"""``isthmus theory A B``: the theorems' premises on two checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from isthmus.cli.common import opened
from isthmus.cli.console import console, progress_bar
from isthmus.cli.options import PATHS, Asked, Checkpoint, Json, Quiet, Seed, with_asked
from isthmus.storage import make_folder
from isthmus.storage.files import plain, write_csv, write_json, write_text
from isthmus.theory import Theory
from isthmus.theory import theory as theory_of
from isthmus.theory.table import cells


@with_asked(*PATHS)
def theory(
    a: Checkpoint,
    b: Checkpoint,
    asked: Asked,
    out: Annotated[Path | None, typer.Option("--out", help="Also write theory.md, .csv and .json here.")] = None,
    theorem: Annotated[
        list[str] | None, typer.Option("--theorem", help="Only theorems whose name holds this text; repeatable.")
    ] = None,
    masks: Annotated[int, typer.Option("--masks", help="Subsets per layer for dropout stability.", min=1)] = 50,
    draws: Annotated[int, typer.Option("--draws", help="Draws of the noise, and of each subnetwork.", min=1)] = 5,
    steps: Annotated[int, typer.Option("--steps", help="Training steps per subnetwork.", min=1)] = 500,
    sample: Annotated[int | None, typer.Option("--sample", help="Examples for noise stability.", min=1)] = 500,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Which theorems apply to two networks: every premise measured, and the bound that follows."""
    found = opened((a, b), asked)
    if out is not None:
        make_folder(out)
    with progress_bar(quiet) as progress:
        table = theory_of(
            found.objective, *found.ends,
            theorems=theorem, masks=masks, draws=draws, steps=steps, examples=sample, seed=seed, progress=progress,
        )  # fmt: skip
    if out is not None:
        write_text(out / "theory.md", table.to_markdown())
        write_csv(out / "theory.csv", {k: [asdict(row)[k] for row in table.rows] for k in asdict(table.rows[0])})
        write_json(out / "theory.json", table.to_dict())
    if as_json:
        print(json.dumps(plain(table.to_dict(), nonfinite=True), indent=2))
    else:
        _print(table)
    return 0


def _print(table: Theory) -> None:
    """One section per theorem."""
    shown = Table("premise", "end", "measured", "needed", "holds", "bound", "note")
    for theorem in dict.fromkeys(row.theorem for row in table.rows):
        shown.add_section()
        shown.add_row(theorem, style="bold")
        for row in table.rows:
            if row.theorem == theorem:
                shown.add_row(*cells(row)[1:])
    screen = console()
    screen.width = max(screen.width, 160)
    screen.print(shown, highlight=False, markup=False)
