"""The page of a graph of minima, and its figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isfinite
from pathlib import Path

from isthmus.graph import MinimaGraph, load_graph
from isthmus.graph.stored import FILE
from isthmus.plot.figures import save_figure, svg_text
from isthmus.plot.graph import graph_figure
from isthmus.plot.html import html_page
from isthmus.report.assets import CSS
from isthmus.storage.files import write_text


def write_graph_page(graph: MinimaGraph, folder: Path, out: Path | None = None) -> list[Path]:
    """Write report.html (or `out`), graph.svg and graph.png into a folder; returns the files.

    The page stands alone, and equal graphs give equal bytes. Errors: ``MissingExtraError`` without matplotlib.
    """
    figure = graph_figure(graph)
    page = folder / "report.html" if out is None else out
    write_text(page, _page(graph, svg_text(figure)))
    return [page, *(save_figure(figure, folder / f"graph.{kind}") for kind in ("svg", "png"))]


def write_stored_graph(folder: Path, out: Path | None = None) -> Path | None:
    """The page of the graph in a folder; None where there is no graph."""
    if not (folder / FILE).is_file():
        return None
    return write_graph_page(load_graph(folder), folder, out)[0]


def _page(graph: MinimaGraph, picture: str) -> str:
    method = graph.method.get("name", "a method")
    options = ", ".join(f"{k}={v}" for k, v in graph.method.items() if k != "name")
    worst = graph.tree[-1]
    names, pairs = [m.name for m in graph.minima], len(graph) * (len(graph) - 1) // 2
    body = [
        "<h1>How high must one climb from each network to each other?</h1>",
        f"<section class='summary'><p>{len(graph)} networks, {len(graph.edges)} of {pairs} pairs "
        f"joined by {escape(method)}{_numbered(graph)}. From each to each there is a known way on which the loss is at "
        f"most <b>{graph.bottleneck:.4g}</b>, its height between {escape(names[worst.a])} and "
        f"{escape(names[worst.b])}; "
        f"the networks themselves have up to {max(graph.losses):.4g}.</p><p>{escape(graph.stop)}.</p></section>",
        f"<section><h2>The tree and the saddles</h2><div class='scroll'>{picture}</div>"
        "<p class='note'>Left: each network starts at its own loss and meets the others at the height of the lowest "
        "known way. Right: these heights for each pair, on the diagonal the losses. Heights are measured at points of "
        "the paths.</p></section>",
        f"<section><h2>The networks</h2>{_networks(graph)}</section>",
        f"<section><h2>The paths that were tried</h2>{_paths(graph)}</section>",
        f"<section><h2>To repeat this</h2><p>{escape(method)}({escape(options)}), seed {graph.seed}, "
        f"tolerance {graph.tol:g}; the paths lie beside this page, in <code>edges</code>.</p></section>",
    ]
    return html_page("Isthmus graph", CSS, "\n".join(body))


def _numbered(graph: MinimaGraph) -> str:
    if not graph.aligned:
        return ""
    name = escape(graph.aligned["matching"]["name"])
    return f", after their units were brought in one numbering by {name}"


def _networks(graph: MinimaGraph) -> str:
    rows = [(m.name, m.loss, m.error, m.test_loss, m.test_error) for m in graph.minima]
    return html_table(("network", "loss", "error", "test loss", "test error"), rows)


def _paths(graph: MinimaGraph) -> str:
    names, inside = [m.name for m in graph.minima], {e.pair for e in graph.tree}
    heading = ("path", "largest loss", "floor", "excess", "largest error", "largest test loss", "largest test error",
               "length / distance", "in the tree")  # fmt: skip
    rows = []
    for e in sorted(graph.edges, key=lambda e: -e.max):
        floor = graph.floor(*e.pair)
        heights = (e.max, floor, e.max - floor, e.error, e.test_loss, e.test_error, e.length)
        rows.append((f"{names[e.a]} \u2013 {names[e.b]}", *heights, "yes" if e.pair in inside else ""))
    return html_table(heading, rows)


def html_table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as a table of a page; everything is escaped."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heading)
    body = "".join("<tr>" + "".join(f"<td>{escape(in_a_cell(v))}</td>" for v in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def in_a_cell(value: object) -> str:
    """Four digits of a number, a dash for what is not there."""
    if isinstance(value, float):
        return f"{value:.4g}" if isfinite(value) else "not finite"
    return "\u2013" if value is None else str(value)
