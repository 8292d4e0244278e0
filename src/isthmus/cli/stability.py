"""``isthmus stability CHECKPOINT``: which units a trained network can do without."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from isthmus.cli.common import opened
from isthmus.cli.console import console, number, print_json, progress_bar
from isthmus.cli.options import PATHS, Asked, Checkpoint, Json, OutOption, Quiet, Seed, with_asked
from isthmus.experiments.page import Row, write_tables
from isthmus.stability.dropout.measure import DropoutStability, dropout_stability
from isthmus.stability.dropout.search import SCALES
from isthmus.stability.dropout.subsets import SEARCHES
from isthmus.stability.noise.measure import NoiseStability, noise_stability
from isthmus.storage import write_csv, write_json
from isthmus.storage.files import results_folder


@with_asked("penalty", *PATHS)
def stability(
    checkpoint: Checkpoint,
    asked: Asked,
    out: OutOption,
    keep: Annotated[float, typer.Option("--keep", help="The fraction of each layer's units that stays.")] = 0.5,
    masks: Annotated[int, typer.Option("--masks", help="Networks evaluated per entry layer.", min=1)] = 200,
    scale: Annotated[str, typer.Option("--scale", help=f"{', '.join(SCALES)}.")] = "output",
    search: Annotated[str, typer.Option("--search", help=f"{', '.join(SEARCHES)}.")] = "random",
    noise: Annotated[bool, typer.Option("--noise", help="Also noise stability, with its histograms.")] = False,
    p: Annotated[float, typer.Option("--p", help="Dropout probability of the noise (Algorithm 1).")] = 0.5,
    noise_examples: Annotated[
        int | None, typer.Option("--noise-examples", help="Measure the noise on the first N examples.", min=1)
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """How dropout stable a network is (Kuditipudi et al. 2019, Definition 1), and how noise stable (Definition 4).

    Writes the table (CSV, Markdown, JSON), everything as JSON, and the figures (SVG, PNG) to a folder.
    """
    read = opened((checkpoint,), asked)
    objective, test, (theta,) = read.objective, read.test, read.ends
    measured = None
    with results_folder(out) as folder, progress_bar(quiet) as progress:
        found = dropout_stability(objective, theta, keep, masks, scale, search, seed, test=test, progress=progress)
        if noise:
            many = None if noise_examples is None else min(noise_examples, objective.num_examples)
            measured = noise_stability(objective, theta, p, examples=many, seed=seed, progress=progress)
    document: dict[str, Any] = {"model": read.model, "data": read.data, "checkpoint": str(checkpoint)}
    document |= {"objective": objective.describe(), "dropout": found.to_dict()}
    document |= {} if measured is None else {"noise": measured.to_dict()}
    write_json(folder / "stability.json", document)
    write_tables(rows_of(found), folder, "dropout")
    files = _figures(found, measured, folder)
    if as_json:
        print_json(document)
        return 0
    _show(found, measured)
    print("\n".join(map(str, [folder / "stability.json", *files])))
    return 0


def rows_of(found: DropoutStability) -> list[Row]:
    """One row per entry layer, from the first on, and one for the network itself."""
    whole: Row = {"entry layer": "none", "loss": found.loss, "epsilon": 0.0, "error": found.error}
    rows = [
        {
            "entry layer": layer.entry,
            "loss": layer.loss,
            "epsilon": layer.epsilon,
            "error": layer.error,
            "test loss": layer.test_loss,
            "test error": layer.test_error,
            "scale": layer.scale,
            "kept": sum(len(units) for units in layer.kept.values()),
            "of units": sum(found.widths[j] for j in layer.kept),
            "separates": layer.separates,
            "loss halfway": layer.curve[(len(layer.curve) - 1) // 2],
        }
        for layer in found.layers
    ]
    return [*rows, whole | {"test loss": found.test_loss, "test error": found.test_error}]


def _figures(found: DropoutStability, measured: NoiseStability | None, folder: Path) -> list[Path]:
    """All figures, and the numbers behind the histograms."""
    from isthmus.plot import save_figure
    from isthmus.plot.stability import dropout_figure, noise_histograms, noise_values

    figures = {"dropout": dropout_figure(found.to_dict())}
    if measured is not None:
        values = noise_values(measured)
        write_csv(
            folder / "noise.csv",
            {f"{quantity} {i}": v.tolist() for quantity, table in values.items() for i, v in table.items()},
        )
        figures |= {quantity.replace("_", "-"): noise_histograms(values, quantity) for quantity in values}
    return [save_figure(f, folder / f"{name}.{kind}") for name, f in figures.items() for kind in ("svg", "png")]


def _show(found: DropoutStability, measured: NoiseStability | None) -> None:
    stable = f"{number(found.epsilon, up=True)}-dropout stable, as far as found: keep {found.keep:g}, "
    table = Table(
        caption=f"{stable}{found.masks} evaluations per entry layer, search {found.search}, scale {found.scale}; "
        "halfway: after half of them"
    )
    rows = rows_of(found)
    for column in rows[0]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = [row.get(column) for column in rows[0]]
        table.add_row(*(number(v) if isinstance(v, float) else "" if v is None else _word(v) for v in cells))
    screen = console()
    screen.width = max(screen.width, screen.measure(table, options=screen.options.update(width=10_000)).maximum)
    screen.print(table)
    if measured is None:
        return
    print(f"noise stability at p = {measured.p:g}: epsilon of Definition 4 = {_shown(measured.epsilon)}")
    conditions = Table("condition", "value", "needed", "holds")
    for c in measured.conditions:
        conditions.add_row(c.name, _shown(c.value), c.needed, "-" if c.holds is None else _word(c.holds))
    screen.print(conditions, markup=False)


def _shown(value: float) -> str:
    return "infinite" if value == inf else number(value)


def _word(v: object) -> str:
    return {True: "yes", False: "no"}[v] if isinstance(v, bool) else str(v)
