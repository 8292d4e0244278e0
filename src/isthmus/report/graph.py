"""The page of a graph of minima, and its figures as files."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.graph import MinimaGraph, load_graph
from isthmus.graph.stored import FILE
from isthmus.plot.figures import save_figure
from isthmus.plot.graph import graph_figure
from isthmus.report.render import PageTable, picture, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_graph_page(graph: MinimaGraph, folder: Path, out: Path | None = None) -> list[Path]:
    """Write report.html (or `out`), graph.svg and graph.png into a folder; returns the files.

    The page stands alone, and equal graphs give equal bytes. Errors: ``MissingExtraError`` without matplotlib.
    """
    figure = graph_figure(graph)
    page = _write(graph, figure, folder / "report.html" if out is None else out)
    return [page, *(save_figure(figure, folder / f"graph.{kind}") for kind in ("svg", "png"))]


def write_stored_graph(folder: Path, out: Path | None = None) -> Path | None:
    """The page of the graph in a folder; None where there is no graph."""
    if not (folder / FILE).is_file():
        return None
    return write_graph_page(load_graph(folder), folder, out)[0]


def _write(graph: MinimaGraph, figure: Figure, page: Path) -> Path:
    names, worst = [m.name for m in graph.minima], graph.tree[-1]
    alt = f"A tree of {len(graph)} networks by the height at which they meet, and the matrix of these heights."
    return write_page(
        page, "graph.html",
        networks=len(graph), tried=len(graph.edges), pairs=len(graph) * (len(graph) - 1) // 2,
        method=graph.method.get("name", "a method"),
        options=", ".join(f"{k}={v}" for k, v in graph.method.items() if k != "name"),
        matching=graph.aligned["matching"]["name"] if graph.aligned else "",
        bottleneck=graph.bottleneck, finite=isfinite(graph.bottleneck), worst=(names[worst.a], names[worst.b]),
        highest=max(graph.losses),
        stop=graph.stop, seed=graph.seed, tol=f"{graph.tol:g}", picture=picture(figure, "graph", alt),
        saddles=PageTable("The largest loss on the lowest known way", *graph.table()),
        minima=_minima(graph), paths=_paths(graph, names),
    )  # fmt: skip


def _minima(graph: MinimaGraph) -> PageTable:
    rows = [(m.name, m.loss, m.error, m.test_loss, m.test_error) for m in graph.minima]
    return PageTable("Loss and error of each network", ("network", "loss", "error", "test loss", "test error"), rows)


def _paths(graph: MinimaGraph, names: list[str]) -> PageTable:
    inside = {e.pair for e in graph.tree}
    heading = ("path", "largest loss", "floor", "excess", "largest error", "largest test loss", "largest test error",
               "length / distance", "in the tree")  # fmt: skip
    rows = []
    for e in sorted(graph.edges, key=lambda e: -e.max):
        floor = graph.floor(*e.pair)
        heights = (e.max, floor, e.max - floor, e.error, e.test_loss, e.test_error, e.length)
        rows.append((f"{names[e.a]} \N{EN DASH} {names[e.b]}", *heights, "yes" if e.pair in inside else ""))
    return PageTable("Every path, the highest first; no path between two networks can be lower than the floor",
                 heading, rows)  # fmt: skip
