"""The batched scale search against one bounded Brent search per mask, and the screened search against the full one."""

from dataclasses import replace
from math import cos
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

import isthmus as im
from isthmus.evaluate.screen import has_bf16
from isthmus.objective.losses import cross_entropy
from isthmus.stability.dropout import search as dropout
from isthmus.stability.dropout.scales import best_scales, mean_losses
from isthmus.stability.dropout.search import LARGEST_SCALE, Sought, search
from isthmus.structure.chain import chain_of
from isthmus.training.progress import no_progress
from tests.evaluate.networks import flops
from tests.problems import classify, perceptron, small_convnet


def linear(classes, y, loss: Any = "cross_entropy", **options):
    """An objective whose outputs have the given shape; only its loss is used."""
    x = torch.zeros(len(y), 1, dtype=torch.float64)
    module = nn.Linear(1, classes).double()
    return im.Objective(module, loss, (x, y), **options)


def brent(objective, z, offset, bound=LARGEST_SCALE):
    """The lowest loss found by bounded Brent searches, one per m, started on three brackets."""
    out: list[Any] = []
    for v in z:

        def loss(s, v=v):
            return float(mean_losses(objective, v[None], offset, torch.tensor([s], dtype=torch.float64)))

        tries: list[Any] = [
            minimize_scalar(loss, bounds=b, method="bounded", options={"xatol": 1e-9})
            for b in ((-bound, bound), (-1, 5), (-bound / 10, bound / 10))
        ]
        out.append(min(tries, key=lambda r: float(r.fun)))
    return [r.x for r in out], [r.fun for r in out]


@pytest.fixture
def logits():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (60,), generator=g)
    z = torch.randn(12, 60, 5, generator=g, dtype=torch.float64)
    # outputs that agree with the labels a little, strongly, or not at all, small and large ones
    z += torch.linspace(-1, 2, 12, dtype=torch.float64)[:, None, None] * nn.functional.one_hot(y, 5)
    return y, z * torch.logspace(-2, 1.5, 12, dtype=torch.float64)[:, None, None], torch.randn(5, generator=g).double()


def test_newton_finds_what_brent_finds(logits):
    y, z, offset = logits
    objective = linear(5, y)
    s, losses = best_scales(objective, z, offset, LARGEST_SCALE)
    true_s, true_losses = brent(objective, z, offset)
    assert losses.tolist() == pytest.approx(true_losses, abs=1e-9)
    assert s.tolist() == pytest.approx(true_s, rel=1e-4, abs=1e-6)
    assert min(s.tolist()) < 0 < max(s.tolist())  # both signs occur


def test_the_derivative_vanishes_at_the_scale(logits):
    y, z, offset = logits
    s, _ = best_scales(linear(5, y), z, offset, LARGEST_SCALE)
    s = s.requires_grad_()
    total = torch.stack([cross_entropy(f * v + offset, y).mean() for f, v in zip(s, z, strict=True)]).sum()
    (grad,) = torch.autograd.grad(total, s)
    inside = s.detach().abs() < LARGEST_SCALE - 1e-6
    assert bool(inside.any())
    assert float((grad[inside].abs() * 2 * LARGEST_SCALE).max()) < 1e-9


def test_probabilities_as_labels(logits):
    y, z, offset = logits
    soft = 0.1 + nn.functional.one_hot(y, 5).double() * 0.5
    objective = linear(5, soft)
    losses = best_scales(objective, z, offset, LARGEST_SCALE)[1]
    assert losses.tolist() == pytest.approx(brent(objective, z, offset)[1], abs=1e-9)


def test_outputs_with_positions(logits):
    y, z, offset = logits
    net = nn.Conv1d(1, 5, 1).double()
    objective = im.Objective(net, "cross_entropy", (torch.zeros(20, 1, 3, dtype=torch.float64), y.reshape(20, 3)))
    z = z.reshape(12, 20, 3, 5).movedim(3, 2)
    losses = best_scales(objective, z, offset, LARGEST_SCALE)[1]
    assert losses.tolist() == pytest.approx(brent(objective, z, offset)[1], abs=1e-9)


def test_the_mean_squared_error_in_closed_form(logits):
    _, z, offset = logits
    target = torch.randn(60, 5, generator=torch.Generator().manual_seed(1)).double()
    objective = linear(5, target, "mse")
    s, losses = best_scales(objective, z, offset, LARGEST_SCALE)
    true_s, true_losses = brent(objective, z, offset)
    assert losses.tolist() == pytest.approx(true_losses, rel=1e-9)
    assert s.tolist() == pytest.approx(true_s, rel=1e-4, abs=1e-6)


def test_any_other_convex_loss(logits):
    y, z, offset = logits
    target = nn.functional.one_hot(y, 5).double()
    objective = linear(5, target, lambda out, y: (out - y).abs().pow(1.5).sum(1), convex=True)
    losses = best_scales(objective, z[:4], offset, 20.0)[1]
    assert losses.tolist() == pytest.approx(brent(objective, z[:4], offset, 20.0)[1], rel=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("margin", [1e-3, 0.05, 2.0, 500.0])
def test_outputs_that_separate_the_data_end_at_the_bound_or_at_zero_loss(sign, margin):
    y = torch.arange(10) % 3
    z = (sign * margin * nn.functional.one_hot(y, 3).double())[None]
    s, losses = best_scales(linear(3, y), z, torch.zeros(3).double(), LARGEST_SCALE)
    wall = mean_losses(linear(3, y), z, torch.zeros(3), torch.tensor([sign * LARGEST_SCALE]).double())
    assert float(losses) == pytest.approx(float(wall), abs=1e-11)
    assert abs(float(s)) <= LARGEST_SCALE
    assert float(s) * sign > 0


def test_outputs_that_vanish_keep_any_scale():
    y = torch.arange(6) % 3
    s, losses = best_scales(linear(3, y), torch.zeros(2, 6, 3).double(), torch.ones(3).double(), LARGEST_SCALE)
    assert bool(s.isfinite().all())
    assert losses.tolist() == pytest.approx([torch.log(torch.tensor(3.0)).item()] * 2)


# -- the search


def run(problem, screen, masks=24, progress=no_progress, **options):
    chain = chain_of(problem.objective.program, problem.objective.structure)
    g = torch.Generator().manual_seed(0)
    sought = Sought(**({"keep": 0.5, "masks": masks, "screen": screen} | options))
    return search(problem.objective, chain, problem.a, sought, g, progress)


PROBLEMS = {
    "perceptron": lambda: classify("search", perceptron([5, 19, 17, 18, 4]), (5,)),
    "convnet with BatchNorm": lambda: classify("search", small_convnet(), (1, 8, 8)),
}


@pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("scale", ["output", "layer"])
def test_screening_in_bfloat16_finds_the_same_masks(make, scale):
    problem = make()
    plain, rough = run(problem, False, scale=scale), run(problem, True, scale=scale)
    for i, want in plain.items():
        assert all(torch.equal(want.kept[j], rough[i].kept[j]) for j in want.kept)
        assert rough[i].loss == pytest.approx(want.loss, rel=1e-12)
        assert rough[i].scale == pytest.approx(want.scale, rel=1e-9)


def test_masks_that_screening_puts_in_the_wrong_order_are_confirmed(monkeypatch):
    problem = PROBLEMS["perceptron"]()
    plain, original = run(problem, False), dropout._Entry.measured

    def noisy(self, trials, dtype=None, progress=lambda n: None):
        found = original(self, trials, progress=progress)
        wrong = [replace(d, loss=d.loss * (1 + 0.05 * cos(7 * m))) for m, d in enumerate(found)]
        return found if dtype is None else wrong

    monkeypatch.setattr(dropout._Entry, "measured", noisy)
    for i, d in run(problem, True).items():
        assert d.loss == plain[i].loss
        assert all(torch.equal(d.kept[j], plain[i].kept[j]) for j in d.kept)


def test_little_memory_finds_the_same_masks():
    problem = PROBLEMS["perceptron"]()
    few = run(problem, False)
    problem.objective.memory = 3000
    problem.objective.__dict__.pop("chunk", None)
    for i, d in run(problem, False).items():
        assert d.loss == pytest.approx(few[i].loss, rel=1e-12)
        assert all(torch.equal(d.kept[j], few[i].kept[j]) for j in d.kept)


def test_what_the_masks_share_is_computed_once():
    problem = classify("search", perceptron([5, 60, 60, 60, 4]), (5,))
    problem.objective.structure  # noqa: B018  derived before anything is counted
    one = flops(lambda: problem.objective.loss(problem.a))
    masks = 40
    total = flops(lambda: run(problem, False, masks=masks))
    # entries 1, 2, 3: two, one and no layers of a quarter of the products
    assert total < (2 + 0.75 * masks) * one
    assert total < 3 * masks * one / 3.5


def test_progress_counts_every_mask():
    calls = []
    run(PROBLEMS["perceptron"](), False, masks=5, progress=lambda *said: calls.append(said[1:]))
    assert calls[-1] == (15, 15)
    assert calls == sorted(calls)


def test_whether_masks_are_screened_does_not_depend_on_a_clock(monkeypatch):
    """The subsets must be the same on every run, however busy the machine is."""
    problem = classify("busy", perceptron([5, 9, 7, 4]), (5,))
    monkeypatch.setattr(dropout, "WORTH_SCREENING", 0)
    monkeypatch.setattr(dropout, "has_bf16", lambda device: True)
    connections = [im.connect(problem.objective, problem.a, problem.b, im.Dropout(masks=12)) for _ in range(2)]
    assert connections[0].stats["dropped"] == connections[1].stats["dropped"]
    assert has_bf16(torch.device("cpu")) == has_bf16(torch.device("cpu"))
    assert not has_bf16(torch.device("meta"))
    assert "bf16_pays" not in dropout.__dict__
