"""ReLU networks that memorise: the constructions behind Corollary 4.3 of Nguyen, Brechet, Mondelli 2021, in float64.

Both rest on gates. Two units ``relu(g)`` and ``relu(g + delta q)`` with outgoing weights -1/delta and 1/delta give
q(x) where g > 0 and 0 where g < 0, exactly, while delta |q| < |g| on all points: delta is finite because there
are finitely many. m functions share the first unit, so K gates cost (m + 1) K units. Gates that open one
after another along a line, each correcting what the ones before it add up to, interpolate any values.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

_SAFETY = 0.5
"""delta |q| stays below this share of |g|."""

_CLOSE = 1e-9
"""Projections nearer to each other than this share of their range are not told apart."""

_AT_ONCE = 16
"""Where values may be missed a little, slabs of up to so many times d points are tried."""


@dataclass(frozen=True, eq=False)
class Gates:
    """A hidden layer and its output weights: ``relu(x @ U.T + u) @ V.T`` is within `error` of the values wanted."""

    U: Tensor
    u: Tensor
    V: Tensor
    error: float

    def values(self, x: Tensor) -> Tensor:
        """The functions at points [N, d]: [N, m]."""
        return (x @ self.U.T + self.u).relu() @ self.V.T


def slab_capacity(d: int, units: int, m: int) -> int:
    """How many points in general position in R^d `units` ReLU units memorise for m functions: d floor(units/(m+1)).

    >>> slab_capacity(30, 30, 1)
    450
    """
    return d * (units // (m + 1))


def line_capacity(first: int, units: int, m: int) -> int:
    """The same for points on a line and two layers, of `first` and `units`: 2 floor((first+1)/2) floor(units/(m+1)).

    >>> line_capacity(30, 30, 1)
    450
    """
    return 2 * ((first + 1) // 2) * (units // (m + 1))


def gates(x: Tensor, g: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor], wanted: Tensor) -> Gates:
    """The layer for K gates on points x [N, d]: g = (weights [K, d], [K]), corrections q = ([K, m, d], [K, m])."""
    G, c = g
    Q, r = q
    K, m, d = Q.shape
    at = x @ G.T + c
    corrections = (x @ Q.reshape(K * m, d).T).reshape(-1, K, m) + r
    room = at.abs().unsqueeze(2) / corrections.abs().clamp(min=1e-300)
    delta = (_SAFETY * room.amin(0)).clamp(max=1.0)  # [K, m]
    U = torch.cat([G, (G[:, None] + delta[..., None] * Q).reshape(K * m, d)])
    u = torch.cat([c, (c[:, None] + delta * r).reshape(K * m)])
    V = x.new_zeros(m, K * (m + 1))
    k = torch.arange(K, device=x.device)
    for o in range(m):
        V[o, k] = -1 / delta[:, o]
        V[o, K + k * m + o] = 1 / delta[:, o]
    found = Gates(U, u, V, 0.0)
    return Gates(U, u, V, float((found.values(x) - wanted).abs().max()))


# -- one hidden layer: slabs between parallel hyperplanes


def slabs(x: Tensor, wanted: Tensor, units: int, directions: Tensor, miss: float = _CLOSE) -> Gates | None:
    """One hidden layer of at most `units` units through ``wanted`` [N, m] at points x [N, d]; None where it fails.

    Along each of the `directions` [n, d] the points are cut into slabs, and each slab gets the affine function of
    smallest slope through its values: through d affinely independent points, through any number with equal values, or
    through as many as it misses by at most `miss`. The smallest slabs that the units allow are used.
    """
    most = units // (wanted.shape[1] + 1)
    best: Gates | None = None
    for direction in directions if most else ():
        cut = _cut_slabs(x, wanted, direction, most, miss)
        if cut is None:
            continue
        g, q = cut
        found = gates(x, g, q, wanted)
        if best is None or found.error < best.error:
            best = found
        if best.error <= 1.01 * miss:
            break
    return best


def _cut_slabs(
    x: Tensor, wanted: Tensor, direction: Tensor, most: int, miss: float
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    z = x @ direction
    spread = float(z.max() - z.min()) or 1.0
    direction, z = direction / spread, z / spread
    order = z.argsort()
    z, points, values = z[order], x[order], wanted[order]
    runs = _run_ends(values)
    low, high = 1, min(x.shape[1] if miss <= _CLOSE else _AT_ONCE * x.shape[1], len(x))
    found = _slabs_of(z, points, values, runs, high, most, miss)
    if found is None:
        return None
    while low < high:  # the smallest size that suffices
        size = (low + high) // 2
        smaller = _slabs_of(z, points, values, runs, size, most, miss)
        low, high, found = (low, size, smaller) if smaller else (size + 1, high, found)
    starts, V, c = found
    K, m = len(starts), wanted.shape[1]
    edges = torch.stack([(z[s] + z[s - 1]) / 2 if s else z[0] - 0.1 for s in starts])
    V, c = torch.stack(V), torch.stack(c)
    Q, r = V.clone(), c.clone()
    Q[1:] -= V[:-1]
    r[1:] -= c[:-1]
    return (direction.expand(K, -1), -edges), (Q.reshape(K, m, -1), r)


def _run_ends(values: Tensor) -> list[int]:
    """For each point the end of the run of equal values that it is in."""
    changes = (values[1:] != values[:-1]).any(1).nonzero().flatten() + 1
    ends: list[int] = []
    start = 0
    for end in [*changes.tolist(), len(values)]:
        ends += [end] * (end - start)
        start = end
    return ends


def _slabs_of(
    z: Tensor, points: Tensor, values: Tensor, runs: list[int], size: int, most: int, miss: float
) -> tuple[list[int], list[Tensor], list[Tensor]] | None:
    """Slabs of at most `size` points or one run, with their affine functions; None if there are more than `most`."""
    starts: list[int] = []
    V: list[Tensor] = []
    c: list[Tensor] = []
    i, N = 0, len(z)
    while i < N:
        if len(starts) == most or (i and float(z[i] - z[i - 1]) <= _CLOSE):
            return None
        end, fitted = _slab_from(z, points, values, runs[i], i, min(i + size, N), miss)
        starts.append(i)
        V.append(fitted[0])
        c.append(fitted[1])
        i = end
    return starts, V, c


def _slab_from(
    z: Tensor, points: Tensor, values: Tensor, run: int, i: int, end: int, miss: float
) -> tuple[int, tuple[Tensor, Tensor]]:
    """The longest slab from point i: a run, or up to `end` where an affine function fits; shorter ones then fit too."""
    best = max(run, i + 1), (values.new_zeros(values.shape[1], points.shape[1]), values[i])
    low, high = best[0], end
    while low < high:
        middle = high if high == end else (low + high + 1) // 2
        fitted = _affine(points[i:middle], values[i:middle], miss)
        if fitted is None:
            high = middle - 1
        else:
            low, best = middle, (middle, fitted)
    cut = best[0]
    while cut < len(z) and cut > i + 1 and float(z[cut] - z[cut - 1]) <= _CLOSE:
        cut -= 1  # points that are not told apart stay together
    return cut, best[1]


def _affine(points: Tensor, values: Tensor, miss: float) -> tuple[Tensor, Tensor] | None:
    """The affine function of smallest slope through the values, or nearest to them; None if one is missed."""
    centre, mean = points.mean(0), values.mean(0)
    A, B = points - centre, values - mean
    V = torch.linalg.lstsq(A.cpu(), B.cpu(), driver="gelsd", rcond=1e-10).solution.to(A).T
    return (V, mean - V @ centre) if float((A @ V.T - B).abs().max()) <= miss else None


# -- two hidden layers: points on a line


@dataclass(frozen=True, eq=False)
class Line:
    """Two hidden layers for points on a line: the first holds ``relu(z - knots)``, the second is `gates` on it."""

    knots: Tensor
    gates: Gates

    @property
    def error(self) -> float:
        """The largest error at the points."""
        return self.gates.error


def line(z: Tensor, wanted: Tensor, first: int, units: int) -> Line | None:
    """Two hidden layers of at most `first` and `units` units through `wanted` [N, m] at z [N]; None where it fails.

    The line is cut into (first + 1) // 2 pieces with a pair of knots between neighbours, so that functions of the
    first layer are affine on every piece, each piece for itself. Gate k opens in every piece at that piece's item k:
    a run of equal values, or two single points.
    """
    most, pieces = units // (wanted.shape[1] + 1), (first + 1) // 2
    order = z.argsort()
    z, values = z[order], wanted[order]
    items = _items(values, pieces * most)
    if not most or items is None:
        return None
    each = -(-len(items) // pieces)
    groups = [items[k : k + each] for k in range(0, len(items), each)]
    knots = [float(z[0]) - 0.1]
    for before, after in pairwise(groups):
        end, start = float(z[before[-1][1] - 1]), float(z[after[0][0]])
        if start - end <= _CLOSE:
            return None
        knots += [end + 0.25 * (start - end), end + 0.75 * (start - end)]
    t = torch.tensor(knots, dtype=z.dtype, device=z.device)
    g, q = _gate_lines(z, values, groups, each)
    if g is None:
        return None
    h = (z[:, None] - t).relu()
    weights = _coefficients(t, g), _coefficients(t, q.movedim(2, 1).flatten(0, 1))
    m = wanted.shape[1]
    Q, r = weights[1][0].reshape(each, m, -1), weights[1][1].reshape(each, m)
    return Line(t, gates(h, weights[0], (Q, r), values))


def _items(values: Tensor, most: int) -> list[tuple[int, int]] | None:
    """Ranges [start, end): runs of equal values, or two points where there is no room for each; None if too many."""
    ends = _run_ends(values)
    for size in (1, 2):
        items, i = [], 0
        while i < len(values):
            end = min(max(ends[i], i + size), len(values))
            items.append((i, end))
            i = end
        if len(items) <= most:
            return items
    return None


def _gate_lines(
    z: Tensor, values: Tensor, groups: list[list[tuple[int, int]]], each: int
) -> tuple[Tensor | None, Tensor]:
    """Slope and offset per piece, of the gates [K, pieces, 2] and of the corrections [K, pieces, m, 2]."""
    m, P = values.shape[1], len(groups)
    g = z.new_zeros(each, P, 2)
    lines = z.new_zeros(each, P, m, 2)
    g[..., 1] = -1.0  # closed, where a piece has no such item
    g[0, :, 1] = 1.0
    for p, items in enumerate(groups):
        for k, (start, end) in enumerate(items):
            if k:
                gap = (z[start] - z[start - 1]) / 2
                if float(gap) <= _CLOSE:
                    return None, lines
                g[k, p, 0], g[k, p, 1] = 1 / gap, -(z[start] + z[start - 1]) / 2 / gap
            if end - start == 2 and bool((values[start] != values[start + 1]).any()):
                lines[k, p, :, 0] = (values[start + 1] - values[start]) / (z[start + 1] - z[start])
            lines[k, p, :, 1] = values[start] - lines[k, p, :, 0] * z[start]
    q = lines.clone()
    q[1:] -= lines[:-1]
    return g, q


def _coefficients(t: Tensor, lines: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [n, knots] and constants [n] of ``relu(z - t) @ w + c``, equal to lines [n, pieces, 2] on each piece."""
    n, P, _ = lines.shape
    w = lines.new_zeros(n, 2 * P - 1)
    slope = lines[:, 0, 0]
    w[:, 0] = slope
    c = lines[:, 0, 1] + slope * t[0]
    for p in range(1, P):
        left, right = t[2 * p - 1], t[2 * p]
        down = lines[:, p - 1, 0] * left + lines[:, p - 1, 1]
        up = lines[:, p, 0] * right + lines[:, p, 1]
        between = (up - down) / (right - left)
        w[:, 2 * p - 1] = between - lines[:, p - 1, 0]
        w[:, 2 * p] = lines[:, p, 0] - between
    return w, c
