"""``write_report``: the page itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from isthmus.errors import FileError
from isthmus.plot.curves import loss_along_paths
from isthmus.plot.figures import svg_text
from isthmus.plot.html import data_and_script, html_page
from isthmus.plot.plane import draw_plane, project_runs
from isthmus.plot.runs import StoredRun, read_runs
from isthmus.plot.surface import Surface
from isthmus.report.alignment import alignment_sections, read_alignments
from isthmus.report.assets import CSS, SCRIPT
from isthmus.report.figures import MAX_POINTS, curves_data, plane_data
from isthmus.report.library import plotly
from isthmus.report.surfaces import read_surfaces, surface_sections
from isthmus.report.words import failures, introduction, proofs, repeat, table, verdict
from isthmus.storage.files import write_text


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write one HTML page about all the runs in `folder` (read ``plot.read_runs``) and return its path.

    `out` is a file, by default ``folder/report.html``. The page stands alone: it fetches nothing, its figures are
    interactive, and each has a still picture for readers without scripts. Equal results give equal bytes. Only
    stored files are read; nothing is evaluated again. Planes (plane.json) and alignments have sections too. Cost: the
    paths are read once for the projection.
    Errors: FileError for a folder without results or with damaged ones; MissingExtraError without matplotlib and
    plotly.
    """
    runs = read_runs(folder)
    target = Path(folder) / "report.html" if out is None else Path(out)
    if target.is_dir():
        raise FileError(target, "is a folder, not a file", f"write {target / 'report.html'}")
    alignments = alignment_sections(read_alignments(Path(folder)), runs)
    write_text(target, _page(runs, read_surfaces(Path(folder)), alignments))
    return target


def _page(runs: tuple[StoredRun, ...], surfaces: Sequence[Surface], alignments: Sequence[str]) -> str:
    library = plotly()
    data: dict[str, Any] = {"curves": None, "plane": None}
    figures = [_curves_section(runs, data), _plane_section(runs, data), *surface_sections(surfaces, data)]
    drawn = any(data.values())
    scripts = f"<script>{library}</script>\n{data_and_script(data, SCRIPT)}" if drawn else ""
    verdicts = "\n".join(f"<li>{verdict(run)}</li>" for run in runs)
    body = "\n".join(
        [
            "<h1>Are these two networks connected by a low-loss path?</h1>",
            f"<section class='summary'>{introduction(runs)}<ul>\n{verdicts}\n</ul></section>",
            failures(runs),
            f"<section><h2>The methods side by side</h2>\n{table(runs)}</section>",
            *figures,
            *alignments,
            f"<section><h2>What was proved, and how</h2>\n{proofs(runs)}</section>",
            f"<section><h2>To repeat this</h2>\n{repeat(runs)}</section>",
        ]
    )
    return html_page("Isthmus report", CSS, body, scripts)


def _missing(runs: Sequence[StoredRun], file: str) -> str:
    names = ", ".join(escape(run.label) for run in runs)
    return f"<p class='note'>Not drawn, as there is no {file}: {names}.</p>" if runs else ""


def _radio(group: str, value: str, label: str, checked: bool) -> str:
    mark = " checked" if checked else ""
    return f"<label><input type='radio' name='{group}' value='{value}'{mark}> {label}</label>"


def _check(name: str, label: str, enabled: bool = True) -> str:
    mark = " checked" if enabled else " disabled"
    return f"<label><input type='checkbox' id='{name}'{mark}> {label}</label>"


def _curves_section(runs: tuple[StoredRun, ...], data: dict[str, Any]) -> str:
    head = "<section><h2>The loss along the paths</h2>\n"
    without = [run for run in runs if run.profile is None]
    if len(without) == len(runs):
        return f"{head}<p>No run has a profile.json: the loss along the paths was not measured.</p></section>"
    curves = data["curves"] = curves_data(runs)
    tested = any(run.profile is not None and run.profile.test is not None for run in runs)
    scale = _radio("scale", "linear", "linear", not curves["log"]) + _radio(
        "scale", "log", "logarithmic", curves["log"]
    )
    controls = (
        f"<div class='controls'><fieldset><legend>Data</legend>{_check('train', 'training set')}"
        f"{_check('test', 'test set', tested)}</fieldset><fieldset><legend>Quantity</legend>"
        f"{_radio('quantity', 'loss', 'loss', True)}{_radio('quantity', 'error', 'error rate', False)}</fieldset>"
        f"<fieldset><legend>Scale</legend>{scale}</fieldset></div>"
    )
    thinned = any(run.profile is not None and len(run.profile.t) > MAX_POINTS for run in runs)
    note = (
        "Training set solid, test set dashed; the straight line is grey, dashed and dotted; rings mark each largest "
        "training value. Segment i of n covers t from i/n to (i+1)/n, so equal steps in t are not equal lengths. "
        "On a logarithmic scale, values of 0 stand on the bottom line."
        + (" Long curves are drawn with the extremes of each short stretch; no maximum is left out." if thinned else "")
    )
    still = svg_text(loss_along_paths(runs))
    return (
        f"{head}{controls}<div class='figure' id='curves'></div>\n<noscript>{still}</noscript>\n"
        f"<p class='note'>{note}</p>{_missing(without, 'profile.json')}</section>"
    )


def _plane_section(runs: tuple[StoredRun, ...], data: dict[str, Any]) -> str:
    head = "<section><h2>The paths in weight space</h2>\n"
    if not any((run.folder / "path.safetensors").is_file() for run in runs):
        return f"{head}<p>No run has a path.safetensors: there is no path to draw.</p></section>"
    drawn, projection = project_runs(runs)
    data["plane"] = plane_data(runs, drawn, projection)
    labels = {run.label for run in drawn}
    left = [run for run in runs if run.label not in labels]
    still = svg_text(draw_plane(runs, drawn, projection))
    return (
        f"{head}<div class='figure' id='plane'></div>\n<noscript>{still}</noscript>\n"
        "<p class='note'>All paths on the two directions along which their points spread most (principal components of "
        "the knots of all paths and of samples of curved segments). A' and B' mark ends that are other points: "
        "permutations of the same network, or other networks. "
        "What leaves this plane is not seen: distances look shorter than they are.</p>"
        f"{_missing(left, 'path.safetensors of a network like the first')}</section>"
    )
