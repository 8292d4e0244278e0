"""``write_report``: the page itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isthmus.errors import FileError
from isthmus.evaluate.profile import MEASURED
from isthmus.plot.curves import loss_along_paths
from isthmus.plot.plane import draw_plane, project_runs
from isthmus.plot.runs import StoredRun, read_runs
from isthmus.report.alignment import alignment_sections, read_alignments
from isthmus.report.comparison import read_comparison
from isthmus.report.figures import MAX_POINTS, curves_data, plane_data
from isthmus.report.library import plotly
from isthmus.report.render import picture, write_page
from isthmus.report.surfaces import read_surfaces, surface_sections
from isthmus.report.words import COLUMNS, MEASURES, pair, told


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write one HTML page about all the runs in `folder` (read ``plot.read_runs``) and return its path.

    `out` is a file, by default ``folder/report.html``. The page stands alone: it fetches nothing, its figures are
    interactive, and each has a still picture for paper and for readers without scripts. Equal results give equal bytes.
    Only stored files are read; nothing is evaluated again. Planes (plane.json), alignments and a comparison have
    sections too. Cost: the paths are read once for the projection.
    Errors: FileError for a folder without results or with damaged ones; MissingExtraError without matplotlib and
    plotly.
    """
    runs = read_runs(folder)
    target = Path(folder) / "report.html" if out is None else Path(out)
    if target.is_dir():
        raise FileError(target, "is a folder, not a file", f"write {target / 'report.html'}")
    library, data = plotly(), dict[str, Any]()
    alignments = alignment_sections(read_alignments(Path(folder)), runs)
    surfaces = surface_sections(read_surfaces(Path(folder)), data)
    curves, plane = _curves(runs, data), _plane(runs, data)
    return write_page(
        target, "report.html",
        pair=pair(runs), runs=[told(run, k, runs) for k, run in enumerate(runs)],
        columns=COLUMNS, measures=MEASURES, measured=MEASURED, comparison=read_comparison(Path(folder)),
        curves=curves, plane=plane, surfaces=surfaces, alignments=alignments,
        data=data, library=library if any(data.values()) else "",
    )  # fmt: skip


def _names(runs: Sequence[StoredRun]) -> str:
    return ", ".join(run.label for run in runs)


def _curves(runs: tuple[StoredRun, ...], data: dict[str, Any]) -> dict[str, Any] | None:
    """The figure of the loss along the paths; None where nothing was measured."""
    measured = [run.profile for run in runs if run.profile is not None]
    if not measured:
        return None
    data["curves"] = curves_data(runs)
    names = _names(runs)
    return {
        "tested": any(profile.test is not None for profile in measured),
        "log": data["curves"]["log"],
        "thinned": any(len(profile.t) > MAX_POINTS for profile in measured),
        "missing": _names([run for run in runs if run.profile is None]),
        "picture": picture(loss_along_paths(runs), "curves", f"The loss along the paths of {names}, from A to B."),
    }


def _plane(runs: tuple[StoredRun, ...], data: dict[str, Any]) -> dict[str, Any] | None:
    """The figure of the paths in weight space; None where no path was stored."""
    if not any((run.folder / "path.safetensors").is_file() for run in runs):
        return None
    drawn, projection = project_runs(runs)
    data["plane"] = plane_data(runs, drawn, projection)
    labels = {run.label for run in drawn}
    alt = f"The paths of {_names(drawn)} on the two directions along which their points spread most."
    return {
        "missing": _names([run for run in runs if run.label not in labels]),
        "picture": picture(draw_plane(runs, drawn, projection), "plane", alt),
    }
