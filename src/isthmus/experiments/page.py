"""What an experiment is: its cells at each scale, its rows, its figures, and the paper's values beside ours."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.connectors import Outcome
from isthmus.errors import FileError, InputError, IsthmusError
from isthmus.experiments.claims import Claim, Finding
from isthmus.experiments.tables import Done, Row, Table
from isthmus.shown import upward
from isthmus.storage import make_folder, write_csv, write_json, write_text
from isthmus.storage.files import one_line, plain
from isthmus.sweep import Cell, Store, Stored

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALES = ("smoke", "laptop", "paper")
"""smoke: seconds, runs in the tests; laptop: up to an hour; paper: the sizes of the paper."""


def ended(name: str) -> str:
    """The name that a stored outcome has today; names of other endings stay.

    >>> ended("CONNECTED"), ended("BEAD_FAILED"), ended("END_NOT_TRAINED")
    ('CONSTRUCTED', 'BEAD_FAILED', 'END_NOT_TRAINED')
    """
    return Outcome[name].name if name in Outcome.__members__ else name


@dataclass(frozen=True)
class PaperValue:
    """A number that a paper prints: for the rows with these entries, in that column; `source`: table, figure, page."""

    row: Mapping[str, Any]
    column: str
    value: float
    source: str


@dataclass(frozen=True, eq=False)
class Experiment:
    """One page of results. Its jobs are ``Cell``s, so it has no loop, no seeds and no files of its own.

    `cells` gives the cells of a scale; the rows of the `tables` are made of those that are done; `figures` draw from
    the rows alone, and `claims` check on them what the paper says in words. Entries of a row whose name starts with
    "." (curves, histograms) are for figures and claims; written tables leave them out.
    """

    name: str
    title: str
    reference: str
    cells: Callable[[str], Sequence[Cell]]
    tables: Sequence[Table | Callable[[Done], list[Row]]]
    figures: Mapping[str, Callable[[list[Row]], Figure]] = field(default_factory=dict)
    paper: tuple[PaperValue, ...] = ()
    claims: Sequence[Claim] = ()

    def chosen(self, scale: str, only: Sequence[str] = ()) -> list[Cell]:
        """The cells of a scale whose labels hold every text of `only`."""
        if scale not in SCALES:
            raise InputError("scale", expected=f"one of {', '.join(SCALES)}", got=repr(scale))
        cells = [c for c in self.cells(scale) if all(text.lower() in c.label.lower() for text in only)]
        if not cells:
            some = "; ".join(c.label for c in self.cells(scale)[:3])
            raise InputError("only", expected=f"parts of one label, such as: {some}", got=list(only))
        return cells

    def rows(self, done: Done) -> list[Row]:
        """The rows of all tables."""
        return [row for t in self.tables for row in (t.rows(done) if isinstance(t, Table) else t(done))]

    def findings(self, rows: Sequence[Row]) -> list[Finding]:
        """What became of every claim."""
        return [finding for claim in self.claims for finding in claim.findings(rows)]

    def table(self, store: Store, cells: Sequence[Cell]) -> list[Row]:
        """The rows of what is done, the paper's values in columns of their own."""
        rows = rows_of(self.rows, done(store, cells))
        for value in self.paper:
            for row in rows:
                if all(row.get(k) == v for k, v in value.row.items()):
                    row[f"paper {value.column}"] = value.value
                    known = row["source"].split("; ") if "source" in row else []
                    row["source"] = "; ".join(dict.fromkeys([*known, value.source]))
        return rows


def done(store: Store, cells: Sequence[Cell]) -> list[tuple[Cell, Stored]]:
    """The finished ones among the cells."""
    found = ((c, store.find(c)) for c in cells)
    return [(c, stored) for c, stored in found if stored is not None]


def rows_of(rows: Callable[[Done], list[Row]], found: Done) -> list[Row]:
    """The rows of what is done. Errors: ``FileError`` for results without the values that rows are made of."""
    try:
        return rows(found)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        if isinstance(e, IsthmusError):
            raise
        folder = found[0][1].folder.parent if found else "results"
        why = f"holds a result that is not one of this version ({type(e).__name__}: {one_line(e)})"
        raise FileError(folder, why, "move it away, and run again") from e


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All columns of the table that have a value in some row, in the order in which they first occur."""
    names = dict.fromkeys(k for row in rows for k in row if not k.startswith("."))
    return [k for k in names if any(row.get(k) is not None for row in rows)]


def as_markdown(rows: Sequence[Row]) -> str:
    """A table in Markdown: numbers in four significant digits, nothing for what is missing.

    >>> print(as_markdown([{"method": "Linear", "excess": 1.23456}]), end="")
    | method | excess |
    | --- | --- |
    | Linear | 1.235 |
    """
    columns = columns_of(rows)
    out = io.StringIO()
    for cells in (columns, ["---"] * len(columns), *([shown(row.get(c), c) for c in columns] for row in rows)):
        out.write("| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |\n")
    return out.getvalue()


def shown(value: Any, column: str = "") -> str:
    """A value as a table shows it; bounds are rounded up, to stay bounds."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    value = upward(value) if isinstance(value, float) and "bound" in column else value
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


def as_json(rows: Sequence[Row]) -> str:
    """The rows as JSON, in full precision."""
    return json.dumps(plain(_columns_only(rows)), indent=1)


def write_tables(rows: Sequence[Row], folder: str | Path, name: str, findings: Sequence[Finding] = ()) -> list[Path]:
    """NAME.csv, NAME.md and NAME.json in the folder; findings also in NAME-findings.json."""
    folder = make_folder(folder)
    files = [folder / f"{name}.{kind}" for kind in ("csv", "md", "json")]
    write_csv(files[0], {c: [row.get(c) for row in rows] for c in columns_of(rows)})
    write_text(files[1], as_markdown(rows))
    write_json(files[2], _columns_only(rows))
    if findings:
        files.append(folder / f"{name}-findings.json")
        write_json(files[3], [f._asdict() for f in findings])
    return files


def _columns_only(rows: Sequence[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if not k.startswith(".")} for row in rows]


def write_figures(experiment: Experiment, rows: list[Row], folder: str | Path, name: str) -> list[Path]:
    """NAME-FIGURE.svg and .png for every figure of the experiment whose rows are there."""
    from isthmus.plot import save_figure

    figures = {}
    for kind, draw in experiment.figures.items() if rows else ():
        with suppress(InputError):  # of a drawing that has nothing to draw yet
            figures[kind] = draw(rows)
    if not rows or (experiment.figures and not figures):
        raise InputError("figures", expected="results", got="none", instead=f"isthmus experiment run {experiment.name}")
    folder = make_folder(folder)
    return [
        save_figure(figure, folder / f"{name}-{kind}.{suffix}")
        for kind, figure in figures.items()
        for suffix in ("svg", "png")
    ]
