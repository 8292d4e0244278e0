"""The arithmetic of minimum spanning trees: numbers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import inf

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet, linkage
from scipy.spatial.distance import squareform

Pair = tuple[int, int]
Weights = Mapping[Pair, float]
"""How high the loss is on the path between the nodes i < j, for the pairs that were tried."""


def floor_of(losses: Sequence[float], pair: Pair) -> float:
    """No path between the two is lower than this: the larger of their losses."""
    return max(losses[pair[0]], losses[pair[1]])


def spanning_tree(n: int, weights: Weights) -> list[Pair]:
    """The pairs of a minimum spanning tree (Kruskal), the lowest first; of each component, where there are several.

    >>> spanning_tree(3, {(0, 1): 1.0, (0, 2): 5.0, (1, 2): 2.0})
    [(0, 1), (1, 2)]
    """
    found = DisjointSet(range(n))
    return [pair for pair in sorted(weights, key=lambda p: (weights[p], p)) if found.merge(*pair)]


def route(tree: Sequence[Pair], start: int, goal: int) -> list[Pair]:
    """The steps from node to node along the tree, in walking direction. Errors: ``KeyError`` where there is no way."""
    came: dict[int, int] = {start: start}
    todo = [start]
    while todo:
        node = todo.pop()
        for p, q in (*tree, *((q, p) for p, q in tree)):
            if p == node and q not in came:
                came[q] = node
                todo.append(q)
    steps, node = [], goal
    while node != start:
        steps.append((came[node], node))
        node = came[node]
    return steps[::-1]


def saddle_matrix(losses: Sequence[float], weights: Weights) -> NDArray[np.float64]:
    """The largest weight on the tree between each two nodes, infinite where there is no way; the losses at [i, i].

    >>> saddle_matrix([0.0, 0.0, 0.0], {(0, 1): 1.0, (0, 2): 5.0, (1, 2): 2.0}).tolist()
    [[0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [2.0, 2.0, 0.0]]
    """
    n = len(losses)
    out = np.full((n, n), inf)
    out[np.diag_indices(n)] = losses
    parts = DisjointSet(range(n))
    for p, q in spanning_tree(n, weights):  # the lowest first: each joins two parts, at its own height
        for i in parts.subset(p):
            for j in parts.subset(q):
                out[i, j] = out[j, i] = weights[p, q]
        parts.merge(p, q)
    return out


def joined(n: int, pairs: Iterable[Pair]) -> DisjointSet:
    """The components of a graph of n nodes."""
    parts = DisjointSet(range(n))
    for pair in pairs:
        parts.merge(*pair)
    return parts


def suggestions(losses: Sequence[float], weights: Weights, tol: float, count: int = 1) -> list[Pair]:
    """Up to `count` pairs to try next; none where no pair that was not tried can lower the tree by more than `tol`.

    Of several components the lowest nodes, all with the lowest one: these are not limited to `count`. Then for the
    highest edge of the tree whose two sides are joined by an untried pair that could be lower, (1 + tol) floor <
    weight: these pairs, those of the lowest ends first.

    >>> suggestions([0.0, 0.1, 0.2], {}, 0.01), suggestions([0.0, 0.1, 0.2], {(0, 1): 0.1, (0, 2): 0.5}, 0.01)
    ([(0, 1), (0, 2)], [(1, 2)])
    """
    n = len(losses)
    tree = spanning_tree(n, weights)
    heads = [min(part, key=lambda i: (losses[i], i)) for part in joined(n, tree).subsets()]
    if len(heads) > 1:
        lowest = min(heads, key=lambda i: (losses[i], i))
        return [(min(lowest, i), max(lowest, i)) for i in sorted(heads) if i != lowest]
    found: dict[Pair, None] = {}
    for pair in reversed(tree):
        found |= dict.fromkeys(_better(losses, weights, tol, tree, pair))
        if len(found) >= count:
            break
    return list(found)[:count]


def _better(losses: Sequence[float], weights: Weights, tol: float, tree: Sequence[Pair], cut: Pair) -> list[Pair]:
    """The untried pairs between the two sides of an edge of the tree that could be lower than it."""
    parts = joined(len(losses), (pair for pair in tree if pair != cut))
    untried = (p for p in combinations(range(len(losses)), 2) if p not in weights)
    floors = {p: floor_of(losses, p) for p in untried if not parts.connected(*p)}
    could = [p for p, floor in floors.items() if floor + tol * abs(floor) < weights[cut]]
    return sorted(could, key=lambda p: (floors[p], losses[p[0]] + losses[p[1]], p))


def merges(saddles: NDArray[np.float64]) -> NDArray[np.float64]:
    """The tree as ``scipy.cluster.hierarchy.linkage`` gives it: rows of two clusters, the height at which they meet,
    and the number of nodes."""
    plain = saddles.copy()
    np.fill_diagonal(plain, 0)
    return linkage(squareform(plain, checks=False), "single")
