"""Lemma 3 on a page: draws of Algorithm 1 one unit at a time, and the rises along the segments to them."""

from typing import Any

import pytest
import torch

from isthmus.evaluate.chain import require_hidden_chain
from isthmus.experiments.jobs import Network, Problem
from isthmus.papers import by_name
from isthmus.papers.kuditipudi2019.lemma3 import CLAIMS, TABLE, LowDraws, drawn
from isthmus.params import lerp
from isthmus.sweep import Local, Store, run_cells
from isthmus.training.fit import Recipe

NETWORK = Network(Problem("mlp:64-12x2-10", "digits", 100, tests=0), 3, Recipe(lr=5e-3, steps=60, batch=50), 0.0)


def test_a_draw_zeroes_or_scales_every_outgoing_weight_of_a_unit():
    objective, _ = NETWORK.problem.objectives()
    theta = objective.check(NETWORK.problem.module(NETWORK.problem.dataset(), 0).state_dict())
    chain, generator = require_hidden_chain(objective), torch.Generator().manual_seed(0)
    shares = []
    for _ in range(100):
        end = drawn(chain, theta, 0.75, generator)
        assert torch.equal(end["0.weight"], theta["0.weight"])
        for name in ("2.weight", "4.weight"):
            scale = end[name] / theta[name]
            assert all(len(column.round(decimals=9).unique()) == 1 for column in scale.T)
            shares.append(float((scale[0] == 0).double().mean()))
            assert set(scale[0].round(decimals=9).tolist()) <= {0.0, 4.0}
        assert all(torch.equal(end[k], v) for k, v in theta.items() if k.endswith("bias"))
    assert sum(shares) / len(shares) == pytest.approx(0.75, abs=0.04)


def test_rises_are_the_largest_on_the_segments(tmp_path):
    cell, store = LowDraws(NETWORK, (0.5,), 3, 2), Store(tmp_path)
    assert run_cells([cell], store, Local(), device="cpu").ok
    found: Any = store.load(cell).result
    objective, _ = NETWORK.problem.objectives()
    job = type("Job", (), {"load": staticmethod(store.load), "put": staticmethod(dict)})
    theta = NETWORK.params(job)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    for rise in found["rises"]["0.5"]:
        end = drawn(require_hidden_chain(objective), theta, 0.5, generator)
        losses = [objective.loss(p) for p in (lerp(theta, end, 0.5), end)]
        assert rise == pytest.approx(max(losses) - objective.loss(theta))
    (row,) = TABLE.rows([(cell, store.load(cell))])
    low = 100 * sum(r <= 0.1 for r in found["rises"]["0.5"]) / 3
    assert (row["what"], row["draws"], row["fewest, %"]) == ("p = 0.5", 3, low)


@pytest.mark.parametrize(("share", "holds"), [(24.9, None), (25.0, True)])
def test_a_quarter_of_the_draws_is_asked_for(share, holds):
    row = {"figure": "Lemma 3", "what": "p = 0.5", "fewest, %": share, "draws": 200, "trials": 6}
    assert [f.holds for claim in CLAIMS for f in claim.findings([row])] == [holds]


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_the_page_draws_up_to_the_largest_p_of_the_lemma(scale):
    cells = [c for c in by_name("kuditipudi2019").cells(scale) if isinstance(c, LowDraws)]
    assert cells
    assert {(c.ps, c.draws) for c in cells} == {((0.25, 0.5, 0.75), 200)}
