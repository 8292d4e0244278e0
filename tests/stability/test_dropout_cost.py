"""What a search for units to drop computes and keeps: no more than it pays for, whatever the memory."""

from __future__ import annotations

import pytest
import torch

import isthmus as im
from isthmus.stability.dropout.search import _features
from isthmus.structure.chain import chain_of
from tests.evaluate.networks import flops
from tests.problems import classify, perceptron
from tests.stability.chains import CHAINS, searches


@searches
def test_what_a_search_computes_is_what_it_pays_for(search):
    """Products counted while it runs: no more than those of the same number of random subsets."""
    problem = classify("wide", perceptron([5, 64, 64, 64, 64, 4]), (5,))
    objective = problem.objective.on((torch.randn(600, 5, generator=torch.Generator().manual_seed(0)).double(),
                                      torch.arange(600) % 4))  # fmt: skip
    objective.structure  # noqa: B018  derived before anything is counted

    def run(by: str) -> int:
        return flops(lambda: im.dropout_stability(objective, problem.a, masks=40, search=by))

    assert run(search) <= 1.05 * run("random")


@searches
@pytest.mark.parametrize("memory", [4000, 20_000])
def test_little_memory_gives_the_same(search, memory):
    """Features that do not fit are computed again, chunk by chunk; some subsets are run at a time, or only one."""
    problem = CHAINS["convnet"]()
    rich = im.dropout_stability(problem.objective, problem.a, masks=12, search=search)
    problem.objective.memory = memory
    problem.objective.__dict__.pop("chunk", None)
    chain = chain_of(problem.objective.program, problem.objective.structure)
    assert 1 not in _features(problem.objective, chain, problem.a)
    poor = im.dropout_stability(problem.objective, problem.a, masks=12, search=search)
    assert [v.loss for v in poor.layers] == pytest.approx([v.loss for v in rich.layers], rel=1e-9)


def test_features_are_kept_only_as_far_as_they_fit_together():
    problem = CHAINS["perceptron"]()
    chain = chain_of(problem.objective.program, problem.objective.structure)
    for memory in (1000, 2000, 3500, 10_000):
        problem.objective.memory = memory
        features = _features(problem.objective, chain, problem.a)
        assert sum(8 * v.numel() for i, v in features.items() if i > 0) <= memory
    assert sorted(features) == [0, 1, 2, 3]
