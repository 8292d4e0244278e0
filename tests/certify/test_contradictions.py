"""What contradicts a proof: a rule that is wrong, a graph that is not the module, a mode of the processor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.certify.forms import Form
from isthmus.certify.widened import flushes
from isthmus.errors import IsthmusError
from tests.certify.rational import F64, ONE, chain, drawn, numbers, of


def test_a_contradiction_is_an_internal_error(monkeypatch):
    """A rule that is wrong on purpose: found by the samples, and not passed off as something that was measured."""
    module = chain([2, 5, 1])
    g = torch.Generator().manual_seed(0)
    a, b = drawn(module, g), drawn(module, g)
    x, y = torch.randn(6, 2, generator=g, dtype=F64), torch.zeros(6, 1, dtype=F64)
    objective = im.Objective(module, "mse", (x, y))
    path = im.Path.through([a, b])
    stored = im.certify(objective, path).to_dict()
    from isthmus.certify import affine

    right = affine.Motion.over

    def wrong(self, interval):
        form = right(self, interval)
        return Form(form.centre * 0.5, form.slope, form.radius, form.ulps, form.bend)

    monkeypatch.setattr(affine.Motion, "over", wrong)
    with pytest.raises(IsthmusError, match=r"internal error: the loss at t = .* please report it"):
        im.certify(objective, path)
    (row,) = stored["segments"]
    low = {**stored, "segments": [{**row, "intervals": [[p, q, 1e-3] for p, q, _ in row["intervals"]]}]}
    assert any("above the bound 0.001" in p for p in im.verify_certificate(objective, path, low))


def test_a_graph_that_is_not_the_module_is_measured():
    """What the trace froze differs from the module: no internal error, but nothing is proved."""

    class Counting(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * (1.0 if torch.compiler.is_exporting() else 3.0)

    module = Counting(2, 1, bias=False).double()
    x, y = torch.ones(4, 2, dtype=F64), torch.zeros(4, 1, dtype=F64)
    objective = im.Objective(module, "mse", (x, y))
    a = {"weight": numbers(1.0, 1.0).view(1, 2)}
    for b in (a, {"weight": 1.5 * a["weight"]}):
        row = im.certify(objective, im.Path.through([a, b])).segments[0]
        assert row.claim == "measured"
        assert "differ from those of the module, by" in row.why
        assert row.bound >= 36


def test_denormal_numbers_must_not_be_flushed():
    module = chain([1, 1, 1])
    objective = im.Objective(module, "mse", ONE)
    path = im.Path.through([of(module, 1.0, 1.0), of(module, 1.0, 2.0)])
    assert not flushes()
    assert im.certify(objective, path).proved
    assert torch.set_flush_denormal(True)
    try:
        assert flushes()
        row = im.certify(objective, path).segments[0]
        assert row.claim == "measured"
        assert "write torch.set_flush_denormal(False)" in row.why
    finally:
        torch.set_flush_denormal(False)
