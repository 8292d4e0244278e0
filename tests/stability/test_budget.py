"""The searches for subsets on a loss whose best subset is known, and the expected best of T draws."""

from __future__ import annotations

from itertools import combinations
from math import comb, inf

import pytest
import torch

from isthmus.stability.dropout.measure import expected_best
from isthmus.stability.dropout.subsets import SEARCHES, Budget, Trial


def toy_budget(total: int, best: set[int], seed: int = 0) -> Budget:
    """One layer of 20 units whose loss is the number of units of `best` that are missing; slopes tell which."""
    member = torch.tensor([-1.0 if u in best else 1.0 for u in range(20)], dtype=torch.float64)
    return Budget(
        {1: 20}, 0.5, total, 10_000, torch.Generator().manual_seed(seed),
        evaluate=lambda subsets: [(1.0, float(len(best - set(s[1].tolist())))) for s in subsets],
        slopes=lambda kept, scale, index: {1: member},
        strengths=lambda index: {1: torch.ones(20, dtype=torch.float64)},
    )  # fmt: skip


@pytest.mark.parametrize("search", ["greedy", "gates"])
def test_searches_follow_slopes_to_the_best_subset(search):
    best = {1, 2, 3, 5, 8, 11, 13, 17, 18, 19}
    for seed in range(3):
        budget = toy_budget(60, best, seed)
        SEARCHES[search](budget, None)
        assert set(budget.best.kept[1].tolist()) == best
        assert len(budget.trace) + (budget.debt > 0) == 60
    chance = toy_budget(60, best)
    SEARCHES["random"](chance, None)
    assert chance.best.loss > 0


def test_a_loss_that_is_not_a_number_is_never_the_best():
    budget = toy_budget(3, set(range(10)))
    values = iter([float("nan"), 2.0, float("nan")])
    budget.evaluate = lambda subsets: [(1.0, next(values)) for _ in subsets]
    SEARCHES["random"](budget, None)
    assert budget.best.loss == 2.0
    assert budget.trace == [inf, 2.0, inf]
    assert isinstance(budget.best, Trial)


def test_the_expected_best_is_the_mean_over_all_choices():
    losses = [3.0, 1.5, 2.0, 2.0, 7.0, 0.5]
    for t, value in enumerate(expected_best(losses), start=1):
        choices = [min(c) for c in combinations(losses, t)]
        assert value == pytest.approx(sum(choices) / comb(6, t))
    assert expected_best([1.0, float("nan")]) == (inf, 1.0)
    many = torch.rand(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    curve = expected_best(many.tolist())
    assert curve[0] == pytest.approx(float(many.mean()))
    assert curve[-1] == pytest.approx(float(many.min()))
    assert all(p >= q for p, q in zip(curve, curve[1:], strict=False))


def table_budget(widths: dict[int, int], total: int, seed: int) -> Budget:
    """Losses without any order: numbers drawn for each subset, so that only those that were evaluated are known."""
    keys = torch.Generator().manual_seed(seed)
    salt = int(torch.randint(2**31, (), generator=keys))

    def loss(kept: dict[int, torch.Tensor]) -> float:
        return hash((salt, *(u for j in sorted(kept) for u in (j, *kept[j].tolist())))) % 10_007 / 10_007

    return Budget(
        widths, 0.5, total, 100, torch.Generator().manual_seed(seed),
        evaluate=lambda subsets: [(1.0, loss(dict(s))) for s in subsets],
        slopes=lambda kept, scale, index: {j: torch.zeros(n, dtype=torch.float64) for j, n in widths.items()},
        strengths=lambda index: {j: torch.ones(n, dtype=torch.float64) for j, n in widths.items()},
    )  # fmt: skip


SMALL = [{1: 2}, {1: 5}, {3: 7}, {1: 8}, {1: 4, 2: 5}, {1: 3, 2: 3, 3: 4}, {2: 6, 3: 3}]


@pytest.mark.parametrize("search", ["magnitude", "greedy", "gates"])
@pytest.mark.parametrize("widths", SMALL, ids=str)
def test_where_all_subsets_can_be_paid_for_none_is_missed(search, widths):
    every = 1
    for n in widths.values():
        every *= comb(n, n // 2)
    for seed in range(5):
        for total in (every, every + 50):
            budget, chance = table_budget(widths, total, seed), table_budget(widths, total, seed)
            SEARCHES[search](budget, None)
            SEARCHES["random"](chance, None)
            assert budget.best.loss <= chance.best.loss
            assert len(budget.seen) == every == len(budget.trace)
            assert budget.best.loss == min(budget.trace)


@pytest.mark.parametrize("search", ["greedy", "gates"])
@pytest.mark.parametrize("widths", [{1: 12}, {1: 7, 2: 8}, {1: 60}, {1: 40, 2: 40}], ids=str)
def test_no_subset_is_paid_for_twice_and_a_climb_that_ends_starts_again(search, widths):
    """Without order in the losses every climb ends at once: the rest of the budget goes elsewhere."""
    for seed in range(3):
        budget = table_budget(widths, 400, seed)
        SEARCHES[search](budget, None)
        paid = [loss for loss in budget.trace if loss < inf]
        assert len(budget.trace) + (budget.debt > 0) == 400
        assert len(budget.seen) >= len(paid) - 4  # the first of a ranking may be drawn twice
        assert budget.best.loss < 0.05
