"""What an objective, a profile and a certificate say of modules drawn at random is what the plain loop says."""

from __future__ import annotations

import copy
import os
from math import isnan

import pytest
import torch
from torch.utils._pytree import tree_flatten

import isthmus as im
from tests.generated import Case, draw, plain_error, plain_losses, plain_penalty, ties

COUNT = 500 if os.environ.get("ISTHMUS_LONG_TESTS") == "1" else 50
START = int(os.environ.get("ISTHMUS_FIRST_MODULE", "0"))


def _near(have: float, want: float, case: Case) -> bool:
    tolerance = 1e-6 if next(case.module.parameters()).dtype == torch.float64 else 2e-5  # float32 sums in another order
    return (isnan(have) and isnan(want)) or abs(have - want) <= tolerance * max(1.0, abs(want))


def _plain(case: Case, params: im.Params) -> tuple[float, float]:
    outputs = case.call(params)
    loss = float(plain_losses(case, outputs).double().mean()) + plain_penalty(case, params)
    return loss, plain_error(case, outputs)


@pytest.mark.parametrize("seed", range(START, START + COUNT))
def test_as_the_plain_loop(seed: int) -> None:
    case = draw(seed)
    a, b = case.params(2 * seed + 1), case.params(2 * seed + 2)
    kept = copy.deepcopy((case.inputs, case.y, case.module.state_dict(), a, b))
    objective = im.Objective(case.module, case.loss, (case.inputs, case.y), **case.options)
    for params in (a, b):
        loss, error = _plain(case, params)
        assert _near(objective.loss(params), loss, case), case.described
        assert isnan(objective.error(params)) == isnan(error), case.described
        assert isnan(error) or abs(objective.error(params) - error) <= 1e-7 + ties(case, params), case.described
    index = torch.randperm(len(case.y))[: max(1, len(case.y) // 2)]
    want = float(plain_losses(case, case.call(a)).double()[index].mean()) + plain_penalty(case, a)
    assert _near(float(objective.batch_loss(a, index)), want, case), case.described

    path = im.connect(objective, a, b, im.Linear(), seed=0).path
    measured = im.profile(objective, path, num_points=4, bn="interpolate")
    for t, loss, error in zip(measured.t.tolist(), measured.loss.tolist(), measured.error.tolist(), strict=True):
        want_loss, want_error = _plain(case, path.at(t))
        assert _near(loss, want_loss, case), f"t = {t}: {case.described}"
        assert isnan(want_error) == isnan(error), case.described
        assert isnan(error) or abs(error - want_error) <= 1e-7 + ties(case, path.at(t)), f"t = {t}: {case.described}"
    certificate = im.certify(objective, path, budget=12)
    assert certificate.bound >= float(measured.loss.max()) - 2e-5 * max(1.0, abs(measured.max)), case.described
    assert _same(kept, (case.inputs, case.y, case.module.state_dict(), a, b)), case.described


def _same(p: object, q: object) -> bool:
    left, right = (tree_flatten(v)[0] for v in (p, q))
    return all(torch.equal(v, w) for v, w in zip(left, right, strict=True))
