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

START = int(os.environ.get("ISTHMUS_FIRST_MODULE", "0"))
FEW = (
    *(0, 1, 3, 5, 7, 11, 12, 15, 17, 18, 20, 21, 22, 25, 26, 28),
    *(29, 32, 33, 35, 37, 39, 41, 42, 44, 46, 47, 49),
)
"""Of the first fifty those that have every part, option, kind of target and loss, and every model of bounds with each
kind of input."""
SEEDS = range(500) if os.environ.get("ISTHMUS_LONG_TESTS") == "1" else FEW


def _tolerance(case: Case) -> float:
    return 1e-6 if next(case.module.parameters()).dtype == torch.float64 else 2e-5  # float32 sums in another order


def _near(have: float, want: float, case: Case) -> bool:
    return (isnan(have) and isnan(want)) or abs(have - want) <= _tolerance(case) * max(1.0, abs(want))


def _plain(case: Case, params: im.Params) -> tuple[float, float]:
    outputs = case.call(params)
    loss = float(plain_losses(case, outputs).double().mean()) + plain_penalty(case, params)
    return loss, plain_error(case, outputs)


@pytest.mark.parametrize("seed", [START + k for k in SEEDS])
def test_as_the_plain_loop(seed: int) -> None:
    case = draw(seed)
    a, b = case.params(2 * seed + 1), case.params(2 * seed + 2)
    kept = copy.deepcopy((case.inputs, case.y, case.module.state_dict(), a, b))
    objective, path, measured = as_the_loop(case, a, b)
    certificate = im.certify(objective, path, model=("auto", "box", "chord")[seed % 3], budget=12)
    assert certificate.bound >= float(measured.loss.max()) - 2e-5 * max(1.0, abs(measured.max)), case.described
    assert _same(kept, (case.inputs, case.y, case.module.state_dict(), a, b)), case.described


def as_the_loop(case: Case, a: im.Params, b: im.Params) -> tuple[im.Objective, im.Path, im.Profile]:
    """Losses, errors, those of batches, a profile of the line and its barriers, compared with the plain loop."""
    objective = im.Objective(case.module, case.loss, (case.inputs, case.y), **case.options)
    for params in (a, b):
        loss, error = _plain(case, params)
        assert _near(objective.loss(params), loss, case), case.described
        assert isnan(objective.error(params)) == isnan(error), case.described
        assert isnan(error) or abs(objective.error(params) - error) <= 1e-7 + ties(case, params), case.described
    order = torch.randperm(len(case.y), generator=torch.Generator().manual_seed(0))
    index = order[: max(1, len(case.y) // 2)]
    want = float(plain_losses(case, case.call(a)).double()[index].mean()) + plain_penalty(case, a)
    assert _near(float(objective.batch_loss(a, index)), want, case), case.described

    path = im.connect(objective, a, b, im.Linear(), seed=0).path
    measured = im.profile(objective, path, num_points=4, bn="interpolate")
    for t, loss, error in zip(measured.t.tolist(), measured.loss.tolist(), measured.error.tolist(), strict=True):
        want_loss, want_error = _plain(case, path.at(t))
        assert _near(loss, want_loss, case), f"t = {t}: {case.described}"
        assert isnan(want_error) == isnan(error), case.described
        assert isnan(error) or abs(error - want_error) <= 1e-7 + ties(case, path.at(t)), f"t = {t}: {case.described}"
    losses = [_plain(case, path.at(t))[0] for t in (0.0, 1 / 3, 2 / 3, 1.0)]
    above = [q - (losses[0] + t * (losses[-1] - losses[0])) for t, q in zip((0, 1 / 3, 2 / 3, 1), losses, strict=True)]
    wanted = {"max": max(losses), "excess": max(losses) - max(losses[0], losses[-1]), "linear": max(above)}
    for name, value in wanted.items():
        found = getattr(measured.barriers["loss"], name)
        assert isnan(found) or abs(found - value) <= 4 * _tolerance(case) * max(1.0, *map(abs, losses)), case.described
        assert isnan(found) == any(map(isnan, losses)), case.described
    return objective, path, measured


def _same(p: object, q: object) -> bool:
    left, right = (tree_flatten(v)[0] for v in (p, q))
    return all(torch.equal(v, w) for v, w in zip(left, right, strict=True))
