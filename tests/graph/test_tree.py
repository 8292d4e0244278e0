"""The arithmetic of graphs of minima, against brute force."""

from __future__ import annotations

from itertools import combinations, pairwise
from math import inf

import numpy as np
import pytest

from isthmus.graph.tree import floor_of, route, saddle_matrix, spanning_tree, suggestions


def random_graph(n, seed):
    """Losses and the weights of all pairs, none below its floor; some of them equal."""
    rng = np.random.default_rng(seed)
    losses = rng.integers(0, 5, n) / 10
    weights = {p: max(losses[list(p)].max(), rng.integers(0, 12) / 10) for p in combinations(range(n), 2)}
    return losses.tolist(), weights


def brute(losses, weights):
    """The smallest largest weight over all walks, by relaxation until nothing changes."""
    n = len(losses)
    best = np.full((n, n), inf)
    for (i, j), w in weights.items():
        best[i, j] = best[j, i] = w
    for _ in range(n):
        for i, j, k in np.ndindex(n, n, n):
            if i != j:
                best[i, j] = min(best[i, j], max(best[i, k], best[k, j]))
    best[np.diag_indices(n)] = losses
    return best


@pytest.mark.parametrize("seed", range(8))
def test_the_tree_is_the_minimax_over_all_ways_and_an_ultrametric(seed):
    n = 3 + seed % 4
    losses, weights = random_graph(n, seed)
    saddles = saddle_matrix(losses, weights)
    assert np.array_equal(saddles, brute(losses, weights))
    tree = spanning_tree(n, weights)
    assert len(tree) == n - 1
    for i, j in combinations(range(n), 2):
        steps = route(tree, i, j)
        assert steps[0][0] == i
        assert steps[-1][1] == j
        assert all(p[1] == q[0] for p, q in pairwise(steps))
        assert max(weights[min(p), max(p)] for p in steps) == saddles[i, j] >= floor_of(losses, (i, j))
        assert all(saddles[i, j] <= max(saddles[i, k], saddles[k, j]) for k in range(n) if k not in (i, j))


@pytest.mark.parametrize("tol", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [1, 3])
def test_suggestions_stop_with_the_lowest_tree_and_a_proof(seed, tol, count):
    n = 3 + seed % 4
    losses, weights = random_graph(n, seed)
    tried, rounds = {}, 0
    while pairs := suggestions(losses, tried, tol, count):
        assert len(pairs) <= (n - 1 if rounds == 0 else count)
        assert not set(pairs) & set(tried)
        tried |= {p: weights[p] for p in pairs}
        rounds += 1
    found, wanted = saddle_matrix(losses, tried), saddle_matrix(losses, weights)
    assert np.all(found <= (1 + tol) * wanted + 1e-12)
    # the proof: were all the others as low as they could be, the tree would be no lower
    ideal = tried | {p: (1 + tol) * floor_of(losses, p) for p in weights if p not in tried}
    assert np.array_equal(saddle_matrix(losses, ideal), found)


def test_one_pair_less_would_prove_nothing():
    """A pair whose floor is below the tree is suggested, one whose floor is not is left out."""
    losses = [0.0, 0.1, 0.2, 0.5]
    star = {(0, 1): 0.3, (0, 2): 0.3, (0, 3): 0.5}
    assert suggestions(losses, star, 0.01) == [(1, 2)]
    assert suggestions(losses, star | {(1, 2): 0.4}, 0.01) == []
    assert suggestions(losses, star | {(1, 2): 0.4, (0, 3): inf}, 0.01) == [(1, 3)]
    assert suggestions(losses, {(0, 1): 0.3}, 0.01) == [(0, 2), (0, 3)]
    nearly = {(0, 1): 0.1, (0, 2): 0.201}  # (1, 2) could be lower by half a percent
    assert [suggestions([0.0, 0.1, 0.2], nearly, tol) for tol in (0.01, 0.0)] == [[], [(1, 2)]]


def test_the_highest_edge_is_tried_first_and_by_the_lowest_ends():
    star = {(0, 1): 0.5, (0, 2): 0.7, (0, 3): 0.9}
    assert suggestions([0.0, 0.0, 0.1, 0.2], star, 0.01) == [(1, 3)]
    assert suggestions([0.0, 0.3, 0.1, 0.2], star, 0.01, 3) == [(2, 3), (1, 3), (1, 2)]
    assert suggestions([0.3, 0.0, 0.1], {}, 0.01) == [(0, 1), (1, 2)]
