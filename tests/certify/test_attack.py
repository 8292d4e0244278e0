"""A few of the random modules of ``attack.py``: nothing that is proved about them is false."""

from __future__ import annotations

import pytest

from tests.certify import attack

SEEDS = {
    0: ["pre-norm"],
    2: ["mixture", "flat RMSNorm"],
    4: ["logsumexp", "prod of rows", "PReLU"],
    5: ["bare rsqrt", "std"],
}


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_that_is_proved_is_false(seed, monkeypatch):
    monkeypatch.setattr(attack, "GRID", 129)
    tried = attack.Attack()
    tried.one(seed, SEEDS[seed], paths=2)
    assert tried.false == []
    assert tried.told.total() > 0
