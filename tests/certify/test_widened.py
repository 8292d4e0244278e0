"""Modules and losses that compute in a narrower type inside, or with parameters of any shape: a number, or a reason."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus as im
from isthmus.certify.widened import evaluation, without_raw_errors
from isthmus.errors import UnsupportedError
from tests.certify.made import NARROW, SHAPES, TENTHS, Made


@cache
def problem(f: Callable[[Any, Tensor], Tensor]) -> tuple[im.Objective, im.Path]:
    torch.manual_seed(0)
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    ends = [Made(f).state_dict() for _ in range(2)]
    near = {k: torch.lerp(ends[0][k], v, 0.25) for k, v in ends[1].items()}
    return im.Objective(Made(f).eval(), "cross_entropy", (x, y)), im.Path.through([ends[0], near])


@pytest.mark.parametrize("name", [*NARROW, *SHAPES])
def test_what_can_be_measured_is_certified(name):
    objective, path = problem((NARROW | SHAPES)[name])
    c = im.certify(objective, path, 0.1, budget=64)
    assert c.proved, c.segments[0].why
    assert c.segments[0].claim == "bounded"
    assert im.profile(objective, path, 33).max <= c.bound * (1 + (1e-3 if "half" in name else 1e-6))
    assert c.gap < 0.5
    assert im.verify_certificate(objective, path, c.to_dict()) == []
    assert im.certify(objective, path, budget=0).segments[0].claim == "measured"


@pytest.mark.parametrize("name", NARROW)
def test_samples_are_those_of_the_graph_in_float64(name):
    """Whatever the module rounds to on the way, samples and bounds speak of the same function."""
    objective, path = problem(NARROW[name])
    wide = evaluation(objective, path.start)
    point = objective.check(path.at(0.5))
    inputs = objective.data[0]
    assert isinstance(inputs, Tensor)
    got = wide.objective.outputs(wide.params(point))
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, objective.program.run(wide.params(point), inputs.double()), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(got.float(), objective.outputs(point), rtol=1e-2, atol=1e-2)


class Zeros(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(1, x.size(0), 5)
        return self.out(self.lstm(x, (h, h))[0][:, -1])


class OneHot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 3)

    def forward(self, t: Tensor) -> Tensor:
        return self.layer(F.one_hot(t, 7).float())


def ends(make: Callable[[], nn.Module]) -> im.Path:
    torch.manual_seed(1)
    return im.Path.through([make().state_dict(), make().state_dict()])


WEIGHT = torch.tensor([1.0, 5.0, 2.0])
LOSSES = {
    "a module": nn.CrossEntropyLoss(weight=WEIGHT, reduction="none"),
    "a closure": lambda z, y: F.cross_entropy(z, y, weight=WEIGHT, reduction="none"),
    "a cast": lambda z, y: F.cross_entropy(z.float(), y, reduction="none") * WEIGHT[y],
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_with_constants_of_their_own(name):
    make = lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    torch.manual_seed(0)
    objective = im.Objective(make(), LOSSES[name], (torch.randn(12, 4), torch.arange(12) % 3), convex=True)
    path = ends(make)
    c = im.certify(objective, path, 0.05)
    assert c.proved
    said = "narrower types was taken in float64" in c.segments[0].why
    assert said == (name != "a module")  # torch's own losses are taken to float64 as the module is
    assert im.profile(objective, path, 41).max <= c.bound * (1 + 1e-6)
    assert im.verify_certificate(objective, path, c.to_dict()) == []


def test_zero_states_and_categories_are_proved():
    torch.manual_seed(0)
    y = torch.arange(12) % 3
    lstm, path = im.Objective(Zeros(), "cross_entropy", (torch.randn(12, 4, 2), y)), ends(Zeros)
    top = im.profile(lstm, path, 61).max
    bounded, measured = (im.certify(lstm, path, budget=budget) for budget in (16, 0))
    assert (bounded.segments[0].claim, measured.segments[0].claim) == ("bounded", "measured")
    assert bounded.bound >= top
    assert measured.bound == pytest.approx(top, rel=1e-6)
    hot, path = im.Objective(OneHot(), "cross_entropy", (torch.arange(12) % 7, y)), ends(OneHot)
    assert im.certify(hot, path, 0.05).proved


def test_spectral_normalisation():
    """By hooks and vectors; u and v do not move, so that the largest singular value that they stand for is no pole."""
    make = lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 3)).eval()
    torch.manual_seed(0)
    module = make()
    a = {k: v.clone() for k, v in module.state_dict().items()}
    b = {k: v if k[-2:] in ("_u", "_v") else v + 0.1 * torch.randn(v.shape) for k, v in a.items()}
    objective = im.Objective(module, "cross_entropy", (torch.randn(16, 8), torch.arange(16) % 3))
    path = im.Path.through([a, b])
    c = im.certify(objective, path, 0.05)
    assert c.proved, c.segments[0].why
    assert im.profile(objective, path, 41).max <= c.bound * (1 + 1e-6)


class Writing(nn.Module):
    """Writes into a tensor of its own that stays in float32: not even float64 throughout will do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        kept = TENTHS[:4].clone()
        assert x.dtype == torch.float32
        return self.layer(x * kept)


def test_what_cannot_be_evaluated_in_float64_is_measured_as_it_is():
    torch.manual_seed(0)
    objective = im.Objective(Writing(), "cross_entropy", (torch.randn(12, 4), torch.arange(12) % 3))
    path = ends(Writing)
    for budget in (16, 0):
        row = im.certify(objective, path, budget=budget).segments[0]
        assert row.claim == "measured"
        assert row.why.startswith("it cannot be evaluated in float64")
        assert row.bound == pytest.approx(im.profile(objective, path, 61).max, rel=1e-6)


class Counted(nn.Module):
    """Writes into whole numbers of its own, and computes in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        order = torch.arange(4)
        order[0] += 3
        return self.layer(x[:, order] * TENTHS[:4])


def test_whole_numbers_may_be_written():
    torch.manual_seed(0)
    objective = im.Objective(Counted(), "cross_entropy", (torch.randn(12, 4), torch.arange(12) % 3))
    row = im.certify(objective, ends(Counted), budget=16).segments[0]
    assert row.claim == "convex", row.why


def test_raw_errors_become_reasons_and_other_errors_stay():
    with pytest.raises(UnsupportedError, match="its graph: IndexError: too far"), without_raw_errors("its graph"):
        raise IndexError("too far\nat all")
    with pytest.raises(UnsupportedError, match="its graph: y: expected one"), without_raw_errors("its graph"):
        raise im.InputError("y", expected="one", got="two")
    with pytest.raises(im.IsthmusError, match=r"^internal error$"), without_raw_errors("its graph"):
        raise im.IsthmusError("internal error")
