"""The loss on planes through three networks, as sections of the page and as a page of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isthmus.evaluate.batchnorm import policy_in_words
from isthmus.plot.surface import Surface, surface_figure
from isthmus.report.figures import surface_data
from isthmus.report.library import plotly
from isthmus.report.render import picture, write_page

FILE = "plane.json"


def read_surfaces(folder: Path) -> list[Surface]:
    """Those of the planes that were measured into the folder and its subfolders."""
    files = [folder / FILE, *sorted(folder.glob(f"*/{FILE}"))]
    return [Surface.read(file) for file in files if file.is_file()]


def surface_sections(surfaces: Sequence[Surface], data: dict[str, Any]) -> list[dict[str, Any]]:
    """What the template tells of each; what the script draws goes to `data`."""
    data["surfaces"] = [surface_data(surface) for surface in surfaces]
    return [_section(k, surface) for k, surface in enumerate(surfaces)]


def write_plane_page(surface: Surface, out: Path) -> None:
    """One self-contained page about one plane; it fetches nothing. Errors: ``MissingExtraError`` without plotly."""
    data: dict[str, Any] = {}
    (section,) = surface_sections([surface], data)
    write_page(out, "plane.html", surface=section, data=data, library=plotly())


def _section(k: int, surface: Surface) -> dict[str, Any]:
    alt = f"Contours of {' and '.join(surface.values)} on the plane through the networks a, b and c."
    return {
        "quantities": [(name, name) for name in surface.values],
        "picture": picture(surface_figure(surface), f"surface{k}", alt),
        "said": " ".join(_said(surface)),
    }


def _said(surface: Surface) -> list[str]:
    """What a reader must know of the picture."""
    said = [
        "The plane through the networks a, b and c; distances are those of weight space, and both axes have one scale. "
        "Colours are cut off at the largest value on the straight line from a to b, and tell nothing apart above it."
    ]
    if len(surface.off):
        said.append(f"The path is seen from above: it is up to {surface.off.max():.3g} off the plane.")
    if surface.screen is not None:
        exact, cells = int(surface.exact.sum()), surface.exact.size
        said.append(
            f"{exact} of {cells} cells, around the path, the corners and the lowest point, were measured on all "
            f"examples, the others on at most {surface.screen} of them, drawn at random: the dotted line is between "
            "them, and a step of the values across it means nothing."
        )
    return [*said, *filter(None, [policy_in_words(surface.bn)])]
