"""How long a path is in some of its tensors, and places on it by the share of its length that lies behind them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from math import nan

import numpy as np
from numpy.typing import NDArray

from isthmus.params import Params, distance
from isthmus.paths.path import Path
from isthmus.paths.segment import Curve, Segment

_PIECES = 256
"""Pieces of a Bezier curve, by whose lengths a place on it is found."""
_CHORDS = 16
"""Chords that stand for the pieces of any other segment."""


def length_of(path: Path, but: Collection[str]) -> tuple[float, float]:
    """The length of a path, and that over the distance of its ends (NaN where they coincide); `but`: tensors that do
    not count.

    >>> import torch
    >>> path = Path.through([{"w": torch.tensor([v]), "mean": torch.tensor([v * v])} for v in (0.0, 3.0, 1.0)])
    >>> length_of(path, ["mean"])
    (5.0, 5.0)
    """
    length = sum(_cut(s, but).length if isinstance(s, Curve) else s.length for s in path.segments)
    apart = distance(_without(path.start, but), _without(path.end, but))
    return length, length / apart if apart > 0 else nan


def by_length(path: Path, shares: Sequence[float], but: Collection[str] = ()) -> list[float]:
    """The t at which these shares of the length of the path lie behind; `but`: tensors that do not count.

    Exact at 0 and 1, on a straight line up to rounding, on a curve to about 1e-5. A path of length 0, or of one that is
    not finite, has its places at equal t. Cost: the inner products of the control points; 16 points of any other
    segment.

    >>> import torch
    >>> path = Path.through([{"w": torch.tensor([v])} for v in (0.0, 1.0, 4.0)])
    >>> [round(t, 9) for t in by_length(path, [0, 0.25, 0.5, 1])]
    [0.0, 0.5, 0.666666667, 1.0]
    """
    t, lengths = [np.zeros(1)], [np.zeros(1)]
    for i, segment in enumerate(path.segments):
        local, along = _lengths(segment, but)
        t.append((i + local) / len(path))
        lengths.append(lengths[-1][-1] + along)
    behind = np.concatenate(lengths)
    if not 0 < behind[-1] < np.inf:
        return [float(share) for share in shares]
    found = np.interp(np.asarray(shares) * behind[-1], behind, np.concatenate(t))
    return [float(share) if share in (0, 1) else float(v) for share, v in zip(shares, found, strict=True)]


def _lengths(segment: Segment, but: Collection[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places on a segment, without its start, and the length up to each."""
    if not isinstance(segment, Curve):
        t = np.arange(_CHORDS + 1) / _CHORDS
        points = [_without(segment.at(float(s)), but) for s in t]
        return t[1:], np.cumsum([distance(p, q) for p, q in pairwise(points)])
    curve = _cut(segment, but)
    if curve.is_straight:
        return np.ones(1), np.array([curve.length])
    t = np.arange(2 * _PIECES + 1) / (2 * _PIECES)
    v = curve.speed(t)
    simpson = (v[:-2:2] + 4 * v[1::2] + v[2::2]) / (6 * _PIECES)
    return t[2::2], np.cumsum(simpson)


def _cut(curve: Curve, but: Collection[str]) -> Curve:
    return Curve(tuple(_without(p, but) for p in curve.control))


def _without(point: Params, but: Collection[str]) -> Params:
    return {k: v for k, v in point.items() if k not in but}
