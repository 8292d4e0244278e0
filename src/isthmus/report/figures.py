"""The numbers behind the interactive figures, as JSON that cannot leave its script element."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from isthmus.analysis.projection import Projection
from isthmus.plot.curves import all_values, highest, log_floor, wants_log
from isthmus.plot.figures import colours, legend_text
from isthmus.plot.plane import named_ends
from isthmus.plot.runs import Floats, StoredProfile, StoredRun
from isthmus.plot.surface import Surface

MAX_POINTS = 500
"""Points drawn per curve; a longer one keeps the lowest and highest sample of each stretch."""


_FOR_PLOTLY = {ord(c): f"&#{ord(c)};" for c in "&<>$"}


def thin(profile: StoredProfile) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The samples to draw: all, or those that hold an extreme of any curve on their stretch.

    The largest value of every curve, and both ends, are always among them.
    """
    n = len(profile.t)
    if n <= MAX_POINTS:
        return np.arange(n)
    keep = {0, n - 1}
    curves = [np.nan_to_num(q, nan=-np.inf, posinf=-np.inf) for _, c in profile.sets() for q in c.values()]
    keep.update(int(np.argmax(q)) for q in curves)
    for stretch in np.array_split(np.arange(n), MAX_POINTS // (2 * len(curves))):
        for q in curves:
            keep.update((int(stretch[np.argmax(q[stretch])]), int(stretch[np.argmin(q[stretch])])))
    return np.array(sorted(keep))


def curves_data(runs: Sequence[StoredRun]) -> dict[str, Any]:
    """What the script draws for "loss along the paths": one entry per measured run."""
    loss = all_values(runs, "loss")
    entries = []
    for run, colour in zip(runs, colours(runs), strict=True):
        if run.profile is None:
            continue
        profile, keep = run.profile, thin(run.profile)
        entry: dict[str, Any] = {
            **{"name": _text(run.label), "color": colour, "baseline": run.is_baseline},
            **{"t": _numbers(profile.t[keep]), "text": _hover(run, profile.segment[keep])},
            "max": {q: _numbers(np.array(highest(profile.t, profile.train[q]))) for q in ("loss", "error")},
        }
        for part, curves in profile.sets():
            entry[part] = {q: _numbers(curves[q][keep]) for q in ("loss", "error")}
        entries.append(entry)
    negative = bool((loss < 0).any())
    return {"runs": entries, "log": wants_log(loss, "loss"), "floor": log_floor(loss), "negative": negative}


def plane_data(runs: Sequence[StoredRun], drawn: Sequence[StoredRun], projection: Projection) -> dict[str, Any]:
    """What the script draws for the projection."""
    palette = dict(zip((r.label for r in runs), colours(runs), strict=True))
    entries = []
    for run, points, knots in zip(drawn, projection.points, projection.knots, strict=True):
        entries.append(
            {
                **{"name": _text(run.label), "color": palette[run.label], "baseline": run.is_baseline},
                **{"x": _numbers(points[:, 0]), "y": _numbers(points[:, 1])},
                "size": np.where(knots, 6, 0).tolist(),
            }
        )
    ends = [[name, *_numbers(np.array(place))] for name, place in named_ends(projection).items()]
    return {"runs": entries, "ends": ends, "variance": [f"{100 * v:.3g} %" for v in projection.variance]}


def surface_data(surface: Surface) -> dict[str, Any]:
    """What the script draws for the loss on a plane; values that colours do not tell apart are only told."""
    values = {}
    for name, (grid, corners) in surface.values.items():
        low, top = surface.range(name)
        values[name] = {
            "grid": [_numbers(row) for row in surface.clipped(name)],
            "told": [[f"{v:.4g}" for v in row] for row in grid.tolist()],
            "range": [low, top],
            "log": surface.is_log(name),
            "corners": [f"{v:.4g}" for v in corners.tolist()],
        }
    corners = [[name, *_numbers(place)] for name, place in zip("abc", surface.corners, strict=True)]
    path = [_numbers(np.array([*place, off])) for place, off in zip(surface.path, surface.off, strict=True)]
    exact = None if surface.exact.all() else surface.exact.astype(int).tolist()
    axes = {"x": _numbers(surface.x), "y": _numbers(surface.y)}
    return {**axes, "values": values, "corners": corners, "path": path, "exact": exact}


def _numbers(values: Floats) -> list[float | None]:
    """Six significant digits; what is not finite becomes null, a gap in the curve."""
    return [float(f"{v:.6g}") if isfinite(v) else None for v in values.tolist()]


def _text(text: str, limit: int = 36) -> str:
    """For plotly, which reads tags and formulas in its labels: neither is left, and nothing is too long."""
    return legend_text(text, limit).translate(_FOR_PLOTLY)


def _hover(run: StoredRun, segments: np.ndarray[Any, np.dtype[np.int64]]) -> list[str]:
    """The segment of each sample, with its label when the method gave one."""
    labels = run.result.get("labels") or []
    said = {}
    for i in {int(s) for s in segments}:
        label = str(labels[i]) if 0 <= i < len(labels) else ""
        said[i] = _text(f"segment {i}: {label}" if label else f"segment {i}", 80)
    return [said[int(s)] for s in segments]
