"""What all figures share: colours, an empty figure, and files that are equal byte for byte on every call."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import InputError, MissingExtraError
from isthmus.plot.runs import StoredRun
from isthmus.storage.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#7f868d"
"""The colour of the straight line, the baseline of every figure."""

PALETTE = (
    *("#0b78c2", "#d9541e", "#129a72", "#b45fa5", "#d99000", "#4aaee0"),
    *("#7a68c4", "#a56b2a", "#d83a6c", "#6b9a1f", "#1c9aa8", "#9b4f4f"),
)
"""Twelve colours that stand out from a white and from a dark ground; the first eight follow Okabe and Ito."""

MARKERS = "osD^vP*X<>ph"

_FORMATS = ("png", "svg", "pdf")
_UNDATED = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}


def colours(runs: Sequence[StoredRun]) -> list[str]:
    """One colour per run: grey for the straight line, then the palette in turn."""
    turn = (PALETTE[i % len(PALETTE)] for i in range(len(runs)))
    return [GREY if run.is_baseline else next(turn) for run in runs]


@contextmanager
def settings() -> Iterator[None]:
    """Matplotlib's defaults, whatever the user's matplotlibrc says, with names taken literally (no "$" formulas)."""
    try:
        from matplotlib import rc_context, rcParamsDefault
    except ImportError as exc:
        raise MissingExtraError("matplotlib", "plot") from exc
    ours: dict[Any, Any] = {
        **{k: v for k, v in rcParamsDefault.items() if k.partition(".")[0] not in ("backend", "backend_fallback")},
        **{"text.parse_math": False, "svg.hashsalt": "isthmus", "svg.fonttype": "path", "pdf.fonttype": 42},
        **{"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "legend.frameon": False},
        **{"font.size": 10, "axes.edgecolor": "#5b6168", "xtick.color": "#3b4046", "ytick.color": "#3b4046"},
    }
    with rc_context(ours):
        yield


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes, made without pyplot: no global list of figures, no window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    ground(axes)
    return figure, axes


def grid_of_axes(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """A figure of that size in inches with rows x columns axes, an array; `options` go to ``Figure.subplots``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def ground(axes: Axes) -> None:
    """Grid lines behind everything that is drawn."""
    axes.grid(True, color="#e3e6e9", linewidth=0.8)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write `figure` as the suffix of `path` says (png, svg or pdf), whole or not at all.

    Without dates and with fixed identifiers: equal figures give equal files. Errors: another suffix; a disk that
    fails (FileError).
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in _FORMATS:
        raise InputError("path", expected="a name that ends in .png, .svg or .pdf", got=path.name)
    data = _render(figure, kind)
    atomic_write(path, lambda temporary: _write(temporary, data), size=len(data))
    return path


def svg_text(figure: Figure) -> str:
    """`figure` as one <svg> element, to stand inside an HTML page."""
    text = _render(figure, "svg").decode("utf-8")
    text = text[text.index("<svg") :].rstrip()
    return re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _render(figure: Figure, kind: str) -> bytes:
    out = io.BytesIO()
    with settings():
        figure.savefig(out, format=kind, dpi=160, metadata=_UNDATED[kind])
    return out.getvalue().replace(b"\r\n", b"\n") if kind == "svg" and os.linesep != "\n" else out.getvalue()


def legend_text(label: str, limit: int = 36) -> str:
    """A label as a legend can show it: not too long, and not starting with "_", which matplotlib would hide."""
    label = " ".join(label.split()) or "(no name)"
    label = label if len(label) <= limit else label[: limit - 1] + "…"
    return f" {label}" if label.startswith("_") else label
