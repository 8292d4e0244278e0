"""The commands that ask about two checkpoints what holds of them: ``isthmus theory``, and ``isthmus compare``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from isthmus.cli.common import opened
from isthmus.cli.console import console, hanging, print_json, progress_bar, show_table
from isthmus.cli.options import (
    PATHS,
    Asked,
    BatchNorm,
    Checkpoint,
    Gap,
    Json,
    LevelOption,
    OutOption,
    Points,
    Quiet,
    Seed,
    with_asked,
)
from isthmus.comparison import Comparison
from isthmus.comparison import compare as compare_methods
from isthmus.comparison.table import HEADING
from isthmus.storage.files import results_folder, write_csv, write_json, write_text
from isthmus.theory import Theory
from isthmus.theory import theory as theory_of
from isthmus.theory.table import Row, cells, rounded_up
from isthmus.verdict import LEVEL


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
    with results_folder(out) if out else nullcontext(), progress_bar(quiet) as progress:
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


@with_asked(*PATHS)
def compare(
    a: Checkpoint,
    b: Checkpoint,
    asked: Asked,
    out: OutOption,
    methods: Annotated[
        str | None,
        typer.Option("--methods", help="Names with commas between them; default: all. See: isthmus methods."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", help="Passes over the data that each training is fitted to; default: its own.", min=1),
    ] = None,
    prove: Annotated[bool, typer.Option("--prove/--no-prove", help="Whether a bound is proved for each path.")] = True,
    num_points: Points = 61,
    gap: Gap = 0.01,
    level: LevelOption = LEVEL,
    bn: BatchNorm = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Every method whose premises hold, on one pair: one table of what each path reaches, proves and costs.

    Each path has a folder of its own, as ``isthmus connect`` writes them. After a kill, the same command goes on.
    Exit code 1 when no method made its path.
    """
    found = opened((a, b), asked)
    names = None if methods is None else [name.strip() for name in methods.split(",")]
    with progress_bar(quiet) as progress:
        made = compare_methods(
            found.objective, found.ends[0], found.ends[1], names, budget=budget, folder=out, progress=progress,
            test=found.test, num_points=num_points, gap=gap, prove=prove, level=level, bn=bn, seed=seed,
            about=found.about,
        )  # fmt: skip
    figures = _draw(made, out) if made.rows else []
    if as_json:
        print_json(made.to_dict())
    else:
        _show(made, out, figures)
    return 0 if any(row.ok for row in made.rows) else 1


def _draw(made: Comparison, folder: Path) -> list[str]:
    from isthmus.plot import save_figure
    from isthmus.plot.figures import new_axes, settings

    with settings():
        figure, axes = new_axes(7.4, 4.8)
        made.plot(axes)
    for kind in ("svg", "png"):
        save_figure(figure, folder / f"comparison.{kind}")
    return ["comparison.svg", "comparison.png"]


def _show(made: Comparison, out: Path, figures: list[str]) -> None:
    columns = HEADING[:-1]
    show_table(columns, [row.cells[:-1] for row in made.rows])
    for row in made.rows:
        print(f"{row.method}: {row.verdict}")
    for name, why in made.skipped.items():
        print(f"{name} does not apply: {why}")
    if not made.rows:
        print(f"no method applies; written to {out}: comparison.json")
        return
    print(f"best: {made.best.method}, excess {made.best.excess:.4g}")
    files = ", ".join(["comparison.json", "comparison.csv", *figures])
    print(f"written to {out}: {files}; a page to read: isthmus report {out}")
