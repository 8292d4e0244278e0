"""``isthmus theory A B``: the theorems' premises on two checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from isthmus.cli.common import opened
from isthmus.cli.console import console, hanging, print_json, progress_bar
from isthmus.cli.options import PATHS, Asked, Checkpoint, Json, Quiet, Seed, with_asked
from isthmus.storage import make_folder
from isthmus.storage.files import write_csv, write_json, write_text
from isthmus.theory import Theory
from isthmus.theory import theory as theory_of
from isthmus.theory.table import Row, cells, rounded_up


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
    details: Annotated[bool, typer.Option("--details", help="Every premise, in a table.")] = False,
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
        _write(table, out)
    if as_json:
        print_json(table.to_dict())
    else:
        _say(table)
        _print(table) if details else print("every premise: isthmus theory ... --details")
    return 0


def _write(table: Theory, out: Path) -> None:
    write_text(out / "theory.md", table.to_markdown())
    write_csv(out / "theory.csv", {k: [asdict(row)[k] for row in table.rows] for k in asdict(table.rows[0])})
    write_json(out / "theory.json", table.to_dict())


def _say(table: Theory) -> None:
    """One line for each theorem, as far as the terminal is wide."""
    for theorem in dict.fromkeys(row.theorem for row in table.rows):
        rows = [row for row in table.rows if row.theorem == theorem]
        print(hanging(f"{theorem}: {_in_a_line(rows[:-1], rows[-1])}", "", "    "))


def _in_a_line(premises: Sequence[Row], last: Row) -> str:
    """What a theorem says of the pair: that it applies and its bound, or the first premise that fails or is open."""
    by = {holds: _premise(row) for row in reversed(premises) for holds in [row.vacuous or row.holds]}
    if False in by:
        return f"does not apply: {by[False]}"
    if last.bound is not None:
        return f"applies, loss on a path <= {rounded_up(last.bound)}"
    if last.holds is None and None in by:
        return f"open: {by[None]}"
    return f"{'applies without a bound' if last.holds else 'no bound'}: {last.note.removeprefix('not applicable: ')}"


def _premise(row: Row) -> str:
    end = f" of {row.end}" if row.end else ""
    measured = "" if row.measured is None else f" is {row.measured:.4g}"
    return f"{row.premise}{end}{measured}" + (f", needed: {row.needed}" if row.needed else "")


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
