"""The picture of one result on one pair of axes: what ``result.plot(ax=None)`` draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.alignment import Alignment
from isthmus.analysis.aligned_lines import AlignedLines
from isthmus.analysis.barrier import BarrierMatrix
from isthmus.analysis.blocks import BlockBarriers
from isthmus.analysis.check import Check
from isthmus.analysis.contributions import Contributions
from isthmus.analysis.ensemble import Ensemble, EnsembleRow
from isthmus.analysis.plane import Plane
from isthmus.analysis.projection import project
from isthmus.certify import Certificate
from isthmus.comparison import Comparison
from isthmus.connectors import Connection
from isthmus.evaluate import Band, Profile
from isthmus.graph import MinimaGraph
from isthmus.kinds import check_kind
from isthmus.plot.alignment import StoredAlignment, draw_alignment
from isthmus.plot.along_path import draw_band, draw_certificate, draw_profile
from isthmus.plot.check import StoredCheck, draw_block_barriers, draw_check, draw_contributions, draw_matrix
from isthmus.plot.comparison import draw_comparison
from isthmus.plot.curves import DASHED
from isthmus.plot.figures import GREY, PALETTE, ground, settings
from isthmus.plot.graph import draw_graph, graph_size
from isthmus.plot.plane import draw_ends, name_directions
from isthmus.plot.runs import Floats
from isthmus.plot.stability import QUANTITIES, draw_entry_layers, noise_values
from isthmus.plot.surface import Surface, draw_surface
from isthmus.stability.dropout.measure import DropoutStability
from isthmus.stability.dropout.pattern import PatternStability
from isthmus.stability.noise.measure import NoiseStability

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(value: Any, ax: Any, **options: Any) -> Any:
    """The picture of `value` on `ax`, by default on new axes of pyplot. Errors: ``MissingExtraError``."""
    check_kind(options.get("label"), str | None, "label")
    with settings():
        if ax is None:
            from matplotlib import pyplot

            columns, size = _SIZES[type(value)](value) if type(value) in _SIZES else (1, (6.4, 4.2))
            ax = pyplot.subplots(1, columns, figsize=size, layout="constrained")[1]
            for one in np.ravel(ax):
                ground(one)
        _DRAWINGS[type(value)](value, ax, **options)
    return ax


def _connection(connection: Connection, ax: Axes) -> None:
    """The path in weight space, on the two directions along which it spreads most."""
    projection = project([connection.path])
    x, y = projection.points[0].T
    ax.plot(x, y, color=PALETTE[0], lw=1.8, zorder=3)
    ax.plot(x[projection.knots[0]], y[projection.knots[0]], "o", ms=4.5, color=PALETTE[0], zorder=4)
    draw_ends(ax, projection)
    name_directions(ax, projection)
    ax.margins(0.12)


def _dropout(stability: DropoutStability, ax: Axes) -> None:
    draw_entry_layers(ax, stability.to_dict())


def _pattern(stability: PatternStability, ax: Axes) -> None:
    """The loss of the whole network beside that of its kept units."""
    losses = [stability.loss, stability.dropped_loss]
    bars = ax.bar(["whole network", "kept units only"], losses, color=[GREY, PALETTE[0]], width=0.5)
    ax.bar_label(bars, [f"{loss:.4g}" for loss in losses], fontsize=9)
    ax.set_ylabel("loss")
    ax.set_ylim(min(0.0, *losses), max(*losses, 1e-12) * 1.12)


def _noise(stability: NoiseStability, ax: Axes) -> None:
    """Over the layers, the median over the examples of each quantity, and from the smallest to the largest a band."""
    for colour, (name, table) in zip(PALETTE, noise_values(stability).items(), strict=False):
        layers = sorted(table)
        finite = [_finite(table[layer]) for layer in layers]
        ax.fill_between(layers, [v.min() for v in finite], [v.max() for v in finite], color=colour, alpha=0.15, lw=0)
        ax.plot(layers, [np.median(v) for v in finite], "o-", ms=4.5, color=colour, label=QUANTITIES[name])
    ax.set_yscale("log")
    ax.set_xticks(range(1, stability.d + 1))
    ax.set_xlabel("layer")
    ax.set_ylabel("median and range over the examples")
    ax.legend(fontsize=9, loc="best")


def _finite(values: Floats) -> Floats:
    kept = values[np.isfinite(values)]
    return kept if len(kept) else np.array([np.nan])


def _plane(plane: Plane, ax: Axes) -> None:
    draw_surface(ax, Surface.of(plane.to_dict()), "training loss")


def _ensemble(found: Ensemble, ax: Axes) -> None:
    """The error (else the loss) of the members along the path, on the test data if there are any; averages as lines."""
    part = "test" if found.rows[0].test is not None else "train"
    quantity = "loss" if found.rows[0].train.error is None else "error"

    def value(row: EnsembleRow) -> float:
        return getattr(getattr(row, part), quantity)

    members = [row for row in found.rows if row.kind == "member"]
    places = list(found.t) or list(range(1, len(members) + 1))
    ax.plot(places, [value(row) for row in members], "o-", ms=5, color=PALETTE[0], label="one network", zorder=3)
    for colour, row in zip(PALETTE[1:], _averages(found, len(members)), strict=False):
        style = "-" if row.kind == "probability average" else DASHED
        ax.axhline(value(row), color=colour, lw=1.7, linestyle=style, label=row.name)
    ax.set_xlabel("t, from network A to network B" if found.t else "network")
    ax.set_ylabel(f"{part} {quantity}".replace("train ", "training "))
    ax.legend(fontsize=9, loc="best")


def _averages(found: Ensemble, members: int) -> list[EnsembleRow]:
    """The rows of several networks, of independent ones that of as many as there are members."""
    kinds = ("ends", "probability average", "weight average")
    fair = [row for row in found.rows if row.kind == "independent ensemble" and row.passes == members]
    return [*(row for row in found.rows if row.kind in kinds), *fair]


def _alignment(found: Alignment, axes: Any) -> None:
    """What moved in each layer, and the search."""
    draw_alignment(StoredAlignment.of({"format": 1, "alignments": [found.to_dict()]}), axes)


def _aligned_lines(found: AlignedLines, axes: Any) -> None:
    draw_alignment(StoredAlignment.of(found.to_dict()), axes)


def _check(found: Check, axes: Any) -> None:
    draw_check(StoredCheck.of(found.to_dict()), axes)


_SIZES: dict[type, Callable[[Any], tuple[int, tuple[float, float]]]] = {
    MinimaGraph: lambda graph: (2, graph_size(graph)),
    Alignment: lambda _: (2, (10.0, 3.9)),
    AlignedLines: lambda _: (3, (15.0, 3.9)),
    Check: lambda found: (1 + (found.blocks is not None), (11.2, 4.0)),
}
"""How many axes, of what size together in inches, those are drawn on that take several."""

_DRAWINGS: dict[type, Callable[..., None]] = {
    Alignment: _alignment,
    AlignedLines: _aligned_lines,
    BarrierMatrix: draw_matrix,
    BlockBarriers: draw_block_barriers,
    Check: _check,
    Contributions: draw_contributions,
    Connection: _connection,
    Ensemble: _ensemble,
    Plane: _plane,
    Profile: draw_profile,
    Band: draw_band,
    Certificate: draw_certificate,
    Comparison: draw_comparison,
    DropoutStability: _dropout,
    PatternStability: _pattern,
    NoiseStability: _noise,
    MinimaGraph: draw_graph,
}
