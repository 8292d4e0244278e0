"""Paths on the two directions in weight space along which they spread most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus import paths
from isthmus.errors import InputError
from isthmus.params import Params, moves, widened
from isthmus.paths import Curve

Floats = NDArray[np.float64]
_SAMPLES = 24
"""Points drawn on each curved segment, besides its start."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Paths on their first two principal directions.

    `points[i]` is [number of points, 2]: path i in the units of weight space, its knots and the samples of its curved
    segments; `knots[i]` marks the knots among them. `variance` holds the fraction of the squared spread of all
    points about their mean that each of the two directions carries.
    """

    points: tuple[Floats, ...]
    knots: tuple[np.ndarray[Any, np.dtype[np.bool_]], ...]
    variance: tuple[float, ...]


def project(several: Sequence[paths.Path]) -> Projection:
    """The principal components of the knots, and samples of curved segments, of all the paths together.

    Computed from inner products: a Bezier curve's points are combinations of its control points, tensors that
    several points share are multiplied once, and one tensor at a time is looked at. Cost: (distinct points)^2 x
    parameters multiplications, memory (distinct values of the largest tensor) in float64.
    Errors: no path; paths of networks with different parameters.

    >>> flat = paths.Path.through([{"w": torch.tensor([float(v), 0.0])} for v in (0, 1, 3)])
    >>> p = project([flat])
    >>> p.variance, (p.points[0][-1] - p.points[0][0]).round(6).tolist()
    ((1.0, 0.0), [3.0, 0.0])
    """
    if not several:
        raise InputError("paths", expected="at least one path", got="none")
    shapes = shapes_of(several[0])
    for path in several[1:]:
        if shapes_of(path) != shapes:
            raise InputError("paths", expected="networks with the same parameters", got="different names or shapes")
    basis: list[Params] = []
    place: dict[int, int] = {}
    rows: list[dict[int, float]] = []
    knots = []
    for path in several:
        rows += _rows(path, basis, place)
        knots.append(_knots(path))
    weights = np.zeros((len(rows), len(basis)))
    for i, row in enumerate(rows):
        for j, w in row.items():
            weights[i, j] = w
    gram = weights @ gram_of(basis) @ weights.T
    coordinates, variance = principal(gram, 2)
    ends = np.cumsum([len(k) for k in knots])
    return Projection(tuple(np.split(coordinates, ends[:-1])), tuple(knots), variance)


def shapes_of(path: paths.Path) -> dict[str, tuple[int, ...]]:
    """What two paths must have in common to be drawn together."""
    return {k: tuple(v.shape) for k, v in path.start.items()}


def _samples(segment: paths.Segment) -> int:
    return 1 if isinstance(segment, Curve) and segment.is_straight else _SAMPLES


def _knots(path: paths.Path) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.concatenate([*(np.arange(_samples(s)) == 0 for s in path.segments), np.array([True])])


def _rows(path: paths.Path, basis: list[Params], place: dict[int, int]) -> list[dict[int, float]]:
    """Each point of the path as a combination of dictionaries in `basis`, which grows as needed."""

    def index(point: Params) -> int:
        key = id(point)
        if key not in place:
            place[key] = len(basis)
            basis.append(point)
        return place[key]

    rows = []
    for segment in path.segments:
        count = _samples(segment)
        for t in np.arange(count) / count:
            if isinstance(segment, Curve):
                n = len(segment.control) - 1
                row: dict[int, float] = {}
                for i, control in enumerate(segment.control):
                    j = index(control)
                    row[j] = row.get(j, 0.0) + comb(n, i) * float(t**i * (1 - t) ** (n - i))
                rows.append(row)
            else:
                rows.append({index(segment.at(float(t))): 1.0})
    rows.append({index(path.end): 1.0})
    return rows


def gram_of(basis: Sequence[Params]) -> Floats:
    """Inner products of the differences from the first point, summed over the tensors."""
    gram = np.zeros((len(basis), len(basis)))
    for name, first in basis[0].items():
        if not moves(first):
            continue
        place: dict[int, int] = {}
        distinct: list[Tensor] = []
        for point in basis:
            if id(point[name]) not in place:
                place[id(point[name])] = len(distinct)
                distinct.append(point[name])
        if len(distinct) == 1:
            continue
        # relative to the first point: the common part would cost the small differences their digits
        matrix = torch.stack([widened(v.detach().cpu()).flatten() for v in distinct])
        matrix -= matrix[0].clone()
        products = (matrix @ matrix.T).numpy()
        where = np.array([place[id(point[name])] for point in basis])
        gram += products[np.ix_(where, where)]
    return gram


def principal(gram: Floats, count: int) -> tuple[Floats, tuple[float, ...]]:
    """Coordinates [n, count] of n points with these inner products, and the fractions of the spread they carry."""
    centred = gram - gram.mean(0)
    centred = centred - centred.mean(1, keepdims=True)
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    order = np.argsort(values)[::-1][:count]
    kept, total = np.maximum(values[order], 0), float(np.trace(centred))
    coordinates, fractions = np.zeros((len(gram), count)), np.zeros(count)
    if total <= 0:
        return coordinates, (1.0, *[0.0] * (count - 1))
    kept = np.where(kept > 1e-14 * total, kept, 0)
    coordinates[:, : len(kept)] = vectors[:, order] * np.sqrt(kept)
    fractions[: len(kept)] = np.clip(kept / total, 0, 1)
    # a principal direction has no sign: the first path runs to the right, and the largest height is upward
    for k, column in enumerate(coordinates.T):
        down = column[-1] < column[0] if k == 0 else column[np.argmax(np.abs(column).round(12))] < 0
        column *= -1 if down else 1
    return coordinates, tuple(fractions.tolist())
