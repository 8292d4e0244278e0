"""Alignments that are stored, as sections of the page and as a page of their own, and their pictures as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from isthmus.errors import FileError
from isthmus.plot.alignment import StoredAlignment, alignment_figure
from isthmus.plot.figures import save_figure, svg_text
from isthmus.plot.html import html_page
from isthmus.plot.runs import StoredRun
from isthmus.report.assets import CSS
from isthmus.report.graph import html_table, in_a_cell
from isthmus.storage.files import write_text

_FILES = "*alignment.json"


def write_alignment_files(file: Path, *, page: bool) -> list[Path]:
    """The pictures of an alignment.json beside it, and perhaps report.html. Errors: ``MissingExtraError``."""
    found = StoredAlignment.read(file)
    figure = alignment_figure(found)
    written = [save_figure(figure, file.with_suffix(f".{kind}")) for kind in ("svg", "png")]
    return [*written, *([_write_page([found], file.parent / "report.html")] if page else [])]


def write_stored_alignments(folder: Path, out: Path | None = None) -> Path | None:
    """The page of the alignments in a folder; None where there is none, or where there are runs beside them."""
    found = read_alignments(folder)
    if not found or any(folder.glob("result.json")) or any(folder.glob("*/result.json")):
        return None
    return _write_page(found, folder / "report.html" if out is None else out)


def read_alignments(folder: Path) -> list[StoredAlignment]:
    """Those that ``isthmus align`` left in the folder and its subfolders."""
    return [StoredAlignment.read(f) for f in (*sorted(folder.glob(_FILES)), *sorted(folder.glob(f"*/{_FILES}")))]


def alignment_sections(alignments: Sequence[StoredAlignment], runs: Sequence[StoredRun]) -> list[str]:
    """A section for each of these, and for each run whose method aligned its ends."""
    own = [(_names(found), found) for found in alignments]
    own += [(run.label, _of_run(run)) for run in runs if run.result.get("alignment") is not None]
    return [_section(f"The alignment: {escape(what)}", found) for what, found in own]


def _of_run(run: StoredRun) -> StoredAlignment:
    try:
        return StoredAlignment.of({"format": 1, "alignments": [run.result["alignment"]], "names": ["A", "B"]})
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise FileError(run.folder / "result.json", "does not hold an alignment", "make the run again") from error


def _names(found: StoredAlignment) -> str:
    first, *others = found.names
    return f"{', '.join(others)} in the numbering of {first}"


def _write_page(several: Sequence[StoredAlignment], out: Path) -> Path:
    sections = [_section(escape(_names(found)), found) for found in several]
    commands = [str(found.document["command"]) for found in several if found.document.get("command")]
    again = f"<section><h2>To repeat this</h2><pre>{escape(chr(10).join(commands))}</pre></section>" if commands else ""
    body = ["<h1>What is left of the barrier when the units are brought in one order?</h1>", *sections, again]
    write_text(out, html_page("Isthmus alignment", CSS, "\n".join(body)))
    return out


def _section(title: str, found: StoredAlignment) -> str:
    said = "Dashed: the networks as they were given; solid: aligned. " if found.before else ""
    note = (
        f"{said}A bar says how many units of a layer have another number; the search shows the inner product of the "
        "weights after each sweep, and a matching that does not search as one point. Renumbering changes nothing of "
        "what a network computes: the change of the outputs is rounding, in float64."
    )
    return (
        f"<section><h2>{title}</h2>{_worth(found)}<div class='scroll'>{svg_text(alignment_figure(found))}</div>"
        f"<p class='note'>{note}</p>{_lines(found)}{_average(found)}{_networks(found)}{_notes(found)}</section>"
    )


def _worth(found: StoredAlignment) -> str:
    """One sentence with the numbers."""
    if not found.before:
        return ""
    before, after = found.document["before"], found.document["after"]
    count = len(before["lines"])
    which = "the straight line" if count == 1 else f"the highest of {count} straight lines"
    return (
        f"<p>On {which} the loss rises by <b>{in_a_cell(before['max'])}</b> above its higher end as the networks were "
        f"given, and by <b>{in_a_cell(after['max'])}</b> aligned.</p>"
    )


def _lines(found: StoredAlignment) -> str:
    if not found.before:
        return ""
    heading = ["straight line"]
    rows: list[list[object]] = []
    tested = "test set" in found.before
    for when in ("as given", "aligned"):
        heading += [f"largest loss, {when}", "excess", *(["test excess"] if tested else [])]
    for p, q in zip(found.document["before"]["lines"], found.document["after"]["lines"], strict=True):
        rows.append([f"{found.names[p['a']]} \N{EN DASH} {found.names[p['b']]}"])
        for one in (p, q):
            loss = one["barriers"]["loss"]
            rows[-1] += [loss["max"], loss["excess"], *([one["test"]["barriers"]["loss"]["excess"]] if tested else [])]
    return html_table(heading, rows)


def _average(found: StoredAlignment) -> str:
    """The network of mean weights."""
    if not found.before:
        return ""
    both = [("as given", found.document["before"]["average"]), ("aligned", found.document["after"]["average"])]
    names = list(both[0][1])
    heading = ["the mean of the weights", *(name.replace("_", " ") for name in names)]
    return html_table(heading, [[when, *(scores[name] for name in names)] for when, scores in both])


def _networks(found: StoredAlignment) -> str:
    heading = ["network", "units moved", "distance", "aligned", "inner product", "aligned", "change of outputs"]
    rows = [[name, _moved(one), *one["distance"], *one["similarity"], f"{one['function_error']:.1e}"]
            for name, one in zip(found.names[1:], found.document["alignments"], strict=True)]  # fmt: skip
    return html_table(heading, rows)


def _moved(one: Mapping[str, Any]) -> str:
    moved = sum(round(one["moved"][k] * n) for k, n in one["units"].items())
    return f"{moved} of {sum(one['units'].values())}"


def _notes(found: StoredAlignment) -> str:
    """What could not be done, and units without variance."""
    notes = [
        f"{name}: {note}"
        for name, one in zip(found.names[1:], found.document["alignments"], strict=True)
        for note in (*one["notes"], *_dead(one["dead"]))
    ]
    return f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""


def _dead(dead: Mapping[str, Sequence[int]]) -> list[str]:
    return [
        f"{name}: {a} units of the first network and {b} of this one never vary over the examples; they were told by "
        "their weights alone"
        for name, (a, b) in dead.items()
    ]
