"""What the command line shows: progress on stderr, tables and JSON on stdout."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from isthmus.evaluate import Profile
from isthmus.evaluate.band import interval_in
from isthmus.evaluate.batchnorm import beside_in_words, policy_in_words
from isthmus.graph import MinimaGraph
from isthmus.shown import upward
from isthmus.storage.files import plain
from isthmus.training.progress import Progress as Report
from isthmus.training.progress import no_progress

STEP = 10.0
"""Seconds between two lines of progress where there is no terminal."""


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Report]:
    """A progress bar on a terminal, a line every ten seconds elsewhere, nothing when quiet."""
    if quiet:
        yield no_progress
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total, visible=done < total)

        yield report


def _lines() -> Report:
    last = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= STEP:
            last = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return report


def console() -> Console:
    """The console for results: at least 120 columns wide, so that no cell of a table is cut."""
    return Console(width=max(120, Console().width))


def print_json(value: Any) -> None:
    """The value as JSON for machines; NaN and infinities, which JSON has not, are null."""
    print(json.dumps(plain(value), indent=2, allow_nan=False))


def tell_not_finite(measured: Profile) -> bool:
    """Say on stderr where the losses of a profile are not finite; whether there are such places."""
    sets = {"training": measured} | ({} if measured.test is None else {"test": measured.test})
    bad = {name: (~found.loss.isfinite()).nonzero().flatten().tolist() for name, found in sets.items()}
    for name, where in bad.items():
        if where:
            first = f"{len(where)} of {len(measured.t)} points, first at t = {float(measured.t[where[0]]):.4g}"
            print(f"the {name} loss is not finite at {first}", file=sys.stderr)
    return any(bad.values())


def hanging(text: str, lead: str, indent: str | None = None) -> str:
    """A text behind its `lead`, in lines that a terminal of any width shows whole; 80 columns where there is none.

    `indent`: what stands before the further lines; default: as much space as the lead takes.
    """
    indent = " " * len(lead) if indent is None else indent
    width = max(40, min(100, shutil.get_terminal_size().columns))
    return textwrap.fill(text, width, initial_indent=lead, subsequent_indent=indent, break_on_hyphens=False)


def number(value: float | None, digits: int = 4, *, up: bool = False) -> str:
    """A number in four significant digits; a dash where there is none. Bounds are rounded `up`, to stay bounds.

    >>> number(0.00123456), number(None), number(0.00123411, up=True)
    ('0.001235', '-', '0.001235')
    """
    if value is None or not isfinite(value):
        return "-"
    return f"{upward(value, digits) if up else value:.{digits}g}"


def show_table(heading: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table with as many columns as it has, numbers in four digits; as wide as it needs to be."""
    table = Table()
    for k, name in enumerate(heading):
        table.add_column(name, justify="right" if k else "left", no_wrap=True)
    for row in rows:
        cells = [number(v) if isinstance(v, float) else "" if v is None else str(v) for v in row]
        table.add_row(*cells)
    screen = console()
    screen.width = max(screen.width, screen.measure(table, options=screen.options.update(width=10_000)).maximum)
    screen.print(table, markup=False)


COLUMNS: Sequence[tuple[str, str]] = (
    ("method", "method"),
    ("segments", "segments"),
    ("length / distance", "normalized_length"),
    ("max training loss", "max_loss"),
    ("excess", "excess"),
    ("proved bound", "bound"),
    ("max test error", "test_error_max"),
    ("seconds", "seconds"),
)
"""Heading and entry of result.json for each column of the table of runs."""


def table_of_runs(results: Sequence[Mapping[str, Any]]) -> Table:
    """One row per run, in the columns of ``COLUMNS``."""
    caption = "excess = max training loss on the path - larger end's loss; bound: on the continuous path"
    if any(row.get("population") for row in results):
        caption += "; [..]: for the population"
    table = Table(caption=caption)
    for heading, key in COLUMNS:
        table.add_column(heading, justify="left" if key == "method" else "right")
    for row in results:
        table.add_row(*(_cell(row, key) for _, key in COLUMNS))
    return table


def _cell(row: Mapping[str, Any], key: str) -> str:
    """An entry of a row, as the table of runs has it."""
    value = row.get(key)
    if key in _CELLS:
        return _CELLS[key](row)
    return "not proved" if key == "bound" and value is None else number(value, up=key == "bound")


_CELLS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "method": lambda row: row["method"]["name"],
    "segments": lambda row: str(row["segments"]),
    "seconds": lambda row: f"{sum(row['seconds'].values()):.1f}",
    "test_error_max": lambda row: (
        f"{number(row.get('test_error_max'))} {interval_in(row.get('population'), 'error')}".strip()
    ),
}


def sentences(row: Mapping[str, Any]) -> list[str]:
    """The verdict of a run, how far its proof is from what was measured, and what became of BatchNorm."""
    verdict = row["verdict"]
    beside = {"test data": verdict["test"], "with interpolated statistics": verdict["interpolated"]}
    out = [verdict["text"], *(f"{name}: {found['text']}" for name, found in beside.items() if found)]
    out += [row["population"]["text"]] if row.get("population") else []
    out += [] if row.get("close", True) else [row["certificate"]]
    others = beside_in_words(row["max_loss"], {k: v["max_loss"] for k, v in row["beside"].items()})
    return [line for line in (*out, policy_in_words(row["bn"]), others) if line]


def show(results: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """The table of runs for people, or the results as JSON for machines."""
    if as_json:
        value = results[0] if len(results) == 1 else list(results)
        print_json(value)
    else:
        console().print(table_of_runs(results))
        for row in results:
            name = f"{row['method']['name']}: " if len(results) > 1 else ""
            for line in sentences(row):
                print(f"{name}{line}")


def show_graph(graph: MinimaGraph) -> None:
    """The tree of a graph as a table, the highest edge first, then the networks."""
    names = [m.name for m in graph.minima]
    tree = Table(caption="a path of the tree; its largest values; floor: the larger loss of its ends")
    for heading in ("from", "to", "max loss", "floor", "max error", "test loss", "test error"):
        tree.add_column(heading, justify="left" if heading in ("from", "to") else "right")
    for edge in reversed(graph.tree):
        values = (edge.max, graph.floor(*edge.pair), edge.error, edge.test_loss, edge.test_error)
        tree.add_row(names[edge.a], names[edge.b], *map(number, values))
    console().print(tree)
    pairs = len(graph) * (len(graph) - 1) // 2
    known = f"from each to each one climbs to {number(graph.bottleneck)} at most"
    none = "between some of them no way is known on which the loss is finite"
    print(f"{len(graph.edges)} of {pairs} pairs tried; {known if isfinite(graph.bottleneck) else none}")
