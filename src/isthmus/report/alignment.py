"""Alignments that are stored, as sections of the page and as a page of their own, and their pictures as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isthmus.errors import FileError
from isthmus.plot.alignment import StoredAlignment, alignment_figure
from isthmus.plot.figures import save_figure
from isthmus.plot.runs import StoredRun
from isthmus.report.render import PageTable, picture, write_page

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


def alignment_sections(alignments: Sequence[StoredAlignment], runs: Sequence[StoredRun]) -> list[dict[str, Any]]:
    """What the template tells of each of these, and of each run whose method aligned its ends."""
    own = [(_names(found), found) for found in alignments]
    own += [(run.label, _of_run(run)) for run in runs if run.result.get("alignment") is not None]
    return [_section(f"The alignment: {what}", found, k) for k, (what, found) in enumerate(own)]


def _of_run(run: StoredRun) -> StoredAlignment:
    try:
        return StoredAlignment.of({"format": 1, "alignments": [run.result["alignment"]], "names": ["A", "B"]})
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise FileError(run.folder / "result.json", "does not hold an alignment", "make the run again") from error


def _names(found: StoredAlignment) -> str:
    first, *others = found.names
    return f"{', '.join(others)} in the numbering of {first}"


def _write_page(several: Sequence[StoredAlignment], out: Path) -> Path:
    sections = [_section(_names(found), found, k) for k, found in enumerate(several)]
    commands = [str(found.document["command"]) for found in several if found.document.get("command")]
    return write_page(out, "alignment.html", alignments=sections, commands=commands)


def _section(title: str, found: StoredAlignment, k: int) -> dict[str, Any]:
    tables = [*([_lines(found), _average(found)] if found.before else []), _networks(found)]
    alt = "How many units moved by layer, and how the search went" + ", and the loss on the lines" * bool(found.before)
    return {
        **{"title": title, "worth": _worth(found), "tables": tables, "notes": _notes(found)},
        "picture": picture(alignment_figure(found), f"alignment{k}", f"{alt}."),
    }


def _worth(found: StoredAlignment) -> dict[str, Any] | None:
    """The heights of the highest line, as given and aligned; None where no line was measured."""
    if not found.before:
        return None
    before, after = found.document["before"], found.document["after"]
    count = len(before["lines"])
    which = "the straight line" if count == 1 else f"the highest of {count} straight lines"
    return {"which": which, "before": before["max"], "after": after["max"]}


def _lines(found: StoredAlignment) -> PageTable:
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
    return PageTable("The straight lines between the networks", heading, rows)


def _average(found: StoredAlignment) -> PageTable:
    """The network of mean weights."""
    both = [("as given", found.document["before"]["average"]), ("aligned", found.document["after"]["average"])]
    names = list(both[0][1])
    heading = ["the mean of the weights", *(name.replace("_", " ") for name in names)]
    return PageTable("The network of mean weights", heading, [[w, *(scores[n] for n in names)] for w, scores in both])


def _networks(found: StoredAlignment) -> PageTable:
    heading = ["network", "units moved", "distance", "aligned", "inner product", "aligned", "change of outputs"]
    rows = [[name, _moved(one), *one["distance"], *one["similarity"], f"{one['function_error']:.1e}"]
            for name, one in zip(found.names[1:], found.document["alignments"], strict=True)]  # fmt: skip
    return PageTable(f"Each network against {found.names[0]}, before and after", heading, rows)


def _moved(one: Mapping[str, Any]) -> str:
    moved = sum(round(one["moved"][k] * n) for k, n in one["units"].items())
    return f"{moved} of {sum(one['units'].values())}"


def _notes(found: StoredAlignment) -> list[str]:
    """What could not be done, and units without variance."""
    return [
        f"{name}: {note}"
        for name, one in zip(found.names[1:], found.document["alignments"], strict=True)
        for note in (*one["notes"], *_dead(one["dead"]))
    ]


def _dead(dead: Mapping[str, Sequence[int]]) -> list[str]:
    return [
        f"{name}: {a} units of the first network and {b} of this one never vary over the examples; they were told by "
        "their weights alone"
        for name, (a, b) in dead.items()
    ]
