"""``write_string_page``: strings to turn in the hand, in one HTML file that fetches nothing."""

from __future__ import annotations

from math import isfinite, log
from pathlib import Path
from typing import Any

from isthmus.plot.string import COLOURS, Strings, draw_string
from isthmus.report.render import picture, write_page


def write_string_page(found: Strings, path: str | Path, title: str = "A string of networks") -> Path:
    """Write one HTML page with all frames: drag to turn, wheel to zoom, a slider through the frames.

    It stands alone (no library, nothing fetched), and has a still picture for readers without scripts. Equal strings
    give equal bytes. Errors: a disk that fails (FileError).
    """
    low, high = found.limits
    return write_page(
        Path(path), "string.html",
        title=title, last=len(found.frames) - 1, low=f"{low:.2g}", high=f"{high:.2g}", colours=COLOURS,
        threshold=found.threshold, mark=None if found.threshold is None else _place(found.threshold, low, high),
        picture=picture(draw_string(found), "string", "The last string in three dimensions, coloured by its loss."),
        data=_data(found),
    )  # fmt: skip


def _place(threshold: float, low: float, high: float) -> str:
    """Where a loss is on the scale, in per cent."""
    place = 100 * (log(threshold) - log(low)) / (log(high) - log(low))
    return f"{min(100, max(0, place)):.2f}"


def _data(found: Strings) -> dict[str, Any]:
    """What the script draws: all frames in a box whose longest half side is 1."""
    middle, sides = (v.tolist() for v in found.box)
    half = max(sides)

    def rounded(value: float) -> float | None:
        return float(f"{value:.5g}") if isfinite(value) else None

    frames = [
        {
            "points": [[round((v - m) / half, 5) for v, m in zip(p, middle, strict=True)] for p in f.points.tolist()],
            "loss": [rounded(v) for v in f.loss.tolist()],
            "knots": f.knots.nonzero()[0].tolist(),
            "title": f.title,
        }
        for f in found.frames
    ]
    shares = [f"{100 * v:.3g}" for v in found.variance]
    box = [round(side / half, 5) for side in sides]
    return {"frames": frames, "box": box, "variance": shares, "limits": list(found.limits), "colours": list(COLOURS)}
