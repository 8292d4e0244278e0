"""Labels in a picture, where they cover nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from isthmus.plot.figures import GREY
from isthmus.plot.runs import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

_STEP = 4.0
"""Pixels from one box to the next along a line."""
_AFAR = 12.0
"""Points from which on a label is joined with its point."""


class LabelSpot(NamedTuple):
    """Beside the point `at`, in data, by `offset` points, with the alignment of the text there."""

    at: tuple[float, float]
    offset: tuple[float, float]
    ha: str
    va: str


@dataclass
class FreeLabels:
    """The labels on `ax`, whose scales and limits are set: each keeps clear of what was named to be `taken`.

    `taken`: boxes [n, 4] in pixels: left, bottom, right, top.
    """

    ax: Axes
    taken: Floats = field(default_factory=lambda: np.zeros((0, 4)))

    def __post_init__(self) -> None:
        # limits that are due are computed only when they are asked for
        self.ax.get_xlim()
        self.ax.get_ylim()

    def keep_clear(self, points: Any, size: float = 2.0, *, joined: bool = True) -> None:
        """No label on these points [n, 2], of a diameter in points, nor, if `joined`, on the lines between them."""
        pixels = self.ax.transData.transform(np.array(points, float).reshape(-1, 2))
        pixels = pixels[np.isfinite(pixels).all(1)]
        if joined and len(pixels) > 1:
            pixels = np.concatenate([_dense(p, q) for p, q in pairwise(pixels)])
        half = size * self.ax.figure.dpi / 144
        self.taken = np.concatenate([self.taken, np.hstack([pixels - half, pixels + half])])

    def put(self, text: str, places: Sequence[LabelSpot], **style: Any) -> Annotation:
        """The text at the first place where it covers nothing and lies within the axes, else where it covers least.

        From afar a thin line leads to its point.
        """
        style |= {"textcoords": "offset points", "fontsize": 8}
        note = self.ax.annotate(text, places[0].at, (0, 0), **style)
        costs = []
        for place in places:
            costs.append(self._cost(_moved(note, place)))
            if costs[-1] == 0:
                break
        best = places[int(np.argmin(costs))]
        self.taken = np.concatenate([self.taken, _moved(note, best)[None]])
        if np.hypot(*best.offset) > _AFAR:
            note.remove()
            leader = {"arrowstyle": "-", "lw": 0.5, "color": GREY, "shrinkA": 0, "shrinkB": 3}
            note = self.ax.annotate(text, best.at, best.offset, ha=best.ha, va=best.va, arrowprops=leader, **style)
        return note

    def _cost(self, box: Floats) -> float:
        """How much of what is taken it covers, and of itself lies outside, in square pixels."""
        sides = np.minimum(box[2:], self.taken[:, 2:]) - np.maximum(box[:2], self.taken[:, :2])
        inside = np.minimum(box[2:], self.ax.bbox.max) - np.maximum(box[:2], self.ax.bbox.min)
        outside = np.prod(box[2:] - box[:2]) - np.prod(np.maximum(inside, 0))
        return float(np.prod(np.maximum(sides, 0), axis=1).sum() + max(outside, 0))


def _moved(note: Annotation, place: LabelSpot) -> Floats:
    """The label's box there, in pixels."""
    note.xy = place.at
    note.set_position(place.offset)
    note.set(ha=place.ha, va=place.va)
    return np.array(note.get_window_extent().extents, float)


def _dense(p: Floats, q: Floats) -> Floats:
    share = np.linspace(0, 1, 1 + ceil(float(np.linalg.norm(q - p)) / _STEP))[:, None]
    return (1 - share) * p + share * q
